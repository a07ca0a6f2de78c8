"""The sample data set: its layout, that it is reproducible, and that its labels follow what its clips show."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from qualivision.labels import (
    ASPECT_OF_PROMPT,
    DIMENSIONS,
    FAULTS,
    MOS_COLUMNS,
    SPLITS,
    generator_of,
    graded_alignment,
    labels_path,
    other_prompts_path,
    ratings_path,
    read_labels,
    read_other_prompts,
    videos_dir,
)
from qualivision.sample_data import SampleDataError, SampleSummary, clips, make_sample_data, writing
from qualivision.sample_data.content import MOTIONS, draw_prompts
from qualivision.sample_data.degradations import Look, are_alike, degrade, loss_of, luma
from qualivision.sample_data.pictures import SCENE_SIZE, scene_picture
from qualivision.sample_data.ratings import combined, latent_truth
from qualivision.sample_data.rendering import make_shot

PROMPTS = 6
ASKS = {"subject": "ball", "scene": "temple", "colour": "red", "motion": "right"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleSummary, list[tuple[int, int]]]:
    steps: list[tuple[int, int]] = []
    out = tmp_path_factory.mktemp("sample") / "data"
    summary = make_sample_data(out, prompts=PROMPTS, seed=3, workers=1, progress=lambda *step: steps.append(step))
    return out, summary, steps


@pytest.fixture(scope="module")
def data(made: tuple[Path, SampleSummary, list[tuple[int, int]]]) -> Path:
    return made[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def tables(data: Path, split: str) -> pd.DataFrame:
    ratings = pd.read_csv(ratings_path(data, split)).drop(columns="generator")
    return read_labels(labels_path(data, split)).merge(ratings, on="video_name", validate="one_to_one")


def truth_with(faults: Mapping[str, float], folder: Path | None = None, *, seed: int = 5) -> dict[str, float]:
    """The truth of a clip that shows what is asked, with the given faults; encoded only if there is a folder."""
    rng = np.random.default_rng(seed)
    if folder:
        return clips.render(rng, folder / "clip.mp4", ASKS, ASKS, faults)[0]
    shot = make_shot(rng, ASKS, off_frame=faults.get("off_frame", 0.0))
    losses = degrade(rng, shot, faults).losses
    return latent_truth({dimension: combined(each) for dimension, each in losses.items()}, ASKS, ASKS)


def test_every_split_has_its_tables_and_exactly_the_videos_they_name(data: Path) -> None:
    for split in SPLITS:
        table = read_labels(labels_path(data, split))
        assert len(table) > 0
        assert sorted(table["video_name"]) == sorted(p.name for p in videos_dir(data, split).iterdir())
        assert list(table.columns) == ["video_name", "Prompt", *MOS_COLUMNS, "generator"]
        assert (table["generator"] == table["video_name"].map(generator_of)).all()


def test_each_prompt_has_one_clip_per_generator_and_lies_in_one_split(data: Path) -> None:
    every = pd.concat([read_labels(labels_path(data, split)).assign(split=split) for split in SPLITS])
    assert every["Prompt"].nunique() == PROMPTS
    identity = every["video_name"].str.slice(2)
    for _, group in every.groupby("Prompt"):
        assert sorted(group["generator"]) == list("ABCDE")
        assert group["split"].nunique() == 1
        assert identity[group.index].nunique() >= 1
    assert every.groupby(identity)["Prompt"].nunique().eq(1).all()


def test_summary_and_progress_count_what_was_written(
    made: tuple[Path, SampleSummary, list[tuple[int, int]]],
) -> None:
    out, summary, steps = made
    assert summary.folder == out
    assert sum(summary.prompts.values()) == PROMPTS
    assert summary.clips == {split: len(list(videos_dir(out, split).iterdir())) for split in SPLITS}
    assert summary.video_bytes == sum(p.stat().st_size for p in out.rglob("*.mp4"))
    assert steps == [(n, 5 * PROMPTS) for n in range(1, 5 * PROMPTS + 1)]


def test_mos_are_the_means_of_three_whole_ratings(data: Path) -> None:
    for split in SPLITS:
        table = tables(data, split)
        for dimension in DIMENSIONS:
            ratings = table[[f"{dimension}_{k}" for k in (1, 2, 3)]]
            assert ratings.isin([1, 2, 3, 4, 5]).all().all()
            assert (ratings.mean(axis=1).round(3) == table[f"{dimension}_MOS"]).all()
            assert table[f"{dimension}_truth"].between(1, 5).all()


def test_alignment_truth_follows_what_prompts_ask_and_clips_show(data: Path) -> None:
    for split in SPLITS:
        table = tables(data, split)
        for _, row in table.iterrows():
            asks, shows = json.loads(row["asks"]), json.loads(row["shows"])
            assert set(asks) <= set(ASPECT_OF_PROMPT) and set(shows) <= set(ASPECT_OF_PROMPT)
            most = graded_alignment(asks, shows)
            assert 0.7 * most <= row["Alignment_truth"] <= most + 1e-4


def test_degradations_are_known_kinds_with_severity_effect_and_loss(data: Path) -> None:
    for split in SPLITS:
        for cell in tables(data, split)["degradations"]:
            faults = json.loads(cell)
            of_each = Counter(FAULTS[kind] for kind in faults)
            assert max(of_each.values(), default=0) <= 2
            assert not any(are_alike(*pair) for pair in itertools.combinations(faults, 2))
            for kind, fault in faults.items():
                assert kind in FAULTS
                assert 0 <= fault["severity"] <= 1
                assert fault["loss"] == pytest.approx(loss_of(kind, fault["effect"]), abs=0.01)


def test_clips_are_h264_of_one_length_and_several_frame_rates_with_something_to_see(data: Path) -> None:
    counts = set()
    for path in videos_dir(data, "test").iterdir():
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(stream)]
            assert stream.codec_context.codec.canonical_name == "h264"
            assert stream.average_rate == 24 * len(frames) / 64
        counts.add(len(frames))
        assert frames[0].shape == (192, 320)
        assert all(frame.std() > 2 for frame in frames)
    assert 64 in counts and len(counts) > 1 and counts <= {64, 48, 32, 24}


def test_two_workers_give_the_same_bytes_as_one(data: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    make_sample_data(again, prompts=PROMPTS, seed=3, workers=2)
    assert contents(again) == contents(data)


def test_another_seed_gives_other_prompts() -> None:
    one, two = (draw_prompts(np.random.default_rng(seed), 20) for seed in (0, 1))
    assert {prompt.text for prompt in one} != {prompt.text for prompt in two}


def test_prompts_are_distinct_sentences_that_name_what_they_ask() -> None:
    prompts = draw_prompts(np.random.default_rng(0), 500)
    assert len({prompt.text for prompt in prompts}) == 500
    assert len({prompt.identity for prompt in prompts}) == 500
    for prompt in prompts:
        assert ("colour" in prompt.asks) != prompt.is_photo
        assert prompt.is_photo or prompt.asks["colour"] in prompt.text


@pytest.mark.parametrize(
    ("count", "splits"), [(6, (4, 1, 1)), (12, (9, 1, 2)), (120, (84, 12, 24)), (320, (224, 32, 64))]
)
def test_splits_hold_photos_and_drawn_subjects_in_proportion(count: int, splits: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    prompts = draw_prompts(rng, count)
    split_of = writing.split_prompts(rng, prompts)
    for split, expected in zip(SPLITS, splits, strict=True):
        photos = [prompt.is_photo for prompt in prompts if split_of[prompt.identity] == split]
        assert len(photos) == expected
        assert abs(sum(photos) - 0.4 * expected) <= 1


def test_a_data_set_brings_prompts_without_a_clip_that_give_nothing_away(data: Path) -> None:
    others = read_other_prompts(other_prompts_path(data, "train"))
    assert len(others) > 1000
    assert not any(other_prompts_path(data, split).exists() for split in ("val", "test"))
    ours = pd.concat([tables(data, split).assign(split=split) for split in SPLITS])
    assert not set(ours["Prompt"]) & others.keys()
    held = [json.loads(asks) for asks in ours[ours["split"] != "train"]["asks"].unique()]
    assert len(held) == 2 and not [asks for asks in others.values() if asks in held]


def test_no_prompt_without_a_clip_asks_for_what_many_held_out_ones_ask_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = draw_prompts(rng, 400)
    split_of = writing.split_prompts(rng, prompts)
    labels_path(tmp_path, "train").parent.mkdir(parents=True)
    writing._write_other_prompts(tmp_path, prompts, split_of, seed=0)
    others = read_other_prompts(other_prompts_path(tmp_path, "train"))
    wanted = {frozenset(asks.items()) for asks in others.values()}
    held = {frozenset(p.asks.items()) for p in prompts if split_of[p.identity] != "train"}
    assert len(held) > 100 and len(wanted) > 700
    assert not wanted & held
    learned = {frozenset(p.asks.items()) for p in prompts if split_of[p.identity] == "train"}
    assert wanted & learned, "else it is by chance"
    for aspect in ASPECT_OF_PROMPT:  # nothing is missing altogether
        assert {asks.get(aspect) for asks in others.values()} >= {p.asks[aspect] for p in prompts if aspect in p.asks}


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_each_fault_at_high_severity_clearly_lowers_its_dimension(kind: str, tmp_path: Path) -> None:
    clean = truth_with({})
    # What compression does is known only after encoding.
    bad = truth_with({kind: 0.9}, tmp_path if kind == "compression" else None)
    dimension = FAULTS[kind]
    assert bad[dimension] < clean[dimension] - 1.5
    assert bad["Overall"] < clean["Overall"] - 0.4
    for other in {"Traditional", "Aesthetic", "Temporal"} - {dimension}:
        assert bad[other] > bad[dimension] + 0.5


@pytest.mark.parametrize("kind", sorted(set(FAULTS) - {"compression"}))
def test_a_harder_fault_is_never_rated_better(kind: str) -> None:
    dimension = FAULTS[kind]
    truths = [truth_with({kind: severity})[dimension] for severity in (0.1, 0.4, 0.7, 1.0)]
    assert truths == sorted(truths, reverse=True)


@pytest.mark.parametrize(
    ("faults", "seen"),
    [
        ({"off_frame": 1.0, "freeze": 0.5, "blur": 1.0}, ASKS),
        ({"freeze": 1.0}, {aspect: value for aspect, value in ASKS.items() if aspect != "motion"}),
    ],
)
def test_a_still_picture_shows_no_motion(faults, seen, tmp_path: Path) -> None:
    truth, _, shown = clips.render(np.random.default_rng(2), tmp_path / "clip.mp4", ASKS, ASKS, faults)
    assert shown == seen
    assert truth["Alignment"] == pytest.approx(graded_alignment(ASKS, seen), abs=0.3)


@pytest.mark.parametrize("kind", ["jitter", "flicker"])
def test_a_shaky_or_flickering_clip_that_freezes_too_is_rated_worse_and_stands_still_or_shakes_on(kind: str) -> None:
    assert truth_with({kind: 0.5, "freeze": 0.5})["Temporal"] < truth_with({kind: 0.5})["Temporal"] - 0.3
    found = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        look = degrade(rng, make_shot(rng, ASKS), {kind: 0.5, "freeze": 0.5}).look
        at = int(np.flatnonzero(np.diff(look.order) == 0)[0])
        assert (look.frame(at).tobytes() == look.frame(at + 1).tobytes()) == (not look.on_top)
        found.add(look.on_top)
    assert found == {True, False}


@pytest.mark.parametrize("motion", sorted(MOTIONS))
def test_a_subject_that_is_off_frame_can_still_be_told(motion: str) -> None:
    shares = [
        make_shot(np.random.default_rng(3), ASKS | {"motion": motion}, off_frame=amount).shown_share().mean()
        for amount in (0.0, 0.02, 0.5, 1.0)
    ]
    assert shares == sorted(shares, reverse=True) and len(set(shares)) == len(shares)
    assert shares[-1] == pytest.approx(0.5)


def test_a_freeze_goes_up_to_a_still_picture() -> None:
    rng = np.random.default_rng(0)
    look = degrade(rng, make_shot(rng, ASKS), {"freeze": 0.95}).look
    assert set(look.order.tolist()) == {0}


@pytest.mark.parametrize("motion", sorted(MOTIONS))
def test_a_still_picture_is_rated_as_one_whatever_would_have_moved(motion: str) -> None:
    def truth(severity: float) -> float:
        rng = np.random.default_rng(5)
        losses = degrade(rng, make_shot(rng, ASKS | {"motion": motion}), {"freeze": severity}).losses
        return latent_truth({dimension: combined(each) for dimension, each in losses.items()}, ASKS, ASKS)["Temporal"]

    assert truth(1.0) < 2 and truth(1.0) < truth(0.5) - 0.5


@pytest.mark.parametrize("kind", ["smooth", "morph", "jump"])
def test_the_harder_a_fault_the_lower_its_dimension_over_many_clips(kind: str) -> None:
    """Where it jumps to and what it turns into is drawn anew for each clip."""
    dimension, seeds = FAULTS[kind], range(6)
    clean = np.mean([truth_with({}, seed=seed)[dimension] for seed in seeds])
    truths = [
        np.mean([truth_with({kind: severity}, seed=seed)[dimension] for seed in seeds]) for severity in (0.1, 0.5, 0.9)
    ]
    assert clean >= truths[0] > truths[1] + 0.3 > truths[2] + 0.6


def looks(kind: str, severity: float) -> tuple[Look, Look]:
    rng = np.random.default_rng(5)
    shot = make_shot(rng, ASKS)
    return Look(shot), degrade(rng, shot, {kind: severity}).look


def test_smooth_takes_texture_and_leaves_edges() -> None:
    kept = {}
    for kind in ("smooth", "blur"):
        before, after = (np.abs(np.diff(luma(look.frame(31)), axis=1)) for look in looks(kind, 0.3))
        edge, texture = before > np.quantile(before, 0.99), before < np.quantile(before, 0.6)
        kept[kind] = after[edge].mean() / before[edge].mean(), after[texture].mean() / before[texture].mean()
    assert kept["smooth"][0] > 0.8 and kept["smooth"][1] < 0.7
    assert kept["blur"][0] < 0.2, "which is another fault"


def test_morph_turns_the_subject_into_another_and_back() -> None:
    before, after = looks("morph", 0.9)
    far = [float(np.abs(luma(after.frame(place)) - luma(before.frame(place))).mean()) for place in range(0, 64, 4)]
    assert far[0] == pytest.approx(0, abs=0.1)
    assert max(far) > 10 * max(far[0], 0.1)
    assert min(far[far.index(max(far)) :]) < 0.5 * max(far), "and back"


def test_jump_skips_moments_and_shows_a_clip_as_long_as_before() -> None:
    order = looks("jump", 0.9)[1].order
    steps = np.diff(order)
    assert len(order) == 64 and order[0] == 0 and order.min() >= 0 and order.max() <= 63
    assert (np.abs(steps) == 1).mean() > 0.85, "between the jumps it goes on"
    assert (np.abs(steps) >= 4).sum() >= 3


def test_faults_of_one_dimension_add_up_to_less_than_their_sum() -> None:
    assert combined([]) == 0
    assert combined([1.5]) == pytest.approx(1.5)
    assert 2 < combined([2.0, 1.0]) < 3
    assert combined([9.0, 1.0]) <= 4


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SampleDataError, match="not empty"):
        make_sample_data(tmp_path, prompts=PROMPTS)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_sample_data(tmp_path / "data", prompts=PROMPTS, workers=1, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_too_few_prompts_or_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prompts is 5"):
        make_sample_data(tmp_path / "data", prompts=5)
    with pytest.raises(ValueError, match="workers is 0"):
        make_sample_data(tmp_path / "data", prompts=PROMPTS, workers=0)


def test_a_missing_photo_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SampleDataError, match=r"sklearn ships no datasets/images/china\.jpg"):
        scene_picture.__wrapped__("temple")
    monkeypatch.undo()
    assert scene_picture("temple").size == SCENE_SIZE


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'av', 'PIL', 'skimage', 'sklearn', 'scipy', 'matplotlib', 'pandas', 'torch'}"
    code = f"import sys, qualivision.sample_data; sys.exit(' '.join({heavy} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
