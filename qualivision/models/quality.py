"""The one shape of every model: video encoder + fusion with the prompt + MOS head.

Contracts (B clips, T frames, N tokens, D channels, Dt text channels):
- an encoder has `stem(frames) -> Activations` (frozen: what training never changes, cached by the `encode` stage) and
  `tokens(Activations) -> (B, N, D)` (trained);
- a fusion takes tokens (B, N, D) and text (B, Dt) to `Fused`;
- `QualityModel.forward(frames, text)` equals `from_stem(stem(frames), text)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from qualivision.labels import DIMENSIONS, MOS_MAX, MOS_MIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Activations = dict[str, Tensor]
    """The output of a frozen stem; the first axis of every tensor is the clip."""

ASPECTS = DIMENSIONS[:4]
"""What the fusion asks of a video. Overall is made of them."""
ALIGNMENT = ASPECTS.index("Alignment")


def frames_to_input(frames: npt.NDArray[np.uint8]) -> Tensor:
    """One clip as the frame cache holds it, (T, H, W, 3) uint8, to a batch of one, (1, 3, T, H, W) float in [0, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 255


class Fused(NamedTuple):
    """What a fusion gives: one vector for each aspect, and how much each matters for this prompt."""

    aspects: Tensor
    """(B, 4, D), in the order of `ASPECTS`."""
    weights: Tensor
    """(B, 4), each row sums to 1."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of a batch of clips."""

    mos: Tensor
    """(B, 5) float, MOS units, between 1 and 5, in the order of `DIMENSIONS`."""
    aspect_weights: Tensor
    """(B, 4), in the order of `ASPECTS`: what share each has in Overall, from the prompt; rows sum to 1."""


class Encoder(nn.Module, ABC):
    """A video encoder: a frozen stem, and what is trained on top of it."""

    @abstractmethod
    def stem(self, frames: Tensor) -> Activations:
        """The frozen part: (B, 3, T, H, W) float in [0, 1] to activations."""

    @abstractmethod
    def fit(self, clips: Iterable[Activations]) -> None:
        """Measure what depends on the training clips (each without a batch axis), before training."""

    @abstractmethod
    def tokens(self, activations: Activations) -> Tensor:
        """The trained part: activations to (B, N, D)."""


class Fusion(nn.Module, ABC):
    """What brings a video and a prompt together."""

    @abstractmethod
    def forward(self, tokens: Tensor, text: Tensor) -> Fused:
        """Tokens (B, N, D) and text (B, Dt), row by row."""

    @abstractmethod
    def all_pairs(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Every video with every prompt: (B, N, D) and (P, Dt) to aspects (B, P, 4, D)."""


class MosHead(nn.Module):
    """Aspect vectors to five MOS, bounded to [1, 5] by a sigmoid.

    Overall is its own rating: the weighted sum of the aspects' logits, corrected by a network on the weighted sum of
    their vectors and by one on the logits, which sees when one of them is much worse than the others.

    Alignment is learned from every clip with every prompt, where hardly anything fits, and is asked for a clip with its
    own, where most does: the two share one logit, but a clip's own prompt has a scale and an offset of its own.

    Args:
        width: channels D of an aspect vector.
        dropout: share of channels dropped while training.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.readouts = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Dropout(dropout),
                nn.Linear(width, width // 2),
                nn.GELU(),
                nn.Linear(width // 2, 1),
            )
            for _ in DIMENSIONS
        )
        self.correction = nn.Sequential(nn.Linear(len(ASPECTS), 16), nn.GELU(), nn.Linear(16, 1))
        self.own_scale = nn.Parameter(torch.ones(()))
        self.own_offset = nn.Parameter(torch.zeros(()))

    def forward(self, fused: Fused) -> Tensor:
        """(B, 5) MOS."""
        each = [self.readouts[place](fused.aspects[:, place])[:, 0] for place in range(len(ASPECTS))]
        each[ALIGNMENT] = each[ALIGNMENT] * self.own_scale + self.own_offset
        logits = torch.stack(each, 1)
        weights = fused.weights
        mixed = (weights.unsqueeze(-1) * fused.aspects).sum(1, keepdim=True)
        overall = (weights * logits).sum(1, keepdim=True) + self.readouts[-1](mixed)[:, 0] + self.correction(logits)
        return _bounded(torch.cat((logits, overall), 1))

    def alignment(self, aspects: Tensor) -> Tensor:
        """How well any clip fits any prompt, from aspects (..., 4, D): (...) MOS, without the own prompt's scale."""
        return _bounded(self.readouts[ALIGNMENT](aspects[..., ALIGNMENT, :])[..., 0])


def _bounded(logits: Tensor) -> Tensor:
    return MOS_MIN + (MOS_MAX - MOS_MIN) * torch.sigmoid(logits)


class QualityModel(nn.Module):
    """A video encoder, a fusion and the MOS head.

    Args:
        encoder: an `Encoder`.
        fusion: a `Fusion` of the same width.
        head: the `MosHead`.
    """

    def __init__(self, encoder: Encoder, fusion: Fusion, head: MosHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.fusion = fusion
        self.head = head

    def forward(self, frames: Tensor, text: Tensor) -> Prediction:
        """Score clips.

        Args:
            frames: (B, 3, T, H, W) float in [0, 1], RGB.
            text: (B, Dt) prompt embeddings.
        """
        return self.from_stem(self.stem(frames), text)

    def stem(self, frames: Tensor) -> Activations:
        """The frozen part of the encoder, without a gradient."""
        with torch.no_grad():
            return self.encoder.stem(frames)

    def from_stem(self, activations: Activations, text: Tensor) -> Prediction:
        """Score clips from their stem's activations and (B, Dt) prompt embeddings."""
        return self.from_tokens(self.encoder.tokens(activations), text)

    def from_tokens(self, tokens: Tensor, text: Tensor) -> Prediction:
        """Score clips from their encoder's tokens (B, N, D) and (B, Dt) prompt embeddings."""
        fused: Fused = self.fusion(tokens, text)
        return Prediction(mos=self.head(fused), aspect_weights=fused.weights)

    def alignment_of_all_pairs(self, tokens: Tensor, text: Tensor) -> Tensor:
        """The Alignment MOS of every clip with every prompt: (B, N, D) and (P, Dt) to (B, P)."""
        return self.head.alignment(self.fusion.all_pairs(tokens, text))
