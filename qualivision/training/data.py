"""What a model learns from: the clips of a split with their activations, prompt embeddings and ratings.

Reads the label table, the stem cache (or, for a model without one, the frame cache) and the prompt cache; a clip that
one of them lacks is an error with its name.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from qualivision.cache import CacheError
from qualivision.frames import clip_name
from qualivision.labels import (
    ASPECT_OF_PROMPT,
    FAULTS,
    MOS_COLUMNS,
    MOS_MAX,
    MOS_MIN,
    LabelError,
    fault_losses,
    graded_alignment,
    has_mos,
    labels_path,
    other_prompts_path,
    ratings_path,
    read_labels,
    read_other_prompts,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from torch import Tensor

    from qualivision.cache import Cache
    from qualivision.models.quality import Activations
    from qualivision.prompts import Embeddings

HELD_BYTES = 2 << 30
"""Up to so many bytes of activations are kept in memory; the rest is read again in each epoch."""


@dataclass
class Batch:
    """Some clips of a split; B clips, Dt text channels."""

    rows: Tensor
    """(B,) int64: which rows of the table they are"""
    names: list[str]
    prompts: list[str]
    activations: Activations
    text: Tensor
    """(B, Dt)"""
    mos: Tensor
    """(B, 5), NaN where the table has no MOS"""
    others: Tensor
    """(P, Dt): embeddings of prompts without a clip, the same in every batch"""
    own: Tensor
    """(B, B + P) bool: prompt j is the one of clip i"""
    known: Tensor
    """(B, B + P): Alignment of clip i with prompt j, where it is known; else NaN"""
    faults: Tensor
    """(B, FAULTS): MOS that each kind of fault takes from the clip, where it is known; else NaN"""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(
            self.rows.to(device),
            self.names,
            self.prompts,
            {name: value.to(device) for name, value in self.activations.items()},
            *(tensor.to(device) for tensor in (self.text, self.mos, self.others, self.own, self.known, self.faults)),
        )


class ClipSet(Dataset[int]):
    """The labelled clips of one split.

    Args:
        data: the data folder.
        split: train, val or test.
        stems: the model's stem cache, or the frame cache where it has none.
        embeddings: {prompt: vector} from the prompt cache.
    Raises:
        LabelError: the table or the ratings beside it can't be read.
        CacheError: a clip or a prompt is not in the caches.
    """

    def __init__(self, data: Path, split: str, stems: Cache, embeddings: dict[str, Embeddings]) -> None:
        self.table = read_labels(labels_path(data, split), require_mos=split != "test")
        self.stems = stems
        index = stems.index()
        clips = [clip_name(split, name) for name in self.table["video_name"]]
        for clip, prompt in zip(clips, self.table["Prompt"], strict=True):
            if clip not in index:
                raise CacheError(f"{clip}: is not in {stems.folder}; run `{stems.stage}`")
            if prompt not in embeddings:
                raise CacheError(f"{clip}: its prompt is not in the prompt cache; run `qualivision prompts`")
        self.keys = [index[clip] for clip in clips]
        self.prompts: list[str] = self.table["Prompt"].tolist()
        self.text = torch.from_numpy(np.stack([embeddings[prompt] for prompt in self.prompts]))
        self.embeddings = embeddings
        mos = self.table[list(MOS_COLUMNS)].to_numpy(np.float32) if has_mos(self.table) else None
        self.mos = torch.full((len(clips), len(MOS_COLUMNS)), torch.nan) if mos is None else torch.from_numpy(mos)
        self.asked = read_other_prompts(other_prompts_path(data, split))
        if unknown := [prompt for prompt in self.asked if prompt not in embeddings]:
            raise CacheError(f"{unknown[0]!r}: is not in the prompt cache; run `qualivision prompts`")
        self.others = torch.from_numpy(np.stack([embeddings[p] for p in self.asked])) if self.asked else self.text[:0]
        ratings = _ratings(ratings_path(data, split))
        self.content = _known_content(ratings, self.table)
        self.faults = _known_faults(ratings, self.table)
        numbers: dict[str, int] = {}
        self._asks = _coded([asks for asks, _ in self.content] + list(self.asked.values()), numbers)
        self._shows = _coded([shows for _, shows in self.content], numbers)
        self._held: dict[int, Activations] = {}
        self._held_bytes = 0

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> int:
        """The row itself: `collate` fetches whole batches."""
        return row

    def part(self, rows: list[int]) -> ClipSet:
        """Some of the clips, in the given order, as a set of its own."""
        part = copy.copy(self)
        part.table = self.table.iloc[rows].reset_index(drop=True)
        part.keys = [self.keys[row] for row in rows]
        part.prompts = [self.prompts[row] for row in rows]
        part.content = [self.content[row] for row in rows]
        part.text, part.mos, part.faults = self.text[rows], self.mos[rows], self.faults[rows]
        part._asks = torch.cat((self._asks[rows], self._asks[len(self) :]))
        part._shows = self._shows[rows]
        part._held, part._held_bytes = {}, 0
        return part

    def activations(self, row: int) -> Activations:
        """The stem's activations of one clip, without a batch axis."""
        if row in self._held:
            return self._held[row]
        arrays = self.stems.read(self.keys[row])
        size = sum(array.nbytes for array in arrays.values())
        activations = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._held_bytes + size <= HELD_BYTES:
            self._held[row] = activations
            self._held_bytes += size
        return activations

    def collate(self, rows: list[int]) -> Batch:
        """A batch of the given rows."""
        each = [self.activations(row) for row in rows]
        known, own = self.pairs(rows, rows)
        return Batch(
            rows=torch.tensor(rows),
            names=[self.table["video_name"].iloc[row] for row in rows],
            prompts=[self.prompts[row] for row in rows],
            activations={name: torch.stack([clip[name] for clip in each]) for name in each[0]},
            text=self.text[rows],
            mos=self.mos[rows],
            others=self.others,
            own=own,
            known=known,
            faults=self.faults[rows],
        )

    def pairs(self, rows: list[int], others: list[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """How clips belong together with the prompts of other clips, and with those that have none.

        Returns:
            (B, P) Alignment of each clip of `rows` with each prompt where it is known, else NaN; and (B, P) bool,
            whether the prompt is the clip's own. The prompts are those of `others`, then those without a clip.
        """
        count = len(self.keys)
        places = [*others, *range(count, count + len(self.others))]
        own = torch.zeros(len(rows), len(places), dtype=torch.bool)
        own[:, : len(others)] = torch.tensor([[self.prompts[r] == self.prompts[o] for o in others] for r in rows])
        return _graded(self._asks[places], self._shows[rows]).to(device), own.to(device)


def _coded(content: list[dict[str, str]], numbers: dict[str, int]) -> Tensor:
    """(N, aspects) int64: the number of each aspect's value, a new one if it has none yet; -1 where there is none."""
    rows = [
        [numbers.setdefault(each[aspect], len(numbers)) if aspect in each else -1 for aspect in ASPECT_OF_PROMPT]
        for each in content
    ]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(content), len(ASPECT_OF_PROMPT))


def _graded(asks: Tensor, shows: Tensor) -> Tensor:
    """`graded_alignment` of every clip with every prompt, (B, P), NaN where nothing is known of one of them."""
    weights = torch.tensor(list(ASPECT_OF_PROMPT.values()))
    asked = (asks >= 0) * weights
    met = ((asks.unsqueeze(0) == shows.unsqueeze(1)) * asked).sum(-1)
    graded = MOS_MIN + (MOS_MAX - MOS_MIN) * met / asked.sum(-1)  # 0 / 0 where a prompt's content is not known
    return torch.where((shows >= 0).any(1, keepdim=True), graded, torch.nan)


@dataclass
class _Ratings:
    """The single ratings beside a label table, as text; without rows where there is no such table."""

    path: Path
    table: pd.DataFrame

    def cells(self, *columns: str) -> Iterator[tuple[str, ...]]:
        """`video_name` and the cells of some columns, of every row that has them all."""
        wanted = ["video_name", *columns]
        if set(wanted) <= set(self.table.columns):
            yield from self.table[wanted].dropna().itertuples(index=False)


def _ratings(path: Path) -> _Ratings:
    import pandas as pd

    if not path.exists():
        return _Ratings(path, pd.DataFrame())
    columns = ("video_name", "asks", "shows", "degradations")
    table: Any = pd.read_csv(path, dtype=dict.fromkeys(columns, str), usecols=lambda column: column in columns)
    return _Ratings(path, table)


def _known_content(ratings: _Ratings, table: pd.DataFrame) -> list[tuple[dict[str, str], dict[str, str]]]:
    """For each clip what its prompt asks and what it shows, where the ratings table says so; else empty."""
    by_name = {}
    for name, asks, shows in ratings.cells("asks", "shows"):
        try:
            by_name[name] = json.loads(asks), json.loads(shows)
            if all(by_name[name]):
                graded_alignment(*by_name[name])
            _coded(list(by_name[name]), {})
        except (ValueError, TypeError, AttributeError, LookupError) as err:
            message = f"{ratings.path}: {name}: asks {asks} and shows {shows} are not aspects of a prompt"
            raise LabelError(message) from err
    return [by_name.get(name, ({}, {})) for name in table["video_name"]]


def _known_faults(ratings: _Ratings, table: pd.DataFrame) -> Tensor:
    """(N, FAULTS): what each kind of fault takes from each clip, where the ratings table says so; else NaN."""
    by_name = {}
    for name, degradations in ratings.cells("degradations"):
        try:
            by_name[name] = fault_losses(json.loads(degradations))
        except (ValueError, TypeError, AttributeError, LookupError) as err:
            message = f"{ratings.path}: {name}: degradations {degradations} are no faults with their loss ({err})"
            raise LabelError(message) from err
    unknown = [math.nan] * len(FAULTS)
    return torch.tensor([by_name.get(name, unknown) for name in table["video_name"]]).reshape(len(table), len(FAULTS))
