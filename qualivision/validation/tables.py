"""A label table as the text that stands in the file, each row with its line number.

Owns reading and what makes a file no table at all: its bytes, its quoting, its header. Reads no numbers, so
that a MOS of "abc" is a cell like another, for `rules.py` to judge. `csv` and not pandas: pandas does not say
on which line a row stands, and a prompt may span lines.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from qualivision.labels import MOS_COLUMNS, NO_MOS
from qualivision.validation.report import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A name that is a path could lead out of the videos folder; a blank at its end is not seen in an editor.
NO_FILE_NAME = r"[/\\]|^\.+$|^[ \t\r\n]|[ \t\r\n]$"

# Lines as editors and `csv` count them; str.splitlines() would also split at form feeds and U+2028.
_LINE_END = re.compile(r"(?<=\n)|(?<=\r)(?!\n)")


@dataclass(frozen=True)
class Table:
    """The rows of a label table that have a cell for every column; the others are in `malformed`."""

    split: str
    file: str
    columns: tuple[str, ...]
    rows: dict[int, dict[str, str]] = field(default_factory=dict)
    """Cells by column, by line."""
    malformed: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """What could be told apart of the other rows, by line."""

    @property
    def count(self) -> int:
        """How many rows the file holds, bad ones too."""
        return len(self.rows) + len(self.malformed)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns it must have: a test table may lack all MOS columns, but not some of them."""
        scored_only = self.split == "test" and not any(column in self.columns for column in MOS_COLUMNS)
        return ("video_name", "Prompt", *(() if scored_only else MOS_COLUMNS))

    def texts(self, column: str) -> dict[int, str]:
        """The cells of a column that hold something, by line; nothing where the column is missing."""
        return {
            line: row[column]
            for line, row in self.rows.items()
            if column in row and not is_missing(row[column], column)
        }


def is_file_name(cell: str) -> bool:
    """Whether a cell is the plain name of a file."""
    return re.search(NO_FILE_NAME, cell) is None


def is_missing(cell: str, column: str) -> bool:
    """Whether a cell holds nothing, by what reads it later (a prompt may well be "None")."""
    return not cell.strip() or (column in MOS_COLUMNS and cell in NO_MOS)


def named(path: Path, data: Path) -> str:
    """A path as findings name it: seen from the folder above the data."""
    return path.relative_to(data.parent).as_posix()


def read_table(path: Path, split: str, data: Path) -> tuple[Table | None, list[Finding]]:
    """Read a label table.

    Args:
        path: the CSV file; it may be missing, or anything else.
        split: whose table it is.
        data: the data folder, absolute.
    Returns:
        The table, None where there is nothing to check further; and what is wrong with it as a file.
    """
    file = named(path, data)

    def fault(check: str, row: int | None, value: str, message: str) -> Finding:
        return Finding("error", check, file, row, value, message)

    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None, [
            fault(
                "missing-table",
                None,
                path.name,
                f"There is no label table for {split} here; all splits need one.",
            )
        ]
    except OSError as err:
        return None, [fault("unreadable-table", None, path.name, f"It can't be read: {err.strerror}.")]
    if not raw.strip() or b"\0" in raw:
        cause = "It is no text: save it as CSV, in UTF-8." if raw.strip() else "It is empty: write a header and rows."
        return None, [fault("unreadable-table", 1, path.name, cause)]
    findings = [
        fault("not-utf8", line, text, "This line is not UTF-8: save the table in that encoding.")
        for line, text in _lines_not_in_utf8(raw)
    ]
    # Read on all the same: what stands on the other lines belongs into the same report.
    table, malformed = _parse(raw.decode("utf-8-sig", "backslashreplace"), split, file)
    findings += [fault("malformed-row", line, text, message) for line, text, message in malformed]
    findings += [
        fault("duplicate-column", 1, column, "The header names this column twice: remove one of the two.")
        for column in sorted({c for c in table.columns if table.columns.count(c) > 1})
    ]
    return table, findings


def _lines_not_in_utf8(raw: bytes) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(raw.splitlines(), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            yield number, line.decode("utf-8", "backslashreplace")


def _parse(text: str, split: str, file: str) -> tuple[Table, list[tuple[int, str, str]]]:
    """The table, and (line, text, message) of each row that is not as wide as the header or badly quoted."""
    lines = [line for line in _LINE_END.split(text) if line]
    table = Table(split, file, ())
    malformed: list[tuple[int, str, str]] = []
    for number, cells in _records(lines):
        if isinstance(cells, list) and not any(cell.strip() for cell in cells) and len(cells) <= 1:
            continue  # a blank line, which pandas skips too
        line = lines[number - 1].rstrip("\r\n")
        if isinstance(cells, str):
            table.malformed[number] = tuple(cell.strip('" ') for cell in line.split(","))
            malformed.append((number, line, f"It is badly quoted ({cells}): double the quotes inside a cell."))
        elif not table.columns:
            table = Table(split, file, tuple(cells))
        elif len(cells) != len(table.columns):
            table.malformed[number] = tuple(cells)
            counts = f"It has {len(cells)} cells, the header has {len(table.columns)}"
            malformed.append((number, line, f"{counts}: put a cell that holds a comma in double quotes."))
        else:
            # Backwards, so that of two columns with one name the first counts.
            table.rows[number] = dict(zip(reversed(table.columns), reversed(cells), strict=True))
    return table, malformed


def _records(lines: list[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Each record's first line and its cells, or in their place why it has none.

    After a bad record it goes on with the next line: a quote that is never closed would swallow all the rest.
    """
    at = 0
    while at < len(lines):
        reader = csv.reader(islice(lines, at, None), strict=True)
        start = at
        try:
            for cells in reader:
                yield start + 1, cells
                start = at + reader.line_num
            return
        except csv.Error as err:
            yield start + 1, str(err)
            at = start + 1
