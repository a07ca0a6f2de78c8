"""How a flow that was started from a shell tells what came of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from prefect.exceptions import PrefectException

from qualivision.errors import QualiVisionError, leaves

if TYPE_CHECKING:
    from prefect.states import State


def tell(name: str, state: State[Any]) -> int:
    """Print a run's outcome; returns the exit code, 0 where it completed and 1 where it failed. A defect is raised."""
    if state.is_completed():
        sys.stdout.write(f"{name}: {state.message}\n")
        return 0
    err = state.result(raise_on_failure=False)
    if not isinstance(err, BaseException) or isinstance(err, PrefectException):  # the state's message says it better
        sys.stderr.write(f"{name}: {state.name}: {state.message}\n")
        return 1
    for cause in leaves(err):
        if not isinstance(cause, QualiVisionError | OSError):
            raise cause
        sys.stderr.write(f"{name}: {cause}\n")
    return 1
