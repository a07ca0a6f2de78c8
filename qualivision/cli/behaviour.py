"""What a model says of clips that are made worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qualivision.cli.output import complain, say

app = typer.Typer()


@app.command()
def behaviour(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Clean clips, at any depth.")],
    prompts: Annotated[
        Path | None, typer.Option(help="A CSV file with columns video_name and Prompt; clips may lack one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint folder or an MLflow model URI; by default the champion.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where behaviour.json and behaviour.png go.")] = Path("reports"),
    steps: Annotated[int, typer.Option(min=2, max=5, help="Severities of each degradation.")] = 5,
    kind: Annotated[list[str] | None, typer.Option(help="Only this degradation; repeatable.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout, and not the table.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
) -> None:
    """Make clean clips worse, and see what the model says. Exit 1 when a video could not be used; the others still are.

    Each clip is degraded in every kind at rising severity: tau says whether the expected dimension falls deeper with
    each step, the falls what else fell. Clips with a prompt are held against the prompts of all others too.
    """
    from qualivision.behaviour.degradations import KINDS
    from qualivision.behaviour.folder import BehaviourError, find_clips
    from qualivision.behaviour.measure import measure
    from qualivision.behaviour.report import FIGURES, PICTURE, table, write_report
    from qualivision.behaviour.report import as_json as json_of
    from qualivision.progress import progress
    from qualivision.scoring import Scorer
    from qualivision.settings import PARAMS_FILE, DecodeSettings, load_settings

    kinds = tuple(dict.fromkeys(kind or KINDS))
    if unknown := [name for name in kinds if name not in KINDS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(KINDS)}", param_hint="--kind")
    limits = load_settings().decode if PARAMS_FILE.exists() else DecodeSettings()
    found = find_clips(folder, prompts)
    for line in (*found.notes, *(f"{name}: {cause}" for name, cause in found.skipped.items())):
        complain(line)
    scorer = Scorer(model)
    with progress("behaviour", "scores") as advance:
        measured = measure(scorer, found.clips, limits, kinds=kinds, steps=steps, workers=workers, advance=advance)
    for name, cause in measured.skipped.items():
        complain(f"{folder / name}: {cause}")
    measured.skipped.update(found.skipped)
    if not measured.clips:
        raise BehaviourError(f"{folder}: none of its videos could be used")
    report = write_report(measured, out)
    say(json_of(report).rstrip() if as_json else table(report))
    if not as_json:
        say(f"behaviour: {out / FIGURES}, {out / PICTURE}")
    if measured.skipped:
        raise typer.Exit(1)
