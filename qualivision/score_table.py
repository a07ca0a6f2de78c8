"""A table of scores on disk, one row a video, which a killed run goes on with: `scores.parquet`, `.csv` or `.jsonl`.

Owns the columns, the three formats, the journal beside the table and the lock. Does not know how a score is come by.

    scores.parquet            the finished table, sorted by name; it appears whole or not at all
    scores.parquet.journal    what a run that is not finished has found so far: JSON lines, the first one about the run
    .scores.parquet.lock      held while a run writes

Rows are never all in memory: of each only its name and where in the journal it stands.
"""

from __future__ import annotations

import csv
import heapq
import json
import os
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, Final

from qualivision.errors import QualiVisionError
from qualivision.evaluation.metrics import PREDICTED_COLUMNS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import FileIO
    from pathlib import Path

    Row = dict[str, Any]

NUMBERS: Final = (*PREDICTED_COLUMNS, "distance")
COLUMNS: Final = ("video_name", "Prompt", *NUMBERS, "warning", "model", "error", "size", "mtime_ns")
"""Numbers and `warning` are as in `Scores`, and empty where `error` is not. `size` and `mtime_ns` are the video's, from
when it was scored."""
SUFFIXES: Final = (".parquet", ".csv", ".jsonl")
_ROWS_AT_ONCE = 16_384


class ScoreTableError(QualiVisionError):
    """A table of scores that can't be gone on with: says why and the way out."""


class ScoreTable:
    """The table at `path` while a run fills it; made by `open_table`.

    Args:
        path: where the table goes; its suffix says in which format.
        model: what scores, by a name that no other weights have.
        overwrite: make every row again, whatever there is.
    Raises:
        ScoreTableError: a table of another model, or no table of scores at all.
    """

    def __init__(self, path: Path, model: str, *, overwrite: bool) -> None:
        self.path = path
        self.journal = path.with_name(f"{path.name}.journal")
        self._model = model
        self._file: FileIO | None = None
        self._in_journal: dict[str, int] = {}
        self._in_table: set[str] = set()
        self._dropped = 0
        head = _head(self.journal)
        if overwrite and not (head and head["model"] == model and head["afresh"]):
            head = None
            self.journal.unlink(missing_ok=True)
        # A run that overwrites and is killed goes on afresh, whether it is told to overwrite again or not.
        self._afresh = overwrite or bool(head and head["afresh"])
        if head:
            self._check_model(self.journal, head["model"])

    def keep(self, is_current: Callable[[Row], bool]) -> int:
        """Find out which rows need not be made again; returns how many they are."""
        end = 0
        if self.journal.exists():
            for row, start, end in _lines(self.journal):  # noqa: B007 - the last end is used below
                if not row.keys() >= set(COLUMNS):  # the line about the run, and rows of an earlier version
                    continue
                self._in_journal.pop(row["video_name"], None)
                if is_current(row):
                    self._in_journal[row["video_name"]] = start
            with self._naming(self.journal):
                os.truncate(self.journal, end)  # a torn line would spoil the next one
        before = ""
        for row in self._finished():
            name = row["video_name"]
            self._check_model(self.path, row["model"])
            if name <= before and before:
                raise ScoreTableError(
                    f"{self.path}: is not sorted by video_name, so not as it was written ({name} after {before}); "
                    "take another name, or --overwrite"
                )
            before = name
            if name not in self._in_journal and is_current(row):
                self._in_table.add(name)
            else:
                self._dropped += 1
        return len(self._in_journal) + len(self._in_table)

    def __contains__(self, name: str) -> bool:
        """Whether a row is kept."""
        return name in self._in_table or name in self._in_journal

    def add(self, rows: Iterable[Row]) -> None:
        """Put rows into the journal; they outlive this process from then on. Raises OSError (a full disk)."""
        with self._naming(self.journal):
            if self._file is None:
                self._file = self.journal.open("ab", buffering=0)
                if self._file.tell() == 0:
                    self._append({"model": self._model, "afresh": self._afresh})
            for row in rows:
                self._in_table.discard(row["video_name"])
                self._in_journal[row["video_name"]] = self._file.tell()
                self._append({column: row[column] for column in COLUMNS})

    def finish(self) -> None:
        """Write the table, if anything in it is new, and remove the journal. Raises OSError (a full disk)."""
        if self._in_journal or self._dropped or self._afresh or not self.path.exists():
            new = self.path.with_name(f".{self.path.name}.new")
            try:
                with self._naming(self.path), new.open("wb") as file:
                    _WRITERS[self.path.suffix](file, self._rows())
                    file.flush()
                    os.fsync(file.fileno())
                with self._naming(self.path):
                    os.replace(new, self.path)
            finally:
                new.unlink(missing_ok=True)
        self.close()
        self.journal.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the journal; it stays."""
        if self._file is not None:
            self._file.close()

    def _rows(self) -> Iterator[Row]:
        """What is kept and what is new, sorted by name."""
        old = (row for row in self._finished() if row["video_name"] in self._in_table)
        return heapq.merge(old, self._journalled(), key=lambda row: row["video_name"])

    def _journalled(self) -> Iterator[Row]:
        if not self._in_journal:
            return
        with self.journal.open("rb") as file:
            for _, start in sorted(self._in_journal.items()):
                file.seek(start)
                yield json.loads(file.readline())

    def _finished(self) -> Iterator[Row]:
        """The rows of the finished table of an earlier run, if they count."""
        if not self._afresh and self.path.exists():
            yield from read_table(self.path)

    def _check_model(self, path: Path, model: object) -> None:
        if model != self._model:
            raise ScoreTableError(
                f"{path}: was made by {model}, and this is {self._model}; take another name, or --overwrite"
            )

    def _append(self, line: Row) -> None:
        assert self._file is not None
        left = memoryview(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        while left:  # a disk that fills up takes a part first
            left = left[self._file.write(left) :]

    @contextmanager
    def _naming(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            cause = err.strerror or str(err)
            raise OSError(
                err.errno, f"can't write {path}: {cause}; what was scored is kept, so mend that and run it again"
            ) from err


@contextmanager
def open_table(path: Path, model: str, *, overwrite: bool = False) -> Iterator[ScoreTable]:
    """The table at `path`, for this run alone.

    Raises:
        ScoreTableError: another run is writing it; its suffix is none of `SUFFIXES`; or as `ScoreTable`.
    """
    from filelock import FileLock, Timeout

    if path.suffix not in SUFFIXES:
        raise ScoreTableError(f"{path}: a table of scores is one of {', '.join(SUFFIXES)}; give it such a name")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as err:
        raise ScoreTableError(f"{path}: another run is writing it; wait for it, or take another name") from err
    try:
        table = ScoreTable(path, model, overwrite=overwrite)
        try:
            yield table
        finally:
            table.close()
    finally:
        lock.release()


def read_table(path: Path) -> Iterator[Row]:
    """The rows of a finished table, one by one, sorted by name.

    Raises:
        ScoreTableError: no table of scores.
        FileNotFoundError: no such file.
    """
    try:
        for row in _READERS[path.suffix](path):
            _check_columns(row)
            if not isinstance(row["video_name"], str):
                raise ValueError(f"video_name is {row['video_name']!r}")
            yield row
    except (ValueError, TypeError, KeyError, csv.Error) as err:  # pyarrow's errors are ValueErrors
        cause = str(err).partition("\n")[0]
        raise ScoreTableError(f"{path}: is no table of scores ({cause}); take another name, or --overwrite") from err


def _head(journal: Path) -> Row | None:
    """The first line of a journal; None where there is none, or none that is whole."""
    if not journal.exists():
        return None
    row, _, _ = next(_lines(journal), ({}, 0, 0))
    return row if {"model", "afresh"} <= row.keys() else None


def _lines(journal: Path) -> Iterator[tuple[Row, int, int]]:
    """Each line with where it starts and ends, up to the first that is torn."""
    start = 0
    with journal.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                return
            yield row, start, start + len(line)
            start += len(line)


def _check_columns(columns: Iterable[str] | None) -> None:
    found = set(columns or ())
    if set(PREDICTED_COLUMNS) <= found < set(COLUMNS):
        missing = ", ".join(column for column in COLUMNS if column not in found)
        raise ValueError(f"it is of an earlier version, without {missing}")
    if found != set(COLUMNS):
        raise ValueError(f"its columns are {', '.join(map(str, columns or ())) or 'none'}")


def _read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            yield from batch.to_pylist()


def _write_parquet(file: IO[bytes], rows: Iterator[Row]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    types = dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(("size", "mtime_ns"), pa.int64())
    schema = pa.schema([(column, types.get(column, pa.string())) for column in COLUMNS])
    with ParquetWriter(file, schema) as writer:
        for part in _in_parts(rows):
            writer.write_table(pa.Table.from_pylist(part, schema))


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        _check_columns(reader.fieldnames)
        for row in reader:
            for column in NUMBERS:
                row[column] = float(row[column]) if row[column] else None
            for column in ("size", "mtime_ns"):
                row[column] = int(row[column]) if row[column] else None
            yield row


def _write_csv(file: IO[bytes], rows: Iterator[Row]) -> None:
    class Encoded:
        @staticmethod
        def write(text: str) -> int:
            return file.write(text.encode())

    writer = csv.DictWriter(Encoded(), COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _write_jsonl(file: IO[bytes], rows: Iterator[Row]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


_READERS: Final = {".parquet": _read_parquet, ".csv": _read_csv, ".jsonl": _read_jsonl}
_WRITERS: Final = {".parquet": _write_parquet, ".csv": _write_csv, ".jsonl": _write_jsonl}


def _in_parts(rows: Iterator[Row]) -> Iterator[list[Row]]:
    from itertools import islice

    while part := list(islice(rows, _ROWS_AT_ONCE)):
        yield part
