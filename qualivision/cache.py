"""One file per clip: keyed by content, written atomically, checked on reading, filled in parallel, resumable.

Owns the files and the index of a cache folder. Does not know what is cached: `frames.py` keeps frames and stem
activations here.

    FOLDER/index.json             {clip: key}: which entry belongs to which clip
    FOLDER/<key>.safetensors      named arrays; the header carries a checksum of them

An entry appears under its name only when it is whole, so whatever is killed, what was done stays done.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import zlib
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from qualivision.environment import keep_freed_memory
from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from qualivision.progress import Advance

    Arrays = dict[str, np.ndarray[Any, Any]]

INDEX = "index.json"
_SUFFIX = ".safetensors"
_IN_PROCESS_UP_TO = 8
"""So few clips are made faster than worker processes start."""


class CacheError(QualiVisionError):
    """An entry that is missing, cut or altered: names the file and the stage that makes it again."""


@dataclass(frozen=True)
class Filled:
    """What a run over a cache did, in clips."""

    made: int
    kept: int
    pruned: int

    def __str__(self) -> str:
        return f"{self.made} made, {self.kept} were there, {self.pruned} removed"


class Cache:
    """A folder of cached arrays, one file per clip.

    Args:
        folder: where the entries lie; made when the first one is written.
        stage: the `qualivision` command that fills this cache, for error messages.
    """

    def __init__(self, folder: Path, *, stage: str) -> None:
        self.folder = folder
        self.stage = stage

    def path(self, key: str) -> Path:
        """The file of an entry, whether it exists or not."""
        return self.folder / f"{key}{_SUFFIX}"

    def index(self) -> dict[str, str]:
        """Which key belongs to which clip. Raises CacheError when the cache was never filled."""
        path = self.folder / INDEX
        try:
            index: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as err:
            raise CacheError(f"{path}: no such file; run `{self.stage}` first") from err
        except ValueError as err:
            raise CacheError(f"{path}: is damaged; run `{self.stage}` again") from err
        if not isinstance(index, dict):
            raise CacheError(f"{path}: is damaged; run `{self.stage}` again")
        return index

    def write(self, key: str, arrays: Arrays) -> None:
        """Write one entry; a reader never sees half of it."""
        import numpy as np
        from safetensors.numpy import save

        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # strided ones are refused
        write_atomically(self.path(key), save(arrays, metadata={"checksum": _checksum(arrays)}))

    def read(self, key: str) -> Arrays:
        """Read one entry, as arrays of their own. Raises CacheError when it is missing, cut or altered."""
        from safetensors import SafetensorError, safe_open

        path = self.path(key)
        try:
            with safe_open(path, framework="np") as entry:
                arrays = {name: entry.get_tensor(name) for name in entry.keys()}  # noqa: SIM118 - no mapping
                recorded = (entry.metadata() or {}).get("checksum")
        except FileNotFoundError as err:
            raise CacheError(f"{path}: no such file; run `{self.stage}`") from err
        except (SafetensorError, OSError) as err:
            raise CacheError(f"{path}: is cut or damaged ({err}); run `{self.stage}` again") from err
        if _checksum(arrays) != recorded:
            raise CacheError(f"{path}: its content is not what was written; run `{self.stage}` again")
        return arrays

    def is_whole(self, key: str) -> bool:
        """Whether an entry is there and undamaged."""
        try:
            self.read(key)
        except CacheError:
            return False
        return True

    def fill(
        self,
        wanted: Mapping[str, str],
        missing: Callable[[list[str]], Iterable[object]],
        *,
        advance: Advance,
    ) -> Filled:
        """Make the entries that are not there yet, drop those that nobody wants, and write the index.

        Args:
            wanted: {clip: key}, all clips that the cache shall hold.
            missing: makes the entries of the named clips and yields once for each; clips of equal content come once.
            advance: told of the progress.
        Raises:
            Whatever `missing` raises; what it had made by then is kept and not made again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = sorted(set(wanted.values()))
        with ThreadPoolExecutor() as pool:  # checksums release the interpreter lock
            whole = {key for key, ok in zip(keys, pool.map(self.is_whole, keys), strict=True) if ok}
        first_clip = {key: clip for clip, key in sorted(wanted.items(), reverse=True) if key not in whole}
        todo = sorted(first_clip.values())
        advance(0, len(todo))
        for done, _ in enumerate(missing(todo), start=1):
            advance(done, len(todo))
        pruned = self._prune(set(keys))
        self._write_index(wanted)
        return Filled(made=len(todo), kept=len(whole), pruned=pruned)

    def refer(self, entries: Mapping[str, str]) -> None:
        """Hold no entry, and only say which of another cache belong to which clips: {clip: key}."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prune(set())
        self._write_index(entries)

    def _write_index(self, entries: Mapping[str, str]) -> None:
        write_atomically(self.folder / INDEX, json.dumps(dict(sorted(entries.items())), indent=0).encode())

    def _prune(self, keep: set[str]) -> int:
        """Delete entries and left-over temporary files that no clip needs.

        The folder is a DVC output: what it holds must follow from what went in, not from what it held before.
        """
        stale = [
            path
            for path in self.folder.iterdir()
            if path.name != INDEX and not (path.suffix == _SUFFIX and path.stem in keep)
        ]
        for path in stale:
            path.unlink()
        return len(stale)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it, so that it is whole or not there.

    Raises:
        OSError: the disk is full or the folder can't be written; the message names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would keep others from reading a shared cache
        os.replace(temporary, path)
    except OSError as err:
        Path(temporary).unlink(missing_ok=True)
        raise OSError(err.errno, f"can't write {path}: {err.strerror}") from err
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_key(*parts: object) -> str:
    """A key from everything that an entry depends on."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def in_processes(
    work: Callable[..., object], jobs: list[tuple[Any, ...]], *, workers: int | None = None
) -> Iterable[object]:
    """Run `work(*job)` for each job over processes; yields the results as they come, then raises the failures.

    A job that fails does not stop the others. Several failures come as one ExceptionGroup.

    Args:
        work: a module-level function.
        jobs: its arguments, one tuple a job.
        workers: processes; by default one for each core.
    """
    failures: list[Exception] = []
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    if workers <= 1 or len(jobs) <= _IN_PROCESS_UP_TO:
        for job in jobs:
            try:
                yield work(*job)
            except Exception as err:  # noqa: BLE001 - raised below, with the others
                failures.append(err)
    else:
        # spawn: a forked child of a process with threads (torch, decord) may hang.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_settle_worker) as pool:
            try:
                for future in as_completed([pool.submit(work, *job) for job in jobs]):
                    try:
                        yield future.result()
                    except Exception as err:  # noqa: BLE001 - raised below, with the others
                        failures.append(err)
            except BaseException:  # whoever asked has stopped asking (Ctrl-C, a full disk): so do the workers
                pool.shutdown(cancel_futures=True)
                raise
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(jobs)} failed", failures)


def _settle_worker() -> None:
    """Each worker has one core: torch's own threads would only fight for it."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(1)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent is gone: a parent that was killed could not tell it to."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _checksum(arrays: Arrays) -> str:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode(), value)
        value = zlib.crc32(arrays[name].data, value)
    return f"{value:08x}"
