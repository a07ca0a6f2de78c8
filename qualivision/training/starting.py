"""Training that starts from a checkpoint: which one, whether it fits, and the pull that holds weights near it.

Owns the start and the pull. A start brings its measured values (standardisation and the like) along: its weights belong
to these, so nothing is measured anew on the training clips.

Source of the pull: L2-SP (Li, Grandvalet and Davoine, ICML 2018). Ours: it is decoupled from the gradient, as AdamW's
decay is, it also holds norms and biases, and it grows as the set shrinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qualivision.training.checkpoint import CheckpointError, checkpoint_id, members_of, read_tensors
from qualivision.training.sharding import part_like

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from qualivision.settings import ModelSettings, TrainSettings

    Floats = NDArray[np.float64]

LARGE_SET = 1000
"""From so many clips on the pull is what the settings say; below, it grows as the set shrinks."""
CHOOSING_CLIPS = 30
"""With fewer val clips none of the epochs is chosen by them: the last one is kept."""
SAME = ("frames", "text", "network")
"""What a start must share with the model that is trained, of its settings;"""
FREE = {"network": {"dropout", "checkpointing"}}
"""but these are of training alone."""


@dataclass(frozen=True)
class Start:
    """Where training starts."""

    name: str
    """`models:/NAME/VERSION`, or the checkpoint's folder as it was given"""
    id: str
    """`checkpoint_id`"""
    tensors: dict[str, Tensor]
    """`trained_tensors` of it"""
    forests: list[tuple[int, int]]
    """`ModelCard.forests` of it"""


def read_start(start: str, model: str, settings: ModelSettings, *, target: Path) -> Start:
    """Find and read the checkpoint that a training starts from.

    Args:
        start: a checkpoint folder, or an MLflow model URI. Of an ensemble the member named `model` is read.
        model: the name of what is trained.
        settings: its settings.
        target: the folder that the training writes.
    Raises:
        ModelNotFoundError: no such model.
        CheckpointError: it is damaged, is another model or has other settings, or is what the training replaces.
    """
    from qualivision.models.factory import base_hash
    from qualivision.scoring import locate

    found = locate(start)
    if found.folder.resolve() == target.resolve():
        raise CheckpointError(
            f"{model}.train.start: {start} is what training replaces; copy that folder, and start from the copy"
        )
    members = {member.name: member for member in members_of(found.folder)}
    differs = [] if model in members else [f"model: {', '.join(members)}, wanted {model}"]
    member = members.get(model, next(iter(members.values())))
    card = member.card
    for section in SAME if not differs else ():
        theirs, ours = getattr(card, section).model_dump(), getattr(settings, section).model_dump()
        differs += [
            f"{section}.{key}: {theirs.get(key)!r}, wanted {value!r}"
            for key, value in ours.items()
            if theirs.get(key) != value and key not in FREE.get(section, ())
        ]
    if not differs and card.base_hash != (here := base_hash(model, settings.network)):
        differs = [f"published weights: {card.base} with hash {card.base_hash[:12]}, wanted {here[:12]}"]
    if differs:
        raise CheckpointError(
            f"{model}.train.start: {found.name} does not fit params.yaml: {'; '.join(differs)}; make them the same, or "
            "start from another checkpoint"
        )
    return Start(found.name, checkpoint_id(member.folder), read_tensors(member.folder), card.forests)


class Pull:
    """Draws weights to where they started, after each step of the optimizer.

    Args:
        model: what is trained; not sharded yet, or sharded.
        start: its tensors as they were before training.
        strength: share of the way back at a learning rate of 1, for `LARGE_SET` clips or more.
        clips: of the training set.
    """

    def __init__(self, model: nn.Module, start: dict[str, Tensor], strength: float, *, clips: int) -> None:
        self.strength = strength * max(1.0, LARGE_SET / clips)
        self._start = {
            parameter: part_like(start[name].to(parameter.device), parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def __call__(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Draw each weight of an optimizer's groups back by its learning rate times the strength, at most all the way.

        Right after the optimizer's step, before the schedule sets the next rate.
        """
        for group in groups:
            share = min(1.0, group["lr"] * self.strength)
            for parameter in group["params"]:
                parameter.lerp_(self._start[parameter], share)


def started(settings: TrainSettings, *, steps_per_epoch: int) -> TrainSettings:
    """The settings of a training that starts from a checkpoint: the pull in place of decay, and enough steps."""
    epochs = max(settings.epochs, math.ceil(settings.start_steps / steps_per_epoch))
    return settings.model_copy(update={"weight_decay": 0.0, "epochs": epochs})


def concordance(predicted: Floats, rated: Floats) -> Floats:
    """Agreement in order, level and spread: 1 where both are equal, and less where one is on another scale.

    Args:
        predicted, rated: (N, K), N clips.
    Returns:
        (K,) between -1 and 1; 0 where both are constant.
    Source: concordance correlation coefficient (Lin, Biometrics 1989).
    """
    p, r = predicted - predicted.mean(0), rated - rated.mean(0)
    apart = (p**2).mean(0) + (r**2).mean(0) + (predicted.mean(0) - rated.mean(0)) ** 2
    found: Floats = 2 * (p * r).mean(0) / np.where(apart > 0, apart, 1.0)
    return found
