"""From the classes of an image network to the words of a prompt: how well a clip fits, without any training.

A prompt is a soft choice among the 1000 classes of ImageNet, by how near its embedding is to those of the classes'
names; a clip fits as far as the network sees the chosen classes. Weak on what has no class (a colour, a motion), but it
knows things that no rated clip ever showed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

CLASSES = 1000
TEMPERATURE = 0.05
_LEAST = 1e-4
"""Below this probability a class is not seen at all."""


@lru_cache(maxsize=1)
def class_phrases() -> tuple[str, ...]:
    """What is embedded for each class of ImageNet, in the order of the network's outputs."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return tuple(f"a photo of a {info.index_to_description(place)}" for place in range(CLASSES))


class Bridge(nn.Module):
    """How well clips fit prompts, by what the image network takes them for.

    Args:
        text_width: channels Dt of a prompt embedding.
    """

    names: Tensor
    centre: Tensor
    level: Tensor

    def __init__(self, text_width: int) -> None:
        super().__init__()
        self.register_buffer("names", torch.zeros(CLASSES, text_width, dtype=torch.float16))
        self.register_buffer("centre", torch.zeros(text_width))
        self.register_buffer("level", torch.tensor([0.0, 1.0]))

    def fit(self, names: Tensor, classes: Tensor, text: Tensor) -> None:
        """Take the embeddings of `class_phrases`, and measure the level.

        Args:
            names: (1000, Dt).
            classes: (N, 1000) of the training clips.
            text: (N, Dt) of their prompts.
        """
        names, classes, text = (value.to(self.centre.device) for value in (names, classes, text))
        self.centre.copy_(names.mean(0))
        self.names.copy_(functional.normalize(names - self.centre, dim=-1))
        self.level.copy_(torch.tensor([0.0, 1.0]))
        found = self(classes, text)
        self.level.copy_(torch.stack((found.mean(), found.std().clamp(min=1e-3))))

    def forward(self, classes: Tensor, text: Tensor) -> Tensor:
        """How well every clip fits every prompt.

        Args:
            classes: (B, 1000), probabilities.
            text: (P, Dt).
        Returns:
            (B, P), of mean 0 and deviation 1 over the training pairs.
        """
        near = functional.normalize(text.float() - self.centre, dim=-1) @ self.names.float().T
        chosen = (near / TEMPERATURE).softmax(-1)
        seen = (classes.float().clamp(0, 1) @ chosen.T + _LEAST).log()  # -inf would give no number
        return (seen - self.level[0]) / self.level[1]
