"""From a checkpoint to the champion that scores, on a real MLflow store in a temporary folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from small_models import FRAMES, own_store, write_checkpoint, write_clip, write_evaluation

import qualivision
from qualivision import registry, scoring, tracking
from qualivision.evaluation.verdict import Difference, Verdict
from qualivision.labels import DIMENSIONS
from qualivision.model_card import DESCRIPTION_CHARACTERS
from qualivision.packaging import PackagingError
from qualivision.prompts import PromptError
from qualivision.registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Registered,
    RegistryError,
    fetch,
    promote,
    record_verdict,
    register,
)
from qualivision.scoring import ModelNotFoundError, Scorer, Scores
from qualivision.settings import RegistrySettings
from qualivision.training.checkpoint import WEIGHTS, CheckpointError, checkpoint_id
from qualivision.video import VideoError

PROMPT = "A cat is running on the grass"
GOOD = 0.6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with an MLflow store of its own, and no params.yaml."""
    with own_store(tmp_path_factory.mktemp("registry")) as folder:
        yield folder


@pytest.fixture(scope="module")
def checkpoint(place) -> Path:
    return write_checkpoint(place / "checkpoint")


@pytest.fixture(scope="module")
def clip(place) -> Path:
    return write_clip(place / "clip.mp4")


def settings(name: str) -> RegistrySettings:
    return RegistrySettings(name=name)


def put(folder: Path, name: str, *, seed: int = 0) -> Registered:
    """Register a checkpoint of its own."""
    checkpoint = write_checkpoint(folder / f"{name}-{seed}", seed=seed)
    return register(checkpoint, write_evaluation(folder / f"{name}-{seed}-report", checkpoint), settings(name))


def verdict(version: int, name: str, *, passed: bool = True, against: int | None = None) -> Verdict:
    """What the gate might have said; recorded on the version."""
    row = Difference("Overall", 0.6, 0.5, 0.1, 0.05, 0.15)
    said = Verdict(
        passed=passed,
        reasons=() if passed else ("Overall is significantly worse: -0.100",),
        challenger=f"models:/{name}/{version}",
        champion=f"models:/{name}/{against}" if against else None,
        against_champion=(row,) if against else (),
        against_no_video=(row,),
        clips=20,
        prompts=5,
        confidence=0.95,
        data="table",
    )
    record_verdict(version, said, settings(name))
    return said


def approve(version: int, name: str) -> None:
    """Through the gate and promoted."""
    verdict(version, name, against=registry.version_of(CHAMPION, settings(name)))
    promote(version, settings(name), who="Ada", why="looked at it")


@pytest.fixture(scope="module")
def registered(place, checkpoint) -> Registered:
    """Version 1 of `shared`; not promoted."""
    return register(checkpoint, write_evaluation(place / "good", checkpoint), settings("shared"))


def test_an_evaluation_of_another_checkpoint_is_refused(place, checkpoint):
    with pytest.raises(PackagingError, match="evaluation of another checkpoint"):
        register(checkpoint, write_evaluation(place / "mixed-up", None), settings("mixed-up"))


def alias(name: str, of: str) -> int | None:
    return registry.version_of(of, settings(name))


# Registering


def test_registering_makes_a_challenger_with_hash_and_scores(place, checkpoint, registered):
    store = tracking.client()
    assert (registered.version, registered.new, registered.uri) == (1, True, "models:/shared/1")
    assert alias("shared", CHALLENGER) == 1
    tags = store.get_model_version("shared", "1").tags
    assert tags[tracking.CHECKPOINT_TAG] == checkpoint_id(checkpoint)
    assert (tags["qualivision.model"], tags["qualivision.frames"]) == ("lite", str(FRAMES))
    assert json.loads(tags["qualivision.scores"])["Overall"] == GOOD
    assert tags["qualivision.dimensions"] == ",".join(DIMENSIONS)
    assert tags["qualivision.run"] == store.get_model_version("shared", "1").run_id


def test_registering_the_same_checkpoint_twice_gives_the_same_version(place, checkpoint):
    metrics = write_evaluation(place / "twice", checkpoint)
    first = register(checkpoint, metrics, settings("twice"))
    second = register(checkpoint, metrics, settings("twice"))
    assert (first.version, first.new) == (1, True)
    assert (second.version, second.new) == (1, False)
    assert len(tracking.client().search_model_versions("name='twice'")) == 1


def test_another_checkpoint_is_another_version_and_the_new_challenger(place, checkpoint):
    put(place, "other")
    other = put(place, "other", seed=1)
    assert (other.version, other.new) == (2, True)
    assert alias("other", CHALLENGER) == 2


def test_registered_files_hold_no_pickle_and_no_trainer_state(checkpoint, registered):
    (checkpoint / "trainer").mkdir(exist_ok=True)
    (checkpoint / "trainer" / "state.safetensors").write_bytes(b"never served")
    logged = Path(mlflow.artifacts.download_artifacts(registered.uri))
    files = {str(path.relative_to(logged)) for path in logged.rglob("*") if path.is_file()}
    served = {name.removeprefix("artifacts/") for name in files if name.startswith("artifacts/")}
    assert served == {"checkpoint/model.safetensors", "checkpoint/model.json", "metrics.json", "model_card.html"}
    assert not [name for name in files if Path(name).suffix in {".pkl", ".pickle", ".pth", ".pt", ".bin"}]
    assert "code/qualivision/serving/pyfunc.py" in files


def test_registering_is_quiet(place, capfd, recwarn, caplog):
    put(place, "quiet", seed=7)
    said = capfd.readouterr().err + caplog.text + "".join(str(w.message) for w in recwarn)
    assert not [word for word in ("example", "signature", "requirement", "pickle") if word in said]


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"Overall": {"VQualA": 1}}'])
def test_a_checkpoint_without_an_evaluation_is_not_registered(place, checkpoint, tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(PackagingError, match=r"metrics\.json: .*dvc repro evaluate"):
        register(checkpoint, tmp_path, settings("unevaluated"))
    assert not tracking.client().search_registered_models("name='unevaluated'")


def test_a_folder_that_is_no_checkpoint_is_not_registered(place, tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        register(tmp_path, write_evaluation(tmp_path, None), settings("nothing"))


# Runs


def test_the_run_of_a_checkpoint_is_found_again_by_its_hash(place):
    with tracking.training_run("lite", {"seed": 0, "loss": {"scale": 0.1}}) as record:
        record.epoch(1, {"loss_total": 2.0, "val_score": 0.1})
        record.epoch(2, {"loss_total": 1.0, "val_score": 0.4})
        record.finish("abc123")
    store = tracking.client()
    assert tracking.run_of(store, "abc123") == record.run_id
    assert tracking.run_of(store, "abc") is None
    run = store.get_run(record.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "0", "loss.scale": "0.1"}
    assert [(m.step, m.value) for m in store.get_metric_history(record.run_id, "loss_total")] == [(1, 2.0), (2, 1.0)]


def test_steps_are_logged_in_few_requests_and_none_is_lost_when_training_fails(place, monkeypatch):
    store = tracking.client()
    requests, log_batch = [], type(store).log_batch

    def counted(self, run_id, metrics=(), **more):
        requests.extend([1] if metrics else [])
        return log_batch(self, run_id, metrics, **more)

    monkeypatch.setattr(type(store), "log_batch", counted)
    with pytest.raises(RuntimeError), tracking.training_run("lite", {}) as record:
        for number in range(1, 601):
            record.step(number, {"loss_total": 1.0 / number, "rate_head": 0.1})
        raise RuntimeError
    history = store.get_metric_history(record.run_id, "step/loss_total")
    assert [(m.step, m.value) for m in history] == [(number, 1.0 / number) for number in range(1, 601)]
    assert len(requests) == 3, "1200 values, a thousand at most in each, sent once there are more than that"


def test_a_training_that_raises_ends_as_failed_and_is_no_checkpoints_run(place):
    with pytest.raises(RuntimeError, match="out of luck"), tracking.training_run("lite", {}) as record:
        raise RuntimeError("out of luck")
    assert tracking.client().get_run(record.run_id).info.status == "FAILED"


def test_evaluation_goes_to_the_run_that_trained(place, tmp_path):
    with tracking.training_run("lite", {}) as record:
        record.finish("evaluated")
    metrics = json.loads((write_evaluation(tmp_path, None, score=None) / "metrics.json").read_text())
    metrics["Overall"] = {"SROCC": 0.5, "VQualA": None}
    tracking.log_evaluation("lite", "evaluated", metrics, tmp_path)
    run = tracking.client().get_run(record.run_id)
    assert run.data.metrics["test_Overall.SROCC"] == 0.5
    assert "test_Overall.VQualA" not in run.data.metrics, "None is no number"
    assert [file.path for file in tracking.client().list_artifacts(record.run_id, "evaluation")] == [
        "evaluation/metrics.json"
    ]


def test_evaluation_of_a_checkpoint_from_elsewhere_gets_a_run_of_its_own(place, tmp_path):
    metrics = json.loads((write_evaluation(tmp_path, None) / "metrics.json").read_text())
    tracking.log_evaluation("lite", "from-elsewhere", metrics, tmp_path)
    run_id = tracking.run_of(tracking.client(), "from-elsewhere")
    assert run_id and tracking.client().get_run(run_id).data.metrics["test_mean.VQualA"] == GOOD


def test_a_model_is_logged_to_the_run_that_trained_it(place):
    folder = write_checkpoint(place / "with-run", seed=2)
    with tracking.training_run("lite", {}) as record:
        record.finish(checkpoint_id(folder))
    done = register(folder, write_evaluation(folder, folder), settings("with-run"))
    assert tracking.client().get_model_version("with-run", str(done.version)).run_id == record.run_id


def test_a_model_without_a_run_gets_one_that_is_found_by_its_hash(place):
    folder = write_checkpoint(place / "without-run", seed=3)
    done = register(folder, write_evaluation(folder, folder), settings("without-run"))
    run_id = tracking.run_of(tracking.client(), checkpoint_id(folder))
    assert run_id and tracking.client().get_model_version("without-run", str(done.version)).run_id == run_id


# Promoting


def test_a_version_that_passed_becomes_champion_with_who_when_and_why(place):
    version = put(place, "first").version
    approve(version, "first")
    assert (alias("first", CHAMPION), alias("first", CHALLENGER), alias("first", PREVIOUS)) == (version, None, None)
    (entry,) = registry.entries(settings("first"))
    assert [event.what for event in entry.history] == ["registered", "judged", "approved"]
    assert (entry.history[-1].who, entry.history[-1].why) == ("Ada", "looked at it")
    assert entry.history[-1].when.endswith("+00:00")


def test_a_version_that_did_not_pass_is_refused_unless_overridden_for_a_reason(place):
    first, second = put(place, "gate", seed=0).version, put(place, "gate", seed=1).version
    approve(first, "gate")
    verdict(second, "gate", passed=False, against=first)
    with pytest.raises(RegistryError, match=r"did not pass the gate: Overall is significantly worse.*--override"):
        promote(second, settings("gate"))
    assert alias("gate", CHAMPION) == first
    promote(second, settings("gate"), override="the raters changed their minds")
    assert (alias("gate", CHAMPION), alias("gate", PREVIOUS)) == (second, first)
    event = registry.entries(settings("gate"))[0].history[-1]
    assert (event.what, event.why) == ("approved against the gate", "the raters changed their minds")


def test_a_version_that_was_not_judged_or_against_another_champion_is_refused(place):
    versions = [put(place, "stale", seed=seed).version for seed in range(3)]
    with pytest.raises(RegistryError, match="was not held against the no-video baseline; run `qualivision gate 1`"):
        promote(versions[0], settings("stale"))
    approve(versions[0], "stale")
    verdict(versions[2], "stale", against=versions[0])
    approve(versions[1], "stale")
    with pytest.raises(RegistryError, match="was not held against models:/stale/2"):
        promote(versions[2], settings("stale"))
    assert alias("stale", CHAMPION) == versions[1]


def test_the_verdict_is_kept_on_the_version_and_read_back_whether_it_passed_or_not(place):
    version = put(place, "verdict").version
    assert registry.verdict_of(version, settings("verdict")) is None
    for passed in (True, False):
        said = verdict(version, "verdict", passed=passed)
        found = tracking.client().get_model_version("verdict", str(version))
        assert found.tags[registry.VERDICT_TAG] == ("passed" if passed else "refused")
        assert registry.verdict_of(version, settings("verdict")) == said
        assert found.description.count("## The gate") == 1
        assert found.description.startswith("lite: Overall 0.600 (VQualA)") and said.line in found.description
        assert len(found.description) <= DESCRIPTION_CHARACTERS


def test_rolling_back_goes_down_to_the_first_champion_and_says_why_on_both(place):
    first, second, third = (put(place, "back", seed=seed).version for seed in range(3))
    for version in (first, second, third):
        approve(version, "back")
    assert registry.rollback(settings("back"), why="scores jumped") == (third, second)
    assert (alias("back", CHAMPION), alias("back", PREVIOUS)) == (second, first)
    assert registry.rollback(settings("back"), why="still") == (second, first)
    assert (alias("back", CHAMPION), alias("back", PREVIOUS)) == (first, None)
    with pytest.raises(RegistryError, match="models:/back/1 is the first champion"):
        registry.rollback(settings("back"), why="once more")
    newest, middle, oldest = registry.entries(settings("back"))
    assert (newest.verdict, middle.verdict, oldest.verdict) == ("rolled back", "rolled back", "passed")
    assert (newest.history[-1].what, newest.history[-1].why) == ("rolled back to 2", "scores jumped")
    assert oldest.history[-1].what == "champion again, for 2"


def test_what_a_person_took_back_is_not_promoted_again_by_a_verdict_old_or_new(place):
    first, second = (put(place, "again", seed=seed).version for seed in range(2))
    approve(first, "again")
    approve(second, "again")
    registry.rollback(settings("again"), why="it flickers")
    for _ in range(2):
        assert "was rolled back (it flickers)" in registry.objection(second, settings("again"))
        with pytest.raises(RegistryError, match=r"was rolled back \(it flickers\)"):
            promote(second, settings("again"))
        assert alias("again", CHAMPION) == first
        verdict(second, "again", against=first)
    promote(second, settings("again"), override="it was the screen")
    assert alias("again", CHAMPION) == second
    assert registry.entries(settings("again"))[0].verdict == "overridden"


def test_the_objection_is_what_promote_would_say(place):
    version = put(place, "objection").version
    assert "was not held against the no-video baseline" in registry.objection(version, settings("objection"))
    verdict(version, "objection", passed=False)
    assert "did not pass the gate" in registry.objection(version, settings("objection"))
    verdict(version, "objection")
    assert registry.objection(version, settings("objection")) is None


def test_nothing_is_rolled_back_without_a_champion(place, registered):
    with pytest.raises(RegistryError, match="no champion yet"):
        registry.rollback(settings("nobody"), why="?")


@pytest.mark.parametrize("call", range(6))
def test_a_promotion_that_fails_in_the_middle_leaves_the_old_champion_or_the_new_one(place, monkeypatch, call):
    """Whichever request to the store fails, somebody is champion, and the next try succeeds."""
    name = f"failing-{call}"
    first, second = (put(place, name, seed=seed).version for seed in range(2))
    approve(first, name)
    verdict(second, name, against=first)
    calls = iter(range(100))

    def fails(method):
        def request(*arguments, **named):
            if next(calls) == call:
                raise MlflowException("the server went away")
            return method(*arguments, **named)

        return request

    with monkeypatch.context() as patch:
        for method in ("set_model_version_tag", "set_registered_model_alias", "delete_registered_model_alias"):
            patch.setattr(mlflow.MlflowClient, method, fails(getattr(mlflow.MlflowClient, method)))
        failed = True
        try:
            promote(second, settings(name))
            failed = False
        except MlflowException:
            pass
    assert failed == (call < 5)
    assert alias(name, CHAMPION) == (first if call < 4 else second)
    promote(second, settings(name))
    assert (alias(name, CHAMPION), alias(name, PREVIOUS)) == (second, first)
    registry.rollback(settings(name), why="to be sure")
    assert alias(name, CHAMPION) == first


def test_a_rollback_that_stopped_half_way_goes_on(place, monkeypatch):
    versions = [put(place, "half", seed=seed).version for seed in range(3)]
    for version in versions:
        approve(version, "half")
    store = tracking.client()
    store.set_registered_model_alias("half", CHAMPION, "2")  # as a rollback leaves it that stops before `previous`
    assert alias("half", PREVIOUS) == 2
    assert registry.rollback(settings("half"), why="further") == (2, 1)


def test_an_unknown_version_is_refused_and_the_champion_stays(place):
    version = put(place, "unknown").version
    approve(version, "unknown")
    with pytest.raises(RegistryError, match="models:/unknown/99: no such version; `qualivision models` lists them"):
        promote(99, settings("unknown"))
    with pytest.raises(RegistryError, match="models:/nobody/1: no such version"):
        promote(1, settings("nobody"))
    with pytest.raises(RegistryError, match="there is no challenger; `qualivision register` makes one"):
        registry.challenger(settings("unknown"))
    assert alias("unknown", CHAMPION) == version


def test_versions_are_listed_newest_first_and_an_empty_registry_is_empty(place):
    assert registry.entries(settings("empty")) == []
    for seed in range(2):
        put(place, "listed", seed=seed)
    found = registry.entries(settings("listed"))
    assert [(entry.version, entry.aliases, entry.verdict) for entry in found] == [
        (2, (CHALLENGER,), "not judged"),
        (1, (), "not judged"),
    ]
    assert found[0].scores["Overall"] == GOOD and found[0].model == "lite"
    assert json.loads(json.dumps(found[0].as_dict()))["history"][0]["what"] == "registered"


# Finding and scoring


def test_without_a_champion_the_error_says_how_to_get_one(place):
    with pytest.raises(ModelNotFoundError, match=r"no champion yet.*make demo.*--model"):
        fetch(f"models:/nobody@{CHAMPION}")


@pytest.mark.parametrize("uri", ["models:/nobody/1", "models:/shared/99", "models:/shared@nobody", "runs:/0123/model"])
def test_a_model_that_is_not_there_is_named(place, registered, uri):
    with pytest.raises(ModelNotFoundError, match=uri):
        fetch(uri)


def test_a_checkpoint_folder_that_is_not_there_is_named(place):
    with pytest.raises(ModelNotFoundError, match="nowhere: no such checkpoint folder"):
        Scorer("nowhere")


def test_a_model_that_is_not_ours_is_refused(place, tmp_path):
    store = tracking.client()
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    store.create_registered_model("foreign")
    store.create_model_version("foreign", tmp_path.as_uri())
    with pytest.raises(ModelNotFoundError, match="models:/foreign/1: holds no checkpoint of QualiVision"):
        fetch("models:/foreign/1")


@pytest.mark.parametrize(
    "file",
    ["artifacts/checkpoint/model.safetensors", "artifacts/metrics.json", "code/qualivision/scoring.py", "MLmodel"],
)
def test_altered_files_in_the_store_are_refused(place, file):
    name = f"altered-{Path(file).stem}"
    done = put(place, name)
    altered = fetch(done.uri)[0].parents[1] / file
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    with pytest.raises(RegistryError, match=f"models:/{name}/1: its files are not those that were registered"):
        fetch(done.uri)


def test_a_file_that_was_added_is_refused_and_what_reading_leaves_behind_is_not(place):
    done = put(place, "added")
    code = fetch(done.uri)[0].parents[1] / "code" / "qualivision"
    (code / "__pycache__").mkdir(exist_ok=True)
    (code / "__pycache__" / "cli.cpython-311.pyc").write_bytes(b"left by Python")
    fetch(done.uri)
    (code / "added.py").write_text("import os\n")
    with pytest.raises(RegistryError, match="its files are not those that were registered"):
        fetch(done.uri)


def test_files_that_are_gone_from_the_store_are_named(place):
    done = put(place, "gone", seed=5)
    approve(done.version, "gone")
    (fetch(done.uri)[0] / WEIGHTS).unlink()
    with pytest.raises(ModelNotFoundError, match="models:/gone/1: holds no checkpoint") as caught:
        fetch(f"models:/gone@{CHAMPION}")
    assert "no champion yet" not in str(caught.value)


@pytest.fixture(scope="module")
def champion(place, checkpoint) -> Scorer:
    """The champion of the registry's default name, as `Scorer()` finds it."""
    done = register(checkpoint, write_evaluation(place / "champion", checkpoint), settings("qualivision"))
    approve(done.version, "qualivision")
    return Scorer()


def values(scores: Scores) -> list[float]:
    return [scores[dimension] for dimension in DIMENSIONS]


def test_scorer_takes_the_champion_by_default(champion, checkpoint, clip):
    assert champion.name == "models:/qualivision/1"
    found = champion.score(clip, prompt=PROMPT)
    assert list(found.values) == list(DIMENSIONS)
    assert all(1 <= value <= 5 for value in values(found))
    assert sum(found.aspect_weights.values()) == pytest.approx(1.0)
    assert (found.video, found.prompt, found.model) == (str(clip), PROMPT, champion.name)


def test_params_yaml_names_the_registry_of_the_champion(place, registered, tmp_path, monkeypatch):
    verdict(1, "shared")
    promote(1, settings("shared"))
    params = (Path(__file__).parents[1] / "params.yaml").read_text()
    assert "name: qualivision" in params
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(params.replace("name: qualivision", "name: shared"))
    assert fetch(None)[1] == "models:/shared/1"


def test_every_way_to_name_a_model_gives_the_same_scores(champion, checkpoint, clip, registered):
    wanted = values(champion.score(clip, prompt=PROMPT))
    run_id = tracking.client().get_model_version("shared", "1").run_id
    for model in (checkpoint, str(checkpoint), "models:/shared/1", f"runs:/{run_id}/model"):
        assert values(Scorer(model).score(clip, prompt=PROMPT)) == wanted, model


def test_scores_are_those_of_the_trained_tensors(champion, clip, place):
    other = Scorer(write_checkpoint(place / "another", seed=6))
    assert values(other.score(clip, prompt=PROMPT)) != values(champion.score(clip, prompt=PROMPT))


def test_the_prompt_matters_and_a_blank_one_is_refused(champion, clip):
    before, after = (values(champion.score(clip, prompt=prompt)) for prompt in (PROMPT, "An empty street at night"))
    assert before != after
    with pytest.raises(PromptError, match=r"clip\.mp4: the prompt is blank"):
        champion.score(clip, prompt="  ")


def test_scoring_many_goes_on_after_a_video_that_cannot_be_read(champion, clip, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    found = list(champion.score_many([(clip, PROMPT), (tmp_path / "broken.mp4", PROMPT), (clip, PROMPT)]))
    assert isinstance(found[1], VideoError) and "broken.mp4" in str(found[1])
    assert found[0] == found[2] == champion.score(clip, prompt=PROMPT)


def test_module_level_score_returns_five_values_by_the_champion(champion, clip):
    scoring._scorer.cache_clear()
    found = qualivision.score(clip, prompt=PROMPT)
    scoring._scorer.cache_clear()
    assert isinstance(found, qualivision.Scores)
    assert values(found) == values(champion.score(clip, prompt=PROMPT))
    assert set(found.as_dict()["scores"]) == set(DIMENSIONS)


def test_nothing_is_written_outside_the_store(place, registered):
    store = tracking.client()
    location = store.get_experiment_by_name(tracking.EXPERIMENT).artifact_location
    assert location == (place / "state" / "mlartifacts").as_uri()
    assert not (place / "mlruns").exists()
    assert os.environ["MLFLOW_TRACKING_URI"].endswith(f"{place.name}/mlflow.db")
