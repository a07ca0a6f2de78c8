"""Agreement of predicted with rated MOS: SROCC, PLCC, KROCC, RMSE, VQualA, and their bootstrap intervals.

Owns the definitions of the five metrics, and the resampling of prompts. Knows no model and no file.
Also the names of the columns with predictions, and how a number is shown.
Contract: arrays in MOS units in, plain numbers out; a correlation that does not exist is None, never 0.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

METRICS: Final = ("SROCC", "PLCC", "KROCC", "RMSE", "VQualA")
"""Higher is better, except for RMSE (MOS units)."""
MEAN: Final = "mean"
"""The name under which the plain mean over the five dimensions is reported."""

PREDICTED_COLUMNS: Final = tuple(f"{dimension}_predicted" for dimension in DIMENSIONS)
"""What a model says of a clip, in a table of predictions; beside them stand the MOS columns."""

CONFIDENCE: Final = 0.95
"""Of the intervals in a report."""

_MIN_ROWS: Final = 3
_MIN_PROMPTS: Final = 2
_CELLS_AT_ONCE: Final = 2_000_000  # resamples x rows of one block: bounds memory at some 100 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """How one column of predictions agrees with its ratings. None: no correlation, a column is constant."""

    srocc: float | None
    plcc: float | None
    krocc: float | None
    rmse: float
    vquala: float | None
    rows: int

    def named(self) -> dict[str, float | None]:
        """The five numbers under the names in `METRICS`."""
        return dict(zip(METRICS, (self.srocc, self.plcc, self.krocc, self.rmse, self.vquala), strict=True))


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals over resampled prompts.

    Attributes:
        intervals: dimension (or "mean") -> metric -> (low, high), or None where no resample has the metric.
        left_out: dimension (or "mean") -> resamples left out of its correlations, because a column is
            constant in them. RMSE exists in every resample. "mean" leaves out what any dimension leaves out.
        resamples: how many were drawn.
        prompts: how many distinct prompts they were drawn from.
        confidence: the share of resamples between low and high.
    """

    intervals: dict[str, dict[str, tuple[float, float] | None]]
    left_out: dict[str, int]
    resamples: int
    prompts: int
    confidence: float


def agreement(predicted: ArrayLike, rated: ArrayLike) -> Agreement:
    """How well predictions agree with ratings, over the clips of one dimension.

    PLCC is the raw Pearson correlation: no logistic curve is fitted first, as some quality papers do (the fit
    would hide an error of scale that a user of the MOS sees). KROCC is tau-b, which allows for the ties that
    MOS of few raters have. VQualA is the mean of SROCC and PLCC.

    Args:
        predicted: (N,) predicted MOS, any finite numbers.
        rated: (N,) MOS, N of 3 or more.
    Returns:
        The agreement; RMSE in MOS units (lower is better), the rest in [-1, 1] (higher is better). Where
        either column is constant there is no correlation: SROCC, PLCC, KROCC and VQualA are None.
    Raises:
        ValueError: the shapes differ or are not (N,), fewer than 3 rows, a value that is NaN or infinite.
    Source: tau-b, Kendall, "The treatment of ties in ranking problems", Biometrika 1945; the mean of
        SROCC and PLCC is the score of the VQualA 2025 GenAI-Bench challenge.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(rated, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"predicted and rated must both be (N,), not {x.shape} and {y.shape}")
    _check_rows(x, y)
    rmse = float(np.sqrt(np.mean((x - y) ** 2)))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Agreement(None, None, None, rmse, None, len(x))
    from scipy.stats import kendalltau, rankdata

    srocc, plcc = _pearson(rankdata(x), rankdata(y)), _pearson(x, y)
    krocc = float(kendalltau(x, y, variant="b").statistic)
    vquala = None if srocc is None or plcc is None else (srocc + plcc) / 2
    return Agreement(srocc, plcc, krocc, rmse, vquala, len(x))


def bootstrap_over_prompts(
    predicted: ArrayLike,
    rated: ArrayLike,
    prompts: Sequence[Hashable],
    *,
    resamples: int,
    seed: int,
    confidence: float = CONFIDENCE,
) -> Bootstrap:
    """Intervals of the metrics, per dimension and for their mean, from resampling prompts with replacement.

    Clips of one prompt resemble each other, so rows are no independent draws: resampling rows would give
    intervals that are too narrow. A drawn prompt brings all of its rows. A resample is held as how often it
    has each row, and every metric is computed from those counts, which is exact: it equals the metric of the
    written-out resample.

    Args:
        predicted: (N, 5) predicted MOS, columns in the order of `DIMENSIONS`.
        rated: (N, 5) MOS.
        prompts: N prompts; equal ones are one prompt. The order of the rows does not matter.
        resamples: how many to draw, 1 or more.
        seed: of the draw; the same seed gives the same intervals.
        confidence: share of resamples inside an interval, between 0 and 1.
    Returns:
        (low, high) per dimension, and for the mean over the five dimensions, and metric.
    Raises:
        ValueError: shapes that do not fit, NaN or infinite values, fewer than 3 rows or 2 prompts, a missing
            prompt, `resamples` or `confidence` out of range.
    Source: cluster bootstrap, Davison and Hinkley, "Bootstrap Methods and their Application", 1997,
        section 3.8; percentile intervals, Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
        chapter 13.
    """
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"need resamples of 1 or more and 0 < confidence < 1, not {resamples} and {confidence}")
    values = resampled_metrics(predicted, rated, prompts, resamples=resamples, seed=seed)
    names = (*DIMENSIONS, MEAN)
    return Bootstrap(
        intervals={name: _intervals(values[i], confidence) for i, name in enumerate(names)},
        left_out={name: int(np.isnan(values[i, :, 0]).sum()) for i, name in enumerate(names)},
        resamples=resamples,
        prompts=len(set(prompts)),
        confidence=confidence,
    )


def resampled_metrics(
    predicted: ArrayLike, rated: ArrayLike, prompts: Sequence[Hashable], *, resamples: int, seed: int
) -> Floats:
    """The metrics in each resample of `bootstrap_over_prompts`.

    Predictions of two models for the same clips, in the same order, get the same resamples from the same seed: the
    difference of what this returns for them is a paired bootstrap.

    Returns:
        (6, resamples, 5): the dimensions and their mean, by `METRICS`; NaN where a column is constant in a resample.
    """
    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(rated, dtype=np.float64)
    if x.shape != y.shape or x.shape != (len(prompts), len(DIMENSIONS)):
        raise ValueError(
            f"predicted and rated must both be ({len(prompts)}, {len(DIMENSIONS)}), as many rows as prompts, "
            f"not {x.shape} and {y.shape}"
        )
    _check_rows(x, y)
    prompt_of_row, count = _prompt_numbers(prompts)
    columns = [_Column(x[:, i], y[:, i], prompt_of_row, count) for i in range(len(DIMENSIONS))]
    blocks = []
    for drawn in _draw(count, resamples=resamples, block=max(1, _CELLS_AT_ONCE // len(x)), seed=seed):
        weights = drawn[:, prompt_of_row].astype(np.float64)
        blocks.append(np.stack([column.metrics(drawn, weights) for column in columns]))
    values = np.concatenate(blocks, axis=1)  # (5, resamples, metrics)
    return np.concatenate([values, values.mean(axis=0, keepdims=True)])


class _Column:
    """One dimension, prepared so that a block of resamples is a handful of matrix products."""

    def __init__(self, x: Floats, y: Floats, prompt_of_row: NDArray[np.intp], prompts: int) -> None:
        self.x, self.y = _Ranked(x), _Ranked(y)
        centred_x, centred_y = x - x.mean(), y - y.mean()
        self.moments = np.stack(
            [centred_x, centred_y, centred_x**2, centred_y**2, centred_x * centred_y, (x - y) ** 2], axis=1
        )
        # +1 for a pair of rows in the same order on both sides, -1 for the opposite, 0 for a tie. All rows of
        # a prompt are drawn equally often, so the sum over pairs of rows is one over pairs of prompts: a far
        # smaller matrix.
        signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
        member = np.zeros((prompts, len(x)))
        member[prompt_of_row, np.arange(len(x))] = 1
        self.concordance = member @ signs @ member.T

    def metrics(self, drawn: NDArray[np.int64], weights: Floats) -> Floats:
        """How often R resamples drew prompts (R, P) and rows (R, N) -> metrics (R, 5), NaN for none."""
        rows = weights.sum(axis=1)
        rank_x, untied_x = self.x.in_resamples(weights, rows)
        rank_y, untied_y = self.y.in_resamples(weights, rows)
        sx, sy, sxx, syy, sxy, squares = (weights @ self.moments / rows[:, None]).T
        times = drawn.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            srocc = (weights * rank_x * rank_y).sum(axis=1) / np.sqrt(
                (weights * rank_x**2).sum(axis=1) * (weights * rank_y**2).sum(axis=1)
            )
            plcc = (sxy - sx * sy) / np.sqrt((sxx - sx**2) * (syy - sy**2))
            # Both count each pair of rows twice, once in each order.
            krocc = ((times @ self.concordance) * times).sum(axis=1) / np.sqrt(untied_x * untied_y)
        correlations = np.stack([srocc, plcc, krocc], axis=1)
        # A constant column has no untied pair: KROCC divides by an exact 0; PLCC may miss 0 by rounding.
        constant = ~np.isfinite(correlations).all(axis=1)
        correlations = np.where(constant[:, None], np.nan, np.clip(correlations, -1, 1))
        srocc, plcc, krocc = correlations.T
        return np.stack([srocc, plcc, krocc, np.sqrt(squares), (srocc + plcc) / 2], axis=1)


class _Ranked:
    """A column sorted once, so that its ranks in any resample follow from how often each row was drawn."""

    def __init__(self, values: Floats) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        self.value_of_row = np.empty(len(values), dtype=np.intp)
        self.value_of_row[self.order] = np.cumsum(np.isin(np.arange(len(values)), self.starts)) - 1

    def in_resamples(self, weights: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """Of R resamples: centred average ranks (R, N), and how many ordered pairs are not tied (R,)."""
        drawn = np.add.reduceat(weights[:, self.order], self.starts, axis=1)  # how often each distinct value
        # Copies of a value share the mean of the places that they fill, as in scipy.stats.rankdata.
        ranks = np.cumsum(drawn, axis=1) - (drawn - 1) / 2 - (rows[:, None] + 1) / 2
        return ranks[:, self.value_of_row], rows**2 - (drawn**2).sum(axis=1)


def shown(value: float | None) -> str:
    """A metric for people: three decimals, or a dash where it does not exist."""
    return "-" if value is None else f"{value:.3f}"


def _check_rows(x: Floats, y: Floats) -> None:
    bad_x, bad_y = int((~np.isfinite(x)).sum()), int((~np.isfinite(y)).sum())
    if bad_x or bad_y:
        raise ValueError(f"{bad_x} predicted and {bad_y} rated of {x.size} values are NaN or infinite")
    if len(x) < _MIN_ROWS:
        raise ValueError(f"agreement needs at least {_MIN_ROWS} rows, not {len(x)}")


def _pearson(x: Floats, y: Floats) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    # A spread so small that its square underflows is a constant column in all but name.
    return float(np.clip(x @ y / scale, -1.0, 1.0)) if scale > 0 else None


def _prompt_numbers(prompts: Sequence[Hashable]) -> tuple[NDArray[np.intp], int]:
    missing = sum(prompt is None or prompt != prompt for prompt in prompts)
    if missing:
        raise ValueError(f"{missing} of {len(prompts)} rows have no prompt")
    # Sorted, so that the order of the rows has no say in what is drawn.
    number = {prompt: i for i, prompt in enumerate(sorted(set(prompts), key=repr))}
    if len(number) < _MIN_PROMPTS:
        raise ValueError(
            f"resampling prompts needs at least {_MIN_PROMPTS} distinct ones, not {len(number)}: "
            "from one prompt nothing can be said about others"
        )
    return np.array([number[prompt] for prompt in prompts], dtype=np.intp), len(number)


def _draw(prompts: int, *, resamples: int, block: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each resample has each prompt: (up to `block`, P) at a time; each row sums to P."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, block):
        yield random.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(block, resamples - start))


def _intervals(values: Floats, confidence: float) -> dict[str, tuple[float, float] | None]:
    """(R, metrics), NaN where a resample has no such metric -> (low, high) of each metric."""
    found: dict[str, tuple[float, float] | None] = {}
    for metric, column in zip(METRICS, values.T, strict=True):
        known = column[~np.isnan(column)]
        if len(known):
            low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
            found[metric] = (float(low), float(high))
        else:
            found[metric] = None
    return found
