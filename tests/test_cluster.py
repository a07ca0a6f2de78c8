"""Frames and scores on a Dask cluster of two workers, one of which is killed: what comes out is as without."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from servers import needed
from small_models import write_checkpoint, write_clip

from flows import cluster, dask_workers, score_batch
from qualivision.batch import Here, plan
from qualivision.cache import file_hash
from qualivision.labels import SPLITS, labels_path, videos_dir
from qualivision.score_run import run
from qualivision.scoring import locate
from qualivision.settings import DecodeSettings, SettingsError
from qualivision.stages import frames as stage

ROOT = Path(__file__).parents[1]
TWO = "local:2"


@pytest.fixture(scope="module")
def prefect_server():
    """A server that this module's flow runs have in common; `needed` looks whether there is Dask first."""
    needed(find_spec("prefect_dask"), "Dask (requirements-test.lock)")
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=60):
        yield


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with settings for two workers."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["lite"]["frames"] = {"count": 8, "height": 64, "width": 64}
    params["flows"]["cluster"] = TWO
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def one_is_killed(monkeypatch) -> list[int]:
    """Kills a worker that is at its first chunk and has another to come. Gives the process ids that there were."""
    pids: list[int] = []
    spread = dask_workers.DaskWorkers.spread

    def spread_and_kill(self, task, calls):
        pids.extend(self._runner.client.run(os.getpid).values())

        def and_kill():
            for number, call in enumerate(calls):
                if number == 3:
                    time.sleep(1)
                    os.kill(pids[0], signal.SIGKILL)
                yield call

        yield from spread(self, task, and_kill())

    monkeypatch.setattr(dask_workers.DaskWorkers, "spread", spread_and_kill)
    return pids


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "zombie" in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else False


# Two real workers


@pytest.mark.slow
def test_a_folder_has_the_same_rows_from_two_workers_of_which_one_is_killed(
    prefect_server, place, one_is_killed, caplog
):
    checkpoint = write_checkpoint(place / "checkpoint")
    Path("clips").mkdir()
    names = [f"A_{number:02}.mp4" for number in range(24)]
    for number, name in enumerate(names):
        write_clip(Path("clips") / name, seed=number)
    Path("clips/A_05.mp4").write_bytes(b"no video")
    rows = [(name, f"a cat {number}") for number, name in enumerate(names)] + [("gone.mp4", "a dog"), ("A_03.mp4", " ")]
    pd.DataFrame(rows, columns=["video_name", "Prompt"]).to_csv("prompts.csv", index=False)
    before = dict(os.environ)
    state = score_batch.score_batch(
        Path("clips"), Path("prompts.csv"), out=Path("two.csv"), model="checkpoint", return_state=True
    )
    assert state.message.startswith("two.csv: 25 rows, 22 scored, 3 can't be scored")
    assert len(one_is_killed) == 2 and all(map(gone, one_is_killed))
    assert caplog.text.count("Restarting worker") == 1
    assert dict(os.environ) == before

    found = locate(checkpoint.relative_to(place))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as a worker has: the order of a sum decides the last bit of a score
    try:
        run(
            Path("alone.csv"),
            plan([Path("clips")], Path("prompts.csv")).videos,
            Here(found, DecodeSettings()),
            model=found.label,
            advance=lambda done, total: None,
            complain=lambda line: None,
        )
    finally:
        torch.set_num_threads(threads)
    assert Path("two.csv").read_bytes() == Path("alone.csv").read_bytes()
    assert not list(Path("state").glob("run-*"))


@pytest.mark.slow
def test_the_frame_cache_is_the_same_from_two_workers_of_which_one_is_killed(
    prefect_server, place, make_clip, one_is_killed, caplog
):
    from prefect import flow

    for split, count in zip(SPLITS, (30, 1, 1), strict=True):
        videos_dir(Path("data"), split).mkdir(parents=True)
        labels_path(Path("data"), split).parent.mkdir(parents=True, exist_ok=True)
        names = [f"A_{split}{number}.mp4" for number in range(count)]
        for number, name in enumerate(names):
            make_clip(videos_dir(Path("data"), split) / name, shade=number + 100 * SPLITS.index(split))
        labels_path(Path("data"), split).write_text("video_name,Prompt\n" + "".join(f"{name},p\n" for name in names))
    broken = videos_dir(Path("data"), "train") / "A_train7.mp4"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])

    said = flow(cluster.spread_frames, name="spread")("lite")

    assert said == f"frames lite: 31 made, 1 can't be used ({TWO})"
    assert len(one_is_killed) == 2 and all(map(gone, one_is_killed))
    assert caplog.text.count("Restarting worker") == 1
    folder = Path("cache/frames/lite")
    made = {path.name: file_hash(path) for path in folder.iterdir()}
    assert len(made) == 31 and not any(name.startswith(".") for name in made)
    with pytest.raises(Exception, match=r"A_train7\.mp4: can't be decoded"):
        stage.run("lite", workers=1)  # which names it, as ever
    broken.write_bytes(whole)
    assert str(stage.run("lite", prune=True, workers=1)) == "1 made, 31 were there, 0 removed"
    finished = {path.name: file_hash(path) for path in folder.iterdir()}
    assert made.items() <= finished.items() and len(finished) == 33  # and the index
    for path in folder.iterdir():
        path.unlink()
    stage.run("lite", prune=True, workers=1)
    assert {path.name: file_hash(path) for path in folder.iterdir()} == finished


# What needs none


@pytest.fixture
def quiet(monkeypatch) -> None:
    """Prefect's log is Python's: there is no run."""
    for module in (cluster, dask_workers):
        monkeypatch.setattr(module, "get_run_logger", logging.getLogger)


def test_without_the_setting_no_frames_are_spread(place):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["flows"]["cluster"] = ""
    Path("params.yaml").write_text(yaml.safe_dump(params))
    assert cluster.spread_frames("lite") == ""


def test_without_the_package_the_setting_names_it(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    with (
        pytest.raises(dask_workers.ClusterError, match=r"local:2, which needs Dask: install it .* -e '\.\[cluster\]'"),
        dask_workers.dask_workers(TWO),
    ):
        pass


@pytest.mark.parametrize("setting", ["local", "local:0", "2", "10.0.0.1:8786"])
def test_a_cluster_that_is_none_is_refused(place, setting):
    with pytest.raises(SettingsError, match=r"neither local:N nor a scheduler's address"):
        score_batch.judging(None, score_batch.load_settings(), setting)  # type: ignore[arg-type]


class Client:
    """A client of a scheduler; says what a test wants."""

    status = "running"

    def __init__(self) -> None:
        self.workers: dict[str, dict[str, str]] = {}

    def scheduler_info(self, n_workers):
        return {"workers": self.workers}


@pytest.fixture
def workers(quiet):
    """Workers that were there, of a client without any now."""
    found = object.__new__(dask_workers.DaskWorkers)
    found._setting, found._alone_since = "tcp://scheduler:8786", None
    found._runner = type("Runner", (), {"client": Client()})()
    return found


def test_a_run_whose_workers_are_gone_waits_for_others_and_then_says_so(workers, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(dask_workers.time, "monotonic", lambda: now)
    workers._check()
    now += dask_workers.NO_WORKER_SECONDS - 1
    workers._check()
    workers._runner.client.workers = {"tcp://a": {"host": "a"}}
    workers._check()  # one has come
    workers._runner.client.workers = {}
    now += 2
    workers._check()
    now += dask_workers.NO_WORKER_SECONDS + 1
    with pytest.raises(
        dask_workers.ClusterError, match=r"tcp://scheduler:8786: has had no worker for 300 s; start some"
    ):
        workers._check()


def test_a_run_whose_scheduler_is_gone_says_so(workers):
    workers._runner.client.status = "closed"
    with pytest.raises(dask_workers.ClusterError, match=r"tcp://scheduler:8786: the scheduler is lost; start it"):
        workers._check()


@pytest.mark.parametrize(
    ("share", "decoding", "scoring"),
    [(1, 1, 1), (2, 2, 1), (8, 8, 4), (0, 1, 1)],  # the last: more workers than cores
)
def test_a_worker_decodes_on_its_share_of_the_cores(workers, share, decoding, scoring):
    workers._share = share
    assert (workers.processes(beside_model=False), workers.processes(beside_model=True)) == (decoding, scoring)
