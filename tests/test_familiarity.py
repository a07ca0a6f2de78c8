"""How far a clip is from the training clips: near for their kind, far for others, and never silent about it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import (
    FRAMES,
    TEXT_WIDTH,
    made_up_activations,
    network,
    real_stem,
    small_model,
    train_settings,
    write_checkpoint,
    write_data_set,
)
from small_models import write_clip as write_noise
from test_training import run, trainer

from qualivision import cli, depth
from qualivision.models.factory import build_model
from qualivision.models.familiarity import COMPONENTS, REFERENCE, Familiarity, drawn
from qualivision.models.quality import frames_to_input
from qualivision.scoring import Scorer, Scores
from qualivision.training import familiarity as measuring
from qualivision.training.checkpoint import load_checkpoint, load_trained, save_checkpoint, trained_tensors
from qualivision.training.familiarity import content, fit_familiarity
from qualivision.training.loop import predict_with_distance
from qualivision.video import read_frames

CHANNELS = 60


def clips(count: int, *, seed: int, channels: int = CHANNELS) -> torch.Tensor:
    """Clips of one kind: three groups that vary in five hidden ways, and a little in every channel."""
    fixed, random = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    groups, ways = torch.randn(3, channels, generator=fixed), torch.randn(5, channels, generator=fixed)
    group = torch.randint(3, (count,), generator=random)
    inside = torch.randn(count, 5, generator=random) @ ways
    return groups[group] + inside + 0.3 * torch.randn(count, channels, generator=random)


def fitted(train: torch.Tensor, held: torch.Tensor, *kinds: slice) -> Familiarity:
    measured = Familiarity(kinds or (slice(0, train.shape[1]),))
    measured.fit(train, held)
    return measured


@pytest.fixture(scope="module")
def measured() -> Familiarity:
    return fitted(clips(400, seed=1), clips(200, seed=2))


# What is near and what is far


def test_all_but_one_in_a_hundred_clips_of_the_same_kind_are_nearer_than_1(measured):
    found = measured(clips(2000, seed=3))
    assert 0.001 < (found > 1).float().mean() < 0.04
    assert 0.3 < found.median() < 0.95


def test_clips_moved_away_are_farther_the_farther_they_are_moved_and_without_an_end(measured):
    some = clips(20, seed=3)
    for way in torch.randn(5, CHANNELS, generator=torch.Generator().manual_seed(4)):
        each = torch.stack([measured(some + amount * way) for amount in (0, 2, 4, 8, 16, 1e3, 1e6)])
        assert (each.diff(dim=0)[1:] > 0).all()
        assert (each[2:] > 1).all() and (each[-1] > 1.2 * each[-2]).all()


@pytest.mark.parametrize(
    "far",
    [
        torch.zeros(1, CHANNELS) - 8,
        3 * torch.randn(1, CHANNELS, generator=torch.Generator().manual_seed(5)),
        clips(1, seed=3).flip(1),  # the same numbers in other channels
        clips(40, seed=3).mean(0, keepdim=True) + 9 * torch.eye(CHANNELS)[7],  # one channel as it never was
    ],
    ids=["black", "noise", "other kind", "one channel"],
)
def test_what_no_training_clip_is_like_is_far(measured, far):
    assert measured(far) > 1


def test_what_lies_outside_of_what_training_clips_differ_in_is_far(measured):
    train = clips(400, seed=1)
    _, _, ways = torch.linalg.svd(train - train.mean(0))
    assert measured(clips(30, seed=3) + 9 * ways[-1]).min() > 1


def test_a_far_clip_stays_far_beside_many_channels_that_vary_more():
    loud = [50 * torch.randn(count, 300, generator=torch.Generator().manual_seed(count)) for count in (400, 200, 50)]
    train, held, new = (torch.cat((clips(len(part), seed=seed), part), 1) for seed, part in enumerate(loud, start=1))
    new[:, :CHANNELS] += 1.5
    whole = fitted(train, held)
    apart = fitted(train, held, slice(0, CHANNELS), slice(CHANNELS, CHANNELS + 300))
    assert (apart(new) > 1).float().mean() > 0.9 > 0.5 > (whole(new) > 1).float().mean()


def test_channels_of_no_kind_do_not_count():
    train, held, new = clips(100, seed=1), clips(50, seed=2), clips(9, seed=3)
    partly = fitted(train, held, slice(0, 20))
    changed = new.clone()
    changed[:, 20:] = 1e3
    assert torch.equal(partly(new), partly(changed))


def test_scale_and_offset_of_the_channels_do_not_matter():
    train, held, new = clips(100, seed=1), clips(50, seed=2), clips(9, seed=3)
    scale, offset = torch.logspace(-0.5, 0.5, CHANNELS), torch.linspace(-50, 50, CHANNELS)
    plain, moved = fitted(train, held), fitted(train * scale + offset, held * scale + offset)
    assert torch.allclose(moved(new * scale + offset), plain(new), rtol=0.02)


def test_the_distance_of_a_clip_does_not_depend_on_its_batch(measured):
    some = clips(70, seed=3)
    alone = torch.cat([measured(clip.unsqueeze(0)) for clip in some])
    assert torch.allclose(measured(some), alone, atol=1e-5)
    assert not measured(some.requires_grad_()).requires_grad


# Few clips, odd clips


@pytest.mark.parametrize(("train", "held"), [(1, 1), (2, 3), (3, 1), (12, 3), (REFERENCE + 100, 30)])
def test_any_number_of_clips_is_enough_to_measure(train, held):
    measured = fitted(clips(train, seed=1), clips(held, seed=2))
    assert measured(clips(held, seed=2)).isfinite().all()
    assert (measured(clips(held, seed=2)) > 1).sum() <= 1
    assert measured(clips(5, seed=3) + 100).min() > 1


def test_fewer_channels_than_components_are_enough():
    measured = fitted(clips(50, seed=1, channels=3), clips(20, seed=2, channels=3))
    assert measured(clips(50, seed=3, channels=3)).median() < 1 < measured(clips(50, seed=3, channels=3) + 30).min()


def test_constant_channels_neither_divide_by_nothing_nor_go_unseen():
    train, held, new = clips(100, seed=1), clips(50, seed=2), clips(9, seed=3)
    for part in (train, held, new):
        part[:, 10:20] = 5.0
    measured = fitted(train, held)
    assert (measured(new) <= 1).float().mean() > 0.8
    new[:, 10:20] = 9.0
    assert measured(new).min() > 1
    nothing = fitted(torch.zeros(5, 4), torch.zeros(3, 4))
    assert nothing(torch.zeros(1, 4)) <= 1 < nothing(torch.ones(1, 4)) < math.inf


def test_clips_that_are_no_number_are_not_measured_and_are_never_near(measured):
    broken = clips(20, seed=1)
    broken[3, 4] = torch.nan
    for train, held in ((broken, clips(3, seed=2)), (clips(3, seed=2), broken), (broken[:0], broken[:2])):
        with pytest.raises(ValueError, match="clips can't be measured: none, or no number"):
            fitted(train, held)
    (near, far) = measured(broken[2:4]).tolist()
    assert math.isfinite(near) and math.isnan(far) and depth.warning(far)


def test_every_clip_is_far_before_anything_is_measured():
    assert Familiarity((slice(0, CHANNELS),))(clips(50, seed=1)).min() > 1


def test_measuring_again_is_as_if_for_the_first_time():
    train, held = clips(50, seed=1), clips(20, seed=2)
    again = fitted(clips(3, seed=8) * 9, clips(3, seed=9))
    again.fit(train, held)
    once = fitted(train, held).state_dict()
    assert all(torch.equal(value, once[name]) for name, value in again.state_dict().items())
    assert {value.shape for value in once.values()} >= {(REFERENCE, COMPONENTS), (CHANNELS, COMPONENTS)}


def test_rows_are_drawn_by_chance_and_always_the_same():
    assert drawn(5, 9).tolist() == [0, 1, 2, 3, 4]
    rows = drawn(1000, 500)
    assert torch.equal(rows, drawn(1000, 500)) and len(rows.unique()) == 500 and torch.equal(rows, rows.sort().values)
    assert 150 < int((rows % 2).sum()) < 350, "of a table that goes round among generators, some of each"


# In a model


def test_a_model_says_the_distance_of_what_it_sees_and_its_scores_do_not_change():
    model, new = small_model().eval(), made_up_activations(6, seed=3)
    text = torch.randn(6, TEXT_WIDTH, generator=torch.Generator().manual_seed(0))
    before = model.from_stem(new, text)
    seen = [model.judges[0].see(made_up_activations(30, seed=seed)).content for seed in (1, 2)]
    model.familiarity.fit(*seen)
    after = model.from_stem(new, text)
    assert torch.equal(before.mos, after.mos) and after.distance.shape == (6,)
    assert (before.distance > 1).all() and after.distance.median() < 1.2
    new["statistics"] = 9 * new["statistics"]
    assert model.from_stem(new, text).distance.min() > 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("data"))


def test_training_measures_the_clips_it_learned_from_with_the_weights_that_are_kept(data, tmp_path):
    going = trainer(data, tmp_path, train_settings(epochs=2, average=0.9))
    trained = run(going)
    model = build_model("lite", network(), going.train_set.text.shape[1], forests=trained.forests)
    load_trained(model, trained.tensors, tmp_path)
    val, distance = going.val_set, predict_with_distance(model, going.val_set)[1]
    assert (distance <= 1).mean() >= 0.9 and distance.shape == (len(val),)
    again = build_model("lite", network(), val.text.shape[1], forests=trained.forests)
    load_trained(again, trained.tensors, tmp_path)
    fit_familiarity(again, going.train_set, val, batch_size=7)
    np.testing.assert_allclose(predict_with_distance(again, val, batch_size=5)[1], distance, rtol=1e-3)


def test_of_many_training_clips_some_are_looked_at(data, monkeypatch):
    looked_at = []

    def counted(model, clips, rows, batch_size):
        looked_at.append(len(rows))
        return content(model, clips, rows, batch_size)

    monkeypatch.setattr(measuring, "MOST_CLIPS", 15)
    monkeypatch.setattr(measuring, "content", counted)
    fit_familiarity(small_model(), data.clips("train"), data.clips("val"), batch_size=4)
    assert looked_at == [15, 12]


# What is said of it


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A checkpoint that knows clips of noise, one more such clip, and a plain grey one."""
    folder = tmp_path_factory.mktemp("familiar")
    known = [frames_to_input(read_frames(write_noise(folder / f"{n}.mp4", seed=n), FRAMES)) for n in range(1, 17)]
    checkpoint = write_checkpoint(folder / "checkpoint")
    model, card = load_checkpoint(checkpoint, with_stem=True)
    with torch.inference_mode():
        seen = torch.cat([model.judges[0].see(model.stem(clip)).content for clip in known])
        model.familiarity.fit(seen[:10], seen[10:] * 1.05)  # some room: clips of noise are nearly alike
    save_checkpoint(checkpoint, card, trained_tensors(model))
    write_noise(folder / "noise.mp4", seed=0)
    return folder


@pytest.fixture(scope="module")
def plain(place, make_clip) -> Path:
    return make_clip(place / "plain.mp4", width=64, height=64, frames=6)


def test_a_checkpoint_keeps_what_it_knows(place, plain):
    scorer = Scorer(place / "checkpoint")
    near, far = (scorer.score(clip, prompt="a cat") for clip in (place / "noise.mp4", plain))
    assert near.distance < 1 < 2 < far.distance
    model = build_model("lite", network(), 384, stem=real_stem()).eval()
    load_trained(model, trained_tensors(scorer._parts[0].model), place)
    frames = frames_to_input(read_frames(plain, FRAMES))
    found = model(frames, torch.zeros(1, 384)).distance.item()
    assert found == pytest.approx(far.distance, rel=1e-4)


def test_scores_warn_in_one_plain_sentence():
    given = {"video": "a.mp4", "prompt": "a cat", "values": {"Overall": 3.0}, "aspect_weights": {}, "model": "m"}
    near, far = Scores(**given, distance=0.98765), Scores(**given, distance=3.2)
    assert near.warning == ""
    assert far.warning == (
        "unlike what this model was trained on (distance 3.20; clips of its own kind are below 1): "
        "do not trust the absolute scores"
    )
    assert (near.as_dict()["distance"], near.as_dict()["warning"]) == (0.9877, None)
    assert far.as_dict()["warning"] == far.warning
    assert Scores(**given, distance=math.nan).warning


def score(place: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "qualivision.cli", "score", str(place / "noise.mp4"), str(place / "plain.mp4")]
    command += ["--prompt", "a cat", "--model", str(place / "checkpoint"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(cli.__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_command_marks_a_far_clip_and_says_why(place, plain):
    expected = [Scorer(place / "checkpoint").score(clip, prompt="a cat") for clip in (place / "noise.mp4", plain)]
    lines = score(place)
    near, far = (next(line for line in lines if name in line) for name in ("noise.mp4", "plain.mp4"))
    assert any("distance" in line for line in lines)
    assert f"{expected[0].distance:.2f}" in near and "!" not in near
    assert f"! {expected[1].distance:.2f}" in far
    said = "! 1 of 2 unlike what this model was trained on (distance above 1): do not trust the absolute scores"
    assert said in " ".join(" ".join(lines).split())
    rows = [json.loads(line) for line in score(place, "--json")]
    assert [row["warning"] is None for row in rows] == [True, False]
    assert [row["distance"] for row in rows] == pytest.approx([found.distance for found in expected], abs=1e-3)


def test_a_run_over_a_table_says_how_many_clips_are_far(place, plain, tmp_path):
    line = score(place, "--out", str(tmp_path / "scores.csv"))[-1]
    assert "2 rows, 2 scored, 1 unlike what this model was trained on" in line
