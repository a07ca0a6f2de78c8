"""The videos of a data set: a file for each row, a row for each file, and every file opened.

Owns the processes that open them. `video.probe` says what is wrong with one, and `clips.py` what the others have to
keep to.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TYPE_CHECKING

from qualivision.validation.report import Finding
from qualivision.validation.tables import Table, is_file_name, named
from qualivision.video import VideoError, VideoInfo, probe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qualivision.validation.report import Severity

    Progress = Callable[[int, int], None]
    Answer = VideoInfo | str  # what the container says, or why it can't be used

# FFmpeg opens more than videos: it draws a .txt as one, and takes a picture for a video of one frame.
VIDEO_ENDINGS = frozenset({"avi", "gif", "m4v", "mkv", "mov", "mp4", "webm"})

# Processes take longer to start than this many videos take to open.
IN_PROCESS_VIDEOS = 16
_CHUNK_VIDEOS = 8


@dataclass(frozen=True)
class Clip:
    """A video file of a data set, and the row that names it."""

    path: Path
    file: str
    row: str | None
    """The row in words ("line 7 of data/..."), None if none names it."""
    severity: Severity
    """Of what is wrong with the file: one that no row names is never read, and stops nothing."""


def match_videos(folder: Path, table: Table | None, data: Path) -> tuple[list[Clip], list[Finding]]:
    """Hold the rows of a table against the files of its videos folder.

    Args:
        folder: the videos of a split.
        table: its label table; None if there is none to read, and then no file is called superfluous.
        data: the data folder, absolute.
    Returns:
        The videos that are there, by name; and rows without a video, videos without a row, other files.
    """
    try:
        files = set(os.listdir(folder))
    except OSError as err:
        message = f"There is no such folder to read ({err.strerror}): put the videos of the label table here."
        return [], [Finding("error", "missing-videos-folder", named(folder, data), None, folder.name, message)]
    known = table is not None and "video_name" in table.columns
    row_of = table.texts("video_name") if table else {}
    findings = [
        _without_video(table.file, line, name, folder, data)
        for line, name in row_of.items()
        if table and name not in files and is_file_name(name)
    ]
    line_of = {name: line for line, name in reversed(row_of.items())}
    # A row that can't be told into cells still says which video is meant.
    mentioned = set(line_of).union(*(table.malformed.values() if table else ()))
    clips = []
    for name in sorted(files):
        path = folder / name
        file = named(path, data)
        is_video = path.suffix[1:].lower() in VIDEO_ENDINGS
        if is_video:
            row = f"line {line_of[name]} of {table.file}" if table and name in line_of else None
            clips.append(Clip(path, file, row, "warning" if known and name not in mentioned else "error"))
        if known and name not in mentioned:
            findings.append(_without_row(file, name) if is_video else _stray(file, name))
    return clips, findings


def probe_videos(
    clips: list[Clip], *, workers: int | None = None, progress: Progress | None = None
) -> dict[Path, Answer]:
    """Open every video. For `workers` and `progress` see `validate`."""
    paths = [clip.path for clip in clips]
    workers = workers or _cores()
    report = progress or (lambda done, total: None)
    if workers <= 1 or len(paths) <= IN_PROCESS_VIDEOS:
        return _probe_here(paths, report)
    return _probe_in_processes(paths, workers, report)


def _without_video(table_file: str, line: int, name: str, folder: Path, data: Path) -> Finding:
    message = f"There is no such file in {named(folder, data)}: add the video, or remove the row."
    return Finding("error", "row-without-video", table_file, line, name, message)


def _without_row(file: str, name: str) -> Finding:
    message = "No row names this video, so nothing reads it: add its row, or remove the file."
    return Finding("warning", "video-without-row", file, None, name, message)


def _stray(file: str, name: str) -> Finding:
    message = "This is no video by its ending, so nothing reads it: keep it outside the videos folder."
    return Finding("warning", "stray-file", file, None, name, message)


def _probe_here(paths: list[Path], report: Progress) -> dict[Path, Answer]:
    answers: dict[Path, Answer] = {}
    for done, path in enumerate(paths, start=1):
        answers[path] = probe_chunk([path])[0]
        report(done, len(paths))
    return answers


def _probe_in_processes(paths: list[Path], workers: int, report: Progress) -> dict[Path, Answer]:
    chunks = [paths[at : at + _CHUNK_VIDEOS] for at in range(0, len(paths), _CHUNK_VIDEOS)]
    answers: dict[Path, Answer] = {}
    with _processes(min(workers, len(chunks))) as pool:
        chunk_of = {pool.submit(probe_chunk, chunk): chunk for chunk in chunks}
        for future in as_completed(chunk_of):
            try:
                answers.update(zip(chunk_of[future], future.result(), strict=True))
            except BrokenProcessPool:
                continue  # one file took the whole pool down with it: which one, the next pass finds
            report(len(answers), len(paths))
    left = [path for path in paths if path not in answers]
    while left:
        with _processes(1) as pool:
            for path in left:
                try:
                    (answers[path],) = pool.submit(probe_chunk, [path]).result()
                except BrokenProcessPool:
                    answers[path] = "crashes the decoder"
                    break
                finally:
                    report(len(answers), len(paths))
        left = [path for path in left if path not in answers]
    return answers


def _cores() -> int:
    if sys.platform == "linux":  # in a container, fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processes(count: int) -> ProcessPoolExecutor:
    # spawn: a forked child of a process with threads (GX, a test runner, a server) may hang.
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"))


def probe_chunk(paths: list[Path]) -> list[Answer]:
    """What a worker does: open some videos."""
    return [_probe(path) for path in paths]


def _probe(path: Path) -> Answer:
    try:
        return probe(path)
    except VideoError as err:
        return err.cause.replace(str(path), path.name)  # the report shows no absolute path
    except OSError as err:
        return f"can't be read: {err.strerror}"
