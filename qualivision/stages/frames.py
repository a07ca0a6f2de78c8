"""Stage `frames`: every video of the data set to a model's frames."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from qualivision.cache import write_atomically
from qualivision.errors import leaves
from qualivision.frames import fill_frames, frame_cache
from qualivision.progress import progress
from qualivision.settings import load_settings
from qualivision.stages import places
from qualivision.video import VideoError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from qualivision.cache import Filled


def run(model: str, *, workers: int | None = None, verify: bool = False, prune: bool = False) -> Filled:
    """Fill the frame cache.

    Raises:
        VideoError: a video that can't be used (several: an ExceptionGroup). All other clips are cached by then, and
            `quarantine_file(model)` lists each with its cause; a later run that succeeds removes that list.
    """
    settings = load_settings()
    spec = settings.model(model).frames
    places.frames_dir(model).parent.mkdir(parents=True, exist_ok=True)
    others = [folder for folder in places.frames_dir(model).parent.iterdir() if folder.is_dir()]
    quarantine = places.quarantine_file(model)

    def say(line: str) -> None:
        sys.stderr.write(f"frames {model}: {line}\n")

    try:
        with progress(f"frames {model}: decoding") as advance:
            done = fill_frames(
                frame_cache(places.frames_dir(model), model),
                places.DATA,
                spec,
                settings.decode,
                advance=advance,
                say=say,
                others=[frame_cache(folder, folder.name) for folder in others if folder.name != model],
                workers=workers,
                verify=verify,
                prune=prune,
            )
    except (VideoError, ExceptionGroup) as err:
        _write_quarantine(quarantine, [one for one in leaves(err) if isinstance(one, VideoError)])
        raise
    quarantine.unlink(missing_ok=True)
    return done


def _write_quarantine(path: Path, errors: Iterable[VideoError]) -> None:
    listed = [{"video": str(err.path), "cause": err.cause} for err in sorted(errors, key=lambda err: err.path)]
    write_atomically(path, (json.dumps(listed, indent=2, ensure_ascii=False) + "\n").encode())
