"""Jobs over worker processes that may crash, hang or swell without taking the run with them.

Owns the processes: how they start, settle and end, and what becomes of a job whose process is lost. Does not know what
a job is. Built on pebble's pool, which tells which job a lost process was at and can stop one that hangs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from threading import Lock, Thread
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qualivision.environment import keep_freed_memory
from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from pebble import ProcessPool

    Job = tuple[Any, ...]

_IN_PROCESS_UP_TO = 8
"""So few jobs that nobody guards are done faster than worker processes start."""

_QUEUED_PER_WORKER = 4
_BROKEN_POOLS = 5
"""In so many a job has its try before it is held to be what breaks them."""
_LOOK_SECONDS = 5.0
"""Between two looks at whether a pool that says nothing still lives."""

# No job after this one would fare better.
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


class LostError(QualiVisionError):
    """A job that took its process with it: it crashed, or ran past its limit, and did so again when retried."""


@dataclass(frozen=True)
class Guard:
    """Limits of a job on input that nobody vouches for.

    Attributes:
        seconds: of one job; then its process is stopped.
        memory_bytes: that a process may allocate (Linux); what asks for more gets a MemoryError, or crashes.
        lost: makes the error of a job that was lost twice, from its arguments and the cause in words.
    """

    seconds: float
    memory_bytes: int
    lost: Callable[[Job, str], Exception]


def in_processes(
    work: Callable[..., Any], jobs: Iterable[Job], *, workers: int | None = None, guard: Guard | None = None
) -> Generator[Any]:
    """Run `work(*job)` for each job over processes; yields the results as they come, then raises the failures.

    A job that fails does not stop the others, unless the disk is full. One that takes its process with it is tried once
    more, in a process of its own. Several failures come as one ExceptionGroup.

    Args:
        work: a module-level function.
        jobs: its arguments, one tuple a job.
        workers: processes; by default one for each core.
        guard: limits of each job. With it even a single job has a process, without it few jobs run in this one.
    Raises:
        LostError: a job without a guard was lost twice.
        OSError: the disk is full or can't be written; at once.
    """
    jobs = list(jobs)
    workers = min(workers or cores(), len(jobs))
    failures: list[Exception] = []
    lost: list[Job] = []
    if workers == 0:
        return
    if guard is None and (workers == 1 or len(jobs) <= _IN_PROCESS_UP_TO):
        for job in jobs:
            try:
                yield work(*job)
            except Exception as err:  # noqa: BLE001 - raised below, with the others
                failures.append(_unless_hopeless(err))
    else:
        for job, future in _each_in_pool(work, jobs, workers, guard, per_process=0):
            if _loss(future, guard) is not None:
                lost.append(job)
                continue
            if (failure := future.exception()) is None:
                yield future.result()
            else:
                failures.append(_unless_hopeless(failure))
        for job, future in _each_in_pool(work, lost, 1, guard, per_process=1):
            if (cause := _loss(future, guard)) is not None:
                cause = f"{cause}, twice"
                failures.append(guard.lost(job, cause) if guard else LostError(f"{work.__name__}{job}: {cause}"))
            elif (failure := future.exception()) is None:
                yield future.result()
            else:
                failures.append(_unless_hopeless(failure))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(jobs)} failed", failures)


class Pool:
    """Worker processes that stay, for jobs that come one by one, from any thread.

    A job has one try: somebody waits for it. A process that is lost is replaced.

    Args:
        guard: limits of each job.
        workers: processes; by default one for each core. They start with the first job.
    """

    def __init__(self, guard: Guard, *, workers: int | None = None) -> None:
        self._guard = guard
        self._workers = workers or cores()
        self._lock = Lock()
        self._closed = False
        self._pool = self._new()

    def submit(self, work: Callable[..., Any], *job: Any) -> Future[Any]:
        """`work(*job)` in a worker; the error of a job that was lost is the guard's. RuntimeError once closed."""
        outcome: Future[Any] = Future()
        self._schedule(outcome, work, job, again=True)
        return outcome

    def close(self) -> None:
        """Stop the processes; jobs that are not done by then are lost."""
        self._closed = True
        self._pool.stop()
        self._pool.join()

    def _new(self) -> ProcessPool:
        return _process_pool(self._workers, self._guard, context=_WithoutMain())

    def _schedule(self, outcome: Future[Any], work: Callable[..., Any], job: Job, *, again: bool) -> None:
        def settle(done: Future[Any]) -> None:
            failure = None if done.cancelled() else done.exception()
            if isinstance(failure, BrokenProcessPool) and again:
                self._schedule(outcome, work, job, again=False)
            elif done.cancelled() or isinstance(failure, BrokenProcessPool):
                outcome.set_exception(self._guard.lost(job, "was not read: its worker was stopped"))
            elif (cause := _loss(done, self._guard)) is not None:
                outcome.set_exception(self._guard.lost(job, cause))
            elif failure is not None:
                outcome.set_exception(failure)
            else:
                outcome.set_result(done.result())

        with self._lock:
            try:
                future = self._pool.schedule(work, args=job, timeout=self._guard.seconds)
            except RuntimeError:  # pebble gives up for good when a worker dies that had nothing to do
                if self._closed:
                    raise
                self._pool = self._new()
                future = self._pool.schedule(work, args=job, timeout=self._guard.seconds)
        future.add_done_callback(settle)


def cores() -> int:
    """How many cores this process may use; in a container, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _each_in_pool(
    work: Callable[..., Any], jobs: list[Job], workers: int, guard: Guard | None, *, per_process: int
) -> Iterator[tuple[Job, Future[Any]]]:
    """Each job with its future, done. Queues only a few at a time, and stops the processes when nobody asks on.

    pebble gives up a whole pool when a process dies before it is known to have begun a job, as on a busy machine. Its
    jobs then go to a new one, until they have been in so many that did.
    """
    todo = deque((job, 1) for job in jobs)
    if not todo:
        return
    pool, has_begun = _process_pool(workers, guard, per_process=per_process), False
    running: dict[Future[Any], tuple[Job, int]] = {}
    try:
        while todo or running:
            while todo and len(running) < workers * _QUEUED_PER_WORKER:
                try:
                    begun = pool.schedule(work, args=todo[0][0], timeout=guard.seconds if guard else None)
                except RuntimeError:
                    if running:
                        break  # they are told first
                    if not has_begun:
                        raise  # another would do no better
                    pool.stop()
                    pool.join()
                    pool, has_begun = _process_pool(workers, guard, per_process=per_process), False
                    continue
                running[begun], has_begun = todo.popleft(), True
            done, _ = wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            if not done and not pool.active:  # these came when it had told its jobs already
                for future in (one for one in running if not one.done()):
                    future.set_exception(BrokenProcessPool("came too late"))
            for future in done:
                job, pools = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool) and pools < _BROKEN_POOLS:
                    todo.append((job, pools + 1))
                else:
                    yield job, future
        pool.close()
    finally:
        pool.stop()
        pool.join()


def _process_pool(
    workers: int, guard: Guard | None, *, per_process: int = 0, context: SpawnContext | None = None
) -> ProcessPool:
    from pebble import ProcessPool

    limit = guard.memory_bytes if guard else None
    # spawn: a forked child of a process with threads (torch, decord) may hang.
    context = context or get_context("spawn")
    return ProcessPool(workers, max_tasks=per_process, initializer=_settle, initargs=(limit,), context=context)


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = main


class _WithoutMain(SpawnContext):
    """Processes that do not import their parent's script, which may be anybody's.

    A script that has no `if __name__ == "__main__"` would run again in each of them, and one that came from stdin is
    not to be found.
    """

    Process = _Process


def _loss(future: Future[Any], guard: Guard | None) -> str | None:
    """How the process of a job was lost, in words; None when it was not."""
    from pebble import ProcessExpired

    err = future.exception()
    if isinstance(err, ProcessExpired):
        how = signal.Signals(-err.exitcode).name if err.exitcode < 0 else f"exit code {err.exitcode}"
        return f"crashes the process that reads it ({how})"
    if isinstance(err, BrokenProcessPool):
        return "was not done: its worker died"
    if isinstance(err, TimeoutError) and guard:
        return f"takes longer than {guard.seconds:g} s"
    return None


def _unless_hopeless(err: BaseException) -> Exception:
    """The error, to be raised later; raised now when it is not one of a single job."""
    if not isinstance(err, Exception) or (isinstance(err, OSError) and err.errno in _HOPELESS):
        raise err
    return err


def _settle(memory_bytes: int | None) -> None:
    """Each worker has one core: more threads, torch's or FFmpeg's, would only fight for it."""
    keep_freed_memory()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # torch, which takes a second, may never come
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    if memory_bytes is not None and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker as soon as its parent is gone: a parent that was killed could not tell it to."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
