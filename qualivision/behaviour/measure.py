"""Clean clips, their degraded copies and other clips' prompts, all scored by one model.

Owns which scores are asked for. Clips are decoded, degraded and resized in guarded worker processes, a job for each
clip and kind; the model runs in this one. What the scores say is `report.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from zlib import crc32

import numpy as np

from qualivision.behaviour.degradations import KINDS, degrade
from qualivision.errors import leaves
from qualivision.labels import DIMENSIONS, prompt_key
from qualivision.video import VideoError, decoding_guard, distinct_frames, resize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt

    from qualivision.behaviour.folder import Clip
    from qualivision.scoring import Scorer, Scores
    from qualivision.settings import DecodeSettings, FrameSpec
    from qualivision.video import Clip as Shown
    from qualivision.video import Frames

    Floats = npt.NDArray[np.float64]

NO_PROMPT: Final = "A video"
"""What a clip without a prompt is scored against; its Alignment then says nothing, and is left out."""
SEVERITIES: Final = 5
MAX_SIDE_PX: Final = 640
"""Of the frames that are degraded."""
_DECIMALS: Final = 4  # of a score: what differs by less is the same, and no order


@dataclass
class Measured:
    """What a model said of one clip; MOS units, in the order of `DIMENSIONS`.

    Attributes:
        clean: (5,) scores of the clip as it is, against its own prompt.
        degraded: by kind, (S, 5) scores at rising severity.
        others: (P, 5) scores of the clip as it is against the prompts of other clips; None where it has no prompt.
    """

    clip: Clip
    clean: Floats
    others: Floats | None
    degraded: dict[str, Floats] = field(default_factory=dict)

    def falls(self, kind: str) -> Floats:
        """(S, 5): by how much each score is below that of the clean clip, at rising severity."""
        return self.clean - self.degraded[kind]


@dataclass(frozen=True)
class Measurement:
    """All that was measured.

    Attributes:
        model: what scored, by its name.
        kinds: the degradations that were tried.
        severities: (S,) from 0.2 to 1.
        skipped: clips that could not be read, with the cause.
    """

    model: str
    kinds: tuple[str, ...]
    severities: tuple[float, ...]
    clips: tuple[Measured, ...]
    skipped: dict[str, str]


def severities(steps: int) -> tuple[float, ...]:
    """So many severities, 2 to 5, evenly up to 1."""
    return tuple((step + 1) / steps for step in range(steps))


def measure(
    scorer: Scorer,
    clips: Sequence[Clip],
    limits: DecodeSettings,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    steps: int = SEVERITIES,
    workers: int | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Measurement:
    """Score clips as they are and degraded, and against each other's prompts.

    Args:
        scorer: the model.
        clips: clean clips, with different names.
        limits: what decoding and degrading one of them may take.
        kinds: names in `KINDS`.
        steps: severities of each kind, 2 to 5.
        workers: processes; by default one a core.
        advance: told how many scores there are, of how many.
    Returns:
        The clips in their order; one that can't be read is skipped.
    """
    order = severities(steps)
    by_name = {clip.name: clip for clip in clips}
    by_path = {clip.path: clip.name for clip in clips}
    skipped: dict[str, str] = {}

    def each(work: Callable[..., Any], jobs: list[tuple[Any, ...]]) -> Iterator[Any]:
        from qualivision.workers import in_processes

        try:
            yield from in_processes(work, jobs, workers=workers, guard=decoding_guard(limits))
        except* VideoError as group:
            skipped.update({by_path[err.path]: err.cause for err in leaves(group) if isinstance(err, VideoError)})

    total = len(clips) * (1 + len(kinds) * steps)
    found: dict[str, Measured] = {}
    jobs = [(clip.path, clip.name, scorer.specs, limits.decoder) for clip in clips]
    for name, shown in each(_clean, jobs):
        found[name] = _measure_clean(scorer, by_name[name], clips, shown)
        advance(len(found), total)
    done, total = len(found), len(found) * (1 + len(kinds) * steps)
    worse = [(*job, kind, order) for job in jobs if job[1] in found for kind in kinds]
    for name, kind, degraded in each(_degraded, worse):
        prompt = by_name[name].prompt or NO_PROMPT
        found[name].degraded[kind] = np.stack([_values(scorer.judge([(name, prompt, copy)])[0]) for copy in degraded])
        done += steps
        advance(done, total)
    measured = tuple(found[clip.name] for clip in clips if clip.name in found and clip.name not in skipped)
    return Measurement(scorer.name, tuple(kinds), order, measured, skipped)


def _measure_clean(scorer: Scorer, clip: Clip, clips: Sequence[Clip], shown: Shown) -> Measured:
    if clip.prompt is None:
        return Measured(clip, _values(scorer.judge([(clip.name, NO_PROMPT, shown)])[0]), None)
    distinct = {prompt_key(other.prompt): other.prompt for other in reversed(clips) if other.prompt is not None}
    distinct.pop(prompt_key(clip.prompt))
    own, *others = scorer.judge_prompts(clip.name, [clip.prompt, *distinct.values()], shown)
    return Measured(clip, _values(own), np.array([_values(other) for other in others]).reshape(-1, len(DIMENSIONS)))


def _values(scores: Scores) -> Floats:
    return np.round([scores[dimension] for dimension in DIMENSIONS], _DECIMALS)


# --- in a worker -----------------------------------------------------------------------------------------------------


def _clean(path: Path, name: str, specs: Sequence[FrameSpec], decoder: str) -> tuple[str, Shown]:
    """What a model with `specs` reads of a clip."""
    (shown,) = _read(path, specs, decoder, lambda frames: [frames])
    return name, shown


def _degraded(
    path: Path, name: str, specs: Sequence[FrameSpec], decoder: str, kind: str, order: Sequence[float]
) -> tuple[str, str, list[Shown]]:
    """The same of the degraded clip, at each severity."""
    seed = crc32(name.encode())

    def made(frames: Frames) -> list[Frames]:
        return [degrade(frames, kind, severity, seed=seed) for severity in order]

    return name, kind, _read(path, specs, decoder, made)


def _read(path: Path, specs: Sequence[FrameSpec], decoder: str, made: Callable[[Frames], list[Frames]]) -> list[Shown]:
    """What a model with `specs` reads of each copy that is made of a clip's frames.

    What a short clip shows twice is copied once, and so is what specs of one count of frames read.
    """
    assert decoder in ("pyav", "decord")
    found: dict[FrameSpec, list[Frames]] = {}
    try:
        for count in dict.fromkeys(spec.count for spec in specs):
            frames, places = distinct_frames(path, count, max_side_px=MAX_SIDE_PX, decoder=decoder)  # type: ignore[arg-type]
            copies = made(frames)
            for spec in specs:
                if spec.count == count:
                    found[spec] = [resize(copy, spec.height, spec.width)[places] for copy in copies]
    except MemoryError as err:
        raise VideoError(path, "takes more memory than decode.memory_gb allows") from err
    return list(zip(*(found[spec] for spec in specs), strict=True))
