"""Stage `member`: a trained model becomes a member of the ensemble.

Beside a copy of its checkpoint lies what it says of val, which the weights are fitted to, and of test, from its own
caches. So the ensemble depends on its members alone, whatever each of them reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qualivision.cache import write_atomically
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS
from qualivision.prompts import PromptCache
from qualivision.settings import ENSEMBLE, load_settings
from qualivision.stages import places
from qualivision.stages.encode import activations_cache

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray


class Said(NamedTuple):
    """What members say of clips."""

    mos: NDArray[np.float64]
    """(M, N, 5), in the order of `DIMENSIONS`."""
    distance: NDArray[np.float64]
    """(M, N) from the clips that each was trained on."""


class MemberError(QualiVisionError):
    """What a member says is not there, or not of the clips that it shall be held against: says how to make it."""


def run(model: str) -> str:
    """Copy the checkpoint and write what the model says.

    Raises:
        SettingsError: the model is no member.
        CheckpointError, LabelError, CacheError
    """
    import pandas as pd

    from qualivision.training.checkpoint import copy_member, load_checkpoint
    from qualivision.training.data import ClipSet
    from qualivision.training.loop import predict_with_distance

    settings = load_settings().member(model)
    embeddings = PromptCache(places.prompts_dir(model), settings.text.encoder).read()
    stems = activations_cache(model, settings.network)
    said = _said(model)
    said.unlink(missing_ok=True)  # it comes last: whatever is killed in between, it is what this checkpoint says
    copied = copy_member(places.checkpoint_dir(ENSEMBLE), places.checkpoint_dir(model))
    scored, _ = load_checkpoint(copied, with_stem=False)
    tables = []
    for split in ("val", "test"):
        clips = ClipSet(places.DATA, split, stems, embeddings)
        mos, distance = predict_with_distance(scored, clips, batch_size=settings.train.batch_size)
        table = pd.DataFrame(mos, columns=list(DIMENSIONS)).assign(distance=distance)
        table.insert(0, "video_name", clips.table["video_name"].to_numpy())
        table.insert(0, "split", split)
        tables.append(table)
    write_atomically(said, pd.concat(tables).to_csv(index=False, lineterminator="\n", na_rep="nan").encode())
    return f"member {model}: {len(tables[0])} clips of val and {len(tables[1])} of test scored"


def said_of(table: pd.DataFrame, split: str, models: Iterable[str]) -> Said:
    """What members say of the clips of a label table.

    Raises:
        MemberError: one has said nothing, or something about other clips.
    """
    import pandas as pd

    found = []
    for model in models:
        path = _said(model)
        again = f"`qualivision member {model}` writes it"
        try:
            said = pd.read_csv(path, float_precision="round_trip", dtype={"video_name": str}, keep_default_na=False)
            said = said[said["split"] == split]
            values = said[[*DIMENSIONS, "distance"]].to_numpy(np.float64)
        except FileNotFoundError as err:
            raise MemberError(f"{path}: no such file; {again}") from err
        except (ValueError, KeyError) as err:
            raise MemberError(f"{path}: can't be read: {err}; {again}") from err
        if said["video_name"].tolist() != table["video_name"].tolist():
            raise MemberError(f"{path}: is not about the clips that {split} has now; {again}")
        found.append(values)
    both = np.stack(found)
    return Said(both[..., :-1], both[..., -1])


def _said(model: str) -> Path:
    return places.member_dir(model) / "predictions.csv"
