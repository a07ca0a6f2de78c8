"""The changed data set as a version: `dvc add`, and `dvc push` where there is a remote.

Owns that this is done once for every change, also where the run that made the change was stopped before. DVC's own
command does the work, so that a person at a shell and a schedule come to the same `data.dvc`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qualivision.ingesting.adding import CHANGED
from qualivision.ingesting.results import BusyError, IngestError

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY: Final = "is busy"
BUSY_LOOK_SECONDS = 5.0
BUSY_WAIT_SECONDS = 600.0
_SAID = 5


def is_unversioned(state: Path) -> bool:
    """Whether the data set has changed since `version` was last through."""
    return (state / CHANGED).exists()


def version(data: Path, state: Path, *, remote: str, say: Callable[[str], None]) -> str:
    """Let DVC know of a changed data set.

    Args:
        data: the data folder, in the folder of `data.dvc`.
        state: `ingesting.state_folder()`.
        remote: a DVC remote to push to; "" for none.
        say: told each line that DVC prints.
    Returns:
        What was done, in a few words.
    Raises:
        BusyError: a stage of `dvc repro` reads the data for too long. The next call goes on.
        IngestError: DVC failed; likewise.
    """
    mark = state / CHANGED
    if not mark.exists():
        return "nothing to version"
    tracked = _tracked(data)
    if not tracked.exists():
        raise IngestError(
            f"{tracked}: no such file, so the clips that were added have no version; run `dvc add {data}`"
        )
    stood = mark.stat()
    _dvc(["add", str(data)], say)
    if remote:
        _dvc(["push", str(tracked), "--remote", remote], say)
    if (mark.stat().st_ino, mark.stat().st_mtime_ns) == (stood.st_ino, stood.st_mtime_ns):
        mark.unlink()
    return f"{tracked} is of this data set" + (f", and {remote} has it" if remote else "")


def bring(data: Path, remote: str, say: Callable[[str], None]) -> None:
    """Fetch the data set where a checkout has only its `data.dvc`, and a remote is set."""
    if remote and not data.exists() and _tracked(data).exists():
        _dvc(["pull", str(_tracked(data)), "--remote", remote], say)


def _tracked(data: Path) -> Path:
    return data.with_name(f"{data.name}.dvc")


def _dvc(arguments: list[str], say: Callable[[str], None]) -> None:
    """Run a command of DVC; while another one has what it needs, wait."""
    deadline = time.monotonic() + BUSY_WAIT_SECONDS
    shown = f"dvc {' '.join(arguments)}"
    while True:
        code, lines = _run([sys.executable, "-m", "dvc", *arguments], say)
        if code == 0:
            return
        if not any(BUSY in line for line in lines):
            raise IngestError(
                f"`{shown}` failed (exit code {code}): {' / '.join(lines[-_SAID:])}; the next run tries again"
            )
        if time.monotonic() >= deadline:
            raise BusyError(f"`{shown}`: another DVC command is at it; the next run goes on")
        say("another DVC command is at it; waiting")
        time.sleep(BUSY_LOOK_SECONDS)


def _run(command: list[str], say: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run a command that ends with this call; its lines go to `say` as they come."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    assert child.stdout is not None
    lines: list[str] = []
    try:
        for line in child.stdout:
            if text := line.rstrip():
                lines.append(text)
                say(text)
        return child.wait(), lines
    finally:
        if child.poll() is None:  # cancelled
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
        child.stdout.close()
