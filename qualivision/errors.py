"""The errors that are the world's and not ours: a bad file, a wrong setting, a missing model.

`str()` of each is one line that names the file, the value and the way out. The command line prints that line and exits
with 1; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class QualiVisionError(Exception):
    """Base of every error that a user can mend."""


def leaves(err: BaseException) -> Iterator[BaseException]:
    """The single errors of a group, however deep it is; an error that is no group, itself."""
    if isinstance(err, BaseExceptionGroup):
        for part in err.exceptions:
            yield from leaves(part)
    else:
        yield err
