"""What a table of scores says as a whole: how each dimension is distributed, and what could not be scored and why."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from qualivision.depth import UNLIKE
from qualivision.evaluation.metrics import PREDICTED_COLUMNS
from qualivision.labels import DIMENSIONS
from qualivision.score_table import read_table

if TYPE_CHECKING:
    from pathlib import Path

_QUANTILES: Final = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}
_CAUSES: Final = 20
_NAMED: Final = 3


@dataclass
class Failures:
    """Videos that can't be scored for one reason."""

    videos: int = 0
    first: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """A table as a whole.

    Attributes:
        rows: of the table.
        models: labels of the models that scored it; one, as we write tables.
        dimensions: of each dimension that has a score, mean and quantiles; MOS, 1 to 5.
        failures: by cause, the most frequent first.
        unfamiliar: how many scored clips are unlike what the model was trained on.
    """

    rows: int
    models: tuple[str, ...]
    dimensions: dict[str, dict[str, float]]
    failures: dict[str, Failures]
    unfamiliar: int

    @property
    def failed(self) -> int:
        """Rows without scores."""
        return sum(found.videos for found in self.failures.values())

    def as_markdown(self, title: str) -> str:
        """For a page that people look at."""
        lines = [
            f"## {title}",
            "",
            f"{self.rows} rows, {self.failed} without scores, by {', '.join(self.models) or '-'}",
            "",
        ]
        if self.unfamiliar:
            lines += [f"{self.unfamiliar} clips are {UNLIKE}: their absolute scores are not to be trusted.", ""]
        if self.dimensions:
            lines += [f"| MOS | mean | {' | '.join(_QUANTILES)} |", "|---" * (2 + len(_QUANTILES)) + "|"]
            for name, values in self.dimensions.items():
                lines.append(f"| {name} | {' | '.join(f'{value:.2f}' for value in values.values())} |")
            lines.append("")
        if self.failures:
            lines += ["| can't be scored | videos | such as |", "|---|---|---|"]
            shown = list(self.failures.items())
            for cause, found in shown[:_CAUSES]:
                lines.append(f"| {_cell(cause)} | {found.videos} | {_cell(', '.join(found.first))} |")
            if more := shown[_CAUSES:]:
                lines.append(f"| {len(more)} other causes | {sum(found.videos for _, found in more)} | |")
        return "\n".join(lines).rstrip() + "\n"


def summarise(table: Path) -> Summary:
    """Read a finished table. In memory are its scores, no rows.

    Raises:
        ScoreTableError: no table of scores.
    """
    scores = {name: array("d") for name in DIMENSIONS}
    models: Counter[str] = Counter()
    failures: dict[str, Failures] = {}
    rows = unfamiliar = 0
    for row in read_table(table):
        rows += 1
        models[row["model"]] += 1
        if row["error"]:
            found = failures.setdefault(row["error"], Failures())
            found.videos += 1
            if len(found.first) < _NAMED:
                found.first.append(row["video_name"])
            continue
        unfamiliar += bool(row["warning"])
        for column, name in zip(PREDICTED_COLUMNS, DIMENSIONS, strict=True):
            scores[name].append(row[column])
    dimensions = {name: _distribution(values) for name, values in scores.items() if values}
    ordered = dict(sorted(failures.items(), key=lambda item: (-item[1].videos, item[0])))
    return Summary(rows, tuple(models), dimensions, ordered, unfamiliar)


def _distribution(values: array[float]) -> dict[str, float]:
    import numpy as np

    found = np.frombuffer(values)
    quantiles = np.quantile(found, list(_QUANTILES.values()))
    return {"mean": float(found.mean())} | dict(zip(_QUANTILES, map(float, quantiles), strict=True))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
