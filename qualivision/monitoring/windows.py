"""The two windows: clips that the champion scored lately, and rated clips that it was judged on.

Owns which clips are looked at. The current window is drawn from tables that `qualivision score --out` writes. Such a
table says no folder, so the videos are looked for by name in folders that the caller gives, as `score` does it, and one
counts only if size and time of change are those of the row: what is measured is what was scored.

The reference is drawn from the test split: scores on clips that a model has learned from are closer to the ratings than
on others, and would make any new clip look drifted. They are scored once a champion, into a table of their own.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qualivision.errors import QualiVisionError
from qualivision.labels import has_mos, labels_path, prompt_key, read_labels, videos_dir
from qualivision.monitoring.drift import GROUP
from qualivision.monitoring.figures import COLUMN_OF, UNSCORED, WORDS, words
from qualivision.score_table import SUFFIXES, ScoreTableError, read_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import pandas as pd

    from qualivision.progress import Advance
    from qualivision.score_table import Row
    from qualivision.settings import DecodeSettings, MonitorSettings

    Standing = tuple[str, int, int]
    """A video's name, and its size and time of change when it was scored."""

SPLIT: Final = "test"
_DAY_NS: Final = 86_400 * 10**9
_NAMED: Final = 3
HOW_TO_SCORE: Final = "`qualivision score FOLDER --prompts PROMPTS.csv --out scores/NAME.parquet` writes one"


class MonitorError(QualiVisionError):
    """There is nothing to compare: says what is missing and the way out."""


@dataclass(frozen=True)
class Window:
    """A sample of clips.

    Attributes:
        clips: a row each: `video_name`, `Prompt`, `path` (empty where the video is not at hand), `GROUP`, and the
            figures that need no video: words, scores, whether it could not be scored.
        drawn_from: how many clips there were.
        notes: lines about what was left out.
    """

    clips: pd.DataFrame
    drawn_from: int
    notes: tuple[str, ...] = ()

    @property
    def prompts(self) -> int:
        """How many different prompts."""
        return int(self.clips[GROUP].nunique())


def current(
    tables: Sequence[Path], folders: Sequence[Path], model: str, rules: MonitorSettings, *, now_ns: int
) -> Window:
    """What a model scored of videos that are new.

    Args:
        tables: tables of scores, and folders of them at any depth.
        folders: where the scored videos lie.
        model: whose scores count, as the tables name it.
        rules: how old a video may be, and how many are drawn.
        now_ns: the present, nanoseconds since 1970.
    Raises:
        MonitorError: a table or a folder of videos that is named is not there.
        ScoreTableError: a table that is named is none.
        OSError: a folder of videos can't be read.
    """
    since_ns = now_ns - rules.days * _DAY_NS
    left_out: Counter[str] = Counter()
    notes: list[str] = []
    drawn: set[int] = set()

    def recent() -> Iterator[tuple[int, int, Row]]:
        for row in _rows(tables, notes):
            if row["model"] != model:
                left_out["scored by another model"] += 1
            elif row["mtime_ns"] is None:
                left_out["of files that were not there"] += 1
            elif row["mtime_ns"] < since_ns:
                left_out[f"of videos older than {rules.days:g} days"] += 1
            elif (lot := _lot(rules.seed, row["video_name"], row["Prompt"], row["size"], row["mtime_ns"])) not in drawn:
                drawn.add(lot)
                yield lot, len(drawn), row

    rows = [row for _, _, row in heapq.nsmallest(rules.clips, recent())]
    notes += [f"rows left out, {what}: {count}" for what, count in left_out.items()]
    places = find(rows, folders)
    missing = [row["video_name"] for row in rows if _standing(row) not in places]
    if not folders:
        notes.append("no folder of videos is given (--videos, or monitor.videos): their pictures are not looked at")
    elif missing:
        where = ", ".join(map(str, folders))
        notes.append(
            f"videos that are not in {where} as they were scored: {len(missing)} of {len(rows)}: {first(missing)}"
        )
    return Window(_clips(rows, places), len(drawn), tuple(notes))


def reference(
    data: Path, model: str, rules: MonitorSettings, limits: DecodeSettings, table: Path, *, advance: Advance
) -> Window:
    """Rated test clips, as the model scores them.

    Args:
        data: the data folder.
        model: the URI of a registered version.
        rules: how many are drawn.
        limits: of decoding one video.
        table: where the scores are kept; what is there is not scored again.
        advance: told of the progress.
    Raises:
        LabelError: there is no test table.
        MonitorError: it has no MOS.
        ScoreTableError: another run is scoring it.
        ModelNotFoundError, CheckpointError: the model can't be read.
    """
    from qualivision import score_run
    from qualivision.batch import Asked, Here

    path = labels_path(data, SPLIT)
    rated = read_labels(path, require_mos=False)
    if not has_mos(rated):
        raise MonitorError(f"{path}: has no MOS, so no model was judged on it, and there is no reference")
    names = rated["video_name"].tolist()
    drawn = heapq.nsmallest(rules.clips, zip((_lot(rules.seed, name) for name in names), names, strict=True))
    prompt_of = dict(zip(names, rated["Prompt"], strict=True))
    videos = {name: Asked(prompt_of[name], str(videos_dir(data, SPLIT) / name)) for _, name in drawn}
    complaints: list[str] = []

    here = Here(model, limits)
    score_run.run(table, videos, here, model=model, advance=advance, complain=complaints.append)
    found = list(read_table(table))
    places = {_standing(row): Path(videos[row["video_name"]].path) for row in found}
    return Window(_clips(found, places), len(names), tuple(complaints))


def find(rows: Iterable[Row], folders: Iterable[Path]) -> dict[Standing, Path]:
    """Where the videos of rows lie, as far as they are what was scored.

    Args:
        rows: of a table of scores.
        folders: looked through at any depth; `video_name` is the path below one of them, or the file's name alone.
    Raises:
        MonitorError: no such folder.
        OSError: one can't be read.
    """
    wanted: dict[str, set[tuple[int, int]]] = {}
    for row in rows:
        wanted.setdefault(row["video_name"], set()).add((row["size"], row["mtime_ns"]))
    found: dict[Standing, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise MonitorError(f"{folder}: no such folder of videos; see --videos, or monitor.videos of params.yaml")
        for at, below, files in os.walk(folder, onerror=_refuse):
            below.sort()
            for file in sorted(files):
                path = Path(at, file)
                for name in {file, os.path.relpath(path, folder)} & wanted.keys():
                    if (stands := _stand(path)) in wanted[name]:
                        found.setdefault((name, *stands), path)
    return found


def _rows(tables: Sequence[Path], notes: list[str]) -> Iterator[Row]:
    """The rows of all tables; of a folder, what is no table of scores is told and left out."""
    for given in tables:
        if given.suffix in SUFFIXES and not given.is_dir():
            if not given.is_file():
                raise MonitorError(f"{given}: no such table of scores; {HOW_TO_SCORE}")
            yield from read_table(given)
            continue
        files = sorted(path for path in given.rglob("*") if path.suffix in SUFFIXES and not path.name.startswith("."))
        if not files:
            notes.append(f"{given}: holds no table of scores; {HOW_TO_SCORE}")
        for path in files:
            try:
                yield from read_table(path)
            except ScoreTableError as err:
                notes.append(f"left out: {err}")


def _clips(rows: Sequence[Row], places: dict[Standing, Path]) -> pd.DataFrame:
    import pandas as pd

    def clip(row: Row) -> dict[str, Any]:
        prompt = row["Prompt"] or ""
        return {
            "video_name": row["video_name"],
            "Prompt": prompt,
            "path": str(places.get(_standing(row), "")),
            GROUP: prompt_key(prompt),
            WORDS.name: float(words(prompt)),
            UNSCORED.name: float(bool(row["error"])),
            **{dimension: row[column] for dimension, column in COLUMN_OF.items()},
        }

    columns = ["video_name", "Prompt", "path", GROUP, WORDS.name, UNSCORED.name, *COLUMN_OF]
    table = pd.DataFrame([clip(row) for row in rows], columns=columns)
    return table.astype(dict.fromkeys((WORDS.name, UNSCORED.name, *COLUMN_OF), "float64"))


def _lot(seed: int, *what: object) -> int:
    """Where a clip comes in the draw: by chance, but the same tomorrow, so that a new clip replaces few others."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, (seed, *what))).encode()).digest()[:12], "big")


def _standing(row: Row) -> Standing:
    return row["video_name"], row["size"], row["mtime_ns"]


def _stand(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:  # a link to nothing, or gone by now
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _refuse(err: OSError) -> None:
    raise err


def first(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
