"""The inbox: a folder or a bucket, each folder of it a batch. It is only read.

Owns listing, how a batch stands (which tells whether it changed), and bringing its files here. Knows nothing of what
is in them. Built on fsspec, so that a bucket is no other case than a folder.
"""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from qualivision.ingesting.results import IngestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from qualivision.progress import Advance

_TAGS: Final = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "modified")
"""What file systems say of a file that differs when its content does; "created" where they say none of these."""
_TIMES: Final = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_EXTRAS: Final = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "azure", "abfs": "azure", "abfss": "azure"}
_THREADS = 8


@dataclass(frozen=True)
class Entry:
    """A file of a batch."""

    path: str
    """Below the batch, with forward slashes."""
    size: int
    tag: str
    """Differs when the content does, as far as the file system tells."""
    changed: float
    """When it last did, in seconds since 1970; 0 where the file system does not say."""


@dataclass(frozen=True)
class Batch:
    """A folder of the inbox with its files, hidden ones left out."""

    name: str
    files: Mapping[str, Entry] = field(hash=False)

    @property
    def fingerprint(self) -> str:
        """Changes when a file comes, goes or changes."""
        lines = sorted(f"{entry.path}\n{entry.size}\n{entry.tag}" for entry in self.files.values())
        return hashlib.sha256("\n\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def quiet_seconds(self, now: float) -> float:
        """For how long no file changed. How far a time lies ahead counts too: clocks differ."""
        return min((abs(now - entry.changed) for entry in self.files.values()), default=float("inf"))


class Inbox:
    """A folder, or a bucket by its URL.

    Args:
        url: a path, or `s3://...`, `gs://...`, or whatever fsspec has a package for. Credentials are its own business.
    Raises:
        IngestError: no such protocol, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        try:
            self._fs, self._root = url_to_fs(url)
        except ImportError as err:
            extra = _EXTRAS.get(url.split("://", 1)[0])
            install = f"pip install 'qualivision[{extra}]'" if extra else str(err)
            raise IngestError(f"inbox {url}: needs a package that is not installed; {install}") from err
        except ValueError as err:
            raise IngestError(f"inbox {url}: {err}; give a folder, or a URL such as s3://bucket/inbox") from err
        self._root = str(self._root).rstrip("/")

    def look(self) -> tuple[list[Batch], tuple[str, ...]]:
        """The batches by name, and the files that lie beside them. A missing folder is an empty one.

        Raises:
            IngestError: it can't be listed.
        """
        with self._naming():
            self._fs.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
        batches: dict[str, dict[str, Entry]] = {}
        strays = []
        for key, info in sorted(found.items()):
            parts = PurePosixPath(key[len(self._root) :].strip("/")).parts
            if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
                continue
            if len(parts) == 1:
                strays.append(parts[0])
            else:
                entry = _entry("/".join(parts[1:]), info)
                batches.setdefault(parts[0], {})[entry.path] = entry
        return [Batch(name, files) for name, files in sorted(batches.items())], tuple(strays)

    def fetch(self, batch: Batch, wanted: Iterable[str], folder: Path, advance: Advance) -> None:
        """Copy files of a batch to `folder`, under the paths that they have in it. What is there already is kept.

        Args:
            batch: as `look` found it.
            wanted: paths of its files.
            folder: of this batch as it stands: another content goes to another folder.
            advance: told how many files are there.
        Raises:
            IngestError: a file can't be read, or the disk is full.
        """
        entries = [batch.files[path] for path in wanted]
        missing = [entry for entry in entries if not _is_there(folder / entry.path, entry.size)]
        check_room(folder, sum(entry.size for entry in missing))
        advance(0, len(missing))
        with ThreadPoolExecutor(_THREADS if getattr(self._fs, "async_impl", False) else 1) as pool:
            copies = pool.map(lambda entry: self._copy(batch.name, entry, folder / entry.path), missing)
            for done, _ in enumerate(copies, start=1):
                advance(done, len(missing))

    def _copy(self, batch: str, entry: Entry, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        coming = target.with_name(f".{target.name}.coming")
        with self._naming(f"/{batch}/{entry.path}"), naming_full_disk(target.parent):
            self._fs.get_file(f"{self._root}/{batch}/{entry.path}", str(coming))
            with coming.open("rb") as file:
                os.fsync(file.fileno())
            coming.chmod(0o644)
            os.replace(coming, target)

    @contextmanager
    def _naming(self, path: str = "") -> Iterator[None]:
        try:
            yield
        except IngestError:
            raise
        except FileNotFoundError as err:
            raise IngestError(f"{self.url}{path}: is not there any more; run this again") from err
        except Exception as err:  # every file system has errors of its own
            cause = " ".join(str(err).split()) or type(err).__name__
            raise IngestError(f"inbox {self.url}{path}: can't be read ({type(err).__name__}: {cause})") from err


def check_room(folder: Path, need: int) -> None:
    """Raise IngestError where a disk has no room for so many bytes."""
    import shutil

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if need > free:
        raise IngestError(
            f"{folder}: {need / 1e9:.2f} GB of videos to copy, {free / 1e9:.2f} GB free; nothing was added, "
            "so make room and run this again"
        )


@contextmanager
def naming_full_disk(place: Path) -> Iterator[None]:
    """Say which disk is full, and that nothing is lost by it."""
    import errno

    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise IngestError(
            f"{place}: {err.strerror}; the data set is as it was before this batch, so make room and run this again"
        ) from err


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _entry(path: str, info: Mapping[str, Any]) -> Entry:
    tags = [f"{key}={info[key]}" for key in _TAGS if info.get(key) is not None] or [f"created={info.get('created')}"]
    # A file that was copied with its times kept is as new here as when it came ("created" of a local file: ctime).
    times = [_seconds(info[key]) for key in _TIMES if info.get(key) is not None]
    return Entry(path, int(info.get("size") or 0), " ".join(tags), max(times, default=0.0))


def _seconds(value: Any) -> float:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            return 0.0
    return float(value) if isinstance(value, int | float) else 0.0


def now() -> float:
    """Seconds since 1970. Here, so that a test can set the clock."""
    return time.time()
