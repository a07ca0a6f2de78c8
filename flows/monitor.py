"""The flow `monitor`: whether what is scored has drifted, and a retraining if it has.

python -m flows.monitor              runs it here; no Prefect server is needed
PREFECT_API_URL=... python -m ...    the same, visible in that server's UI
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.client.schemas.objects import FlowRun  # noqa: E402
from prefect.deployments import run_deployment  # noqa: E402
from prefect.exceptions import ObjectNotFound  # noqa: E402
from prefect.states import Completed, State  # noqa: E402

from flows.outcome import tell  # noqa: E402
from qualivision import monitoring  # noqa: E402
from qualivision.progress import in_lines  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402
from qualivision.stages import places  # noqa: E402

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
) -> State[None]:
    """Hold what the champion scored lately against the clips it was judged on, and open a retraining if it has drifted.

    The threshold is in the section `monitor` of params.yaml. One drift opens one retraining for a champion, and not one
    every night.

    Args:
        scores: A table of scores, or a folder of them. By default monitor.scores of params.yaml.
        videos: Folders in which the scored videos lie; without them no picture is looked at. By default monitor.videos.
        days: How old a video may be to count. By default monitor.days.
        clips: How many are looked at in each of the two windows. By default monitor.clips.
        open_retraining: Whether a drift opens a retraining; if not, it is only told.
    """
    log = get_run_logger()
    settings = load_settings()
    rules = settings.monitor.but(scores=scores, videos=videos and tuple(videos), days=days, clips=clips)
    report = monitoring.look(
        settings.model_copy(update={"monitor": rules}), places.DATA, advance=lambda what: in_lines(what, log.info)
    )
    monitoring.write(report, places.REPORTS)
    markdown = report.as_markdown(monitoring.picture(report))
    create_markdown_artifact(key="drift", markdown=markdown, description=report.line)
    log.info(report.as_text())
    message = f"{report.line}; {_opened(report)}" if report.due and open_retraining else report.line
    return Completed(message=message)


def _opened(report: Report) -> str:
    """Open a retraining, if this drift is news; returns in words what came of it."""
    if not (news := monitoring.news(report)):
        return "a retraining was opened for it before"
    why = f"drift under {report.champion}: {', '.join(news)}"
    try:
        # No subflow: it outlives this run, and what becomes of it is told by itself.
        run = run_deployment(RETRAINING, parameters={"why": why}, timeout=0, as_subflow=False)
    except ObjectNotFound:
        return f"none is opened, for there is no deployment {RETRAINING}; `python -m flows.deploy` makes it"
    assert isinstance(run, FlowRun)  # and no coroutine: this flow is not async
    monitoring.remember(report, run=run.name)
    return f"retraining {run.name} is opened"


def main() -> int:
    """Run the flow in this process."""
    parser = argparse.ArgumentParser(prog="python -m flows.monitor", description="Whether what is scored has drifted.")
    parser.add_argument("scores", nargs="?", type=Path, help="a table of scores, or a folder of them")
    parser.add_argument("--videos", action="append", type=Path, help="a folder in which scored videos lie; repeatable")
    parser.add_argument("--days", type=float, help="how old a video may be to count")
    parser.add_argument("--clips", type=int, help="looked at in each of the two windows")
    parser.add_argument(
        "--only-tell", dest="open_retraining", action="store_false", help="do not open a retraining for a drift"
    )
    return tell("monitor", monitor(**vars(parser.parse_args()), return_state=True))


if __name__ == "__main__":
    sys.exit(main())
