"""One video in, uniform frames out. Every way in which a file can be bad is a `VideoError`.

Owns decoding, the rule which frames are taken, and the one resize that training, evaluation and serving share. Knows
nothing of caches, labels or models, and nothing of processes: a file that crashes or hangs a decoder takes its process
with it, so files from outside are read through `workers.py`.

PyAV reads. decord, by setting, gives the same frames where it can, but conceals damage: see `sample`.
"""

from __future__ import annotations

import os
import stat
import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from qualivision.settings import DecodeSettings, FrameSpec
    from qualivision.workers import Guard

    Frames = npt.NDArray[np.uint8]
    Clip = tuple[Frames, ...]
    """The frames of a video for each of several specs."""
    Indices = npt.NDArray[np.int64]
    Put = Callable[[slice, Frames], None]

# Part of every cache key: raise it when the same file would give other frames than before.
READER_VERSION = 2

MAX_PIXELS = 2**26
"""Of one frame: 8K has half of that. More is a mistake or an attack, and would be gigabytes in the decoder."""

_WORTH_A_SEEK = 16
"""So many frames are decoded faster than a file is searched."""

_FORMATS = (
    "mov,mp4,3gp,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,mxf,nut,rm,dv,vc1,"
    "mjpeg,yuv4mpegpipe"
)
"""Formats that hold pictures themselves. Of FFmpeg's others some open files that the first one names (`concat`, `hls`),
so that a stranger's file could make us read ours, and some draw whatever text they are given."""

# Where decord finds the right frames and gives them PyAV's colours; test_formats.py holds the two against each other.
_DECORD_CONTAINERS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi"})
_DECORD_PIXELS = frozenset({"yuv420p"})


@dataclass(frozen=True)
class Bounds:
    """What a video may be, before any of it is decoded; for files of which nobody knows where they come from."""

    seconds: float = float("inf")
    pixels: int = MAX_PIXELS
    """of one frame"""


class VideoError(QualiVisionError):
    """A video that can't be used. `str()` is one line: the file and the cause."""

    def __init__(self, path: Path, cause: str) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = path
        self.cause = cause

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return type(self), (self.path, self.cause)  # so that it survives the way back from a worker process


class LostVideoError(VideoError):
    """A video that took the process that read it with it, by a crash or past its limit of time; maybe by chance."""


@dataclass(frozen=True)
class VideoInfo:
    """What is to be known of a video without looking at all of it; sizes in pixels, as it is shown (rotated)."""

    codec: str
    frames: int
    width: int
    height: int
    fps: float
    container: str = ""
    """FFmpeg's name of the format, such as "mov,mp4,m4a,3gp,3g2,mj2"."""
    pixels: str = ""
    """FFmpeg's name of the pixel format, such as "yuv420p"."""
    constant: Literal["", "same picture", "one colour"] = ""
    """Whether every frame is the same picture, or every frame has a single colour."""

    @property
    def seconds(self) -> float:
        """Duration by frame count and rate."""
        return self.frames / self.fps if self.fps else 0.0


def frame_indices(total: int, count: int) -> Indices:
    """Which frames of a video are taken: `count` of them, evenly from the first to the last.

    Args:
        total: how many frames the video has, 1 or more.
        count: how many are wanted, 1 or more. A video with fewer frames gives some of them more than once.
    Returns:
        (count,) indices from 0 to total - 1, ascending: `linspace(0, total - 1, count)`, rounded down.
    """
    return np.floor(np.linspace(0, total - 1, count)).astype(np.int64)


def read_frames(
    path: Path, spec: FrameSpec, *, decoder: Literal["pyav", "decord"] = "pyav", bounds: Bounds | None = None
) -> Frames:
    """Decode the uniform frames of a video and resize them. Holds one frame at its full size at a time (PyAV).

    Args:
        path: a video file in any container and codec that FFmpeg can read.
        spec: how many frames, and the height and width that each is resized to (the aspect ratio is not kept).
        decoder: see `sample`.
        bounds: what the video may be; by default anything with frames of `MAX_PIXELS`.
    Returns:
        (count, height, width, 3) uint8, RGB, turned as the file says, transparent parts on black.
    Raises:
        VideoError: no such file, empty, not a video, damaged, out of bounds, or a sampled frame is missing.
    """
    return read_clip(path, (spec,), decoder=decoder, bounds=bounds)[0]


def read_clip(
    path: Path,
    specs: Sequence[FrameSpec],
    *,
    decoder: Literal["pyav", "decord"] = "pyav",
    bounds: Bounds | None = None,
) -> Clip:
    """`read_frames` for several specs, in their order. Those of one count of frames share one pass over the video."""
    out = tuple(np.empty((spec.count, spec.height, spec.width, 3), np.uint8) for spec in specs)

    def put(places: slice, picture: Frames, count: int) -> None:
        for frames, spec in zip(out, specs, strict=True):
            if spec.count == count:
                # Not picture[None]: of its stride of 0 torch's fast kernel makes nothing, and takes thrice as long.
                frames[places] = resize(picture.reshape(1, *picture.shape), spec.height, spec.width)

    for count in dict.fromkeys(spec.count for spec in specs):
        _sample(path, count, partial(put, count=count), decoder, bounds)
    return out


def sample(path: Path, count: int, *, decoder: Literal["pyav", "decord"] = "pyav") -> Frames:
    """The uniform frames of a video at its own size: (count, H, W, 3) uint8, RGB. Raises VideoError.

    Args:
        path: a video file.
        count: how many frames.
        decoder: "pyav" refuses a file whose decoder reports damage. "decord" gives the same frames of a sound file
            and conceals damage; what it has no decoder for, or colours otherwise, is read by PyAV all the same.
    """
    slots: dict[int, Frames] = {}

    def put(places: slice, picture: Frames) -> None:
        slots.update(dict.fromkeys(range(places.start, places.stop), picture))

    _sample(path, count, put, decoder)
    return np.stack([slots[place] for place in range(count)])


def distinct_frames(
    path: Path, count: int, *, max_side_px: int, decoder: Literal["pyav", "decord"] = "pyav"
) -> tuple[Frames, Indices]:
    """The uniform frames of a video, each once, at its own size or, where that is larger, within `max_side_px`.

    Args:
        path: a video file.
        count: how many frames are wanted (see `frame_indices`).
        max_side_px: of the longer side; a larger video is made smaller, its aspect ratio kept.
        decoder: see `sample`.
    Returns:
        Frames (N, H, W, 3) uint8, RGB, N of them at most `count`; and (count,) which of them each place shows:
        `frames[places]` is what `sample` gives, but for the size.
    Raises:
        VideoError: as `read_frames`.
    """
    slots: dict[int, Frames] = {}

    def put(places: slice, picture: Frames) -> None:
        height, width = picture.shape[:2]
        scale = min(1.0, max_side_px / max(height, width))
        small = resize(picture.reshape(1, *picture.shape), max(1, round(height * scale)), max(1, round(width * scale)))
        slots.update(dict.fromkeys(range(places.start, places.stop), small))

    _sample(path, count, put, decoder)
    new = [place == 0 or slots[place] is not slots[place - 1] for place in range(count)]
    return np.concatenate([slots[place] for place in range(count) if new[place]]), np.cumsum(new) - 1


def decoding_guard(limits: DecodeSettings) -> Guard:
    """What holds jobs whose first argument is a video from outside: one that is lost becomes a LostVideoError."""
    from qualivision.workers import Guard

    return Guard(limits.seconds, int(limits.memory_gb * 2**30), lambda job, cause: LostVideoError(job[0], cause))


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
    """What the container says, after its packets have been counted; and whether anything moves in it.

    Decodes until two frames differ, which in most videos is the second frame.

    Raises:
        VideoError: as `read_frames`, as far as the decoded frames show it.
    """
    _check_file(path)
    track = _survey(path)
    with _opened(path) as video:
        first, constant = _constancy(_shown(video.decode()))
        stream = video.stream
        turned = first.rotation % 180 != 0
        return VideoInfo(
            codec=stream.codec_context.codec.canonical_name,
            frames=track.packets,
            width=first.height if turned else first.width,
            height=first.width if turned else first.height,
            fps=float(stream.average_rate or stream.guessed_rate or 0),
            container=video.container.format.name,
            pixels=first.format.name,
            constant=constant,
        )


@dataclass(frozen=True)
class _Track:
    """What the packets of a video stream say, before anything is decoded."""

    packets: int
    width: int
    height: int
    seconds: float
    """From its first packet to its last by their times or, where they have none, by their number and the rate."""
    suits_decord: bool
    """Whether decord would show the same frames."""
    times: tuple[int, ...]
    """When each frame is shown, ascending, in units of the stream; empty where a packet does not say."""
    keys: tuple[int, ...]
    """Those of the frames at which decoding can start."""


def _sample(path: Path, count: int, put: Put, decoder: str, bounds: Bounds | None = None) -> None:
    """Hand each uniform frame to `put`, with the places (of `count`) that it takes. May do so twice."""
    _check_file(path)
    track = _survey(path)  # what can't be opened or was cut off is refused here: decord is noisy, or says nothing
    if bounds is not None and track.seconds > bounds.seconds:
        raise VideoError(path, f"lasts {track.seconds:.1f} seconds, more than {bounds.seconds:g}")
    if bounds is not None and track.width * track.height > bounds.pixels:
        raise VideoError(path, f"has frames of {track.width} x {track.height}, more than {bounds.pixels} pixels")
    if decoder == "decord" and track.suits_decord and _put_with_decord(path, count, put):
        return
    indices = frame_indices(max(track.packets, 1), count)
    if _put_by_time(path, track, indices, put):
        return
    decoded = _put_in_order(path, indices, put)
    if decoded == 0:
        raise VideoError(path, "has a video stream, but no frame in it can be decoded")
    if decoded != max(track.packets, 1):  # packets are not always frames: the rule goes by what really came out
        _put_in_order(path, frame_indices(decoded, count), put)


def _places(indices: Indices, index: int) -> slice:
    """Where a frame goes: `indices` is ascending, and a short video has some frames more than once."""
    return slice(int(np.searchsorted(indices, index)), int(np.searchsorted(indices, index, side="right")))


def _put_in_order(path: Path, indices: Indices, put: Put) -> int:
    """Decode all frames from the start, and hand on those asked for. Returns how many frames there are."""
    wanted = set(indices.tolist())
    decoded = 0
    size = None
    with _opened(path) as video:
        for frame in _shown(video.decode()):
            if decoded in wanted:
                size = size or (frame.width, frame.height)
                put(_places(indices, decoded), _picture(frame, size))
            decoded += 1
    return decoded


def _key_before(track: _Track, index: int) -> int:
    """The last frame up to `index` at which decoding can start."""
    key = bisect_right(track.keys, track.times[index]) - 1
    return bisect_left(track.times, track.keys[key]) if key >= 0 else 0


def _put_by_time(path: Path, track: _Track, indices: Indices, put: Put) -> bool:
    """As `_put_in_order`, without decoding what no frame that is asked for needs: most of a long video.

    Returns whether every frame was found where its packet said, undamaged; if not, decoding from the start decides.
    """
    if not track.times:
        return False
    wanted = sorted(set(indices.tolist()))
    times = {track.times[index] for index in wanted}
    at, size = -1, None
    try:
        with _opened(path) as video:
            frames = _shown(video.decode(times))
            for index in wanted:
                key, time = _key_before(track, index), track.times[index]
                if key - at > _WORTH_A_SEEK:
                    video.container.seek(track.times[key], stream=video.stream)
                    frames = _shown(video.decode(times))
                frame: Any = next((frame for frame in frames if frame.pts is None or frame.pts >= time), None)
                if frame is None or frame.pts != time:
                    return False
                size = size or (frame.width, frame.height)
                put(_places(indices, index), _picture(frame, size))
                at = index
            return not video.said()
    except VideoError:
        return False


def _put_with_decord(path: Path, count: int, put: Put) -> bool:
    """Hand on the frames by decord. Returns whether it can read the file."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        indices = frame_indices(len(reader), count)
        for index in sorted(set(indices.tolist())):
            put(_places(indices, index), reader[index].asnumpy())
    except (decord.DECORDError, RuntimeError, IndexError, ValueError):
        return False
    return True


def _picture(frame: Any, size: tuple[int, int]) -> Frames:
    """One decoded frame as (H, W, 3) RGB. A stream may change its size on the way; `size` is the first frame's."""
    width, height = size
    if any(component.is_alpha for component in frame.format.components):
        rgba = frame.to_ndarray(format="rgba", width=width, height=height).astype(np.uint16)
        picture = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)  # as on a black page
    else:
        picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(picture, quarters)) if quarters else picture


def _shown(frames: Iterator[Any]) -> Iterator[Any]:
    """The frames, until one is damaged."""
    for frame in frames:
        if frame.is_corrupt:
            raise _Damaged("a frame is damaged")
        yield frame


_CONSTANCY_SIDE = 64
_SAME_LEVELS = 2
_ONE_COLOUR_LEVELS = 6


def _constancy(frames: Iterator[Any]) -> tuple[Any, Literal["", "same picture", "one colour"]]:
    """The first frame, and what of all frames does not change. Looks at small copies, free of coding noise."""
    first = next(frames, None)
    if first is None:
        raise _Damaged("has a video stream, but no frame in it can be decoded")
    reference = _thumbnail(first)
    same, flat, more = True, _is_flat(reference), False
    for frame in frames:
        more = True
        if not (same or flat):
            break
        small = _thumbnail(frame)
        same = same and bool(np.abs(small - reference).max() <= _SAME_LEVELS)
        flat = flat and _is_flat(small)
    else:
        return first, "one colour" if flat else "same picture" if more else ""
    return first, ""


def _thumbnail(frame: Any) -> npt.NDArray[np.int16]:
    side = _CONSTANCY_SIDE
    return frame.to_ndarray(format="rgb24", width=side, height=side, interpolation="AREA").astype(np.int16)


def _is_flat(small: npt.NDArray[np.int16]) -> bool:
    return bool(np.ptp(small, axis=(0, 1)).max() <= _ONE_COLOUR_LEVELS)


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


class _Damaged(Exception):
    """What is wrong with the frames; `_opened` makes a VideoError of it."""


class _opened:
    """An open video: container, stream, decoding. Whatever goes wrong inside is a VideoError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    container: Any
    stream: Any

    def __enter__(self) -> _opened:
        import av

        self._level = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)  # or the second file that is broken in the same way gives no reason
        self._log = av.logging.Capture()
        self._lines = self._log.__enter__()
        try:
            # Absolute, for FFmpeg takes "take2:final.mp4" for an address.
            self.container = av.open(str(self.path.absolute()), options={"format_whitelist": _FORMATS})
        except (av.error.FFmpegError, OSError, ValueError) as err:
            self._stop_logging()
            raise VideoError(self.path, self._cause(err)) from err
        if not self.container.streams.video:
            self.__exit__(None, None, None)
            raise VideoError(self.path, "has no video stream")
        self.stream = self.container.streams.video[0]
        context = self.stream.codec_context
        if context is None:
            self.__exit__(None, None, None)
            raise VideoError(self.path, "is of a codec that nothing here can decode")
        if context.width * context.height > MAX_PIXELS:
            self.__exit__(None, None, None)
            size = f"{context.width} x {context.height}"
            raise VideoError(self.path, f"has frames of {size}, more than {MAX_PIXELS} pixels")
        return self

    def decode(self, wanted: Container[int] | None = None) -> Iterator[Any]:
        """The frames of the video stream, in the order in which they are shown.

        With `wanted`, times of frames, others may be left out if no other frame needs them.
        """
        context = self.stream.codec_context
        if not context.is_open:
            context.thread_type = "AUTO"
            context.thread_count = _threads()
            context.options = {"err_detect": "explode"}  # a decoder shall not paint over what is missing
        for packet in self.container.demux(self.stream):
            if wanted is not None:
                context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
            yield from context.decode(packet)
        if said := self.said():
            raise _Damaged(f"is damaged ({said[-1]})")

    def said(self) -> list[str]:
        """The errors that FFmpeg has logged so far."""
        return [line[2].strip() for line in self._lines if line[0] <= 16 and line[2].strip()]

    def _stop_logging(self) -> None:
        import av

        self._log.__exit__(None, None, None)
        av.logging.set_level(self._level)

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        import av

        self.container.close()
        self._stop_logging()
        if isinstance(err, _Damaged):
            raise VideoError(self.path, str(err)) from err
        if isinstance(err, (av.error.FFmpegError, MemoryError)):
            raise VideoError(self.path, self._cause(err)) from err

    def _cause(self, err: Exception) -> str:
        """What FFmpeg logged last says more than its error code ("moov atom not found")."""
        said = self.said()
        if any("not on whitelist" in line for line in said):
            return "is no video, or a list of other files"
        text = getattr(err, "strerror", None) or str(err) or type(err).__name__
        return f"can't be decoded: {text[0].lower()}{text[1:]}" + (f" ({said[-1]})" if said else "")


def _threads() -> int:
    """How many threads FFmpeg may take: as many as torch, which is one in a worker process; 0 leaves it to FFmpeg."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(asked) if asked.isdecimal() else 0


def _survey(path: Path) -> _Track:
    """Read the packets of the first video stream. Raises VideoError, also for a file that was cut off.

    FFmpeg reads what is left of such a file as if it were all: a clip whose copy broke off would count as a short one.
    What is missing behind the last frame (sound, say) harms nothing.
    """
    with _opened(path) as video:
        stream = video.stream
        packets, torn, times, keys = 0, False, set[int](), set[int]()
        end = 0
        for packet in video.container.demux(stream):
            if packet.size == 0:
                continue
            packets += 1
            torn = torn or packet.is_corrupt
            if packet.pts is not None:
                times.add(packet.pts)
                end = max(end, packet.pts + (packet.duration or 0))
                if packet.is_keyframe:
                    keys.add(packet.pts)
        # An MP4 says where its packets lie, a Matroska file only logs it.
        size = path.stat().st_size
        torn = torn or any(entry.pos + entry.size > size for entry in stream.index_entries)
        torn = torn or not _ends_where_it_should(path, video.container.format.name, size)
        said = video.said()
        early = "File ended prematurely" in said
        if torn or (early and not _reaches_end(video.container, float(end * stream.time_base))):
            raise _Damaged("is cut off: a part of it is missing")
        if said and not early:
            raise _Damaged(f"is damaged ({said[-1]})")
        whole = len(times) == packets and bool(keys)
        rate = stream.average_rate or stream.guessed_rate
        return _Track(
            packets,
            stream.codec_context.width,
            stream.codec_context.height,
            float((end - min(times)) * stream.time_base if times else packets / rate if rate else 0),
            _suits_decord(video),
            tuple(sorted(times)) if whole else (),
            tuple(sorted(keys)) if whole else (),
        )


_TS_PACKETS = (188, 192, 204)


def _ends_where_it_should(path: Path, container: str, size: int) -> bool:
    """Whether a file of a format whose end FFmpeg does not look at is all there, as far as its format tells."""
    if container == "mpegts":
        return any(size % packet == 0 for packet in _TS_PACKETS)
    if container == "gif":
        with path.open("rb") as file:
            file.seek(max(0, size - 64))
            return file.read().rstrip(b"\0").endswith(b";")
    if container == "avi":
        with path.open("rb") as file:
            at = 12  # behind "RIFF", its size, "AVI "
            while at + 12 <= size:
                file.seek(at)
                name, length, kind = struct.unpack("<4sI4s", file.read(12))
                at += 8 + length + length % 2
                if (name, kind) == (b"LIST", b"movi"):
                    return at <= size + 1
    return True


def _suits_decord(video: _opened) -> bool:
    context = video.stream.codec_context
    untagged = context.color_range in (0, 1) and context.colorspace in (2, 5, 6)  # unspecified, or as SD video is
    return untagged and context.pix_fmt in _DECORD_PIXELS and video.container.format.name in _DECORD_CONTAINERS


def _reaches_end(container: Any, seconds: float) -> bool:
    """Whether a stream that ends at `seconds` is all that the container announces, to half a frame."""
    import av

    return container.duration is not None and seconds >= container.duration / av.time_base - 0.02
