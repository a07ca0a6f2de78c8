"""Training on a small made-up data set: it learns, stops and goes on exactly, and names what it can't learn from."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from small_models import LOSS, DataSet, network, train_settings, write_data_set

from qualivision.cache import CacheError
from qualivision.labels import FAULTS, MOS_COLUMNS, LabelError, graded_alignment, ratings_path
from qualivision.models.factory import build_model
from qualivision.models.faults import MEASURED
from qualivision.settings import TrainSettings
from qualivision.training import loop
from qualivision.training.loop import STATE, Trained, Trainer, TrainingError, predict

pytestmark = pytest.mark.usefixtures("few_trees")


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataSet:
    return write_data_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_data(tmp_path) -> DataSet:
    """A data set to do harm to."""
    return write_data_set(tmp_path, train=12, val=4)


def trainer(
    data: DataSet,
    state,
    settings: TrainSettings,
    *,
    identity: str = "one",
    dropout: float = 0.2,
    judges: int = 1,
) -> Trainer:
    train_set, val_set = data.clips("train"), data.clips("val")
    net = network(dropout=dropout).model_copy(update={"judges": judges})
    return Trainer(
        lambda: build_model("lite", net, train_set.text.shape[1]),
        train_set,
        val_set,
        settings,
        state=state,
        identity=identity,
    )


def run(trainer: Trainer, *, resume: bool = False, stop_after: int | None = None, log: list | None = None) -> Trained:
    def logged(epoch: int, metrics: dict[str, float]) -> None:
        if log is not None:
            log.append((epoch, metrics))
        if epoch == stop_after:
            raise Interrupted

    return trainer.run(resume=resume, log=logged, advance=lambda done, total: None)


def interrupt(trainer: Trainer, *, after: int) -> None:
    with pytest.raises(Interrupted):
        run(trainer, stop_after=after)


def state_of(folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / STATE)


def edit_table(data: DataSet, split: str, change) -> None:
    table = pd.read_csv(data.table(split))
    change(table)
    table.to_csv(data.table(split), index=False)


# Learning


def test_a_small_data_set_is_learned(tmp_path):
    data = write_data_set(tmp_path, train=160, val=30)
    settings = train_settings(epochs=25)
    going = trainer(data, tmp_path, settings, dropout=0.3)
    trained = run(going)
    losses = [epoch["loss_total"] for epoch in trained.history]
    assert losses[-1] < 0.7 * losses[0]
    predicted, rated = predict(going.model, going.train_set), going.train_set.mos.numpy()
    assert all(spearmanr(predicted[:, column], rated[:, column]).statistic > 0.5 for column in range(len(MOS_COLUMNS)))
    assert trained.score > 0.3, "and what was learned holds for other clips"


def test_what_comes_out_are_the_tensors_of_the_best_epoch(data, tmp_path, monkeypatch):
    scores = iter([0.1, 0.9, 0.2])
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"val_score": next(scores)})
    going = trainer(data, tmp_path, train_settings(epochs=3))
    seen: list[dict[str, torch.Tensor]] = []

    def keep(epoch, metrics):
        seen.append({name: value.clone() for name, value in going.model.state_dict().items()})

    trained = going.run(resume=False, log=keep, advance=lambda done, total: None)
    assert trained.epoch == 2
    learned = [name for name, _ in going.model.named_parameters()]
    assert all(torch.equal(trained.tensors[name], seen[1][name]) for name in learned)
    assert not all(torch.equal(trained.tensors[name], seen[2][name]) for name in learned)


def test_validation_score_is_the_mean_of_srocc_and_plcc_over_the_dimensions(data, tmp_path):
    going = trainer(data, tmp_path, train_settings(epochs=1))
    score = run(going).score
    predicted, rated = predict(going.model, going.val_set), going.val_set.mos.numpy()
    each = [
        (spearmanr(p, t).statistic + np.corrcoef(p, t)[0, 1]) / 2 for p, t in zip(predicted.T, rated.T, strict=True)
    ]
    assert score == pytest.approx(np.mean(each), abs=1e-6)


def test_training_stops_when_the_score_has_not_risen_for_patience_epochs(data, tmp_path, monkeypatch):
    # The first is the highest, but of the first half of nine epochs, which does not count.
    scores = iter([0.8, 0.1, 0.1, 0.1, 0.1, 0.3, 0.2, 0.25, 0.9])
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"val_score": next(scores)})
    trained = run(trainer(data, tmp_path, train_settings(epochs=9, patience=2)))
    assert (trained.epoch, trained.score, len(trained.history)) == (6, 0.3, 8)


@pytest.mark.parametrize(("accumulate", "steps_per_epoch"), [(1, 5), (2, 3), (5, 1), (7, 1)])
def test_every_epoch_ends_with_an_optimizer_step_and_the_rate_ends_with_training(
    data, tmp_path, accumulate, steps_per_epoch
):
    going = trainer(data, tmp_path, train_settings(epochs=4, accumulate=accumulate, warmup_steps=1))
    trained = run(going)
    assert going.progress.step == 4 * steps_per_epoch
    assert trained.history[-1]["learning_rate"] == pytest.approx(0.0, abs=1e-12)
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in going.model.parameters())


def gradient_norm(data: DataSet, state, *, batch_size: int) -> float:
    """Of the first step over the 40 clips, from the one term that is a mean over clips: of the others two halves are
    not the whole."""
    settings = train_settings(batch_size=batch_size, accumulate=40 // batch_size, epochs=1)
    going = trainer(data, state, settings, dropout=0.0)
    going.weights.current = dict.fromkeys(going.weights.current, 0.0) | {"regression": 1.0}
    return run(going).history[0]["gradient_norm"]


def test_accumulated_batches_make_one_step_of_their_mean_gradient(data, tmp_path):
    norms = [gradient_norm(data, tmp_path / str(size), batch_size=size) for size in (40, 20, 10)]
    assert norms[1:] == pytest.approx(norms[:1] * 2, rel=1e-4)


def test_a_batch_larger_than_the_data_set_is_cut_to_it(own_data, tmp_path):
    assert len(run(trainer(own_data, tmp_path / "state", train_settings(batch_size=64, epochs=2))).history) == 2


def test_each_epoch_is_logged_with_losses_weights_and_scores(data, tmp_path):
    log: list[tuple[int, dict[str, float]]] = []
    run(trainer(data, tmp_path, train_settings(epochs=2)), log=log)
    assert [epoch for epoch, _ in log] == [1, 2]
    for _, metrics in log:
        assert {"loss_total", "loss_alignment", "weight_regression", "val_Overall", "val_score"} <= metrics.keys()
        assert metrics["clips_per_second"] > 0
        assert all(math.isfinite(value) for value in metrics.values())


# Going on


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_resumed_run_ends_as_if_never_interrupted(data, tmp_path, accumulate, stop_after):
    settings = train_settings(epochs=5, accumulate=accumulate)
    straight = run(trainer(data, tmp_path / "straight", settings))
    interrupt(trainer(data, tmp_path / "stopped", settings), after=stop_after)
    torch.manual_seed(99)  # another process has other random streams
    resumed = run(trainer(data, tmp_path / "stopped", settings), resume=True)
    assert resumed.history == straight.history
    assert (resumed.epoch, resumed.score, resumed.loss_weights) == (
        straight.epoch,
        straight.score,
        straight.loss_weights,
    )
    assert resumed.tensors.keys() == straight.tensors.keys()
    assert all(torch.equal(resumed.tensors[name], value) for name, value in straight.tensors.items())
    last, wanted = state_of(tmp_path / "stopped"), state_of(tmp_path / "straight")
    assert last.keys() == wanted.keys()
    assert all(torch.equal(last[name], value) for name, value in wanted.items()), "optimizer and last epoch"


def test_resume_repeats_no_epoch_that_was_saved(data, tmp_path):
    settings = train_settings(epochs=4)
    interrupt(trainer(data, tmp_path, settings), after=3)  # raised while the third is logged, so it is not saved
    log: list[tuple[int, dict[str, float]]] = []
    run(trainer(data, tmp_path, settings), resume=True, log=log)
    assert [epoch for epoch, _ in log] == [3, 4]


def test_equal_runs_leave_equal_bytes(data, tmp_path):
    for name in ("a", "b"):
        run(trainer(data, tmp_path / name, train_settings(epochs=2)))
    assert (tmp_path / "a" / STATE).read_bytes() == (tmp_path / "b" / STATE).read_bytes()


def epochs_run(data: DataSet, state, *, resume: bool, identity: str = "one") -> list[int]:
    log: list[tuple[int, dict[str, float]]] = []
    run(trainer(data, state, train_settings(epochs=3), identity=identity), resume=resume, log=log)
    return [epoch for epoch, _ in log]


def test_a_state_of_another_identity_is_not_gone_on_from(data, tmp_path):
    interrupt(trainer(data, tmp_path, train_settings(epochs=3)), after=2)
    assert epochs_run(data, tmp_path, resume=True, identity="other") == [1, 2, 3]


def test_without_resume_training_starts_anew(data, tmp_path):
    interrupt(trainer(data, tmp_path, train_settings(epochs=3)), after=3)
    assert epochs_run(data, tmp_path, resume=False) == [1, 2, 3]


def test_a_finished_state_starts_anew(data, tmp_path):
    assert epochs_run(data, tmp_path, resume=True) == [1, 2, 3]
    assert epochs_run(data, tmp_path, resume=True) == [1, 2, 3]


def test_a_damaged_state_is_named(data, tmp_path):
    interrupt(trainer(data, tmp_path, train_settings(epochs=3)), after=2)
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"state\.safetensors: can't be read .* delete it"):
        epochs_run(data, tmp_path, resume=True)


# What can't be learned from


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_mos_stops_training_with_the_clips_name(own_data, tmp_path, split):
    def drop(table):
        table.loc[2, "Temporal_MOS"] = np.nan

    edit_table(own_data, split, drop)
    with pytest.raises(TrainingError, match=rf"{split}: a MOS is missing or no number for C_{split}02\.mp4$"):
        run(trainer(own_data, tmp_path / "state", train_settings()))


@pytest.mark.parametrize(("split", "clip"), [("train", "B_train10.mp4"), ("val", "A_val03.mp4")])
def test_an_activation_that_is_no_number_stops_training_with_its_clip_alone(tmp_path, split, clip):
    spoilt = write_data_set(tmp_path, train=12, val=4, spoil=clip)
    with pytest.raises(TrainingError, match=rf"{split}: an activation .* no number for {clip}$"):
        run(trainer(spoilt, tmp_path / "state", train_settings()))


def test_a_loss_that_is_no_number_names_step_terms_and_clips(own_data, tmp_path):
    going = trainer(own_data, tmp_path / "state", train_settings(batch_size=12))
    going.model.judges[0].head.readouts[0][-1].bias.data.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 0 \(regression nan, ") as caught:
        run(going)
    assert all(name in str(caught.value) for name in own_data.clips("train").table["video_name"])


def test_predictions_that_are_no_numbers_name_the_val_clips(own_data, tmp_path, monkeypatch):
    def broken(model, clips, **_):
        mos = np.full((len(clips), 5), 3.0)
        mos[1, 2] = np.nan
        return mos

    monkeypatch.setattr(loop, "predict", broken)
    with pytest.raises(TrainingError, match=r"predicts no number for val clips: B_val01\.mp4; try a lower"):
        run(trainer(own_data, tmp_path / "state", train_settings()))


def test_too_few_val_clips_for_a_correlation_are_refused(tmp_path):
    small = write_data_set(tmp_path, train=12, val=2)
    with pytest.raises(TrainingError, match="val has 2 clips; at least 3 are needed"):
        run(trainer(small, tmp_path / "state", train_settings()))


# ClipSet


def test_a_clip_that_the_stem_cache_lacks_is_named(own_data):
    def rename(table):
        table.loc[1, "video_name"] = "B_other.mp4"

    edit_table(own_data, "train", rename)
    with pytest.raises(CacheError, match=r"train/videos/B_other\.mp4: is not in .*run `qualivision encode lite`"):
        own_data.clips("train")


def test_a_prompt_that_lacks_an_embedding_is_named_with_its_clip(own_data):
    del own_data.embeddings["prompt 3"]
    with pytest.raises(CacheError, match=r"val/videos/A_val03\.mp4: its prompt is not in the prompt cache"):
        own_data.clips("val")


def test_a_clip_whose_cache_entry_is_gone_is_named_when_it_is_read(own_data):
    clips = own_data.clips("val")
    clips.stems.path(clips.keys[0]).unlink()
    with pytest.raises(CacheError, match=r"val-A_val00.*no such file; run `qualivision encode lite`"):
        clips.activations(0)


def test_batch_holds_what_the_table_and_the_caches_say_of_its_rows(own_data):
    clips = own_data.clips("train")
    rows = [9, 1, 4]  # rows 9 and 1 share prompt 1
    batch = clips.collate(rows)
    table = pd.read_csv(own_data.table("train"))
    assert batch.names == [table["video_name"][row] for row in rows]
    assert batch.mos.tolist() == pytest.approx(table.loc[rows, list(MOS_COLUMNS)].to_numpy())
    assert all(np.array_equal(batch.text[i], own_data.embeddings[table["Prompt"][row]]) for i, row in enumerate(rows))
    assert batch.own.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert batch.known.isnan().all() and batch.known.shape == (3, 3) and len(batch.others) == 0
    for name, value in batch.activations.items():
        stored = [clips.stems.read(f"train-{clip}")[name] for clip in batch.names]
        assert np.array_equal(value.numpy(), np.stack(stored))


def test_activations_beyond_what_is_held_in_memory_are_the_same(own_data, monkeypatch):
    held, read_again = own_data.clips("train"), own_data.clips("train")
    first = held.activations(3)["image"]
    monkeypatch.setattr("qualivision.training.data.HELD_BYTES", 0)
    for _ in range(2):
        assert torch.equal(first, read_again.activations(3)["image"])
    assert held._held.keys() == {3} and not read_again._held


def test_predictions_come_in_the_order_of_the_table_whatever_the_batches(own_data):
    clips = own_data.clips("train")
    model = build_model("lite", network(dropout=0.5), clips.text.shape[1])
    together, in_fives = predict(model, clips), predict(model, clips, batch_size=5)
    assert together.shape == (12, 5) and together.dtype == np.float64
    assert together == pytest.approx(in_fives, abs=1e-5)
    alone = clips.collate([7])
    with torch.no_grad():
        assert together[7] == pytest.approx(model.from_stem(alone.activations, alone.text).mos[0].numpy(), abs=1e-5)


def test_a_test_table_without_mos_can_be_predicted(own_data):
    def drop(table):
        table.drop(columns=list(MOS_COLUMNS), inplace=True)

    edit_table(own_data, "test", drop)
    clips = own_data.clips("test")
    assert clips.mos.isnan().all()
    assert np.isfinite(predict(build_model("lite", network(), clips.text.shape[1]), clips)).all()


def write_ratings(data: DataSet, rows: list[tuple[str, object, object]]) -> None:
    cells = [
        (name, *(value if isinstance(value, str) else json.dumps(value) for value in pair)) for name, *pair in rows
    ]
    table = pd.DataFrame(cells, columns=["video_name", "asks", "shows"])
    table.to_csv(ratings_path(data.root / "data", "train"), index=False)


def test_known_alignment_is_each_clips_show_against_each_prompts_wish(own_data):
    dog, cat = {"subject": "dog", "colour": "red"}, {"subject": "cat"}
    write_ratings(own_data, [("A_train00.mp4", dog, {"subject": "dog", "colour": "blue"}), ("B_train01.mp4", cat, cat)])
    known = own_data.clips("train").collate([0, 1, 2]).known  # of clip 2 nothing is known
    assert known[0, 0] == pytest.approx(graded_alignment(dog, {"subject": "dog", "colour": "blue"}))
    assert known[0, 1] == 1.0 and known[1, 1] == 5.0
    assert known[1, 0] == pytest.approx(graded_alignment(dog, cat))
    assert known[2].isnan().all() and known[:, 2].isnan().all()


def test_ratings_without_what_is_asked_and_shown_leave_alignment_unknown(own_data):
    path = ratings_path(own_data.root / "data", "train")
    path.write_text("video_name,Overall_1\nA_train00.mp4,3\n")
    assert own_data.clips("train").collate([0, 1]).known.isnan().all()
    write_ratings(own_data, [("A_train00.mp4", {}, {"subject": "dog"}), ("B_train01.mp4", "", "")])
    assert own_data.clips("train").collate([0, 1]).known.isnan().all()


@pytest.mark.parametrize(("asks", "shows"), [("{", {}), ({"smell": "rose"}, {"smell": "rose"}), (["dog"], {"a": "b"})])
def test_ratings_that_are_no_aspects_are_named(own_data, asks, shows):
    write_ratings(own_data, [("A_train00.mp4", asks, shows)])
    with pytest.raises(LabelError, match=r"train_ratings\.csv: A_train00\.mp4: asks .* are not aspects of a prompt"):
        own_data.clips("train")


def write_faults(data: DataSet, cells: dict[str, object]) -> None:
    rows = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in cells.items()]
    table = pd.DataFrame(rows, columns=["video_name", "degradations"])
    table.to_csv(ratings_path(data.root / "data", "train"), index=False)


def test_known_faults_are_those_of_the_ratings_table(own_data):
    write_faults(
        own_data, {"B_train01.mp4": {"blur": {"loss": 1.5, "effect": 0.4}}, "A_train00.mp4": {}, "C_train02.mp4": ""}
    )
    clips = own_data.clips("train")
    faults = clips.collate([0, 1, 2, 3]).faults
    assert faults[0].tolist() == [0.0] * len(FAULTS)
    assert faults[1].tolist() == [1.5 if kind == "blur" else 0.0 for kind in FAULTS]
    assert faults[2:].isnan().all()
    assert torch.equal(clips.part([1, 0]).faults, faults[[1, 0]])


@pytest.mark.parametrize("cell", ["{", {"smell": {"loss": 1.0}}, {"blur": {"loss": 9.0}}, {"blur": 2}])
def test_degradations_that_are_no_faults_are_named(own_data, cell):
    write_faults(own_data, {"A_train00.mp4": cell})
    with pytest.raises(LabelError, match=r"train_ratings\.csv: A_train00\.mp4: degradations .* are no faults"):
        own_data.clips("train")


def test_what_faults_take_is_learned_where_it_is_known(own_data):
    """Of two thirds of the clips, one of which has a fault that its rating says nothing of."""
    names = own_data.clips("train").table["video_name"]
    known = {name: {"clutter": {"loss": 2.0 * (place % 3)}} for place, name in enumerate(names) if place % 3 < 2}
    write_faults(own_data, known)
    settings = train_settings(epochs=150, learning_rate=1e-2, loss=LOSS.model_copy(update={"faults": 3.0}))
    learned = trainer(own_data, None, settings, dropout=0.0)
    run(learned)
    batch, (judge,) = learned.train_set.collate(list(range(len(names)))), learned.model.judges
    with torch.no_grad():
        _, fused = judge.judge(judge.see(batch.activations), batch.text)
        found = judge.head.eval().fault_losses(fused)
    kinds = [list(FAULTS)[place] for place in judge.head.faults]
    assert not set(kinds) & set(MEASURED) and set(kinds) | set(MEASURED) == set(FAULTS)
    is_known, clutter = batch.faults.isfinite().all(1), kinds.index("clutter")
    assert (found - batch.faults[:, judge.head.faults])[is_known, clutter].abs().max() < 0.5
    assert found.min() >= 0 and np.delete(found[is_known].numpy(), clutter, 1).mean() < 0.1
