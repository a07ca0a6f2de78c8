"""From a checkpoint to the champion that scores, on a real MLflow store in a temporary folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import mlflow
import pytest
from small_models import FRAMES, write_checkpoint, write_clip

import qualivision
from qualivision import scoring, tracking
from qualivision.labels import DIMENSIONS
from qualivision.prompts import PromptError
from qualivision.registry import CHALLENGER, CHAMPION, Registered, RegistryError, fetch, promote, register
from qualivision.scoring import ModelNotFoundError, Scorer, Scores
from qualivision.settings import RegistrySettings
from qualivision.training.checkpoint import WEIGHTS, CheckpointError, checkpoint_id
from qualivision.video import VideoError

PROMPT = "A cat is running on the grass"
GOOD, POOR = 0.6, 0.2


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with an MLflow store of its own, and no params.yaml."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))  # a loaded pyfunc puts its copy of the package first
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        patch.setattr(tracking, "STATE", folder / "state")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        tracking.client()
        yield folder
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def checkpoint(place) -> Path:
    return write_checkpoint(place / "checkpoint")


@pytest.fixture(scope="module")
def clip(place) -> Path:
    return write_clip(place / "clip.mp4")


def evaluation(folder: Path, of: Path | None = None, score: float | None = GOOD, no_video: float | None = 0.3) -> Path:
    """A `metrics.json` of a checkpoint, with the given VQualA of Overall."""
    path = folder / "metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {dimension: {"SROCC": 0.5, "VQualA": score} for dimension in (*DIMENSIONS, "mean")}
    about = {"no_video": {"Overall": {"VQualA": no_video}}, "checkpoint": checkpoint_id(of) if of else "another"}
    path.write_text(json.dumps(found | about))
    return path


def test_an_evaluation_of_another_checkpoint_is_refused(place, checkpoint):
    with pytest.raises(RegistryError, match="evaluation of another checkpoint"):
        register(checkpoint, evaluation(place / "mixed-up"), settings("mixed-up"))


def settings(name: str, gain: float = 0.0) -> RegistrySettings:
    return RegistrySettings(name=name, min_gain_over_no_video=gain)


@pytest.fixture(scope="module")
def registered(place, checkpoint) -> Registered:
    """Version 1 of `shared`, with a good score; not promoted."""
    return register(checkpoint, evaluation(place / "good", checkpoint), settings("shared"))


def version_of(store, name: str, alias: str) -> int:
    return int(store.get_model_version_by_alias(name, alias).version)


# Registering


def test_registering_makes_a_challenger_with_hash_and_scores(place, checkpoint, registered):
    store = tracking.client()
    assert (registered.version, registered.new, registered.uri) == (1, True, "models:/shared/1")
    assert version_of(store, "shared", CHALLENGER) == 1
    tags = store.get_model_version("shared", "1").tags
    assert tags[tracking.CHECKPOINT_TAG] == checkpoint_id(checkpoint)
    assert (tags["qualivision.model"], tags["qualivision.frames"]) == ("lite", str(FRAMES))
    assert (tags["qualivision.overall_vquala"], tags["qualivision.overall_no_video"]) == (str(GOOD), "0.3")


def test_registering_the_same_checkpoint_twice_gives_the_same_version(place, checkpoint):
    metrics = evaluation(place / "twice", checkpoint)
    first = register(checkpoint, metrics, settings("twice"))
    second = register(checkpoint, metrics, settings("twice"))
    assert (first.version, first.new) == (1, True)
    assert (second.version, second.new) == (1, False)
    assert len(tracking.client().search_model_versions("name='twice'")) == 1


def test_another_checkpoint_is_another_version_and_the_new_challenger(place, checkpoint):
    register(checkpoint, evaluation(place / "other", checkpoint), settings("other"))
    second = write_checkpoint(place / "other" / "checkpoint", seed=1)
    other = register(second, evaluation(place / "other", second), settings("other"))
    assert (other.version, other.new) == (2, True)
    assert version_of(tracking.client(), "other", CHALLENGER) == 2


def test_registered_files_hold_no_pickle_and_no_trainer_state(checkpoint, registered):
    (checkpoint / "trainer").mkdir(exist_ok=True)
    (checkpoint / "trainer" / "state.safetensors").write_bytes(b"never served")
    logged = Path(mlflow.artifacts.download_artifacts(registered.uri))
    files = {str(path.relative_to(logged)) for path in logged.rglob("*") if path.is_file()}
    served = {name.removeprefix("artifacts/") for name in files if name.startswith("artifacts/")}
    assert served == {"checkpoint/model.safetensors", "checkpoint/model.json", "metrics.json"}
    assert not [name for name in files if Path(name).suffix in {".pkl", ".pickle", ".pth", ".pt", ".bin"}]
    assert "code/qualivision/serving/pyfunc.py" in files


def test_registering_is_quiet(place, capfd, recwarn, caplog):
    folder = write_checkpoint(place / "quiet", seed=7)
    register(folder, evaluation(folder, folder), settings("quiet"))
    assert "example" not in capfd.readouterr().err + caplog.text + "".join(str(w.message) for w in recwarn)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"Overall": {"VQualA": 1}}'])
def test_a_checkpoint_without_an_evaluation_is_not_registered(place, checkpoint, tmp_path, content):
    path = tmp_path / "metrics.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RegistryError, match=r"metrics\.json: .*dvc repro evaluate"):
        register(checkpoint, path, settings("unevaluated"))
    assert not tracking.client().search_registered_models("name='unevaluated'")


def test_a_folder_that_is_no_checkpoint_is_not_registered(place, tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        register(tmp_path, evaluation(tmp_path), settings("nothing"))


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
    metrics = json.loads(evaluation(tmp_path, score=None).read_text())
    tracking.log_evaluation("lite", "evaluated", metrics, tmp_path)
    run = tracking.client().get_run(record.run_id)
    assert run.data.metrics["test_Overall.SROCC"] == 0.5
    assert "test_Overall.VQualA" not in run.data.metrics, "None is no number"
    assert [file.path for file in tracking.client().list_artifacts(record.run_id, "evaluation")] == [
        "evaluation/metrics.json"
    ]


def test_evaluation_of_a_checkpoint_from_elsewhere_gets_a_run_of_its_own(place, tmp_path):
    metrics = json.loads(evaluation(tmp_path).read_text())
    tracking.log_evaluation("lite", "from-elsewhere", metrics, tmp_path)
    run_id = tracking.run_of(tracking.client(), "from-elsewhere")
    assert run_id and tracking.client().get_run(run_id).data.metrics["test_mean.VQualA"] == GOOD


def test_a_model_is_logged_to_the_run_that_trained_it(place):
    folder = write_checkpoint(place / "with-run", seed=2)
    with tracking.training_run("lite", {}) as record:
        record.finish(checkpoint_id(folder))
    done = register(folder, evaluation(folder, folder), settings("with-run"))
    assert tracking.client().get_model_version("with-run", str(done.version)).run_id == record.run_id


def test_a_model_without_a_run_gets_one_that_is_found_by_its_hash(place):
    folder = write_checkpoint(place / "without-run", seed=3)
    done = register(folder, evaluation(folder, folder), settings("without-run"))
    run_id = tracking.run_of(tracking.client(), checkpoint_id(folder))
    assert run_id and tracking.client().get_model_version("without-run", str(done.version)).run_id == run_id


# Promoting


def test_a_version_above_the_no_video_baseline_becomes_champion(place, registered):
    promote(1, settings("shared"))
    assert version_of(tracking.client(), "shared", CHAMPION) == 1


@pytest.mark.parametrize(
    ("score", "no_video", "gain", "message"),
    [
        (POOR, 0.3, 0.0, r"Overall 0\.2 against 0\.3 without video is a gain of -0\.100"),
        (0.3, 0.3, 0.0, "is a gain of 0.000"),  # as good as no video is not better
        (GOOD, 0.3, 0.5, "asks for more than 0.5"),
        (None, 0.3, -1.0, "has no score for Overall"),
        (GOOD, None, -1.0, "has no score for Overall"),
    ],
)
def test_a_version_that_does_not_beat_the_baseline_is_refused(place, checkpoint, score, no_video, gain, message):
    gate = settings(f"refused-{score}-{no_video}", gain)
    done = register(checkpoint, evaluation(place / gate.name, checkpoint, score, no_video), gate)
    with pytest.raises(RegistryError, match=message):
        promote(done.version, gate)
    with pytest.raises(ModelNotFoundError):
        fetch(f"models:/{gate.name}@{CHAMPION}")


def test_an_unknown_version_is_refused_and_the_champion_stays(place, registered):
    promote(1, settings("shared"))
    with pytest.raises(RegistryError, match="models:/shared/99: no such version"):
        promote(99, settings("shared"))
    with pytest.raises(RegistryError, match="models:/nobody/1: no such version"):
        promote(1, settings("nobody"))
    assert version_of(tracking.client(), "shared", CHAMPION) == 1


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


def test_altered_weights_in_the_store_are_refused(place):
    folder = write_checkpoint(place / "altered", seed=4)
    done = register(folder, evaluation(folder, folder), settings("altered"))
    weights = fetch(done.uri)[0] / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RegistryError, match="models:/altered/1: its weights are not those that were registered"):
        fetch(done.uri)


def test_files_that_are_gone_from_the_store_are_named(place):
    folder = write_checkpoint(place / "gone", seed=5)
    done = register(folder, evaluation(folder, folder), settings("gone"))
    promote(done.version, settings("gone"))
    (fetch(done.uri)[0] / WEIGHTS).unlink()
    with pytest.raises(ModelNotFoundError, match="models:/gone/1: holds no checkpoint") as caught:
        fetch(f"models:/gone@{CHAMPION}")
    assert "no champion yet" not in str(caught.value)


@pytest.fixture(scope="module")
def champion(place, checkpoint) -> Scorer:
    """The champion of the registry's default name, as `Scorer()` finds it."""
    done = register(checkpoint, evaluation(place / "champion", checkpoint), settings("qualivision"))
    promote(done.version, settings("qualivision"))
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
