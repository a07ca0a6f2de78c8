"""The label table: which columns there are, where the tables of a data set lie, reading and splitting them.

Owns the layout of a data set (that of the TaobaoVD-GC release) and the names of the five dimensions. Does not
judge a table beyond what reading needs: `validation.py` finds everything that is wrong with one and reports it.

    data/train/labels/train_labels.csv   data/train/videos/*
    data/val/labels/val_labels.csv       data/val/videos/*
    data/test/test_labels.csv            data/test/videos/*       (data/test/labels/test_labels.csv is read too)

Beside a label table may lie `<split>_ratings.csv`: the single ratings behind each MOS (`Overall_1`, `Overall_2`, ...),
the latent truth where it is known (`Overall_truth`), what the prompt asks for and the clip shows (`asks`, `shows`), and
what is wrong with the clip and how much of a MOS each of that takes (`degradations`).
And `<split>_other_prompts.csv`: prompts without a clip and what they ask for (`Prompt`, `asks`), for a model to learn
from what does not fit.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

DIMENSIONS: Final = ("Traditional", "Alignment", "Aesthetic", "Temporal", "Overall")
MOS_COLUMNS: Final = tuple(f"{dimension}_MOS" for dimension in DIMENSIONS)
NO_MOS: Final = ("", "NA", "NaN", "nan")
"""What stands in a table where a rating is missing."""
MOS_MIN: Final = 1.0
MOS_MAX: Final = 5.0
SPLITS: Final = ("train", "val", "test")

# How much of a prompt each thing it asks for is, where both sides are known (the sample data; see `graded_alignment`).
ASPECT_OF_PROMPT: Final[Mapping[str, float]] = {"subject": 0.4, "scene": 0.25, "colour": 0.2, "motion": 0.15}

# The kinds of fault that may be known of a clip (the sample data), and the dimension that each lowers; in the order in
# which they are done: a scene is cluttered before it is blurred.
FAULTS: Final[Mapping[str, str]] = {
    "washed_out": "Aesthetic",
    "palette_clash": "Aesthetic",
    "clutter": "Aesthetic",
    "off_frame": "Aesthetic",
    "blur": "Traditional",
    "low_resolution": "Traditional",
    "smooth": "Traditional",
    "noise": "Traditional",
    "blocking": "Traditional",
    "compression": "Traditional",
    "underexposure": "Traditional",
    "overexposure": "Traditional",
    "freeze": "Temporal",
    "judder": "Temporal",
    "jitter": "Temporal",
    "wobble": "Temporal",
    "flicker": "Temporal",
    "melting": "Temporal",
    "morph": "Temporal",
    "shuffle": "Temporal",
    "jump": "Temporal",
}


class LabelError(QualiVisionError, ValueError):
    """A label table that can't be read: names the file and what to change."""


def labels_path(data: Path, split: str) -> Path:
    """Where the label table of a split lies; the place to write it to when there is none yet."""
    _check_split(split)
    nested = data / split / "labels" / f"{split}_labels.csv"
    flat = data / split / f"{split}_labels.csv"
    if split != "test":
        return nested
    return nested if nested.exists() and not flat.exists() else flat


def ratings_path(data: Path, split: str) -> Path:
    """Where the single ratings of a split lie, if there are any."""
    return labels_path(data, split).with_name(f"{split}_ratings.csv")


def other_prompts_path(data: Path, split: str) -> Path:
    """Where prompts without a clip lie, if there are any."""
    return labels_path(data, split).with_name(f"{split}_other_prompts.csv")


def read_other_prompts(path: Path) -> dict[str, dict[str, str]]:
    """{prompt: what it asks for, by aspect} of a table of prompts without a clip; empty when there is none.

    Raises:
        LabelError: not a CSV, a missing column, or what a prompt asks for is not JSON of aspects of `ASPECT_OF_PROMPT`.
    """
    import json

    import pandas as pd

    if not path.exists():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as err:
        raise LabelError(f"{path}: not a UTF-8 CSV table: {str(err).strip()}") from err
    if missing := [column for column in ("Prompt", "asks") if column not in table]:
        raise LabelError(f"{path}: column {', '.join(missing)} is missing")
    prompts = {}
    for prompt, asks in zip(table["Prompt"], table["asks"], strict=True):
        try:
            prompts[prompt] = json.loads(asks)
            graded_alignment(prompts[prompt], {})
            if not all(isinstance(value, str) for value in prompts[prompt].values()):
                raise TypeError("an aspect's value is no text")
        except (ValueError, TypeError, AttributeError, LookupError, ZeroDivisionError) as err:
            raise LabelError(f"{path}: {prompt!r} asks {asks}, which are not aspects of a prompt") from err
    return prompts


def videos_dir(data: Path, split: str) -> Path:
    """The folder of a split's videos."""
    _check_split(split)
    return data / split / "videos"


def read_labels(path: Path, *, require_mos: bool = True) -> pd.DataFrame:
    """Read a label table.

    Args:
        path: a CSV file with `video_name`, `Prompt` and, for a split that is learned from or evaluated on, the five
            MOS columns. More columns (generator, rater count) are kept.
        require_mos: refuse a table that lacks MOS columns. A test table may lack them: it is scored, not evaluated.
    Returns:
        The table; `video_name` and `Prompt` as text, MOS as float64 on the scale 1 to 5.
    Raises:
        LabelError: no such file, not a CSV, a missing column, a MOS that is no number.
    """
    import pandas as pd

    if not path.is_file():
        raise LabelError(f"{path}: no such label table")
    try:
        # Only an empty MOS is missing; a prompt may well be "None" or "null".
        table = pd.read_csv(
            path,
            dtype={"video_name": str, "Prompt": str},
            keep_default_na=False,
            na_values={column: list(NO_MOS) for column in MOS_COLUMNS},
            encoding="utf-8",
        )
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as err:
        raise LabelError(f"{path}: not a UTF-8 CSV table: {str(err).strip()}") from err
    if not isinstance(table.index, pd.RangeIndex):  # pandas then takes the first column for row names
        raise LabelError(f"{path}: rows have more cells than the header; put a prompt that holds a comma in quotes")
    wanted = ("video_name", "Prompt", *(MOS_COLUMNS if require_mos else ()))
    missing = [column for column in wanted if column not in table]
    if missing:
        raise LabelError(
            f"{path}: column {', '.join(missing)} is missing; the table has {', '.join(map(str, table.columns))}"
        )
    for column in MOS_COLUMNS:
        if column in table:
            try:
                table[column] = pd.to_numeric(table[column]).astype(float)
            except (ValueError, TypeError) as err:
                raise LabelError(f"{path}: {column} holds a value that is no number: {err}") from err
    return table


def has_mos(table: pd.DataFrame) -> bool:
    """Whether a table carries all five MOS columns."""
    return all(column in table for column in MOS_COLUMNS)


def generator_of(video_name: str) -> str:
    """The generator of a clip: what stands before the first underscore of its name (TaobaoVD-GC: A to E)."""
    return video_name.split("_", 1)[0] if "_" in video_name else ""


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same one, for everything that keeps a prompt in one split: neither case nor blanks."""
    return " ".join(unicodedata.normalize("NFC", prompt).split()).casefold()


def graded_alignment(asks: Mapping[str, str], shows: Mapping[str, str]) -> float:
    """How well a clip fits a prompt when it is known what the one asks for and the other shows.

    Args:
        asks: what the prompt names, by aspect (`subject`, `scene`, `colour`, `motion`); at least one of them.
        shows: what is to be seen in the clip, by aspect. An aspect that is asked for and not shown counts as missed.
    Returns:
        The alignment on the MOS scale: 1 when nothing fits, 5 when all does, each aspect by its weight.
    """
    total = sum(ASPECT_OF_PROMPT[aspect] for aspect in asks)
    met = sum(ASPECT_OF_PROMPT[aspect] for aspect, wanted in asks.items() if shows.get(aspect) == wanted)
    return MOS_MIN + (MOS_MAX - MOS_MIN) * met / total


def fault_losses(degradations: Mapping[str, Mapping[str, float]]) -> list[float]:
    """What each kind of fault takes from the dimension that it lowers, in MOS, in the order of `FAULTS`; mostly 0.

    Args:
        degradations: of each kind that a clip has, its `loss`, 0 to 4, and more that is not looked at.
    Raises:
        LookupError, TypeError, ValueError: a kind that is none of `FAULTS`, without a loss, or with no such number.
    """
    if unknown := set(degradations) - set(FAULTS):
        raise LookupError(f"no fault is named {unknown.pop()!r}")
    losses = [float(degradations[kind]["loss"]) if kind in degradations else 0.0 for kind in FAULTS]
    if not all(0 <= loss <= MOS_MAX - MOS_MIN for loss in losses):
        raise ValueError("a loss lies outside of 0 to 4")
    return losses


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise LabelError(f"no split named {split!r}; there are {', '.join(SPLITS)}")
