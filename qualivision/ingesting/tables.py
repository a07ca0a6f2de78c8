"""The tables of a batch: which of them is the label table, its columns under our names, and which file a row means.

Owns reading them, as text and with the lines of the file, so that every finding names file and row. Judges no value:
`checks.py` does. Tables of single ratings (`Overall_1`, `Overall_2`, ...) are told by their columns.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from qualivision.importing import ALIASES, our_columns
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, LabelError
from qualivision.validation.report import Finding
from qualivision.validation.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from qualivision.ingesting.inbox import Batch
    from qualivision.validation.tables import Table

TABLE_ENDINGS: Final = (".csv", ".tsv")
SINGLE_RATING: Final = re.compile(rf"({'|'.join(DIMENSIONS)})_([0-9]+|truth)")
"""A column of which the noise ceiling is made (`evaluation/baselines.py`)."""
_WAY_OUT = "ingest.columns of params.yaml ({{{ours}: NAME}})"


@dataclass
class BatchTables:
    """What the tables of a batch say.

    Attributes:
        labels: the label table under our names, `video_name` being the name of a file; None where there is none.
        ratings: the single ratings, likewise; None where there are none.
        videos: {file name: its path below the batch} of the videos that rows name.
        missing: {line: name} of rows whose video is not in the batch.
        findings: what is wrong with the tables as files.
    """

    labels: Table | None = None
    ratings: Table | None = None
    videos: dict[str, str] = field(default_factory=dict)
    missing: dict[int, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        """Whether the files themselves have errors."""
        return any(found.severity == "error" for found in self.findings)


def tables_of(batch: Batch) -> list[str]:
    """The paths of its tables."""
    return [path for path in batch.files if path.lower().endswith(TABLE_ENDINGS)]


def read_tables(batch: Batch, folder: Path, columns: Mapping[str, str]) -> BatchTables:
    """Read the tables of a batch.

    Args:
        batch: what files it has.
        folder: where its tables lie here, under their paths; the folder has the batch's name.
        columns: {our name: theirs} where nobody could guess (`ingest.columns`).
    Returns:
        The tables; without a label table where none is there, or where it is not clear which it is.
    """
    read = BatchTables()
    labels: list[Table] = []
    ratings: list[Table] = []
    for path in tables_of(batch):
        table, found = _read(folder / path, folder)
        read.findings += found
        if table is not None:
            (ratings if _is_single_ratings(table.columns) else labels).append(table)
    for kind, tables in (("label table", labels), ("table of single ratings", ratings)):
        read.findings += [
            _fault("two-tables", table.file, None, f"{tables[0].file} and this are both a {kind}: keep one in a batch.")
            for table in tables[1:]
        ]
    if len(labels) == 1:
        read.labels, found = _renamed(labels[0], columns)
        read.findings += found
    if len(ratings) == 1:
        read.ratings, found = _renamed(ratings[0], columns, wanted=("video_name", "generator"))
        read.findings += found
    if read.labels is not None:
        _find_videos(read, batch)
    return read


def _fault(check: str, file: str, row: int | None, message: str, value: str = "") -> Finding:
    return Finding("error", check, file, row, value, message)


def _is_single_ratings(columns: Iterable[str]) -> bool:
    there = list(columns)
    has_singles = any((found := SINGLE_RATING.fullmatch(name)) and found[2] != "truth" for name in there)
    return has_singles and not all(name in there for name in MOS_COLUMNS)


def _read(path: Path, folder: Path) -> tuple[Table | None, list[Finding]]:
    """A table; one with tabs is first written with commas, each row on the lines where it stood."""
    file = path.relative_to(folder.parent).as_posix()
    if path.suffix.lower() == ".tsv":
        written = io.StringIO()
        try:
            text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
            csv.writer(written, lineterminator="\n").writerows(csv.reader(text, delimiter="\t"))
        except (UnicodeDecodeError, csv.Error) as err:
            return None, [_fault("unreadable-table", file, None, f"It is no UTF-8 table: {err}.", path.name)]
        path = path.with_name(f".{path.name}.csv")
        path.write_text(written.getvalue(), encoding="utf-8", newline="")
    table, findings = read_table(path, "train", folder)  # "train": a batch is rated, so every MOS is needed
    return table and replace(table, file=file), [replace(found, file=file) for found in findings]


def _renamed(
    table: Table, columns: Mapping[str, str], wanted: Iterable[str] = ALIASES
) -> tuple[Table | None, list[Finding]]:
    """A table under our names, columns without a name left out; None where a needed column is missing."""
    there = list(table.columns)
    try:
        ours = our_columns(Path(table.file), there, columns, wanted=wanted, way_out=_WAY_OUT)
    except LabelError as err:
        message = str(err).removeprefix(f"{table.file}: ")
        return None, [_fault("columns", table.file, 1, f"The table {message}.", ", ".join(there))]
    findings = []
    if "" in there:
        findings = [Finding("warning", "no-name", table.file, 1, "", "A column without a name is not kept.")]
    kept = [name for name in there if name]
    rows = {line: {ours.get(name, name): row[name] for name in kept} for line, row in table.rows.items()}
    named = tuple(ours.get(name, name) for name in kept)
    if twice := sorted({name for name in named if named.count(name) > 1}):
        says = "Two columns come to be called so: rename one."
        return None, [_fault("duplicate-column", table.file, 1, says, ", ".join(twice))]
    return replace(table, columns=named, rows=rows), findings


def _find_videos(read: BatchTables, batch: Batch) -> None:
    """Which file each row means: by its name at any depth or, where no other has it, by its name without ending."""
    by_name: dict[str, list[str]] = {}
    by_stem: dict[str, list[str]] = {}
    for path in batch.files:
        if not path.lower().endswith(TABLE_ENDINGS):
            by_name.setdefault(PurePosixPath(path).name, []).append(path)
            by_stem.setdefault(PurePosixPath(path).stem, []).append(path)
    assert read.labels is not None
    for table in filter(None, (read.labels, read.ratings)):
        for line, row in table.rows.items():
            name = row.get("video_name", "").strip().replace("\\", "/").rsplit("/", 1)[-1]
            paths = by_name.get(name) or (by_stem.get(name, []) if len(by_stem.get(name, [])) == 1 else [])
            row["video_name"] = PurePosixPath(paths[0]).name if paths else name
            if table is read.ratings or not name:
                continue
            if not paths:
                read.missing[line] = name
            elif len(paths) > 1:
                says = (
                    f"{' and '.join(paths)} have this name, and no video may have another's: rename one, and its row."
                )
                read.findings.append(_fault("two-videos", table.file, line, says, name))
            else:
                read.videos[row["video_name"]] = paths[0]
