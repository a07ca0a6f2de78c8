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
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision import environment
from qualivision.errors import QualiVisionError
from qualivision.seen import Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np

    from qualivision.progress import Advance

    Arrays = dict[str, np.ndarray[Any, Any]]

INDEX = "index.json"
_SUFFIX = ".safetensors"
_WHOLE = "whole"


class CacheError(QualiVisionError):
    """An entry that is missing, cut or altered: names the file and the stage that makes it again."""


@dataclass(frozen=True)
class Filled:
    """What a run over a cache did, in clips; `unneeded` are left over entries that no clip needs."""

    made: int
    kept: int
    linked: int
    pruned: int
    unneeded: tuple[Path, ...]

    def __str__(self) -> str:
        parts = [f"{self.made} made", f"{self.kept} were there"]
        if self.linked:
            parts.append(f"{self.linked} taken from another model's cache")
        parts.append(f"{self.pruned} removed")
        if self.unneeded:
            parts.append(f"{len(self.unneeded)} not needed any more (--prune removes them)")
        return ", ".join(parts)


class Cache:
    """A folder of cached arrays, one file per clip.

    Args:
        folder: where the entries lie; made when the first one is written.
        stage: the `qualivision` command that fills this cache, for error messages.
    """

    def __init__(self, folder: Path, *, stage: str) -> None:
        self.folder = folder
        self.stage = stage
        self.seen = Seen(environment.STATE / "seen.db")  # which entries were found whole

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
        """Read one entry, without a copy: the arrays lie in the file until they are written to.

        Raises:
            CacheError: the entry is missing, cut or altered.
        """
        path = self.path(key)
        try:
            arrays, recorded = _mapped(path)
        except FileNotFoundError as err:
            raise CacheError(f"{path}: no such file; run `{self.stage}`") from err
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as err:
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
        others: Iterable[Cache] = (),
        verify: bool = False,
        prune: bool = True,
    ) -> Filled:
        """Make the entries that are not there yet, and write the index. Two runs at once take turns.

        Args:
            wanted: {clip: key}, all clips that the cache shall hold.
            missing: makes the entries of the named clips and yields once for each; clips of equal content come once.
            advance: told of the progress.
            others: caches that may hold entries of these keys, which are then shared (hard links) and not made again.
            verify: read every entry; otherwise only those that changed since they were last found whole.
            prune: remove entries that no clip needs. A DVC output must follow from what went in, not from what it
                held before.
        Raises:
            Whatever `missing` raises; what it had made by then is kept and not made again.
        """
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.parent / f".{self.folder.name}.lock"):
            keys = sorted(set(wanted.values()))
            whole = self._whole(keys, verify=verify)
            linked = {key for key in keys if key not in whole and self._link(key, others)}
            there = whole | linked
            first_clip = {key: clip for clip, key in sorted(wanted.items(), reverse=True) if key not in there}
            todo = sorted(first_clip.values())
            advance(0, len(todo))
            for done, _ in enumerate(missing(todo), start=1):
                advance(done, len(todo))
            pruned, unneeded = self._prune(set(keys), entries=prune)
            self._write_index(wanted)
            self.seen.remember({self.path(key): _WHOLE for key in keys if key not in whole})
        return Filled(len(todo), len(whole), len(linked), pruned, unneeded)

    def _whole(self, keys: list[str], *, verify: bool) -> set[str]:
        paths = {self.path(key): key for key in keys}
        if verify:
            return {key for key in keys if self.is_whole(key)}
        found = self.seen.find(paths, lambda path: _WHOLE if self.is_whole(paths[path]) else None)
        return {paths[path] for path, known in found.items() if known == _WHOLE}

    def _link(self, key: str, others: Iterable[Cache]) -> bool:
        """Share the entry of another cache, if one holds it undamaged on this file system."""
        for other in others:
            if other.is_whole(key):
                self.path(key).unlink(missing_ok=True)  # a damaged one of our own
                try:
                    os.link(other.path(key), self.path(key))
                except OSError:
                    continue
                return True
        return False

    def refer(self, entries: Mapping[str, str]) -> None:
        """Hold no entry, and only say which of another cache belong to which clips: {clip: key}."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._prune(set(), entries=True)
        self._write_index(entries)

    def _write_index(self, entries: Mapping[str, str]) -> None:
        write_atomically(self.folder / INDEX, json.dumps(dict(sorted(entries.items())), indent=0).encode())

    def _prune(self, keep: set[str], *, entries: bool) -> tuple[int, tuple[Path, ...]]:
        """Delete what a killed run left behind and, if asked to, entries that no clip needs.

        Returns how many files were deleted, and the entries without need that were not.
        """
        stale = [
            path
            for path in sorted(self.folder.iterdir())
            if path.name != INDEX and not (path.suffix == _SUFFIX and path.stem in keep)
        ]
        left = tuple(path for path in stale if path.suffix == _SUFFIX and not path.name.startswith("."))
        gone = stale if entries else [path for path in stale if path not in left]
        for path in gone:
            path.unlink(missing_ok=True)  # the worker of a killed run may rename or remove its own in its last moment
        return len(gone), () if entries else left


def _mapped(path: Path) -> tuple[Arrays, str | None]:
    """The arrays of a safetensors file, mapped from it copy-on-write, and its checksum. Any damage raises something.

    safetensors itself copies every array; of a clip's frames that takes longer than to read and check them.
    """
    import numpy as np

    content = np.memmap(path, dtype=np.uint8, mode="c")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    recorded = (header.pop("__metadata__", None) or {}).get("checksum")
    arrays: Arrays = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        if math.prod(shape) * dtype.itemsize != high - low or not 0 <= low <= high <= len(content) - start:
            raise ValueError(f"{name} does not fit the file")
        raw = np.asarray(content)[start + low : start + high]
        arrays[name] = raw.view(dtype).reshape(shape) if raw.size else np.empty(shape, dtype)
    return arrays, recorded


_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
"""safetensors' names of numpy's types."""


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


def _checksum(arrays: Arrays) -> str:
    from xxhash import xxh3_64

    state = xxh3_64()
    for name in sorted(arrays):
        state.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        state.update(arrays[name].data)
    return state.hexdigest()
