"""The flow `score-batch`: the videos of a folder, scored with the champion, into a table.

python -m flows.score_batch VIDEOS PROMPTS              runs it here; no Prefect server is needed

It makes the table that `qualivision score VIDEOS --prompts PROMPTS --out TABLE` makes, and goes on with one of its:
only what is new, changed or failed is scored.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import flow, get_run_logger  # noqa: E402
from prefect.artifacts import (  # noqa: E402
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.states import Completed, State  # noqa: E402

from qualivision.errors import QualiVisionError  # noqa: E402
from qualivision.progress import PLAIN_INTERVAL_SECONDS, in_lines  # noqa: E402
from qualivision.settings import Settings, SettingsError, load_settings  # noqa: E402

if TYPE_CHECKING:
    from qualivision.batch import Judging
    from qualivision.progress import Advance
    from qualivision.score_run import Done
    from qualivision.scoring import Located


class InputNotFoundError(QualiVisionError, FileNotFoundError):
    """A folder of videos, or a table of prompts, that is not there."""


@flow(name="score-batch")
def score_batch(
    videos: Path,
    prompts: Path,
    out: Path | None = None,
    model: str | None = None,
    cluster: str | None = None,
    overwrite: bool = False,
) -> State[None]:
    """Score the videos of a folder, and show how the scores are distributed.

    A row that is in the table is made again only when its video or its prompt has changed, or when it failed. A run
    that was stopped goes on where it was. A video that can't be scored is a row with its error, and no failure of the
    run.

    Args:
        videos: The folder. Its videos may lie at any depth.
        prompts: A CSV file with columns video_name (a path below the folder, or a name) and Prompt. Each of its rows is
            scored.
        out: The table: .parquet, .csv or .jsonl. By default scores/FOLDER.parquet, where FOLDER is the folder's path
            with two underscores for each slash.
        model: A checkpoint folder or an MLflow model URI. By default the champion.
        cluster: Where it is done: local:2 for two Dask workers of this machine, tcp://HOST:8786 for those of a
            scheduler, nothing for this process. By default flows.cluster of params.yaml.
        overwrite: Make every row again. Needed for a table of another model, such as the champion before.
    """
    from qualivision import score_run
    from qualivision.batch import plan
    from qualivision.score_summary import summarise
    from qualivision.scoring import locate

    log = get_run_logger()
    settings = load_settings()
    if not videos.is_dir():
        raise InputNotFoundError(f"{videos}: no such folder; give one with videos, as seen from {Path.cwd()}")
    if not prompts.is_file():
        raise InputNotFoundError(
            f"{prompts}: no such file; give a CSV file with columns video_name and Prompt, as seen from {Path.cwd()}"
        )
    table = out or score_run.default_table(videos)
    asked = plan([videos], prompts)
    for line in asked.notes:
        log.warning(line)
    if not asked.videos:
        return Completed(message=f"nothing to do: {prompts} has no rows")
    found = locate(model)
    done = score_run.run(
        table,
        asked.videos,
        judging(found, settings, cluster),
        model=found.label,
        overwrite=overwrite,
        advance=_shown(f"score {videos}"),
        complain=log.warning,
    )
    log.info(f"{table}: {done}")
    summary = summarise(table)
    create_markdown_artifact(
        key="score-batch", markdown=summary.as_markdown(str(table)), description=f"{done}, by {found.label}"
    )
    return Completed(message=_message(table, done, found.label))


def _message(table: Path, done: Done, label: str) -> str:
    if done.kept == done.rows:
        return f"nothing to do: all {done.rows} rows of {table} are there, by {label}"
    return f"{table}: {done}, by {label}"


def judging(model: Located, settings: Settings, cluster: str | None) -> Judging:
    """What scores: this process, or a cluster."""
    from qualivision.batch import Here

    setting = settings.flows.cluster if cluster is None else cluster
    if not setting:
        return Here(model, settings.decode)
    _check(settings, setting)
    from flows.cluster import ScoresOnCluster
    from qualivision.chunks import Judge

    return ScoresOnCluster(setting, Judge(model.name, model.label, settings.decode))


def _check(settings: Settings, setting: str) -> None:
    from pydantic import ValidationError

    try:
        type(settings.flows).model_validate(settings.flows.model_dump() | {"cluster": setting})
    except ValidationError as err:
        raise SettingsError(
            f"cluster: {setting!r} is neither local:N nor a scheduler's address, tcp://HOST:8786"
        ) from err


def _shown(what: str) -> Advance:
    """Progress in Prefect: a bar, and a line in the log, now and then."""
    tell = in_lines(what, get_run_logger().info)
    bar = None
    last = 0.0

    def advance(done: int, total: int) -> None:
        nonlocal bar, last
        tell(done, total)
        now = time.monotonic()
        if not total or (done < total and bar is not None and now - last < PLAIN_INTERVAL_SECONDS):
            return
        last = now
        percent, description = 100.0 * done / total, f"{what}: {done} of {total}"
        if bar is None:
            bar = create_progress_artifact(percent, key="score-batch-progress", description=description)
        else:
            update_progress_artifact(bar, percent, description=description)

    return advance


def main() -> int:
    """Run the flow in this process."""
    parser = argparse.ArgumentParser(prog="python -m flows.score_batch", description="Score the videos of a folder.")
    parser.add_argument("videos", type=Path, help="the folder")
    parser.add_argument("prompts", type=Path, help="a CSV file with columns video_name and Prompt")
    parser.add_argument("--out", type=Path, help=".parquet, .csv or .jsonl; by default scores/FOLDER.parquet")
    parser.add_argument("--model", help="a checkpoint folder or an MLflow model URI; by default the champion")
    parser.add_argument("--cluster", help="local:2 or tcp://HOST:8786; by default flows.cluster of params.yaml")
    parser.add_argument("--overwrite", action="store_true", help="make every row again")
    options = parser.parse_args()
    state: State[Any] = score_batch(**vars(options), return_state=True)
    if not state.is_completed():
        try:
            state.result()
        except (QualiVisionError, OSError) as err:
            sys.stderr.write(f"{err}\n")
            return 1
    sys.stdout.write(f"score-batch: {state.message}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
