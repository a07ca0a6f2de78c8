"""All servers of one machine, from one command: Prefect's, MLflow's, and a worker; the flows are deployed.

python -m flows.up                                   everything here; Ctrl-C stops it
PREFECT_API_URL=... python -m flows.up               with that server, and none of its own
PREFECT_API_URL=... MLFLOW_TRACKING_URI=... python -m flows.up --worker-only --pool gpu     one more machine

State lies in state/: both servers show what was done here before they were started. They listen on this machine alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from qualivision import environment

environment.prepare()

import httpx  # noqa: E402

from flows.commands import SUPERVISED  # noqa: E402
from qualivision.errors import QualiVisionError  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402

HOST = "127.0.0.1"
START_SECONDS = 120.0
STEADY_SECONDS = 30.0
"""What ends sooner after its start would end again."""


class ServerError(QualiVisionError):
    """A server that does not start: says where its log is."""


class Part:
    """A process that is kept running: a server or the worker, its output in state/logs/.

    Args:
        name: of its log.
        command: after `python -m`.
        health: an address that answers when it is ready; None to not wait.
        variables: of its environment.
    """

    def __init__(self, name: str, command: list[str], health: str | None = None, **variables: str) -> None:
        self.name, self.log = name, environment.STATE / "logs" / f"{name}.log"
        self._command, self._health, self._variables = command, health, variables

    def start(self, stack: ExitStack) -> None:
        """Start it, and return when it answers; the stack stops it.

        Raises:
            ServerError: it does not answer.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with self.log.open("ab") as out:
            # A session of its own: Ctrl-C is ours.
            self._process = subprocess.Popen(
                [*SUPERVISED, sys.executable, "-m", *self._command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=os.environ | {"PATH": path} | self._variables,
                start_new_session=True,
            )
        stack.callback(_stop, self._process)
        if self._health:
            _wait_for(self._health, self._process, self.log)
        self.since = time.monotonic()

    def ended(self) -> int | None:
        """The exit code of one that ended."""
        return self._process.poll()


def _wait_for(health: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(health, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise ServerError(f"{health}: no answer; {log} says why")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop it and what it started; that happens as well when this process is killed."""
    assert process.stdin
    process.stdin.close()
    process.wait()


def prefect_server(port: int) -> Part:
    """Prefect's server."""
    address = f"http://{HOST}:{port}/api"
    command = ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
    # On another port than its usual one the page would ask that.
    pages = {"PREFECT_SERVER_UI_API_URL": address, "PREFECT_UI_URL": f"http://{HOST}:{port}"}
    return Part("prefect", command, f"{address}/health", **pages)


def mlflow_server(port: int) -> Part:
    """MLflow's server, on the store that this checkout has."""
    from qualivision import tracking

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    tracking.client()  # makes the store
    state = environment.STATE.absolute()
    command = ["mlflow", "server", "--backend-store-uri", f"sqlite:///{state / 'mlflow.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(state / "mlartifacts"), "--host", HOST, "--port", str(port)]
    return Part("mlflow", command, f"http://{HOST}:{port}/health", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")


def up(*, prefect_port: int, mlflow_port: int, pool: str, limit: int | None, worker_only: bool) -> None:
    """Start what is not there yet, deploy, and keep it running until a signal comes.

    Raises:
        ServerError: something does not start, or ends as soon as it is started again.
        QualiVisionError: the flows can't be deployed.
    """
    # Where its worker runs stages for other machines (prefect.yaml).
    os.environ.setdefault("QUALIVISION_GPU_CHECKOUT", str(Path.cwd()))
    with ExitStack() as stack:
        parts = []

        def start(part: Part) -> None:
            part.start(stack)
            parts.append(part)

        if "MLFLOW_TRACKING_URI" not in os.environ and not worker_only:
            start(mlflow_server(mlflow_port))
            os.environ["MLFLOW_TRACKING_URI"] = f"http://{HOST}:{mlflow_port}"
        if "PREFECT_API_URL" not in os.environ and not worker_only:
            start(prefect_server(prefect_port))
            os.environ["PREFECT_API_URL"] = f"http://{HOST}:{prefect_port}/api"
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            _say(f"{name}={os.environ.get(name, '')}")
        if not worker_only:
            from flows.deploy import WEBHOOK_VARIABLE, deploy  # Prefect reads its address when it is imported

            for line in deploy(load_settings().flows, pool=pool, webhook=os.environ.get(WEBHOOK_VARIABLE)):
                _say(line)
        start(
            Part("worker", ["prefect", "worker", "start", "--pool", pool, *(["--limit", str(limit)] if limit else [])])
        )
        _say(f"a worker serves the pool {pool}; logs are in {environment.STATE / 'logs'}; Ctrl-C stops all of it")
        _stay(parts, stack, watching=not worker_only)


def _stay(parts: list[Part], stack: ExitStack, *, watching: bool) -> None:
    """Until a signal comes: start again what ended, and end runs that are lost."""
    from flows.watch import LOOK_SECONDS, Watch

    watch, next_look = Watch(), time.monotonic()
    while True:
        for part in parts:
            if (code := part.ended()) is None:
                continue
            if time.monotonic() - part.since < STEADY_SECONDS:
                raise ServerError(f"{part.name} ended at once, with exit code {code}; {part.log} says why")
            _say(f"{part.name} ended with exit code {code}; started again")
            part.start(stack)
        if watching and time.monotonic() >= next_look:
            for name in watch.look():
                _say(f"{name} was lost: its process or its machine is gone")
            next_look = time.monotonic() + LOOK_SECONDS
        time.sleep(0.5)


def _say(line: str) -> None:
    sys.stdout.write(f"up: {line}\n")
    sys.stdout.flush()


def _raise_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Everything on this machine, until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.up",
        description="Start Prefect's server, MLflow's server and a worker on this machine, and deploy the flows. What "
        "PREFECT_API_URL or MLFLOW_TRACKING_URI names is used and not started.",
    )
    parser.add_argument("--prefect-port", type=int, default=4200, help="%(default)s")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="%(default)s")
    parser.add_argument("--pool", default="qualivision", help="the work pool that the worker serves (%(default)s)")
    parser.add_argument("--limit", type=int, help="runs that the worker may have at once; by default as many as come")
    parser.add_argument(
        "--worker-only", action="store_true", help="no server and no deployment: another machine has them"
    )
    given = parser.parse_args()
    if given.worker_only and "PREFECT_API_URL" not in os.environ:
        parser.error("--worker-only needs PREFECT_API_URL: the server that the worker serves")
    if not Path("prefect.yaml").exists():
        sys.stderr.write("prefect.yaml: no such file; run this in the folder that holds it\n")
        return 1
    signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        up(
            prefect_port=given.prefect_port,
            mlflow_port=given.mlflow_port,
            pool=given.pool,
            limit=given.limit,
            worker_only=given.worker_only,
        )
    except KeyboardInterrupt:
        _say("stopped")
        return 0
    except QualiVisionError as err:
        sys.stderr.write(f"up: {err}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
