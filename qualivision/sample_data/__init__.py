"""The sample data set, made by code: clips with known faults, prompts, simulated raters. No download.

    content.py       what a prompt can ask for, and the sentences that ask for it
    pictures.py      scene pictures and subject cut-outs: drawn, or photos that installed packages ship
    rendering.py     camera and subject motion: a shot, and its frames
    degradations.py  the kinds of faults: how each is done, and how much of it can be seen
    ratings.py       the generators' characters, what is true of a clip, what three raters say
    clips.py         one clip: planned, rendered, encoded, measured
    writing.py       the whole data set: split by prompt, worker processes, label tables

Importing this is cheap; Pillow, PyAV, SciPy and pandas load when a data set is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIN_PROMPTS: Final = 6
PRESETS: Final = {"small": 16, "demo": 200, "large": 800}
"""How many prompts: to try that everything works; what `make demo` makes; what teaches most."""


class SampleDataError(QualiVisionError):
    """A data set that can't be made here: the place is taken, or a picture is missing."""


@dataclass(frozen=True)
class SampleSummary:
    """What was written: how many prompts and clips each split holds, and how large the videos are."""

    folder: Path
    prompts: dict[str, int]
    clips: dict[str, int]
    video_bytes: int

    def __str__(self) -> str:
        clips = ", ".join(f"{split} {count}" for split, count in self.clips.items())
        return f"{self.folder}: {sum(self.clips.values())} clips ({clips}), {self.video_bytes / 1e6:.0f} MB of video"


def make_sample_data(
    out: Path,
    *,
    prompts: int = PRESETS["demo"],
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SampleSummary:
    """Write a data set in the layout of `labels.py`: five clips a prompt, one per generator A to E.

    The same prompts and seed give the same bytes on the same package versions, however many workers there are.

    Args:
        out: the data folder; must be missing or empty. It appears only when all of it is there.
        prompts: how many prompts, 6 or more.
        seed: of everything that is drawn.
        workers: how many processes; None is one per CPU. Started by spawning, so a script needs a main guard.
        progress: called as `progress(done, total)` with the number of clips.
    Returns:
        What was written.
    Raises:
        ValueError: too few prompts or workers.
        SampleDataError: `out` is taken, or a package lacks a picture that it should ship.
    """
    if prompts < MIN_PROMPTS:
        raise ValueError(f"prompts is {prompts}; at least {MIN_PROMPTS} are needed for three splits")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 is needed")
    from qualivision.sample_data.writing import write_data_set

    return write_data_set(out, prompts=prompts, seed=seed, workers=workers, progress=progress)


__all__ = ["MIN_PROMPTS", "PRESETS", "SampleDataError", "SampleSummary", "make_sample_data"]
