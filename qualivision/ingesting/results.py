"""What came of a run over the inbox: in words, as JSON and as Markdown.

Owns `IngestError`, `Outcome`, `Ingested` and the report of a batch (`reports/ingest-<batch>.json`). Decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

from qualivision.errors import QualiVisionError
from qualivision.labels import SPLITS
from qualivision.validation.report import counted, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qualivision.validation.report import Finding

State = Literal["taken", "waiting", "refused"]
_FINDINGS_SHOWN = 20


class IngestError(QualiVisionError):
    """The inbox can't be taken in: names the file or the folder, the cause and the way out."""


class BusyError(IngestError):
    """Another process has what is needed; the same call works a while later."""


@dataclass(frozen=True)
class Outcome:
    """What came of one batch."""

    batch: str
    state: State
    why: str
    """Why it is not taken, in a line; of a taken one, what was added."""
    new: bool
    """Whether this run found that out; False for what an earlier run had found."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Clips that were added to each split."""
    prompts: Mapping[str, int] = field(default_factory=dict)
    """Prompts that the data set did not have, by the split that they were given."""
    already: int = 0
    """Clips that were there already, with the same row."""
    findings: tuple[Finding, ...] = ()
    report: Path | None = None

    @property
    def added(self) -> int:
        """Clips that this run added."""
        return sum(self.rows.values())

    def as_text(self) -> str:
        """For a terminal: a line, and some of the findings that stopped it."""
        lines = [f"{shown(self.batch)}: {self.state}: {shown(self.why, 1000)}"]
        if self.state == "refused" and self.new:
            errors = [one for one in self.findings if one.severity == "error"]
            for one in errors[:_FINDINGS_SHOWN]:
                lines.append(f"  {shown(one.place)}  {shown(one.value)}".rstrip())
                lines.append(f"      {one.check}: {shown(one.message, 1000)}")
            if len(errors) > _FINDINGS_SHOWN:
                lines.append(f"  and {len(errors) - _FINDINGS_SHOWN} more in {self.report}")
        return "\n".join(lines)

    def as_json(self) -> str:
        """The whole of it."""
        whole = {
            "batch": self.batch,
            "state": self.state,
            "why": self.why,
            "rows": dict(self.rows),
            "new_prompts": dict(self.prompts),
            "already_there": self.already,
            "findings": [asdict(one) for one in self.findings],
        }
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Ingested:
    """What came of a run."""

    inbox: str
    outcomes: tuple[Outcome, ...]
    strays: tuple[str, ...] = ()
    """Files at the top of the inbox, which belong to no batch."""

    def of(self, state: State) -> tuple[Outcome, ...]:
        """The batches of one state."""
        return tuple(one for one in self.outcomes if one.state == state)

    @property
    def added(self) -> int:
        """Clips that were added."""
        return sum(one.added for one in self.outcomes)

    @property
    def newly_refused(self) -> tuple[Outcome, ...]:
        """Batches that this run refused; what an earlier run had refused and nobody touched is not among them."""
        return tuple(one for one in self.of("refused") if one.new)

    @property
    def summary(self) -> str:
        """One line that says what came of it."""
        said = []
        if self.added:
            by_split = ", ".join(f"{split} {count}" for split in SPLITS if (count := self._sum(split)))
            said.append(f"{counted(self.added, 'clip')} added ({by_split})")
        if new := self.newly_refused:
            said.append(f"refused {_listed(new)}")
        if waiting := self.of("waiting"):
            said.append(f"waiting for {_listed(waiting)}")
        if old := [one for one in self.of("refused") if not one.new]:
            said.append(f"refused before and not changed since: {_listed(old)}")
        if not said or (not self.added and not self.newly_refused):
            said.insert(0, "nothing to do: " + (f"no new batch in {self.inbox}" if self.outcomes else self._empty))
        return "; ".join(said)

    @property
    def _empty(self) -> str:
        return f"there is no batch in {self.inbox}"

    def _sum(self, split: str) -> int:
        return sum(one.rows.get(split, 0) for one in self.outcomes)

    def as_text(self) -> str:
        """For a terminal: every batch that is not done with, and the summary."""
        lines = [one.as_text() for one in self.outcomes if one.new or one.state != "taken"]
        if self.strays:
            lines.append(f"not in a batch, so left alone: {', '.join(map(shown, self.strays))}; put each into a folder")
        return "\n".join([*lines, self.summary])

    def as_markdown(self) -> str:
        """For Prefect's pages."""
        parts = [f"{self.summary[:1].upper()}{self.summary[1:]}."]
        if self.outcomes:
            parts.append(_table(["batch", "state", *SPLITS, "new prompts", ""], map(_row, self.outcomes)))
        for one in self.of("refused"):
            errors = [found for found in one.findings if found.severity == "error"][:_FINDINGS_SHOWN]
            rows = ([found.place, shown(found.value), f"{found.check}: {found.message}"] for found in errors)
            parts.append(f"### {_cell(one.batch)}\n\n{_table(['where', 'value', 'what is wrong'], rows)}")
            if one.report:
                parts.append(f"All of it: `{one.report}`")
        if self.strays:
            parts.append(f"In no batch, so left alone: {', '.join(map(_cell, self.strays))}")
        return "\n\n".join(parts) + "\n"


def report_file(reports: Path, batch: str) -> Path:
    """Where the report of a batch goes; a name that is no plain file name gets one that no other batch has."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", batch)
    if plain != batch or len(plain) > 100:
        plain = f"{plain[:100]}-{hashlib.sha256(batch.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    return reports / f"ingest-{plain}.json"


def _listed(outcomes: list[Outcome] | tuple[Outcome, ...]) -> str:
    names = ", ".join(shown(one.batch, 40) for one in outcomes[:3])
    return names + (f" and {len(outcomes) - 3} more" if len(outcomes) > 3 else "")


def _row(one: Outcome) -> list[object]:
    by_split = [one.rows.get(split, 0) or "" for split in SPLITS]
    return [one.batch, one.state, *by_split, sum(one.prompts.values()) or "", one.why]


def _table(head: list[str], rows: object) -> str:
    lines = [head, ["---"] * len(head), *rows]  # type: ignore[misc]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    return shown(str(value), 1000).replace("|", "\\|")
