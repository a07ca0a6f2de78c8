"""MiniLM, the sentence encoder of `lite`, on torch alone: its own libraries take seconds to import, for one prompt.

Network and weights are those of Wang et al. (NeurIPS 2020), taught sentences by sentence-transformers (Reimers and
Gurevych, EMNLP 2019). A test holds it to what that library gives.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

_AT_ONCE = 32
_LAYER = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
"""Of a layer: torch's names, and the file's."""


class MiniLM(nn.Module):
    """Prompts to embeddings: the mean of BERT's tokens. Frozen.

    Args:
        folder: as sentence-transformers saves it.
    Raises:
        OSError, ValueError, LookupError, RuntimeError, SafetensorError: a file is missing, damaged, or of another
            network.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        config = _read(folder / "config.json")
        tensors = load_file(folder / "model.safetensors")
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_position_embeddings"], width)
        self.norm = nn.LayerNorm(width, eps)
        layer = nn.TransformerEncoderLayer(
            width,
            config["num_attention_heads"],
            config["intermediate_size"],
            activation=config["hidden_act"],
            layer_norm_eps=eps,
            batch_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config["num_hidden_layers"], enable_nested_tensor=False)
        self.load_state_dict(_renamed(tensors, config["num_hidden_layers"]))
        self.eval().requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(_read(folder / "sentence_bert_config.json")["max_seq_length"])
        self.tokenizer.enable_padding()

    def forward(self, tokens: Tensor, held: Tensor) -> Tensor:
        """Embeddings (B, D) of length 1, from tokens (B, N) and which of them are no padding, (B, N) bool."""
        shown = self.norm(self.words(tokens) + self.places.weight[: tokens.shape[1]])
        shown = self.layers(shown, src_key_padding_mask=~held)
        mean = shown.masked_fill(~held.unsqueeze(-1), 0).sum(1) / held.sum(1, keepdim=True)
        return functional.normalize(mean, dim=-1)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, D) embeddings of N prompts, each of length 1."""
        vectors = np.empty((len(prompts), self.norm.normalized_shape[0]), np.float32)
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))  # few are padded by much
        for start in range(0, len(order), _AT_ONCE):
            some = order[start : start + _AT_ONCE]
            found = self.tokenizer.encode_batch([prompts[place] for place in some])
            device = self.words.weight.device
            tokens = torch.tensor([each.ids for each in found], device=device)
            held = torch.tensor([each.attention_mask for each in found], dtype=torch.bool, device=device)
            vectors[some] = self(tokens, held).cpu().numpy()
        return vectors


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _renamed(theirs: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The file's tensors by our names. A prompt is one sentence: what marks the first of two is added to each word."""
    words = theirs["embeddings.word_embeddings.weight"] + theirs["embeddings.token_type_embeddings.weight"][0]
    ours = {"words.weight": words, "places.weight": theirs["embeddings.position_embeddings.weight"]}
    for kind in ("weight", "bias"):
        ours[f"norm.{kind}"] = theirs[f"embeddings.LayerNorm.{kind}"]
        for layer in range(layers):
            there, here = f"encoder.layer.{layer}", f"layers.layers.{layer}"
            attention = [theirs[f"{there}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            ours[f"{here}.self_attn.in_proj_{kind}"] = torch.cat(attention)
            for our_name, name in _LAYER.items():
                ours[f"{here}.{our_name}.{kind}"] = theirs[f"{there}.{name}.{kind}"]
    return ours
