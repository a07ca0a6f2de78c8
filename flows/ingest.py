"""The flow `ingest`: new rated videos from the inbox into the data set, and a version of it.

python -m flows.ingest               runs it here; no Prefect server is needed
PREFECT_API_URL=... python -m ...    the same, visible in that server's UI
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402
from prefect.states import Completed, Failed, State  # noqa: E402
from pydantic import Field  # noqa: E402

from flows.outcome import tell  # noqa: E402
from qualivision import ingesting  # noqa: E402
from qualivision.ingesting import versioning  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402
from qualivision.stages import places  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from qualivision.ingesting import Ingested

LOG_SECONDS = 10.0


@task
def take_in(inbox: str) -> Ingested:
    """Check every batch that is new, and add those that are sound."""
    log = get_run_logger()
    settings = load_settings()
    versioning.bring(places.DATA, settings.flows.remote, log.info)
    done = ingesting.ingest(settings, places.DATA, places.REPORTS, url=inbox or None, advance=_now_and_then(log.info))
    for line in done.as_text().splitlines():
        log.info(line)
    return done


@task
def version() -> str:
    """Let DVC know of the data set, and push it where a remote is set."""
    log = get_run_logger()
    remote = load_settings().flows.remote
    return versioning.version(places.DATA, ingesting.state_folder(), remote=remote, say=log.info)


@flow(name="ingest")
def ingest(
    inbox: Annotated[
        str, Field(description="A folder or a bucket to look into; empty for ingest.inbox of params.yaml.")
    ] = "",
) -> State[None]:
    """Add new rated videos to the data set, a batch at a time, and version it.

    A batch that is not complete yet waits. One with an error is refused whole and reported, and makes this run fail,
    once: until something in it changes, later runs only list it. The other batches are added all the same.

    Args:
        inbox: a folder or a bucket to look into; empty for `ingest.inbox` of params.yaml.
    """
    try:
        done = take_in(inbox)
        said = done.summary
        if done.outcomes or done.strays:
            create_markdown_artifact(key="ingest", markdown=done.as_markdown(), description=said)
        if versioning.is_unversioned(ingesting.state_folder()):
            said = f"{said}; {version()}"
    except ingesting.BusyError as err:
        return Completed(message=str(err))
    get_run_logger().info(said)
    return Failed(message=said) if done.newly_refused else Completed(message=said)


def _now_and_then(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Progress for a log: a line when some time has passed since the last one."""
    last = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last
        if done < total and time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            say(f"{done} of {total} videos")

    return advance


def main() -> int:
    """Run the flow in this process."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.ingest", description="Take in the inbox, and version the data."
    )
    parser.add_argument("--inbox", default="", help="a folder or a bucket (by default ingest.inbox of params.yaml)")
    given = parser.parse_args()
    if not Path("params.yaml").exists():
        sys.stderr.write("params.yaml: no such file; run this in the folder that holds it\n")
        return 1
    state = ingest(inbox=given.inbox, return_state=True)
    return tell("ingest", state)


if __name__ == "__main__":
    sys.exit(main())
