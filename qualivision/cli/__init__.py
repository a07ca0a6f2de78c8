"""The command line: one command for each stage, and what is done with a model.

Owns arguments, messages and exit codes: 0 done, 1 something could not be done (one line on stderr says what), 2 a wrong
call, 3 drift (`monitor`), 75 a server is away. Everything heavy is imported inside the commands.
"""

from __future__ import annotations

import logging
import sys

import typer

from qualivision import environment, tracking
from qualivision.cli import behaviour, data, models, monitoring, scoring, stages
from qualivision.errors import QualiVisionError, leaves

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
for part in (data, stages, models, scoring, behaviour, monitoring):
    app.add_typer(part.app)


def main() -> None:
    """The entry point: state and telemetry settled, then the command; errors as one line each."""
    environment.prepare()
    environment.keep_freed_memory()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    causes: list[BaseException] = []
    try:
        with tracking.naming_what_is_away():
            app()
    except* (QualiVisionError, OSError) as group:
        causes = list(leaves(group))
    if causes:  # outside: an exit within `except*` becomes part of a group in some versions of Python
        sys.stderr.writelines(dict.fromkeys(f"{err}\n" for err in causes))  # what many jobs say, once
        sys.exit(max(getattr(err, "exit_code", 1) for err in causes))
