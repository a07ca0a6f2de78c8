"""The errors that are the world's and not ours: a bad file, a wrong setting, a missing model.

`str()` of each is one line that names the file, the value and the way out. The command line prints that line and exits
with 1 (75 where the cause may pass by itself); anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


AWAY_EXIT_CODE: Final = 75
"""Of a command that wants something from outside which may be there again later (EX_TEMPFAIL of sysexits.h)."""


class QualiVisionError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 1


class AwayError(QualiVisionError):
    """Something outside does not answer, and may do so later: a server."""

    exit_code = AWAY_EXIT_CODE


def leaves(err: BaseException) -> Iterator[BaseException]:
    """The single errors of a group, however deep it is; an error that is no group, itself."""
    if isinstance(err, BaseExceptionGroup):
        for part in err.exceptions:
            yield from leaves(part)
    else:
        yield err
