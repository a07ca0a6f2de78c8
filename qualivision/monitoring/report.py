"""What a look at the windows came to: in one line, as a table, as JSON, as Markdown and as a page.

Owns the words, and the rule when a retraining is due. Compares nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

from qualivision import markdown, pages

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from qualivision.monitoring.drift import Change, Side, Unusual
    from qualivision.settings import MonitorSettings

    Floats = NDArray[np.float64]

NAMED: Final = 4
"""Drifted figures in the one line; the rest are counted."""
_HEAD: Final = ("", "drift", "reference", "current", "distance", "by chance", "p")
_HOW: Final = (
    "Median, and in brackets what a tenth and nine tenths of the clips lie below. Distance: Kolmogorov-Smirnov, 0 (the "
    "same) to 1 (no overlap); of prompts the AUC with which they are told apart. By chance: the distance that equal "
    "windows pass {significance:.2g} of the time. p: that chance makes it so large, corrected over all figures."
)
MENDS: Final = (
    "A retraining learns from ratings: without new ones it gives the same model, and says so. Have clips like these "
    "rated, and bring them in with `qualivision ingest`. It does not mend videos that can't be scored."
)


@dataclass(frozen=True)
class Report:
    """The windows, and what became of each figure.

    Attributes:
        champion: whose scores they are, `models:/NAME/VERSION`.
        when: in UTC.
        clips: in the reference and in the current window.
        prompts: different ones, in each.
        changes: settled; none where a window is too small.
        unusual: clips of the current window, the farthest from the reference first, by what has drifted.
        notes: what was left out, and why.
        rules: the `monitor` section.
        values: of each drifted figure, in the reference and in the current window: for the picture.
    """

    champion: str
    when: str
    clips: tuple[int, int]
    prompts: tuple[int, int]
    changes: tuple[Change, ...]
    unusual: tuple[Unusual, ...]
    notes: tuple[str, ...]
    rules: MonitorSettings
    values: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)

    @property
    def drifted(self) -> list[Change]:
        """What has drifted, the farthest first."""
        found = [change for change in self.changes if change.drifted]
        return sorted(found, key=lambda change: -(change.distance or 0.0))

    @property
    def named(self) -> list[str]:
        """What of the inputs and scores has drifted, and in which way: "sharpness lower"."""
        return [f"{change.figure.name} {change.way}" for change in self.drifted if change.figure.kind != "unscored"]

    @property
    def due(self) -> bool:
        """Whether the drift passes what opens a retraining. Videos that can't be scored never count."""
        kinds = [change.figure.kind for change in self.drifted]
        inputs = sum(kind in ("input", "prompts") for kind in kinds)
        return kinds.count("score") >= self.rules.open_scores or inputs >= self.rules.open_inputs

    @property
    def line(self) -> str:
        """The verdict in one line."""
        (before, now), (_, prompts) = self.clips, self.prompts
        if not self.changes:
            wanted = f"{self.rules.min_clips} clips of {self.rules.min_prompts} prompts"
            which = "current window" if not _fits(now, prompts, self.rules) else "reference"
            count, of = (now, prompts) if which == "current window" else (before, self.prompts[0])
            small = f"too small for a verdict: the {which} has {count} clips of {of} prompts, and {wanted} are needed"
            return "; ".join((small, *self.notes))
        against = f"{now} clips against {before} of the reference"
        if not self.drifted:
            compared = sum(change.p is not None for change in self.changes)
            return f"no drift: {against}, in {compared} figures"
        first = "; ".join(phrase(change) for change in self.drifted[:NAMED])
        more = f"; {len(self.drifted) - NAMED} more" if len(self.drifted) > NAMED else ""
        if not self.named:
            return f"drift that no retraining mends: {first} ({against})"
        verdict = "a retraining is due" if self.due else "not enough to open a retraining"
        return f"drift, {verdict}: {first}{more} ({against})"

    def as_text(self) -> str:
        """For a terminal."""
        lines = [*self.notes] if self.changes else []
        if self.changes:
            rows = [_HEAD, *_rows(self.changes)]
            widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
            lines += ["", f"against {self.champion}'s test clips", ""]
            for row in rows:
                words = (cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True))
                cells = (cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True))
                lines.append("  ".join((*words, *cells)))
        if self.drifted:
            lines += ["", *(phrase(change) for change in self.drifted), "", *wrap(MENDS, 110)]
            lines += [f"  {_unusual(clip)}" for clip in self.unusual]
        return "\n".join([*lines, "", f"monitor: {self.line}"]).lstrip("\n")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "champion": self.champion,
            "when": self.when,
            "line": self.line,
            "verdict": "too small" if not self.changes else "drift" if self.drifted else "no drift",
            "retraining_due": self.due,
            "drifted": [phrase(change) for change in self.drifted],
            "clips": dict(zip(("reference", "current"), self.clips, strict=True)),
            "prompts": dict(zip(("reference", "current"), self.prompts, strict=True)),
            "figures": [_as_dict(change) for change in self.changes],
            "unusual": [
                {
                    "video_name": clip.video_name,
                    "deviations": round(clip.deviations, 3),
                    "most": clip.figure.name,
                    "value": round(clip.value, 6),
                }
                for clip in self.unusual
            ],
            "notes": list(self.notes),
            "rules": self.rules.model_dump(mode="json"),
        }

    def as_markdown(self, png: bytes | None) -> str:
        """For Prefect's UI; with the picture of the drift, if there is one."""
        parts = [f"**{_escaped(self.line)}**"]
        if png is not None:
            parts.append(markdown.picture(png, "each drifted figure, reference against current"))
        if self.changes:
            parts.append(markdown.table(_HEAD, (map(_escaped, row) for row in _rows(self.changes))))
        if self.drifted:
            parts += [MENDS, "\n".join(f"- {_escaped(_unusual(clip))}" for clip in self.unusual)]
        parts.append("\n".join(f"- {_escaped(note)}" for note in self.notes))
        return "\n\n".join(part for part in parts if part) + "\n"

    def as_html(self, png: bytes | None) -> str:
        """The page; with the picture of the drift, if there is one."""
        facts = [self.line, f"Held against {self.champion}'s test clips, {self.when}.", *self.notes]
        return pages.page("Drift of inputs and scores", facts, self._sections(png))

    def _sections(self, png: bytes | None) -> Iterator[str]:
        if png is not None:
            drawn = pages.picture(png, "; ".join(phrase(change) for change in self.drifted))
            yield pages.section("What has drifted", "Dashed: the medians.", drawn)
        if self.changes:
            how = _HOW.format(significance=self.rules.significance)
            yield pages.section("Figures", how, pages.table(_HEAD, _rows(self.changes)))
        if self.unusual:
            rows = [
                (clip.video_name, f"{clip.deviations:.2f}", f"{clip.figure.name} {_with_unit(clip)}")
                for clip in self.unusual
            ]
            table = pages.table(("", "deviations", "farthest in"), rows)
            yield pages.section("The clips farthest from the reference", MENDS, table)
        means = [(f"{change.figure.name}: {change.figure.means}",) for change in self.changes if change.figure.means]
        if means:
            yield pages.section("What the figures are", "", pages.table(("",), means))


def phrase(change: Change) -> str:
    """What became of a figure, in words: "sharpness: lower (median 0.31 -> 0.12 grey levels)"."""
    figure, before, now = change.figure, change.reference, change.current
    if figure.kind == "prompts":
        how = f"told apart with an AUC of {change.distance:.2f}"
    elif figure.kind == "unscored":
        how = f"{before.middle:.1%} -> {now.middle:.1%}"
    elif change.way in ("lower", "higher") and _moved(before, now):
        how = f"median {number(before.middle)} -> {number(now.middle)}{_unit(figure.unit)}"
    else:
        how = f"most {number(before.low)} to {number(before.high)} -> {number(now.low)} to {number(now.high)}"
        how += _unit(figure.unit)
    return f"{figure.name}: {change.way} ({how})"


def _moved(before: Side, now: Side) -> bool:
    """Whether the medians tell it: a figure may be higher in its tail alone."""
    if None in (before.middle, now.middle, before.low, before.high):
        return False
    return abs(now.middle - before.middle) >= 0.1 * (before.high - before.low)  # type: ignore[operator]


def number(value: float | None) -> str:
    """A figure with three digits, or all of a large one."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _fits(clips: int, prompts: int, rules: MonitorSettings) -> bool:
    return clips >= rules.min_clips and prompts >= rules.min_prompts


def _rows(changes: Sequence[Change]) -> Iterator[tuple[str, ...]]:
    for change in changes:
        yield (
            change.figure.name + (f" ({change.figure.unit})" if change.figure.unit else ""),
            change.note or (change.way if change.drifted else ""),
            _spread(change, change.reference),
            _spread(change, change.current),
            "-" if change.distance is None else f"{change.distance:.2f}",
            "-" if change.chance is None else f"{change.chance:.2f}",
            "-" if change.p is None else f"{change.p:.2g}",
        )


def _spread(change: Change, side: Side) -> str:
    if change.figure.kind == "prompts":
        return f"{side.count} different"
    if side.middle is None:
        return "-"
    if change.figure.kind == "unscored":
        return f"{side.middle:.1%}"
    return f"{number(side.middle)} [{number(side.low)}, {number(side.high)}]"


def _as_dict(change: Change) -> dict[str, Any]:
    def side(one: Side) -> dict[str, Any]:
        values = {"low": one.low, "middle": one.middle, "high": one.high}
        return {"count": one.count} | {name: None if v is None else round(v, 6) for name, v in values.items()}

    return {
        "figure": change.figure.name,
        "kind": change.figure.kind,
        "unit": change.figure.unit,
        "reference": side(change.reference),
        "current": side(change.current),
        "distance": None if change.distance is None else round(change.distance, 6),
        "by_chance": None if change.chance is None else round(change.chance, 6),
        "p": None if change.p is None else float(f"{change.p:.3g}"),
        "drifted": change.drifted,
        "way": change.way if change.drifted else "",
        "note": change.note,
    }


def _unusual(clip: Unusual) -> str:
    return f"{clip.video_name}: {clip.deviations:.1f} deviations away, most in {clip.figure.name} ({_with_unit(clip)})"


def _with_unit(clip: Unusual) -> str:
    return number(clip.value) + _unit(clip.figure.unit)


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>" else letter for letter in text).replace("\n", " ")
