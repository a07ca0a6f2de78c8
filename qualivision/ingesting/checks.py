"""Is a batch fit for the data set? Its rows and videos by the rules of `validation`, and against what is there.

Owns the rules that only a batch has: names and prompts that the data set knows, and single ratings. What a label table
and a video have to keep to is `validation`'s, and said here of the batch's own files and lines.
"""

from __future__ import annotations

import filecmp
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qualivision.ingesting.dataset import Row, ratings_that_fit, split_of_new
from qualivision.ingesting.tables import SINGLE_RATING
from qualivision.labels import (
    MOS_COLUMNS,
    MOS_MAX,
    MOS_MIN,
    SPLITS,
    fault_losses,
    graded_alignment,
    prompt_key,
    videos_dir,
)
from qualivision.validation.report import Finding, counted

if TYPE_CHECKING:
    from pathlib import Path

    from qualivision.ingesting.dataset import DataSet
    from qualivision.ingesting.tables import BatchTables
    from qualivision.progress import Advance
    from qualivision.settings import DecodeSettings, ValidateSettings
    from qualivision.validation.tables import Table


@dataclass
class Plan:
    """What adding a batch comes to.

    Attributes:
        rows: by split, the rows that are new.
        ratings: by split, their single ratings.
        prompts: {split: keys of prompts that are new to the data set}.
        already: names of clips that are there with the same row and content.
        findings: why it can't be added, or what is odd.
    """

    rows: dict[str, list[Row]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    ratings: dict[str, list[Row]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    prompts: dict[str, set[str]] = field(default_factory=lambda: {split: set() for split in SPLITS})
    already: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def check_batch(
    tables: BatchTables, folder: Path, bounds: ValidateSettings, limits: DecodeSettings, advance: Advance
) -> list[Finding]:
    """Hold rows and videos of a batch against the rules of a data set.

    Args:
        tables: with a label table, and every video of its rows in the batch.
        folder: where the videos lie here, under their paths in the batch.
        bounds: what prompts and videos have to keep to.
        limits: of one video.
        advance: told how many videos were opened.
    """
    from qualivision.validation.clips import check_clips
    from qualivision.validation.rules import check_table
    from qualivision.validation.suites import Suites
    from qualivision.validation.videos import Clip, probe_videos

    assert tables.labels is not None
    line_of = {row["video_name"]: line for line, row in reversed(tables.labels.rows.items())}
    clips = [
        Clip(folder / path, f"{folder.name}/{path}", f"line {line_of[name]} of {tables.labels.file}", "error")
        for name, path in sorted(tables.videos.items())
    ]
    answers = probe_videos(clips, limits, progress=advance)
    suites = Suites()
    found, _ = check_table(suites, tables.labels, bounds)
    in_clips, _ = check_clips(suites, clips, answers, bounds, folder.name)
    return [one for one in [*found, *in_clips] if one.severity != "info"]


def check_ratings(tables: BatchTables) -> list[Finding]:
    """What is wrong with the single ratings: they are read as numbers, by name."""
    table, labels = tables.ratings, tables.labels
    if table is None or labels is None:
        return []
    names = {row["video_name"] for row in labels.rows.values()}
    seen: dict[str, int] = {}
    findings = []
    for line, row in table.rows.items():
        name = row["video_name"]
        if name not in names:
            findings.append(_fault("ratings-of-no-row", table, line, name, f"No row of {labels.file} has this video."))
        if seen.setdefault(name, line) != line:
            findings.append(_fault("duplicate-row", table, line, name, f"Line {seen[name]} has this video, too."))
        for column in filter(SINGLE_RATING.fullmatch, table.columns):
            if (cell := row[column].strip()) and not _is_mos(cell):
                says = f"{column} is no number from {MOS_MIN:g} to {MOS_MAX:g}: write the rating, or leave it empty."
                findings.append(_fault("rating", table, line, row[column], says))
        if not _are_aspects(asks := row.get("asks", ""), shows := row.get("shows", "")):
            says = "asks and shows are no aspects of a prompt, as JSON objects: mend them, or leave them empty."
            findings.append(_fault("asks-and-shows", table, line, f"{asks} {shows}", says))
        if not _are_faults(degradations := row.get("degradations", "")):
            says = "degradations are no faults with the loss of each, as a JSON object: mend them, or leave them empty."
            findings.append(_fault("degradations", table, line, degradations, says))
    return findings


def plan(tables: BatchTables, folder: Path, known: DataSet, shares: tuple[float, float, float]) -> Plan:
    """Deal the rows of a batch to the splits, and hold them against what is there."""
    labels = tables.labels
    assert labels is not None
    made = Plan()
    placed: dict[str, str] = {}
    for line, row in labels.rows.items():
        name, key = row["video_name"], prompt_key(row["Prompt"])
        splits = known.prompts.get(key, [])
        if len(splits) > 1:
            says = f"The data set has this prompt in {' and '.join(splits)}: keep it in one of them first."
            made.findings.append(_fault("prompt-in-two-splits", labels, line, row["Prompt"], says))
            continue
        split = splits[0] if splits else split_of_new(row["Prompt"], shares)
        if name in known.places:
            if clash := _clash(row, name, folder / tables.videos[name], known):
                made.findings.append(_fault(clash[0], labels, line, clash[1], clash[2]))
            else:
                made.already.append(name)
                placed[name] = known.places[name][0][0]
            continue
        if not known.rated(split):
            says = (
                f"It would go to {split}, whose table has no MOS, so that nothing rated can be added to it: "
                "add the MOS there, or give that split no share (ingest.shares)."
            )
            made.findings.append(_fault("split-without-mos", labels, line, row["Prompt"], says))
            continue
        made.findings += _left_over(labels, line, name, folder / tables.videos[name], known)
        if not splits:
            made.prompts[split].add(key)
        made.rows[split].append(row)
        placed[name] = split
    _plan_ratings(made, tables, placed, known)
    return made


def _fault(check: str, table: Table, line: int, value: str, message: str) -> Finding:
    return Finding("error", check, table.file, line, value, message)


def _is_mos(cell: str) -> bool:
    try:
        return MOS_MIN <= float(cell) <= MOS_MAX
    except ValueError:
        return False


def _are_aspects(asks: str, shows: str) -> bool:
    """Whether training can use them (`training/data.py`); it does where both are given."""
    if not asks.strip() or not shows.strip():
        return True
    try:
        asked, shown = json.loads(asks), json.loads(shows)
        if asked and shown:
            graded_alignment(asked, shown)
    except (ValueError, TypeError, AttributeError, LookupError):
        return False
    return True


def _are_faults(degradations: str) -> bool:
    """Whether training can use them."""
    try:
        fault_losses(json.loads(degradations or "{}"))
    except (ValueError, TypeError, AttributeError, LookupError):
        return False
    return True


def _clash(row: Row, name: str, video: Path, known: DataSet) -> tuple[str, str, str] | None:
    """How a clip differs from the one of its name that is there: (check, value, message); None where it does not."""
    split, line = known.places[name][0]
    where = f"line {line} of {known.labels[split].table.file}"
    there = known.row(split, line)
    for column, cell in row.items():
        needed = column == "Prompt" or column in MOS_COLUMNS
        if not needed and not (cell.strip() and there.get(column, "").strip()):
            continue  # what only one of the two says is no difference
        if column in there and not _same(column, cell, there[column]):
            says = (
                f"{where} has this video with {column} {there[column]!r}: give the new clip another name, or mend one."
            )
            return "known-video-other-row", f"{name}: {column} {cell!r}", says
    old = videos_dir(known.root, split) / name
    if not old.is_file():
        return (
            "known-video-missing",
            name,
            f"{where} has this row, and its video is not there: `dvc checkout` it first.",
        )
    if not filecmp.cmp(video, old, shallow=False):
        return (
            "known-video-other-content",
            name,
            f"{where} has another video of this name: give the new one another name.",
        )
    return None


def _same(column: str, one: str, other: str) -> bool:
    if column in MOS_COLUMNS and _is_mos(one) and _is_mos(other):
        return abs(float(one) - float(other)) < 1e-9
    return one.strip() == other.strip()


def _left_over(table: Table, line: int, name: str, video: Path, known: DataSet) -> list[Finding]:
    """A file of this name, and of another content, that no row names."""
    for split in SPLITS:
        old = videos_dir(known.root, split) / name
        if old.is_file() and not filecmp.cmp(video, old, shallow=False):
            says = f"A file of this name lies in {split}/videos, and no row names it: remove it, or rename the new one."
            return [_fault("known-video-other-content", table, line, name, says)]
    return []


def _plan_ratings(made: Plan, tables: BatchTables, placed: dict[str, str], known: DataSet) -> None:
    """The single ratings of the clips that are new, as far as the tables that are there can take them."""
    if tables.ratings is not None:
        # Of clips that are there already, too: their ratings may come later, and a killed run may not have got so far.
        there = {split: file.names for split, file in known.ratings.items()}
        for row in tables.ratings.rows.values():
            split = placed.get(row["video_name"])
            if split is not None and row["video_name"] not in there.get(split, ()):
                made.ratings[split].append(row)
    left_out: set[str] = set()
    without: list[str] = []
    for split in SPLITS:
        made.ratings[split], names = ratings_that_fit(made.ratings[split], known.ratings.get(split))
        left_out.update(names)
        rated = {row["video_name"] for row in made.ratings[split]}
        lacking = sum(row["video_name"] not in rated for row in made.rows[split])
        if split in known.ratings and lacking:
            without.append(f"{split} {counted(lacking, 'clip')}")
    assert tables.labels is not None
    file = tables.ratings.file if tables.ratings else tables.labels.file
    if left_out:
        says = "The data set has no such single ratings, and a noise ceiling needs all of them of a clip: not kept."
        made.findings.append(Finding("warning", "ratings-left-out", file, 1, ", ".join(sorted(left_out)), says))
    if made.ratings["test"] and "test" not in known.ratings:
        few = counted(len(made.ratings["test"]), "clip")
        says = f"The test split had no single ratings: its noise ceiling will be that of {few} alone."
        made.findings.append(Finding("warning", "few-single-ratings", file, None, few, says))
    if without:
        says = "The data set has single ratings and these clips have none: the noise ceiling does not count them."
        made.findings.append(Finding("warning", "no-single-ratings", file, None, ", ".join(without), says))
