"""Whether a challenger may take the champion's place: both against the raters, on the same clips.

Owns the rules and how a verdict is shown. Contract: predictions of the same rows in, a `Verdict` out; knows no file, no
model and no registry.

The figure compared is VQualA, the mean of SROCC and PLCC. Differences come with an interval from a paired bootstrap
over prompts: in each resample both are judged on the same clips, so what makes clips hard for both cancels out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.evaluation.metrics import MEAN, METRICS, agreement, resampled_metrics, shown
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from qualivision.settings import PromoteSettings

    Floats = NDArray[np.float64]

FIGURE: Final = "VQualA"
OVERALL: Final = "Overall"
_DECIMALS: Final = 4


@dataclass(frozen=True)
class Difference:
    """A challenger against something else, in one dimension; None where a column is constant."""

    dimension: str
    challenger: float | None
    other: float | None
    difference: float | None
    low: float | None
    high: float | None
    """The bounds of the difference's interval."""

    def __str__(self) -> str:
        if self.difference is None or self.low is None or self.high is None:
            return "-"
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Verdict:
    """What came of a comparison, and what it was made of."""

    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass; empty where it did."""
    challenger: str
    champion: str | None
    """What it was compared with; None where there was no champion yet."""
    against_champion: tuple[Difference, ...]
    """The five dimensions and their mean; empty without a champion."""
    against_no_video: tuple[Difference, ...]
    clips: int
    prompts: int
    confidence: float
    data: str
    """Names the test rows: SHA-256 of the label table."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Verdict:
        """The inverse of `as_dict`. Raises TypeError or KeyError for anything else."""
        tables = {
            name: tuple(Difference(**row) for row in values[name]) for name in ("against_champion", "against_no_video")
        }
        return cls(**values | tables | {"reasons": tuple(values["reasons"])})

    @property
    def line(self) -> str:
        """The outcome in one line."""
        against = self.champion or "the no-video baseline alone, for there is no champion yet"
        outcome = "passes" if self.passed else "does not pass"
        return f"{self.challenger} {outcome} the gate, against {against}" + "".join(f"; {why}" for why in self.reasons)

    def as_text(self) -> str:
        """The table for a terminal."""
        head, rows = self._table()
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
        ]
        return "\n".join([self.line, "", *lines, "", self._note()])

    def as_markdown(self) -> str:
        """The same for MLflow's and Prefect's pages."""
        head, rows = self._table()
        lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
        lines.insert(1, f"|{' --- |' * len(head)}")
        return "\n".join([f"**{self.line}.**", "", *lines, "", self._note()])

    def _table(self) -> tuple[list[str], list[list[str]]]:
        head = [FIGURE, "challenger", *(["champion", "difference"] if self.champion else []), "no video", "gain"]
        rows = []
        for at, floor in enumerate(self.against_no_video):
            one = self.against_champion[at] if self.champion else None
            against = [shown(one.other), str(one)] if one else []
            rows.append([floor.dimension, shown(floor.challenger), *against, shown(floor.other), str(floor)])
        return head, rows

    def _note(self) -> str:
        return (
            f"{self.clips} test clips of {self.prompts} prompts, scored now; {FIGURE} is the mean of SROCC and PLCC; "
            f"{100 * self.confidence:g} % intervals by a paired bootstrap over prompts."
        )


def judge(
    challenger: Floats,
    champion: Floats | None,
    no_video: Floats,
    rated: Floats,
    prompts: Sequence[str],
    rules: PromoteSettings,
    *,
    names: tuple[str, str | None],
    data: str,
) -> Verdict:
    """Compare predictions of the same clips.

    A challenger passes if Overall is not below the champion's by more than `rules.margin`, no dimension is
    significantly worse (the whole interval of its difference lies below 0), and Overall beats the no-video baseline by
    more than `rules.min_gain_over_no_video`. Without a champion only the last counts.

    Args:
        challenger: (N, 5) its predictions, columns in the order of `DIMENSIONS`.
        champion: (N, 5) the champion's; None when there is none.
        no_video: (N, 5) what the prompt alone predicts.
        rated: (N, 5) MOS.
        prompts: N prompts.
        rules: the `promote` section.
        names: of challenger and champion.
        data: names the test rows.
    Raises:
        ValueError: shapes that do not fit, fewer than 3 rows or 2 prompts.
    """
    resamples = {"resamples": rules.resamples, "seed": rules.seed}
    held = resampled_metrics(challenger, rated, prompts, **resamples)

    def against(other: Floats) -> tuple[Difference, ...]:
        drawn = held - resampled_metrics(other, rated, prompts, **resamples)
        return _differences(challenger, other, rated, drawn[..., METRICS.index(FIGURE)], rules.confidence)

    floor = against(no_video)
    rows = against(champion) if champion is not None else ()
    reasons = [*_below_champion(rows, rules.margin), *_below_baseline(floor, rules.min_gain_over_no_video)]
    return Verdict(
        passed=not reasons,
        reasons=tuple(reasons),
        challenger=names[0],
        champion=names[1] if champion is not None else None,
        against_champion=rows,
        against_no_video=floor,
        clips=len(prompts),
        prompts=len(set(prompts)),
        confidence=rules.confidence,
        data=data,
    )


def _differences(
    ours: Floats, theirs: Floats, rated: Floats, drawn: Floats, confidence: float
) -> tuple[Difference, ...]:
    """Of (N, 5) twice, and (6, R) differences in resamples."""
    pairs = [
        (agreement(ours[:, i], rated[:, i]).vquala, agreement(theirs[:, i], rated[:, i]).vquala)
        for i in range(len(DIMENSIONS))
    ]
    left, right = ([pair[side] for pair in pairs] for side in (0, 1))
    pairs.append((_mean(left), _mean(right)))
    rows = []
    for name, (a, b), values in zip((*DIMENSIONS, MEAN), pairs, drawn, strict=True):
        known = values[~np.isnan(values)]
        low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2]) if len(known) else (None, None)
        difference = None if a is None or b is None else a - b
        rows.append(Difference(name, *map(_rounded, (a, b, difference, low, high))))
    return tuple(rows)


def _below_champion(rows: tuple[Difference, ...], margin: float) -> list[str]:
    reasons = []
    for row in rows:
        if row.dimension == MEAN:
            continue
        if row.challenger is None and row.other is not None:
            reasons.append(f"{row.dimension} is the same for every clip")
        elif row.high is not None and row.high < 0:
            reasons.append(f"{row.dimension} is significantly worse: {row}")
        elif row.dimension == OVERALL and row.difference is not None and row.difference < -margin:
            reasons.append(f"{row.dimension} is worse by more than promote.margin ({margin:g}): {row}")
    return reasons


def _below_baseline(rows: tuple[Difference, ...], gain: float) -> list[str]:
    overall = next(row for row in rows if row.dimension == OVERALL)
    if overall.challenger is None:
        return [f"{OVERALL} is the same for every clip"]
    found = overall.challenger - (overall.other or 0.0)  # a constant baseline predicts nothing
    if found > gain:
        return []
    return [
        f"{OVERALL} {shown(overall.challenger)} against {shown(overall.other)} without any video is a gain of "
        f"{found:.3f}, and promote.min_gain_over_no_video asks for more than {gain:g}"
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DECIMALS) + 0.0
