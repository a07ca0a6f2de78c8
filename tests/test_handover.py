"""A stage that another checkout runs, with stages that copy a file: what is handed over, refused and taken over."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import yaml
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed, Pending, Running, Scheduled

from flows import checkout, elsewhere, handover, remote
from flows.handover import OtherCodeError, Outcome, carry_out, hand_over, take_over
from flows.remote import RemoteError, bring, check_remote, is_shared, pull, share
from flows.repro import StageFailedError, repro_here
from qualivision.errors import AwayError

STAGES = """
stages:
  first:
    cmd: mkdir -p made && cp data/sub/a.txt made/a.txt
    deps: [data, code]
    outs: [{made: {persist: true}}]
  second:
    cmd: sed s/one/two/ made/a.txt >> kept.txt && echo '{"count":'$(wc -l < kept.txt)'}' > metrics.json
    deps: [made, data/sub, code]
    params: [times]
    outs: [{kept.txt: {persist: true}}]
    metrics: [{metrics.json: {cache: false}}]
"""


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git(folder: Path, *arguments: str) -> str:
    return run(folder, "git", "-c", "user.name=somebody", "-c", "user.email=somebody@localhost", *arguments)


def dvc(folder: Path, *arguments: str) -> str:
    return run(folder, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A checkout `a`, whose first stage is made and pushed, its clone `b`, and the DVC remote `store`."""
    folder = tmp_path_factory.mktemp("template")
    a = folder / "a"
    (folder / "store").mkdir()
    for path, text in {
        "data/sub/a.txt": "one\n",
        "data/other.txt": "other\n",
        "code/code.py": "pass\n",
        "dvc.yaml": STAGES,
        "params.yaml": "times: 1\n",
    }.items():
        (a / path).parent.mkdir(parents=True, exist_ok=True)
        (a / path).write_text(text)
    git(a, "init", "--quiet", "--initial-branch", "main")
    dvc(a, "init", "--quiet")
    dvc(a, "remote", "add", "--quiet", "store", "../store")
    dvc(a, "add", "--quiet", "data")
    git(a, "add", ".")
    git(a, "commit", "--quiet", "--message", "all of it")
    git(a, "clone", "--quiet", str(a), str(folder / "b"))
    dvc(a, "repro", "--quiet", "first")
    dvc(a, "push", "--quiet", "--remote", "store")
    return folder


@pytest.fixture
def machines(template, tmp_path, monkeypatch):
    """`on(name)` goes to one of the checkouts, `a` or `b`."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)

    def on(name: str) -> Path:
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / name

    on("a")
    return on


def quiet(line: str) -> None:
    pass


def ask(stage: str = "second", *, force: bool = False):
    return hand_over(stage, asker="a run", remote="store", seconds=60.0, force=force)


def test_a_stage_has_inputs_code_and_outputs(machines):
    parts = checkout.parts_of("second")
    assert parts.inputs == ("made", "data/sub") and parts.sources == ("data.dvc",) and parts.makers == ("first",)
    assert sorted(parts.code) == ["code", "dvc.yaml"]
    assert parts.outputs == ("kept.txt",) and parts.files == ("metrics.json",)
    assert checkout.kept_by_git() == ["data.dvc", "metrics.json"] and checkout.code_paths() == ["code"]


def test_what_another_checkout_made_is_as_if_it_was_made_here(machines):
    a = machines("a")
    (a / "params.yaml").write_text("times: 2\n")  # uncommitted, and there all the same
    work = handover.Handover.model_validate_json(ask().model_dump_json())
    b = machines("b")
    outcome = Outcome.model_validate_json(carry_out(work, quiet).model_dump_json())
    assert outcome.ran and (b / "params.yaml").read_text() == "times: 2\n"
    assert not (b / "data" / "other.txt").exists()  # which the stage does not read
    machines("a")
    take_over(work, outcome, quiet)
    assert (a / "kept.txt").read_text() == "two\n" and (a / "metrics.json").read_text() == '{"count":1}\n'
    assert "up to date" in dvc(a, "status") and list(checkout.entries(["first", "second"])) == ["first", "second"]
    # Once more: it was made there already, and is not made again.
    machines("b")
    assert not carry_out(work, quiet).ran
    # Unless it has to be. The stage goes on from what it made last, as it would at home.
    assert carry_out(work.model_copy(update={"force": True}), quiet).files == {"metrics.json": '{"count":2}\n'}


def test_other_code_is_refused_with_the_way_out(machines):
    a = machines("a")
    (a / "code" / "code.py").write_text("changed = True\n")
    work = ask()
    b = machines("b")
    with pytest.raises(OtherCodeError, match=rf"stage second: {b} has other code .*: code; bring it there, .*git pull"):
        carry_out(work, quiet)
    assert not (b / "kept.txt").exists()
    (b / "code" / "code.py").write_text("changed = True\n")
    (b / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(OtherCodeError, match=r": dvc\.yaml; bring it there"):
        carry_out(work, quiet)


def test_a_failure_there_is_one_here(machines):
    a = machines("a")
    (a / "dvc.yaml").write_text(STAGES.replace("sed s", "echo no such luck; exit 137; sed s"))
    work = ask()
    b = machines("b")
    (b / "dvc.yaml").write_bytes((a / "dvc.yaml").read_bytes())
    with pytest.raises(StageFailedError) as failed:
        carry_out(work, quiet)
    machines("a")
    outcome = Outcome.model_validate_json(Outcome.of_error(failed.value).model_dump_json())
    with pytest.raises(StageFailedError, match=r"stage second was killed by signal 9.*:\n(.*\n)*no such luck") as here:
        take_over(work, outcome, quiet)
    assert here.value.may_pass and checkout.entries(["second"]) == {}


def test_dvc_and_a_handover_write_the_same_lock_file(machines):
    a = machines("a")
    beside = subprocess.Popen([sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--force", "first"], cwd=a)
    for number in range(20):
        checkout.put_entries({f"other@{number}": {"cmd": str(number)}})
    assert beside.wait() == 0
    assert set(yaml.safe_load((a / "dvc.lock").read_text())["stages"]) == {
        "first",
        *(f"other@{number}" for number in range(20)),
    }


def test_a_fresh_clone_pulls_what_a_stage_needs_and_nothing_that_is_there(machines):
    a = machines("a")
    git(a, "add", ".")
    git(a, "commit", "--quiet", "--message", "made")
    b = machines("b")
    git(b, "pull", "--quiet", str(a), "main")
    said: list[str] = []
    bring("first", "store", said.append, seconds=60.0)
    assert (b / "data" / "other.txt").exists() and (b / "made" / "a.txt").exists()
    assert not repro_here("first", said.append, seconds=60.0)
    del said[:]
    bring("first", "store", said.append, seconds=60.0)
    assert said == []
    bring("second", "store", quiet, seconds=60.0)  # was never made: nothing of it can be pulled
    assert repro_here("second", quiet, seconds=60.0)
    assert not is_shared("store")
    share("second", "store", quiet, seconds=60.0)
    assert is_shared("store")


def test_a_remote_that_is_away_may_be_back_later_and_one_that_is_unknown_is_not(machines, tmp_path):
    with pytest.raises(
        RemoteError, match=r"no remote 'nowhere' here \(known: store\); `dvc remote add nowhere ADDRESS`"
    ):
        check_remote("nowhere")
    (tmp_path / "store").rename(tmp_path / "unmounted")
    for call in (
        lambda: pull(["made"], "store", quiet, seconds=60.0),
        lambda: share("first", "store", quiet, seconds=60.0),
    ):
        with pytest.raises(AwayError, match=r"store: no such folder, which is the DVC remote 'store'; mount it"):
            call()
    assert not (tmp_path / "store").exists()


def test_a_remote_that_lacks_what_a_stage_reads_is_no_matter_of_time(machines, tmp_path):
    b = machines("b")
    for path in sorted((tmp_path / "store").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(RemoteError, match=r"(?s)data could not be pulled from the DVC remote 'store'.*`dvc push"):
        bring("first", "store", quiet, seconds=60.0)
    assert not (b / "data" / "other.txt").exists()


def test_any_other_failure_of_a_remote_may_pass(machines, monkeypatch):
    ended = SimpleNamespace(ok=False, late=False, code=255, lines=("ERROR: unexpected error - Could not connect",))
    monkeypatch.setattr(remote, "run_dvc", lambda *given, **how: ended)
    for call in (pull, share):
        with pytest.raises(AwayError, match="Could not connect"):
            call("first" if call is share else ["made"], "store", quiet, seconds=60.0)


def test_a_stage_that_is_up_to_date_here_starts_nothing_elsewhere(machines, monkeypatch):
    monkeypatch.setattr(elsewhere, "_start", lambda work: pytest.fail("a run was started"))
    assert not elsewhere.repro_elsewhere("first", "gpu", "store", quiet, seconds=60.0, force=False)


def test_a_worker_without_a_checkout_says_which_variable_it_needs(monkeypatch):
    monkeypatch.delenv("QUALIVISION_GPU_CHECKOUT", raising=False)
    deployments = yaml.safe_load((Path(__file__).parents[1] / "prefect.yaml").read_text())["deployments"]
    (gpu,) = [one for one in deployments if one["name"] == "gpu"]
    script = gpu["pull"][0]["prefect.deployments.steps.run_shell_script"]["script"]
    done = subprocess.run(script, shell=True, capture_output=True, text=True)
    assert done.returncode and "QUALIVISION_GPU_CHECKOUT: is not set; start the worker with" in done.stderr
    there = {"QUALIVISION_GPU_CHECKOUT": "/a path"}
    assert subprocess.run(script, shell=True, capture_output=True, text=True, env=there).stdout == "/a path"


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ([Scheduled(), Pending(), Crashed()], r"its code was never reached; .* QUALIVISION_GPU_CHECKOUT, the path of"),
        ([Scheduled(), Pending(), Running(), Crashed()], r"(?s)ended as Crashed: .*the first line\nthe last line"),
    ],
)
def test_a_run_that_could_not_tell_why_it_ended_may_do_better_later(states, said):
    lines = [SimpleNamespace(message=f"the {which} line") for which in ("last", "first")]
    client = SimpleNamespace(
        read_artifacts=lambda **how: [], read_flow_run_states=lambda run: states, read_logs=lambda **how: lines
    )
    outcome = elsewhere._without_outcome(client, SimpleNamespace(id=uuid4(), state=states[-1]), "stage train@lite")
    assert re.search(said, outcome.error) and outcome.may_pass


def test_without_a_deployment_the_way_to_one_is_told(machines, monkeypatch):
    def no_deployment(*given, **how):
        raise ObjectNotFound(Exception("404"))

    monkeypatch.setattr(elsewhere, "run_deployment", no_deployment)
    with pytest.raises(elsewhere.NotDeployedError, match=r"which Prefect's server .* `python -m flows.deploy`"):
        elsewhere._start(ask())
