"""What is done with a trained model: registered, judged, promoted, taken back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from qualivision.cli.output import say

if TYPE_CHECKING:
    from qualivision.evaluation.verdict import Verdict
    from qualivision.registry import Entry
    from qualivision.settings import Settings

app = typer.Typer()


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
    settings.check_built(name)
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

    verdict = _judge(version, load_settings())
    say(verdict.as_text())
    if not verdict.passed:
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


def _judge(version: int | None, settings: Settings) -> Verdict:
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
        say(_judge(version, settings).as_text())
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
        table.add_row(str(entry.version), entry.model, ", ".join(entry.aliases), *scores, _standing(entry), age)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _standing(entry: Entry) -> str:
    """The verdict, and what became of the question whether to promote it, where that is not plain from the alias."""
    asked = {"waiting": "waits for approval", "rejected": "rejected", "lapsed": "nobody answered"}.get(entry.approval)
    return f"{entry.verdict}, {asked}" if asked and "champion" not in entry.aliases else entry.verdict


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
