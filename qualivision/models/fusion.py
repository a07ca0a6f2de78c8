"""How a video's tokens and a prompt come together: quality-aware cross-modal attention, or concatenation; and `Match`.

Both take tokens (B, N, D) and text (B, Dt) to one vector for each of the four aspects and to weights of the aspects
(`quality.Fused`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from qualivision.models.quality import ASPECTS, Fused, Fusion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

HEADS = 4
EVENNESS = 0.03
"""Keeps the aspects' weights near an even share: left free, they learn which training prompt had which Overall."""


class PromptReader(nn.Module):
    """A few channels of a prompt's embedding: what a small set of prompts can teach, and not each of them by heart.

    Args:
        text_width: channels Dt of a prompt embedding, which has length 1.
        width: channels that are kept.
        dropout: share of the embedding's channels dropped while training.
    """

    def __init__(self, text_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.scale = text_width**0.5  # a vector of length 1 has channels of next to nothing
        self.narrow = nn.Sequential(nn.Dropout(dropout), nn.Linear(text_width, width), nn.LayerNorm(width))

    def forward(self, text: Tensor) -> Tensor:
        """(B, Dt) to (B, width)."""
        narrowed: Tensor = self.narrow(text * self.scale)
        return narrowed


class Match(nn.Module):
    """How well a clip fits a prompt: the product of a vector of what it shows and one of what the prompt asks for.

    Linear in the prompt on purpose: what is shown and what is asked for meet nowhere else, so a prompt that was never
    seen is read like those that were, and every clip of a batch is held against every prompt for one product.

    The clip's side reads each kind of feature by itself before it brings them together: among thousands of channels of
    the image network, the few that say how a subject moves would not be heard.

    Args:
        content_parts: channels of each kind of feature in what an encoder says of a clip's content, C in all.
        text_width: channels Dt of a prompt embedding, which has length 1.
        dropout: share of channels dropped while training, on both sides.
    """

    CHANNELS = 48
    HIDDEN = 320
    """Of all kinds of features together."""

    def __init__(self, content_parts: Sequence[int], text_width: int, dropout: float) -> None:
        super().__init__()
        self.parts = list(content_parts)
        each = self.HIDDEN // len(self.parts)
        self.reads = nn.ModuleList(nn.Linear(channels, each) for channels in self.parts)
        self.shows = nn.Sequential(nn.GELU(), nn.Dropout(dropout / 2), nn.Linear(each * len(self.parts), self.CHANNELS))
        self.drop = nn.Dropout(dropout / 2)
        self.asks = nn.Sequential(nn.Dropout(dropout), nn.Linear(text_width, self.CHANNELS))
        self.scale = text_width**0.5
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, content: Tensor, text: Tensor) -> Tensor:
        """Content (B, C) and text (B, Dt), row by row, to (B,) logits."""
        product = (self._shown(content) * self.asks(text * self.scale)).sum(-1)
        logits: Tensor = product * self.CHANNELS**-0.5 + self.offset
        return logits

    def all_pairs(self, content: Tensor, text: Tensor) -> Tensor:
        """Every clip with every prompt: content (B, C) and text (P, Dt) to (B, P) logits."""
        product = self._shown(content) @ self.asks(text * self.scale).T
        logits: Tensor = product * self.CHANNELS**-0.5 + self.offset
        return logits

    def _shown(self, content: Tensor) -> Tensor:
        parts = zip(self.reads, self.drop(content).split(self.parts, -1), strict=True)
        shown: Tensor = self.shows(torch.cat([read(part) for read, part in parts], -1))
        return shown


class QualityAwareFusion(Fusion):
    """Four aspect queries, conditioned on the prompt, attend over the video's tokens.

    Args:
        width: channels D of the tokens, a multiple of 4.
        text_width: channels Dt of a prompt embedding.
        dropout: share of channels dropped while training.
    """

    def __init__(self, width: int, text_width: int, dropout: float) -> None:
        super().__init__()
        if width % HEADS:
            raise ValueError(f"network.width must be a multiple of {HEADS}, got {width}")
        self.width = width
        self.read = PromptReader(text_width, width // 4, dropout)
        text_width = width // 4
        self.queries = nn.Parameter(torch.randn(len(ASPECTS), width) * 0.02)
        self.condition = nn.Linear(text_width, len(ASPECTS) * width)
        self.keys_values = nn.Linear(width, 2 * width)
        self.gate = nn.Linear(text_width, len(ASPECTS) * width)
        self.mix = nn.Sequential(
            nn.LayerNorm(3 * width),
            nn.Dropout(dropout),
            nn.Linear(3 * width, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.weigh = nn.Linear(text_width, len(ASPECTS))

    def forward(self, tokens: Tensor, text: Tensor) -> Fused:
        """Tokens (B, N, D) and text (B, Dt), row by row."""
        text = self.read(text)
        key, value = self._split(self.keys_values(tokens).chunk(2, -1))
        query = self._heads(self._queries(text))
        attention = torch.einsum("bahd,bnhd->bhan", query, key) * (query.shape[-1] ** -0.5)
        seen = torch.einsum("bhan,bnhd->bahd", attention.softmax(-1), value).flatten(-2)
        return Fused(self._join(seen, text), (EVENNESS * self.weigh(text)).softmax(-1))

    def _queries(self, text: Tensor) -> Tensor:
        return self.queries + self._per_aspect(self.condition(text))

    def _per_aspect(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (len(ASPECTS), self.width))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, self.width // HEADS))

    def _split(self, pair: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return self._heads(pair[0]), self._heads(pair[1])

    def _join(self, seen: Tensor, text: Tensor) -> Tensor:
        """What was seen, the prompt, and their product: whether a thing is there *and* asked for."""
        asked = self._per_aspect(self.gate(text))
        mixed: Tensor = self.mix(torch.cat((seen, asked, seen * asked), -1))
        return mixed


class ConcatenationFusion(Fusion):
    """The mean token beside the prompt embedding, and a small network on both.

    Args:
        width: channels D of the tokens.
        text_width: channels Dt of a prompt embedding.
        dropout: share of channels dropped while training.
    """

    def __init__(self, width: int, text_width: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.read = PromptReader(text_width, width // 4, dropout)
        text_width = width // 4
        self.mix = nn.Sequential(
            nn.LayerNorm(width + text_width),
            nn.Dropout(dropout),
            nn.Linear(width + text_width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, len(ASPECTS) * width),
        )
        self.weigh = nn.Linear(text_width, len(ASPECTS))

    def forward(self, tokens: Tensor, text: Tensor) -> Fused:
        """Tokens (B, N, D) and text (B, Dt), row by row."""
        text = self.read(text)
        mixed: Tensor = self.mix(torch.cat((tokens.mean(1), text), -1))
        return Fused(mixed.unflatten(-1, (len(ASPECTS), self.width)), (EVENNESS * self.weigh(text)).softmax(-1))
