"""The behaviour report: degradations that rise with severity, tau, what is counted, and the command on small clips."""

from __future__ import annotations

import json
import sys
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from small_models import FRAMES, write_checkpoint

from qualivision import cli
from qualivision.behaviour import measure as measuring
from qualivision.behaviour.degradations import KINDS, degrade
from qualivision.behaviour.folder import BehaviourError, Clip, find_clips
from qualivision.behaviour.measure import NO_PROMPT, Measured, Measurement, measure, severities
from qualivision.behaviour.report import FIGURES, PICTURE, report_of, table, tau, write_report
from qualivision.labels import DIMENSIONS, MOS_COLUMNS
from qualivision.scoring import Scorer, Scores
from qualivision.settings import DecodeSettings
from qualivision.stages.evaluate import best_rated
from qualivision.video import VideoError, distinct_frames, sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from conftest import MakeClip

    from qualivision.video import Clip as Shown
    from qualivision.video import Frames

STEPS = severities(5)
RANDOM = {"noise", "freeze", "jitter", "flicker", "shuffled-frames", "wobble"}


def clean_frames(count: int = 20, height: int = 72, width: int = 96) -> Frames:
    """Texture that moves, in a clip that grows brighter: a frame out of place differs by how far it is away."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).normal(size=(height, width + 2 * count, 3))
    texture = gaussian_filter(noise, (1.2, 1.2, 0))
    texture = 60 + 25 * texture / texture.std()
    frames = [texture[:, 2 * i : 2 * i + width] + 4 * i for i in range(count)]
    return np.clip(frames, 0, 255).astype(np.uint8)


def change(before: Frames, after: Frames) -> float:
    return float(np.abs(after.astype(int) - before).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_changes_the_frames_more_than_the_one_before(kind):
    frames = clean_frames()
    kept = frames.copy()
    copies = [degrade(frames, kind, severity) for severity in STEPS]
    assert all(copy.shape == frames.shape and copy.dtype == np.uint8 for copy in copies)
    np.testing.assert_array_equal(frames, kept)
    changes = [change(frames, copy) for copy in copies]
    assert 0 < changes[0] < 0.6 * changes[-1]
    assert changes == sorted(changes) and len(set(changes)) == len(changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_frames_and_another_seed_others_where_something_is_left_to_chance(kind):
    frames = clean_frames()
    once, again, other = (degrade(frames, kind, 0.8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(once, again)
    assert (kind in RANDOM) == bool((once != other).any())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count", "height", "width"), [(1, 33, 47), (2, 9, 5), (9, 64, 64)])
def test_any_size_and_length_can_be_degraded(kind, count, height, width):
    frames = clean_frames(count, height, width)
    for severity in (0.2, 1):
        assert degrade(frames, kind, severity).shape == frames.shape


@pytest.mark.parametrize("severity", [0, 0.1, 1.01])
def test_a_severity_out_of_range_is_refused(severity):
    with pytest.raises(ValueError, match=f"severity: {severity} is not from 0.2 to 1"):
        degrade(clean_frames(2), "blur", severity)


def test_every_kind_has_rising_levels_and_lowers_a_dimension_that_needs_no_prompt():
    assert {kind.dimension for kind in KINDS.values()} == {"Traditional", "Aesthetic", "Temporal"}
    for kind in KINDS.values():
        levels = [kind.level(severity) for severity in STEPS]
        assert levels == list(kind.levels)
        assert levels in (sorted(levels), sorted(levels, reverse=True))
    assert severities(2) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("fall", "expected"),
    [
        ((0, 1, 2, 3, 4, 5), 1.0),
        ((0, 1, 2, 3, 5, 4), 13 / 15),  # of 15 pairs one is the wrong way round
        ((0, -1, -2, -3, -4, -5), -1.0),
        ((0, 0, 1, 2, 3, 4), 14 / np.sqrt(15 * 14)),  # one pair is tied
        ((0, 0, 0, 0, 0, 0), None),
    ],
)
def test_tau(fall, expected):
    assert tau(range(6), fall) == (expected if expected is None else pytest.approx(expected))


def measurement() -> Measurement:
    """Two clips with prompts and one without; blur takes 0.1 a step from Traditional, freeze nothing from anything."""
    clean = np.array([4.0, 3.0, 4.0, 4.0, 3.0])
    steps = np.arange(1, 6)[:, None]
    clips = []
    for number, prompt in enumerate(("A cat", "A dog", None)):
        clip = Clip(f"{number}.mp4", Path(f"{number}.mp4"), prompt)
        # The first clip's own prompt wins on Alignment and ties on Overall, the second's the other way round.
        others = None if prompt is None else clean - [[0, 1, 0, 0, 0] if number == 0 else [0, 0, 0, 0, 0.5]]
        found = Measured(clip, clean, others)
        found.degraded["blur"] = clean - steps * [0.1, 0.3 if prompt is None else 0.0, 0, 0, 0.05 * (1 + number)]
        found.degraded["freeze"] = np.repeat(clean[None], 5, axis=0)
        clips.append(found)
    return Measurement("stand-in", ("blur", "freeze"), STEPS, tuple(clips), {"bad.mp4": "is empty"})


def test_the_report_says_what_fell_and_how_steadily():
    report = report_of(measurement())
    blur, freeze = report["kinds"]["blur"], report["kinds"]["freeze"]
    assert blur["dimension"] == "Traditional" and blur["levels"] == list(KINDS["blur"].levels)
    assert blur["fall"]["Traditional"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert blur["fall"]["Overall"] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert (blur["tau"]["Traditional"], blur["tau_clips"]["Traditional"]) == (1, 3)
    assert blur["tau_of_mean"]["Traditional"] == 1
    assert freeze["tau"]["Temporal"] is None and freeze["tau_of_mean"]["Temporal"] is None
    assert report["tau"] == {"Traditional": 1}
    assert report["per_clip"]["0.mp4"]["tau"] == {"blur": 1, "freeze": None}
    assert (report["clips"], report["clips_with_prompt"], report["skipped"]) == (3, 2, {"bad.mp4": "is empty"})


def test_alignment_of_a_clip_without_a_prompt_is_not_counted():
    report = report_of(measurement())
    assert report["kinds"]["blur"]["fall"]["Alignment"] == [0, 0, 0, 0, 0]
    assert report["kinds"]["blur"]["tau_clips"]["Alignment"] == 0
    assert report["per_clip"]["0.mp4"]["scores"]["Alignment"] == 3
    assert "Alignment" not in report["per_clip"]["2.mp4"]["scores"]


def test_a_tie_with_another_prompt_is_not_won():
    assert report_of(measurement())["prompts"] == {
        "clips": 2,
        "distinct": 2,
        "pairs": 2,
        "won": {"Alignment": 0.5, "Overall": 0.5},
        "lead": {"Alignment": 0.5, "Overall": 0.25},
    }


def test_the_table_fits_a_terminal_and_marks_what_was_expected():
    lines = table(report_of(measurement())).splitlines()
    assert max(map(len, lines)) <= 110
    row = next(line for line in lines if line.startswith("blur")).split()
    assert row == ["blur", "1.00", "1.00", "0.50*", "0.00", "0.00", "0.00", "0.50"]
    assert next(line for line in lines if line.startswith("freeze")).split()[1:3] == ["-", "-"]
    assert "against those of other clips, 2 pairs:\nwins Alignment in 50.0 % (by 0.50 MOS)" in "\n".join(lines)
    assert any(NO_PROMPT in line for line in lines) and any("Skipped: 1" in line for line in lines)


def test_equal_scores_give_equal_bytes_and_no_clip_gives_a_report_that_says_so(tmp_path):
    for name in ("one", "two"):
        write_report(measurement(), tmp_path / name)
    for name in (FIGURES, PICTURE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    nothing = write_report(Measurement("stand-in", (), (), (), {}), tmp_path / "none")
    assert (nothing["clips"], nothing["kinds"], nothing["prompts"]) == (0, {}, None)
    assert json.loads((tmp_path / "none" / FIGURES).read_text()) == nothing
    assert (tmp_path / "none" / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_distinct_frames_are_those_of_the_video_each_once(tmp_path, make_clip: MakeClip):
    clip = make_clip(tmp_path / "a.mp4", frames=5)
    frames, places = distinct_frames(clip, 16, max_side_px=640)
    assert frames.shape == (5, 48, 64, 3)
    np.testing.assert_array_equal(frames[places], sample(clip, 16))
    few, places = distinct_frames(clip, 3, max_side_px=32)
    assert few.shape == (3, 24, 32, 3) and places.tolist() == [0, 1, 2]


@pytest.fixture
def folder(tmp_path, make_clip: MakeClip) -> Path:
    """Three clips, one of them deeper down, and a file that is none; a table that names two of the clips."""
    root = tmp_path / "clips"
    (root / "deeper").mkdir(parents=True)
    make_clip(root / "cat.mp4", frames=8)
    make_clip(root / "deeper" / "dog.mp4", frames=8, shade=3)
    make_clip(root / "street.mp4", frames=8, shade=5)
    (root / "broken.mp4").write_bytes(b"")
    (root / "notes.txt").write_text("no video")
    (tmp_path / "prompts.csv").write_text("video_name,Prompt\ncat.mp4,A cat\ndog.mp4,A dog\nstreet.mp4,\n")
    return root


def test_a_folder_gives_its_videos_with_the_prompts_that_a_table_has(folder):
    found = find_clips(folder, folder.parent / "prompts.csv")
    named = {clip.name: clip.prompt for clip in found.clips}
    assert named == {"broken.mp4": None, "cat.mp4": "A cat", "deeper/dog.mp4": "A dog", "street.mp4": None}
    assert find_clips(folder, None).clips[1].prompt is None
    other = folder.parent / "other.csv"
    other.write_text("video_name,Prompt\ncat.mp4,A cat\ncat.mp4,A dog\nbird.mp4,A bird\n")
    found = find_clips(folder, other)
    assert found.skipped == {"cat.mp4": f"has more than one prompt in {other}"}
    assert found.notes == (f"1 rows of {other} without a video in {folder}, such as bird.mp4",)


def test_a_folder_without_videos_is_refused(tmp_path):
    with pytest.raises(BehaviourError, match=r"holds no video; looked for \.avi"):
        find_clips(tmp_path, None)
    with pytest.raises(BehaviourError, match="missing: is no folder"):
        find_clips(tmp_path / "missing", None)


class StandIn:
    """A scorer by rules: Traditional is sharpness, Temporal how many frames differ, Alignment 4 for a true prompt."""

    name = "stand-in"
    specs = (FRAMES,)

    def __init__(self) -> None:
        self.true = {"cat.mp4": "A cat", "deeper/dog.mp4": "A dog"}

    def judge(self, clips: Sequence[tuple[str, str, Shown]]) -> list[Scores]:
        return [self._score(*clip) for clip in clips]

    def judge_prompts(self, name: str, prompts: Sequence[str], clip: Shown) -> list[Scores]:
        return [self._score(name, prompt, clip) for prompt in prompts]

    def _score(self, name: str, prompt: str, clip: Shown) -> Scores:
        (frames,) = clip
        if name not in self.true:
            assert prompt == NO_PROMPT
        edges = float(np.abs(np.diff(frames.astype(float), axis=2)).mean()) / 20
        moving = float((np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3)) > 0).mean())
        values = (edges, 4.0 if self.true.get(name) == prompt else 2.0, 3.0, moving, 3.0)
        return Scores(name, prompt, dict(zip(DIMENSIONS, values, strict=True)), {}, self.name, 0.5)


def test_clips_are_degraded_and_held_against_other_prompts_and_a_broken_one_is_skipped(folder):
    clips = find_clips(folder, folder.parent / "prompts.csv").clips
    told: list[tuple[int, int]] = []
    scorer: Any = StandIn()
    found = measure(
        scorer, clips, DecodeSettings(), kinds=("blur", "freeze"), workers=2, advance=lambda *of: told.append(of)
    )
    assert found.skipped == {"broken.mp4": "is empty (0 bytes)"}
    report = report_of(found)
    assert report["kinds"]["blur"]["tau"]["Traditional"] > 0.9
    assert report["kinds"]["freeze"]["fall"]["Temporal"][-1] > 0.6
    assert report["kinds"]["freeze"]["tau_clips"]["Temporal"] == 3
    assert report["prompts"]["pairs"] == 2 and report["prompts"]["won"] == {"Alignment": 1, "Overall": 0}
    assert told[-1] == (3 * 11, 3 * 11)


def test_many_prompts_of_one_clip_give_the_scores_that_each_gives_alone(tmp_path):
    scorer = Scorer(write_checkpoint(tmp_path / "lite"), device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES.count, FRAMES.height, FRAMES.width, 3), dtype=np.uint8)
    prompts = [f"prompt {number}" for number in range(18)]  # more than go through at once
    together = scorer.judge_prompts("a.mp4", prompts, (frames,))
    for prompt, found in zip(prompts, together, strict=True):
        alone = scorer.judge([("a.mp4", prompt, (frames,))])[0]
        assert found.prompt == prompt and found.values == pytest.approx(alone.values, abs=1e-4)
    assert together[0].values != together[1].values


def test_all_specs_read_one_degraded_clip_and_those_of_one_count_share_the_work(make_clip, tmp_path, monkeypatch):
    path = make_clip(tmp_path / "a.mp4", frames=6)
    specs = [FRAMES, FRAMES.model_copy(update={"width": 96}), FRAMES.model_copy(update={"count": 3, "height": 32})]
    wanted = [measuring._degraded(path, "a", [spec], "pyav", "noise", (0.5, 1.0))[2] for spec in specs]
    severities: list[float] = []

    def counted(frames: Frames, kind: str, severity: float, *, seed: int) -> Frames:
        severities.append(severity)
        return degrade(frames, kind, severity, seed=seed)

    monkeypatch.setattr(measuring, "degrade", counted)
    name, kind, copies = measuring._degraded(path, "a", specs, "pyav", "noise", (0.5, 1.0))
    assert (name, kind, severities) == ("a", "noise", [0.5, 1.0, 0.5, 1.0])
    for step, copy in enumerate(copies):
        assert [frames.shape for frames in copy] == [(spec.count, spec.height, spec.width, 3) for spec in specs]
        for frames, alone in zip(copy, wanted, strict=True):
            np.testing.assert_array_equal(frames, alone[step][0])


def call(monkeypatch, capsys, *arguments: object) -> SimpleNamespace:
    monkeypatch.setattr(sys, "argv", ["qualivision", "behaviour", *map(str, arguments)])
    try:
        cli.main()
        code: object = 0
    except SystemExit as left:
        code = left.code or 0
    return SimpleNamespace(code=code, **capsys.readouterr()._asdict())


def test_the_command_reports_on_what_can_be_read_and_exits_with_1_for_what_can_not(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    options = ["--prompts", "prompts.csv", "--model", write_checkpoint(tmp_path / "lite"), "--out", "here"]
    few = ["--steps", 2, "--kind", "noise", "--kind", "jitter"]
    done = call(monkeypatch, capsys, folder, *options, *few)
    assert done.code == 1 and "broken.mp4: is empty (0 bytes)" in done.err
    assert "3 clips, 2 of them with a prompt" in done.out and "here/behaviour.json, here/behaviour.png" in done.out
    assert {path.name for path in Path("here").iterdir()} == {FIGURES, PICTURE}
    written = json.loads((Path("here") / FIGURES).read_text())
    assert written["severities"] == [0.5, 1] and list(written["kinds"]) == ["noise", "jitter"]
    assert set(written["skipped"]) == {"broken.mp4"}
    (folder / "broken.mp4").unlink()
    done = call(monkeypatch, capsys, folder, *options, *few, "--json")
    assert done.code == 0 and json.loads(done.out) == {**written, "skipped": {}}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--kind", "fog"], 2, "'fog' is none of blur, "),
        (["--steps", "6"], 2, "Invalid value for '--steps'"),
        (["--prompts", "none.csv"], 1, "none.csv: no such label table"),
        ([], 1, "holds no video"),
    ],
)
def test_what_can_not_be_done_is_one_line(arguments, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = call(monkeypatch, capsys, tmp_path, *arguments)
    assert done.code == code and says in done.err


def test_only_broken_clips_give_no_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"")
    done = call(monkeypatch, capsys, "clips", "--model", write_checkpoint(tmp_path / "lite"))
    assert done.code == 1 and "none of its videos could be used" in done.err
    assert not (tmp_path / "reports").exists()


def test_the_best_rated_clips_are_taken_one_of_a_prompt():
    names, prompts = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"], ["A cat", "A cat", "A dog", "A bird"]
    rated = pd.DataFrame({"video_name": names, "Prompt": prompts})
    rated[list(MOS_COLUMNS)] = np.array([4.0, 4.5, 3.0, 3.0])[:, None].repeat(5, axis=1)
    assert [clip.name for clip in best_rated(rated, 2)] == ["b.mp4", "c.mp4"]
    assert [clip.name for clip in best_rated(rated, 9)] == ["b.mp4", "c.mp4", "d.mp4"]
    assert best_rated(rated, 0) == []


def test_a_torn_video_is_an_error_of_the_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(VideoError):
        distinct_frames(tmp_path / "a.mp4", 4, max_side_px=64)


def test_x264_makes_the_same_bytes_from_run_to_run():
    random = np.random.default_rng(0)
    frames = np.repeat(np.repeat(random.integers(0, 256, (48, 24, 40, 3), np.uint8), 8, 1), 8, 2)
    assert len({md5(degrade(frames, "compression", 0.6).tobytes()).hexdigest() for _ in range(4)}) == 1
