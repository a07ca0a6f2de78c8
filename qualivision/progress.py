"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Advance = Callable[[int, int], None]
    """Called as `advance(done, total)`."""

PLAIN_INTERVAL_SECONDS = 10.0


@contextmanager
def progress(label: str, unit: str = "clips") -> Iterator[Advance]:
    """Show how far a piece of work is.

    Args:
        label: what is being done ("decoding").
        unit: what is counted.
    Yields:
        A function to call with how many are done and how many there are.
    """
    show = _bar if sys.stderr.isatty() else _lines
    with show(label, unit) as advance:
        yield advance


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _lines(label: str, unit: str) -> Iterator[Advance]:
    last = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_SECONDS and done < total:
            last = now
            sys.stderr.write(f"{label}: {done} of {total} {unit}\n")

    yield advance
