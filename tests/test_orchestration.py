"""Retraining that runs itself, with everything real: servers, worker, webhook, stages, and what is killed in between.

The tests share one checkout with its servers, for these take a minute to start; each makes what it needs, and leaves
nothing running. docs/operations.md tells what each kind of failure leads to: the table is what is tested here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pandas as pd
import psutil
import pytest
from orchestra import Orchestra, copy_checkout, eventually, of_checkout
from servers import needed

pytestmark = pytest.mark.slow

LONG = 60
"""Epochs that take half a minute: time to be killed in."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout with a small data set whose models may become champion, however bad they are."""
    folder = tmp_path_factory.mktemp("night") / "checkout"
    folder.mkdir()
    copy_checkout(folder)
    for command in (["qualivision", "sample-data", "--prompts", "16"], ["dvc", "add", "--quiet", "data"]):
        subprocess.run(command, cwd=folder, env=of_checkout(folder), check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def shared(checkout):
    with ExitStack() as stack:
        orchestra = Orchestra(checkout, stack)
        orchestra.settings(
            evaluate__behaviour_clips=0,
            promote__min_gain_over_no_video=-1.0,
            promote__margin=2.0,
            promote__resamples=200,
            flows__retry_seconds=[1],
        )
        orchestra.another_model()
        orchestra.start_all()
        first = orchestra.start(why="the first night")
        assert orchestra.outcome(first)[0] == "Completed"
        yield orchestra


@pytest.fixture
def night(shared):
    """The servers with a champion there, and nothing running."""
    settings = (shared.folder / "params.yaml").read_text()
    shared.told.clear()
    yield shared
    nothing_runs(shared)
    (shared.folder / "params.yaml").write_text(settings)


def by_hand(night: Orchestra, *, epochs: int = 2, hours: float = 1.0) -> str:
    """A run that has another model and waits for an answer."""
    night.another_model(epochs)
    night.settings(flows__approval_hours=hours)
    run = night.start(approval="manual")
    night.wait(run, "Suspended")
    return run


def is_untouched(night: Orchestra, before: tuple) -> bool:
    """Whether champion and versions are what they were, and every version is a whole one."""
    whole = all("qualivision.files" in one["tags"] and one["status"] == "READY" for one in night.versions())
    return whole and standing(night) == before


def standing(night: Orchestra) -> tuple:
    return night.aliases().get("champion"), [one["version"] for one in night.versions()]


def nothing_runs(night: Orchestra) -> None:
    eventually(lambda: not night.stages(), 30, lambda: f"left behind: {[one.cmdline() for one in night.stages()]}")


# --- what runs by itself


def test_schedules_are_visible_and_runs_of_them_planned(shared):
    found = shared._post("/deployments/filter", {})
    plans = {
        f"{one['entrypoint'].rpartition(':')[2]}/{one['name']}": [plan["schedule"]["cron"] for plan in one["schedules"]]
        for one in found
    }
    assert plans["retrain/nightly"] == ["0 2 * * *"] and plans["retrain/rebuild"] == ["0 4 * * 0"]
    assert plans["ingest/hourly"] == ["15 * * * *"] and plans["monitor/daily"] == ["0 6 * * *"]
    described = next(one for one in found if one["name"] == "nightly")["parameter_openapi_schema"]["properties"]
    assert described["approval"]["enum"] == ["as params.yaml says", "manual", "auto"]
    assert all(described[name]["description"] for name in ("why", "approval", "rebuild"))
    planned = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "limit": 200}
    eventually(
        lambda: len({one["deployment_id"] for one in shared._post("/flow_runs/filter", planned)}) >= 4,
        90,
        lambda: "no runs were planned",
    )


def test_nothing_to_do_is_a_result_in_seconds(night):
    before = standing(night)
    run = night.start()
    name, message = night.outcome(run)
    assert name == "Completed" and message.startswith("nothing to do: data, code and settings are unchanged")
    assert night.run(run)["total_run_time"] < 30 and is_untouched(night, before)
    assert night.messages(run, "Completed") == [] and night.told == []


# --- approval


def test_a_person_approves_and_it_is_champion(night):
    champion = night.aliases()["champion"]
    run = by_hand(night)
    nothing_runs(night)
    eventually(lambda: bool(night.messages(run, "Suspended")), 30, lambda: f"nobody was told: {night.told}")
    assert "waits for an answer" in night.messages(run, "Suspended")[0]["text"]
    assert night.aliases()["champion"] == champion
    # What nobody should get through: wrong words, and nothing at all.
    for said in ({"decision": "perhaps", "reason": "?", "who": "rater"}, {"decision": "approve"}, {}):
        assert night.answer(run, **said)["status"] == "REJECT", said
    assert night.run(run)["state"]["name"] == "Suspended"
    assert night.answer(run, decision="approve", reason="sharper", who="rater")["status"] == "ACCEPT"
    name, message = night.outcome(run)
    version = night.aliases()["champion"]
    assert name == "Completed" and int(version) > int(champion)
    assert message == f"models:/qualivision/{version} was approved by rater: sharper; it is the champion"
    tags = night.versions()[-1]["tags"]
    assert '"approved"' in tags["qualivision.approval"] and "rater" in tags["qualivision.history"]
    shown = night.artifacts(run)
    assert {
        "data",
        "metrics-lite",
        "pictures-lite",
        f"version-{version}",
        f"mlflow-{version}",
        f"gate-{version}",
    } <= set(shown)
    assert "Overall" in shown["metrics-lite"]["data"] and "change" in shown["metrics-lite"]["data"]
    assert "data:image/png" in shown["pictures-lite"]["data"]
    assert "git commit" in shown[f"version-{version}"]["data"] and "dvc.lock" in shown[f"version-{version}"]["data"]
    assert "Overall" in shown[f"gate-{version}"]["data"]
    link = shown[f"mlflow-{version}"]["data"]
    assert night.mlflow in link and httpx.get(night.mlflow).status_code == 200


def test_a_person_rejects_and_is_not_asked_again(night):
    champion = night.aliases()["champion"]
    run = by_hand(night)
    night.answer(run, decision="reject", reason="too soft", who="rater")
    name, message = night.outcome(run)
    assert name == "Completed" and message.endswith("was rejected by rater: too soft")
    again = night.start(approval="manual")
    name, message = night.outcome(again)
    assert name == "Completed" and "rejected by rater: too soft" in message
    assert night.aliases()["champion"] == champion and night.aliases()["challenger"] == night.versions()[-1]["version"]
    assert '"rejected"' in night.versions()[-1]["tags"]["qualivision.approval"]


def test_a_question_that_nobody_answers_lapses(night):
    champion = night.aliases()["champion"]
    run = by_hand(night, hours=5 / 3600)
    name, message = night.outcome(run, seconds=60)
    assert (name, message) == ("Failed", "The flow was paused and never resumed.")
    lapsed = lambda: '"lapsed"' in night.versions()[-1]["tags"]["qualivision.approval"]  # noqa: E731
    eventually(lapsed, 60, lambda: str(night.versions()[-1]["tags"]))
    assert night.aliases()["champion"] == champion and night.aliases()["challenger"] == night.versions()[-1]["version"]
    assert night.answer(run, decision="approve", reason="late", who="rater")["status"] == "ABORT"
    eventually(lambda: bool(night.messages(run, "Failed")), 30, lambda: f"nobody was told: {night.told}")


def test_a_waiting_run_that_is_cancelled_withdraws_its_question(night):
    run = by_hand(night)
    night.cancel(run)
    night.wait(run, "CANCELLED", seconds=60)
    withdrawn = lambda: '"withdrawn"' in night.versions()[-1]["tags"]["qualivision.approval"]  # noqa: E731
    eventually(withdrawn, 60, lambda: str(night.versions()[-1]["tags"]))


# --- failures: the table of docs/operations.md


def in_training(night: Orchestra, *, epochs: int) -> str:
    """A run that trains another model, and has saved an epoch of it."""
    night.another_model(epochs)
    run = night.start()
    night.training()
    return run


def test_a_killed_training_is_tried_again_and_goes_on(night):
    champion = night.aliases()["champion"]
    night.another_model(LONG)
    run = night.start(approval="manual")
    night.training().kill()
    # Whether the gate lets a model of so few clips pass is not what is tried here.
    state = night.wait(run, "Suspended", "Completed")["state"]["name"]
    assert "train@lite was killed by signal 9" in night.log(run) and "Retry" in night.log(run)
    assert night.first_epochs()[-1] > 1 and night.aliases()["champion"] == champion
    if state == "Suspended":
        night.cancel(run)
        night.wait(run, "CANCELLED")


def test_a_killed_flow_is_crashed_at_once_and_the_next_goes_on_until_it_is_cancelled(night):
    before = standing(night)
    run = in_training(night, epochs=LONG * 10)
    flow = night.of_run()
    flow.kill()
    assert night.outcome(run, seconds=30)[0] == "Crashed"
    nothing_runs(night)
    eventually(lambda: bool(night.messages(run, "Crashed")), 30, lambda: f"nobody was told: {night.told}")
    again = night.start()
    night.training()
    night.cancel(again)
    assert night.outcome(again, seconds=60)[0] == "Cancelled"
    nothing_runs(night)
    assert night.first_epochs()[-1] > 1 and is_untouched(night, before)


def test_a_killed_worker_ends_its_run_and_is_started_again(night):
    champion, versions = standing(night)
    run = in_training(night, epochs=LONG)
    worker = night.part("-m prefect worker start")
    worker.kill()
    assert night.outcome(run, seconds=150)[0] == "Crashed"
    nothing_runs(night)
    assert is_untouched(night, (champion, versions))
    name, message = night.outcome(night.start())
    assert (
        name == "Completed"
        and message.startswith("ran train@lite, evaluate@lite; models:/qualivision/")
        and night.first_epochs()[-1] > 1
    )
    assert night.part("-m prefect worker start").pid != worker.pid


def test_a_run_that_is_killed_with_its_worker_is_found(night):
    before = standing(night)
    run = in_training(night, epochs=LONG * 10)
    flow = night.of_run()
    os.kill(night.part("-m prefect worker start").pid, signal.SIGKILL)
    flow.kill()
    nothing_runs(night)
    name, message = night.outcome(run, seconds=150)
    assert (name, message) == ("Crashed", "no heartbeat any more: its process or its machine is gone")
    eventually(lambda: bool(night.messages(run, "Crashed")), 30, lambda: f"nobody was told: {night.told}")
    assert is_untouched(night, before)


def test_a_killed_prefect_server_is_started_again_and_the_run_goes_on(night):
    run = in_training(night, epochs=LONG)
    server = night.part("-m prefect server start")
    for one in [*server.children(recursive=True), server]:
        one.kill()
    name, message = night.outcome(run)
    assert name == "Completed" and message.startswith("ran train@lite, evaluate@lite; models:/qualivision/")


def test_bad_data_fails_at_once_and_names_the_row(night):
    before = standing(night)
    path = night.folder / "data" / "train" / "labels" / "train_labels.csv"
    sound = path.read_bytes()
    table = pd.read_csv(path)
    table.loc[2, "Overall_MOS"] = 7.5
    table.to_csv(path, index=False)
    try:
        run = night.start()
        name, message = night.outcome(run)
    finally:
        path.write_bytes(sound)
    assert name == "Failed" and "stage validate failed" in message
    assert "train_labels.csv:4  7.5" in message and "Retry" not in night.log(run)
    eventually(lambda: bool(night.messages(run, "Failed")), 30, lambda: f"nobody was told: {night.told}")
    assert is_untouched(night, before)


def test_a_full_disk_is_named_and_the_next_run_goes_on(night):
    needed(os.geteuid() == 0, "the right to mount")
    before = standing(night)
    night.another_model()
    folder = night.folder / "checkpoints" / "lite"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    try:
        run = night.start()
        name, message = night.outcome(run)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert name == "Failed" and "stage train@lite failed" in message and "No space left" in message
    assert "Retry" not in night.log(run) and is_untouched(night, before)
    name, message = night.outcome(night.start())
    assert name == "Completed" and message.startswith("ran train@lite, evaluate@lite; models:/qualivision/")


def test_an_mlflow_server_that_goes_away_is_named_and_the_next_run_goes_on(night):
    champion, versions = standing(night)
    night.another_model(LONG)
    night.settings(flows__retry_seconds=[])
    run = night.start()
    night.training()
    night.kill_mlflow()
    name, message = night.outcome(run)
    assert name == "Failed" and f"MLflow at {night.mlflow} does not answer" in message
    night.start_mlflow()
    assert is_untouched(night, (champion, versions))
    name, message = night.outcome(night.start())
    assert (
        name == "Completed"
        and message.startswith("ran train@lite, evaluate@lite; models:/qualivision/")
        and night.first_epochs()[-1] > 1
    )
    assert len(night.versions()) == len(versions) + 1


def test_two_runs_take_turns(night):
    night.another_model()
    runs = [night.start(), night.start()]
    ended = sorted((night.wait(run) for run in runs), key=lambda run: run["start_time"])
    assert [run["state"]["name"] for run in ended] == ["Completed", "Completed"]
    assert ended[0]["state"]["message"].startswith("ran train@lite, evaluate@lite; ")
    assert ended[1]["state"]["message"].startswith("nothing to do")
    assert ended[1]["start_time"] >= ended[0]["end_time"]


def test_a_rebuild_makes_everything_anew_and_comes_to_the_same_model(night):
    before = standing(night)[1]
    run = night.start("retrain/rebuild", rebuild=True)
    name, message = night.outcome(run)
    assert name == "Completed"
    assert message.startswith("ran validate, frames@lite, prompts@lite, encode@lite, train@lite, evaluate@lite; ")
    assert standing(night)[1] == before


def test_a_stage_that_takes_too_long_is_stopped(night):
    night.another_model(LONG * 10)
    night.settings(flows__stage_hours=25 / 3600)
    start = time.monotonic()
    run = night.start()
    name, message = night.outcome(run)
    assert name == "Failed" and "flows.stage_hours" in message and time.monotonic() - start < 90


def test_what_flows_up_started_ends_with_it(shared):
    """The last one: afterwards nothing is there for another."""
    started = shared.up.children(recursive=True)
    assert len(started) >= 4  # two supervisors, server and worker
    shared.up.kill()
    eventually(lambda: not [one for one in started if is_alive(one)], 20, lambda: f"left behind: {started}")


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
