"""What a model's agreement is measured against: what the prompt alone predicts, and what raters agree on.

Owns the floor (`no_video_baseline`) and the ceiling (`noise_ceiling`). Knows no model and no file: prompt
embeddings come from `prompts.py`, the ratings table from `labels.ratings_path`.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qualivision.evaluation.metrics import MEAN, agreement
from qualivision.labels import DIMENSIONS, MOS_MAX, MOS_MIN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

PENALTIES: Final = tuple(float(penalty) for penalty in np.logspace(-1, 3, 13))
"""Ridge penalties to choose from: 0.1 to 1000, in steps of a third of a decade."""

NO_CEILING: Final = "not known, no single ratings"
"""What `ceiling_source` says where there is none."""

_FOLDS: Final = 5
_MIN_ROWS: Final = 3

Floats = NDArray[np.float64]


def no_video_baseline(
    train_embeddings: ArrayLike,
    train_mos: ArrayLike,
    train_prompts: Sequence[str],
    test_embeddings: ArrayLike,
) -> Floats:
    """Predict MOS from the prompt's embedding alone, by ridge regression: what a model has to beat.

    The penalty is chosen for each dimension by the squared error of a cross-validation whose folds share no
    prompt. With folds by row the same prompt, and so the same embedding, would stand on both sides, and the
    weakest penalty would win by learning prompts by heart. Embeddings are centred, not scaled: their
    directions carry the meaning, and a unit-length embedding is on one scale already. Deterministic.

    Args:
        train_embeddings: (N, D) one embedding per training clip.
        train_mos: (N, 5) MOS of the training clips, columns in the order of `DIMENSIONS`.
        train_prompts: N prompts of the training clips; clips of one prompt stay in one fold.
        test_embeddings: (M, D) one embedding per clip to predict.
    Returns:
        (M, 5) predicted MOS, clipped to [1, 5].
    Raises:
        ValueError: shapes that do not fit, values that are NaN or infinite, fewer than 2 training prompts.
    Source: ridge regression, Hoerl and Kennard, Technometrics 1970.
    """
    x, y = np.asarray(train_embeddings, dtype=np.float64), np.asarray(train_mos, dtype=np.float64)
    new = np.asarray(test_embeddings, dtype=np.float64)
    _check_training(x, y, train_prompts, new)
    choice = np.argmin(_fold_errors(x, y, train_prompts), axis=0)  # a penalty for each dimension
    paths = _ridge_path(x, y, new)
    return np.clip(paths[choice, :, np.arange(y.shape[1])].T, MOS_MIN, MOS_MAX)


def noise_ceiling(ratings: pd.DataFrame, dimensions: Sequence[str] = DIMENSIONS) -> dict[str, Any] | None:
    """How well any model can agree with the mean of k raters, from the single ratings.

    Two answers, each None where the table does not hold what it takes:

    `truth`: agreement (SROCC, PLCC) of the k-rater mean with the latent truth, where that is known (made
    data): what a model that knows the truth would reach.

    `raters`: from the single ratings alone. With r = `inter_rater`, the mean Pearson correlation over all
    pairs of raters, Spearman-Brown gives the `reliability` of a mean of k raters

        R = k r / (1 + (k - 1) r)

    the expected PLCC of one k-rater mean with that of k other raters. What is noise in the mean no model can
    predict, so a model's PLCC with it is at most `bound_PLCC` = sqrt(R) (the correction for attenuation, with
    a perfect model). `bound_SROCC` is the SROCC of two normal variables with that PLCC,
    6 / pi * asin(PLCC / 2): an approximation, since MOS are not normal. `raters` is None where r is not above
    0 or a column is constant. A column need not be one person: where raters change from clip to clip, how
    strict each is counts as noise, as it does in the MOS.

    Args:
        ratings: single ratings `<dimension>_1` .. `<dimension>_k` and, where it is known,
            `<dimension>_truth`; a row per clip. Rows with an empty cell of a dimension are left out of that
            dimension.
        dimensions: which to look for.
    Returns:
        dimension -> {"rows", "raters_per_clip", "truth", "raters"}, and under "mean" the mean of each number
        over the dimensions where all have it. None if the table has ratings of no dimension, or not of all.
    Source: Spearman, British Journal of Psychology 1910, and Brown, ibid.; Lord and Novick, "Statistical
        Theories of Mental Test Scores", 1968, chapters 3 and 4; PLCC to SROCC, Pearson 1907, in Kruskal, JASA
        1958.
    """
    found = {}
    for dimension in dimensions:
        singles = [column for column in ratings.columns if re.fullmatch(rf"{re.escape(dimension)}_[0-9]+", str(column))]
        if not singles:
            return None
        known = [*singles, *([f"{dimension}_truth"] if f"{dimension}_truth" in ratings else [])]
        cells = ratings[known].to_numpy(dtype=np.float64, na_value=np.nan)
        cells = cells[np.isfinite(cells).all(axis=1)]
        found[dimension] = _ceiling(cells[:, : len(singles)], cells[:, -1] if len(known) > len(singles) else None)
    return {
        **found,
        MEAN: {part: _mean_part([entry[part] for entry in found.values()]) for part in ("truth", "raters")},
    }


def ceiling_srocc(ceiling: dict[str, Any] | None, name: str) -> float | None:
    """The SROCC that no model should pass: of the truth where it is known, else estimated from raters."""
    if ceiling is None:
        return None
    if ceiling[name]["truth"] is not None:
        return ceiling[name]["truth"]["SROCC"]
    return None if ceiling[name]["raters"] is None else ceiling[name]["raters"]["bound_SROCC"]


def ceiling_source(ceiling: dict[str, Any] | None) -> str:
    """What the ceilings come from, in words."""
    if all(ceiling_srocc(ceiling, name) is None for name in DIMENSIONS):
        return NO_CEILING
    truths = [ceiling is not None and ceiling[name]["truth"] is not None for name in DIMENSIONS]
    if all(truths):
        return "raters' mean against the truth"
    return "truth where known, else single ratings" if any(truths) else "estimated from single ratings"


def _ceiling(singles: Floats, truth: Floats | None) -> dict[str, Any]:
    rows, raters = singles.shape
    entry: dict[str, Any] = {"rows": rows, "raters_per_clip": raters, "truth": None, "raters": None}
    if rows < _MIN_ROWS:
        return entry
    if truth is not None:
        reached = agreement(singles.mean(axis=1), truth)
        if reached.srocc is not None:
            entry["truth"] = {"SROCC": reached.srocc, "PLCC": reached.plcc}
    pairs = [agreement(singles[:, i], singles[:, j]).plcc for i, j in combinations(range(raters), 2)]
    known = [pair for pair in pairs if pair is not None]
    inter_rater = float(np.mean(known)) if known and len(known) == len(pairs) else 0.0
    if inter_rater > 0:
        reliability = raters * inter_rater / (1 + (raters - 1) * inter_rater)
        bound = float(np.sqrt(reliability))
        entry["raters"] = {
            "inter_rater": inter_rater,
            "reliability": reliability,
            "bound_PLCC": bound,
            "bound_SROCC": float(6 / np.pi * np.arcsin(bound / 2)),
        }
    return entry


def _mean_part(parts: list[dict[str, float] | None]) -> dict[str, float] | None:
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):  # a mean over fewer dimensions would be another quantity
        return None
    return {name: float(np.mean([part[name] for part in known])) for name in known[0]}


def _check_training(x: Floats, y: Floats, prompts: Sequence[str], new: Floats) -> None:
    if x.ndim != 2 or y.shape != (len(x), len(DIMENSIONS)) or len(prompts) != len(x):
        raise ValueError(
            f"need (N, D) embeddings, (N, {len(DIMENSIONS)}) MOS and N prompts of the training clips, "
            f"not {x.shape}, {y.shape} and {len(prompts)}"
        )
    if new.ndim != 2 or new.shape[1] != x.shape[1]:
        raise ValueError(f"embeddings to predict must be (M, {x.shape[1]}) as in training, not {new.shape}")
    for name, values in (("training embeddings", x), ("training MOS", y), ("test embeddings", new)):
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} values of the {name} are NaN or infinite")
    if len(set(prompts)) < 2:
        raise ValueError(f"cross-validation by prompt needs at least 2 training prompts, not {len(set(prompts))}")


def _fold_errors(x: Floats, y: Floats, prompts: Sequence[str]) -> Floats:
    """(penalties, 5) squared error summed over folds, none of which shares a prompt with the rest."""
    from sklearn.model_selection import GroupKFold

    # Shuffled: prompts next to each other in the alphabet resemble each other.
    folds = GroupKFold(n_splits=min(_FOLDS, len(set(prompts))), shuffle=True, random_state=0)
    errors = np.zeros((len(PENALTIES), y.shape[1]))
    for fit, held in folds.split(x, groups=list(prompts)):
        errors += ((_ridge_path(x[fit], y[fit], x[held]) - y[held]) ** 2).sum(axis=1)
    return errors


def _ridge_path(x: Floats, y: Floats, new: Floats) -> Floats:
    """Ridge predictions for every penalty at once: (N, D), (N, 5), (M, D) -> (penalties, M, 5)."""
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, new = x - x_mean, new - x_mean
    eigenvalues, vectors = np.linalg.eigh(x.T @ x)
    target = vectors.T @ (x.T @ (y - y_mean))  # (D, 5)
    projected = new @ vectors  # (M, D)
    # Rounding can push the eigenvalues of a direction without data below zero.
    shrunk = target / (np.maximum(eigenvalues, 0)[:, None] + np.asarray(PENALTIES)[:, None, None])
    return projected @ shrunk + y_mean
