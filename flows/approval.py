"""Asking a person whether a challenger that passed the gate shall be champion: Prefect's form, and its end.

A run that asks is suspended: it holds no process, and its form is in Prefect's UI until it lapses. What was asked and
answered is kept on the model version (`qualivision/approval.py`), so a run that goes on knows what it had asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import flow, get_run_logger, runtime  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.flow_runs import suspend_flow_run  # noqa: E402
from prefect.input import RunInput  # noqa: E402
from prefect.states import Completed, State  # noqa: E402
from pydantic import Field  # noqa: E402

from qualivision import approval  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402

if TYPE_CHECKING:
    from uuid import UUID

    from qualivision.approval import Question
    from qualivision.settings import Settings


class Decision(RunInput):
    """The form."""

    decision: Literal["approve", "reject"] = Field(description="approve makes it the champion; reject changes nothing")
    reason: str = Field(min_length=1, description="kept on the model version")
    who: str = Field(min_length=1, description="your name, kept on the model version")


def can_ask() -> bool:
    """Whether this run can be suspended: it has to belong to a deployment, whose worker goes on with it."""
    return runtime.deployment.id is not None


def ask(version: int, against: int | None, settings: Settings) -> Question:
    """Record the question of this run on the version."""
    return approval.ask(
        version,
        against,
        settings.registry,
        flow_run=str(runtime.flow_run.id),
        where=runtime.flow_run.ui_url or str(runtime.flow_run.name),
        hours=settings.flows.approval_hours,
    )


def answer(question: Question, said: str, settings: Settings) -> Decision:
    """The answer to this run's question. Without one yet this does not return: the run is suspended.

    Args:
        question: of this run.
        said: what a person has to know, as Markdown.
        settings: all of `params.yaml`.
    """
    form = Decision.with_initial_data(description=said)
    return suspend_flow_run(wait_for_input=form, timeout=round(settings.flows.approval_hours * 3600), key=question.key)


def is_open(question: Question) -> bool:
    """Whether a question can still be answered: its run is suspended."""
    from prefect.exceptions import ObjectNotFound

    if question.state != "waiting" or question.is_late:
        return False
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(_id(question.flow_run)).state
        except ObjectNotFound:
            return False
    return bool(state and state.is_paused())


@flow(name="close-question")
def close_question(flow_run_id: str, state: str) -> State[None]:
    """Record on the model version that a run ended whose question nobody answered.

    Prefect's server ends such a run itself, without a process in which this could be done. An automation starts this.

    Args:
        flow_run_id: the run that ended.
        state: the name of its last state: Failed when the time was over, Cancelled when somebody stopped it.
    """
    settings = load_settings().registry
    question = approval.asked_by(flow_run_id.removeprefix("prefect.flow-run."), settings)
    if question is None:
        return Completed(message="it had no open question")
    if state == "Cancelled":
        closed = approval.close(question, "withdrawn", settings, why="its run was cancelled")
    elif question.is_late:
        closed = approval.close(question, "lapsed", settings)
    else:
        closed = approval.close(question, "withdrawn", settings, why=f"its run ended as {state}")
    line = f"models:/{settings.name}/{closed.version}: {closed}"
    get_run_logger().info(line)
    return Completed(message=line)


def _id(text: str) -> UUID:
    from uuid import UUID

    return UUID(text)
