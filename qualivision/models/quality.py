"""The one shape of every model: video encoder + fusion and match with the prompt + MOS head.

Contracts (B clips, T frames, N tokens, D channels, Dt text channels):
- an encoder has `stem(frames) -> Activations` (frozen: what training never changes, cached by the `encode` stage) and
  `see(Activations) -> Seen` (trained). The activations of an encoder without a cached stem are the frames themselves,
  as the frame cache holds them;
- a fusion takes tokens (B, N, D) and text (B, Dt) to `Fused`;
- `QualityModel.forward(frames, text)` equals `from_stem(stem(frames), text)`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from qualivision.labels import DIMENSIONS, MOS_MAX, MOS_MIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from qualivision.models.familiarity import Familiarity
    from qualivision.models.fusion import Match

    Activations = dict[str, Tensor]
    """The output of a frozen stem; the first axis of every tensor is the clip."""

ASPECTS = DIMENSIONS[:4]
"""What the fusion asks of a video. Overall is made of them."""
ALIGNMENT = ASPECTS.index("Alignment")
ASPECT_CORRECTS_MATCH = 0.25
"""How much of Alignment's own reading is added to the match: as a whole it learns prompts by heart."""


def frames_to_input(frames: npt.NDArray[np.uint8]) -> Tensor:
    """One clip as the frame cache holds it, (T, H, W, 3) uint8, to a batch of one, (1, 3, T, H, W) float in [0, 1]."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 255


def packed(frames: Tensor) -> Activations:
    """Frames (B, 3, T, H, W) float in [0, 1] as the frame cache holds them: {"frames": (B, T, H, W, 3) uint8}."""
    return {"frames": (frames.permute(0, 2, 3, 4, 1) * 255).round().to(torch.uint8)}


def unpacked(activations: Activations, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of `packed`: (B, 3, T, H, W) in [0, 1]."""
    return activations["frames"].permute(0, 4, 1, 2, 3).to(dtype) / 255


class Seen(NamedTuple):
    """What an encoder gives of a batch of clips."""

    tokens: Tensor
    """(B, N, D): space-time tokens, for the fusion."""
    content: Tensor
    """(B, C): what each clip shows, for `Match`; standardised."""
    auxiliary: dict[str, Tensor]
    """By dimension, (B,) MOS: what heads of the encoder's own say of it. Empty where it has none."""


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
    auxiliary: dict[str, Tensor]
    """By dimension, (B,) MOS: what the encoder's own heads say; see `Seen`."""
    distance: Tensor
    """(B,) from the training clips; up to 1 for clips of their kind, without an upper end. See `Familiarity`."""


class Encoder(nn.Module, ABC):
    """A video encoder: a frozen stem, and what is trained on top of it."""

    content_width: int
    """Channels C of `Seen.content`."""

    @property
    def familiar_by(self) -> tuple[slice, ...]:
        """Which channels of the content say whether a clip is like those of training, one slice a kind of feature."""
        return (slice(0, self.content_width),)

    @property
    def architecture(self) -> dict[str, Any]:
        """What rebuilds it without its published weights, beside its settings; plain values."""
        return {}

    def layers(self) -> Iterable[nn.Module]:
        """The trained modules that sharded training gathers one at a time; what is in none of them, at once."""
        return ()

    @abstractmethod
    def stem(self, frames: Tensor) -> Activations:
        """The frozen part: (B, 3, T, H, W) float in [0, 1] to activations."""

    @abstractmethod
    def see(self, activations: Activations) -> Seen:
        """The trained part."""

    def fit(self, clips: Iterable[Activations]) -> None:
        """Measure what depends on the training clips (each without a batch axis), before training."""


class Fusion(nn.Module, ABC):
    """What brings a video and a prompt together."""

    @abstractmethod
    def forward(self, tokens: Tensor, text: Tensor) -> Fused:
        """Tokens (B, N, D) and text (B, Dt), row by row."""


class MosHead(nn.Module):
    """Aspect vectors to five MOS, bounded to [1, 5] by a sigmoid.

    Overall is its own rating, but raters make it of the others: their mean by the prompt's weights, corrected by
    a small network on all of them, which sees when one of them is much worse than the others. (A reading of
    its own from the tokens learned the training clips by heart, and ranked new ones worse.)

    Alignment is read from its aspect and from how well clip and prompt match: learned from every clip with every
    prompt, where hardly anything fits, asked for a clip with its own, where most does; hence the scale and the offset.

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
            for _ in ASPECTS
        )
        self.correction = nn.Sequential(nn.Linear(len(ASPECTS), 16), nn.GELU(), nn.Linear(16, 1))
        self.own_scale = nn.Parameter(torch.ones(1))
        self.own_offset = nn.Parameter(torch.zeros(1))

    def forward(self, fused: Fused, match: Tensor) -> Tensor:
        """(B, 5) MOS, from what a fusion gives and the logits (B,) of `Match`."""
        each = [readout(fused.aspects[:, place])[:, 0] for place, readout in enumerate(self.readouts)]
        each[ALIGNMENT] = each[ALIGNMENT] * ASPECT_CORRECTS_MATCH + match * self.own_scale + self.own_offset
        logits = torch.stack(each, 1)
        mos = bounded(logits)
        # Weighed on the scale itself: of logits, one that is sure of itself would outvote the others. Detached: what
        # raters say of the whole does not blur what each aspect learns from its own ratings.
        parts = mos.detach()
        share = ((fused.weights * parts).sum(1, keepdim=True) - MOS_MIN) / (MOS_MAX - MOS_MIN)
        overall = bounded(torch.logit(share, eps=1e-4) + self.correction(parts - MOS_MIN))
        return torch.cat((mos, overall), 1)


def bounded(logits: Tensor) -> Tensor:
    """Logits to the MOS scale, 1 to 5."""
    return MOS_MIN + (MOS_MAX - MOS_MIN) * torch.sigmoid(logits)


class QualityModel(nn.Module):
    """A video encoder, a fusion and the MOS head.

    Args:
        encoder: an `Encoder`.
        fusion: a `Fusion` of the same width.
        match: a `fusion.Match` of the encoder's content and the text.
        head: the `MosHead`.
        familiarity: the `Familiarity` of the encoder's content.
        text: the sentence encoder, if it is trained too (`text.TextTower`).
    """

    def __init__(
        self,
        encoder: Encoder,
        fusion: Fusion,
        match: Match,
        head: MosHead,
        familiarity: Familiarity,
        text: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.text = text
        self.encoder = encoder
        self.fusion = fusion
        self.match = match
        self.head = head
        self.familiarity = familiarity

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

    def embed(self, prompts: list[str], cached: Tensor) -> Tensor:
        """(B, Dt) embeddings of prompts: the cached ones, or those of the sentence encoder, where it is trained."""
        if self.text is None:
            return cached
        embeddings: Tensor = self.text(prompts)
        return embeddings

    def from_stem(self, activations: Activations, text: Tensor) -> Prediction:
        """Score clips from their stem's activations and (B, Dt) prompt embeddings."""
        return self.judge(self.see(activations), text)

    def see(self, activations: Activations) -> Seen:
        """The trained part of the encoder."""
        seen: Seen = self.encoder.see(activations)
        return seen

    def judge(self, seen: Seen, text: Tensor) -> Prediction:
        """Score what was seen of clips against (B, Dt) prompt embeddings, row by row."""
        fused: Fused = self.fusion(seen.tokens, text)
        mos = self.head(fused, self.match(seen.content, text))
        distance = self.familiarity(seen.content)
        return Prediction(mos=mos, aspect_weights=fused.weights, auxiliary=seen.auxiliary, distance=distance)

    def alignment_of_all_pairs(self, seen: Seen, text: Tensor) -> Tensor:
        """How well every clip fits every prompt, B clips and text (P, Dt) to (B, P) MOS, without the own scale."""
        return bounded(self.match.all_pairs(seen.content, text))
