"""Bringing data in, and checking it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from qualivision.cli.output import say
from qualivision.sample_data import PRESETS

app = typer.Typer()


@app.command("sample-data")
def sample_data(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist, or be empty.")] = Path("data"),
    preset: Annotated[
        Literal["small", "demo", "large"],
        typer.Option(help="16, 200 or 800 prompts: to try things, for minutes of training, to learn most."),
    ] = "demo",
    prompts: Annotated[
        int | None, typer.Option(min=6, help="Prompts, each of five clips, in place of a preset.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
) -> None:
    """Make a data set to try everything on: drawn and photographed scenes, known flaws, simulated raters."""
    from qualivision.progress import progress
    from qualivision.sample_data import make_sample_data

    with progress("sample-data: rendering") as advance:
        count = prompts or PRESETS[preset]
        summary = make_sample_data(out, prompts=count, seed=seed, workers=workers, progress=advance)
    say(f"sample-data: {summary}")


@app.command()
def validate(
    data: Annotated[Path, typer.Option(help="The data folder.")] = Path("data"),
    report: Annotated[
        Path, typer.Option(help="Where validation.json, validation.html and the folder data-docs go.")
    ] = Path("reports"),
    docs: Annotated[bool, typer.Option("--docs", help="Open Great Expectations' Data Docs in a browser.")] = False,
) -> None:
    """Check label tables and videos; exit 1 when there is an error, so that nothing is trained on it."""
    from qualivision.stages import validate as stage

    found = stage.run(data, report)
    say(found.as_text())
    if docs:
        say(f"validate: {stage.open_docs(report)}")
    if not found.ok:
        raise typer.Exit(1)


@app.command("import-labels")
def import_labels(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE...", help="CSV or TSV files of a release.")],
    out: Annotated[Path, typer.Option(help="Data folder to write; must not exist, or be empty.")] = Path("data"),
    videos: Annotated[
        Path | None, typer.Option(help="Folder of the videos, at any depth; linked, or copied from another disk.")
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(metavar="OURS=THEIRS", help="A column by its name, such as Overall_MOS=score5.")
    ] = None,
    shares: Annotated[str, typer.Option(help="Of the prompts, to train, val and test.")] = "80:10:10",
    seed: Annotated[int, typer.Option(help="Equal tables and seeds split alike.")] = 0,
    random_rows: Annotated[
        bool, typer.Option("--random-rows", help="Split by rows and not by prompt. This leaks; it prints how much.")
    ] = False,
    report: Annotated[Path, typer.Option(help="Where import.json goes: every row that was dropped.")] = Path("reports"),
) -> None:
    """Turn a release's label tables into the layout that the stages read, split by prompt.

    Every clip of a prompt goes to one split, and each split gets its share of every generator and of every stretch of
    Overall. Rows that can't be used are dropped, and named with the reason.
    """
    from qualivision.cache import write_atomically
    from qualivision.importing import ALIASES
    from qualivision.importing import import_labels as run
    from qualivision.progress import progress

    columns = dict(pair.split("=", 1) for pair in column or () if "=" in pair)
    if len(columns) != len(column or ()) or not columns.keys() <= ALIASES.keys():
        raise typer.BadParameter(f"give OURS=THEIRS, where OURS is one of {', '.join(ALIASES)}", param_hint="--column")
    parts = [float(part) if part.replace(".", "", 1).isdecimal() else 0.0 for part in shares.split(":")]
    if len(parts) != 3 or min(parts) <= 0:
        raise typer.BadParameter(f"{shares!r} is not three numbers above 0, such as 80:10:10", param_hint="--shares")
    of = (parts[0] / sum(parts), parts[1] / sum(parts), parts[2] / sum(parts))
    with progress("import-labels: placing videos") as advance:
        done = run(
            tables, out, advance=advance, videos=videos, columns=columns, shares=of, seed=seed, random_rows=random_rows
        )
    write_atomically(report / "import.json", done.as_json().encode())
    say(done.as_text())
    if done.leak:
        sys.stderr.write(f"{done.leak}\n")


@app.command()
def ingest(
    inbox: Annotated[
        str | None,
        typer.Option(help="A folder, or a bucket such as s3://ratings/inbox; else ingest.inbox of params.yaml."),
    ] = None,
    data: Annotated[Path, typer.Option(help="The data folder.")] = Path("data"),
    report: Annotated[Path, typer.Option(help="Where ingest-BATCH.json goes.")] = Path("reports"),
    dvc: Annotated[
        bool, typer.Option("--dvc", help="`dvc add` what has changed, and push it where flows.remote is set.")
    ] = False,
) -> None:
    """Add new rated videos from the inbox; exit 1 when a batch is refused that was not refused before.

    A batch is a folder of the inbox: one label table, and its videos at any depth. It is taken when nothing in it has
    changed for a minute and every row has its video, and refused whole for a single error, which the report names.
    """
    from qualivision import ingesting
    from qualivision.ingesting import versioning
    from qualivision.progress import progress
    from qualivision.settings import load_settings

    settings = load_settings()
    with progress("ingest: copying and probing", "videos") as advance:
        done = ingesting.ingest(settings, data, report, url=inbox, advance=advance)
    say(done.as_text())
    if versioning.is_unversioned(ingesting.state_folder()):
        if dvc:
            remote = settings.flows.remote
            told = versioning.version(data, ingesting.state_folder(), remote=remote, say=lambda line: None)
            say(f"ingest: {told}; `dvc repro` makes the rest of it")
        else:
            say(f"ingest: {data} has changed; next: `dvc add {data}`, then `dvc repro`")
    if done.newly_refused:
        raise typer.Exit(1)


labels = typer.Typer(help="Look at a label table before anything is learned from it.", no_args_is_help=True)
app.add_typer(labels, name="labels")


@labels.command("report")
def labels_report(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="A label table (CSV) with the five MOS columns.")],
    out: Annotated[Path, typer.Option(help="Where labels.html and labels.json go.")] = Path("reports"),
    encoder: Annotated[str, typer.Option(help="The sentence encoder of the no-video baseline.")] = "all-MiniLM-L6-v2",
) -> None:
    """Distributions, ties, what prompt and generator explain, and what can be predicted with no video at all."""
    from qualivision.label_report import as_text, report_labels
    from qualivision.progress import progress

    with progress("labels report: predicting without video", "steps") as advance:
        figures = report_labels(table, out, encoder=encoder, advance=advance)
    say(as_text(figures))
    say(f"labels report: {out / 'labels.html'}")
