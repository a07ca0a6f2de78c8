"""Stage `frames`: every video of the data set to a model's frames."""

from __future__ import annotations

from qualivision.frames import fill_frames, frame_cache
from qualivision.progress import progress
from qualivision.settings import load_settings
from qualivision.stages import places


def run(model: str, *, workers: int | None = None) -> str:
    """Fill the frame cache. Raises VideoError, or an ExceptionGroup of them; all other clips are cached by then."""
    spec = load_settings().model(model).frames
    with progress(f"frames {model}: decoding") as advance:
        done = fill_frames(
            frame_cache(places.frames_dir(model), model), places.DATA, spec, advance=advance, workers=workers
        )
    return f"frames {model}: {done} at {spec}"
