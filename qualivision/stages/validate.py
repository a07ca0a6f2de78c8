"""Stage `validate`: label tables and videos, before anything is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qualivision.progress import progress
from qualivision.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path

    from qualivision.validation import ValidationReport


def run(data: Path, report: Path) -> ValidationReport:
    """Check the data set and write the report, also when it has errors."""
    from qualivision.validation import validate, write_report

    settings = load_settings()
    with progress("validate: probing videos") as advance:
        found = validate(data, settings.validate_, settings.decode, progress=advance)
    write_report(found, report)
    return found
