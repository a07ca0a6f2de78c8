"""Videos from outside to frames, in worker processes that stay: for a server, or anyone whose videos come one by one.

Owns nothing but the way there and back. What a file does to its process is its own affair: the job ends as a
VideoError, the process is replaced, and the others go on. For many videos at once there is `workers.in_processes`.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from qualivision import video
from qualivision.video import VideoError
from qualivision.workers import Pool, cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qualivision.settings import DecodeSettings, FrameSpec
    from qualivision.video import Bounds, Clip


class Decoders:
    """Worker processes that decode; may be asked from several threads.

    Args:
        limits: of one video: time and memory.
        bounds: what a video may be.
        workers: processes; by default one for each core. They start with the first video.
    """

    def __init__(self, limits: DecodeSettings, *, bounds: Bounds | None = None, workers: int | None = None) -> None:
        self._decoder = limits.decoder
        self._bounds = bounds
        self.workers = workers or cores()
        self._pool = Pool(video.decoding_guard(limits), workers=self.workers)

    def warm(self) -> None:
        """Start the processes and what they import, for a caller that has something else to do meanwhile."""
        for _ in range(self.workers):
            self._pool.submit(_import)

    def frames(self, path: Path, specs: Sequence[FrameSpec]) -> Future[Clip]:
        """The frames of a video for each spec (`video.read_clip`), or a VideoError; the file has to stay until then."""
        return self._pool.submit(_within_memory, path, _read, specs, self._decoder, self._bounds)

    def close(self) -> None:
        """Stop the processes; what was not done by then fails."""
        self._pool.close()


def _import() -> None:
    import av  # noqa: F401 - what reading needs, a second's work
    import torch

    torch.set_num_threads(1)  # as in a worker that had it when it settled


def _read(path: Path, specs: Sequence[FrameSpec], decoder: str, bounds: Bounds | None) -> Clip:
    assert decoder in ("pyav", "decord")
    return video.read_clip(path, specs, decoder=decoder, bounds=bounds)  # type: ignore[arg-type]


def _within_memory(path: Path, read: Callable[..., Clip], *how: object) -> Clip:
    """What a reader gives; that it asks for more memory than its process may have is the video's fault."""
    try:
        return read(path, *how)
    except MemoryError as err:
        raise VideoError(path, "takes more memory than decode.memory_gb allows") from err
