"""The flow `monitor`: whether what is scored has drifted, and a retraining if it has.

python -m flows.monitor              runs it here; no Prefect server is needed
PREFECT_API_URL=... python -m ...    the same, visible in that server's UI
"""

from __future__ import annotations

import argparse
import sys
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.deployments import run_deployment  # noqa: E402
from prefect.exceptions import ObjectNotFound  # noqa: E402
from prefect.states import Completed, State  # noqa: E402

from qualivision import monitoring  # noqa: E402
from qualivision.errors import QualiVisionError  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402

if TYPE_CHECKING:
    from qualivision.monitoring.report import Report

RETRAINING: Final = "retrain/nightly"
"""The deployment that is run when a drift passes the threshold."""


@flow(name="monitor")
def monitor(
    scores: Path | None = None,
    videos: list[Path] | None = None,
    days: float | None = None,
    clips: int | None = None,
    open_retraining: bool = True,
) -> State[dict[str, object]]:
    """Hold what the champion scored lately against the clips it was judged on, and open a retraining if it has drifted.

    The threshold is in the section `monitor` of params.yaml. The same drift opens one retraining for a champion, and not
    one every night.

    Args:
        scores: A table of scores, or a folder of them. Empty: `monitor.scores` of params.yaml.
        videos: Folders in which the scored videos lie; without them no picture is looked at. Empty: `monitor.videos`.
        days: How old a video of the current window may be. Empty: `monitor.days`.
        clips: How many are looked at in each of the two windows. Empty: `monitor.clips`.
        open_retraining: Off: only say what has drifted.
    """
    from qualivision.stages import places

    settings = load_settings()
    rules = settings.monitor.but(scores=scores, videos=videos and tuple(videos), days=days, clips=clips)
    log = get_run_logger()
    report = monitoring.look(
        settings.model_copy(update={"monitor": rules}), places.DATA, advance=lambda what: _telling(what, log.info)
    )
    monitoring.write(report, places.REPORTS)
    _show(report)
    log.info(report.as_text())
    opened = _open(report) if report.due and open_retraining else "none was to be opened" if report.due else ""
    message = report.line + (f"; {opened}" if opened else "")
    return Completed(message=message, data={"line": message, "due": report.due, "drifted": report.named})


def _open(report: Report) -> str:
    """Run the retraining's deployment, if this drift is news; returns in words what came of it."""
    if not (news := monitoring.news(report)):
        return "a retraining was opened for it before"
    why = f"drift under {report.champion}: {', '.join(news)}"
    try:
        run = run_deployment(RETRAINING, parameters={"why": why}, timeout=0, as_subflow=False)
    except ObjectNotFound:
        return f"none is opened, for there is no deployment {RETRAINING}: `python -m flows.deploy` makes it"
    monitoring.remember(report, run=run.name)
    return f"retraining {run.name} is opened"


def _show(report: Report) -> None:
    """The report as an artifact in Prefect's UI, with its picture."""
    png = monitoring.picture(report)
    url = f"data:image/png;base64,{b64encode(png).decode()}" if png else ""
    create_markdown_artifact(key="drift", markdown=report.as_markdown(url), description=report.line)
