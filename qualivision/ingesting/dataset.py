"""The data set as it stands: which clips and prompts it has, and its tables with rows added.

Owns reading the tables of all splits as text, so that what stands in them stays as it is, and which split a prompt goes
to. Writes nothing: `adding.py` does.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision.ingesting.results import IngestError
from qualivision.ingesting.tables import SINGLE_RATING
from qualivision.labels import MOS_COLUMNS, SPLITS, labels_path, prompt_key, ratings_path
from qualivision.validation.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qualivision.validation.tables import Table

Row = dict[str, str]


@dataclass(frozen=True)
class TableFile:
    """A table of the data set: its bytes, and its rows as text."""

    path: Path
    content: bytes
    table: Table

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns, in order."""
        return self.table.columns

    @property
    def names(self) -> set[str]:
        """The videos that it has rows of."""
        return {row.get("video_name", "") for row in self.table.rows.values()}

    def extended(self, rows: list[Row]) -> bytes:
        """The file with rows added, and with columns added that it lacks. What stands in it stays as it is."""
        more = new_columns(self.columns, rows)
        if more:
            return _written([*self.columns, *more], [*self.table.rows.values(), *rows])
        end = b"" if self.content.endswith((b"\n", b"\r")) else b"\n"
        return self.content + end + _written(self.columns, rows, header=False)


@dataclass(frozen=True)
class DataSet:
    """The tables of all splits."""

    root: Path
    labels: dict[str, TableFile]
    ratings: dict[str, TableFile]
    """Of the splits that have single ratings."""
    places: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    """{video name: (split, line) of its rows}."""
    prompts: dict[str, list[str]] = field(default_factory=dict)
    """{prompt key: the splits that it stands in}, more than one where the data set leaks."""

    @property
    def fingerprint(self) -> str:
        """Changes with any of the tables."""
        files = [*self.labels.values(), *self.ratings.values()]
        parts = [hashlib.sha256(file.content).hexdigest() for file in files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def row(self, split: str, line: int) -> Row:
        """A row of a label table."""
        return self.labels[split].table.rows[line]

    def rated(self, split: str) -> bool:
        """Whether the label table of a split has MOS; a test table may lack them."""
        return all(column in self.labels[split].columns for column in MOS_COLUMNS)


def read_data_set(data: Path) -> DataSet:
    """Read the tables of a data set.

    Raises:
        IngestError: a split has no label table, or one that can't be read.
    """
    root = Path(os.path.abspath(data))
    labels, ratings = {}, {}
    for split in SPLITS:
        labels[split] = _table(labels_path(root, split), split, root, data)
        if (path := ratings_path(root, split)).exists():
            ratings[split] = _table(path, split, root, data)
    found = DataSet(root, labels, ratings)
    for split, file in labels.items():
        for line, row in file.table.rows.items():
            found.places.setdefault(row.get("video_name", ""), []).append((split, line))
            splits = found.prompts.setdefault(prompt_key(row.get("Prompt", "")), [])
            if split not in splits:
                splits.append(split)
    return found


def split_of_new(prompt: str, shares: tuple[float, float, float]) -> str:
    """The split of a prompt that the data set does not have.

    It follows from the prompt and the shares alone: not from the batch, the order, or what else there is.

    Args:
        prompt: its text; all ways to write one prompt (`prompt_key`) get one split.
        shares: of the prompts, to train, val and test.
    """
    digest = hashlib.sha256(prompt_key(prompt).encode("utf-8", "backslashreplace")).digest()
    place, end = int.from_bytes(digest[:8]) / 2**64, 0.0
    for split, share in zip(SPLITS, shares, strict=True):
        end += share
        if place < end:
            return split
    return next(split for split, share in zip(reversed(SPLITS), reversed(shares), strict=True) if share > 0)


def new_columns(there: Iterable[str], rows: Iterable[Row]) -> list[str]:
    """Columns of rows that a table lacks, in their order."""
    known = set(there)
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name not in known]


def ratings_that_fit(rows: list[Row], file: TableFile | None) -> tuple[list[Row], list[str]]:
    """Single ratings as a table of the data set can take them, and the columns that it can't.

    The noise ceiling counts a clip that has a number in every rating column. A column more (a fourth rater, a truth)
    would be empty for the clips that are there, and take all of them out of it.
    """
    if file is None or not file.table.rows:
        return rows, []
    left_out = [name for name in new_columns(file.columns, rows) if SINGLE_RATING.fullmatch(name)]
    return [{name: cell for name, cell in row.items() if name not in left_out} for row in rows], left_out


def table_of(rows: list[Row]) -> bytes:
    """A table that was not there before."""
    return _written(new_columns((), rows), rows)


def _table(path: Path, split: str, root: Path, data: Path) -> TableFile:
    """A table without a fault, or an error."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as err:
        shown = data / path.relative_to(root)
        raise IngestError(
            f"{shown}: no such file; clips are added to a data set that is there: `dvc checkout` brings back one, "
            "`qualivision import-labels` or `sample-data` makes one"
        ) from err
    table, findings = read_table(path, split, root)
    faults = [found for found in findings if found.severity == "error"]
    if table is None or faults:
        raise IngestError(f"{faults[0].place}: {faults[0].message} `qualivision validate` shows all; mend that first")
    return TableFile(path, content, table)


def _written(columns: Iterable[str], rows: Iterable[Row], *, header: bool = True) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")
