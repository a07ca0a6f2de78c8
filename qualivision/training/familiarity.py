"""What a trained model is made to know of its own depth: how the clips look that it learned from.

Owns whose content is measured; how, is `models/familiarity.py`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from qualivision.models.familiarity import drawn

if TYPE_CHECKING:
    from torch import Tensor

    from qualivision.models.quality import QualityModel
    from qualivision.training.data import ClipSet

MOST_CLIPS: Final = 2000
"""Training clips that are looked at: more say little more, and a large encoder takes its time."""


def fit_familiarity(model: QualityModel, train: ClipSet, held: ClipSet, *, batch_size: int) -> None:
    """Measure the training clips, and what is far from them by clips of their kind that were held out.

    Args:
        model: with the weights that are kept, for its content is what it has learned to see; where it is, it computes.
        train: what it was trained on; of many clips some, always the same.
        held: the val split: its prompts are no training clip's.
        batch_size: clips at once.
    """
    every = list(range(len(held)))
    few = drawn(len(train), MOST_CLIPS).tolist()
    model.familiarity.fit(content(model, train, few, batch_size), content(model, held, every, batch_size))
    device = model.prompts.scale.device
    model.prompts.fit(prompts(model, train, device), prompts(model, held, device))


@torch.no_grad()
def prompts(model: QualityModel, clips: ClipSet, device: torch.device) -> Tensor:
    """The embeddings of a split's prompts, each once, and of those without a clip: (P, Dt) float32 on the CPU."""
    rows = list({prompt: row for row, prompt in enumerate(clips.prompts)}.values())
    own = model.embed([clips.prompts[row] for row in rows], clips.text[rows].to(device))
    return torch.cat((own.float().cpu(), clips.others.float()))


@torch.no_grad()
def content(model: QualityModel, clips: ClipSet, rows: list[int], batch_size: int) -> Tensor:
    """What a model sees of clips, (N, C) float32 on the CPU (`Seen.content`)."""
    model.eval()
    device = model.familiarity.scale.device
    found = []
    for start in range(0, len(rows), batch_size):
        batch = clips.collate(rows[start : start + batch_size]).to(device)
        found.append(model.judges[0].see(batch.activations).content.float().cpu())
    return torch.cat(found)
