"""A model's name and its settings to a model."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from qualivision.cache import file_hash, make_key
from qualivision.models import lite_stem, statistics
from qualivision.models.fusion import ConcatenationFusion, Match, QualityAwareFusion
from qualivision.models.lite import LiteEncoder
from qualivision.models.lite_stem import LiteStem, weights_file
from qualivision.models.quality import Encoder, MosHead, QualityModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    from torch import nn

    from qualivision.settings import NetworkSettings

_FUSIONS = {"quality-aware": QualityAwareFusion, "concatenation": ConcatenationFusion}


def _lite_encoder(network: NetworkSettings, stem: nn.Module | None) -> Encoder:
    if stem is not None and not isinstance(stem, LiteStem):
        raise TypeError(f"lite needs a LiteStem, got {type(stem).__name__}")
    return LiteEncoder(network.width, network.dropout, stem)


MODELS = ("lite",)
"""The names that the functions here take."""

_STEMS: dict[str, Callable[[], LiteStem]] = {"lite": LiteStem}
_STEM_CODE: dict[str, tuple[ModuleType, ...]] = {"lite": (lite_stem, statistics)}
_STEM_WEIGHTS: dict[str, Callable[[], Path]] = {"lite": weights_file}
_ENCODERS: dict[str, Callable[[NetworkSettings, nn.Module | None], Encoder]] = {"lite": _lite_encoder}


def build_stem(model: str) -> LiteStem:
    """The frozen part of a model with its published weights. Raises WeightsError when they don't fit."""
    return _STEMS[model]()


def stem_hash(model: str) -> str:
    """SHA-256 of the published weights in a model's frozen part: what a checkpoint of ours records as its base."""
    return file_hash(_STEM_WEIGHTS[model]())


def stem_fingerprint(model: str) -> str:
    """What the stem cache of a model depends on, besides the frames: the stem's own code, and its weights."""
    return make_key(stem_hash(model), *(inspect.getsource(module) for module in _STEM_CODE[model]))


def build_model(
    model: str, network: NetworkSettings, text_width: int, *, stem: nn.Module | None = None
) -> QualityModel:
    """Build a model with fresh trained parts.

    Args:
        model: its name, as in `params.yaml`.
        network: its trained part's settings.
        text_width: channels of the prompt embeddings.
        stem: its frozen part; without it the model takes cached activations only.
    """
    encoder = _ENCODERS[model](network, stem)
    return QualityModel(
        encoder,
        _FUSIONS[network.fusion](network.width, text_width, network.dropout),
        Match(encoder.content_width, text_width, network.dropout),
        MosHead(network.width, network.dropout),
    )
