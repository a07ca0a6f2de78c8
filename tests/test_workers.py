"""Jobs over processes: failures come after all others ran, and a lost process costs one job and no run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from qualivision import workers
from qualivision.video import VideoError
from qualivision.workers import Guard, LostError, Pool, in_processes


def work(number: int, folder: Path) -> tuple[int, int]:
    """A job; module-level, so that worker processes find it. The numbers above 90 fail."""
    (folder / str(number)).touch()
    if number > 90:
        raise VideoError(folder / f"{number}.mp4", "is cut off")
    return number, os.getpid()


def slow_work(number: int, folder: Path) -> None:
    time.sleep(0.1)
    work(number, folder)


def test_few_jobs_run_in_this_process_in_order(tmp_path):
    results = list(in_processes(work, [(number, tmp_path) for number in (1, 2, 3)], workers=2))
    assert results == [(number, os.getpid()) for number in (1, 2, 3)]


@pytest.mark.parametrize("others", [2, 12], ids=["in this process", "in worker processes"])
def test_a_failure_comes_as_it_is_after_all_others_ran(tmp_path, others):
    jobs = [99, *range(others)]
    done = []
    with pytest.raises(VideoError, match=r"99\.mp4: is cut off") as refused:
        for number, process in in_processes(work, [(number, tmp_path) for number in jobs], workers=2):
            done.append(number)
            assert (process == os.getpid()) == (others == 2)
    assert refused.value.path == tmp_path / "99.mp4"
    assert sorted(done) == list(range(others))


@pytest.mark.parametrize("others", [2, 12], ids=["in this process", "in worker processes"])
def test_several_failures_come_together_after_all_others_ran(tmp_path, others):
    jobs = [(number, tmp_path) for number in (98, *range(others), 99)]
    with pytest.raises(ExceptionGroup, match=f"2 of {others + 2} failed") as refused:
        list(in_processes(work, jobs, workers=2))
    assert {str(error) for error in refused.value.exceptions} == {
        f"{tmp_path / name}: is cut off" for name in ("98.mp4", "99.mp4")
    }
    assert len(os.listdir(tmp_path)) == others + 2


def test_jobs_not_begun_are_dropped_when_nobody_waits_for_them(tmp_path):
    results = iter(in_processes(slow_work, [(number, tmp_path) for number in range(40)], workers=2))
    next(results)
    results.close()
    assert len(os.listdir(tmp_path)) < 20


FULL = 50
LOST = {"crashes": 7, "hangs": 11, "swells": 13, "dies once": 17}


def hostile(number: int, folder: Path) -> int:
    """What a decoder may do to its process."""
    tries = folder / f"tries-{number}"
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    if number == LOST["crashes"]:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == LOST["hangs"]:
        time.sleep(60)
    if number == LOST["swells"]:
        bytearray(3 << 30)
    if number == LOST["dies once"] and tries.read_text() == "x":
        os._exit(3)
    if number == FULL:
        raise OSError(errno.ENOSPC, "can't write x: No space left on device")
    return number


def lost(job: tuple[int, Path], cause: str) -> VideoError:
    return VideoError(Path(str(job[0])), cause)


GUARD = Guard(seconds=4.0, memory_bytes=2 << 30, lost=lost)


def test_a_job_that_takes_its_process_with_it_costs_itself_alone(tmp_path):
    done = []
    with pytest.raises(ExceptionGroup) as refused:
        for number in in_processes(hostile, [(number, tmp_path) for number in range(20)], workers=2, guard=GUARD):
            done.append(number)
    assert sorted(done) == sorted(set(range(20)) - {7, 11, 13})
    assert {str(err) for err in refused.value.exceptions} == {
        "7: crashes the process that reads it (SIGSEGV), twice",
        "11: takes longer than 4 s, twice",
        "",  # a MemoryError, for the job to explain
    }
    tries = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert [tries[f"tries-{LOST[how]}"] for how in LOST] == [2, 2, 1, 2]


def test_a_single_job_under_guard_has_a_process_of_its_own(tmp_path):
    with pytest.raises(VideoError, match="7: crashes"):
        list(in_processes(hostile, [(7, tmp_path)], guard=GUARD))


@pytest.mark.parametrize("guard", [GUARD, None])
def test_a_pool_that_gives_up_costs_no_job(tmp_path, monkeypatch, guard):
    """It does when a process dies before it is known to have begun a job."""
    from pebble.pool.process import PoolManager

    find, given_up = PoolManager.find_expired_task, []

    def sometimes(manager, worker):
        if len(given_up) < 2:
            given_up.append(worker)
            raise BrokenProcessPool("All workers expired")
        return find(manager, worker)

    monkeypatch.setattr(PoolManager, "find_expired_task", sometimes)
    numbers = [7, *range(20, 40)]
    done = []
    with pytest.raises((VideoError, LostError), match="SIGSEGV"):
        for number in in_processes(hostile, [(number, tmp_path) for number in numbers], workers=2, guard=guard):
            done.append(number)
    assert len(given_up) == 2 and sorted(done) == numbers[1:]


def test_jobs_that_a_pool_took_when_it_had_given_up_already_go_to_another(tmp_path, monkeypatch):
    from pebble import ProcessPool

    monkeypatch.setattr(workers, "_LOOK_SECONDS", 0.2)
    schedule, late = ProcessPool.schedule, []

    def too_late(pool, *args, **options):
        if len(late) == 3:
            pool.stop()
        late.append(1)
        return Future() if len(late) in (4, 5) else schedule(pool, *args, **options)

    monkeypatch.setattr(ProcessPool, "schedule", too_late)
    numbers = list(range(20, 40))
    found = list(in_processes(hostile, [(number, tmp_path) for number in numbers], workers=2, guard=GUARD))
    assert sorted(found) == numbers and len(late) > 20


def test_a_pool_that_takes_nothing_at_all_is_an_error_and_not_replaced_forever(tmp_path, monkeypatch):
    from pebble import ProcessPool

    def refuse(pool, *args, **options):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ProcessPool, "schedule", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(in_processes(hostile, [(20, tmp_path)], guard=GUARD))


def test_jobs_that_no_pool_survives_are_named(tmp_path, monkeypatch):
    from pebble.pool.process import PoolManager

    def always(manager, worker):
        raise BrokenProcessPool("All workers expired")

    monkeypatch.setattr(PoolManager, "find_expired_task", always)
    with pytest.raises(VideoError, match="7: was not done: its worker died, twice"):
        list(in_processes(hostile, [(7, tmp_path)], guard=GUARD))


def test_without_a_guard_a_lost_job_is_named_all_the_same(tmp_path):
    with pytest.raises(LostError, match=r"hostile\(7, .*SIGSEGV"):
        list(in_processes(hostile, [(number, tmp_path) for number in range(1, 10)], workers=2))


def test_a_full_disk_stops_all_jobs_at_once(tmp_path):
    jobs = [(FULL, tmp_path), *((100 + number, tmp_path) for number in range(200))]
    with pytest.raises(OSError, match="No space left on device"):
        list(in_processes(hostile, jobs, workers=2, guard=GUARD))
    assert len(os.listdir(tmp_path)) < 100


def say_and_stay(number: int, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_at_once_with_a_run_that_was_killed(tmp_path):
    """A left over worker would write into the cache that the next run takes for its own."""
    jobs = f"[(number, pathlib.Path({str(tmp_path)!r})) for number in range(20)]"
    program = (
        "import pathlib, test_workers; from qualivision.workers import in_processes; "
        f"list(in_processes(test_workers.say_and_stay, {jobs}, workers=2))"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=Path(__file__).parent)
    wait_for(lambda: len(os.listdir(tmp_path)) == 2)
    run.kill()
    run.wait()
    workers = [int(name) for name in os.listdir(tmp_path)]
    wait_for(lambda: not any(Path(f"/proc/{worker}/exe").exists() for worker in workers), seconds=1.0)


UNGUARDED = """
from pathlib import Path
from qualivision.decoding import Decoders
from qualivision.settings import DecodeSettings, FrameSpec
decoders = Decoders(DecodeSettings(), workers=1)
(shown,) = decoders.frames(Path("clip.mp4"), (FrameSpec(count=4, height=64, width=64),)).result()
print(shown.shape)
decoders.close()
"""


@pytest.mark.parametrize("by", ["stdin", "file"])
def test_workers_that_stay_do_not_run_the_callers_script_again(tmp_path, make_clip, by):
    make_clip(tmp_path / "clip.mp4")
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, *(["script.py"] if by == "file" else [])]
    where = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}}
    done = subprocess.run(command, input=UNGUARDED, capture_output=True, text=True, timeout=60, **where)
    assert (done.returncode, done.stdout) == (0, "(4, 64, 64, 3)\n"), done.stderr


def hostile_to_pool(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        time.sleep(60)
    return number


def test_a_pool_that_stays_loses_a_job_and_not_its_workers():
    pool = Pool(Guard(seconds=4.0, memory_bytes=2 << 30, lost=lost), workers=2)
    try:
        for _ in range(2):
            jobs = [pool.submit(hostile_to_pool, number) for number in range(6)]
            with pytest.raises(VideoError, match=r"1: crashes the process that reads it \(SIGSEGV\)$"):
                jobs[1].result()
            with pytest.raises(VideoError, match=r"2: takes longer than 4 s$"):
                jobs[2].result()
            assert [job.result() for number, job in enumerate(jobs) if number not in (1, 2)] == [0, 3, 4, 5]
    finally:
        pool.close()


def pid_of(number: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def test_workers_that_die_with_nothing_to_do_are_replaced():
    pool = Pool(Guard(seconds=4.0, memory_bytes=2 << 30, lost=lost), workers=2)
    try:
        for _ in range(3):
            workers = {job.result() for job in [pool.submit(pid_of, number) for number in range(8)]}
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.5)
    finally:
        pool.close()


def wait_for(done, *, seconds: float = 30.0) -> None:
    start = time.monotonic()
    while not done():
        assert time.monotonic() - start < seconds
        time.sleep(0.01)
