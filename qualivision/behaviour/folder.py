"""Which clips a folder holds, and their prompts where a table gives them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qualivision.batch import VIDEO_SUFFIXES, read_prompts
from qualivision.errors import QualiVisionError


class BehaviourError(QualiVisionError, ValueError):
    """There is nothing to measure a behaviour on: says why."""


@dataclass(frozen=True)
class Clip:
    """A clean clip.

    Attributes:
        name: what it is called in the report.
        prompt: the text that it was generated from; None where there is none, as for camera footage.
    """

    name: str
    path: Path
    prompt: str | None


@dataclass(frozen=True)
class Found:
    """The clips of a folder; what can't be used of it, by name with the cause; and lines about the table."""

    clips: tuple[Clip, ...]
    skipped: dict[str, str]
    notes: tuple[str, ...]


def find_clips(folder: Path, table: Path | None) -> Found:
    """All videos of a folder, at any depth, by their names.

    Args:
        folder: where they lie.
        table: a CSV file with columns video_name (the path below the folder, or the name alone) and Prompt. A clip
            that it does not have, or whose Prompt is blank, has no prompt.
    Raises:
        BehaviourError: no such folder, or no video in it.
        LabelError: the table can't be read.
        OSError: a folder can't be read.
    """
    if not folder.is_dir():
        raise BehaviourError(f"{folder}: is no folder of videos")
    prompts, amiss = read_prompts(table) if table is not None else ({}, {})
    clips, skipped, used = [], {}, set()
    for path in _videos(folder):
        name = path.relative_to(folder).as_posix()
        row = next((key for key in (name, path.name) if key in prompts), "")
        used.add(row)
        if row in amiss:
            skipped[name] = amiss[row]
        else:
            clips.append(Clip(name, path, prompts.get(row, "").strip() or None))
    if not clips and not skipped:
        raise BehaviourError(f"{folder}: holds no video; looked for {', '.join(sorted(VIDEO_SUFFIXES))}")
    unused = [row for row in prompts if row not in used]
    notes = (f"{len(unused)} rows of {table} without a video in {folder}, such as {unused[0]}",) if unused else ()
    return Found(tuple(clips), skipped, notes)


def _videos(folder: Path) -> list[Path]:
    def refuse(err: OSError) -> None:
        raise err

    found = []
    for at, _, names in os.walk(folder, onerror=refuse):
        found += [Path(at, name) for name in names if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES]
    return sorted(found)
