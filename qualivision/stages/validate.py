"""Stage `validate`: label tables and videos, before anything is made of them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from qualivision.progress import progress
from qualivision.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from qualivision.validation import ValidationReport


def run(data: Path, report: Path) -> ValidationReport:
    """Check the data set and write the report and the Data Docs, also when it has errors."""
    from qualivision.validation import validate, write_report
    from qualivision.validation.report import DATA_DOCS

    settings = load_settings()
    with progress("validate: probing videos") as advance:
        found = validate(data, settings.validate_, settings.decode, docs=(report / DATA_DOCS).parent, progress=advance)
    write_report(found, report)
    return found


def open_docs(report: Path) -> Path:
    """Open the Data Docs in a browser, where there is one with a window. Returns where they lie."""
    import webbrowser

    from qualivision.validation.report import DATA_DOCS

    index = report / DATA_DOCS
    # Without a screen webbrowser would start one that takes over the terminal, such as lynx.
    screen = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    if sys.platform != "linux" or any(os.environ.get(name) for name in screen):
        webbrowser.open(index.absolute().as_uri())
    return index
