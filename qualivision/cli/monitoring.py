"""Whether what is scored has drifted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qualivision.cli.output import say

app = typer.Typer()
DRIFT = 3
"""Exit code: told apart from what could not be done (1) and from a wrong call (2)."""


@app.command()
def monitor(
    scores: Annotated[
        Path | None,
        typer.Argument(metavar="[SCORES]", help="A table of scores, or a folder of them; by default `monitor.scores`."),
    ] = None,
    videos: Annotated[
        list[Path] | None,
        typer.Option(help="A folder in which scored videos lie; repeatable. By default `monitor.videos`."),
    ] = None,
    days: Annotated[float | None, typer.Option(help="How old a video may be; by default `monitor.days`.")] = None,
    clips: Annotated[int | None, typer.Option(help="Looked at in each window; by default `monitor.clips`.")] = None,
    data: Annotated[Path, typer.Option(help="The data folder; its rated test clips are the reference.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="Where drift.json and drift.html go.")] = Path("reports"),
) -> None:
    """Hold what the champion scored lately against the clips it was judged on; exit 3 when a retraining is due.

    Compared are figures of the files, the prompts and the pictures, the five scores, and how many videos can't be
    scored. A figure has drifted when its distance is both large (`monitor.distance`) and more than chance gives
    (`monitor.significance`); a retraining is due when so many scores (`monitor.open_scores`) or inputs
    (`monitor.open_inputs`) have. The flow of the same name then opens it.

    \b
    qualivision score clips/ --prompts prompts.csv --out scores/clips.parquet
    qualivision monitor --videos clips/
    """
    from contextlib import ExitStack

    from qualivision import monitoring
    from qualivision.progress import progress
    from qualivision.settings import load_settings

    settings = load_settings()
    rules = settings.monitor.but(scores=scores, videos=videos and tuple(videos), days=days, clips=clips)
    with ExitStack() as bars:
        report = monitoring.look(
            settings.model_copy(update={"monitor": rules}),
            data,
            advance=lambda what: bars.enter_context(progress(what)),
        )
    monitoring.write(report, out)
    say(report.as_text())
    say(f"monitor: {out / 'drift.html'}")
    if report.due:
        raise typer.Exit(DRIFT)
