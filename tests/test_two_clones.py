"""A retraining over two machines: two clones, a DVC remote between them, and a worker of Prefect's in each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from servers import answers, ask, free_port, running

ROOT = Path(__file__).parents[1]
CODE = ("qualivision", "flows", "dvc.yaml", "params.yaml", "prefect.yaml", ".dvc/config", ".dvc/.gitignore")
CODE = (*CODE, ".dvcignore", ".gitignore", "reports/.gitignore", "reports/lite/.gitignore")
SMALL = {
    r"frames: \{count: 64, height: 160, width: 160\}": "frames: {count: 16, height: 96, width: 96}",
    r"  epochs: .*": "  epochs: 2",
    # So few clips teach nothing about quality: whether a model deserves to be champion is not what is tried here.
    r"min_gain_over_no_video: .*": "min_gain_over_no_video: -1.0",
    r"bootstrap_resamples: 1000": "bootstrap_resamples: 100",
    r"behaviour_clips: 6": "behaviour_clips: 1",
    r"approval: manual": "approval: auto",
    r"retry_seconds: .*": "retry_seconds: [1]",
    r'remote: ""': "remote: store",
    r'gpu_pool: ""': "gpu_pool: gpu",
    r"gpu_models: .*": "gpu_models: [lite]",
    r'commit_branch: ""': "commit_branch: nightly",
}
ELSEWHERE = ["encode@lite", "evaluate@lite", "train@lite"]
HERE = ["frames@lite", "prompts@lite", "validate"]


class Machine:
    """A clone with its environment."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        mine = {"PYTHONPATH": str(folder), "DVC_SITE_CACHE_DIR": str(folder / "state" / "dvc")}
        mine["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        mine["PREFECT_HOME"] = str(folder / "state" / "prefect")
        self.environment = os.environ | mine | variables

    def __call__(self, *command: str) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def git(self, *arguments: str) -> str:
        return self("git", "-c", "user.name=somebody", "-c", "user.email=somebody@localhost", *arguments).strip()


def make_origin(folder: Path, store: Path) -> Path:
    """A bare repository with this code, small settings and a small data set, which the remote has."""
    made = Machine(folder / "made")
    for path in CODE:
        target = made.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / path, target)
    text = (made.folder / "params.yaml").read_text()
    for old, new in SMALL.items():
        text, count = re.subn(old, new, text)
        assert count, old
    (made.folder / "params.yaml").write_text(text)
    store.mkdir()
    made.git("init", "--quiet", "--initial-branch", "main")
    made("qualivision", "sample-data", "--prompts", "16")
    made("dvc", "remote", "add", "store", str(store))
    made("dvc", "add", "--quiet", "data")
    made("dvc", "push", "--quiet", "--remote", "store")
    made.git("add", ".")
    made.git("commit", "--quiet", "--message", "all of it")
    made.git("clone", "--quiet", "--bare", ".", str(folder / "origin.git"))
    return folder / "origin.git"


class Prefect:
    """What the test asks of the server."""

    def __init__(self, api: str) -> None:
        self.api = api

    def post(self, path: str, **body: object):
        return ask("POST", f"{self.api}/{path}", body)

    def start(self) -> str:
        """Start a run of the deployment; returns its id."""
        nightly = ask("GET", f"{self.api}/deployments/name/retrain/nightly")["id"]
        wanted = {"state": {"type": "SCHEDULED"}, "idempotency_key": str(uuid4())}
        return self.post(f"deployments/{nightly}/create_flow_run", **wanted)["id"]

    def end_of(self, run: str, seconds: float = 480) -> dict:
        """A run when it has ended."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            found = ask("GET", f"{self.api}/flow_runs/{run}")
            if found["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return found
            time.sleep(0.5)
        pytest.fail(f"the run did not end: {found['state']}\n" + "\n".join(self.log(run)))

    def in_training(self, seen: set[str]) -> dict:
        """A run of the stage `train` that is not among those seen, as soon as DVC has started its command."""
        start = time.monotonic()
        while time.monotonic() - start < 240:
            for run in self.post("flow_runs/filter", flows={"name": {"any_": ["stage"]}}):
                if run["name"] == "train@lite" and run["id"] not in seen and started(self.log(run["id"])):
                    return run
            time.sleep(0.5)
        pytest.fail("no training began")

    def stages(self) -> dict[str, dict]:
        """The runs of the flow `stage`, by name."""
        found = self.post("flow_runs/filter", flows={"name": {"any_": ["stage"]}})
        assert len({run["name"] for run in found}) == len(found)
        return {run["name"]: run for run in found}

    def log(self, run: str) -> list[str]:
        found = self.post("logs/filter", logs={"flow_run_id": {"any_": [run]}}, sort="TIMESTAMP_ASC")
        return [line["message"] for line in found]


def started(log: list[str]) -> list[str]:
    """The stages that DVC ran, by what it printed."""
    return sorted(name[1] for line in log if (name := re.match(r"Running stage '(.*)':", line)))


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """`(A, B, Prefect)`: workers serve the pool `qualivision` in clone A, and the pool `gpu` in clone B."""
    folder = tmp_path_factory.mktemp("machines")
    origin = make_origin(folder, folder / "store")
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    common = {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    a, b = Machine(folder / "a", **common), Machine(folder / "b", **common)
    for clone in (a, b):
        subprocess.run(["git", "clone", "--quiet", str(origin), str(clone.folder)], check=True)
        (clone.folder / "state" / "prefect").mkdir(parents=True)
    with ExitStack() as stack:

        def start(name: str, on: Machine, *command: str, ready=lambda: True, **variables: str) -> None:
            how = {"cwd": on.folder, "env": on.environment | variables}
            stack.enter_context(
                running([sys.executable, "-m", "prefect", *command], folder / f"{name}.log", ready=ready, **how)
            )

        server = ("server", "start", "--host", "127.0.0.1", "--port", str(port))
        start("server", a, *server, ready=lambda: answers(f"{api}/health"), PREFECT_API_URL="")
        a(sys.executable, "-m", "flows.deploy")
        often = {"PREFECT_WORKER_QUERY_SECONDS": "3"}
        start("a", a, "worker", "start", "--pool", "qualivision", **often)
        start("b", b, "worker", "start", "--pool", "gpu", QUALIVISION_GPU_CHECKOUT=str(b.folder), **often)
        yield a, b, Prefect(api)


@pytest.mark.slow
def test_stages_run_on_two_machines_and_what_comes_of_it_is_reproduced_from_its_commit(machines):
    a, b, prefect = machines
    first = prefect.end_of(prefect.start())
    log = prefect.log(first["id"])
    assert first["state"]["type"] == "COMPLETED", "\n".join(log)
    made = "ran validate, frames@lite, prompts@lite, encode@lite, train@lite, evaluate@lite"
    assert first["state"]["message"].startswith(f"{made}; models:/qualivision/1 passed the gate and is the champion; ")

    # Each where it belongs, and with equal bytes on both.
    stages = prefect.stages()
    assert sorted(stages) == ELSEWHERE and started(log) == HERE
    for name, run in stages.items():
        assert run["state"]["message"] == f"{name} ran" and run["work_pool_name"] == "gpu"
        assert started(prefect.log(run["id"])) == [name]
    for path in ("checkpoints/lite/model.safetensors", "reports/lite/metrics.json", "reports/lite/scatter.png"):
        assert (a.folder / path).read_bytes() == (b.folder / path).read_bytes()
    assert a("dvc", "status").strip() == "Data and pipelines are up to date."

    # The commit, and nothing else that git would see.
    assert a.git("rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert a.git("rev-parse", "nightly^") == a.git("rev-parse", "main")
    said = a.git("log", "-1", "--format=%an%n%B", "nightly")
    assert f"flow run: {first['name']} ({first['id']})" in said and f"stages: {made.removeprefix('ran ')}" in said
    assert "model: models:/qualivision/1" in said and "decision: models:/qualivision/1 passed the gate and is" in said
    reports = ("lite/behaviour.json", "lite/metrics.json", "validation.json")
    versions = ["dvc.lock", *(f"reports/{name}" for name in reports)]
    assert a.git("diff", "--name-only", "main", "nightly").split() == versions
    for path in versions:
        assert a.git("show", f"nightly:{path}") == (a.folder / path).read_text().strip()

    # From the commit alone.
    c = Machine(a.folder.parent / "c", MLFLOW_TRACKING_URI=f"sqlite:///{a.folder.parent / 'c.db'}")
    a.git("clone", "--quiet", "--branch", "nightly", str(a.folder), str(c.folder))
    c("dvc", "pull", "--quiet", "--remote", "store")
    assert started(c("dvc", "repro").splitlines()) == []
    shutil.rmtree(c.folder / "checkpoints" / "lite")
    again = c("dvc", "repro", "--force", "--single-item", "train@lite", "evaluate@lite").splitlines()
    assert started(again) == ["evaluate@lite", "train@lite"]
    assert c.git("status", "--porcelain") == ""

    # Nothing changed: nothing runs, on neither.
    second = prefect.end_of(prefect.start())
    assert second["state"]["message"].startswith("nothing to do: "), "\n".join(prefect.log(second["id"]))
    assert prefect.stages() == stages
    assert a.git("rev-list", "--count", "nightly") == "2"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cancelled", "killed"])
def test_a_stage_elsewhere_ends_with_the_run_that_asked_for_it(machines, how):
    a, b, prefect = machines
    settings = a.folder / "params.yaml"
    settings.write_text(re.sub(r"  epochs: .*", f"  epochs: {5000 if how == 'killed' else 6000}", settings.read_text()))
    seen = {run["id"] for run in prefect.post("flow_runs/filter", flows={"name": {"any_": ["stage"]}})}
    asker = prefect.start()
    stage = prefect.in_training(seen)
    assert [process for process in commands(b) if "train" in process.cmdline()]
    if how == "cancelled":
        prefect.post(f"flow_runs/{asker}/set_state", state={"type": "CANCELLING"})
    else:
        for process in flow_processes(asker):
            process.kill()
    assert prefect.end_of(asker)["state"]["type"] == ("CANCELLED" if how == "cancelled" else "CRASHED")
    ended = prefect.end_of(stage["id"], seconds=60)["state"]
    assert ended["type"] == "CANCELLED", ended
    assert ended["message"].endswith("the run that asked for it has ended") or how == "cancelled"
    assert commands(b) == []


def commands(on: Machine) -> list[psutil.Process]:
    """The processes of stages in a clone."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "qualivision" in " ".join(process.cmdline()[:2]) and process.cwd() == str(on.folder):
                found.append(process)
    return found


def flow_processes(run: str) -> list[psutil.Process]:
    """The process of a flow run, by its environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect" in " ".join(process.cmdline()):
                found.append(process)
    return found
