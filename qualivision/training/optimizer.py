"""AdamW with its parameter groups, and the learning rate's schedule."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

    from qualivision.settings import TrainSettings


PARTS = {"text": "^text\\.", "video": "\\.encoder\\.backbone\\.", "head": ""}
"""The parts of a model that `train.rates` speaks of, by a pattern of their parameters' names; the first that fits."""


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over what is trained, each part at its rate; norms, biases and single vectors are not decayed."""
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
            groups.setdefault((part, parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "part": part,
                "lr": settings.learning_rate * getattr(settings.rates, part),
                "weight_decay": settings.weight_decay if decayed else 0.0,
            }
            for (part, decayed), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.999),
        eps=1e-8,
    )


def make_schedule(
    optimizer: torch.optim.Optimizer, *, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine to 0; both counted in optimizer steps."""
    warmup_steps = min(warmup_steps, total_steps // 2)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
