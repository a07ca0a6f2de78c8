"""What Prefect's server does by itself when a run ends or waits.

- A run that ended while its question was open starts `close-question`, which records that on the model version.
- With a webhook, whoever listens there is told of runs that failed and of runs that wait for an answer.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events.actions import CallWebhook, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from pydantic import SecretStr

if TYPE_CHECKING:
    from uuid import UUID

TAG: Final = "qualivision"
"""Of every deployment that this is about."""
WEBHOOK_BLOCK: Final = "qualivision-webhook"
UNANSWERED: Final = "qualivision: record questions that nobody answered"
NOTIFY: Final = "qualivision: notify"

_NOTIFIED: Final = ("Failed", "Crashed", "TimedOut", "Suspended")
_OURS: Final[dict[str, str | list[str]]] = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
_RUNS: Final[dict[str, str | list[str]]] = {"prefect.resource.id": "prefect.flow-run.*"}
_TOLD_OF: Final = ("retrain", "ingest", "monitor", "score-batch")
"""What a stage on another machine meets is told of by the run that wanted it."""

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


def set_up(close_question: UUID, webhook: str | None) -> list[str]:
    """Make or replace the automations; returns their names.

    Args:
        close_question: the deployment of that flow.
        webhook: the address that is told; None where nobody is.
    """
    wanted = [_unanswered(close_question)]
    if webhook:
        block = Webhook(method="POST", url=SecretStr(webhook)).save(WEBHOOK_BLOCK, overwrite=True)
        wanted.append(_notify(cast("UUID", block)))
    _remove([UNANSWERED, NOTIFY])
    for automation in wanted:
        automation.create()
    return [automation.name for automation in wanted]


def _remove(names: list[str]) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            if automation.name in names:
                client.delete_automation(automation.id)


def _unanswered(close_question: UUID) -> Automation:
    return Automation(
        name=UNANSWERED,
        description="Prefect's server ends a run whose time is over; the version shall tell.",
        trigger=_when(["retrain"], "Failed", "Cancelled", "Crashed"),
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
        trigger=_when(list(_TOLD_OF), *_NOTIFIED),
        actions=[CallWebhook(block_document_id=block, payload=_PAYLOAD)],
    )


def _when(flows: list[str], *states: str) -> EventTrigger:
    """A run of ours, of one of these flows, comes into one of these states."""
    return EventTrigger(
        expect={f"prefect.flow-run.{state}" for state in states},
        match=ResourceSpecification(_RUNS),
        match_related=[
            ResourceSpecification(_OURS),
            ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": flows}),
        ],
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
