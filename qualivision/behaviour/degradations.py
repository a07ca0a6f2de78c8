"""What is done to clean clips: kinds of degradation at rising severity, and the dimension that each should lower.

Owns `KINDS` and how a severity becomes pixels. Knows no model and no file. The kinds are made apart from those of the
sample data on purpose: a model that learned from those is tried here on others.

Contract: frames (T, H, W, 3) uint8 RGB in, the same shape out; severity from 0.2 to 1. One seed is one draw, which
every severity scales: a higher one is the same fault, and more of it. Sizes are shares of the frame's longer side, so
that a degradation is as strong in a small video as in a large one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from qualivision.video import resize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from qualivision.video import Frames

    Degrading = Callable[[Frames, float, np.random.Generator], Frames]

_BLOCK_PX: Final = 8  # as in JPEG and the older codecs
_NOISE_ROOM_PX: Final = 64  # by how much the noise picture is larger than a frame: each frame sees another part of it
_LEAST_PX: Final = 0.4  # on top of what is a share of the side, or in small videos nothing would be blurred or moved
_AT_ONCE: Final = 8  # frames whose pixels are held as floats


@dataclass(frozen=True)
class Kind:
    """One kind of degradation.

    Attributes:
        dimension: what it should lower.
        unit: of its levels, in words.
        levels: how strong it is at the severities 0.2, 0.4, 0.6, 0.8 and 1.
        apply: (frames, level, random numbers) to degraded frames.
    """

    dimension: str
    unit: str
    levels: tuple[float, float, float, float, float]
    apply: Degrading

    def level(self, severity: float) -> float:
        """How strong it is at a severity from 0.2 to 1; between two levels on a straight line."""
        return float(np.interp(severity, (0.2, 0.4, 0.6, 0.8, 1.0), self.levels))


def degrade(frames: Frames, kind: str, severity: float, *, seed: int = 0) -> Frames:
    """Degrade a clip.

    Args:
        frames: (T, H, W, 3) uint8, RGB: its distinct frames, in order.
        kind: a name in `KINDS`.
        severity: from 0.2, hardly to be seen, to 1, strong.
        seed: of what the kind leaves to chance; the same draw at every severity.
    Returns:
        New frames of the same shape.
    Raises:
        KeyError: no such kind.
        ValueError: the severity is out of range.
    """
    if not 0.2 <= severity <= 1:
        raise ValueError(f"severity: {severity} is not from 0.2 to 1")
    chosen = KINDS[kind]
    return chosen.apply(frames, chosen.level(severity), np.random.default_rng([seed, crc32(kind.encode())]))


# --- the picture -----------------------------------------------------------------------------------------------------


def _blur(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    from PIL import Image, ImageFilter

    gaussian = ImageFilter.GaussianBlur(_LEAST_PX + level * _side(frames))
    return np.stack([np.asarray(Image.fromarray(frame).filter(gaussian)) for frame in frames])


def _low_resolution(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]
    small = resize(frames, max(2, round(height * level)), max(2, round(width * level)))
    return resize(small, height, width)


def _noise(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]
    room = (height + _NOISE_ROOM_PX, width + _NOISE_ROOM_PX, 3)
    noise = np.rint(level * rng.standard_normal(room, dtype=np.float32)).astype(np.int16)
    tops, lefts = rng.integers(0, _NOISE_ROOM_PX + 1, (2, len(frames)))
    out = np.empty_like(frames)
    for place, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        out[place] = np.clip(frames[place] + noise[top : top + height, left : left + width], 0, 255)
    return out


def _compression(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """Through x264 and back. A side that is odd, which x264 does not take, is one pixel longer there."""
    import av

    height, width = frames.shape[1:3]
    even = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        # One thread, no macroblock tree: with either, x264 gives other bytes from run to run.
        options = {"crf": str(round(level)), "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = *even.shape[1:3], "yuv420p"
        stream.thread_count = 1
        for frame in even:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file, "r") as written:
        shown = [frame.to_ndarray(format="rgb24") for frame in written.decode(video=0)]
    return np.ascontiguousarray(np.stack(shown)[:, :height, :width])


def _blocking(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    height, width = frames.shape[1:3]
    down, across = -(-height // _BLOCK_PX), -(-width // _BLOCK_PX)
    room = ((0, 0), (0, down * _BLOCK_PX - height), (0, across * _BLOCK_PX - width), (0, 0))
    out = np.empty_like(frames)
    for part in _parts(frames):
        shown = np.pad(frames[part], room, mode="edge").reshape(-1, down, _BLOCK_PX, across, _BLOCK_PX, 3)
        mosaic = shown.mean((2, 4), keepdims=True, dtype=np.float32)
        blended = (1 - level) * shown + level * mosaic
        out[part] = np.rint(blended.reshape(-1, down * _BLOCK_PX, across * _BLOCK_PX, 3)[:, :height, :width])
    return out


def _over_smooth(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """Texture gone and edges kept, as a strong denoiser does: the guided filter of He, Sun and Tang (2013), by itself.

    Its moments are taken over cells of pixels, and its two coefficients made smooth between them, which makes it fast
    (He and Sun, 2015).
    """
    import torch
    from torch.nn.functional import avg_pool2d, interpolate, pad

    height, width = frames.shape[1:3]
    cell = max(2, round(_side(frames) / 160))
    room = (0, -width % cell, 0, -height % cell)
    around = lambda x: avg_pool2d(x, 3, 1, 1, count_include_pad=False)  # noqa: E731
    out = np.empty_like(frames)
    for part in _parts(frames):
        shown = pad(torch.from_numpy(frames[part]).permute(0, 3, 1, 2).float() / 255, room, mode="replicate")
        mean = around(avg_pool2d(shown, cell))
        variance = around(avg_pool2d(shown**2, cell)) - mean**2
        share = variance.clamp(min=0) / (variance.clamp(min=0) + level**2)
        kept, laid = around(share), around(mean * (1 - share))
        size = shown.shape[2:]
        kept, laid = (interpolate(x, size, mode="bilinear", align_corners=False) for x in (kept, laid))
        smooth = (kept * shown + laid)[..., :height, :width].clamp(0, 1)
        out[part] = (smooth * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return out


def _underexposure(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    return _through(frames, _GREYS * (1 - level))


def _overexposure(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    return _through(frames, _GREYS * (1 + level) + 40 * level)  # raised too, that a dark clip blows out as well


def _washed_out(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """Colour and contrast drawn towards a light grey."""
    out = np.empty_like(frames)
    for part in _parts(frames):
        shown = frames[part].astype(np.float32)
        grey = shown @ np.array([0.299, 0.587, 0.114], np.float32)
        shown += 0.8 * level * (grey[..., None] - shown)
        out[part] = np.rint(shown + 0.8 * level * (175 - shown))
    return out


# --- time ------------------------------------------------------------------------------------------------------------


def _freeze(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """One frame is held for so large a share of the clip; then it jumps to where it would be."""
    count = len(frames)
    held = max(2, round(level * count))
    start = round(rng.uniform(0.2, 0.8) * (count - min(held, count)))
    order = np.arange(count)
    order[start : start + held] = start
    return frames[order]


def _dropped_frames(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """Only every n-th frame is new, the others repeat it."""
    every = round(level)
    return frames[np.arange(len(frames)) // every * every]


def _shuffled_frames(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """Frames change places with others that are about so many frames away."""
    places = np.arange(len(frames)) + level * rng.uniform(-1, 1, len(frames))
    return frames[np.argsort(places, kind="stable")]


def _jitter(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """The camera shakes: each frame is moved by whole pixels, for between them it would lose sharpness too."""
    height, width = frames.shape[1:3]
    spread = _LEAST_PX + level * _side(frames)
    offsets = np.rint(np.clip(rng.standard_normal((len(frames), 2)), -2.5, 2.5) * spread).astype(int)
    margin = int(np.abs(offsets).max())
    out = np.empty_like(frames)
    for place, (down, across) in enumerate(offsets + margin):
        wide = np.pad(frames[place], ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
        out[place] = wide[down : down + height, across : across + width]
    return out


def _flicker(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """Each frame is brighter or darker by a factor of its own."""
    gains = np.exp(level * np.clip(rng.standard_normal(len(frames)), -2.5, 2.5))
    return np.stack([_through(frame, _GREYS * gain) for frame, gain in zip(frames, gains, strict=True)])


def _wobble(frames: Frames, level: float, rng: np.random.Generator) -> Frames:
    """As seen through moving water: waves of a quarter of the longer side, that run on from frame to frame."""
    import torch

    height, width = frames.shape[1:3]
    side = _side(frames)
    down, across = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    start = torch.from_numpy(rng.uniform(0, 2 * np.pi, 2)).float()
    wave = 2 * np.pi / (side / 4)
    out = np.empty_like(frames)
    for part in _parts(frames):
        shown = torch.from_numpy(frames[part]).permute(0, 3, 1, 2).float()
        moment = torch.arange(part.start, part.start + len(shown)).view(-1, 1, 1)
        x = across + level * side * torch.sin(wave * down + 0.9 * moment + start[0])
        y = down + level * side * torch.sin(wave * across + 0.7 * moment + start[1])
        grid = torch.stack((2 * x / max(1, width - 1) - 1, 2 * y / max(1, height - 1) - 1), -1)
        moved = torch.nn.functional.grid_sample(shown, grid, padding_mode="border", align_corners=True)
        out[part] = moved.round().byte().permute(0, 2, 3, 1).numpy()
    return out


# --- parts -----------------------------------------------------------------------------------------------------------

_GREYS: Final = np.arange(256, dtype=np.float32)


def _through(frames: Frames, curve: npt.NDArray[np.float32]) -> Frames:
    """Every value through a curve of 256."""
    looked_up: Frames = np.clip(np.rint(curve), 0, 255).astype(np.uint8)[frames]
    return looked_up


def _side(frames: Frames) -> int:
    """The longer side, in pixels."""
    return max(frames.shape[1:3])


def _parts(frames: Frames) -> list[slice]:
    """A few frames at a time, for what is computed in floats."""
    return [slice(start, min(start + _AT_ONCE, len(frames))) for start in range(0, len(frames), _AT_ONCE)]


_OF_SIDE: Final = "share of the longer side"

KINDS: Final[Mapping[str, Kind]] = {
    "blur": Kind("Traditional", f"sigma, {_OF_SIDE}", (0.0015, 0.003, 0.006, 0.011, 0.02), _blur),
    "low-resolution": Kind(
        "Traditional", "share of the sides that is left", (0.6, 0.4, 0.25, 0.16, 0.1), _low_resolution
    ),
    "noise": Kind("Traditional", "sigma, of 255", (4.0, 10.0, 20.0, 34.0, 52.0), _noise),
    "compression": Kind("Traditional", "CRF of x264", (30.0, 36.0, 41.0, 46.0, 51.0), _compression),
    "blocking": Kind("Traditional", "share of a mosaic of 8 x 8", (0.15, 0.3, 0.5, 0.72, 0.95), _blocking),
    "over-smooth": Kind(
        "Traditional", "deviation that is smoothed, of 1", (0.012, 0.03, 0.06, 0.12, 0.25), _over_smooth
    ),
    "underexposure": Kind(
        "Traditional", "share of the light that is gone", (0.12, 0.3, 0.5, 0.68, 0.84), _underexposure
    ),
    "overexposure": Kind("Traditional", "light added, of 1", (0.12, 0.3, 0.6, 1.0, 1.6), _overexposure),
    "washed-out": Kind("Aesthetic", "strength", (0.12, 0.3, 0.5, 0.75, 1.0), _washed_out),
    "freeze": Kind("Temporal", "share of the clip", (0.12, 0.3, 0.5, 0.72, 0.95), _freeze),
    "jitter": Kind("Temporal", f"sigma, {_OF_SIDE}", (0.001, 0.003, 0.007, 0.014, 0.025), _jitter),
    "flicker": Kind("Temporal", "sigma of the logarithm of the gain", (0.015, 0.04, 0.09, 0.17, 0.3), _flicker),
    "dropped-frames": Kind("Temporal", "frames until the next one", (2.0, 3.0, 5.0, 7.0, 10.0), _dropped_frames),
    "shuffled-frames": Kind("Temporal", "frames by which one is off", (1.5, 3.0, 5.0, 9.0, 16.0), _shuffled_frames),
    "wobble": Kind("Temporal", f"amplitude, {_OF_SIDE}", (0.0015, 0.004, 0.008, 0.015, 0.028), _wobble),
}
"""By name. Those of Traditional first, then Aesthetic, then Temporal."""
