"""An ensemble of a small lite and a small dover: weighed on val, evaluated, registered and served as one model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from small_models import FRAMES, network, own_store, write_checkpoint, write_clip, write_dover, write_rated_videos
from starlette.testclient import TestClient

from qualivision import depth, gate, registry, scoring, tracking, video
from qualivision.behaviour.degradations import degrade
from qualivision.behaviour.folder import Clip
from qualivision.behaviour.measure import measure
from qualivision.evaluation.verdict import Verdict
from qualivision.labels import DIMENSIONS, labels_path, videos_dir
from qualivision.models.factory import base_hash, build_model
from qualivision.models.quality import ASPECTS
from qualivision.prompts import MINILM, PromptError
from qualivision.scoring import Scorer
from qualivision.serving import champion
from qualivision.serving.app import create_app
from qualivision.serving.engine import Engine
from qualivision.serving.observing import Metrics
from qualivision.settings import (
    DecodeSettings,
    DoverNetwork,
    FrameSpec,
    ServeSettings,
    SettingsError,
    TextSettings,
    load_settings,
)
from qualivision.stages import encode, ensemble, evaluate, frames, member, places, prompts
from qualivision.stages.member import MemberError
from qualivision.training import checkpoint
from qualivision.training.checkpoint import (
    CARD,
    WEIGHTS,
    CheckpointError,
    ModelCard,
    checkpoint_id,
    copy_member,
    files_of,
    members_of,
    read_card,
    save_checkpoint,
    save_ensemble,
    trained_tensors,
)
from qualivision.training.starting import read_start

ROOT = Path(__file__).parents[1]
NAMES = ("lite", "dover")
OTHER_FRAMES = FrameSpec(count=4, height=64, width=96)
CLIPS = {"train": 10, "val": 8, "test": 10}
PROMPT = "A cat is running on the grass"


def dover_network(weights: Path) -> DoverNetwork:
    return DoverNetwork(weights=str(weights), width=16, dropout=0.0)


def write_dover_checkpoint(folder: Path, weights: Path) -> Path:
    """An untrained small dover as a checkpoint."""
    write_dover(weights)
    torch.manual_seed(5)
    model = build_model("dover", dover_network(weights), 384)
    card = ModelCard(
        name="dover",
        frames=OTHER_FRAMES,
        text=TextSettings(encoder=MINILM),
        network=dover_network(weights),
        text_width=384,
        architecture=model.encoder.architecture,
        base=str(weights),
        base_hash=base_hash("dover", dover_network(weights)),
        training={"best_epoch": 1},
    )
    save_checkpoint(folder, card, trained_tensors(model))
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A working folder whose raters agree with lite, with both models' checkpoints and caches, and the ensemble."""
    with own_store(tmp_path_factory.mktemp("ensemble")) as folder:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params |= {"models": list(NAMES), "ensembles": ["ensemble"], "deploy": "ensemble"}
        params["ensemble"]["members"] = list(NAMES)
        params["evaluate"] |= {"bootstrap_resamples": 100, "behaviour_clips": 0}
        params["promote"] |= {"resamples": 100, "min_gain_over_no_video": -2.0, "margin": 1.0}
        params["registry"]["name"] = "together"
        params["lite"] |= {"frames": FRAMES.model_dump(), "network": network().model_dump()}
        params["dover"] |= {"frames": OTHER_FRAMES.model_dump(), "text": {"encoder": MINILM}}
        params["dover"]["network"] = dover_network(folder / "dover.pth").model_dump()
        Path("params.yaml").write_text(yaml.safe_dump(params))
        write_dover_checkpoint(places.checkpoint_dir("dover"), folder / "dover.pth")
        write_rated_videos(places.DATA, write_checkpoint(places.checkpoint_dir("lite")), clips=CLIPS)
        for name in NAMES:
            frames.run(name, workers=1)
            prompts.run(name)
            encode.run(name)
            assert member.run(name) == f"member {name}: 8 clips of val and 10 of test scored"
        assert ensemble.run().startswith("ensemble: weights of 2 members from 8 clips of val; in Overall lite 0.")
        yield folder


@pytest.fixture
def own(project, tmp_path, monkeypatch):
    """A copy of the project, to change."""
    shutil.copytree(project, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")


@pytest.fixture
def together(project):
    return Scorer(places.checkpoint_dir("ensemble"), device="cpu")


def a_clip() -> Path:
    return videos_dir(places.DATA, "test") / "A_test0.mp4"


# The checkpoint


def test_the_checkpoint_is_a_card_with_weights_and_copies_of_the_members(project):
    folder = places.checkpoint_dir("ensemble")
    card = json.loads((folder / CARD).read_text())
    assert card["name"] == "ensemble" and card["members"] == ["lite", "dover"]
    assert list(card["weights"]) == list(DIMENSIONS)
    for shares in card["weights"].values():
        assert shares[0] > 0.5 > shares[1] >= 0, "val's raters agree with lite"
        assert sum(shares) == pytest.approx(1)
    for name in NAMES:
        for file in (WEIGHTS, CARD):
            copied = (places.member_dir(name) / file).read_bytes()
            assert copied == (places.checkpoint_dir(name) / file).read_bytes()
    assert [one.name for one in members_of(folder)] == list(NAMES)
    assert members_of(folder)[1].weights == {dimension: shares[1] for dimension, shares in card["weights"].items()}


def test_a_plain_checkpoint_has_one_member_itself(project):
    folder = places.checkpoint_dir("lite")
    (only,) = members_of(folder)
    assert only.folder == folder and only.card == read_card(folder) and set(only.weights.values()) == {1.0}
    assert files_of(folder) == (WEIGHTS, CARD)


def test_every_file_of_a_member_is_in_the_checkpoints_name_and_what_is_no_part_of_it_is_not(own):
    folder = places.checkpoint_dir("ensemble")
    named = {checkpoint_id(folder)}
    (places.member_dir("lite") / "predictions.csv").write_text("")
    shutil.copytree(places.member_dir("lite"), places.member_dir("vjepa2"))  # of an earlier ensemble
    assert {checkpoint_id(folder)} == named
    for number, name in enumerate(files_of(folder), 2):
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        named.add(checkpoint_id(folder))
        assert len(named) == number


def each(shares: list[float]) -> dict[str, list[float]]:
    return dict.fromkeys(DIMENSIONS, shares)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"members": ["lite"]}, r"model\.json: can't be read: its members are \['lite'\], not two or more of lite"),
        ({"members": ["lite", "../../secret"]}, "not two or more of lite, dover, vjepa2"),
        ({"members": ["lite", "lite"]}, "not two or more"),
        ({"members": [["lite"], "dover"]}, "not two or more"),
        ({"members": "lite"}, "not two or more"),
        ({"weights": {}}, r"it has no weight for a member: KeyError\('Traditional'\)"),
        ({"weights": each([1.0])}, "it has no weight for a member"),
        ({"weights": each([0.5, 0.6])}, r"Traditional: \[0.5, 0.6\] are no weights: 0 or more"),
        ({"weights": each([1.5, -0.5])}, "are no weights"),
        ({"weights": each([float("nan"), 1.0])}, "are no weights"),
        ({"members": ["lite", "vjepa2"]}, r"members/vjepa2: is no checkpoint \(model.json is missing\)"),
    ],
)
def test_a_card_that_says_nothing_sound_is_refused(own, values, says):
    path = places.checkpoint_dir("ensemble") / CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError, match=says):
        members_of(path.parent)


def test_a_member_that_is_another_model_than_its_folder_says_is_refused(own):
    shutil.rmtree(places.member_dir("dover"))
    shutil.copytree(places.member_dir("lite"), places.member_dir("dover"))
    with pytest.raises(CheckpointError, match=r"members/dover: is a 'lite' model; `dvc repro ensemble` copies it"):
        Scorer(places.checkpoint_dir("ensemble"))


def test_a_member_that_was_replaced_since_the_weights_were_fitted_is_refused(own):
    write_checkpoint(places.member_dir("lite"), seed=1)
    with pytest.raises(
        CheckpointError, match="members/lite: is not what the ensemble's weights were fitted to; `dvc re"
    ):
        Scorer(places.checkpoint_dir("ensemble"))


def test_killed_at_any_write_there_is_no_ensemble_rather_than_half_of_one(own, monkeypatch):
    folder, weights = places.checkpoint_dir("ensemble"), {name: dict.fromkeys(DIMENSIONS, 0.5) for name in NAMES}
    write = checkpoint.write_atomically
    for survived in range(3):
        copy_member(folder, places.checkpoint_dir("lite"))
        save_ensemble(folder, weights)
        left = survived

        def killed(path, content):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            write(path, content)

        monkeypatch.setattr(checkpoint, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            copy_member(folder, places.checkpoint_dir("lite"))
            save_ensemble(folder, weights)
        with pytest.raises(CheckpointError, match="ensemble: is no checkpoint"):
            members_of(folder)
        monkeypatch.setattr(checkpoint, "write_atomically", write)
    copy_member(folder, places.checkpoint_dir("lite"))
    save_ensemble(folder, weights)
    assert len(members_of(folder)) == 2


# Stages


def test_without_what_a_member_says_or_with_what_it_says_of_other_clips_nothing_is_weighed(own):
    said = places.member_dir("dover") / "predictions.csv"
    rows = said.read_text()
    said.write_text(rows.replace("A_val3", "A_valX"))
    with pytest.raises(MemberError, match=r"is not about the clips that val has now; `qualivision member dover`"):
        ensemble.run()
    said.write_text("split,video_name\n")
    with pytest.raises(MemberError, match=r"predictions\.csv: can't be read: .*; `qualivision member dover` writes it"):
        ensemble.run()
    said.unlink()
    with pytest.raises(MemberError, match=r"dover/predictions\.csv: no such file; `qualivision member dover`"):
        ensemble.run()
    said.write_text(rows)
    (places.member_dir("lite") / CARD).unlink()
    with pytest.raises(CheckpointError, match="members/lite: is no checkpoint"):
        ensemble.run()


def test_where_params_yaml_lists_no_ensemble_or_not_this_member_the_stages_say_so(own):
    params = yaml.safe_load(Path("params.yaml").read_text())
    with pytest.raises(
        SettingsError, match=r"vjepa2: is no member .*ensembles: ensemble, ensemble.members: lite, dover"
    ):
        member.run("vjepa2")
    Path("params.yaml").write_text(yaml.safe_dump(params | {"ensembles": [], "deploy": "lite"}))
    with pytest.raises(SettingsError, match=r"lite: is no member of an ensemble; params.yaml lists ensembles: none"):
        member.run("lite")
    with pytest.raises(SettingsError, match=r"no ensemble is built; params.yaml needs ensembles: \[ensemble\]"):
        ensemble.run()
    with pytest.raises(SettingsError, match=r"no model named 'ensemble'; params.yaml lists models: lite, dover"):
        evaluate.run("ensemble")
    Path("params.yaml").write_text(yaml.safe_dump(params | {"models": ["lite"]}))
    with pytest.raises(SettingsError, match=r"ensemble.members: dover is not in models: lite"):
        load_settings()


def test_the_evaluation_is_that_of_the_mean_and_shows_the_members_beside_it(project, together):
    line = evaluate.run("ensemble")
    report = places.report_dir("ensemble")
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["model"] == "ensemble" and metrics["checkpoint"] == checkpoint_id(places.checkpoint_dir("ensemble"))
    for one in together.members:
        shown = metrics["members"][one.name]
        assert shown["weights"] == {dimension: round(share, 4) for dimension, share in one.weights.items()}
        evaluate.run(one.name)
        alone = json.loads((places.report_dir(one.name) / "metrics.json").read_text())
        assert "members" not in alone
        assert shown["SROCC"] == {name: alone[name]["SROCC"] for name in (*DIMENSIONS, "mean")}
    assert metrics["members"]["lite"]["SROCC"]["mean"] > 0.95
    said = {name: f"{of['SROCC']['mean']:.3f}" for name, of in metrics["members"].items()}
    assert f"Members by themselves, mean SROCC: lite {said['lite']}, dover {said['dover']}." in line
    assert {path.name for path in report.iterdir()} == {
        "metrics.json",
        "predictions.csv",
        "scatter.png",
        "comparison.png",
        "behaviour.json",
        "behaviour.png",
    }
    rows = pd.read_csv(report / "predictions.csv")
    assert metrics["unfamiliar"] == pytest.approx((rows["distance"] > depth.FAMILIAR).mean(), abs=1e-4)
    for row in rows.to_dict("records"):
        scores = together.score(videos_dir(places.DATA, "test") / row["video_name"], prompt=row["Prompt"])
        assert row["Overall_predicted"] == pytest.approx(scores["Overall"], abs=3e-3)  # the stem cache rounds
        assert row["distance"] == pytest.approx(scores.distance, rel=1e-2)


def test_its_evaluation_reports_its_behaviour_too(own):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["evaluate"]["behaviour_clips"] = 1
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert "Mean tau: Traditional" in evaluate.run("ensemble")
    measured = json.loads((places.report_dir("ensemble") / "behaviour.json").read_text())
    assert measured["model"] == str(places.checkpoint_dir("ensemble")) and "blur" in measured["kinds"]


def test_training_may_start_from_the_member_of_its_name(project, tmp_path):
    folder, settings = places.checkpoint_dir("ensemble"), load_settings()
    start = read_start(str(folder), "lite", settings.lite, target=tmp_path)
    assert (start.name, start.id) == (str(folder), checkpoint_id(places.checkpoint_dir("lite")))
    with pytest.raises(CheckpointError, match=r"does not fit params.yaml: model: lite, dover, wanted vjepa2"):
        read_start(str(folder), "vjepa2", settings.vjepa2, target=tmp_path)


def test_an_ensemble_is_evaluated_only_on_a_rated_test_split(own):
    path = labels_path(places.DATA, "test")
    pd.read_csv(path)[["video_name", "Prompt"]].to_csv(path, index=False)
    with pytest.raises(Exception, match=r"test_labels\.csv: has no MOS"):
        evaluate.run("ensemble")


# Scoring


def test_a_score_is_the_weighted_mean_of_the_members_own_scores(project, together):
    assert together.kind == "ensemble" and together.specs == (FRAMES, OTHER_FRAMES)
    found = together.score(a_clip(), prompt=PROMPT)
    own = [Scorer(places.checkpoint_dir(name), device="cpu").score(a_clip(), prompt=PROMPT) for name in NAMES]
    assert own[0].values != own[1].values
    for dimension in DIMENSIONS:
        shares = [one.weights[dimension] for one in together.members]
        wanted = sum(share * scores[dimension] for share, scores in zip(shares, own, strict=True))
        assert found[dimension] == pytest.approx(wanted, abs=1e-12)
    overall = [one.weights["Overall"] for one in together.members]
    for aspect in ASPECTS:
        wanted = sum(share * scores.aspect_weights[aspect] for share, scores in zip(overall, own, strict=True))
        assert found.aspect_weights[aspect] == pytest.approx(wanted, abs=1e-12)
    assert sum(found.aspect_weights.values()) == pytest.approx(1, abs=1e-6)


def test_a_clip_is_as_far_as_it_is_for_the_member_to_which_it_is_strangest(project, together):
    own = [Scorer(places.checkpoint_dir(name), device="cpu").score(a_clip(), prompt=PROMPT) for name in NAMES]
    near, far = sorted(scores.distance for scores in own)
    assert near < far
    found = together.score(a_clip(), prompt=PROMPT)
    assert found.distance == pytest.approx(far) and found.warning == depth.warning(found.distance)


def test_against_many_prompts_each_members_stem_runs_once_and_the_scores_are_those_of_each_alone(
    project, together, monkeypatch
):
    clip, stems = video.read_clip(a_clip(), together.specs), []
    prompts = [f"prompt {number}" for number in range(18)]  # more than go through at once
    wanted = [together.judge([("a.mp4", prompt, clip)])[0] for prompt in prompts]
    for part in together._parts:
        monkeypatch.setattr(part, "stem", lambda clips, stem=part.stem: stems.append(len(clips)) or stem(clips))
    found = together.judge_prompts("a.mp4", prompts, clip)
    assert stems == [1, 1]
    assert [scores.prompt for scores in found] == prompts
    for scores, alone in zip(found, wanted, strict=True):
        assert scores.values == pytest.approx(alone.values, abs=1e-4)
        assert scores.distance == pytest.approx(alone.distance, rel=1e-4)
    with pytest.raises(PromptError, match=r"a\.mp4: the prompt is blank"):
        together.judge_prompts("a.mp4", ["a cat", " "], clip)


def test_its_behaviour_is_measured_on_what_every_member_reads(project, together):
    clips = [Clip("one", a_clip(), PROMPT), Clip("two", a_clip().with_name("A_test3.mp4"), "A dog")]
    found = measure(together, clips, DecodeSettings(), kinds=("noise",), steps=2, workers=1)
    one = found.clips[0]
    assert one.clean == pytest.approx(list(together.score(a_clip(), prompt=PROMPT).values.values()), abs=1e-3)
    native, order = video.distinct_frames(a_clip(), FRAMES.count, max_side_px=640)
    worse = degrade(native, "noise", 1.0, seed=crc32(b"one"))
    shown = tuple(video.resize(worse, spec.height, spec.width)[order] for spec in together.specs)
    wanted = together.judge([("one", PROMPT, shown)])[0]
    assert one.degraded["noise"][-1] == pytest.approx(list(wanted.values.values()), abs=1e-3)
    against = together.score(a_clip(), prompt="A dog")
    assert one.others is not None and one.others[0] == pytest.approx(list(against.values.values()), abs=1e-3)


def test_members_that_read_the_same_share_frames_and_sentence_encoder(project, tmp_path):
    dover = places.checkpoint_dir("dover")
    same = tmp_path / "dover"
    shutil.copytree(dover, same)
    (same / CARD).write_text(replace(read_card(dover), frames=FRAMES).to_json())
    copy_member(tmp_path / "both", places.checkpoint_dir("lite"))
    copy_member(tmp_path / "both", same)
    save_ensemble(tmp_path / "both", {name: dict.fromkeys(DIMENSIONS, 0.5) for name in NAMES})
    scorer = Scorer(tmp_path / "both", device="cpu")
    assert scorer.specs == (FRAMES,)
    assert scorer._parts[0].embed is scorer._parts[1].embed
    found = scorer.score(a_clip(), prompt=PROMPT)
    own = [Scorer(folder, device="cpu").score(a_clip(), prompt=PROMPT) for folder in (dover.with_name("lite"), same)]
    assert found["Overall"] == pytest.approx(np.mean([scores["Overall"] for scores in own]), abs=1e-12)


@pytest.mark.parametrize(
    ("others", "passes"), [([OTHER_FRAMES], 1), ([], 1), ([FrameSpec(count=3, height=32, width=32)], 2)]
)
def test_a_clip_is_decoded_once_for_all_specs_of_one_count(tmp_path, monkeypatch, others, passes):
    path = write_clip(tmp_path / "clip.mp4", frames=9)
    specs = [FRAMES, *others]
    wanted = [video.read_frames(path, spec) for spec in specs]
    calls, sample = [], video._sample
    monkeypatch.setattr(video, "_sample", lambda *how: calls.append(how) or sample(*how))
    found = video.read_clip(path, specs)
    assert len(calls) == passes
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


# Registry, gate, server


def put(model: str) -> registry.Registered:
    evaluate.run(model)
    return registry.register(places.checkpoint_dir(model), places.report_dir(model), load_settings().registry)


def judged(version: int) -> Verdict:
    return gate.judge(version, load_settings(), places.DATA, advance=lambda uri: lambda done, total: None)


def test_it_is_registered_judged_promoted_and_scores_as_the_champion(project, together):
    settings = load_settings()
    dover = put("dover")
    assert judged(dover.version).passed
    registry.promote(dover.version, settings.registry)
    done = put("ensemble")
    assert logged_weights(done)["weight.dover.Overall"] == together.members[1].weights["Overall"]
    tags = registry.tags_of(done.version, settings.registry)
    assert tags["qualivision.model"] == "ensemble" and tags["qualivision.members"] == "lite,dover"
    assert tags["qualivision.frames"] == "4x64x64,4x64x96"
    verdict = judged(done.version)
    assert verdict.passed and verdict.champion == dover.uri
    registry.promote(done.version, settings.registry)
    served = Scorer(f"models:/{settings.registry.name}@champion", device="cpu")
    assert served.name == done.uri and served.kind == "ensemble"
    wanted = together.score(a_clip(), prompt=PROMPT)
    assert served.score(a_clip(), prompt=PROMPT).values == wanted.values
    check_pyfunc(done.uri, wanted.values)
    description = tracking.client().get_model_version(settings.registry.name, str(done.version)).description
    share = 100 * together.members[1].weights["Overall"]
    assert "Made of: lite, dover" in description and f"{share:.0f} % of Overall" in description
    assert "dover: reads: 4 frames of 64 x 96 pixels" in description


def logged_weights(done: registry.Registered) -> dict[str, float]:
    run = registry.tags_of(done.version, load_settings().registry)["qualivision.run"]
    return tracking.client().get_run(run).data.metrics


def check_pyfunc(uri: str, wanted) -> None:
    import mlflow

    request = pd.DataFrame({"video": [a_clip().read_bytes()], "prompt": [PROMPT]})
    (row,) = mlflow.pyfunc.load_model(uri).predict(request).to_dict("records")
    assert row["error"] == "" and row["Overall"] == pytest.approx(wanted["Overall"], abs=1e-6)


def test_the_gate_scores_an_ensemble_from_caches_and_from_videos(project, together, monkeypatch):
    folder = places.checkpoint_dir("ensemble")
    rows = gate.TestRows(places.DATA, DecodeSettings())
    wanted = [
        [together.score(videos_dir(places.DATA, "test") / name, prompt=prompt)[dimension] for dimension in DIMENSIONS]
        for name, prompt in zip(rows.table["video_name"], rows.prompts, strict=True)
    ]
    with monkeypatch.context() as patch:
        patch.setattr(gate.TestRows, "_by_videos", lambda *_: pytest.fail("decoded what is cached"))
        np.testing.assert_allclose(rows.scored_by(folder, advance=lambda done, total: None), wanted, atol=3e-3)
    monkeypatch.setattr(gate.TestRows, "_by_caches", lambda *_: None)
    np.testing.assert_allclose(rows.scored_by(folder, advance=lambda done, total: None), wanted, rtol=1e-4)


def test_a_server_answers_with_it(project, together):
    metrics = Metrics()
    scorer = champion.load(str(places.checkpoint_dir("ensemble")))
    settings = ServeSettings(workers=1)
    engine = Engine(scorer, settings, DecodeSettings(), metrics)
    try:
        with TestClient(create_app(engine, settings, metrics, follows=None)) as client:
            about = client.get("/v1/model").json()
            files = {"video": ("clip.mp4", a_clip().read_bytes())}
            answer = client.post("/v1/score", files=files, data={"prompt": PROMPT})
    finally:
        engine.close(10)
    assert about["kind"] == "ensemble"
    assert about["frames"] == [FRAMES.model_dump(), OTHER_FRAMES.model_dump()]
    assert answer.status_code == 200
    wanted = together.score(a_clip(), prompt=PROMPT)
    for dimension, value in answer.json()["scores"].items():
        assert value == pytest.approx(wanted[dimension], abs=1e-3)


def test_files_that_are_not_those_that_were_registered_are_refused_member_for_member(project, tmp_path):
    from qualivision.serving.pyfunc import QualityScorer

    recorded = {"checkpoint": checkpoint_id(places.checkpoint_dir("ensemble"))}
    context = SimpleNamespace(artifacts={"checkpoint": str(tmp_path / "copy")}, model_config=recorded)
    shutil.copytree(places.checkpoint_dir("ensemble"), tmp_path / "copy")
    shutil.copy(places.member_dir("lite") / WEIGHTS, tmp_path / "copy" / "members" / "dover" / WEIGHTS)
    with pytest.raises(CheckpointError, match="is not the checkpoint that was registered"):
        QualityScorer().load_context(context)


def test_a_table_of_clips_is_scored_by_worker_processes(project, together):
    from qualivision.batch import Asked, Here

    clips = {"a": Asked(PROMPT, str(a_clip())), "b": Asked(PROMPT, str(a_clip().with_name("A_test3.mp4")))}
    found = dict(Here(places.checkpoint_dir("ensemble"), DecodeSettings(), batch=2, workers=1)(list(clips.items())))
    for name, asked in clips.items():
        assert isinstance(found[name], scoring.Scores), found[name]
        assert found[name]["Overall"] == pytest.approx(together.score(asked.path, prompt=PROMPT)["Overall"], abs=1e-4)
