"""The stages that make a model, as dvc.yaml calls them."""

from __future__ import annotations

from typing import Annotated

import typer

from qualivision.cli.output import say

app = typer.Typer()

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A name in `models` of params.yaml, such as lite.")]


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
    """Train the model and write its checkpoint.

    With few ratings of your own, let it start from a model that is trained already: set MODEL.train.start in
    params.yaml to a checkpoint folder or a version of the registry, such as models:/qualivision/1. With
    MODEL.train.curve it trains on shares of the ratings as well, and the report says whether more would help.
    """
    from qualivision.stages import train as stage

    if summary := stage.run(model, resume=resume):  # of several processes only the first has one
        say(summary)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name in `models` or `ensembles` of params.yaml.")],
) -> None:
    """Judge the checkpoint on the test split: metrics with intervals, baselines, plots."""
    from qualivision.stages import evaluate as stage

    say(stage.run(model))


@app.command()
def member(model: Model) -> None:
    """Make a trained model a member of the ensemble: its checkpoint, and what it says of val and test."""
    from qualivision.stages import member as stage

    say(stage.run(model))


@app.command()
def ensemble() -> None:
    """Fit the members' weights on val, and write the ensemble's checkpoint."""
    from qualivision.stages import ensemble as stage

    say(stage.run())
