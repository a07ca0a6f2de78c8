"""The learning curve: how well a model judges new prompts after ever more of the ratings.

Owns which clips each point trains on and is judged on, and the file `curve.json`. Trains through `loop.Trainer`.

A point trains on a share of the training prompts, each share within the next. With `CHOOSING_CLIPS` val clips or more
it is judged on these. Fewer say nothing: then the training prompts are dealt to folds, a point is trained once a fold,
on a share of the others' prompts, and what the folds predict of their own clips is judged together. With a start, the
first point is the start itself, trained on no clip.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qualivision.cache import write_atomically
from qualivision.labels import DIMENSIONS
from qualivision.training.starting import CHOOSING_CLIPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qualivision.progress import Advance
    from qualivision.training.data import ClipSet

    Floats = np.ndarray[Any, np.dtype[np.float64]]
    Train = Callable[[ClipSet | None, ClipSet], Floats]
    """Trains on some clips (None: not at all) and scores others, (N, 5) MOS."""

CURVE = "curve.json"
FOLDS = 5


@dataclass(frozen=True)
class Point:
    """One point of the curve."""

    share: float
    """of the training prompts"""
    clips: int
    """trained on; of several folds the mean"""
    VQualA: float | None
    """mean over the dimensions; None where a column is constant"""
    MAE: float
    """mean absolute error over clips and dimensions, MOS"""


@dataclass(frozen=True)
class Fold:
    """What a point trains on (shares of it) and what it is judged on: rows of train, or None for all of val."""

    rows: list[int]
    judged: list[int] | None


def folds_of(train_prompts: Sequence[str], val_clips: int, *, seed: int) -> list[Fold]:
    """One fold that is judged on val, or up to five over the training prompts where val is too small."""
    prompts = _dealt(train_prompts, seed)
    if val_clips >= CHOOSING_CLIPS or len(prompts) < 2:
        return [Fold(list(range(len(train_prompts))), None)]
    count = min(FOLDS, len(prompts))
    folds = []
    for number in range(count):
        held = set(prompts[number::count])
        rows = [[row for row, prompt in enumerate(train_prompts) if (prompt in held) == own] for own in (False, True)]
        folds.append(Fold(*rows))
    return folds


def share_of(rows: Sequence[int], prompts: Sequence[str], share: float, *, seed: int) -> list[int]:
    """The rows of a share of their prompts, at least two clips; those of a smaller share are among them."""
    order = _dealt([prompts[row] for row in rows], seed)
    count = math.ceil(share * len(order) - 1e-9)
    while count < len(order) and sum(prompts[row] in order[:count] for row in rows) < 2:
        count += 1
    kept = set(order[:count])
    return [row for row in rows if prompts[row] in kept]


def _dealt(prompts: Sequence[str], seed: int) -> list[str]:
    """The distinct prompts, in a random order that does not depend on that of the rows."""
    distinct = np.array(sorted(set(prompts)), dtype=object)
    return list(np.random.default_rng(seed).permutation(distinct))


def make_curve(
    path: Path,
    train_set: ClipSet,
    val_set: ClipSet,
    shares: Sequence[float],
    train: Train,
    *,
    seed: int,
    identity: str,
    advance: Advance,
) -> None:
    """Write `curve.json`, whole after each point; points of the same identity that stand in it are not made again.

    Args:
        path: of the file.
        train_set, val_set: all of both splits.
        shares: of the training prompts; 0 for the start as it is.
        train: trains on clips and scores others.
        seed: of folds and shares.
        identity: names data and settings.
        advance: told of the progress, in trainings.
    """
    folds = folds_of(train_set.prompts, len(val_set), seed=seed)
    judged = [val_set if fold.judged is None else train_set.part(fold.judged) for fold in folds]
    rated = np.concatenate([clips.mos.numpy() for clips in judged]).astype(np.float64)
    points = {point.share: point for point in _made_before(path, identity)}
    total = len(shares) * len(folds)
    for number, share in enumerate(shares):
        if share not in points:
            found, counts = [], []
            for place, (fold, held) in enumerate(zip(folds, judged, strict=True)):
                advance(number * len(folds) + place, total)
                rows = share_of(fold.rows, train_set.prompts, share, seed=seed) if share else []
                found.append(train(train_set.part(rows) if rows else None, held))
                counts.append(len(rows))
            points[share] = _point(share, round(float(np.mean(counts))), np.concatenate(found), rated)
            values = {
                "identity": identity,
                "judged_on": "val" if folds[0].judged is None else f"train, in {len(folds)} folds",
                "judged_clips": len(rated),
                "judged_prompts": len({prompt for clips in judged for prompt in clips.prompts}),
                "points": [asdict(points[each]) for each in sorted(points)],
            }
            write_atomically(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
        advance((number + 1) * len(folds), total)


def _made_before(path: Path, identity: str) -> list[Point]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [Point(**point) for point in values["points"]] if values["identity"] == identity else []


def _point(share: float, clips: int, predicted: Floats, rated: Floats) -> Point:
    from qualivision.evaluation.metrics import agreement

    each = [agreement(predicted[:, column], rated[:, column]).vquala for column in range(len(DIMENSIONS))]
    known = [value for value in each if value is not None]
    score = round(float(np.mean(known)), 4) if len(known) == len(each) else None
    return Point(share, clips, score, round(float(np.abs(predicted - rated).mean()), 4))
