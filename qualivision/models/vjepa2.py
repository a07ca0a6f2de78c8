"""V-JEPA2: the top layers of a pre-trained video transformer, trained, and attentive pooling over all of its tokens.

The frozen layers below are those of `vjepa2_stem.py`, which also says where network and weights come from. V-JEPA2 has
no class token, so what a clip shows is pooled by learned queries that attend to all space-time tokens (as its authors
evaluate it: Assran et al., 2025, arXiv:2506.09985).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qualivision.models.quality import Encoder, Seen, packed, unpacked
from qualivision.models.vjepa2_stem import build_layers, frozen_count, positions, read_config, read_tensors
from qualivision.models.weights import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

    from qualivision.models.quality import Activations
    from qualivision.models.vjepa2_stem import Config, Grid, Vjepa2Stem

QUERIES = 4
"""Learned queries of the attentive pooling. The first one reads what the clip shows, for `Match`."""
TOKEN_TIMES = 32
TOKEN_SIDE = 6
"""The fusion gets at most so many stretches of time, of so many by so many fields: 1152 tokens for 18 432."""


class Vjepa2Encoder(Encoder):
    """The trained part of V-JEPA2, and its frozen part when it is there.

    Parameters below `backbone.` are published ones that are trained on; those elsewhere are fresh. The backbone is
    never random: its values are NaN, which `see` refuses, until `load_top` or a checkpoint of ours fills it.

    Args:
        config: the network, as `vjepa2_stem.read_config` gives it; kept as `config`, for a model card.
        width: channels of the tokens.
        dropout: share of the backbone's channels dropped before the tokens are made, while training.
        freeze_ratio: share of the layers that are frozen, and not here; see `vjepa2_stem.frozen_count`.
        cache_stem: `stem` gives the frozen part's activations, to be cached (52 MB a clip for ViT-g). Otherwise it
            gives the frames, and the frozen part runs inside `see`, unrounded, without a graph.
        checkpointing: keep one activation for each trained layer and compute the others again in the backward pass.
        stem: the frozen part; without it only cached activations of it can be used.
    Raises:
        ValueError: `freeze_ratio` is out of range, or the stem is of another network or ratio.
    """

    def __init__(
        self,
        config: Config,
        width: int,
        *,
        dropout: float = 0.0,
        freeze_ratio: float = 0.85,
        cache_stem: bool = True,
        checkpointing: bool = False,
        stem: Vjepa2Stem | None = None,
    ) -> None:
        super().__init__()
        self.config = dict(config)
        self.first_trained = frozen_count(config, freeze_ratio)
        if stem is not None and (stem.config != self.config or len(stem.layers) != self.first_trained):
            raise ValueError(
                f"the stem has {len(stem.layers)} layers of {stem.config}; wanted are {self.first_trained} of {config}"
            )
        self.cache_stem, self.checkpointing = cache_stem, checkpointing
        channels = config["hidden_size"]
        self.content_width = channels
        self.frozen = stem
        self.backbone = _Backbone(config, self.first_trained)
        self.queries = nn.Parameter(torch.randn(QUERIES, channels) * 0.02)
        self.dropout = nn.Dropout(dropout)
        self.place = nn.Linear(channels, width)
        self.whole = nn.Linear(QUERIES * channels, width)
        self.norm = nn.LayerNorm(width)

    @property
    def architecture(self) -> Config:
        """The network, as `vjepa2_stem.read_config` gives it."""
        return self.config

    def layers(self) -> Iterable[nn.Module]:
        """The trained layers of the transformer."""
        return self.backbone.layers.children()

    def stem(self, frames: Tensor) -> Activations:
        """The frozen part's activations (see `Vjepa2Stem.forward`), or with `cache_stem=False` the frames, packed.

        Raises RuntimeError on a model that was built without its frozen part and should run it.
        """
        if not self.cache_stem:
            return packed(frames)
        activations: Activations = self._needed()(frames)
        return activations

    def see(self, activations: Activations) -> Seen:
        """The trained part.

        Args:
            activations: what `stem` gives. `hidden` may also be int16, the bits of its bfloat16: NumPy, and so a cache
                of arrays, has no such type.
        Returns:
            Tokens (B, N', width): for each of at most 32 stretches of time and 6 x 6 fields what is there, the mean of
            its tokens, plus what all queries read of the whole clip; so that a fusion that takes the mean of the
            tokens has both in equal parts, and one that attends to them can tell places apart. Content (B, D): what
            the first query reads. No auxiliary scores.
        Raises:
            RuntimeError: the backbone was never filled; or frames, for a model that was built without its frozen part.
            FrameSizeError: frames of a size that the checkpoint does not take.
        """
        video, grid = self._video(activations)
        pooled = self._pool(video)
        whole = self.whole(self.dropout(pooled.flatten(1))).unsqueeze(1)
        tokens = self.norm(self.place(self.dropout(_fields(video, grid))) + whole)
        return Seen(tokens, pooled[:, 0], {})

    def _video(self, activations: Activations) -> tuple[Tensor, Grid]:
        """The encoder's output on clips, after its final norm: (B, N, D), and the grid of the N tokens."""
        if "frames" in activations:
            hidden, grid = self._needed().run(unpacked(activations))
        else:
            hidden = activations["hidden"]
            hidden = hidden.view(torch.bfloat16) if hidden.dtype == torch.int16 else hidden
            times, rows, columns = activations["grid"][0].tolist()
            grid = times, rows, columns
        self.backbone.refuse_unfilled()
        video: Tensor = self.backbone(hidden, positions(self.config, grid, hidden.device), self.checkpointing)
        return video, grid

    def _pool(self, video: Tensor) -> Tensor:
        """(B, N, D) to (B, QUERIES, D), standardised: each query's mean over all tokens, by how well they answer it.

        Tokens are neither projected to keys nor to values. The product of a query and a key projection is only another
        query; and what stands after this is linear. Untrained, each query gives nearly the mean of the tokens.
        """
        scores = video @ self.queries.T * video.shape[-1] ** -0.5
        shares = scores.float().softmax(1).to(scores.dtype)
        return nn.functional.layer_norm(shares.transpose(1, 2) @ video, video.shape[-1:])

    def _needed(self) -> Vjepa2Stem:
        if self.frozen is None:
            raise RuntimeError("this model was built without its stem: it takes cached activations only")
        return self.frozen


class _Backbone(nn.Module):
    """The published layers above the frozen ones, and the final norm; NaN until filled."""

    def __init__(self, config: Config, first: int) -> None:
        super().__init__()
        with torch.device("meta"):  # no time and no random numbers for values that are not kept
            self.layers = build_layers(config, config["num_hidden_layers"] - first)
            self.norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])
        self.to_empty(device="cpu")
        for parameter in self.parameters():
            nn.init.constant_(parameter, torch.nan)
        self._filled = False

    def refuse_unfilled(self) -> None:
        """Raise RuntimeError as long as a value is NaN; looked at until none is, then no more."""
        self._filled = self._filled or not any(parameter.isnan().any() for parameter in self.parameters())
        if not self._filled:
            raise RuntimeError("V-JEPA2's top layers are NaN: load_top or a checkpoint has to fill them")

    def forward(self, hidden: Tensor, where: Tensor | None, checkpointing: bool) -> Tensor:
        """(B, N, D) in any precision to (B, N, D); the sums along the layers are in that of the parameters."""
        hidden = hidden.to(self.norm.weight.dtype)
        again = checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            hidden = (checkpoint(layer, hidden, where, use_reentrant=False) if again else layer(hidden, where))[0]
        normed: Tensor = self.norm(hidden)
        return normed


def _fields(video: Tensor, grid: Grid) -> Tensor:
    """Tokens (B, N, D) on a grid to the means of at most TOKEN_TIMES x TOKEN_SIDE x TOKEN_SIDE blocks, (B, N', D)."""
    times, rows, columns = grid
    block = math.ceil(rows / TOKEN_SIDE), math.ceil(columns / TOKEN_SIDE)
    maps = video.unflatten(1, grid).flatten(0, 1).permute(0, 3, 1, 2)
    # Two steps: the backward pass of pooling in three dimensions is not deterministic on a GPU.
    maps = nn.functional.avg_pool2d(maps, block, ceil_mode=True, count_include_pad=False)
    series = maps.flatten(2).unflatten(0, (len(video), times)).permute(0, 3, 2, 1)  # (B, fields, D, T')
    stretches = nn.functional.avg_pool1d(
        series.flatten(0, 1), math.ceil(times / TOKEN_TIMES), ceil_mode=True, count_include_pad=False
    )
    return stretches.unflatten(0, (len(video), -1)).permute(0, 3, 1, 2).flatten(1, 2)


def load_top(encoder: Vjepa2Encoder, folder: Path) -> None:
    """Fill an encoder's trained layers and final norm with the published values. The frozen layers are not read.

    Args:
        encoder: built with the checkpoint's config.
        folder: as `vjepa2_stem.locate` gives it.
    Raises:
        WeightsError: a checkpoint of another network, or one that does not fit; see `vjepa2_stem.account`.
    """
    config = read_config(folder)
    if other := [name for name in config if config[name] != encoder.config.get(name)]:
        differ = ", ".join(f"{name} {config[name]} for {encoder.config.get(name)}" for name in other)
        raise WeightsError(f"{folder}: is another network than the encoder's: {differ}")
    backbone = encoder.backbone
    tensors = read_tensors(folder, config, _published_names(backbone, encoder.first_trained), torch.float32)
    backbone.load_state_dict(tensors)


def _published_names(backbone: _Backbone, first: int) -> dict[str, str]:
    """{name in the backbone: name in transformers' VJEPA2Model}."""
    names = {}
    for name in backbone.state_dict():
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        names[name] = (
            f"encoder.layer.{first + int(number)}.{inner}" if part == "layers" else f"encoder.layernorm.{rest}"
        )
    return names
