"""Learning from few ratings: training that starts from a checkpoint, and the learning curve."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import spearmanr
from small_models import (
    FRAMES,
    MINILM,
    DataSet,
    network,
    own_store,
    train_settings,
    write_checkpoint,
    write_clip,
    write_data_set,
)

from qualivision.evaluation.curve import advice, learning_curve, read_curve
from qualivision.gate import TestRows
from qualivision.importing import import_labels
from qualivision.labels import MOS_COLUMNS, LabelError
from qualivision.model_card import as_markdown
from qualivision.models.factory import base_hash, build_model
from qualivision.settings import DecodeSettings, FrameSpec, ModelSettings, TextSettings, TrainSettings
from qualivision.stages import encode, evaluate, frames, places, prompts, train, validate
from qualivision.training.checkpoint import CheckpointError, checkpoint_id, read_card
from qualivision.training.curve import CURVE, folds_of, make_curve, share_of
from qualivision.training.data import ClipSet
from qualivision.training.loop import STATE, Trained, Trainer, predict
from qualivision.training.starting import CHOOSING_CLIPS, Pull, Start, concordance, read_start, started


def nothing(*_: object) -> None:
    pass


def trainer(
    train_set: ClipSet,
    val_set: ClipSet,
    settings: TrainSettings,
    *,
    state: Path | None = None,
    start: Start | None = None,
) -> Trainer:
    net = network(dropout=0.2)
    return Trainer(
        lambda: build_model("lite", net, train_set.text.shape[1]),
        train_set,
        val_set,
        settings,
        state=state,
        identity="one",
        start=start,
    )


def run(trainer: Trainer, *, resume: bool = False, stop_after: int | None = None) -> Trained:
    def logged(epoch: int, metrics: dict[str, float]) -> None:
        if epoch == stop_after:
            raise InterruptedError

    return trainer.run(resume=resume, log=logged, advance=nothing)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("data"), train=300, val=60)


@pytest.fixture(scope="module")
def start(data: DataSet) -> Start:
    """What 250 of the training clips teach; the other 50 are the team's own."""
    known = data.clips("train").part(list(range(250)))
    trained = run(trainer(known, data.clips("val"), train_settings(epochs=20)))
    return Start("somewhere", "0123", trained.tensors, trained.forests)


def own_clips(data: DataSet, split: str, rows: list[int]) -> ClipSet:
    """Clips as a team rates them that uses the lower part of the scale only."""
    part = data.clips(split).part(rows)
    part.mos = 1 + 0.5 * (part.mos - 1)
    return part


@pytest.fixture(scope="module")
def few(data: DataSet) -> tuple[ClipSet, ClipSet]:
    """40 clips to train on, 5 to validate."""
    return own_clips(data, "train", list(range(250, 290))), own_clips(data, "train", list(range(290, 295)))


def scored(trainer: Trainer, tensors: dict[str, torch.Tensor], clips: ClipSet) -> np.ndarray:
    trees = [name for name in tensors if name.startswith("forests.") and name.endswith(".feature")]
    trainer.averaged.hold_forests([tuple(tensors[name].shape) for name in trees])
    trainer.averaged.load_state_dict(tensors)
    return predict(trainer.averaged, clips)


def agreement_and_error(predicted: np.ndarray, clips: ClipSet) -> tuple[float, float]:
    rated = clips.mos.numpy()
    order = [spearmanr(p, r).statistic for p, r in zip(predicted.T, rated.T, strict=True)]
    return float(np.mean(order)), float(np.abs(predicted - rated).mean())


# What it learns


def test_few_own_ratings_teach_the_scale_and_keep_the_order_and_from_scratch_they_teach_little(data, start, few):
    settings, judged = train_settings(epochs=10), own_clips(data, "test", list(range(60)))
    from_start, scratch = trainer(*few, settings, start=start), trainer(*few, settings)
    as_is = agreement_and_error(scored(from_start, start.tensors, judged), judged)
    order, error = agreement_and_error(scored(from_start, run(from_start).tensors, judged), judged)
    assert order > as_is[0] - 0.03
    assert error < 0.75 * as_is[1]
    scratch_order, scratch_error = agreement_and_error(scored(scratch, run(scratch).tensors, judged), judged)
    assert order > scratch_order + 0.1
    assert error < scratch_error


def test_a_pull_without_end_keeps_the_start_exactly(start, few):
    going = trainer(*few, train_settings(epochs=1, start_pull=1e9, start_steps=6), start=start)
    trained = run(going)
    assert trained.epoch == 2, "6 steps are two epochs of five"
    before, after = scored(going, start.tensors, few[0]), scored(going, trained.tensors, few[0])
    np.testing.assert_array_equal(after, before)


def test_the_pull_grows_as_the_set_shrinks():
    model = torch.nn.Linear(2, 1)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    strengths = [Pull(model, tensors, 3.0, clips=clips).strength for clips in (50, 500, 1000, 5000)]
    assert strengths == [60.0, 6.0, 3.0, 3.0]


def test_the_pull_goes_its_share_of_the_way_back_at_each_groups_rate():
    model = torch.nn.Linear(2, 1)
    pull = Pull(model, {"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}, 10.0, clips=1000)
    with torch.no_grad():
        model.weight.fill_(1.0), model.bias.fill_(1.0)
    pull([{"lr": 0.01, "params": [model.weight]}, {"lr": 0.05, "params": [model.bias]}])
    assert model.weight.flatten().tolist() == pytest.approx([0.9, 0.9])
    assert model.bias.item() == pytest.approx(0.5)


def test_what_the_start_measured_is_not_measured_again(start, few):
    trained = run(trainer(*few, train_settings(epochs=2, start_steps=1), start=start))
    measured = [name for name in start.tensors if name.endswith(("_norm.mean", "_norm.scale", "edges"))]
    assert measured
    assert all(torch.equal(trained.tensors[name], start.tensors[name]) for name in measured)


def test_few_clips_get_steps_enough():
    assert started(train_settings(epochs=24), steps_per_epoch=1).epochs == 150
    assert started(train_settings(epochs=24), steps_per_epoch=20).epochs == 24
    assert started(train_settings(weight_decay=1.0), steps_per_epoch=1).weight_decay == 0.0


# Which epoch is kept


def test_with_val_clips_enough_the_start_itself_may_be_the_best(data, start, monkeypatch):
    scores = iter([0.9, 0.1, 0.5])
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"val_score": next(scores), "val_concordance": 0.0})
    clips = data.clips("train"), data.clips("val")
    going = trainer(*clips, train_settings(epochs=2, start_steps=1), start=start)
    trained = run(going)
    assert len(clips[1]) >= CHOOSING_CLIPS
    assert (trained.epoch, trained.score, trained.start_score) == (0, 0.9, 0.9)
    assert all(torch.equal(trained.tensors[name], value) for name, value in start.tensors.items())


def test_with_few_val_clips_no_epoch_is_chosen_by_them(start, few, monkeypatch):
    scores = iter([0.9, 0.8, 0.1])
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"val_score": next(scores), "val_concordance": 0.0})
    trained = run(trainer(*few, train_settings(epochs=2, patience=1, start_steps=1), start=start))
    assert (trained.epoch, trained.score, trained.start_score) == (2, 0.1, 0.9)


def test_a_better_scale_counts_in_the_choice_as_order_does(data, start, monkeypatch):
    found = iter([(0.80, 0.2), (0.79, 0.7)])

    def validate(self: Trainer) -> dict[str, float]:
        return dict(zip(("val_score", "val_concordance"), next(found), strict=True))

    monkeypatch.setattr(Trainer, "_validate", validate)
    settings = train_settings(epochs=1, start_steps=1)
    assert run(trainer(data.clips("train"), data.clips("val"), settings, start=start)).epoch == 1


def test_concordance_sees_level_and_spread():
    rated = np.array([[1.0], [2.0], [3.0], [4.0]])
    assert concordance(rated, rated) == pytest.approx([1.0])
    assert concordance(rated + 1, rated) == pytest.approx([2 * 1.25 / (1.25 + 1.25 + 1)])
    assert concordance(rated * 0.5, rated)[0] < 0.7
    assert concordance(rated * 0 + 2, rated * 0 + 2) == pytest.approx([0.0])


# Going on


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_with_a_start_ends_as_if_never_interrupted(data, start, tmp_path, stop_after):
    settings = train_settings(epochs=4, start_steps=1)
    clips = data.clips("train").part(list(range(40))), data.clips("val")
    straight = run(trainer(*clips, settings, state=tmp_path / "straight", start=start))
    with pytest.raises(InterruptedError):
        run(trainer(*clips, settings, state=tmp_path / "stopped", start=start), stop_after=stop_after)
    resumed = run(trainer(*clips, settings, state=tmp_path / "stopped", start=start), resume=True)
    assert (resumed.epoch, resumed.score, resumed.start_score) == (
        straight.epoch,
        straight.score,
        straight.start_score,
    )
    assert resumed.history == straight.history
    assert all(torch.equal(resumed.tensors[name], value) for name, value in straight.tensors.items())
    assert (tmp_path / "stopped" / STATE).read_bytes() == (tmp_path / "straight" / STATE).read_bytes()


# Which starts fit


def settings_of(**changes: object) -> ModelSettings:
    values = {"frames": FRAMES, "text": TextSettings(encoder=MINILM), "network": network(), "train": train_settings()}
    return ModelSettings.model_validate(values | changes)


def test_a_start_brings_its_name_its_id_and_its_tensors(tmp_path):
    folder = write_checkpoint(tmp_path / "start", seed=3)
    found = read_start(str(folder), "lite", settings_of(), target=tmp_path / "made")
    assert (found.name, found.id) == (str(folder), checkpoint_id(folder))
    assert "judges.0.head.own_scale" in found.tensors and found.forests == []


def test_dropout_may_differ_from_the_starts(tmp_path):
    folder = write_checkpoint(tmp_path / "start")
    read_start(str(folder), "lite", settings_of(network=network(dropout=0.5)), target=tmp_path / "made")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": network("concatenation")}, "network.fusion: 'quality-aware', wanted 'concatenation'"),
        ({"network": network().model_copy(update={"width": 32})}, "network.width: 16, wanted 32"),
        ({"text": TextSettings(encoder="BAAI/bge-large-en-v1.5")}, "text.encoder: "),
        ({"frames": FrameSpec(count=8, height=64, width=64)}, "frames.count: 4, wanted 8"),
    ],
)
def test_a_start_of_another_network_is_refused_and_what_differs_is_named(tmp_path, changes, said):
    folder = write_checkpoint(tmp_path / "start")
    with pytest.raises(CheckpointError, match=r"does not fit params\.yaml") as refused:
        read_start(str(folder), "lite", settings_of(**changes), target=tmp_path / "made")
    assert said in str(refused.value)


def test_a_start_of_another_model_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "start")
    with pytest.raises(CheckpointError, match="model: lite, wanted dover"):
        read_start(str(folder), "dover", settings_of(), target=tmp_path / "made")


def test_a_start_on_other_published_weights_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "start")
    card = folder / "model.json"
    card.write_text(card.read_text().replace(base_hash("lite", network()), "0" * 64))
    with pytest.raises(CheckpointError, match=r"published weights: .* with hash 000000000000, wanted"):
        read_start(str(folder), "lite", settings_of(), target=tmp_path / "made")


def test_training_does_not_start_from_what_it_replaces(tmp_path):
    folder = write_checkpoint(tmp_path / "start")
    with pytest.raises(CheckpointError, match="copy that folder"):
        read_start(str(folder), "lite", settings_of(), target=folder)


# The learning curve


def test_shares_are_nested_and_keep_prompts_whole():
    prompts = [f"p{number % 10}" for number in range(50)]
    parts = [set(share_of(range(50), prompts, share, seed=1)) for share in (0.1, 0.25, 0.5, 1.0)]
    assert [len(part) for part in parts] == [5, 15, 25, 50]
    assert all(smaller < larger for smaller, larger in pairwise(parts))


def test_a_share_has_two_clips_at_least():
    assert len(share_of(range(10), [f"p{number}" for number in range(10)], 0.1, seed=0)) == 2


def test_few_val_clips_are_replaced_by_folds_that_share_no_prompt():
    prompts = [f"p{number % 12}" for number in range(40)]
    folds = folds_of(prompts, val_clips=5, seed=0)
    assert len(folds) == 5
    assert sorted(row for fold in folds for row in fold.judged) == list(range(40))
    for fold in folds:
        assert not {prompts[row] for row in fold.rows} & {prompts[row] for row in fold.judged}
        assert len(fold.rows) + len(fold.judged) == 40
    (only,) = folds_of(prompts, val_clips=CHOOSING_CLIPS, seed=0)
    assert (only.judged, len(only.rows)) == (None, 40)


class Counting:
    """Stands for training: predicts the ratings with an error that falls as clips rise; fails at one call."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.trained: list[int] = []
        self.fail_at = fail_at

    def __call__(self, clips: ClipSet | None, judged: ClipSet) -> np.ndarray:
        if len(self.trained) == self.fail_at:
            raise InterruptedError
        self.trained.append(0 if clips is None else len(clips))
        noise = np.random.default_rng(len(judged)).normal(0, 1, judged.mos.shape)
        return judged.mos.numpy() + noise / (1 + self.trained[-1] / 20)


def curve(path: Path, data: DataSet, train: Counting, *, identity: str = "one") -> dict:
    make_curve(
        path,
        data.clips("train"),
        data.clips("val"),
        (0.0, 0.25, 0.5, 1.0),
        train,
        seed=0,
        identity=identity,
        advance=nothing,
    )
    return json.loads(path.read_text())


def test_the_curve_tells_clips_and_figures_of_each_share(data, tmp_path):
    train = Counting()
    made = curve(tmp_path / CURVE, data, train)
    assert train.trained == [point["clips"] for point in made["points"]] == [0, 75, 150, 300]
    assert (made["judged_on"], made["judged_clips"], made["judged_prompts"]) == ("val", 60, 8)
    errors = [point["MAE"] for point in made["points"]]
    assert errors == sorted(errors, reverse=True)


def test_a_point_that_is_done_is_not_trained_again(data, tmp_path):
    straight = curve(tmp_path / "straight.json", data, Counting())
    with pytest.raises(InterruptedError):
        curve(tmp_path / CURVE, data, Counting(fail_at=2))
    rest = Counting()
    assert curve(tmp_path / CURVE, data, rest) == straight
    assert rest.trained == [150, 300]
    other = Counting()
    curve(tmp_path / CURVE, data, other, identity="other data")
    assert other.trained == [0, 75, 150, 300]


def points(*rows: tuple[int, float | None, float], judged: int = 200) -> dict:
    made = [
        {"share": place / len(rows), "clips": clips, "VQualA": score, "MAE": error}
        for place, (clips, score, error) in enumerate(rows)
    ]
    return {"points": made, "judged_clips": judged, "judged_prompts": 40, "judged_on": "val"}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (points((0, 0.6, 0.9), (50, 0.60, 0.5), (100, 0.65, 0.5)), "More ratings would probably help."),
        (points((50, 0.60, 0.50), (100, 0.60, 0.45)), "More ratings would probably help."),
        (points((50, 0.60, 0.50), (100, 0.605, 0.495)), "More ratings of the same kind would hardly help."),
        (points((50, 0.60, 0.50), (100, 0.55, 0.55)), "More ratings of the same kind would hardly help."),
        (points((0, 0.6, 0.9), (50, 0.60, 0.5)), "too short"),
        (points((50, 0.6, 0.5), (100, 0.7, 0.4), judged=40), "judged on 40 clips only: a hint"),
        (points((50, None, 0.5), (100, 0.7, 0.4)), "too short, or without correlations"),
    ],
)
def test_the_curve_says_whether_more_ratings_would_help(made, said):
    assert said in " ".join(advice(made))


def test_the_curve_is_drawn_alike_each_time():
    made = points((0, 0.6, 0.9), (50, None, 0.5), (100, 0.65, 0.4))
    picture = learning_curve(made, "lite")
    assert picture.startswith(b"\x89PNG")
    assert picture == learning_curve(made, "lite")


def test_without_a_curve_there_is_none_in_the_report(tmp_path):
    assert read_curve(tmp_path / CURVE) is None


def test_shares_that_make_no_curve_are_refused():
    for wrong in ([0.0, 1.0], [0.5, 0.25], [1.5], [0.5, 0.5]):
        with pytest.raises(ValueError, match="rising shares"):
            train_settings(curve=wrong)
    with pytest.raises(ValueError, match="one process"):
        train_settings(curve=[1.0], processes=2)


# The whole line on fifty clips

PARAMS = Path(__file__).parent.parent / "params.yaml"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, str]]:
    """A project of 50 rated clips of ten prompts, as `import-labels` splits them, run to its evaluation.

    The folder, what `evaluate` said, and what was said on stderr.
    """
    root = tmp_path_factory.mktemp("own")
    write_rated_clips(root / "release", clips=50, prompts=10)
    params = yaml.safe_load(PARAMS.read_text())
    params["lite"] |= {
        "frames": FRAMES.model_dump(),
        "network": network().model_dump(),
        "train": train_settings(
            epochs=2, start=str(write_checkpoint(root / "start")), start_steps=4, curve=[0.5, 1.0]
        ).model_dump(mode="json"),
    }
    params["evaluate"]["bootstrap_resamples"] = 100
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    with own_store(root), pytest.MonkeyPatch.context() as patch:
        said = StringIO()
        patch.setattr(sys, "stderr", said)
        import_labels([root / "release.csv"], places.DATA, videos=root / "release", advance=nothing)
        report = validate.run(places.DATA, root / "reports" / "validation.json")
        assert not report.errors
        frames.run("lite")
        prompts.run("lite")
        encode.run("lite")
        train.run("lite", resume=True)
        yield root, evaluate.run("lite"), said.getvalue()


def write_rated_clips(folder: Path, *, clips: int, prompts: int) -> None:
    """Clips, and beside the folder a table with their ratings."""
    folder.mkdir()
    names = [f"{'AB'[number % 2]}_{number:02d}.mp4" for number in range(clips)]
    for number, name in enumerate(names):
        write_clip(folder / name, seed=number)
    table = pd.DataFrame({"video_name": names, "Prompt": [f"a cat and {n % prompts} dogs" for n in range(clips)]})
    table[list(MOS_COLUMNS)] = np.random.default_rng(0).uniform(1, 5, (clips, 5)).round(2)
    table.to_csv(folder.with_suffix(".csv"), index=False)


def test_fifty_clips_pass_the_whole_line_and_what_is_small_is_said(line):
    root, table, said = line
    assert "val has 5 clips, fewer than 30: the last epoch is kept, whatever they say" in said
    assert "5 clips of 1 prompts" in table
    assert "Interval: none, for from the clips of one prompt nothing can be said about others." in table
    assert "Learning curve: " in table
    assert "judged on 40 clips only: a hint" in table
    written = {path.name for path in (root / "reports" / "lite").iterdir()}
    assert written >= {"comparison.png", "learning_curve.png", "metrics.json", "predictions.csv", "scatter.png"}


def test_the_report_holds_the_curve_and_the_card_names_the_start(line):
    root, _, _ = line
    metrics = json.loads((root / "reports" / "lite" / "metrics.json").read_text())
    assert [point["clips"] for point in metrics["learning_curve"]["points"]] == [0, 17, 32]
    assert metrics["learning_curve"]["judged_on"] == "train, in 5 folds"
    card = read_card(root / "checkpoints" / "lite")
    assert card.training["start"]["id"] == checkpoint_id(root / "start")
    assert card.training["best_epoch"] == 2
    assert f"- Trained from: {root / 'start'} ({checkpoint_id(root / 'start')[:12]})" in as_markdown(
        card, metrics, [], {}
    )


def test_what_is_done_of_a_curve_is_not_done_again_unless_the_start_has_changed(line, monkeypatch):
    root, _, _ = line
    path, start = root / "checkpoints" / "lite" / CURVE, root / "start"
    before, identity = path.read_bytes(), checkpoint_id(root / "checkpoints" / "lite")
    monkeypatch.setattr("qualivision.training.curve._point", None)  # a point that is made now fails
    train.run("lite", resume=True)
    assert (path.read_bytes(), checkpoint_id(root / "checkpoints" / "lite")) == (before, identity)
    write_checkpoint(start, seed=5)
    with pytest.raises(TypeError):
        train.run("lite", resume=True)


def test_with_one_test_prompt_the_gate_refuses_in_plain_words(line):
    root, _, _ = line
    with pytest.raises(LabelError, match=r"has 5 clips and 1 prompts.*Give the test split a larger share"):
        TestRows(root / "data", DecodeSettings())
