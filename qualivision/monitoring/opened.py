"""Which drift a retraining was opened for already, so that the same drift opens none every night.

Owns one file, `opened.json`: for each champion, what had drifted and in which way when a retraining was opened, and
which run that was. A figure that drifts newly, or the other way, is news, and so is all of it to another champion.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from qualivision.cache import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE = "opened.json"


@dataclass(frozen=True)
class Opened:
    """A retraining that was opened: for which champion and drift, when (UTC), and the run that it became."""

    champion: str
    drifted: tuple[str, ...]
    when: str
    run: str


def opened(folder: Path) -> list[Opened]:
    """All of them, the first first. A file that can't be read counts as none: one retraining too many does no harm."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return [Opened(**one | {"drifted": tuple(one["drifted"])}) for one in found]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def news(champion: str, drifted: Sequence[str], folder: Path) -> list[str]:
    """What of a drift no retraining was opened for under this champion."""
    known = {name for one in opened(folder) if one.champion == champion for name in one.drifted}
    return [name for name in drifted if name not in known]


def remember(champion: str, drifted: Sequence[str], folder: Path, *, run: str) -> None:
    """Put down that a retraining was opened. Raises OSError."""
    new = Opened(champion, tuple(drifted), datetime.now(UTC).isoformat(timespec="seconds"), run)
    lines = [asdict(one) for one in (*opened(folder), new)]
    write_atomically(folder / FILE, (json.dumps(lines, indent=2, ensure_ascii=False) + "\n").encode())
