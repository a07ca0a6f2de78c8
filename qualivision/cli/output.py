"""Lines of result and complaint."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """One line of result on stdout."""
    sys.stdout.write(f"{line}\n")


def complain(line: object) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{line}\n")
