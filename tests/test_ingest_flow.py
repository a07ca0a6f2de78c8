"""The inbox beside DVC and as a flow: stages are not disturbed, the data set is versioned, a refusal is told once."""

from __future__ import annotations

import logging
import subprocess
import sys
import time

import pytest
from ingest_parts import PARAMS, make_batch, make_data, names_in, row, run

from flows import ingest as flow
from qualivision import environment, ingesting
from qualivision.ingesting import adding, versioning
from qualivision.labels import SPLITS

STAGE = """stages:
  look:
    cmd: touch started && while [ ! -e go ]; do sleep 0.1; done
    deps: [data]
    outs: [{started: {persist: true}}]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A checkout with a data set and an empty inbox, in which videos are not opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "STATE", tmp_path / "state")
    monkeypatch.setattr(ingesting, "check_batch", lambda *_: [])
    make_data(tmp_path / "data")
    (tmp_path / "inbox").mkdir()
    (tmp_path / "params.yaml").write_text(PARAMS.read_text().replace("settle_seconds: 60", "settle_seconds: 0"))
    return tmp_path


def dvc(place, *arguments):
    return subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=place, capture_output=True, text=True)


@pytest.fixture
def versioned(place, monkeypatch):
    """The same under DVC, with a remote."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(place / "site"))
    monkeypatch.setattr(versioning, "BUSY_LOOK_SECONDS", 0.2)
    dvc(place, "init", "--no-scm", "--quiet")
    with (place / ".dvc" / "config").open("a") as config:
        config.write(f"[cache]\n    type = hardlink,copy\n['remote \"store\"']\n    url = {place / 'store'}\n")
    assert dvc(place, "add", "data").returncode == 0
    return place


def push(place, remote="store"):
    said = []
    return versioning.version(place / "data", ingesting.state_folder(), remote=remote, say=said.append), said


@pytest.mark.slow
def test_a_running_stage_is_not_disturbed_and_the_change_is_versioned_and_pushed_once(versioned):
    make_batch(versioned / "inbox" / "may", [row("C_0.mp4", "known in val")])
    (versioned / "dvc.yaml").write_text(STAGE)
    stage = subprocess.Popen([sys.executable, "-m", "dvc", "repro"], cwd=versioned, stdout=subprocess.DEVNULL)
    while not (versioned / "started").exists():
        time.sleep(0.05)
    (outcome,) = run(versioned).outcomes
    assert outcome.state == "waiting" and "a stage of `dvc repro` is running ((PID " in outcome.why
    assert names_in(versioned)["val"] == ["A_val.mp4", "B_val.mp4"]
    (versioned / "go").touch()
    assert stage.wait() == 0
    before = (versioned / "data.dvc").read_text()
    assert run(versioned).added == 1
    with adding.no_stage_running(versioned / "data", 0.0):
        busy = dvc(versioned, "repro")
    assert busy.returncode != 0 and "is busy" in busy.stderr
    assert push(versioned)[0].endswith("data.dvc is of this data set, and store has it")
    assert (versioned / "data.dvc").read_text() != before
    assert dvc(versioned, "status", "data.dvc").stdout.strip() == "Data and pipelines are up to date."
    assert "up to date" in dvc(versioned, "push", "data.dvc", "--remote", "store").stdout.lower()
    assert push(versioned) == ("nothing to version", [])


@pytest.mark.slow
def test_a_push_that_failed_is_made_up_for_by_the_next_run(versioned):
    make_batch(versioned / "inbox" / "may", [row("C_0.mp4", "known in val")])
    run(versioned)
    with pytest.raises(
        ingesting.IngestError, match=r"`dvc push .*data.dvc --remote nowhere` failed \(exit code 1\): ERROR: .*nowhere"
    ):
        push(versioned, "nowhere")
    assert versioning.is_unversioned(ingesting.state_folder())
    assert "store has it" in push(versioned)[0]


def test_a_data_set_that_dvc_does_not_know_is_named(place):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    run(place)
    with pytest.raises(ingesting.IngestError, match=r"data\.dvc: no such file, .* have no version; run `dvc add "):
        push(place)


@pytest.fixture
def night(place, monkeypatch):
    """`night()` runs the flow without Prefect; returns its state, what it showed, and how often it versioned."""

    take_in = flow.take_in.fn

    def go(inbox=""):
        shown, versions = [], []

        def version():
            versions.append(1)
            (ingesting.state_folder() / adding.CHANGED).unlink()
            return "versioned"

        monkeypatch.setattr(flow, "get_run_logger", lambda: logging.getLogger("night"))
        monkeypatch.setattr(flow, "take_in", take_in)
        monkeypatch.setattr(flow, "version", version)
        monkeypatch.setattr(flow, "create_markdown_artifact", lambda **shows: shown.append(shows["markdown"]))
        return flow.ingest.fn(inbox), shown, len(versions)

    return go


def test_a_batch_is_taken_in_versioned_and_shown(night, place):
    make_batch(place / "inbox" / "may", [row(f"C_{n}.mp4", f"known in {split}") for n, split in enumerate(SPLITS)])
    state, shown, versions = night()
    assert state.is_completed() and versions == 1
    assert state.message == "3 clips added (train 1, val 1, test 1); versioned"
    assert "| may | taken | 1 | 1 | 1 |  | 3 clips added (train 1, val 1, test 1) |" in shown[0]


def test_nothing_to_do_is_a_result(night, place):
    state, shown, versions = night()
    assert state.is_completed() and (shown, versions) == ([], 0)
    assert state.message == "nothing to do: there is no batch in inbox"


def test_a_refusal_fails_the_run_once_and_the_others_are_taken_all_the_same(night, place):
    make_batch(place / "inbox" / "bad|one", [row("A_val.mp4", "known in val", Overall_MOS=4)])
    make_batch(place / "inbox" / "good", [row("C_0.mp4", "known in val")])
    state, shown, versions = night()
    assert state.is_failed() and versions == 1
    assert state.message == "1 clip added (val 1); refused bad|one; versioned"
    assert "### bad\\|one" in shown[0] and "| bad\\|one/labels.csv:2 |" in shown[0]
    state, shown, versions = night()
    assert state.is_completed() and versions == 0
    assert state.message.endswith("refused before and not changed since: bad|one")
    assert "known-video-other-row" in shown[0]


def test_a_change_that_a_killed_run_left_without_a_version_gets_one(night, place):
    make_batch(place / "inbox" / "may", [row("C_0.mp4", "known in val")])
    run(place)
    assert night()[2] == 1
    assert night()[2] == 0


def test_another_inbox_may_be_given(night, place):
    make_batch(place / "other" / "may", [row("C_0.mp4", "known in val")])
    assert night(str(place / "other"))[0].message.startswith("1 clip added")


def test_a_second_run_at_once_leaves_it_to_the_first(night, place, monkeypatch):
    def busy(*_, **__):
        raise ingesting.BusyError("another run takes in the inbox")

    monkeypatch.setattr(ingesting, "ingest", busy)
    state = night()[0]
    assert state.is_completed() and state.message == "another run takes in the inbox"
