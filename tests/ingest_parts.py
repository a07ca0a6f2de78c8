"""Small parts for the tests of the inbox: a data set, batches, and runs over them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from qualivision import ingesting
from qualivision.ingesting import Ingested
from qualivision.labels import MOS_COLUMNS, SPLITS, labels_path, ratings_path, read_labels, videos_dir
from qualivision.settings import Settings, load_settings

COLUMNS = ["video_name", "Prompt", *MOS_COLUMNS]
PARAMS = Path(__file__).parents[1] / "params.yaml"

Cells = dict[str, object]


def row(name: str, prompt: str, **cells: object) -> Cells:
    """A row of a label table, every MOS 3 unless given."""
    return {"video_name": name, "Prompt": prompt, **dict.fromkeys(MOS_COLUMNS, 3), **cells}


def table(rows: list[Cells], separator: str = ",") -> str:
    """Rows as a table; columns in the order in which they come."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for one in rows for name in one))
    writer = csv.DictWriter(text, columns, lineterminator="\n", delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def make_data(folder: Path, video: Callable[[Path], object] | None = None) -> Path:
    """A data set with two clips of one prompt a split ("known in train", ...)."""
    for split in SPLITS:
        labels_path(folder, split).parent.mkdir(parents=True, exist_ok=True)
        videos_dir(folder, split).mkdir(parents=True)
        names = [f"A_{split}.mp4", f"B_{split}.mp4"]
        labels_path(folder, split).write_text(table([row(name, f"known in {split}") for name in names]))
        for name in names:
            path = videos_dir(folder, split) / name
            path.write_bytes(name.encode()) if video is None else video(path)
    return folder


def make_batch(folder: Path, rows: list[Cells], *, below: str = "videos", labels: str = "labels.csv") -> Path:
    """A batch whose videos hold their own names."""
    (folder / below).mkdir(parents=True, exist_ok=True)
    for one in rows:
        (folder / below / str(one["video_name"])).write_bytes(f"content of {one['video_name']}".encode())
    (folder / labels).write_text(table(rows, "\t" if labels.endswith("tsv") else ","))
    return folder


def settings_with(**ingest: object) -> Settings:
    """The repository's settings, with nothing to wait for."""
    values = load_settings(PARAMS)
    section = values.ingest.model_copy(update={"settle_seconds": 0.0, **ingest})
    return values.model_copy(update={"ingest": section})


def run(folder: Path, url: str | None = None, **ingest: object) -> Ingested:
    """Take in `folder`/inbox, into `folder`/data."""
    return ingesting.ingest(
        settings_with(**ingest),
        folder / "data",
        folder / "reports",
        url=url or str(folder / "inbox"),
        advance=lambda done, total: None,
        busy_wait_seconds=0.0,
    )


def names_in(folder: Path) -> dict[str, list[str]]:
    """The clips of each split."""
    return {split: list(read_labels(labels_path(folder / "data", split))["video_name"]) for split in SPLITS}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_ratings(folder: Path, split: str, rows: list[Cells]) -> None:
    """The single ratings of a split of the data set."""
    ratings_path(folder / "data", split).write_text(table(rows))
