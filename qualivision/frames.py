"""The frame cache (what a model reads of each video) and the stem cache (what its frozen part makes of that).

Owns what the keys of the two caches depend on and how they are filled. Files and checks are `cache.py`'s, decoding is
`video.py`'s; the stem itself is handed in, so that this room knows no model.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from shutil import disk_usage
from typing import TYPE_CHECKING, Literal

from qualivision import video
from qualivision.cache import Cache, CacheError, Filled, file_hash, make_key
from qualivision.labels import SPLITS, labels_path, read_labels, videos_dir
from qualivision.workers import in_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qualivision.cache import Arrays
    from qualivision.progress import Advance
    from qualivision.settings import DecodeSettings, FrameSpec
    from qualivision.workers import Job

    MakeStem = Callable[[], Callable[[Arrays], Arrays]]
    Run = Callable[[Callable[..., None], list[Job]], Iterable[object]]
    """Runs `work(*job)` for each job: yields once for each that is done, then raises what failed."""


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


def fill_frames(
    cache: Cache,
    data: Path,
    spec: FrameSpec,
    limits: DecodeSettings,
    *,
    advance: Advance,
    say: Callable[[str], None] = lambda line: None,
    others: Iterable[Cache] = (),
    workers: int | None = None,
    verify: bool = False,
    prune: bool = True,
    run: Run | None = None,
) -> Filled:
    """Decode the labelled videos that the frame cache lacks, each in a process that it may crash or hang.

    Args:
        cache: the frame cache to fill.
        data: the data folder.
        spec: what the model reads of a video.
        limits: how long one video may take, and how much memory.
        advance: told of the progress.
        say: told what there is to do, and how much disk it takes, before it starts.
        others: frame caches of other models; what they hold of this spec is shared.
        workers: processes; by default one for each core.
        verify: see `Cache.fill`.
        prune: see `Cache.fill`.
        run: runs the jobs in place of `in_processes`: elsewhere than in processes of this machine.
    Raises:
        LabelError: a label table that can't be read.
        CacheError: the disk has no room for what is missing.
        VideoError: a video that can't be read (several: an ExceptionGroup of them); all others are cached by then.
    """
    videos = labelled_videos(data)
    contents = cache.seen.find(set(videos.values()), _content)
    wanted = {clip: make_key(contents[path] or path, spec, video.READER_VERSION) for clip, path in videos.items()}

    def missing(clips: list[str]) -> Iterator[object]:
        if clips:
            say(_room_for(cache, len(clips), spec))
        jobs = [(videos[clip], cache, wanted[clip], spec, limits.decoder) for clip in clips]
        if run is not None:
            yield from run(_decode_one, jobs)
        else:
            yield from in_processes(_decode_one, jobs, workers=workers, guard=video.decoding_guard(limits))

    return cache.fill(wanted, missing, advance=advance, others=others, verify=verify, prune=prune)


def _room_for(cache: Cache, clips: int, spec: FrameSpec) -> str:
    """What so many clips take on disk, in words. Raises CacheError when there is no room for it."""
    need, free = clips * spec.bytes, disk_usage(cache.folder).free
    estimate = f"{clips} clips to decode at {spec}: {need / 1e9:.2f} GB to write, {free / 1e9:.1f} GB free"
    if need > free:
        raise CacheError(
            f"{cache.folder}: not enough room for {estimate}; free some, or make {cache.folder} a link to a larger disk"
        )
    return estimate


def _content(path: Path) -> str | None:
    """What a video's key goes by; None for a file that can't be read, so that decoding gets to say what is wrong."""
    try:
        return file_hash(path)
    except OSError:
        return None


def _decode_one(path: Path, cache: Cache, key: str, spec: FrameSpec, decoder: Literal["pyav", "decord"]) -> None:
    cache.write(key, {"frames": video.read_frames(path, spec, decoder=decoder)})


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
