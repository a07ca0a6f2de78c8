"""What is said of a clip by its distance from the clips that a model was trained on.

Owns the words and the limit, and loads nothing heavy. The distance itself is `models/familiarity.py`'s.
"""

from __future__ import annotations

from typing import Final

FAMILIAR: Final = 1.0
"""Up to this distance a clip is of the training clips' kind; see `models.familiarity.Familiarity`."""
UNLIKE: Final = "unlike what this model was trained on"


def warning(distance: float) -> str:
    """One plain sentence where a clip is unlike the training clips, or no distance can be told; else empty."""
    if distance <= FAMILIAR:
        return ""
    return f"{UNLIKE} (distance {distance:.2f}; clips of its own kind are below 1): do not trust the absolute scores"
