"""A checkout with a small data set, servers of Prefect and MLflow, a worker and a webhook's listener: all real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import yaml
from servers import answers, ask, free_port, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[1]
QUICK = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "1",
}
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def copy_checkout(folder: Path) -> None:
    """The project as it lies here, in a repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-qm", "The checkout"], cwd=folder, check=True)


def of_checkout(folder: Path) -> dict[str, str]:
    """The environment of a process that runs the code of a checkout, and keeps its state there."""
    taken = ("PREFECT_", "MLFLOW_", "MPLCONFIGDIR", "HF_HOME", "QUALIVISION_POOL", "QUALIVISION_CHECKOUT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(folder), "DVC_SITE_CACHE_DIR": str(folder / "state" / "dvc")}


class Orchestra:
    """The servers of one checkout, and what a test does with them.

    Attributes:
        folder: the checkout.
        api: Prefect's.
        mlflow: the address of MLflow's server.
        up: the process of `python -m flows.up`.
        told: what came to the webhook, in order.

    Args:
        stack: stops what is started.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.told: list[dict[str, Any]] = []
        self._ports = free_port(), free_port()
        self.api = f"http://127.0.0.1:{self._ports[0]}/api"
        self.mlflow = f"http://127.0.0.1:{self._ports[1]}"
        self._rates = iter(range(1, 1000))

    # --- servers

    def start_mlflow(self) -> None:
        """Start MLflow's server, which is always at the same address."""
        state = self.folder / "state"
        state.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self._ports[1]), "--backend-store-uri", f"sqlite:///{state / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(state / "mlartifacts")]
        more = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        how = {"cwd": state, "env": of_checkout(self.folder) | more}
        ready = lambda: answers(f"{self.mlflow}/health")  # noqa: E731
        self._mlflow = self._stack.enter_context(running(command, state / "mlflow.log", ready=ready, **how))

    def kill_mlflow(self) -> None:
        """kill -9 of MLflow's server."""
        server = psutil.Process(self._mlflow.pid)
        for one in [*server.children(recursive=True), server]:
            one.kill()
        self._mlflow.wait()

    def start_all(self) -> None:
        """Start MLflow's server, and `python -m flows.up` with the webhook."""
        self.start_mlflow()
        webhook = self._stack.enter_context(_listener(self.told))
        command = [sys.executable, "-m", "flows.up", "--prefect-port", str(self._ports[0])]
        more = {"MLFLOW_TRACKING_URI": self.mlflow, "QUALIVISION_WEBHOOK": webhook}
        log = self.folder / "state" / "up.log"
        how = {"cwd": self.folder, "env": of_checkout(self.folder) | QUICK | more}
        process = self._stack.enter_context(
            running(command, log, ready=lambda: "a worker serves" in log.read_text(), **how)
        )
        self.up = psutil.Process(process.pid)

    def part(self, words: str) -> psutil.Process:
        """A process that `flows.up` started, by its command."""
        return next(one for one in self.up.children(recursive=True) if " ".join(_command(one)[1:]).startswith(words))

    # --- the data set and the settings

    def settings(self, **changes: object) -> None:
        """Change params.yaml: `flows__approval_hours=1` stands for flows.approval_hours."""
        path = self.folder / "params.yaml"
        everything = yaml.safe_load(path.read_text())
        for name, value in changes.items():
            *sections, key = name.split("__")
            section = everything
            for one in sections:
                section = section[one]
            section[key] = value
        path.write_text(yaml.safe_dump(everything, sort_keys=False))

    def another_model(self, epochs: int = 2) -> None:
        """Settings that train another model, which is as good as the last but for chance."""
        self.settings(
            lite__train__learning_rate=2e-3 * (1 + 1e-4 * next(self._rates)),
            lite__train__epochs=epochs,
            lite__train__patience=epochs,
        )

    # --- runs

    def start(self, deployment: str = "retrain/nightly", **parameters: object) -> str:
        """Start a run as the UI's button does; returns its id."""
        found = self._get(f"/deployments/name/{deployment}")
        parameters = {"approval": "auto"} | parameters if deployment.startswith("retrain/") else parameters
        return self._post(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})["id"]

    def run(self, run: str) -> dict[str, Any]:
        """A run, as the API tells it."""
        return self._get(f"/flow_runs/{run}")

    def wait(self, run: str, *states: str, seconds: float = 240) -> dict[str, Any]:
        """A run, when its state has one of these types or names; by default, when it has ended."""
        wanted = states or ENDED
        found: dict[str, Any] = {}

        def there() -> bool:
            nonlocal found
            found = self.run(run)
            return bool({found["state"]["type"], found["state"]["name"]} & set(wanted))

        eventually(there, seconds, lambda: f"{found.get('state')}\n{self.log(run)[-3000:]}")
        return found

    def outcome(self, run: str, **how: Any) -> tuple[str, str]:
        """State and message of a run that ended."""
        state = self.wait(run, **how)["state"]
        return state["name"], state["message"] or ""

    def log(self, run: str) -> str:
        """What a run and its tasks logged."""
        wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200, "offset": 0}
        lines: list[str] = []
        while page := self._post("/logs/filter", wanted):
            lines += [entry["message"] for entry in page]
            wanted["offset"] += len(page)
        return "\n".join(lines)

    def answer(self, run: str, **said: object) -> dict[str, Any]:
        """Answer the question of a suspended run, as its form does."""
        return self._post(f"/flow_runs/{run}/resume", {"run_input": said})

    def cancel(self, run: str) -> None:
        """Cancel a run, as the UI's button does."""
        self._post(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """The artifacts of a run by their keys."""
        found = self._post("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
        return {one["key"]: one for one in found}

    def messages(self, run: str, state: str) -> list[dict[str, Any]]:
        """What the webhook was told of a run in a state."""
        return [one for one in self.told if one["flow_run"] == run and one["state"] == state]

    # --- processes

    def stages(self) -> list[psutil.Process]:
        """All processes of stages: `dvc repro`, its command, and the worker processes of that."""
        return [one for one in psutil.process_iter() if _lies_in(one, self.folder) and not _is_service(_command(one))]

    def of_run(self) -> psutil.Process:
        """The process of the flow that is running."""
        worker = self.part("-m prefect worker start")
        return next(one for one in worker.children(recursive=True) if "prefect.engine" in " ".join(_command(one)))

    def training(self) -> psutil.Process:
        """The process that trains, when it has saved an epoch."""
        found: list[psutil.Process] = []
        state = self.folder / "checkpoints" / "lite" / "trainer" / "state.safetensors"

        def there() -> bool:
            found[:] = [one for one in self.stages() if _command(one)[-3:] == ["train", "lite", "--resume"]]
            return bool(found) and state.exists() and state.stat().st_mtime > found[0].create_time()

        eventually(there, 120, lambda: f"no training among {[_command(one) for one in self.stages()]}")
        return max(found, key=psutil.Process.create_time)

    # --- MLflow

    def versions(self) -> list[dict[str, Any]]:
        """The versions of the registered model, oldest first, each with its tags as a dict."""
        reply = httpx.get(f"{self.mlflow}/api/2.0/mlflow/model-versions/search", timeout=30)
        found = reply.json().get("model_versions", [])
        for one in found:
            one["tags"] = {tag["key"]: tag["value"] for tag in one.get("tags", [])}
        return sorted(found, key=lambda one: int(one["version"]))

    def aliases(self) -> dict[str, str]:
        """Which version each alias names."""
        where = f"{self.mlflow}/api/2.0/mlflow/registered-models/get"
        reply = httpx.get(where, params={"name": "qualivision"}, timeout=30).json()
        return {one["alias"]: one["version"] for one in reply.get("registered_model", {}).get("aliases", [])}

    def first_epochs(self) -> list[int]:
        """The first epoch of every training, newest last: above 0 where one went on from a checkpoint."""
        where = f"{self.mlflow}/api/2.0/mlflow"
        runs = httpx.post(f"{where}/runs/search", json={"experiment_ids": ["1"], "max_results": 100}, timeout=30).json()
        found = []
        for run in sorted(runs.get("runs", []), key=lambda one: one["info"]["start_time"]):
            asked = {"run_id": run["info"]["run_id"], "metric_key": "val_score"}
            history = httpx.get(f"{where}/metrics/get-history", params=asked, timeout=30).json().get("metrics", [])
            if history:
                found.append(min(int(one.get("step", 0)) for one in history))
        return found

    def _get(self, where: str) -> dict[str, Any]:
        return ask("GET", f"{self.api}{where}")

    def _post(self, where: str, body: dict[str, Any]) -> Any:
        return ask("POST", f"{self.api}{where}", body)


def eventually(true: Callable[[], bool], seconds: float, otherwise: Callable[[], str]) -> None:
    """Wait until something is true; fails when it is not in time. A server that is away for a moment is waited for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if true():
                return
        except (httpx.HTTPError, psutil.Error):
            pass
        time.sleep(0.2)
    raise AssertionError(otherwise())


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _lies_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def _is_service(words: list[str]) -> bool:
    """Whether it is a server, the worker, or a flow."""
    return not words or any(word.startswith(("prefect", "flows.", "uvicorn", "mlflow")) for word in words[1:7])


@contextmanager
def _listener(told: list[dict[str, Any]]) -> Iterator[str]:
    """A server that keeps the JSON that is posted to it; yields its address."""

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook"
    finally:
        server.shutdown()
        server.server_close()
