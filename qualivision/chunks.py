"""Work in chunks, for processes that may be on other machines and see the checkout under the same path.

Owns what a worker does with a chunk, what it keeps from one to the next, and how a run hands chunks out. Knows no
cluster: `flows/dask_workers.py` does. A worker holds one model and its decoding processes, started once; a video that
crashes or hangs ends a decoding process and not the worker.
"""

from __future__ import annotations

import math
import os
import socket
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from qualivision import environment, video
from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qualivision.batch import Asked, Found
    from qualivision.decoding import Decoders
    from qualivision.scoring import Scorer
    from qualivision.settings import DecodeSettings
    from qualivision.workers import Job, Pool

Item = TypeVar("Item")

CHUNK: Final = 32
"""At most so many clips in a chunk: seconds of work, of which handing it out is some hundredths."""
_CHUNKS_PER_WORKER = 4
"""At least so many for each worker, where there are enough clips: the slower one then gets fewer."""
_AHEAD = 2
"""Chunks that each worker has: one that it works at, one that waits."""
_CHECK_SECONDS = 10.0
_CARRIED: Final = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")


class ClusterError(QualiVisionError):
    """Workers that can't do a run's work: says which, why, and the way out."""


# What a run hands out


@dataclass(frozen=True)
class Place:
    """Where a run is, for workers to be there too.

    Attributes:
        folder: the checkout.
        package: where its code lies.
        token: a file that only who sees the run's `state/` can see.
        variables: what says where the registry is; None where a variable is not set.
    """

    folder: Path
    package: Path
    token: Path
    variables: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Judge:
    """A model that chunks are scored with.

    Attributes:
        model: the URI of a version, not of an alias: all workers shall have the same. Or a checkpoint's folder.
        label: `Located.label` as the run has it.
        limits: what decoding one video may take.
        batch: clips that go through the model at once; by default as the device has it.
    """

    model: str
    label: str
    limits: DecodeSettings
    batch: int | None = None


@contextmanager
def shown_place() -> Iterator[Place]:
    """This run's place; workers can see it only for as long."""
    state = environment.STATE.absolute()
    state.mkdir(parents=True, exist_ok=True)
    handle, token = tempfile.mkstemp(prefix="run-", dir=state)
    os.close(handle)
    os.chmod(token, 0o644)
    try:
        variables = tuple((name, os.environ.get(name)) for name in _CARRIED)
        yield Place(Path.cwd(), Path(__file__).parent, Path(token), variables)
    finally:
        Path(token).unlink(missing_ok=True)


def in_chunks(items: Iterable[Item], total: int, workers: int) -> Iterator[list[Item]]:
    """Items in lists of at most `CHUNK`, fewer where otherwise some of the workers would have none; taken as needed."""
    size = max(1, min(CHUNK, math.ceil(total / (workers * _CHUNKS_PER_WORKER))))
    todo = iter(items)
    while chunk := list(islice(todo, size)):
        yield chunk


class Handed(Protocol):
    """A chunk that was handed out: a future, of any engine."""

    def result(self) -> Any: ...

    def add_done_callback(self, call: Callable[[Any], None], /) -> None: ...


def spread(
    submit: Callable[[Item], Handed],
    chunks: Iterable[Item],
    *,
    workers: int,
    check: Callable[[], None],
    check_seconds: float = _CHECK_SECONDS,
) -> Iterator[Any]:
    """Hand out chunks, a few at a time, and give what comes back, in the order of coming.

    Args:
        submit: hands one out.
        chunks: taken only as fast as they are worked at.
        workers: how many there are.
        check: called while nothing comes; raises when nothing will.
        check_seconds: how often.
    Raises:
        Whatever a chunk raised; others may be under way then.
    """
    todo = iter(chunks)
    done: SimpleQueue[Handed] = SimpleQueue()
    handed = 0
    while True:
        for chunk in islice(todo, _AHEAD * workers - handed):
            submit(chunk).add_done_callback(done.put)
            handed += 1
        if not handed:
            return
        while True:
            try:
                back = done.get(timeout=check_seconds)
                break
            except Empty:
                check()
        handed -= 1
        yield back.result()


# What a worker does

_at_work = Lock()
"""One chunk at a time in a process, however many threads its cluster gives it: there is one model."""


def settle(place: Place) -> None:
    """Be where the run is: its folder, its code, its registry.

    Raises:
        ClusterError: this process is somewhere else.
    """
    here = socket.gethostname()
    if not place.token.exists():
        raise ClusterError(
            f"{here}: does not see {place.token.parent}; workers need the folder of the run, {place.folder}, under the "
            "same path (a shared file system)"
        )
    if Path(__file__).parent != place.package:
        raise ClusterError(
            f"{here}: runs the code of {Path(__file__).parent}, and the run that of {place.package}; start the workers "
            "in the environment of the run"
        )
    os.chdir(place.folder)
    for name, value in place.variables:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    environment.prepare()
    environment.keep_freed_memory()


def score_chunk(place: Place, judge: Judge, chunk: list[tuple[str, Asked]], processes: int) -> list[tuple[str, Found]]:
    """Score some videos; gives each name with its scores, or with the error of one that can't be scored.

    Args:
        place: where the run is.
        judge: the model; loaded when it is another one than that of the chunk before.
        chunk: (name, video).
        processes: that decode.
    Raises:
        ClusterError: this process does not see what the run sees, or finds another model.
        ModelNotFoundError: it can't fetch the model.
    """
    from qualivision.batch import clips_at_once, judged

    with _at_work:
        settle(place)
        _check_folders(Path(asked.path) for _, asked in chunk if asked.path)
        scorer, decoders = _kept.judge(judge, processes)
        return list(judged(scorer, decoders, chunk, batch=judge.batch or clips_at_once(scorer)))


def run_jobs(
    place: Place, work: Callable[..., Any], jobs: list[Job], limits: DecodeSettings, processes: int
) -> list[Exception]:
    """`work(*job)` for each job, whose first argument is a video, in guarded processes; gives what failed.

    A job that is lost with its process is tried once more when the others are done.

    Raises:
        ClusterError: this process does not see what the run sees.
        OSError: the disk is full or can't be written.
    """
    failed: list[Exception] = []
    with _at_work:
        settle(place)
        _check_folders(job[0] for job in jobs)
        pool = _kept.pool(limits, processes)
        for again in (True, False):
            lost = []
            for job, future in [(job, pool.submit(work, *job)) for job in jobs]:
                failure = future.exception()
                if isinstance(failure, video.LostVideoError) and again:
                    lost.append(job)
                elif isinstance(failure, video.LostVideoError):
                    failed.append(video.VideoError(failure.path, f"{failure.cause}, twice"))
                elif isinstance(failure, Exception) and not isinstance(failure, OSError):
                    failed.append(failure)
                elif failure is not None:  # the disk's, not the video's: no job after this one would fare better
                    raise failure
            jobs = lost
    return failed


def let_go() -> None:
    """Give back the memory and the processes that this process keeps for the next chunk; not while it is at one."""
    if _at_work.acquire(blocking=False):
        try:
            _kept.drop()
        finally:
            _at_work.release()


def _check_folders(files: Iterable[Path]) -> None:
    """A file that is not there is that file's failure; a folder that is not there is this machine's."""
    for folder in sorted({file.parent for file in files}):
        if not folder.is_dir():
            raise ClusterError(
                f"{socket.gethostname()}: has no folder {folder.absolute()}; workers need the folders of the run under "
                "the same path (a shared file system)"
            )


class _Kept:
    """What this process keeps from one chunk to the next: what the last one needed."""

    def __init__(self) -> None:
        self._scoring: tuple[tuple[Judge, int], Scorer, Decoders] | None = None
        self._decoding: tuple[tuple[DecodeSettings, int], Pool] | None = None

    def judge(self, judge: Judge, processes: int) -> tuple[Scorer, Decoders]:
        """The model, and the processes that decode for it."""
        from qualivision.decoding import Decoders
        from qualivision.scoring import Scorer, locate

        if self._scoring is None or self._scoring[0] != (judge, processes):
            self.drop()
            found = locate(judge.model)
            if found.label != judge.label:
                raise ClusterError(
                    f"{socket.gethostname()}: {judge.model} is {found.label} here, and was {judge.label} when the run "
                    "began; run it again when nobody trains that model"
                )
            decoders = Decoders(judge.limits, workers=processes)
            try:
                decoders.warm()  # while the model loads
                self._scoring = ((judge, processes), Scorer(found), decoders)
            finally:
                if self._scoring is None:
                    decoders.close()
        return self._scoring[1:]

    def pool(self, limits: DecodeSettings, processes: int) -> Pool:
        """The processes for jobs."""
        from qualivision.workers import Pool

        if self._decoding is None or self._decoding[0] != (limits, processes):
            self.drop()
            self._decoding = ((limits, processes), Pool(video.decoding_guard(limits), workers=processes))
        return self._decoding[1]

    def drop(self) -> None:
        """Let go of all of it: the work is another one now."""
        if self._scoring is not None:
            self._scoring[2].close()
        if self._decoding is not None:
            self._decoding[1].close()
        self._scoring = self._decoding = None


_kept = _Kept()
