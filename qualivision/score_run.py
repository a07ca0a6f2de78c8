"""A run that makes a table of scores: what is asked for, what is there already, and what is left to do.

Owns what a row says, when it is current, and the way from a plan to a finished table; `qualivision score --out` and the
flow `score-batch` share it. Who scores is handed in: `batch.Here`, or a cluster. The file is `score_table.py`'s.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision.batch import hopeless
from qualivision.depth import UNLIKE
from qualivision.evaluation.metrics import PREDICTED_COLUMNS
from qualivision.labels import DIMENSIONS
from qualivision.score_table import NUMBERS, open_table
from qualivision.scoring import Scores
from qualivision.video import VideoError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from qualivision.batch import Asked, Found, Judging
    from qualivision.progress import Advance
    from qualivision.score_table import Row, ScoreTable

    Stand = tuple[int | None, int | None]

SCORES = Path("scores")
"""Where tables lie that nobody gave a place."""

_DECIMALS = 4
"""Of a score in a table, as `--json` prints it: the last bits of a float depend on what shared its batch."""


@dataclass(frozen=True)
class Done:
    """What a run made of a table: its rows, how many of them were there already, how many have no scores, and how many
    of those that it scored are unlike what the model was trained on."""

    rows: int
    kept: int
    failed: int
    unfamiliar: int
    seconds: float

    @property
    def scored(self) -> int:
        """How many rows have scores of this run."""
        return self.rows - self.kept - self.failed

    def __str__(self) -> str:
        parts = [f"{self.rows} rows", f"{self.scored} scored"]
        if self.kept:
            parts.append(f"{self.kept} were there")
        if self.failed:
            parts.append(f"{self.failed} can't be scored")
        if self.unfamiliar:
            parts.append(f"{self.unfamiliar} {UNLIKE}")
        rate = f" ({self.scored / self.seconds:.1f} clips/s)" if self.scored and self.seconds else ""
        return ", ".join(parts) + rate


def default_table(folder: Path) -> Path:
    """Where the table of a folder lies: `data/test/videos` has `scores/data__test__videos.parquet`.

    All of the path counts, for folders in different places may have one name.
    """
    path = folder.absolute()
    below = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.relative_to(path.anchor)
    return SCORES / f"{'__'.join(below.parts) or path.name or 'root'}.parquet"


def run(
    out: Path,
    videos: dict[str, Asked],
    judging: Judging,
    *,
    model: str,
    overwrite: bool = False,
    advance: Advance,
    complain: Callable[[str], None],
) -> Done:
    """Bring the table at `out` up to date.

    Args:
        out: .parquet, .csv or .jsonl.
        videos: what shall be in it.
        judging: scores; is called only where there is something to score.
        model: the label of the model (`Located.label`), for the rows.
        overwrite: make every row again.
        advance: told of the progress.
        complain: see `fill`.
    Raises:
        ScoreTableError: another run is writing the table, or it is another model's, or no table of scores.
        OSError: the disk is full; what was scored is kept, in the journal.
    """
    with open_table(out, model, overwrite=overwrite) as table:
        return fill(table, videos, judging, model=model, advance=advance, complain=complain)


def fill(
    table: ScoreTable,
    videos: dict[str, Asked],
    judging: Judging,
    *,
    model: str,
    advance: Advance,
    complain: Callable[[str], None],
) -> Done:
    """Score the videos whose rows the table lacks, or has from another prompt or file, and finish it.

    Args:
        table: where the rows go.
        videos: what shall be in it; other rows are left out.
        judging: scores; is called only where there is something to score.
        model: its name, for the rows.
        advance: told of the progress.
        complain: told of each file that can't be scored. What lies nowhere is in the plan's notes.
    Raises:
        OSError: the disk is full; what was scored is kept, in the journal.
    """
    kept = table.keep(lambda row: _is_current(row, videos.get(row["video_name"])))
    todo = [name for name in sorted(videos) if name not in table]
    known = {name: err for name in todo if (err := hopeless(name, videos[name])) is not None}
    asked = _Asked({name: videos[name] for name in todo if name not in known})
    failed = unfamiliar = 0
    start = time.monotonic()
    advance(0, len(todo))
    scoring = judging(asked) if len(asked) else ()
    for done, (name, found) in enumerate(chain(known.items(), scoring), start=1):
        if not isinstance(found, Scores):
            failed += 1
            if not videos[name].error:
                complain(str(found))
        elif found.warning:
            unfamiliar += 1
        size, mtime_ns = asked.stand(name) if name not in known else _stand(videos[name].path)
        row = {"video_name": name, "Prompt": videos[name].prompt, "model": model, "size": size, "mtime_ns": mtime_ns}
        table.add([row | _values(found)])
        advance(done, len(todo))
    table.finish()
    return Done(len(videos), kept, failed, unfamiliar, time.monotonic() - start)


class _Asked:
    """Videos that are taken one by one, each with how its file stood then: it may change while it is being scored."""

    def __init__(self, videos: Mapping[str, Asked]) -> None:
        self._videos = videos
        self._stands: dict[str, Stand] = {}  # of the few that are under way

    def __len__(self) -> int:
        return len(self._videos)

    def __iter__(self) -> Iterator[tuple[str, Asked]]:
        for name, asked in self._videos.items():
            self._stands[name] = _stand(asked.path)
            yield name, asked

    def stand(self, name: str) -> Stand:
        """How a file stood that was taken; asked once."""
        return self._stands.pop(name)


def _is_current(row: Row, asked: Asked | None) -> bool:
    """Whether a row is what scoring again would give. One that failed is tried again."""
    if asked is None or row["error"] or asked.error or row["Prompt"] != asked.prompt:
        return False
    return _stand(asked.path) == (row["size"], row["mtime_ns"])


def _stand(path: str) -> Stand:
    try:
        found = os.stat(path)
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns


def _values(found: Found) -> dict[str, Any]:
    if isinstance(found, Scores):
        scores = {
            column: round(found[dimension], _DECIMALS)
            for column, dimension in zip(PREDICTED_COLUMNS, DIMENSIONS, strict=True)
        }
        return scores | {"distance": round(found.distance, _DECIMALS), "warning": found.warning, "error": ""}
    # The row says which video; where it lies is not the table's affair.
    cause = found.cause if isinstance(found, VideoError) else str(found)
    said = {"warning": "", "error": cause.encode("utf-8", "backslashreplace").decode()}
    return dict.fromkeys(NUMBERS, None) | said
