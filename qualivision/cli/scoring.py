"""A model at work: on videos of this machine, or for others over HTTP."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qualivision.cli.output import complain, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qualivision.batch import Asked, Here
    from qualivision.scoring import Scores

T = TypeVar("T")

app = typer.Typer()


@app.command()
def score(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO...", help="Video files, and folders of them.")],
    prompt: Annotated[str | None, typer.Option(help="The prompt of all the videos; not for folders.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A CSV file with columns video_name and Prompt, for several videos.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint folder or an MLflow model URI; by default the champion.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write a table: .parquet, .csv or .jsonl. Interrupted, it goes on where it was.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make every row of --out again.")] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips that go through the model at once; by default 1, on a GPU 8.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode; by default as the cores allow.")
    ] = None,
) -> None:
    """Score videos against their prompts. Exit 1 when a video could not be scored; the others still are.

    Of a folder, every row of the table is scored: video_name is a file's path below the folder, or its name alone at
    any depth. With --out, a row that is there is made again only when its video or its prompt has changed, or when it
    failed.
    """
    from qualivision.batch import Here
    from qualivision.score_table import SUFFIXES
    from qualivision.settings import PARAMS_FILE, DecodeSettings, load_settings

    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give either --prompt TEXT or --prompts FILE.csv")
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter("the prompt is blank; a score is always against a prompt", param_hint="--prompt")
    if folder := next((path for path in videos if prompts is None and path.is_dir()), None):
        raise typer.BadParameter(f"{folder} is a folder: its videos need --prompts FILE.csv", param_hint="--prompt")
    if out is None and overwrite:
        raise typer.BadParameter("there is nothing to overwrite without --out", param_hint="--overwrite")
    if out is not None and as_json:
        raise typer.BadParameter("a table of JSON lines is --out FILE.jsonl", param_hint="--json")
    if out is not None and out.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{out} is none of {', '.join(SUFFIXES)}", param_hint="--out")
    limits = load_settings().decode if PARAMS_FILE.exists() else DecodeSettings()
    here = Here(model, limits, batch, workers)
    if out is None:
        failed = _score_to_stdout(videos, prompt, prompts, here, as_json=as_json)
    else:
        failed = _score_to_table(videos, prompt, prompts, here, out, overwrite=overwrite)
    if failed:
        raise typer.Exit(1)


def _score_to_stdout(videos: list[Path], prompt: str | None, prompts: Path | None, here: Here, *, as_json: bool) -> int:
    """Score and print, in the order in which the videos were given; returns how many failed."""
    from qualivision.scoring import Scores

    items, failed = _with_prompts(videos, prompt, prompts)
    scored: list[Scores] = []
    if items:
        for found in _in_order(here([(str(number), item) for number, item in enumerate(items)])):
            if not isinstance(found, Scores):
                failed += 1
                complain(found)
            elif as_json:
                say(json.dumps(found.as_dict(), ensure_ascii=False))
            else:
                scored.append(found)
    if scored:
        _print_scores(scored)
    return failed


def _in_order(found: Iterator[tuple[str, T]]) -> Iterator[T]:
    """What is numbered, by its numbers."""
    early: dict[str, T] = {}
    following = 0
    for number, item in found:
        early[number] = item
        while str(following) in early:
            yield early.pop(str(following))
            following += 1


def _with_prompts(videos: list[Path], prompt: str | None, table: Path | None) -> tuple[list[Asked], int]:
    """Each video with its prompt, in order, and how many can't be scored: lines say which."""
    from qualivision.batch import Asked, plan, read_prompts

    if prompt is not None:
        return [Asked(prompt, str(video)) for video in videos], 0
    assert table is not None
    known, amiss = read_prompts(table)
    items: list[Asked] = []
    failed = 0
    for video in videos:
        if video.is_dir():
            asked = plan([video], table)
            good = [item for item in asked.videos.values() if not item.error]
            failed += len(asked.videos) - len(good)
            items += good
            for line in asked.notes:
                complain(line)
        elif video.name not in amiss and known.get(video.name, "").strip():
            items.append(Asked(known[video.name], str(video)))
        else:
            failed += 1
            complain(f"{video}: {amiss.get(video.name, f'has no prompt in {table}')}")
    return items, failed


def _score_to_table(
    videos: list[Path], prompt: str | None, prompts: Path | None, here: Here, out: Path, *, overwrite: bool
) -> int:
    """Score into a table, going on with what is there; returns how many failed."""
    from qualivision import batch, score_run
    from qualivision.progress import progress
    from qualivision.scoring import locate

    if prompts is not None:
        asked = batch.plan(videos, prompts)
    else:
        assert prompt is not None
        asked = batch.plan_of_files(videos, prompt)
    for line in (*asked.unasked, *asked.notes):
        complain(line)
    if not asked.videos:
        return len(asked.unasked)
    model = locate(here.model)
    with progress("score") as advance:
        done = score_run.run(
            out,
            asked.videos,
            replace(here, model=model),
            model=model.label,
            overwrite=overwrite,
            advance=advance,
            complain=complain,
        )
    say(f"score: {out}: {done}")
    return done.failed + len(asked.unasked)


def _print_scores(scored: list[Scores]) -> None:
    from rich.console import Console
    from rich.table import Table

    from qualivision.depth import UNLIKE
    from qualivision.labels import DIMENSIONS

    caption = f"MOS from 1 to 5, by {scored[0].model}"
    if far := sum(bool(row.warning) for row in scored):
        caption += f"\n! {far} of {len(scored)} {UNLIKE} (distance above 1): do not trust the absolute scores"
    table = Table("video", "prompt", *DIMENSIONS, "distance", caption=caption)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in scored:
        distance = f"{'! ' if row.warning else ''}{row.distance:.2f}"
        table.add_row(Path(row.video).name, row.prompt, *(f"{row[name]:.2f}" for name in DIMENSIONS), distance)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


@app.command()
def serve(
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for all, which lets others in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    model: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint folder or an MLflow model URI; by default the champion. An alias is followed: what it "
            "means next takes over while the server runs."
        ),
    ] = None,
    queue: Annotated[int | None, typer.Option(min=1, help="Clips waiting or being scored; then 429.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode; 0: one a core.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=0, help="Clips at once; 0: 1 on a CPU, 8 on a GPU.")] = None,
    max_megabytes: Annotated[float | None, typer.Option(help="Of one video.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="That a video may last.")] = None,
    poll_seconds: Annotated[float | None, typer.Option(help="Between two looks at which version is champion.")] = None,
    allow_folders: Annotated[
        list[Path] | None, typer.Option("--allow-folder", help="Its files may be scored by their path; repeatable.")
    ] = None,
    allow_urls: Annotated[
        list[str] | None,
        typer.Option("--allow-url", help="An origin to load videos from, as https://cdn.example.com; repeatable."),
    ] = None,
) -> None:
    """Serve scores over HTTP, until SIGTERM or Ctrl-C; then what was admitted is still answered.

    \b
    curl -F video=@clip.mp4 -F "prompt=A cat" http://127.0.0.1:8000/v1/score

    /docs teaches the rest; /health, /ready and /metrics are for whoever runs it. Options here go before the `serve`
    section of params.yaml. The log is on stderr, one JSON object a line.
    """
    from qualivision.serving.server import serve as run
    from qualivision.settings import serving

    values = {
        "queue": queue,
        "workers": workers,
        "batch_size": batch_size,
        "max_megabytes": max_megabytes,
        "max_seconds": max_seconds,
        "poll_seconds": poll_seconds,
        "allow_folders": allow_folders and [folder.absolute() for folder in allow_folders],
        "allow_urls": allow_urls,
    }
    settings, decode = serving({name: value for name, value in values.items() if value is not None})
    run(host, port, model, settings, decode)
