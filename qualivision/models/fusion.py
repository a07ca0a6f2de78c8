"""How a video's tokens and a prompt come together: quality-aware cross-modal attention, or concatenation.

Both take tokens (B, N, D) and text (B, Dt) to one vector for each of the four aspects and to weights of the aspects
(`quality.Fused`); both can do so for every video with every prompt at once (`all_pairs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from qualivision.models.quality import ASPECTS, Fused, Fusion

if TYPE_CHECKING:
    from torch import Tensor

HEADS = 4


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
        key, value = self._split(self.keys_values(tokens).chunk(2, -1))
        query = self._heads(self._queries(text))
        attention = torch.einsum("bahd,bnhd->bhan", query, key) * (query.shape[-1] ** -0.5)
        seen = torch.einsum("bhan,bnhd->bahd", attention.softmax(-1), value).flatten(-2)
        return Fused(self._join(seen, text), self.weigh(text).softmax(-1))

    def all_pairs(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Every video with every prompt: tokens (B, N, D) and text (P, Dt) to aspects (B, P, 4, D)."""
        key, value = self._split(self.keys_values(tokens).chunk(2, -1))
        query = self._heads(self._queries(text))
        attention = torch.einsum("pahd,bnhd->bphan", query, key) * (query.shape[-1] ** -0.5)
        seen = torch.einsum("bphan,bnhd->bpahd", attention.softmax(-1), value).flatten(-2)
        return self._join(seen, text.expand(len(tokens), *text.shape))

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
        return Fused(self._aspects(tokens.mean(1), text), self.weigh(text).softmax(-1))

    def all_pairs(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Every video with every prompt: tokens (B, N, D) and text (P, Dt) to aspects (B, P, 4, D)."""
        videos, prompts = tokens.mean(1), text
        return self._aspects(
            videos.unsqueeze(1).expand(-1, len(prompts), -1), prompts.unsqueeze(0).expand(len(videos), -1, -1)
        )

    def _aspects(self, video: Tensor, text: Tensor) -> Tensor:
        mixed: Tensor = self.mix(torch.cat((video, text), -1))
        return mixed.unflatten(-1, (len(ASPECTS), self.width))
