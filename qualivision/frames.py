"""The frame cache (what a model reads of each video) and the stem cache (what its frozen part makes of that).

Owns what the keys of the two caches depend on and how they are filled. Files and checks are `cache.py`'s, decoding is
`video.py`'s; the stem itself is handed in, so that this room knows no model.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision import video
from qualivision.cache import Cache, Filled, file_hash, in_processes, make_key
from qualivision.labels import SPLITS, labels_path, read_labels, videos_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qualivision.cache import Arrays
    from qualivision.progress import Advance
    from qualivision.settings import FrameSpec

    MakeStem = Callable[[], Callable[[Arrays], Arrays]]


def frame_cache(folder: Path, model: str) -> Cache:
    """The frame cache of a model: entry `frames`, (count, height, width, 3) uint8 RGB."""
    return Cache(folder, stage=f"qualivision frames {model}")


def stem_cache(folder: Path, model: str) -> Cache:
    """The stem cache of a model: the arrays that its `stem` gives for one clip."""
    return Cache(folder, stage=f"qualivision encode {model}")


def clip_name(split: str, video_name: str) -> str:
    """How the caches call a clip: its path below the data folder."""
    return f"{split}/videos/{video_name}"


def labelled_videos(data: Path) -> dict[str, Path]:
    """{clip: file} of every row of a data set's label tables. Raises LabelError."""
    return {
        clip_name(split, name): videos_dir(data, split) / name
        for split in SPLITS
        for name in read_labels(labels_path(data, split), require_mos=False)["video_name"]
    }


def fill_frames(cache: Cache, data: Path, spec: FrameSpec, *, advance: Advance, workers: int | None = None) -> Filled:
    """Decode the labelled videos that the frame cache lacks.

    Raises:
        LabelError: a label table that can't be read.
        VideoError: a video that can't be read (several: an ExceptionGroup of them); all others are cached by then.
    """
    videos = labelled_videos(data)
    wanted = {clip: make_key(_content(path), spec, video.READER_VERSION) for clip, path in videos.items()}

    def missing(clips: list[str]) -> Iterator[object]:
        jobs = [(cache, wanted[clip], videos[clip], spec) for clip in clips]
        yield from in_processes(_decode_one, jobs, workers=workers)

    return cache.fill(wanted, missing, advance=advance)


def _content(path: Path) -> str:
    """What a video's key goes by; of a file that can't be read its name, so that decoding gets to say what is wrong."""
    try:
        return file_hash(path)
    except OSError:
        return str(path)


def _decode_one(cache: Cache, key: str, path: Path, spec: FrameSpec) -> None:
    cache.write(key, {"frames": video.read_frames(path, spec)})


def fill_stems(
    cache: Cache,
    frames: Cache,
    fingerprint: str,
    make_stem: MakeStem,
    *,
    advance: Advance,
    workers: int | None = None,
) -> Filled:
    """Run a model's frozen stem over the clips that the stem cache lacks.

    Args:
        cache: the stem cache to fill.
        frames: the model's frame cache, filled.
        fingerprint: names the stem's code and weights; another one makes every entry again.
        make_stem: loads the stem, which takes one entry of the frame cache to one of the stem cache; called once in
            each process that has a clip to encode, so it has to be hashable and to survive pickling.
        advance: told of the progress.
        workers: processes; by default one for each core.
    """
    index = frames.index()
    wanted = {clip: make_key(key, fingerprint) for clip, key in index.items()}

    def missing(clips: list[str]) -> Iterator[object]:
        jobs = [(make_stem, frames, index[clip], cache, wanted[clip]) for clip in clips]
        yield from in_processes(_encode_one, jobs, workers=workers)

    try:
        return cache.fill(wanted, missing, advance=advance)
    finally:
        _loaded.cache_clear()


@lru_cache(maxsize=1)
def _loaded(make_stem: MakeStem) -> Callable[[Arrays], Arrays]:
    return make_stem()


def _encode_one(make_stem: MakeStem, frames: Cache, source: str, cache: Cache, key: str) -> None:
    cache.write(key, _loaded(make_stem)(frames.read(source)))
