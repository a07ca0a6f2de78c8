"""The videos of a data set: a file for each row, a row for each file, and every file opened.

Owns the processes that open them. `video.probe` says what is wrong with one, and `clips.py` what the others have to
keep to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qualivision.errors import leaves
from qualivision.validation.report import Finding
from qualivision.validation.tables import Table, is_file_name, named
from qualivision.video import VideoError, VideoInfo, decoding_guard, probe
from qualivision.workers import in_processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qualivision.settings import DecodeSettings
    from qualivision.validation.report import Severity

    Progress = Callable[[int, int], None]
    Answer = VideoInfo | str  # what the container says, or why it can't be used

# FFmpeg opens more than videos: it draws a .txt as one, and takes a picture for a video of one frame.
VIDEO_ENDINGS = frozenset({"avi", "gif", "m4v", "mkv", "mov", "mp4", "webm"})


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
    clips: list[Clip], limits: DecodeSettings, *, workers: int | None = None, progress: Progress | None = None
) -> dict[Path, Answer]:
    """Open every video; one that takes its process with it is told, too. For the arguments see `validate`."""
    report = progress or (lambda done, total: None)
    paths = [clip.path for clip in clips]
    guard = decoding_guard(limits)
    answers: dict[Path, Answer] = {}
    try:
        for path, answer in in_processes(_probe, [(path,) for path in paths], workers=workers, guard=guard):
            answers[path] = answer
            report(len(answers), len(paths))
    except (VideoError, ExceptionGroup) as group:
        for err in leaves(group):
            if not isinstance(err, VideoError):
                raise
            answers[err.path] = err.cause
    return answers


def _without_video(table_file: str, line: int, name: str, folder: Path, data: Path) -> Finding:
    message = f"There is no such file in {named(folder, data)}: add the video, or remove the row."
    return Finding("error", "row-without-video", table_file, line, name, message)


def _without_row(file: str, name: str) -> Finding:
    message = "No row names this video, so nothing reads it: add its row, or remove the file."
    return Finding("warning", "video-without-row", file, None, name, message)


def _stray(file: str, name: str) -> Finding:
    message = "This is no video by its ending, so nothing reads it: keep it outside the videos folder."
    return Finding("warning", "stray-file", file, None, name, message)


def _probe(path: Path) -> tuple[Path, Answer]:
    """What a worker does."""
    try:
        return path, probe(path)
    except VideoError as err:
        return path, err.cause.replace(str(path), path.name)  # the report shows no absolute path
    except OSError as err:
        return path, f"can't be read: {err.strerror}"
