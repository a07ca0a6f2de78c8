"""QualiVision judges AI-generated video: five mean opinion scores (MOS) from 1 to 5, against the clip's prompt.

    import qualivision
    qualivision.score("clip.mp4", prompt="A cat is running on the grass")["Overall"]

`Scorer` keeps a model loaded and scores many clips. Importing this package loads neither torch nor MLflow nor
Prefect; the first score does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from qualivision.scoring import Scorer, Scores, score

__version__ = "0.1.0"
__all__ = ["DIMENSIONS", "Scorer", "Scores", "score"]


def __getattr__(name: str) -> object:
    if name in {"Scorer", "Scores", "score"}:
        from qualivision import scoring

        return getattr(scoring, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
