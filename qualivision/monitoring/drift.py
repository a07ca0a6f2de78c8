"""Two windows of clips compared, figure by figure: what differs much, and by more than chance.

Pure: tables in, changes out; nothing is read, decoded or written here.

The distance of a figure is the Kolmogorov-Smirnov statistic, the largest gap between the two cumulative distributions:
0 where they are the same, 1 where they do not overlap. How far chance alone takes it is found by permuting which window
a prompt belongs to, with all its clips: clips of one prompt are alike, so five of them say less than five of five
prompts, and a p-value that takes them for independent finds a drift where there is none. Over all figures the p-values
are corrected for the false discovery rate (Benjamini and Hochberg, 1995).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from qualivision.settings import MonitorSettings

    Floats = NDArray[np.float64]

GROUP: Final = "group"
"""The column that says which clips belong together: those of one prompt."""
PERMUTATIONS: Final = 9_999
"""The smallest p-value is 1 in 10,000, which is significant among 100 figures at 0.01."""
CELLS_AT_ONCE: Final = 4_000_000
"""Clips times permutations that are held in memory."""
_QUANTILES: Final = (0.1, 0.5, 0.9)
_TENTH: Final = 1.2816
"""Standard deviations from the middle of a normal distribution to its outer tenths."""
_CROSSES: Final = 0.5
"""From this part of the larger gap on, the gap on the other side counts."""
_MOST: Final = 5.0
"""Deviations beyond which a clip counts as no farther away: one absurd figure shall not decide alone."""

Kind = Literal["input", "prompts", "score", "unscored"]


@dataclass(frozen=True)
class Figure:
    """Something that every clip has a number for.

    Attributes:
        name: also the column's.
        unit: of the numbers; empty where there is none.
        means: what it is, for people.
        kind: an input's, a score's; `unscored` is 0 or 1; `prompts` are told apart as a whole and have no numbers.
    """

    name: str
    unit: str = ""
    means: str = ""
    kind: Kind = "input"


@dataclass(frozen=True)
class Side:
    """A figure in one window: clips that have it; tenth, half and nine tenths of them lie below these values.

    Of `unscored`, `middle` is the share of ones.
    """

    count: int
    low: float | None = None
    middle: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Change:
    """What became of one figure.

    Attributes:
        distance: Kolmogorov-Smirnov, 0 to 1; of prompts the AUC, 0.5 where they are alike; of `unscored` the difference
            of the shares; None where it could not be compared.
        chance: that distance which chance alone passes as seldom as `significance` says, in this figure alone.
        p: that chance alone makes it so large; corrected over all figures once `settled`.
        way: in which way the current window differs: lower, higher, more varied, more alike; of another kind.
        drifted: both large and significant.
        note: why it could not be compared: a window has none or too few of it.
    """

    figure: Figure
    reference: Side
    current: Side
    distance: float | None = None
    chance: float | None = None
    p: float | None = None
    way: str = ""
    drifted: bool = False
    note: str = ""


@dataclass(frozen=True)
class Unusual:
    """A clip that is far from the reference, and in what most; `deviations` are of the middle of the reference."""

    video_name: str
    deviations: float
    figure: Figure
    value: float


def compare(
    reference: pd.DataFrame, current: pd.DataFrame, figures: Iterable[Figure], rules: MonitorSettings
) -> list[Change]:
    """Compare the windows in each figure; not settled yet.

    Args:
        reference: a row per clip: a column per figure (NaN where a clip has no such number), and `GROUP`.
        current: the same.
        figures: which columns.
        rules: how small a window is too small, and the seed of the permutations.
    """
    return [_compared(figure, reference, current, rules) for figure in figures]


def settle(changes: Sequence[Change], rules: MonitorSettings) -> list[Change]:
    """Correct the p-values over all figures, and say what has drifted."""
    from scipy.stats import false_discovery_control

    compared = [change.p for change in changes if change.p is not None]
    corrected = iter(false_discovery_control(compared).tolist() if compared else ())
    large = {"prompts": rules.auc, "unscored": rules.unscored}
    settled = []
    for change in changes:
        if change.p is None or change.distance is None:
            settled.append(change)
            continue
        p = next(corrected)
        is_large = change.distance >= large.get(change.figure.kind, rules.distance)
        settled.append(replace(change, p=p, drifted=is_large and p <= rules.significance))
    return settled


def held_against_chance(change: Change, found: float, by_chance: Floats, rules: MonitorSettings) -> Change:
    """A change with its distance, and how that stands to what permutations of the same clips give."""
    p = (1 + int((by_chance >= found - 1e-9).sum())) / (1 + len(by_chance))
    chance = float(np.quantile(by_chance, 1 - rules.significance))
    return replace(change, distance=found, chance=chance, p=p)


def enough(groups: Sequence[str], rules: MonitorSettings) -> bool:
    """Whether so many clips of such prompts say anything."""
    return len(groups) >= rules.min_clips and len(set(groups)) >= rules.min_prompts


def distance(
    values: Floats, is_current: NDArray[np.bool_], groups: NDArray[np.object_], *, permutations: int, seed: int
) -> tuple[float, Floats]:
    """The Kolmogorov-Smirnov distance of two windows, and those that chance gives.

    Args:
        values: (N,) of the clips of both windows, finite.
        is_current: (N,) which window each is of; both have some.
        groups: (N,) its prompt. One that is in both windows counts as two.
        permutations: how many times the prompts are dealt out anew.
        seed: of these.
    Returns:
        The distance, and (permutations,) distances.
    """
    order = np.argsort(values, kind="stable")
    lasts = np.append(np.diff(values[order]) > 0, True)  # tied values enter both distributions at once
    named = np.array([f"{now:d}{group}" for now, group in zip(is_current, groups, strict=True)], dtype=object)
    units, unit = np.unique(named.astype(str), return_inverse=True)
    is_current_unit = np.array([name[0] == "1" for name in units])
    observed = _gaps(is_current_unit[None, unit[order]], lasts)[0]
    random = np.random.default_rng(seed)
    chunk = max(1, CELLS_AT_ONCE // len(values))
    by_chance = []
    for start in range(0, permutations, chunk):
        dealt = np.tile(is_current_unit, (min(chunk, permutations - start), 1))
        by_chance.append(_gaps(random.permuted(dealt, axis=1)[:, unit[order]], lasts))
    return float(observed), np.concatenate(by_chance)


def unusual(reference: pd.DataFrame, current: pd.DataFrame, figures: Sequence[Figure], *, count: int) -> list[Unusual]:
    """The clips of the current window that are farthest from the reference, the farthest first.

    Farness is the root mean square, over the figures that a clip has, of its deviation from the reference's median: in
    standard deviations as the tenths on that side of it give them, for many figures are skewed; each at most 5.

    Args:
        reference: as `compare` takes it.
        current: the same, with `video_name`.
        figures: which columns count.
        count: at most so many.
    """
    columns = [figure for figure in figures if reference[figure.name].notna().any()]
    if not columns or current.empty:
        return []
    names = [figure.name for figure in columns]
    known, values = reference[names].to_numpy(np.float64), current[names].to_numpy(np.float64)
    low, middle, high = np.nanquantile(known, _QUANTILES, axis=0)
    deviation = np.where(values > middle, high - middle, middle - low) / _TENTH
    deviation = np.where(deviation > 0, deviation, np.nanstd(known, axis=0))
    apart = np.abs(values - middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.where(apart == 0, 0.0, np.minimum(apart / deviation, _MOST))
    measured = ~np.isnan(apart)
    far = np.sqrt(np.nansum(apart**2, axis=1) / np.maximum(measured.sum(axis=1), 1))
    found = []
    for row in np.argsort(-far, kind="stable")[:count]:
        if far[row] == 0:
            break
        most = int(np.nanargmax(apart[row]))
        name = str(current["video_name"].iloc[row])
        found.append(Unusual(name, float(far[row]), columns[most], float(values[row, most])))
    return found


def _compared(figure: Figure, reference: pd.DataFrame, current: pd.DataFrame, rules: MonitorSettings) -> Change:
    windows = [window[[figure.name, GROUP]].dropna() for window in (reference, current)]
    sides = [_side(figure, window[figure.name].to_numpy(np.float64)) for window in windows]
    change = Change(figure, sides[0], sides[1])
    for window, name in zip(windows, ("reference", "current"), strict=True):
        if not enough(window[GROUP].tolist(), rules):
            return replace(change, note=f"too few {name}" if len(window) else f"none {name}")
    values = np.concatenate([window[figure.name].to_numpy(np.float64) for window in windows])
    is_current = np.repeat([False, True], [len(window) for window in windows])
    groups = np.concatenate([window[GROUP].to_numpy(dtype=object) for window in windows])
    found, by_chance = distance(values, is_current, groups, permutations=PERMUTATIONS, seed=rules.seed)
    if figure.kind == "unscored":
        found = max(0.0, values[is_current].mean() - values[~is_current].mean())  # fewer than before is no harm
        change = replace(change, way="more")
    else:
        change = replace(change, way=_way(*(window[figure.name].to_numpy(np.float64) for window in windows)))
    return held_against_chance(change, found, by_chance, rules)


def _gaps(is_current: NDArray[np.bool_], lasts: NDArray[np.bool_]) -> Floats:
    """The distance of each row: clips in the order of their values, and which window each is in."""
    below = np.cumsum(is_current, axis=1, dtype=np.int32)
    current = below[:, -1:]
    place = np.arange(1, is_current.shape[1] + 1, dtype=np.int32)
    gaps = np.abs(below / current - (place - below) / (is_current.shape[1] - current))
    largest: Floats = gaps[:, lasts].max(axis=1)
    return largest


def _way(reference: Floats, current: Floats) -> str:
    """In which way a figure differs.

    Where the distributions cross, so that the gap is large on both sides, it is their width that differs.
    """
    places = np.unique(np.concatenate([reference, current]))
    below = [np.searchsorted(np.sort(values), places, side="right") / len(values) for values in (reference, current)]
    gaps = below[1] - below[0]
    lower, higher = gaps.max(), -gaps.min()
    if min(lower, higher) < _CROSSES * max(lower, higher):
        return "lower" if lower > higher else "higher"
    if lower == higher == 0:
        return "as before"
    # The tails: where the current window has more below the low values first, it is the wider one.
    return "more varied" if gaps.argmax() < gaps.argmin() else "more alike"


def _side(figure: Figure, values: Floats) -> Side:
    if not len(values):
        return Side(0)
    if figure.kind == "unscored":
        return Side(len(values), middle=float(values.mean()))
    low, middle, high = (float(value) for value in np.quantile(values, _QUANTILES))
    return Side(len(values), low, middle, high)
