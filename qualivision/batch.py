"""Many videos, one model: decoded ahead in guarded processes, judged in batches in this one.

Owns which videos of a table lie in which folder, the way from them to scores, and what happens to those that can't be
scored. The model is `scoring.py`'s, what becomes of the scores `score_run.py`'s. However many videos there are, only so
many as the processes and a batch need are decoded at a time.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from qualivision.errors import QualiVisionError
from qualivision.labels import read_labels
from qualivision.scoring import Scores, check_prompt
from qualivision.video import LostVideoError, VideoError
from qualivision.workers import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from qualivision.decoding import Decoders
    from qualivision.scoring import Located, Scorer
    from qualivision.settings import DecodeSettings
    from qualivision.video import Clip

    Found = Scores | QualiVisionError
    Judging = Callable[["Asking"], Iterator[tuple[str, Found]]]
    """Scores videos: gives each name with its scores or its error, as they come."""

_NAMED = 3
_APART = "give the path below the folder as video_name, or rename one"
VIDEO_SUFFIXES: Final = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".gif", ".mpg", ".mpeg", ".h264", ".hevc", ".ivf"}
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A video that shall be scored, by the name under which it stands in a table.

    Attributes:
        prompt: the text that it was generated from.
        path: its file; empty where there is none.
        error: why it can't be scored, where that is known already.
    """

    prompt: str
    path: str
    error: str = ""


class Asking(Protocol):
    """Videos by name, so many of them, taken one by one."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Asked]]: ...


@dataclass(frozen=True)
class Plan:
    """What a call asks for: videos by name, and lines about what it does not ask for, or what is amiss.

    Attributes:
        videos: each has a row in the table.
        unasked: named files without a prompt: a line each. They have no row, and count as failed.
        notes: a line for what is known to be amiss: what has an error, and files that have no row.
    """

    videos: dict[str, Asked]
    unasked: tuple[str, ...]
    notes: tuple[str, ...]


def plan(given: Sequence[Path], table: Path) -> Plan:
    """Which videos are asked for.

    A file is asked for when the table has its name. Of a folder all rows of the table are: `video_name` is the path of
    a file below the folder, or its name alone at any depth. Files in a folder that the table does not have are not.

    Args:
        given: files and folders.
        table: a CSV file with columns video_name and Prompt.
    Raises:
        LabelError: the table can't be read.
        OSError: a folder can't be read.
    """
    prompts, amiss = read_prompts(table)
    paths: dict[str, str] = {}
    unasked = []
    folders = [path for path in given if path.is_dir()]
    for file in (path for path in given if not path.is_dir()):
        if not prompts.get(file.name, "").strip():
            unasked.append(f"{file}: has no prompt in {table}")
        elif paths.setdefault(file.name, str(file)) != str(file):
            amiss[file.name] = f"is there twice: {paths[file.name]} and {file}"
    others = _find(folders, prompts, paths, amiss)
    where = ", ".join(map(str, folders))
    videos, missing, blank = {}, [], []
    for name, prompt in prompts.items():
        if name in amiss and name in paths:
            videos[name] = Asked(prompt, paths[name], amiss[name])
        elif name in paths and prompt.strip():
            videos[name] = Asked(prompt, paths[name])
        elif name in paths:
            blank.append(name)
            videos[name] = Asked(prompt, paths[name], f"has no prompt in {table}")
        elif folders:
            missing.append(name)
            videos[name] = Asked(prompt, "", f"no such file in {where}")
    notes = [f"{name}: {videos[name].error}" for name in amiss if name in paths]
    if missing:
        notes.append(f"{_count(missing, 'row')} of {table} without a video in {where}: {_first(missing)}")
    if blank:
        notes.append(f"{_count(blank, 'row')} of {table} without a prompt: {_first(blank)}")
    if others:
        notes.append(f"{_count(others, 'video')} without a row in {table}, not scored: {_first(others)}")
    return Plan(videos, tuple(unasked), tuple(notes))


def plan_of_files(files: Sequence[Path], prompt: str) -> Plan:
    """The same of files that all have one prompt."""
    videos: dict[str, Asked] = {}
    for file in files:
        known = videos.setdefault(file.name, Asked(prompt, str(file)))
        if known.path != str(file):
            videos[file.name] = replace(known, error=f"is there twice: {known.path} and {file}")
    return Plan(videos, (), tuple(f"{name}: {asked.error}" for name, asked in videos.items() if asked.error))


def read_prompts(table: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The prompt of each video of a table, and what is wrong with a video that has two."""
    rows = read_labels(table, require_mos=False)
    prompts: dict[str, str] = {}
    amiss = {}
    for name, prompt in zip(rows["video_name"], rows["Prompt"], strict=True):
        if not isinstance(name, str) or not name:
            continue
        text = prompt if isinstance(prompt, str) else ""
        if prompts.setdefault(name, text) != text:
            amiss[name] = f"has more than one prompt in {table}"
    return prompts, amiss


def _find(folders: list[Path], prompts: dict[str, str], paths: dict[str, str], amiss: dict[str, str]) -> list[str]:
    """Put the files of the folders that the table has into `paths`; returns the videos that it has not."""

    def refuse(err: OSError) -> None:
        raise err

    others = []
    for folder in folders:
        for at, below, names in os.walk(folder, onerror=refuse):
            below.sort()
            for file in sorted(names):
                path = os.path.join(at, file)
                known = (name for name in (os.path.relpath(path, folder), file) if name in prompts)
                if (name := next(known, None)) is None:
                    if os.path.splitext(file)[1].lower() in VIDEO_SUFFIXES:
                        others.append(path)
                elif os.path.abspath(paths.setdefault(name, path)) != os.path.abspath(path):
                    amiss[name] = f"is there twice: {paths[name]} and {path}; {_APART}"
    return others


def decoding_processes(videos: int) -> int:
    """How many processes shall decode so many videos: one a core, or half of that where the model runs on them too."""
    import torch

    return min(cores() if torch.cuda.is_available() else max(1, cores() // 2), videos)


def judged(
    scorer: Scorer, decoders: Decoders, videos: Iterable[tuple[str, Asked]], *, batch: int = 1
) -> Iterator[tuple[str, Found]]:
    """Score videos; gives each name with its scores, or with the error of one that can't be scored, as they come.

    A video whose process is lost is tried once more.

    Args:
        scorer: the model.
        decoders: the processes that decode, ahead of the model.
        videos: (name, video); taken only as fast as they are decoded.
        batch: so many clips go through the model at once.
    """
    todo = iter(videos)
    decoding: dict[Future[Clip], tuple[str, Asked, bool]] = {}
    ready: deque[tuple[str, Asked, Clip]] = deque()
    ahead = 2 * decoders.workers + batch
    while True:
        while len(decoding) + len(ready) < ahead and (following := next(todo, None)) is not None:
            name, asked = following
            if (err := hopeless(name, asked)) is not None:
                yield name, err
            else:
                decoding[decoders.frames(Path(asked.path), scorer.specs)] = (name, asked, True)
        if len(ready) >= batch or (ready and not decoding):
            part = [ready.popleft() for _ in range(min(batch, len(ready)))]
            found = scorer.judge([(asked.path, asked.prompt, frames) for _, asked, frames in part])
            yield from zip((name for name, _, _ in part), found, strict=True)
        elif decoding:
            for future in wait(decoding, return_when=FIRST_COMPLETED).done:
                name, asked, first = decoding.pop(future)
                failure = future.exception()
                if failure is None:
                    ready.append((name, asked, future.result()))
                elif isinstance(failure, LostVideoError) and first:
                    decoding[decoders.frames(Path(asked.path), scorer.specs)] = (name, asked, False)
                elif isinstance(failure, LostVideoError):
                    yield name, VideoError(failure.path, f"{failure.cause}, twice")
                elif isinstance(failure, QualiVisionError):
                    yield name, failure
                else:
                    raise failure
        else:
            return


def hopeless(name: str, asked: Asked) -> QualiVisionError | None:
    """Why a video can't be scored, as far as that is known without reading it; None where it may be."""
    if asked.error:
        return VideoError(Path(name), asked.error)
    try:
        check_prompt(name, asked.prompt)
    except QualiVisionError as err:
        return err
    return None


@dataclass(frozen=True)
class Here:
    """Scores in this process, which loads the model when the first video is there.

    Attributes:
        model: see `Scorer`.
        limits: what decoding one video may take.
        batch: clips that go through the model at once; by default 1, on a GPU 8.
        workers: processes that decode; by default as the cores allow.
    """

    model: str | Path | Located | None
    limits: DecodeSettings
    batch: int | None = None
    workers: int | None = None

    def __call__(self, videos: Asking) -> Iterator[tuple[str, Found]]:
        """`judged`, with processes of its own."""
        from qualivision.decoding import Decoders
        from qualivision.scoring import Scorer

        decoders = Decoders(self.limits, workers=self.workers or decoding_processes(len(videos)))
        try:
            decoders.warm()  # while the model loads
            scorer = Scorer(self.model)
            yield from judged(scorer, decoders, videos, batch=self.batch or clips_at_once(scorer))
        finally:
            decoders.close()


def clips_at_once(scorer: Scorer) -> int:
    """How many clips shall go through a model at once where nobody says."""
    return 1 if scorer.device == "cpu" else 8


def _count(items: list[str], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"


def _first(items: list[str]) -> str:
    return ", ".join(items[:_NAMED]) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")
