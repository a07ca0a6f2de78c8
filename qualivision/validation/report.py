"""What a validation found, for programs (JSON) and for people (text).

Owns `Finding` and `ValidationReport`, their order, and writing them to a folder. Order and bytes depend on
nothing but what was found: no times, no absolute paths.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Severity = Literal["error", "warning", "info"]
SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "info")
"""Worst first. An error stops the line, a warning is odd and stops nothing, an info is a fact worth knowing."""

DATA_DOCS: Final = "data-docs/index.html"
"""Where Great Expectations' pages lie, seen from the report."""
SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and where."""

    severity: Severity
    check: str
    """Which rule, in kebab-case ("mos-range")."""
    file: str
    """Seen from the folder above the data, with forward slashes ("data/val/labels/val_labels.csv")."""
    row: int | None
    """Line of `file` as an editor counts, from 1; the header is line 1. None where no line is at fault."""
    value: str
    """What stands there, as it stands there."""
    message: str
    """What is wrong with it, and the way out."""

    @property
    def place(self) -> str:
        """File and line, in the form that editors and terminals open."""
        return self.file if self.row is None else f"{self.file}:{self.row}"

    @property
    def _order(self) -> tuple[int, str, str, int, str, str]:
        return SEVERITIES.index(self.severity), self.check, self.file, self.row or 0, self.value, self.message


@dataclass(frozen=True)
class ValidationReport:
    """All findings about a data set, errors first, and how much was looked at."""

    findings: tuple[Finding, ...]
    counts: Mapping[str, Mapping[str, int]]
    """`rows` and `videos` of each split."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was counted of `tables`, `split` and `videos`, and how many expectations held; as JSON has it."""

    def __post_init__(self) -> None:
        # Sorted here, so that nobody downstream depends on the order in which processes answered.
        object.__setattr__(self, "findings", tuple(sorted(self.findings, key=lambda found: found._order)))

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What stops the line."""
        return tuple(found for found in self.findings if found.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is odd, and harms nothing."""
        return tuple(found for found in self.findings if found.severity == "warning")

    @property
    def infos(self) -> tuple[Finding, ...]:
        """What is worth knowing, and nothing is wrong with."""
        return tuple(found for found in self.findings if found.severity == "info")

    @property
    def ok(self) -> bool:
        """Whether the data set can be learned from."""
        return not self.errors

    @property
    def summary(self) -> str:
        """One line: how much was found."""
        infos = f", {counted(len(self.infos), 'info')}" if self.infos else ""
        return f"{counted(len(self.errors), 'error')}, {counted(len(self.warnings), 'warning')}{infos}"

    def by_check(self) -> Iterator[tuple[Severity, str, list[Finding]]]:
        """The findings of each check, the errors first, the infos last."""
        for (severity, check), found in groupby(self.findings, key=lambda one: (one.severity, one.check)):
            yield severity, check, list(found)

    def to_json(self) -> str:
        """The whole report; equal reports give equal text."""
        whole = {
            "ok": self.ok,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "counts": {split: dict(self.counts[split]) for split in self.counts},
            "infos": len(self.infos),
            **self.facts,
            "findings": [asdict(found) for found in self.findings],
        }
        return json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def as_text(self, limit_per_check: int = 20) -> str:
        """The report for a terminal: a block per check, the errors first, each cut after some findings."""
        lines = [
            f"{split}: {counted(count['rows'], 'row')}, {counted(count['videos'], 'video')}"
            for split, count in self.counts.items()
        ]
        for severity, check, found in self.by_check():
            lines += ["", f"{severity.upper()} {check} ({len(found)})"]
            for one in found[:limit_per_check]:
                lines.append(f"  {shown(one.place)}  {shown(one.value)}".rstrip())
                lines.append(f"      {shown(one.message, 1000)}")
            if len(found) > limit_per_check:
                lines.append(f"  and {len(found) - limit_per_check} more like it")
        return "\n".join([*lines, "", self.summary])


def shown(text: str, characters: int = SHOWN_CHARACTERS) -> str:
    """Text from a data set, fit for one line of a terminal: not long, and no control characters in it."""
    cut = text if len(text) <= characters else f"{text[: characters - 1]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii", "replace") for c in cut)


def write_report(report: ValidationReport, folder: Path) -> None:
    """Write `validation.json` and `validation.html`; each appears whole or not at all.

    The page links to the Data Docs where they lie beside it.
    """
    from qualivision.validation.page import as_html

    folder.mkdir(parents=True, exist_ok=True)
    _write_atomically(folder / "validation.json", report.to_json())
    _write_atomically(folder / "validation.html", as_html(report, docs=(folder / DATA_DOCS).is_file()))


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A file name that is no UTF-8 holds surrogates; JSON reads what backslashreplace makes of them.
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 row", "2 rows"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
