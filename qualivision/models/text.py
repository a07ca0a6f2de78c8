"""A sentence encoder that is trained with the rest of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class TextTower(nn.Module):
    """Prompts to embeddings, with a gradient.

    Args:
        sentences: a SentenceTransformer; its tokenizer stays as it is.
    """

    def __init__(self, sentences: Any) -> None:
        super().__init__()
        self.sentences = sentences

    def forward(self, prompts: list[str]) -> Tensor:
        """(B, Dt) float, each of length 1."""
        device = next(self.sentences.parameters()).device
        tokens = {
            name: value.to(device) if hasattr(value, "to") else value
            for name, value in self.sentences.preprocess(prompts).items()
        }
        embeddings: Tensor = self.sentences(tokens)["sentence_embedding"]
        return nn.functional.normalize(embeddings, dim=-1)
