"""Commands that a flow runs: their lines as they come, an end in time, and nothing left behind when the flow ends.

The process between a flow and its command is `supervise.py`: it stops the command when the flow is cancelled or killed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SUPERVISED = (sys.executable, "-P", str(Path(__file__).with_name("supervise.py")))
"""Before a command, whose stdin is a pipe of ours then: it ends, with all that it started, when that closes."""
_KEPT_LINES = 2000
_running: set[subprocess.Popen[str]] = set()
_stopped = threading.Event()


class StoppedError(QualiVisionError):
    """A command that is not started any more: this process is to end."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; 128 and the signal's number for one that a signal ended.
        lines: what it printed, at most the last 2000 lines.
        late: it was stopped, for it took longer than it may.
    """

    code: int
    lines: tuple[str, ...]
    late: bool = False

    @property
    def ok(self) -> bool:
        """Whether it did what it was to do."""
        return self.code == 0 and not self.late


def run_command(
    command: list[str],
    say: Callable[[str], None],
    *,
    seconds: float | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command to its end; with it ends everything that it started.

    Args:
        command: program and arguments. Programs of this Python's environment are found first.
        say: told each line, of stdout and stderr alike, as it comes.
        seconds: after so many it is stopped; None for no limit.
        folder: its working folder.
        environment: more variables.
    Raises:
        StoppedError: `stop_commands` was called.
    """
    if _stopped.is_set():
        raise StoppedError(f"{command[0]}: not started, for the run is being stopped")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    child = subprocess.Popen(
        [*SUPERVISED, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, **(environment or {}), "PATH": path},
        start_new_session=True,
    )
    assert child.stdout is not None
    _running.add(child)
    if _stopped.is_set():  # between the question above and now
        _stop(child)
    late = threading.Event()

    def stop_late() -> None:
        late.set()
        _stop(child)

    limit = threading.Timer(seconds, stop_late) if seconds is not None else None
    if limit:
        limit.daemon = True
        limit.start()
    lines: deque[str] = deque(maxlen=_KEPT_LINES)
    try:
        for line in child.stdout:
            if text := line.rstrip():
                lines.append(text)
                say(text)
        return Ended(child.wait(), tuple(lines), late.is_set())
    finally:
        if limit:
            limit.cancel()
        _stop(child)
        child.wait()
        child.stdout.close()
        _running.discard(child)


def allow_commands() -> None:
    """Let commands start, whatever was stopped in this process before."""
    _stopped.clear()


def are_stopped() -> bool:
    """Whether `stop_commands` was called: what failed since may have failed of that."""
    return _stopped.is_set()


def stop_commands() -> None:
    """Stop every command of this process, and start none any more; the calls that run them come back."""
    _stopped.set()
    for child in tuple(_running):
        _stop(child)


def _stop(child: subprocess.Popen[str]) -> None:
    """Tell a command's supervisor that nobody wants it any more."""
    assert child.stdin is not None
    child.stdin.close()
