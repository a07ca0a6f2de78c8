"""Adding checked clips to the data set, so that it is whole at every moment and a second run ends as the first would.

Owns the order: videos first, each under its name only when it is whole, then the tables, each replaced at once. A file
is never written in place, for DVC may have linked it to its cache. Videos that were placed by a run that was stopped
before their rows were written are taken back at the start of the next one.

While this happens no stage of `dvc repro` may run: DVC notes the hash of what a stage read after it has run, so a
stage that began before would pass for one that had seen the new clips. DVC's own lock of paths keeps the two apart.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qualivision.cache import write_atomically
from qualivision.ingesting.dataset import table_of
from qualivision.ingesting.inbox import check_room, naming_full_disk
from qualivision.ingesting.results import BusyError
from qualivision.labels import SPLITS, labels_path, ratings_path, videos_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from qualivision.ingesting.checks import Plan
    from qualivision.ingesting.dataset import DataSet

BUSY_WAIT_SECONDS = 60.0
"""How long a running stage is waited for; after that the batch waits for the next run."""
BUSY_LOOK_SECONDS = 2.0
PLACING: Final = "placing.json"
"""Videos that a run is about to place, below the data folder; gone when their rows are written."""
CHANGED: Final = "changed"
"""A mark: the data set has changed since it was last versioned."""
_COMING: Final = ".ingest."


@dataclass(frozen=True)
class Change:
    """What is written for a batch."""

    videos: Mapping[Path, Path]
    """{where it is to be: the staged file}."""
    tables: Mapping[Path, bytes]


def change_of(plan: Plan, staged: Mapping[str, Path], known: DataSet) -> Change:
    """What adding a plan writes."""
    videos = {
        videos_dir(known.root, split) / row["video_name"]: staged[row["video_name"]]
        for split in SPLITS
        for row in plan.rows[split]
    }
    tables = {}
    for split in SPLITS:
        if rows := plan.ratings[split]:
            there = known.ratings.get(split)
            tables[ratings_path(known.root, split)] = there.extended(rows) if there else table_of(rows)
    for split in SPLITS:
        if rows := plan.rows[split]:
            tables[labels_path(known.root, split)] = known.labels[split].extended(rows)
    return Change(videos, tables)


def add(change: Change, root: Path, state: Path) -> None:
    """Write it.

    Args:
        change: what to write.
        root: the data folder, absolute.
        state: where the notes of a run lie.
    Raises:
        IngestError: the disk is full; the data set is as it was.
    """
    if not change.tables:
        return
    with naming_full_disk(root):
        write_atomically(state / CHANGED, b"")
        new = [target for target in change.videos if not target.exists()]
        write_atomically(state / PLACING, json.dumps([path.relative_to(root).as_posix() for path in new]).encode())
        try:
            for target in new:
                _place(change.videos[target], target)
            with ExitStack() as tables:  # all of them are written before the first takes its place
                for path, content in change.tables.items():
                    tables.enter_context(_appearing(path)).write_bytes(content)
        except OSError:
            take_back(root, state)
            raise
    (state / PLACING).unlink()


def take_back(root: Path, state: Path) -> None:
    """Remove the videos that a stopped run had placed and written no row for."""
    from qualivision.ingesting.dataset import read_data_set

    for split in SPLITS:
        for folder in (videos_dir(root, split), labels_path(root, split).parent):
            for left in folder.glob(f"{_COMING}*"):
                left.unlink()
    note = state / PLACING
    if not note.exists():
        return
    try:
        placed = [root / path for path in json.loads(note.read_text(encoding="utf-8"))]
    except ValueError:
        placed = []  # it is written whole, so somebody else wrote this
    known = read_data_set(root).places if placed else {}
    for path in placed:
        if path.name not in known:
            path.unlink(missing_ok=True)
    note.unlink()


def _place(staged: Path, target: Path) -> None:
    """Let a video appear under its name, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(staged, target)  # the staged one stays until all of the batch is there
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without links
        check_room(target.parent, staged.stat().st_size)
        with _appearing(target) as coming:
            shutil.copyfile(staged, coming)


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A name to write to beside `path`, which then takes its place. One that a killed run left, `take_back` finds."""
    coming = path.with_name(f"{_COMING}{path.name}")
    try:
        yield coming
        coming.chmod(0o644)
        with coming.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(coming, path)
    finally:
        coming.unlink(missing_ok=True)


@contextmanager
def no_stage_running(data: Path, wait_seconds: float) -> Iterator[None]:
    """Keep the stages of `dvc repro` away from the checkout of a data folder. Without DVC this does nothing.

    Raises:
        BusyError: a stage runs for longer than this waits.
    """
    top = Path(os.path.abspath(data)).parent
    if not (top / ".dvc").is_dir():
        yield
        return
    from dvc.lock import LockError

    deadline = time.monotonic() + wait_seconds
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(_dvc_lock(top))
                break
            except LockError as err:
                if time.monotonic() >= deadline:
                    raise BusyError(
                        f"{data}: a stage of `dvc repro` is running ({_holders(err)}); it is not disturbed, so run "
                        "this again when it is done"
                    ) from err
            time.sleep(BUSY_LOOK_SECONDS)
        yield


def _holders(err: Exception) -> str:
    """Who holds DVC's lock, from its error."""
    named = [line.strip() for line in str(err).splitlines() if line.strip().startswith("(PID")]
    return ", ".join(named) or " ".join(str(err).split())


def _dvc_lock(top: Path) -> AbstractContextManager[object]:
    """DVC's lock of paths on everything in a checkout, to be entered."""
    from dvc.repo import Repo
    from dvc.rwlock import rwlock

    repo = Repo(str(top))
    os.makedirs(repo.tmp_dir, exist_ok=True)
    # All of the checkout and not the data alone: between frames and training, encode runs, which reads no data, and
    # training would find rows whose clips are not encoded.
    hard = repo.config["core"].get("hardlink_lock", False)
    return rwlock(repo.tmp_dir, repo.fs, "qualivision ingest", [], [repo.root_dir], hard)


def remove_staged(folders: Iterable[Path]) -> None:
    """Remove what was copied here of batches that are done with."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
