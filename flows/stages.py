"""The pipeline's stages as Prefect tasks. Each runs `dvc repro` of its stage, and nothing else.

So a person at a shell and a schedule at night do the same thing and write the same `dvc.lock`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY = "is busy"
BUSY_WAIT_SECONDS = 5.0
BUSY_TRIES = 120


class StageFailedError(RuntimeError):
    """A stage that `dvc repro` could not finish: names the stage and says its last lines."""


@task(task_run_name="{stage}")
def repro(stage: str) -> bool:
    """Bring one stage, and what it depends on, up to date.

    Args:
        stage: as `dvc.yaml` names it, such as `validate` or `train@lite`.
    Returns:
        Whether anything had to run.
    Raises:
        StageFailedError: the stage failed; what it had cached by then is kept.
    """
    log = get_run_logger()
    for _ in range(BUSY_TRIES):
        code, lines = _run(["dvc", "repro", stage], log.info)
        if code == 0:
            return any(line.startswith("Running stage") for line in lines)
        if not any(BUSY in line for line in lines):
            break
        log.info("another `dvc repro` has the stage; waiting")
        time.sleep(BUSY_WAIT_SECONDS)
    raise StageFailedError(f"stage {stage} failed (exit code {code}):\n" + "\n".join(lines[-20:]))


def _run(command: list[str], say: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run a command in a process group of its own, which ends with this task; its lines go to `say` as they come."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PATH": path},
        start_new_session=True,
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
        if child.poll() is None:  # cancelled: DVC alone would leave the stage's process running
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
