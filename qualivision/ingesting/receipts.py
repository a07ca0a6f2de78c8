"""What was found out about each batch, so that one that did not change costs nothing again.

Owns one JSON file. It is a memory and no source: without it every batch is looked at anew, and comes to the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from qualivision.cache import write_atomically
from qualivision.validation.report import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Receipt:
    """What came of a batch as it stood.

    Attributes:
        state: "taken", or "refused".
        fingerprint: of the batch.
        context: of what else the verdict hung on; empty for a batch that was taken.
        names: the clips of a batch that was taken; while the data set has them all, there is nothing to do.
        why: of a refusal, in a line.
        findings: of a refusal.
    """

    state: Literal["taken", "refused"]
    fingerprint: str
    context: str = ""
    names: tuple[str, ...] = ()
    why: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> str:
        """Equal for equal refusals."""
        return hashlib.sha256(f"{self.why}\n{self.findings}".encode("utf-8", "backslashreplace")).hexdigest()


class Receipts:
    """The receipts of one inbox.

    Args:
        path: the file; of all inboxes.
        inbox: which one.
    """

    def __init__(self, path: Path, inbox: str) -> None:
        self._path = path
        self._inbox = inbox
        try:
            self._all: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
            self._known = {name: _read(entry) for name, entry in self._all.get(inbox, {}).items()}
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
            self._all, self._known = {}, {}

    def of(self, batch: str) -> Receipt | None:
        """What is known of a batch."""
        return self._known.get(batch)

    def keep(self, batch: str, receipt: Receipt) -> None:
        """Write one down."""
        self._known[batch] = receipt
        self._write()

    def keep_only(self, batches: Iterable[str]) -> None:
        """Forget batches that are not in the inbox any more."""
        gone = self._known.keys() - set(batches)
        for name in gone:
            del self._known[name]
        if gone:
            self._write()

    def _write(self) -> None:
        self._all[self._inbox] = {name: asdict(receipt) for name, receipt in sorted(self._known.items())}
        write_atomically(self._path, json.dumps(self._all, indent=0).encode())


def _read(entry: dict[str, Any]) -> Receipt:
    findings = tuple(Finding(**found) for found in entry["findings"])
    return Receipt(**{**entry, "names": tuple(entry["names"]), "findings": findings})
