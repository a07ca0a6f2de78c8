"""One video in, uniform frames out. Every way in which a file can be bad is a `VideoError`.

Owns decoding (decord first; PyAV where decord has no decoder, such as AV1), the rule which frames are taken, and the
one resize that training, evaluation and serving share. Knows nothing of caches, labels or models.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from qualivision.settings import FrameSpec

    Frames = npt.NDArray[np.uint8]

# Part of every cache key: raise it when the same file would give other frames than before.
READER_VERSION = 1


class VideoError(QualiVisionError):
    """A video that can't be used. `str()` is one line: the file and the cause."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = path
        self.cause = cause

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return type(self), (self.path, self.cause)  # so that it survives the way back from a worker process


@dataclass(frozen=True)
class VideoInfo:
    """What a container says of its first video stream; sizes in pixels."""

    codec: str
    frames: int
    width: int
    height: int
    fps: float
    container: str = ""
    pixels: str = ""
    constant: str = ""

    @property
    def seconds(self) -> float:
        """Duration by frame count and rate."""
        return self.frames / self.fps if self.fps else 0.0


def frame_indices(total: int, count: int) -> npt.NDArray[np.int64]:
    """Which frames of a video are taken: `count` of them, evenly from the first to the last.

    Args:
        total: how many frames the video has, 1 or more.
        count: how many are wanted, 1 or more. A video with fewer frames gives some of them more than once.
    Returns:
        (count,) indices from 0 to total - 1, ascending: `linspace(0, total - 1, count)`, rounded down.
    """
    return np.floor(np.linspace(0, total - 1, count)).astype(np.int64)


def read_frames(path: Path, spec: FrameSpec) -> Frames:
    """Decode the uniform frames of a video and resize them.

    Args:
        path: a video file in any container and codec that decord or PyAV can read.
        spec: how many frames, and the height and width that each is resized to (the aspect ratio is not kept).
    Returns:
        (count, height, width, 3) uint8, RGB.
    Raises:
        VideoError: no such file, empty, not a video, cut off, or a sampled frame can't be decoded.
    """
    return resize(sample(path, spec.count), spec.height, spec.width)


def sample(path: Path, count: int) -> Frames:
    """The uniform frames of a video at its own size: (count, H, W, 3) uint8, RGB. Raises VideoError."""
    _check_file(path)
    _count_packets(path)  # what can't be opened or was cut off is refused here: decord is noisy, or says nothing
    try:
        return _sample_with_decord(path, count)
    except (ImportError, _NoDecoder):
        return sample_with_pyav(path, count)


def resize(frames: Frames, height: int, width: int) -> Frames:
    """Resize (T, H, W, 3) uint8 frames, bilinear with antialiasing, on all frames at once."""
    if frames.shape[1:3] == (height, width):
        return frames
    import torch

    # Seen as (T, 3, H, W) in channels-last order, which is the layout of torch's fast uint8 kernel.
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(small.permute(0, 2, 3, 1).numpy())


def probe(path: Path) -> VideoInfo:
    """What the container says, after its packets have been counted and its first frame has been decoded.

    Raises:
        VideoError: as `read_frames`, as far as the first frame shows it.
    """
    _check_file(path)
    packets = _count_packets(path)
    with _opened(path) as container:
        stream = container.streams.video[0]
        if next(container.decode(stream), None) is None:
            raise VideoError(path, "has a video stream, but no frame in it can be decoded")
        context = stream.codec_context
        return VideoInfo(
            codec=context.codec.canonical_name,
            frames=stream.frames or packets,
            width=context.width,
            height=context.height,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
        )


def sample_with_pyav(path: Path, count: int) -> Frames:
    """As `sample`, by PyAV alone. Decodes the file from the start; keeps only the frames that are asked for."""
    expected = _count_packets(path)
    frames, decoded = _keep(path, frame_indices(max(expected, 1), count))
    if decoded != expected:  # packets are not always frames: the index rule goes by what really came out
        if decoded == 0:
            raise VideoError(path, "has a video stream, but no frame in it can be decoded")
        frames, _ = _keep(path, frame_indices(decoded, count))
    return frames


class _NoDecoder(Exception):
    """decord can't read this file; PyAV may."""


def _check_file(path: Path) -> None:
    try:
        found = path.stat()
    except FileNotFoundError as err:
        raise VideoError(path, "no such file") from err
    except OSError as err:
        raise VideoError(path, f"can't be read: {err.strerror}") from err
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(path, "is not a file")
    if found.st_size == 0:
        raise VideoError(path, "is empty (0 bytes)")


def _sample_with_decord(path: Path, count: int) -> Frames:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        indices = frame_indices(len(reader), count)
        # Each frame once, however often a short video repeats it.
        distinct, position = np.unique(indices, return_inverse=True)
        frames: Frames = reader.get_batch(distinct).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError, ValueError) as err:
        raise _NoDecoder(str(err)) from err
    return frames if len(distinct) == count else frames[position]


class _opened:
    """An open PyAV container with at least one video stream; whatever goes wrong inside is a VideoError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        import av

        self._level = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)  # or the second file that is broken in the same way gives no reason
        self._log = av.logging.Capture()
        self._lines = self._log.__enter__()
        try:
            # Absolute, for FFmpeg takes "take2:final.mp4" for an address.
            self._container = av.open(str(self.path.absolute()))
        except (av.error.FFmpegError, OSError, ValueError) as err:
            self._stop_logging()
            raise VideoError(self.path, self._cause(err)) from err
        if not self._container.streams.video:
            self.__exit__(None, None, None)
            raise VideoError(self.path, "has no video stream")
        return self._container

    def _stop_logging(self) -> None:
        import av

        self._log.__exit__(None, None, None)
        av.logging.set_level(self._level)

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        import av

        self._container.close()
        self._stop_logging()
        if isinstance(err, av.error.FFmpegError):
            raise VideoError(self.path, self._cause(err)) from err

    def said(self) -> list[str]:
        """The errors that FFmpeg has logged so far."""
        return [line[2].strip() for line in self._lines if line[0] <= 16 and line[2].strip()]

    def _cause(self, err: Exception) -> str:
        """What FFmpeg logged last says more than its error code ("moov atom not found")."""
        said = self.said()
        text = getattr(err, "strerror", None) or str(err)
        return f"can't be decoded: {text[0].lower()}{text[1:]}" + (f" ({said[-1]})" if said else "")


def _count_packets(path: Path) -> int:
    """How many packets the first video stream has. Raises VideoError, also for a file that was cut off.

    FFmpeg reads what is left of such a file as if it were all: a clip whose copy broke off would count as a short one.
    """
    opened = _opened(path)
    with opened as container:
        stream = container.streams.video[0]
        packets, torn = 0, False
        for packet in container.demux(stream):
            packets += packet.size > 0
            torn = torn or packet.is_corrupt
        # An MP4 says where its packets lie, a Matroska file only logs it.
        size = path.stat().st_size
        torn = torn or any(entry.pos + entry.size > size for entry in stream.index_entries)
        torn = torn or "File ended prematurely" in opened.said()
    if torn:
        raise VideoError(path, "is cut off: a part of it is missing")
    return packets


def _keep(path: Path, indices: npt.NDArray[np.int64]) -> tuple[Frames, int]:
    """The frames at the given ascending indices, and how many frames the file really has."""
    kept: list[Frames] = []
    decoded = 0
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for decoded, frame in enumerate(container.decode(stream), start=1):
            if len(kept) == len(indices) or indices[len(kept)] != decoded - 1:
                continue
            # A stream may change its size on the way; the frames keep that of the first.
            height, width = kept[0].shape[:2] if kept else (frame.height, frame.width)
            picture = frame.to_ndarray(format="rgb24", width=width, height=height)
            while len(kept) < len(indices) and indices[len(kept)] == decoded - 1:
                kept.append(picture)
    return np.stack(kept) if len(kept) == len(indices) else np.empty((0, 0, 0, 3), np.uint8), decoded
