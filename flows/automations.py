"""What Prefect's server does by itself when a run ends or hangs: it needs no worker for that.

- A run that has sent heartbeats and stops to is ended as Crashed: a machine that went away cannot say so itself.
- A run that ended while its question was open starts `close-question`, which records that on the model version.
- With a webhook, whoever listens there is told of runs that failed and of runs that wait for an answer.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.states import StateType
from pydantic import SecretStr

if TYPE_CHECKING:
    from uuid import UUID

TAG: Final = "qualivision"
"""Of every deployment that this is about."""
WEBHOOK_BLOCK: Final = "qualivision-webhook"
LOST: Final = "qualivision: end runs that are lost"
UNANSWERED: Final = "qualivision: record questions that nobody answered"
NOTIFY: Final = "qualivision: notify"

_ENDS: Final = ("Completed", "Failed", "Crashed", "Cancelled", "TimedOut")
_NOTIFIED: Final = ("Failed", "Crashed", "TimedOut", "Suspended")
_OURS: Final[dict[str, str | list[str]]] = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_RUNS: Final[dict[str, str | list[str]]] = {"prefect.resource.id": "prefect.flow-run.*"}

# Slack, Mattermost and Teams show `text`; the rest is for programs.
_PAYLOAD: Final = """
{
  "text": {{ (flow.name ~ ' (' ~ flow_run.name ~ '): ' ~ (('waits for an answer' if flow_run.state.name == 'Suspended'
    else flow_run.state.name) ~ (': ' ~ flow_run.state.message if flow_run.state.message else '')))[:2000] | tojson }},
  "flow": {{ flow.name | tojson }},
  "flow_run": {{ flow_run.id | string | tojson }},
  "name": {{ flow_run.name | tojson }},
  "state": {{ flow_run.state.name | tojson }},
  "url": {{ flow_run | ui_url | tojson }}
}
"""


def set_up(close_question: UUID, webhook: str | None, *, lost_after: timedelta) -> list[str]:
    """Make or replace the automations; returns their names.

    Args:
        close_question: the deployment of that flow.
        webhook: the address that is told; None where nobody is.
        lost_after: so long after its last heartbeat a run counts as lost.
    """
    wanted = [_lost(lost_after), _unanswered(close_question)]
    if webhook:
        block = Webhook(method="POST", url=SecretStr(webhook)).save(WEBHOOK_BLOCK, overwrite=True)
        wanted.append(_notify(cast("UUID", block)))
    _remove([LOST, UNANSWERED, NOTIFY])
    for automation in wanted:
        automation.create()
    return [automation.name for automation in wanted]


def _remove(names: list[str]) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            if automation.name in names:
                client.delete_automation(automation.id)


def _lost(after: timedelta) -> Automation:
    heartbeat = "prefect.flow-run.heartbeat"
    return Automation(
        name=LOST,
        description="No heartbeat any more: the process or its machine is gone.",
        trigger=EventTrigger(
            after={heartbeat},
            expect={heartbeat, *(f"prefect.flow-run.{state}" for state in (*_ENDS, "Suspended", "Paused"))},
            match=ResourceSpecification(_RUNS),
            match_related=ResourceSpecification(_OURS),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=after,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message="no heartbeat any more: its process or its machine is gone",
            )
        ],
    )


def _unanswered(close_question: UUID) -> Automation:
    return Automation(
        name=UNANSWERED,
        description="Prefect's server ends a run whose time is over; the version shall tell.",
        trigger=_when("Failed", "Cancelled", "Crashed"),
        actions=[
            RunDeployment(
                source="selected",
                job_variables=None,
                deployment_id=close_question,
                parameters={
                    "flow_run_id": {"__prefect_kind": "jinja", "template": "{{ event.resource.id }}"},
                    "state": {"__prefect_kind": "jinja", "template": "{{ flow_run.state.name }}"},
                },
            )
        ],
    )


def _notify(block: UUID) -> Automation:
    return Automation(
        name=NOTIFY,
        description="Tells the webhook of failures and of questions.",
        trigger=_when(*_NOTIFIED),
        actions=[CallWebhook(block_document_id=block, payload=_PAYLOAD)],
    )


def _when(*states: str) -> EventTrigger:
    return EventTrigger(
        expect={f"prefect.flow-run.{state}" for state in states},
        match=ResourceSpecification(_RUNS),
        match_related=ResourceSpecification(_OURS),
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
