"""The errors that are the world's and not ours: a bad file, a wrong setting, a missing model.

`str()` of each is one line that names the file, the value and the way out. The command line prints that line and exits
with 1; anything else is a defect and keeps its traceback.
"""

from __future__ import annotations


class QualiVisionError(Exception):
    """Base of every error that a user can mend."""
