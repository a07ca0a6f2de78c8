"""What a clip is like, in figures that people understand: its file, its prompt, its pictures.

Owns which figures there are, how they are measured, and the memory of them: a video is looked at once, as long as it
stays as it is. Pictures are measured at one small size, whatever the video's own is, which is about what a model sees
of it; that a clip is larger is said by width and height. Only a coder's grid is looked for at the video's own size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from qualivision.errors import leaves
from qualivision.evaluation.metrics import PREDICTED_COLUMNS
from qualivision.labels import DIMENSIONS
from qualivision.monitoring.drift import Figure
from qualivision.seen import Seen
from qualivision.settings import FrameSpec
from qualivision.video import READER_VERSION, VideoError, decoding_guard, probe, read_frames, sample
from qualivision.workers import in_processes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

    from qualivision.progress import Advance
    from qualivision.settings import DecodeSettings
    from qualivision.video import Frames

    Measured = dict[str, float]

FIGURES_VERSION = 3
"""Raise it when a file would give other figures than before."""
SPEC: Final = FrameSpec(count=32, height=224, width=224)

FILE: Final = (
    Figure("seconds", "s", "Duration, by frames and frame rate."),
    Figure("frame rate", "frames/s"),
    Figure("width", "px", "As it is shown."),
    Figure("height", "px", "As it is shown."),
    Figure("bits per pixel", "", "Size of the file by all pixels of all frames: how hard it was compressed."),
)
PICTURES: Final = (
    Figure("brightness", "grey levels", "Mean, 0 to 255."),
    Figure("contrast", "grey levels", "Standard deviation within a frame."),
    Figure("colourfulness", "", "Mean distance from grey, 0 to about 1."),
    Figure("sharpness", "grey levels", "Mean step from pixel to pixel, at 224 x 224."),
    Figure("noise", "grey levels", "Standard deviation of noise in the calmest parts of a frame (Immerkaer's mask)."),
    Figure("blockiness", "", "Steps at the borders of 8 x 8 fields, in which coders work, against others: 1 is none."),
    Figure("motion", "grey levels", "Mean change of a pixel between two of 32 frames."),
    Figure("flicker", "grey levels", "Mean change of a frame's brightness."),
    Figure("stillness", "", "Share of the pixels that do not change; all of them in a frame that stands still."),
)
_FIELD: Final = 8
_FRAMES_OF_GRID: Final = 4
_FLOOR: Final = 0.1  # grey levels: what is smoother than that has no grid to be seen
WORDS: Final = Figure("words", "", "In the prompt.")
SCORES: Final = tuple(Figure(dimension, "MOS", "As the champion scores it.", "score") for dimension in DIMENSIONS)
COLUMN_OF: Final = dict(zip(DIMENSIONS, PREDICTED_COLUMNS, strict=True))
UNSCORED: Final = Figure("not scored", "", "Share of the videos that could not be scored.", "unscored")
INPUTS: Final = (*FILE, WORDS, *PICTURES)
ALL: Final = (*INPUTS, *SCORES, UNSCORED)


class Album:
    """What is known of videos.

    Args:
        folder: where it is kept.
        limits: of decoding one video.
    """

    def __init__(self, folder: Path, limits: DecodeSettings) -> None:
        self._seen = Seen(folder / f"figures-{READER_VERSION}.{FIGURES_VERSION}.db")
        self._limits = limits

    def look(self, videos: Iterable[Path], *, advance: Advance) -> tuple[dict[Path, Measured], dict[Path, str]]:
        """The figures of `FILE` and `PICTURES` of each video, and why those that are missing are.

        A video that was looked at before, and has not changed, is not decoded again; what was found is kept at once,
        so a run that is stopped goes on where it was.
        """
        known = self._seen.find(sorted(set(videos)), lambda path: None)
        found: dict[Path, Measured] = {path: json.loads(text) for path, text in known.items() if text is not None}
        failed: dict[Path, str] = {}
        todo = [path for path, text in known.items() if text is None]
        advance(0, len(todo))
        try:
            jobs = [(path, self._limits.decoder) for path in todo]
            for path, measured in in_processes(_measure, jobs, guard=decoding_guard(self._limits)):
                if isinstance(measured, str):
                    failed[path] = measured
                else:
                    found[path] = measured
                    self._seen.remember({path: json.dumps(measured)})
                advance(len(found) - (len(known) - len(todo)) + len(failed), len(todo))
        except (VideoError, ExceptionGroup) as group:
            for err in leaves(group):
                if not isinstance(err, VideoError):
                    raise
                failed[err.path] = err.cause
        return found, failed


def words(prompt: str) -> int:
    """How many words a prompt has."""
    return len(prompt.split())


def _measure(path: Path, decoder: str) -> tuple[Path, Measured | str]:
    """What a worker does: the figures of a video, or why it has none."""
    assert decoder in ("pyav", "decord")
    try:
        info = probe(path)
        size = path.stat().st_size
        frames = read_frames(path, SPEC, decoder=decoder)  # type: ignore[arg-type]
        blockiness = grid(sample(path, _FRAMES_OF_GRID, decoder=decoder))  # type: ignore[arg-type]
    except VideoError as err:
        return path, err.cause
    except MemoryError:
        return path, "takes more memory than decode.memory_gb allows"
    except OSError as err:
        return path, f"can't be read: {err.strerror}"
    measured = {
        "width": float(info.width),
        "height": float(info.height),
        "bits per pixel": size * 8 / (info.frames * info.width * info.height),
    }
    if blockiness is not None:
        measured["blockiness"] = blockiness
    if info.fps:
        measured |= {"seconds": info.seconds, "frame rate": info.fps}
    import torch

    from qualivision.models.quality import frames_to_input
    from qualivision.models.statistics import frame_statistics

    with torch.inference_mode():
        return path, measured | picture_figures(frame_statistics(frames_to_input(frames))[0][0])


def grid(frames: Frames) -> float | None:
    """How far the borders of a coder's fields stand out of (T, H, W, 3) frames at their own size.

    After Wang, Bovik and Evans (ICIP 2000): steps from pixel to pixel at multiples of 8, divided by those elsewhere. A
    picture with no grid has 1, whatever else is in it; one that is too small for two fields has none.
    """
    import numpy as np

    if min(frames.shape[1:3]) < 2 * _FIELD:
        return None
    found = []
    for frame in frames:  # one by one: those of 8K would be gigabytes
        luma = frame.astype(np.float32) @ np.array((0.299, 0.587, 0.114), np.float32)
        for along in (0, 1):
            steps = np.abs(np.diff(luma, axis=along)).mean(axis=1 - along)
            at_borders = np.arange(len(steps)) % _FIELD == _FIELD - 1
            found.append((steps[at_borders].mean() + _FLOOR) / (steps[~at_borders].mean() + _FLOOR))
    return float(np.mean(found))


def picture_figures(statistics: Tensor) -> Measured:
    """The figures of `PICTURES`, all but the grid, from `frame_statistics` of one clip, (T, STATISTICS)."""
    values = statistics.double()
    return {name: float(of(values).mean()) for name, of in _PICTURE_FIGURES.items()}


def _energy(*places: int, scale: float = 255.0) -> Callable[[Tensor], Tensor]:
    """Logarithms of energies back on their own scale."""

    def figure(values: Tensor) -> Tensor:
        return values[:, list(places)].exp() * scale

    return figure


def _level(place: int, scale: float = 1.0) -> Callable[[Tensor], Tensor]:
    def figure(values: Tensor) -> Tensor:
        return values[:, place] * scale

    return figure


def _stillness(values: Tensor) -> Tensor:
    """All of a frame's pixels where it stands still; elsewhere those that do."""
    return values[:, _MOTION + 4].maximum(values[:, _STANDS_STILL])


# Where each lies among a frame's statistics (`models/statistics.py`); a test holds each to what it says.
_DETAIL = 23
_MOTION = 43
_STANDS_STILL = -2
_SIGMA = 255.0 * math.sqrt(math.pi / 2) / 6  # Immerkaer: from the mean of his mask to the deviation of the noise
_PICTURE_FIGURES: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "brightness": _level(0, 255.0),
    "contrast": _level(1, 255.0),
    "colourfulness": _level(7),
    "sharpness": _energy(_DETAIL, _DETAIL + 1),
    "noise": _energy(_DETAIL + 7, scale=_SIGMA),
    "motion": _energy(_MOTION),
    "flicker": _energy(_MOTION + 2),
    "stillness": _stillness,
}
