"""Dask workers for a flow: started on this machine, or those of a scheduler; and a command that starts some for one.

python -m flows.dask_workers tcp://SCHEDULER:8786 --workers 4      in the checkout, on each machine of a cluster

Owns everything that is Dask's. What a worker does is `qualivision/chunks.py`'s, what it is asked for `cluster.py`'s.
Workers see the checkout under the path that it has here, by a shared file system.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import get_run_logger  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: E402

from qualivision import chunks  # noqa: E402
from qualivision.chunks import ClusterError, Place  # noqa: E402
from qualivision.workers import cores  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from prefect import Task
    from prefect_dask import DaskTaskRunner

CONNECT_SECONDS: Final = 30.0
NO_WORKER_SECONDS: Final = 300.0
"""So long a run waits when all workers are lost: they may be starting again."""
_LOCAL: Final = "local:"
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class DaskWorkers:
    """Workers that are there and can do the work; made by `dask_workers`.

    Attributes:
        place: where this run is, for their chunks.
        size: how many they are.
    """

    def __init__(self, setting: str, runner: DaskTaskRunner, place: Place) -> None:
        self.place = place
        self._setting = setting
        self._runner = runner
        self._alone_since: float | None = None
        client = runner.client
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        client.run(_look, place, str(get_client(sync_client=True).api_url))
        hosts = {address: worker["host"] for address, worker in self._there().items()}
        on = Counter(hosts.values())
        self.size = len(hosts)
        self._share = min(count // on[hosts[address]] for address, count in client.run(cores).items())

    def processes(self, *, beside_model: bool) -> int:
        """In how many processes each worker shall decode: its share of its machine's cores.

        Args:
            beside_model: whether a model on the CPU takes half of them.
        """
        return max(1, self._share // 2 if beside_model else self._share)

    def spread(self, task: Task[..., Any], calls: Iterable[dict[str, Any]]) -> Generator[Any]:
        """Call a task with these arguments and these, a few at a time; gives the results in the order of coming.

        A call whose worker is lost is made again on another.

        Raises:
            ClusterError: one was lost with one worker after another, or there are no workers any more.
        """
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        try:
            yield from chunks.spread(
                lambda call: self._runner.submit(task, call), calls, workers=self.size, check=self._check
            )
        except KilledWorker as err:
            raise ClusterError(
                f"{self._setting}: {err.allowed_failures + 1} workers were lost one after the other with the same "
                f"chunk, the last one {err.last_worker.address}; its log says why (most often memory)"
            ) from err
        except FutureCancelledError as err:
            raise self._no_scheduler() from err

    def _no_scheduler(self) -> ClusterError:
        return ClusterError(f"{self._setting}: the scheduler is lost; start it, and run this again")

    def let_go(self) -> None:
        """Have the workers drop what they keep; one that is at work or lost is left alone."""
        if self._runner.client.status == "running":
            self._runner.client.run(chunks.let_go, on_error="ignore")

    def _there(self) -> dict[str, Any]:
        found: dict[str, Any] = self._runner.client.scheduler_info(n_workers=-1)["workers"]
        return found

    def _check(self) -> None:
        """Raises ClusterError when nothing will come any more."""
        if self._runner.client.status != "running":
            raise self._no_scheduler()
        if self._there():
            self._alone_since = None
            return
        if self._alone_since is None:
            self._alone_since = time.monotonic()
            get_run_logger().warning(f"{self._setting}: has no worker now; waiting {NO_WORKER_SECONDS:g} s for one")
        if time.monotonic() - self._alone_since > NO_WORKER_SECONDS:
            raise ClusterError(
                f"{self._setting}: has had no worker for {NO_WORKER_SECONDS:g} s; start some "
                "(`python -m flows.dask_workers ADDRESS`), and run this again"
            )


@contextmanager
def dask_workers(setting: str) -> Iterator[DaskWorkers]:
    """Workers for as long as they are needed; within a flow run, to which their tasks belong.

    Args:
        setting: `flows.cluster` of `params.yaml`: `local:2` starts two here, an address is a scheduler's.
    Raises:
        ClusterError: Dask is not installed, there is no scheduler, or a worker is not where this run is.
    """
    try:
        import dask
        from prefect_dask import DaskTaskRunner
    except ModuleNotFoundError as err:
        raise ClusterError(
            f"flows.cluster is {setting}, which needs Dask: install it in the checkout (pip install -c "
            "requirements-test.lock -e '.[cluster]'), or set flows.cluster in params.yaml to nothing"
        ) from err

    # Each start and stop is a dozen lines, and one of them names a page that is switched off.
    for name in ("distributed", "prefect.task_runner.dask"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if setting.startswith(_LOCAL):
        runner = DaskTaskRunner(cluster_kwargs=_local(int(setting.removeprefix(_LOCAL))))
    else:
        runner = DaskTaskRunner(address=setting, client_kwargs={"timeout": CONNECT_SECONDS})
    # Tasks tell Prefect how they fare: where this process has started a server for itself, they need to know it.
    api = {PREFECT_API_URL: str(get_client(sync_client=True).api_url).rstrip("/")}
    with (
        _variables_kept(),
        dask.config.set(_config()),
        temporary_settings(api),
        chunks.shown_place() as place,
        runner,
    ):
        try:
            workers = DaskWorkers(setting, runner, place)
        except OSError as err:  # of which TimeoutError is one
            raise ClusterError(
                f"{setting}: no Dask scheduler, or one without workers ({str(err).splitlines()[0]}); start them (`dask "
                "scheduler`, `python -m flows.dask_workers ADDRESS`), or set flows.cluster in params.yaml to local:2"
            ) from err
        except ImportError as err:
            raise ClusterError(
                f"{setting}: its workers lack a module ({err}); start them in this project's environment"
            ) from err
        try:
            yield workers
        finally:
            workers.let_go()


@contextmanager
def _variables_kept() -> Iterator[None]:
    """Dask sets variables for its workers in this process, which may start a training next: undo that."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _config() -> dict[str, Any]:
    return {
        "temporary-directory": str(environment.STATE.absolute() / "dask"),
        "distributed.worker.daemon": False,  # a daemonic process may have no children, and ours decode in some
        # Variables of this very process, while workers start. Dask would have OMP_NUM_THREADS=1 here.
        "distributed.nanny.pre-spawn-environ": {"DASK_LOGGING__DISTRIBUTED": "warning"},
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
    }


def _local(workers: int) -> dict[str, Any]:
    """A cluster of this machine, for this user alone: certificates of its own, no page, no limit of memory."""
    threads = str(max(1, cores() // workers))
    return {
        "n_workers": workers,
        "threads_per_worker": 1,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",  # None would be port 8787
        "security": True,
        "memory_limit": 0,
        "env": {name: os.environ.get(name, threads) for name in _THREADS},
    }


def _look(place: Place, api: str) -> None:
    """On a worker: whether it can do the work of a run at `place`. Raises ClusterError."""
    import multiprocessing
    import socket

    import httpx

    chunks.settle(place)
    here = socket.gethostname()
    if multiprocessing.current_process().daemon:
        raise ClusterError(
            f"{here}: its worker may start no process; start it by `python -m flows.dask_workers ADDRESS`, or with "
            "DASK_DISTRIBUTED__WORKER__DAEMON=False"
        )
    try:
        httpx.get(f"{api.rstrip('/')}/health", timeout=10.0)
    except httpx.HTTPError as err:
        raise ClusterError(
            f"{here}: can't reach Prefect at {api} ({err}); run `prefect server start --host ADDRESS` where it "
            "is reached from all machines, and set PREFECT_API_URL"
        ) from err


def main() -> int:
    """Become Dask's own worker command, with what our work needs."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.dask_workers", description="Start workers for a Dask scheduler, in the checkout."
    )
    parser.add_argument("scheduler", help="its address, such as tcp://10.0.0.1:8786")
    parser.add_argument("--workers", type=int, default=1, help="processes; one for each GPU, or some for the cores")
    options, others = parser.parse_known_args()  # others are Dask's: --host, --tls-cert, ...
    threads = str(max(1, cores() // options.workers))
    os.environ.setdefault("DASK_DISTRIBUTED__WORKER__DAEMON", "False")
    os.environ.setdefault("DASK_TEMPORARY_DIRECTORY", _config()["temporary-directory"])
    for name in _THREADS:
        os.environ.setdefault(name, threads)
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.getcwd() + (os.pathsep + path if path else "")
    command = [sys.executable, "-m", "distributed.cli.dask_worker", options.scheduler]
    command += ["--nworkers", str(options.workers), "--nthreads", "1", "--memory-limit", "0", "--no-dashboard", *others]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    sys.exit(main())
