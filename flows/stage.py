"""The flow `stage`: one stage of a retraining, on the machine of the worker that takes it.

`retrain` starts its deployment `stage/gpu` for the stages of `flows.gpu_models`, on the pool `flows.gpu_pool`. The
worker's machine has a checkout of its own, which QUALIVISION_GPU_CHECKOUT names (prefect.yaml).
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

import httpx  # noqa: E402
from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import Artifact  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.exceptions import ObjectNotFound  # noqa: E402
from prefect.states import Cancelled, Completed, Failed, State  # noqa: E402

# Pydantic reads these when the flow is made.
from flows.commands import allow_commands, stop_commands  # noqa: E402
from flows.handover import Handover, Outcome, carry_out  # noqa: E402
from qualivision.errors import QualiVisionError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


OUTCOME: Final = "stage"
"""Type of the artifact in which the asker finds what came of it."""
ASKER_LOOK_SECONDS = 10.0


@flow(name="stage")
def stage(work: Handover) -> State[Any]:
    """Run one stage as another checkout would, with data from the DVC remote; what it made goes there.

    Args:
        work: what the run that asks for it hands over.
    """
    log = get_run_logger()
    allow_commands()
    with _stopped_with(work.asker) as nobody_asks:
        try:
            outcome = carry_out(work, log.info)
        except QualiVisionError as err:
            outcome = Outcome.of_error(err)
        finally:
            stop_commands()
    if nobody_asks.is_set():
        return Cancelled(message=f"{work.stage}: the run that asked for it has ended")
    # Data of a return value would stay on this machine; an artifact is on the server.
    Artifact(type=OUTCOME, key=f"{OUTCOME}-{_key(work.stage)}", data=outcome.model_dump(mode="json")).create()
    if outcome.error:
        return Failed(message=outcome.error)
    return Completed(message=f"{work.stage} {'ran' if outcome.ran else 'was up to date'}")


def _key(name: str) -> str:
    return name.replace("@", "-").replace("_", "-").lower()


@contextmanager
def _stopped_with(asker: str) -> Iterator[threading.Event]:
    """Stop the commands of this process when a flow run has ended; the event says that it has."""
    ended, done = threading.Event(), threading.Event()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not done.wait(ASKER_LOOK_SECONDS):
                try:
                    state = client.read_flow_run(UUID(asker)).state
                except httpx.HTTPError:  # the server is away; its answer comes later
                    continue
                except ObjectNotFound:  # deleted
                    state = None
                if state is None or state.is_final():
                    ended.set()
                    stop_commands()
                    return

    watching = threading.Thread(target=watch, name="asker", daemon=True)
    watching.start()
    try:
        yield ended
    finally:
        done.set()
        watching.join()
