"""Ends runs that are lost: a worker or a machine that was killed cannot say so itself, and its run would run for ever.

python -m flows.watch                beside a server of your own; `python -m flows.up` does the same by itself

A run of ours sends heartbeats (prefect.yaml). One whose newest sign of life stays the same for a while of watching is
ended as Crashed, or as Cancelled if that was asked of it. Clocks of other machines have no part in it, and a while in
which the server did not answer does not count. Prefect's own way, an automation that waits for what does not happen,
locks a SQLite database against the runs themselves.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

import httpx  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.filters import FlowRunFilter  # noqa: E402
from prefect.events.filters import EventFilter, EventNameFilter, EventOrder, EventResourceFilter  # noqa: E402
from prefect.exceptions import PrefectException  # noqa: E402
from prefect.states import Cancelled, Crashed, StateType  # noqa: E402

from flows.automations import TAG  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import State

LOOK_SECONDS: Final = 15.0
LOST_AFTER: Final = {
    StateType.RUNNING: timedelta(seconds=75),  # two heartbeats, which come every 30 s, and a half
    StateType.CANCELLING: timedelta(seconds=75),
    StateType.PENDING: timedelta(minutes=15),  # a container's image may have to be pulled first
}
"""Without a new sign of life for so long a run in this state is lost."""


class Watch:
    """What is known of the signs of life of the runs that are going on.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[UUID, tuple[str, float]] = {}

    def look(self) -> list[str]:
        """Look once; returns the names of the runs that were ended as lost. Without an answer it starts anew."""
        try:
            with get_client(sync_client=True) as client:
                return self._look(client)
        except (httpx.HTTPError, PrefectException):
            self._seen = {}
            return []

    def _look(self, client: SyncPrefectClient) -> list[str]:
        ours = FlowRunFilter.model_validate({"tags": {"all_": [TAG]}, "state": {"type": {"any_": list(LOST_AFTER)}}})
        before, self._seen, lost = self._seen, {}, []
        for run in client.read_flow_runs(flow_run_filter=ours):
            if run.state is None or run.deployment_id is None:  # one from a shell sends none
                continue
            sign, now = _last_sign(client, run), self._clock()
            known, since = before.get(run.id, ("", now))
            self._seen[run.id] = sign, since if sign == known else now
            if now - self._seen[run.id][1] >= LOST_AFTER[run.state.type].total_seconds():
                _end(client, run)
                lost.append(run.name)
        return lost


def _last_sign(client: SyncPrefectClient, run: FlowRun) -> str:
    """The last change of its state, and the last heartbeat."""
    wanted = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        order=EventOrder.DESC,
    )
    heartbeats = client.read_events(wanted, limit=1).events
    assert run.state is not None
    return f"{run.state.id} {heartbeats[0].id if heartbeats else ''}"


def _end(client: SyncPrefectClient, run: FlowRun) -> None:
    assert run.state is not None
    state: State[None]
    if run.state.type == StateType.CANCELLING:
        state = Cancelled(message="no heartbeat any more: its process or its machine went away while it was cancelled")
    elif run.state.type == StateType.PENDING:
        state = Crashed(message="it never started: its worker or its machine is gone")
    else:
        state = Crashed(message="no heartbeat any more: its process or its machine is gone")
    client.set_flow_run_state(run.id, state)


def main() -> int:
    """Watch the server of this environment until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.watch",
        description="End runs that are lost, on the server that PREFECT_API_URL names, until Ctrl-C. One a server is "
        "enough; `python -m flows.up` is one, unless it is started with --worker-only.",
    )
    parser.parse_args()
    if "PREFECT_API_URL" not in os.environ:
        parser.error("PREFECT_API_URL is not set: the server that is watched")
    watch = Watch()
    try:
        while True:
            for name in watch.look():
                sys.stdout.write(f"watch: {name} was lost\n")
                sys.stdout.flush()
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
