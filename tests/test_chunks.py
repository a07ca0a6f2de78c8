"""Chunks: how they are cut and handed out, and what a worker refuses to do."""

from __future__ import annotations

import errno
import os
import signal
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest

from qualivision import chunks, environment, scoring
from qualivision.batch import Asked
from qualivision.chunks import CHUNK, ClusterError, Judge, in_chunks, run_jobs, score_chunk, settle, shown_place, spread
from qualivision.scoring import Located
from qualivision.settings import DecodeSettings
from qualivision.video import VideoError

LIMITS = DecodeSettings(seconds=3.0)


@pytest.mark.parametrize(
    ("total", "workers", "sizes"),
    [
        (0, 2, []),
        (1, 2, [1]),
        (8, 2, [1] * 8),
        (20, 2, [3] * 6 + [2]),  # few: each worker has some
        (1000, 2, [CHUNK] * 31 + [8]),  # many: no chunk is longer than that
        (20, 100, [1] * 20),
    ],
)
def test_chunks_are_short_and_each_worker_has_some(total, workers, sizes):
    found = list(in_chunks(range(total), total, workers))
    assert [len(chunk) for chunk in found] == sizes
    assert [item for chunk in found for item in chunk] == list(range(total))


def never() -> None:
    raise AssertionError("asked whether anything will come, when something had")


def test_chunks_are_taken_as_workers_get_free_and_come_back_in_any_order():
    futures: list[Future] = []
    finishes = {3: [2], 4: [0], 5: [4], 6: [5, 1, 3, 6]}  # which are done when one is handed out

    def submit(item: int) -> Future:
        assert item == len(futures)
        futures.append(Future())
        for done in finishes.get(item, []):
            futures[done].set_result(done)
        return futures[item]

    back = []
    for found in spread(submit, iter(range(7)), workers=2, check=never):
        back.append(found)
        assert len(futures) - len(back) <= 3  # two for each worker, less the one that is back
    assert back == [2, 0, 4, 5, 1, 3, 6]


def test_what_a_chunk_raises_is_raised_and_nothing_more_is_handed_out():
    handed = []

    def submit(item: int) -> Future:
        handed.append(item)
        future: Future = Future()
        future.set_exception(ClusterError("a worker is elsewhere"))
        return future

    with pytest.raises(ClusterError, match="elsewhere"):
        list(spread(submit, range(100), workers=1, check=never))
    assert handed == [0, 1]


def test_while_nothing_comes_it_is_asked_whether_anything_will():
    def check() -> None:
        raise ClusterError("nobody is left")

    with pytest.raises(ClusterError, match="nobody is left"):
        list(spread(lambda item: Future(), range(3), workers=1, check=check, check_seconds=0.01))


# A worker, which here is this process


@pytest.fixture
def place(tmp_path, monkeypatch):
    """This run's place, in a folder of its own; what a worker keeps is dropped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "STATE", Path("state"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    with shown_place() as shown:
        yield shown
    chunks.let_go()


def test_a_worker_goes_where_the_run_is(place, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://another")
    settle(replace(place, variables=(("MLFLOW_TRACKING_URI", "http://here"), ("MLFLOW_REGISTRY_URI", None))))
    assert Path.cwd() == place.folder == tmp_path
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://here"
    assert "MLFLOW_REGISTRY_URI" not in os.environ


def test_a_worker_that_sees_another_state_folder_refuses(place):
    with pytest.raises(ClusterError, match=rf"does not see {place.folder}/state; workers need the folder of the run"):
        settle(replace(place, token=place.token.with_name("run-of-another-machine")))


def test_a_worker_of_another_installation_refuses(place):
    with pytest.raises(
        ClusterError, match=r"runs the code of .*qualivision, and the run that of /elsewhere/qualivision"
    ):
        settle(replace(place, package=Path("/elsewhere/qualivision")))


def test_a_worker_without_the_folder_of_the_videos_refuses_and_does_not_call_them_broken(place):
    judge = Judge("checkpoint", "checkpoint@1", LIMITS)
    with pytest.raises(ClusterError, match=r"has no folder /not/mounted; workers need the folders of the run"):
        score_chunk(place, judge, [("a.mp4", Asked("a cat", "/not/mounted/a.mp4"))], 1)
    with pytest.raises(ClusterError, match=r"has no folder /not/mounted"):
        run_jobs(place, hostile, [(Path("/not/mounted/a.mp4"),)], LIMITS, 1)


def test_a_worker_that_finds_other_weights_than_the_run_refuses(place, monkeypatch):
    monkeypatch.setattr(scoring, "locate", lambda model: Located(Path("checkpoint"), "models:/qualivision/4"))
    with pytest.raises(ClusterError, match=r"checkpoint is models:/qualivision/4 here, and was models:/qualivision/3"):
        score_chunk(place, Judge("checkpoint", "models:/qualivision/3", LIMITS), [("a", Asked("a cat", "a.mp4"))], 1)


def hostile(path: Path, *_: object) -> None:
    """What work may do to the process that does it; the name of the video says what."""
    name = path.stem
    if name == "crashes" or (name == "crashes once" and not path.exists()):
        path.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "broken":
        raise VideoError(path, "is damaged")
    if name == "full":
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_hostile_video_costs_itself_alone_and_is_tried_twice(place):
    names = ["sound", "crashes", "broken", "crashes once", "sound too"]
    failed = run_jobs(place, hostile, [(Path(f"{name}.mp4"), None) for name in names], LIMITS, 1)
    assert sorted(map(str, failed)) == [
        "broken.mp4: is damaged",
        "crashes.mp4: crashes the process that reads it (SIGSEGV), twice",
    ]


def test_a_full_disk_is_the_run_s_affair(place):
    with pytest.raises(OSError, match="No space left on device"):
        run_jobs(place, hostile, [(Path("full.mp4"),)], LIMITS, 1)
