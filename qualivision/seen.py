"""What was once found out about a file's content, so that it is found out again only when the file has changed.

Owns one SQLite table: a file, how it stood (size, inode, times of change), and what was found. It is a memory and no
source: without it everything is found out anew. It lies under `state/`, for what it holds is of this machine alone.
"""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

_BATCH = 500
_TOO_FRESH_NS = 1_000_000_000
"""A file may change again within one tick of its clock: what changed so lately is not remembered."""


class Seen:
    """Remembers a short text about each file.

    Args:
        database: the SQLite file; made when the first thing is remembered. One that is damaged is thrown away.
    """

    def __init__(self, database: Path) -> None:
        self.database = database

    def find(self, files: Iterable[Path], look: Callable[[Path], str | None]) -> dict[Path, str | None]:
        """What is so about each file: remembered where it has not changed, else looked for, in threads.

        Args:
            files: what is asked about.
            look: finds it out; None is never remembered, nor is an exception, which is raised.
        """
        files = list(files)
        found: dict[Path, str | None] = dict(self._remembered(files))
        missing = [file for file in files if file not in found]
        if missing:
            with ThreadPoolExecutor() as pool:  # hashing and reading release the interpreter lock
                looked = dict(zip(missing, pool.map(look, missing), strict=True))
            self.remember({file: text for file, text in looked.items() if text is not None})
            found |= looked
        return found

    def remember(self, found: Mapping[Path, str]) -> None:
        """Remember something about files as they stand now."""
        now = time.time_ns()
        rows = [
            (str(file.absolute()), stand, text)
            for file, text in found.items()
            if (stand := _stand(file, before_ns=now - _TOO_FRESH_NS))
        ]
        if rows:
            with closing(self._open()) as table, table:
                table.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)

    def _remembered(self, files: list[Path]) -> Iterator[tuple[Path, str]]:
        if not self.database.exists():
            return
        with closing(self._open()) as table:
            for start in range(0, len(files), _BATCH):
                batch = {str(file.absolute()): file for file in files[start : start + _BATCH]}
                places = ",".join("?" * len(batch))
                rows = table.execute(f"SELECT file, stand, text FROM seen WHERE file IN ({places})", list(batch))
                for name, stand, text in rows:
                    if stand == _stand(batch[name]):
                        yield batch[name], text

    def _open(self) -> sqlite3.Connection:
        self.database.parent.mkdir(parents=True, exist_ok=True)
        try:
            return self._connect()
        except sqlite3.DatabaseError as err:
            if isinstance(err, sqlite3.OperationalError):  # a full disk, no right to write: not the file's fault
                raise OSError(f"{self.database}: can't be used: {err}") from err
            self.database.unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        table = sqlite3.connect(self.database, timeout=60)
        table.execute("CREATE TABLE IF NOT EXISTS seen (file TEXT PRIMARY KEY, stand TEXT, text TEXT) WITHOUT ROWID")
        return table


def _stand(file: Path, *, before_ns: int | None = None) -> str | None:
    """How a file stands, in one text; None where there is none, or where it changed after `before_ns`."""
    try:
        found = file.stat()
    except OSError:
        return None
    if before_ns is not None and max(found.st_mtime_ns, found.st_ctime_ns) > before_ns:
        return None
    return f"{found.st_size} {found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}"
