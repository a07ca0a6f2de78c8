"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Advance = Callable[[int, int], None]
    """Called as `advance(done, total)`."""

PLAIN_INTERVAL_SECONDS = 10.0


class _Pace:
    """How fast work goes on, since it was first told of."""

    _start: tuple[float, int] | None = None

    def per_second(self, done: int) -> float:
        """0 until something is done."""
        now = time.monotonic()
        self._start = self._start or (now, done)
        began, before = self._start
        return (done - before) / (now - began) if now > began else 0.0


@contextmanager
def progress(label: str, unit: str = "clips") -> Iterator[Advance]:
    """Show how far a piece of work is.

    Args:
        label: what is being done ("decoding").
        unit: what is counted.
    Yields:
        A function to call with how many are done and how many there are.
    """
    with _bar(label, unit) if sys.stderr.isatty() else nullcontext(in_lines(label, _write, unit)) as advance:
        yield advance


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    rate, left = TextColumn("{task.fields[rate]}"), TimeRemainingColumn()
    pace = _Pace()
    with Progress(*columns, rate, left, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, rate="")

        def advance(done: int, total: int) -> None:
            per_second = pace.per_second(done)
            bar.update(task, completed=done, total=total, rate=f"{per_second:.3g} {unit}/s" if per_second else "")

        yield advance


def in_lines(label: str, say: Callable[[str], None], unit: str = "clips") -> Advance:
    """Progress as a line now and then, given to `say`; see `progress`."""
    last = time.monotonic()
    pace = _Pace()

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        per_second = pace.per_second(done)
        if now - last >= PLAIN_INTERVAL_SECONDS and done < total:
            last = now
            line = f"{label}: {done} of {total} {unit}"
            if per_second:
                left = timedelta(seconds=round((total - done) / per_second))
                line += f", {per_second:.3g} {unit}/s, {left} left"
            say(line)

    return advance


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
