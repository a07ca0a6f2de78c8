"""The flow `retrain`: from the data set to a champion.

python -m flows.retrain              runs it here; no Prefect server is needed
PREFECT_API_URL=... python -m ...    the same, visible in that server's UI

Started by a deployment (`flows/deploy.py`) it can ask a person, and waits for the answer without a process: Prefect
then runs it once more from the top. What it had asked stands on the model version, so it goes straight on from there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import flow, get_run_logger, runtime, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.states import Completed, State  # noqa: E402  (Prefect reads the annotations, and shows types in its form)
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402
from pydantic import Field  # noqa: E402

from flows import approval as asking  # noqa: E402
from flows import artifacts, lineage  # noqa: E402
from flows.checkout import is_current  # noqa: E402
from flows.commands import allow_commands, stop_commands  # noqa: E402
from flows.elsewhere import stop_elsewhere  # noqa: E402
from flows.outcome import tell  # noqa: E402
from flows.remote import is_shared  # noqa: E402
from flows.stages import build  # noqa: E402
from qualivision import approval as questions  # noqa: E402
from qualivision import registry, tracking  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402
from qualivision.stages import places  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from qualivision.approval import Question
    from qualivision.settings import Settings

Approval = Literal["as params.yaml says", "manual", "auto"]

NOTHING_RAN = "nothing to do: data, code and settings are unchanged"


@task
def register(model: str) -> int:
    """Put the evaluated checkpoint into the registry, as challenger; returns its version."""
    settings = load_settings()
    done = registry.register(
        places.checkpoint_dir(model), places.report_dir(model), settings.registry, data=places.DATA
    )
    if done.new:
        artifacts.show_version(done.version, settings)
    return done.version


@task
def gate(version: int) -> None:
    """Hold a version against the champion, and show the verdict."""
    from qualivision.gate import judge

    verdict = judge(version, load_settings(), places.DATA, advance=lambda uri: lambda done, total: None)
    create_markdown_artifact(key=f"gate-{version}", markdown=verdict.as_markdown(), description=verdict.line)
    get_run_logger().info(verdict.line)


@task
def promote(version: int, who: str | None, why: str) -> None:
    """Make a version that passed the gate the champion."""
    registry.promote(version, load_settings().registry, who=who, why=why)


@task
def commit_lineage(branch: str, ran: list[str], uri: str, decision: str) -> str:
    """Commit what this run made on a branch; returns what was done, or why it was not."""
    run = runtime.flow_run
    lines = (
        f"Retraining {run.name}: {uri}",
        "",
        f"flow run: {run.name} ({run.id})",
        f"stages: {', '.join(ran) or 'none ran; all were up to date'}",
        f"model: {uri}",
        f"decision: {decision}",
    )
    said = lineage.commit(branch, "\n".join(lines) + "\n")
    (get_run_logger().warning if said.startswith("not ") else get_run_logger().info)(said)
    return said


@task
def report(models: list[str]) -> None:
    """Show the data and the evaluations."""
    settings = load_settings()
    artifacts.show_data()
    for model in models:
        artifacts.show_model(model, settings)


@flow(name="retrain", task_runner=ThreadPoolTaskRunner(max_workers=16))  # type: ignore[arg-type]
def retrain(
    why: Annotated[str, Field(description="Why this run was started; goes to its log.")] = "",
    approval: Annotated[
        Approval, Field(description="Who promotes a model that passes the gate.")
    ] = "as params.yaml says",
    rebuild: Annotated[bool, Field(description="Make everything anew from data/, whatever is there.")] = False,
) -> State[None]:
    """Rebuild what changed, register the model that `deploy` of params.yaml names, and promote it if it may be.

    Args:
        why: why this run was started; goes to its log.
        approval: who promotes a model that passes the gate. `manual` asks a person, `auto` does not.
        rebuild: make everything anew from data/, whatever is there. With equal data, code and settings the same model
            comes of it.
    """
    log = get_run_logger()
    allow_commands()
    if why:
        log.info("started because: %s", why)
    settings = load_settings()
    if approval != "as params.yaml says":
        settings = settings.model_copy(update={"flows": settings.flows.model_copy(update={"approval": approval})})
    try:
        with tracking.naming_what_is_away():
            done = _go_on(question, settings) if (question := _asked(settings)) else _from_the_top(settings, rebuild)
    finally:
        stop_commands()  # cancelled: what runs in other threads would keep this process
        stop_elsewhere()
    log.info(done)
    return Completed(message=done)


def _from_the_top(settings: Settings, rebuild: bool) -> str:
    """Stages, registration, decision, lineage; returns what came of it, in a line."""
    remote, branch = settings.flows.remote, settings.flows.commit_branch
    if branch:
        lineage.check_branch(branch)
    done = not rebuild and is_current() and (not remote or is_shared(remote))
    ran = [] if done else build(settings, rebuild=rebuild)
    if ran:
        report(list(settings.built))
    said = f"ran {', '.join(ran)}" if ran else NOTHING_RAN
    version = register(settings.deploy)
    uri = f"models:/{settings.registry.name}/{version}"

    def keep(decision: str) -> str:
        return f"; {commit_lineage(branch, ran, uri, decision)}" if branch else ""

    # A run that asks does not come back here: what goes on is another one, which made nothing.
    decision = _decide(version, settings, before_asking=lambda: keep("waits for approval"))
    return f"{said}; {decision}{keep(decision)}"


def _decide(version: int, settings: Settings, *, before_asking: Callable[[], object] = lambda: None) -> str:
    """Gate, approval and promotion of a version, as far as they are still to do; returns what came of it."""
    names, uri = settings.registry, f"models:/{settings.registry.name}/{version}"
    champion = registry.version_of(registry.CHAMPION, names)
    if version == champion:
        return f"{uri} is the champion"
    if registry.needs_gate(version, names, places.DATA):
        gate(version)
    if objection := registry.objection(version, names):
        return f"{objection}; the champion stays {champion or 'nobody'}"
    if settings.flows.approval == "auto":
        promote(version, None, "the gate passed, in a run of retrain")
        return f"{uri} passed the gate and is the champion"
    asked = questions.question_of(version, names)
    if asked and asked.against == champion:
        if asked.state in ("rejected", "lapsed") or (asked.state == "waiting" and asked.is_late):
            return f"{uri} passed the gate; {asked}; `qualivision promote {version}` promotes it all the same"
        if asked.flow_run != runtime.flow_run.id and asking.is_open(asked):
            return f"{uri} passed the gate; {asked}"
    if not asking.can_ask():
        return f"{uri} passed the gate; `qualivision promote {version}` makes it the champion"
    before_asking()
    return _go_on(asking.ask(version, champion, settings), settings)


def _asked(settings: Settings) -> Question | None:
    """The question that this run had asked before it was suspended."""
    return questions.asked_by(str(runtime.flow_run.id), settings.registry) if asking.can_ask() else None


def _go_on(question: Question, settings: Settings) -> str:
    """What follows from the answer. Without one this does not return: the run is suspended until there is one."""
    names, version = settings.registry, question.version
    verdict = registry.verdict_of(version, names)
    said = asking.answer(question, verdict.as_markdown() if verdict else "", settings)
    state: Literal["approved", "rejected"] = "approved" if said.decision == "approve" else "rejected"
    answered = questions.close(question, state, names, who=said.who, why=said.reason)
    uri = f"models:/{names.name}/{version}"
    if state == "rejected":
        return f"{uri} was {answered}"
    if registry.version_of(registry.CHAMPION, names) != question.against or registry.needs_gate(
        version, names, places.DATA
    ):
        return f"meanwhile there is another champion or test table: {_decide(version, settings)}"
    promote(version, said.who, said.reason)
    return f"{uri} was {answered}; it is the champion"


def main() -> int:
    """Run the flow in this process."""
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description=retrain.description)
    parser.add_argument("--why", default="", help="why this run was started; goes to its log")
    parser.add_argument(
        "--approval",
        choices=("manual", "auto"),
        help="who promotes a model that passes the gate, by default as params.yaml says; nobody is asked from here, "
        "so `manual` leaves it to `qualivision promote`",
    )
    parser.add_argument("--rebuild", action="store_true", help="make everything anew from data/")
    given = parser.parse_args()
    if not Path("dvc.yaml").exists():
        sys.stderr.write("dvc.yaml: no such file; run this in the folder that holds it\n")
        return 1
    state = retrain(
        why=given.why, approval=given.approval or "as params.yaml says", rebuild=given.rebuild, return_state=True
    )
    return tell("retrain", state)


if __name__ == "__main__":
    sys.exit(main())
