"""The frame cache (what a model reads of each video) and the stem cache (what its frozen part makes of that).

Owns what the keys of the two caches depend on and how they are filled. Files and checks are `cache.py`'s, decoding is
`video.py`'s; the stem itself is handed in, so that this room knows no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qualivision import video
from qualivision.cache import Cache, Filled, file_hash, in_processes, make_key
from qualivision.labels import SPLITS, videos_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qualivision.cache import Arrays
    from qualivision.progress import Advance
    from qualivision.settings import FrameSpec

VIDEO_SUFFIXES = frozenset({".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})


def frame_cache(folder: Path, model: str) -> Cache:
    """The frame cache of a model: entry `frames`, (count, height, width, 3) uint8 RGB."""
    return Cache(folder, stage=f"qualivision frames {model}")


def stem_cache(folder: Path, model: str) -> Cache:
    """The stem cache of a model: the arrays that its `stem` gives for one clip."""
    return Cache(folder, stage=f"qualivision encode {model}")


def clip_name(split: str, video_name: str) -> str:
    """How the caches call a clip: its path below the data folder."""
    return f"{split}/videos/{video_name}"


def all_videos(data: Path) -> dict[str, Path]:
    """{clip: file} of every video of a data set, whether it has a label or not."""
    return {
        clip_name(split, path.name): path
        for split in SPLITS
        for path in sorted(videos_dir(data, split).glob("*"))
        if path.suffix.lower() in VIDEO_SUFFIXES
    }


def fill_frames(cache: Cache, data: Path, spec: FrameSpec, *, advance: Advance, workers: int | None = None) -> Filled:
    """Decode the videos that the frame cache lacks.

    Raises:
        VideoError: a video that can't be read (several: an ExceptionGroup of them); all others are cached by then.
    """
    videos = all_videos(data)
    wanted = {clip: make_key(file_hash(path), spec, video.READER_VERSION) for clip, path in videos.items()}

    def missing(clips: list[str]) -> Iterator[object]:
        jobs = [(cache, wanted[clip], videos[clip], spec) for clip in clips]
        yield from in_processes(_decode_one, jobs, workers=workers)

    return cache.fill(wanted, missing, advance=advance)


def _decode_one(cache: Cache, key: str, path: Path, spec: FrameSpec) -> None:
    cache.write(key, {"frames": video.read_frames(path, spec)})


def fill_stems(
    cache: Cache,
    frames: Cache,
    fingerprint: str,
    make_stem: Callable[[], Callable[[Arrays], Arrays]],
    *,
    advance: Advance,
) -> Filled:
    """Run a model's frozen stem over the clips that the stem cache lacks.

    Args:
        cache: the stem cache to fill.
        frames: the model's frame cache, filled.
        fingerprint: names the stem's code and weights; another one makes every entry again.
        make_stem: loads the stem, which takes one entry of the frame cache to one of the stem cache; called only when
            a clip needs it.
        advance: told of the progress.
    """
    index = frames.index()
    wanted = {clip: make_key(key, fingerprint) for clip, key in index.items()}

    def missing(clips: list[str]) -> Iterator[object]:
        if not clips:
            return
        stem = make_stem()
        for clip in clips:
            cache.write(wanted[clip], stem(frames.read(index[clip])))
            yield clip

    return cache.fill(wanted, missing, advance=advance)
