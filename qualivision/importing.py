"""A release's label tables, turned into our layout: columns named, bad rows dropped with a reason, split by prompt.

Owns what columns may be called elsewhere, which rows are dropped, and how prompts are dealt to the splits. The layout
is `labels.py`'s; whether what was written is fit to learn from, `validation` says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qualivision.errors import QualiVisionError
from qualivision.labels import (
    DIMENSIONS,
    MOS_COLUMNS,
    MOS_MAX,
    MOS_MIN,
    SPLITS,
    LabelError,
    generator_of,
    labels_path,
    prompt_key,
    videos_dir,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd

    from qualivision.progress import Advance

ALIASES: Final = {
    "video_name": ("video", "videoname", "name", "file", "filename", "videoid", "path", "videopath"),
    "Prompt": ("prompt", "text", "caption", "textprompt", "description"),
    "generator": ("generator", "model", "source", "method"),
    **{f"{name}_MOS": (f"{name.lower()}mos", name.lower(), f"{name.lower()}score") for name in DIMENSIONS},
}
"""What our columns are called elsewhere, in small letters and digits alone."""

EXAMPLES = 5


class TablesError(QualiVisionError):
    """Tables that can't be imported: says which, and the way out."""


@dataclass(frozen=True)
class Dropped:
    """A row that was not imported."""

    table: str
    line: int
    video_name: str
    reason: str


@dataclass(frozen=True)
class Imported:
    """What came of an import."""

    rows: dict[str, int]
    prompts: dict[str, int]
    balance: float
    """The largest Kolmogorov-Smirnov distance of Overall between two splits, 0 to 1."""
    dropped: tuple[Dropped, ...]
    leak: str | None
    """Of a random row split: why it leaks, with figures."""

    def as_text(self) -> str:
        """For a terminal."""
        lines = [
            f"{split}: {self.rows[split]} clips of {self.prompts[split]} prompts"
            for split in SPLITS
            if split in self.rows
        ]
        lines.append(f"Overall differs between splits by at most {self.balance:.3f} (Kolmogorov-Smirnov)")
        for reason, count in Counter(row.reason for row in self.dropped).most_common():
            shown = [row for row in self.dropped if row.reason == reason][:EXAMPLES]
            named = ", ".join(f"{row.table}:{row.line} {row.video_name}".rstrip() for row in shown)
            lines.append(f"dropped {count}, {reason}: {named}" + (", ..." if count > len(shown) else ""))
        return "\n".join(lines)

    def as_json(self) -> str:
        """The whole of it."""
        whole = {
            "rows": self.rows,
            "prompts": self.prompts,
            "largest_ks_distance_of_overall": self.balance,
            "leak": self.leak,
            "dropped": [vars(row) for row in self.dropped],
        }
        return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def import_labels(
    tables: list[Path],
    out: Path,
    *,
    advance: Advance,
    videos: Path | None = None,
    columns: Mapping[str, str] | None = None,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    random_rows: bool = False,
) -> Imported:
    """Turn label tables into a data folder, which appears only when all of it is there.

    Args:
        tables: CSV or TSV files with a name, a prompt and five MOS a row.
        out: the data folder to write; missing or empty.
        advance: told how many videos are placed.
        videos: a folder that holds the videos, at any depth; they are hard-linked, on another file system copied.
            Without it the tables alone are written.
        columns: {our name: theirs}, where `ALIASES` does not know theirs.
        shares: of the prompts, to train, val and test.
        seed: of the split; equal tables and seeds split alike, in whatever order the rows come.
        random_rows: split by rows and not by prompt, which leaks.
    Raises:
        LabelError: a table that can't be read or lacks a column.
        TablesError: `out` is taken, no row is left, two videos of one name, or no room for a copy.
    """
    import pandas as pd

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TablesError(f"{out}: is there and not empty; give another folder by --out, or remove it")
    files = _files(videos) if videos else None
    dropped: list[Dropped] = []
    rows = pd.concat([_read(table, columns or {}) for table in tables], ignore_index=True)
    rows = _usable(rows, files, dropped)
    if rows.empty:
        raise TablesError(f"no row of {', '.join(map(str, tables))} can be used: {_first(dropped)}")
    names = _by_row(rows, shares, seed) if random_rows else _by_prompt(rows, shares, seed)
    splits = {split: rows[names == split] for split in SPLITS}
    if empty := [split for split in SPLITS if splits[split].empty]:
        raise TablesError(f"{len(rows)} rows are too few: nothing is left for {', '.join(empty)}; give other --shares")
    _write(splits, out, files, advance)
    return Imported(
        rows={split: len(part) for split, part in splits.items()},
        prompts={split: part["Prompt"].map(prompt_key).nunique() for split, part in splits.items()},
        balance=_balance(splits),
        dropped=tuple(dropped),
        leak=_leak(splits) if random_rows else None,
    )


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def our_columns(
    path: Path,
    there: list[str],
    given: Mapping[str, str],
    *,
    wanted: Iterable[str] = ALIASES,
    way_out: str = "--column {ours}=NAME",
) -> dict[str, str]:
    """What the columns of a table are called here: {their name: ours}; those that are only kept are not in it.

    Args:
        path: of the table, for messages.
        there: its columns.
        given: {our name: theirs}, where `ALIASES` does not know theirs.
        wanted: our names that are looked for; all but `generator` have to be there.
        way_out: how a person says which column is which, with `{ours}` for our name.
    Raises:
        LabelError: a column that is needed is missing, or two may be it.
    """
    renamed: dict[str, str] = {}
    for ours in wanted:
        known = ALIASES[ours]
        theirs = [given[ours]] if ours in given else [c for c in there if c == ours]
        theirs = theirs or [c for c in there if _plain(c) == _plain(ours) or _plain(c) in known]
        say = way_out.format(ours=ours)
        if len(theirs) > 1:
            raise LabelError(f"{path}: {' and '.join(theirs)} may both be {ours}; say which by {say}")
        if theirs and theirs[0] not in there:
            raise LabelError(f"{path}: has no column {theirs[0]}; it has {', '.join(there)}")
        if theirs:
            renamed[theirs[0]] = ours
        elif ours != "generator":
            raise LabelError(f"{path}: has no column for {ours}; it has {', '.join(there)}; say which by {say}")
    return renamed


def _read(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """A table as text cells under our names, with `_table` and `_line` to say where a row stands."""
    import pandas as pd

    try:
        separator = "\t" if path.suffix == ".tsv" else ","
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as err:
        raise LabelError(f"{path}: can't be read as a UTF-8 table: {str(err).strip()}") from err
    renamed = our_columns(path, list(table.columns), columns)
    table = table.rename(columns=renamed)
    return table.assign(_table=path.name, _line=range(2, len(table) + 2))


def _files(folder: Path) -> dict[str, Path]:
    """Every file below a folder, by name and, where no other has it, by name without ending."""
    if not folder.is_dir():
        raise TablesError(f"{folder}: no such folder of videos")
    found: dict[str, Path] = {}
    stems: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name in found:
            raise TablesError(f"{found[path.name]} and {path} have one name; rename one, and its row")
        found[path.name] = path
        stems.setdefault(path.stem, []).append(path)
    return {stem: paths[0] for stem, paths in stems.items() if len(paths) == 1} | found


def _usable(rows: pd.DataFrame, files: Mapping[str, Path] | None, dropped: list[Dropped]) -> pd.DataFrame:
    """The rows that can be learned from; a `Dropped` for each of the others."""
    import pandas as pd

    mos = rows[list(MOS_COLUMNS)].apply(lambda column: pd.to_numeric(column.str.strip(), errors="coerce"))
    names = rows["video_name"].str.strip().map(lambda name: name.replace("\\", "/").rsplit("/", 1)[-1])
    if files is not None:
        names = names.map(lambda name: files[name].name if name in files else name)
    reasons = pd.Series("", index=rows.index)

    def drop(bad: pd.Series[Any], reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    drop(names == "", "no video is named")
    drop(rows["Prompt"].str.strip() == "", "no prompt")
    for column in MOS_COLUMNS:
        blank = rows[column].str.strip().str.lower().isin(["", "na", "nan", "none", "null"])
        drop(blank, f"{column} is missing")
        drop(mos[column].isna(), f"{column} is no number")
        drop(~mos[column].between(MOS_MIN, MOS_MAX), f"{column} is not within {MOS_MIN:g} and {MOS_MAX:g}")
    if files is not None:
        drop(~names.isin(files), "its video is not in the folder")
    good = reasons == ""
    keys = names.where(good)
    again = good & keys.duplicated()
    content = pd.concat([keys, rows["Prompt"].map(prompt_key), mos], axis=1)
    drop(again & content.duplicated(), "the same row came before")
    drop(again, "its video came before, with another prompt or MOS")
    bad = reasons != ""
    where = zip(rows.loc[bad, "_table"], rows.loc[bad, "_line"], names[bad], reasons[bad], strict=True)
    dropped += [Dropped(table, int(line), name, reason) for table, line, name, reason in where]
    kept = rows.assign(video_name=names, **{column: mos[column] for column in MOS_COLUMNS})
    return kept[reasons == ""].drop(columns=["_table", "_line"])


def _first(dropped: list[Dropped]) -> str:
    return f"{dropped[0].table}:{dropped[0].line}: {dropped[0].reason}" if dropped else "there is none"


def _by_prompt(rows: pd.DataFrame, shares: tuple[float, float, float], seed: int) -> pd.Series[str]:
    """The split of each row: all clips of a prompt in one.

    Prompts are put in order, those of the same generators together and by mean Overall, and dealt one by one to the
    split that lacks most: so each split gets its share of every generator and of every stretch of Overall. The seed
    decides between prompts of equal rank, and where the dealing starts.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    keys = rows["Prompt"].map(prompt_key)
    generators = rows["generator"] if "generator" in rows else rows["video_name"].map(generator_of)
    of_prompt = rows.assign(_generator=generators).groupby(keys, sort=True)
    order = of_prompt["_generator"].agg(lambda names: " ".join(sorted(map(str, names)))).to_frame("generators")
    order["overall"] = of_prompt["Overall_MOS"].mean().round(1)
    order["chance"] = rng.random(len(order))
    given = dict.fromkeys(order.index, "")
    lacks = np.asarray(shares) * rng.random(len(shares))
    for key in order.sort_values(["generators", "overall", "chance"]).index:
        lacks += shares
        place = int(lacks.argmax())
        lacks[place] -= 1
        given[key] = SPLITS[place]
    return keys.map(given)


def _by_row(rows: pd.DataFrame, shares: tuple[float, float, float], seed: int) -> pd.Series[str]:
    import numpy as np
    import pandas as pd

    order = rows.sort_values("video_name").index
    ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
    names = pd.Series(SPLITS[-1], index=rows.index)
    shuffled = np.random.default_rng(seed).permutation(order)
    names[shuffled[: ends[0]]] = SPLITS[0]
    names[shuffled[ends[0] : ends[1]]] = SPLITS[1]
    return names


def _balance(splits: Mapping[str, pd.DataFrame]) -> float:
    from itertools import combinations

    from scipy.stats import ks_2samp

    pairs = combinations([part["Overall_MOS"] for part in splits.values()], 2)
    return max(float(ks_2samp(one, other).statistic) for one, other in pairs)


def _leak(splits: Mapping[str, pd.DataFrame]) -> str:
    """Why a random row split leaks, on this table."""
    import pandas as pd

    from qualivision.evaluation.metrics import agreement, shown

    keys = {split: part["Prompt"].map(prompt_key) for split, part in splits.items()}
    places = pd.concat([pd.Series(list(set(keys[split]))) for split in SPLITS]).value_counts()
    known = splits["train"]["Overall_MOS"].groupby(keys["train"]).mean()
    guess = keys["test"].map(known)
    there = guess.notna()
    score = agreement(guess[there], splits["test"].loc[there, "Overall_MOS"]).vquala if there.sum() > 2 else None
    return (
        f"A random row split leaks: {(places > 1).sum()} of {len(places)} prompts stand in more than one split. "
        f"With no video and no model, the mean of a prompt's training clips scores {shown(score)} on Overall of the "
        "test clips (mean of SROCC and PLCC): a model is praised for knowing prompts by heart. Leave out --random-rows."
    )


def _write(splits: Mapping[str, pd.DataFrame], out: Path, files: Mapping[str, Path] | None, advance: Advance) -> None:
    """Write the data folder under another name, and rename it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        first = ["video_name", "Prompt", *MOS_COLUMNS]
        for split, part in splits.items():
            videos_dir(making, split).mkdir(parents=True)
            labels_path(making, split).parent.mkdir(parents=True, exist_ok=True)
            columns = [*first, *(column for column in part.columns if column not in first)]
            part[columns].to_csv(labels_path(making, split), index=False, float_format="%.10g", lineterminator="\n")
        if files is not None:
            jobs = [
                (files[name], videos_dir(making, split) / name)
                for split in SPLITS
                for name in splits[split]["video_name"]
            ]
            _place(jobs, making, advance)
        making.chmod(0o755)
        if out.exists():
            out.rmdir()
        making.rename(out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _place(jobs: Iterable[tuple[Path, Path]], folder: Path, advance: Advance) -> None:
    """Link each video, or copy it where a link can't be."""
    jobs = list(jobs)
    linked = jobs and jobs[0][0].stat().st_dev == folder.stat().st_dev
    if not linked:
        need, free = sum(source.stat().st_size for source, _ in jobs), shutil.disk_usage(folder).free
        if need > free:
            raise TablesError(f"{folder.parent}: {need / 1e9:.1f} GB of videos to copy, {free / 1e9:.1f} GB free")
    advance(0, len(jobs))
    for done, (source, target) in enumerate(jobs, start=1):
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
        advance(done, len(jobs))
