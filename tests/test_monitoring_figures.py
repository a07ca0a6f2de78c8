"""Each figure of a clip follows what it is called after, and a video is looked at once."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_models import write_clip

from qualivision.models.statistics import frame_statistics
from qualivision.monitoring import figures
from qualivision.monitoring.figures import FILE, PICTURES, Album, grid, picture_figures, words
from qualivision.settings import DecodeSettings

FRAMES, SIDE = 8, 96


def scene(*, still: bool = True) -> torch.Tensor:
    """(1, 3, T, H, W): a texture of colours, the same in every frame or moving."""
    blobs = torch.rand(1, 3, 29, 29, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(blobs, (SIDE, SIDE), mode="bicubic").clamp(0.1, 0.9)
    return torch.stack([picture if still else picture.roll(3 * number, 3) for number in range(FRAMES)], dim=2)


def found(frames: torch.Tensor) -> dict[str, float]:
    return picture_figures(frame_statistics(frames.clamp(0, 1))[0][0])


def noisy(frames: torch.Tensor, deviation: float) -> torch.Tensor:
    """Grey noise: what colours have of it on top cancels out in the luma."""
    return frames + deviation * torch.randn(frames[:, :1].shape, generator=torch.Generator().manual_seed(1))


def flickering(frames: torch.Tensor) -> torch.Tensor:
    frames = frames.clone()
    frames[:, :, ::2] *= 0.8
    return frames


@pytest.mark.parametrize(
    ("figure", "change", "sign"),
    [
        ("brightness", lambda frames: frames * 0.5, -1),
        ("contrast", lambda frames: frames * 0.3 + 0.35, -1),
        ("colourfulness", lambda frames: frames.mean(1, keepdim=True).expand_as(frames), -1),
        ("sharpness", lambda frames: noisy(frames, 0.1), +1),
        ("sharpness", lambda frames: torch.nn.functional.avg_pool3d(frames, (1, 9, 9), 1, (0, 4, 4)), -1),
        ("noise", lambda frames: noisy(frames, 0.05), +1),
        ("motion", lambda frames: scene(still=False), +1),
        ("flicker", flickering, +1),
        ("stillness", lambda frames: scene(still=False), -1),
    ],
)
def test_a_figure_follows_what_it_is_called_after(figure, change, sign):
    before, after = found(scene()), found(change(scene()))
    assert sign * (after[figure] - before[figure]) > 0.1 * abs(before[figure])


def test_figures_are_in_the_units_that_they_say():
    flat = torch.full((1, 3, FRAMES, 224, 224), 0.5)
    assert found(flat)["brightness"] == pytest.approx(127.5)
    assert found(flat)["stillness"] == 1.0
    assert found(noisy(flat, 4 / 255))["noise"] == pytest.approx(4, rel=0.15)
    assert found(flickering(flat))["flicker"] == pytest.approx(0.2 * 127.5, rel=0.01)
    stripes = flat.clone()
    stripes[..., ::2] += 10 / 255
    assert found(stripes)["sharpness"] == pytest.approx(10 / 2, rel=0.05)  # no step from row to row


def test_a_coders_grid_is_found_and_a_blur_is_not_taken_for_one():
    random = np.random.default_rng(0)
    plain = random.integers(0, 256, (2, 90, 122, 3), dtype=np.uint8)
    blocks = random.integers(0, 256, (2, 12, 16, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)[:, :90, :122]
    assert grid(plain) == pytest.approx(1, abs=0.05)
    assert grid(gaussian_filter(plain, (0, 2, 2, 0))) == pytest.approx(1, abs=0.1)
    assert grid(np.full_like(plain, 7)) == 1.0
    assert grid(plain // 16 + blocks // 16 * 15) > 2
    assert grid(plain[:, :15]) is None


def test_every_figure_is_measured_and_finite():
    assert {*found(scene()), "blockiness"} == {figure.name for figure in PICTURES}
    assert all(math.isfinite(value) for value in found(torch.zeros(1, 3, 8, 64, 64)).values())


@pytest.mark.parametrize(("prompt", "count"), [("A cat  on\tgrass\n", 4), ("", 0), ("猫", 1)])
def test_words_are_counted(prompt, count):
    assert words(prompt) == count


def test_a_video_is_looked_at_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    good, other = (write_clip(tmp_path / name, seed=seed, side=64) for seed, name in enumerate(("a.mp4", "b.mp4")))
    broken, gone = tmp_path / "broken.mp4", tmp_path / "gone.mp4"
    broken.write_bytes(b"no video")
    for path in (good, other):
        os.utime(path, (time.time() - 60,) * 2)
    told: list[tuple[int, int]] = []
    time.sleep(1.1)  # what changed within the last second is not remembered
    known, failed = Album(tmp_path / "kept", DecodeSettings()).look(
        [good, other, good, broken, gone], advance=lambda done, total: told.append((done, total))
    )
    assert set(known) == {good, other} and failed.keys() == {broken, gone}
    assert "no such file" in failed[gone] and "can't be decoded" in failed[broken]
    assert told[0] == (0, 4) and told[-1] == (4, 4)
    expected = {"width": 64.0, "height": 64.0, "frame rate": 8.0, "seconds": 0.75}
    assert {name: known[good][name] for name in expected} == expected
    assert known[good]["bits per pixel"] == pytest.approx(good.stat().st_size * 8 / (6 * 64 * 64))
    assert known[good].keys() == {figure.name for figure in (*FILE, *PICTURES)}

    asked: list[Path] = []
    monkeypatch.setattr(figures, "in_processes", lambda work, jobs, guard: asked.extend(job[0] for job in jobs) or ())
    again, _ = Album(tmp_path / "kept", DecodeSettings()).look([good, other], advance=lambda done, total: None)
    assert (again, asked) == (known, [])
    write_clip(other, seed=7)
    again, _ = Album(tmp_path / "kept", DecodeSettings()).look([good, other], advance=lambda done, total: None)
    assert asked == [other] and set(again) == {good}
    monkeypatch.setattr(figures, "FIGURES_VERSION", figures.FIGURES_VERSION + 1)
    Album(tmp_path / "kept", DecodeSettings()).look([good], advance=lambda done, total: None)
    assert asked == [other, good]
