"""The command line: one command for each stage, and what is done with a model.

Owns arguments, messages and exit codes: 0 done, 1 something could not be done (one line on stderr says what), 2 a wrong
call. Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from qualivision import environment
from qualivision.errors import QualiVisionError, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from qualivision.batch import Asked, Found
    from qualivision.gate import Judged
    from qualivision.registry import Entry
    from qualivision.scoring import Scorer, Scores
    from qualivision.settings import Settings

    Judging = Callable[[Iterable[tuple[str, Asked]]], Iterator[tuple[str, Found]]]

T = TypeVar("T")

app = typer.Typer(
    name="qualivision",
    help=(
        "Judge AI-generated video: five mean opinion scores (MOS) from 1 to 5 against the clip's prompt.\n\n"
        "`dvc repro` runs the stages sample data -> validate -> frames -> prompts -> encode -> train -> evaluate; "
        "`register` and `promote` make a trained model the champion; `score` uses it, and `serve` puts it behind HTTP."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name in `models` of params.yaml, such as lite.")]


def say(line: str) -> None:
    """One line of result on stdout."""
    sys.stdout.write(f"{line}\n")


@app.command("sample-data")
def sample_data(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist, or be empty.")] = Path("data"),
    prompts: Annotated[int, typer.Option(min=6, help="Prompts; each gives five clips.")] = 200,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
) -> None:
    """Make a data set to try everything on: drawn and photographed scenes, known flaws, simulated raters."""
    from qualivision.progress import progress
    from qualivision.sample_data import make_sample_data

    with progress("sample-data: rendering") as advance:
        summary = make_sample_data(out, prompts=prompts, seed=seed, workers=workers, progress=advance)
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


@app.command()
def frames(
    model: Model,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove entries that no labelled video needs.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every entry, not only those that changed since it was last read.")
    ] = False,
) -> None:
    """Decode the videos that the frame cache lacks.

    A video that can't be read, or crashes or hangs its process twice, is named in reports/quarantine-MODEL.json, and
    the exit code is 1; all others are cached by then. Interrupted, it goes on where it was.
    """
    from qualivision.stages import frames as stage

    done = stage.run(model, workers=workers, prune=prune, verify=verify)
    say(f"frames {model}: {done}")
    for path in done.unneeded:
        say(f"  not needed: {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def prompts(model: Model) -> None:
    """Embed the prompts that the prompt cache lacks."""
    from qualivision.stages import prompts as stage

    say(stage.run(model))


@app.command()
def encode(model: Model) -> None:
    """Run the model's frozen stem over the clips that the stem cache lacks."""
    from qualivision.stages import encode as stage

    say(stage.run(model))


@app.command()
def train(
    model: Model,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted run of the same data and settings.")
    ] = False,
) -> None:
    """Train the model and write its checkpoint."""
    from qualivision.stages import train as stage

    if summary := stage.run(model, resume=resume):  # of several processes only the first has one
        say(summary)


@app.command()
def evaluate(model: Model) -> None:
    """Judge the checkpoint on the test split: metrics with intervals, baselines, plots."""
    from qualivision.stages import evaluate as stage

    say(stage.run(model))


@app.command()
def register(
    model: Annotated[str | None, typer.Argument(help="By default `deploy` of params.yaml.")] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Then hold it against the champion, and promote it.")
    ] = False,
) -> None:
    """Put the evaluated checkpoint into MLflow's registry, as challenger, with its card."""
    from qualivision import registry
    from qualivision.settings import load_settings
    from qualivision.stages import places

    settings = load_settings()
    name = model or settings.deploy
    settings.model(name)
    done = registry.register(places.checkpoint_dir(name), places.report_dir(name), settings.registry, data=places.DATA)
    say(f"register: {done.uri}" + ("" if done.new else " (was registered before)"))
    if promote:
        _promote(done.version, settings)


@app.command()
def gate(
    version: Annotated[int | None, typer.Argument(min=1, help="In the registry; by default the challenger.")] = None,
) -> None:
    """Hold a version against the champion, both scored now on the test clips; exit 1 when it does not pass.

    It passes if Overall is not worse by more than `promote.margin`, no dimension is significantly worse (a paired
    bootstrap over prompts), and Overall beats what the prompt alone predicts. The first model is held against that
    alone. The verdict is kept on the version, whether it passes or not.
    """
    from qualivision.settings import load_settings

    judged = _judge(version, load_settings())
    say(judged.verdict.as_text())
    if not judged.verdict.passed:
        raise typer.Exit(1)


@app.command()
def promote(
    version: Annotated[int | None, typer.Argument(min=1, help="In the registry; by default the challenger.")] = None,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote what did not pass; the reason is recorded.")
    ] = None,
    why: Annotated[str, typer.Option(help="Recorded with the approval.")] = "",
) -> None:
    """Make a version the champion, which `score` and `serve` use; refused if it did not pass the gate.

    A version that was not held against the present champion yet goes through the gate first.
    """
    from qualivision import registry
    from qualivision.settings import load_settings

    if override is not None and not override.strip():
        raise typer.BadParameter("say why; it is recorded on the version", param_hint="--override")
    settings = load_settings()
    _promote(version or registry.challenger(settings.registry), settings, override=override, why=why)


@app.command()
def rollback(
    why: Annotated[str, typer.Option(help="What was wrong with the champion; recorded on both versions.")],
) -> None:
    """Give the champion's place back to the version before it. Takes effect in running servers within seconds."""
    from qualivision import registry
    from qualivision.settings import load_settings

    settings = load_settings().registry
    left, back = registry.rollback(settings, why=why)
    say(f"rollback: models:/{settings.name}/{back} is the champion again; {left} is not any more")


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with the history.")] = False,
) -> None:
    """List the registered versions: aliases, scores on the test clips, verdict, age."""
    from qualivision import registry
    from qualivision.settings import load_settings

    settings = load_settings().registry
    found = registry.entries(settings)
    if as_json:
        for entry in found:
            say(json.dumps(entry.as_dict(), ensure_ascii=False))
    elif found:
        _print_models(settings.name, found)
    else:
        say(f"models: {settings.name} has no version yet; `qualivision register` makes one")


def _judge(version: int | None, settings: Settings) -> Judged:
    """The gate, with its progress on stderr."""
    from contextlib import ExitStack

    from qualivision.gate import judge
    from qualivision.progress import progress
    from qualivision.stages import places

    with ExitStack() as bars:
        return judge(
            version,
            settings,
            places.DATA,
            advance=lambda uri: bars.enter_context(progress(f"gate: scoring by {uri}")),
        )


def _promote(version: int, settings: Settings, *, override: str | None = None, why: str = "") -> None:
    """Promote a version, held against the present champion before if it was not."""
    from qualivision import registry

    uri = f"models:/{settings.registry.name}/{version}"
    if registry.version_of(registry.CHAMPION, settings.registry) == version:
        say(f"promote: {uri} is the champion already")
        return
    if override is None and registry.needs_gate(version, settings.registry):
        say(_judge(version, settings).verdict.as_text())
    registry.promote(version, settings.registry, override=override, why=why)
    say(f"promote: {uri} is the champion")


def _print_models(name: str, found: list[Entry]) -> None:
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    from qualivision.evaluation.metrics import shown
    from qualivision.labels import DIMENSIONS

    table = Table(
        "version", "model", "aliases", *DIMENSIONS, "verdict", "age", caption=f"{name}: VQualA on its test clips"
    )
    for entry in found:
        scores = (shown(entry.scores[dimension]) for dimension in DIMENSIONS)
        age = _age((datetime.now(UTC) - entry.registered).total_seconds())
        table.add_row(str(entry.version), entry.model, ", ".join(entry.aliases), *scores, entry.verdict, age)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


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
    engine = _Engine(model, batch, workers)
    if out is None:
        failed = _score_to_stdout(videos, prompt, prompts, engine, as_json=as_json)
    else:
        failed = _score_to_table(videos, prompt, prompts, engine, out, overwrite=overwrite)
    if failed:
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Engine:
    """What `score` scores with, before anything is loaded."""

    model: str | None
    batch: int | None
    workers: int | None

    @contextmanager
    def start(self, videos: int) -> Iterator[tuple[Scorer, Judging]]:
        """The model, and what scores (name, video) after (name, video) with it."""
        from qualivision.batch import decoding_processes, judged
        from qualivision.decoding import Decoders
        from qualivision.scoring import Scorer
        from qualivision.settings import PARAMS_FILE, DecodeSettings, load_settings

        limits = load_settings().decode if PARAMS_FILE.exists() else DecodeSettings()
        decoders = Decoders(limits, workers=self.workers or decoding_processes(videos))
        try:
            decoders.warm()  # while the model loads
            scorer = Scorer(self.model)
            batch = self.batch or (1 if scorer.device == "cpu" else 8)
            yield scorer, partial(judged, scorer, decoders, batch=batch)
        finally:
            decoders.close()


def _complain(line: object) -> None:
    sys.stderr.write(f"{line}\n")


def _score_to_stdout(
    videos: list[Path], prompt: str | None, prompts: Path | None, engine: _Engine, *, as_json: bool
) -> int:
    """Score and print, in the order in which the videos were given; returns how many failed."""
    from qualivision.scoring import Scores

    items, failed = _with_prompts(videos, prompt, prompts)
    scored: list[Scores] = []
    if items:
        with engine.start(len(items)) as (_, judged):
            for found in _in_order(judged((str(number), item) for number, item in enumerate(items))):
                if not isinstance(found, Scores):
                    failed += 1
                    _complain(found)
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
                _complain(line)
        elif video.name not in amiss and known.get(video.name, "").strip():
            items.append(Asked(known[video.name], str(video)))
        else:
            failed += 1
            _complain(f"{video}: {amiss.get(video.name, f'has no prompt in {table}')}")
    return items, failed


def _score_to_table(
    videos: list[Path], prompt: str | None, prompts: Path | None, engine: _Engine, out: Path, *, overwrite: bool
) -> int:
    """Score into a table, going on with what is there; returns how many failed."""
    from qualivision import batch
    from qualivision.progress import progress
    from qualivision.score_table import SUFFIXES, open_table

    if out.suffix not in SUFFIXES:
        raise typer.BadParameter(f"{out} is none of {', '.join(SUFFIXES)}", param_hint="--out")
    if prompts is not None:
        asked = batch.plan(videos, prompts)
    else:
        assert prompt is not None
        asked = batch.plan_of_files(videos, prompt)
    for line in (*asked.unasked, *asked.notes):
        _complain(line)
    if not asked.videos:
        return len(asked.unasked)
    with engine.start(len(asked.videos)) as (scorer, judged):
        model = batch.model_name(scorer)
        with open_table(out, model, overwrite=overwrite) as table, progress("score") as advance:
            done = batch.fill(table, asked.videos, judged, model=model, advance=advance, complain=_complain)
    say(f"score: {out}: {done}")
    return done.failed + len(asked.unasked)


def _print_scores(scored: list[Scores]) -> None:
    from rich.console import Console
    from rich.table import Table

    from qualivision.labels import DIMENSIONS

    table = Table("video", "prompt", *DIMENSIONS, caption=f"MOS from 1 to 5, by {scored[0].model}")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in scored:
        table.add_row(Path(row.video).name, row.prompt, *(f"{row[name]:.2f}" for name in DIMENSIONS))
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


def main() -> None:
    """The entry point: state and telemetry settled, then the command; errors as one line each."""
    environment.prepare()
    environment.keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    causes: list[BaseException] = []
    try:
        app()
    except* (QualiVisionError, OSError) as group:
        causes = list(leaves(group))
    if causes:  # outside: an exit within `except*` becomes part of a group in some versions of Python
        sys.stderr.writelines(f"{err}\n" for err in causes)
        sys.exit(1)


if __name__ == "__main__":
    main()
