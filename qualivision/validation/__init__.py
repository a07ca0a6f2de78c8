"""Is a data set fit to learn from? Every fault of it, found before anything is trained, in one report.

Owns the rules for label tables and videos, and the report of what breaks them. Does not own the layout of a
data set (`labels.py`), decoding (`video.py`), nor what follows: the caller looks at `ok` and stops the line.

    tables.py   a label table as text cells, each with its line in the file
    rules.py    the Great Expectations suite of a label table, and what no single table shows: leaked prompts
    videos.py   rows against files, and every file opened
    report.py   findings, as JSON and as text
    page.py     findings as a page

A fault never hides another: what one check can't use is named by it and kept from the next ones.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision.labels import SPLITS, labels_path, videos_dir
from qualivision.settings import DecodeSettings
from qualivision.validation.report import Finding, ValidationReport, write_report
from qualivision.validation.rules import check_leaks, check_tables
from qualivision.validation.tables import read_table
from qualivision.validation.videos import Clip, check_videos, match_videos

if TYPE_CHECKING:
    from collections.abc import Callable

    from qualivision.settings import ValidateSettings

__all__ = ["Finding", "ValidationReport", "validate", "write_report"]


def validate(
    data: Path,
    bounds: ValidateSettings,
    limits: DecodeSettings | None = None,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ValidationReport:
    """Check every label table and every video of a data set.

    Args:
        data: the folder that holds `train`, `val` and `test`. All three are needed.
        bounds: what prompts and videos have to keep to.
        limits: how long one video may take, and how much memory; by default those of `DecodeSettings`.
        workers: processes that open videos; one per core if not given.
        progress: called with (videos opened, videos in all) as it goes.
    Returns:
        Everything that was found; it raises for no fault of the data.
    """
    root = Path(os.path.abspath(data))  # not resolve(): a linked data folder keeps the name it was given
    findings: list[Finding] = []
    tables = []
    clips: list[Clip] = []
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        table, found = read_table(labels_path(root, split), split, root)
        findings += found
        if table is not None:
            tables.append(table)
        split_clips, found = match_videos(videos_dir(root, split), table, root)
        findings += found
        clips += split_clips
        counts[split] = {"rows": table.count if table else 0, "videos": len(split_clips)}
    findings += check_leaks(tables)
    with ThreadPoolExecutor(1) as aside:  # Great Expectations is slow to import: the videos need not wait
        in_tables = aside.submit(check_tables, tables, bounds)
        findings += check_videos(clips, bounds, limits or DecodeSettings(), workers=workers, progress=progress)
        findings += in_tables.result()
    return ValidationReport(tuple(findings), counts)
