"""Is a data set fit to learn from? Every fault of it, found before anything is trained, in one report.

Owns the rules for label tables and videos, and the report of what breaks them. Does not own the layout of a
data set (`labels.py`), decoding (`video.py`), nor what follows: the caller looks at `ok` and stops the line.

    tables.py   a label table as text cells, each with its line in the file
    videos.py   rows against files, and every file opened
    suites.py   Great Expectations: rules held against a pandas table
    rules.py    the suite of a label table; text.py and steps.py tell what is odd about prompts and MOS
    split.py    the suites across tables: leaked prompts, sizes, drift of the labels
    clips.py    the suite of the videos
    report.py   findings, as JSON and as text
    page.py     findings as a page
    docs.py     Great Expectations' Data Docs, made to fetch nothing (templates in data_docs/)

A fault never hides another: what one check can't use is named by it and kept from the next ones.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision.labels import SPLITS, labels_path, videos_dir
from qualivision.settings import DecodeSettings
from qualivision.validation.clips import check_clips
from qualivision.validation.report import Finding, ValidationReport, write_report
from qualivision.validation.rules import check_table
from qualivision.validation.split import check_split
from qualivision.validation.suites import Suites
from qualivision.validation.tables import Table, read_table
from qualivision.validation.videos import Clip, match_videos, probe_videos

if TYPE_CHECKING:
    from collections.abc import Callable

    from qualivision.settings import ValidateSettings

__all__ = ["Finding", "ValidationReport", "validate", "write_report"]


def validate(
    data: Path,
    bounds: ValidateSettings,
    limits: DecodeSettings | None = None,
    *,
    docs: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ValidationReport:
    """Check every label table and every video of a data set.

    Args:
        data: the folder that holds `train`, `val` and `test`. All three are needed.
        bounds: what prompts and videos have to keep to.
        limits: how long one video may take, and how much memory; by default those of `DecodeSettings`.
        docs: a folder for Great Expectations' Data Docs, which replace what is there; none are written if not given.
        workers: processes that open videos; one per core if not given.
        progress: called with (videos opened, videos in all) as it goes.
    Returns:
        Everything that was found; it raises for no fault of the data.
    """
    root = Path(os.path.abspath(data))  # not resolve(): a linked data folder keeps the name it was given
    tables, clips, counts, findings = _look(root)
    with ThreadPoolExecutor(1) as aside:  # Great Expectations is slow to import: the videos need not wait
        suites = aside.submit(Suites)
        in_tables = aside.submit(lambda: _check_tables(suites.result(), tables, bounds))
        answers = probe_videos(clips, limits or DecodeSettings(), workers=workers, progress=progress)
        found, facts = in_tables.result()
    findings += found
    found, facts["videos"] = check_clips(suites.result(), clips, answers, bounds, root.name)
    findings += found
    if docs is not None:
        suites.result().build_docs(docs)
    return ValidationReport(tuple(findings), counts, facts)


def _look(root: Path) -> tuple[list[Table], list[Clip], dict[str, dict[str, int]], list[Finding]]:
    """What lies there, split by split: tables, videos, how many of each, and what is wrong already."""
    tables: list[Table] = []
    clips: list[Clip] = []
    counts: dict[str, dict[str, int]] = {}
    findings: list[Finding] = []
    for split in SPLITS:
        table, found = read_table(labels_path(root, split), split, root)
        findings += found
        if table is not None:
            tables.append(table)
        split_clips, found = match_videos(videos_dir(root, split), table, root)
        findings += found
        clips += split_clips
        counts[split] = {"rows": table.count if table else 0, "videos": len(split_clips)}
    return tables, clips, counts, findings


def _check_tables(
    suites: Suites, tables: list[Table], bounds: ValidateSettings
) -> tuple[list[Finding], dict[str, Any]]:
    """Every table by itself, and all of them against each other."""
    findings: list[Finding] = []
    facts: dict[str, Any] = {}
    for table in tables:
        found, facts[table.split] = check_table(suites, table, bounds)
        findings += found
    found, split = check_split(suites, tables, bounds)
    return findings + found, {"tables": facts, "split": split}
