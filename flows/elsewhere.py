"""A stage that runs on a worker of another pool, with this checkout as the one that asks.

The run there ends with the run here: it is cancelled when this one ends in order, and looks itself whether the asker's
run still goes on, for a process that was killed cannot cancel. What neither reaches: a flow that was started without a
worker and killed, for Prefect never learns that it has ended; the stage then runs to its end.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import httpx
from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows.checkout import is_current
from flows.handover import Outcome, hand_over, take_over
from flows.remote import bring, check_remote
from flows.repro import StageFailedError
from flows.stage import OUTCOME
from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from flows.handover import Handover

DEPLOYMENT: Final = "stage/gpu"
LOOK_SECONDS = 2.0
_SAID = 5
_running: dict[UUID, threading.Event] = {}


class NotDeployedError(QualiVisionError):
    """There is no deployment that could run a stage elsewhere: says how it is made."""


def repro_elsewhere(
    stage: str, pool: str, remote: str, say: Callable[[str], None], *, seconds: float, force: bool
) -> bool:
    """Bring a stage up to date on a worker of another pool; returns whether anything had to run.

    Args:
        stage: as `dvc.yaml` names it. What it reads is on the remote.
        pool: for what is said; the deployment has it.
        remote: the DVC remote through which data goes.
        say: told each state of the run there.
        seconds: that it may take, with the waiting for a worker.
        force: make it anew, whatever there is of it.
    Raises:
        NotDeployedError: there is no deployment.
        StageFailedError: the stage failed there, or did not end in time.
        AwayError: the remote does not answer; RemoteError: there is none, or it lacks what is needed.
    """
    check_remote(remote)
    if not force:
        bring(stage, remote, say, seconds=seconds)
        if is_current(stage):
            return False
    work = hand_over(stage, asker=str(runtime.flow_run.id), remote=remote, seconds=seconds, force=force)
    run = _start(work)
    say(f"{stage} goes to the pool {pool}, as flow run {run.id}")
    stop = _running.setdefault(run.id, threading.Event())
    try:
        outcome = _follow(run.id, stop, stage, pool, say, seconds)
    except BaseException:
        _cancel(run.id)
        raise
    finally:
        _running.pop(run.id, None)
    take_over(work, outcome, say)
    return True


def stop_elsewhere() -> None:
    """Cancel every run that this process has asked for and that goes on; the calls that wait for them come back."""
    for run, stop in tuple(_running.items()):
        stop.set()
        _cancel(run)


def _start(work: Handover) -> FlowRun:
    parameters = {"work": work.model_dump(mode="json")}
    try:
        return cast("FlowRun", run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, flow_run_name=work.stage))
    except ObjectNotFound as err:
        raise NotDeployedError(
            f"stage {work.stage}: flows.gpu_pool of params.yaml sends it to the deployment {DEPLOYMENT}, which "
            "Prefect's server does not have; `python -m flows.deploy` makes it"
        ) from err


def _follow(
    run: UUID, stop: threading.Event, stage: str, pool: str, say: Callable[[str], None], seconds: float
) -> Outcome:
    """What came of a run, when it has ended."""
    deadline, shown = time.monotonic() + seconds, ""
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            try:
                found = client.read_flow_run(run)
                state = found.state
            except httpx.TransportError as err:
                say(f"{stage}: Prefect's server does not answer ({err}); waiting")
                state = None
            if state and state.name != shown:
                shown = str(state.name)
                say(f"{stage} on the pool {pool}: {shown}")
            if state and state.is_final():
                return _outcome(client, run) or _without_outcome(client, found, f"stage {stage} on the pool {pool}")
            if stop.wait(LOOK_SECONDS):
                raise StageFailedError(f"stage {stage} was stopped with the run that asked for it", may_pass=False)
    waiting = "it still waits for a worker" if shown in ("Scheduled", "Late", "Pending") else f"it is {shown}"
    raise StageFailedError(
        f"stage {stage} on the pool {pool} was stopped after {seconds / 3600:g} h, the limit that flows.stage_hours of "
        f"params.yaml sets: {waiting} (`prefect worker start --pool {pool}` starts one)",
        may_pass=False,
    )


def _outcome(client: Any, run: UUID) -> Outcome | None:
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    return next((Outcome.model_validate_json(str(one.data)) for one in found if one.type == OUTCOME), None)


def _without_outcome(client: Any, run: FlowRun, what: str) -> Outcome:
    """What came of a run that could not tell it itself: its process, its machine or its checkout is at fault."""
    assert run.state
    why = f"{what}: its flow run {run.id} ended as {run.state.name}: {run.state.message}"
    if not any(state.is_running() for state in client.read_flow_run_states(run.id)):
        # What fails before the flow is printed there, and not sent to the server.
        why += (
            "\nits code was never reached; the output of its worker says why. The worker needs "
            "QUALIVISION_GPU_CHECKOUT, the path of a checkout (prefect.yaml)"
        )
    else:
        logged = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        last = client.read_logs(log_filter=logged, limit=_SAID, sort=LogSort.TIMESTAMP_DESC)
        why = "\n".join((why, *(line.message for line in reversed(last))))
    return Outcome(error=why, may_pass=run.state.is_crashed())


def _cancel(run: UUID) -> None:
    # Without an answer it stops all the same, as soon as it finds that this run has ended.
    with get_client(sync_client=True) as client, suppress(httpx.HTTPError, ObjectNotFound):
        client.set_flow_run_state(run, Cancelling(message="the run that asked for it has ended"))
