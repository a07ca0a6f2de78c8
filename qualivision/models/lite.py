"""lite: EfficientNet-Lite0 per frame and statistics of frames and motion. Needs no GPU and no hub.

Trained, on top of the frozen stem of `lite_stem.py`: standardised projections of image features and statistics, a
temporal convolution, a token of the subject seen from near, and one of the whole clip's statistics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from qualivision.models.faults import MEASURED, measured_faults
from qualivision.models.fovea import SUBJECT_CHANNELS
from qualivision.models.lite_stem import (
    FOVEA_CHANNELS,
    IMAGE_CHANNELS,
    LAYOUT_CHANNELS,
    LAYOUT_GRID,
    LAYOUT_TIMES,
    PEAK_CHANNELS,
    TOP_CHANNELS,
)
from qualivision.models.quality import ASPECTS, Encoder, Seen
from qualivision.models.statistics import STATISTICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from qualivision.models.lite_stem import LiteStem
    from qualivision.models.quality import Activations

    Moments = tuple[Tensor, Tensor]

_RANGES = 8  # of each of the summary's channels, see `Piecewise`


def moments(clip: Tensor) -> Moments:
    """Mean and mean square of each channel, (channels,) float64, over a clip's frames (T, channels)."""
    values = clip.double()
    return values.mean(0), (values**2).mean(0)


class Standardise(nn.Module):
    """Features to zero mean and unit deviation over the training clips, which `fit` measures and a checkpoint keeps."""

    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def fit(self, clips: Sequence[Moments]) -> None:
        """Set mean and deviation from the moments of each clip; clips count alike, however many frames they have."""
        means, squares = (torch.stack(part).mean(0) for part in zip(*clips, strict=True))
        self.mean.copy_(means)
        self.scale.copy_(1 / (squares - means**2).clamp(min=0).sqrt().clamp(min=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised, and kept within 6 deviations: a clip unlike any other must not drive the network anywhere."""
        return ((x.float() - self.mean) * self.scale).clamp(-6, 6)


class Piecewise(nn.Module):
    """Each channel as how far it has come through each of its ranges, which hold equally many training clips.

    What is linear on top of this follows a threshold or a curve in any channel, and an extreme value drives it nowhere.
    Source: piecewise linear encoding (Gorishniy, Rubachev and Babenko, NeurIPS 2022).

    Args:
        channels: C.
        ranges: R per channel.
    """

    edges: Tensor

    def __init__(self, channels: int, ranges: int) -> None:
        super().__init__()
        self.register_buffer("edges", torch.linspace(0, 1, ranges + 1).unsqueeze(1).repeat(1, channels))

    def fit(self, clips: Tensor) -> None:
        """Set the ranges from the training clips, (N, C)."""
        shares = np.linspace(0, 1, len(self.edges))
        self.edges.copy_(torch.from_numpy(np.quantile(clips.numpy(), shares, axis=0)))  # torch's takes 16 M values

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to (B, R * C), each between -0.5 and 0.5."""
        low, high = self.edges[:-1], self.edges[1:]
        come = (x.float().unsqueeze(1) - low) / (high - low).clamp(min=1e-6)
        # The spread of what holds an infinite value is no number: then the middle, as any extreme is cut to an end.
        return come.clamp(0, 1).flatten(1).nan_to_num(0.5) - 0.5


class LiteEncoder(Encoder):
    """The trained part of lite, and its stem when it is there.

    Args:
        width: channels D of the tokens.
        dropout: share of channels dropped while training.
        stem: the frozen part; without it only cached activations can be used.
    """

    takes = MEASURED
    sees_classes = True

    def __init__(self, width: int, dropout: float, stem: LiteStem | None) -> None:
        super().__init__()
        self.content_width = sum(self.content_parts)
        self.frozen = stem
        self.image_norm = Standardise(IMAGE_CHANNELS)
        self.layout_norm = Standardise(LAYOUT_CHANNELS)
        self.peaks_norm = Standardise(PEAK_CHANNELS)
        self.fovea_norm = Standardise(FOVEA_CHANNELS)
        self.subject_norm = Standardise(SUBJECT_CHANNELS)
        self.statistics_norm = Standardise(STATISTICS)
        self.image_dropout = nn.Dropout1d(dropout)
        self.image = nn.Linear(IMAGE_CHANNELS, width)
        self.statistics = nn.Linear(STATISTICS, width)
        self.fovea = nn.Sequential(nn.Dropout(dropout), nn.Linear(FOVEA_CHANNELS + SUBJECT_CHANNELS, width))
        self.layout = nn.Sequential(nn.Dropout(dropout), nn.Linear(LAYOUT_CHANNELS, width))
        self.where = nn.Parameter(torch.randn(LAYOUT_TIMES * LAYOUT_GRID**2, width) * 0.02)
        self.temporal = nn.ModuleList(_TemporalBlock(width, dropout) for _ in range(2))
        self.summary = Piecewise(SUMMARIES * STATISTICS, _RANGES)
        self.clip = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(_RANGES * SUMMARIES * STATISTICS, width), nn.GELU(), nn.Linear(width, width)
        )
        self.norm = nn.LayerNorm(width)

    @property
    def content_parts(self) -> tuple[int, ...]:
        """The whole frame, its layout and peaks, the subject from near, its colours and its way, and statistics."""
        layout = 2 * LAYOUT_CHANNELS + PEAK_CHANNELS
        return (TOP_CHANNELS, layout, FOVEA_CHANNELS, SUBJECT_CHANNELS, SUMMARIES * STATISTICS)

    @property
    def familiar_by(self) -> tuple[slice, ...]:
        """How a picture is made, and how it moves. The network's own features are left out: they follow the subject."""
        layout = slice(TOP_CHANNELS, TOP_CHANNELS + 2 * LAYOUT_CHANNELS)
        return (layout, slice(self.content_width - SUMMARIES * STATISTICS, self.content_width))

    def fit(self, clips: Iterable[Activations]) -> None:
        """Measure the standardisation on the training clips' activations (each without a batch axis)."""
        norms = {
            "image": self.image_norm,
            "layout": self.layout_norm,
            "peaks": self.peaks_norm,
            "fovea": self.fovea_norm,
            "subject": self.subject_norm,
            "statistics": self.statistics_norm,
        }
        found: dict[str, list[Moments]] = {name: [] for name in norms}
        summaries = []
        for clip in clips:  # once: they may be more than memory holds
            for name in norms:
                found[name].append(moments(torch.atleast_2d(clip[name])))
            summaries.append(_summary(clip["statistics"].unsqueeze(0)))
        self.summary.fit(torch.cat(summaries))
        for name, norm in norms.items():
            norm.fit(found[name])

    def stem(self, frames: Tensor) -> Activations:
        """The frozen part; see `LiteStem`. Raises RuntimeError on a model that was built without it."""
        if self.frozen is None:
            raise RuntimeError("this model was built without its stem: it takes cached activations only")
        activations: Activations = self.frozen(frames)
        return activations

    def see(self, activations: Activations) -> Seen:
        """The trained part: T / 4 + 38 tokens of a clip, and its content."""
        image = self.image_norm(activations["image"])
        statistics = self.statistics_norm(activations["statistics"])
        near = torch.cat((self.fovea_norm(activations["fovea"]), self.subject_norm(activations["subject"])), 1)
        series = self.statistics(statistics)
        for block in self.temporal:
            series = block(series)
        # A channel is dropped for the whole clip: its neighbours in time would give it away.
        frames = self.image(self.image_dropout(image.transpose(1, 2)).transpose(1, 2)) + _every_four(series)
        clip = self.clip(self.summary(_summary(activations["statistics"])))
        layout = self.layout_norm(activations["layout"])
        fields = self.layout(layout) + self.where
        tokens = self.norm(torch.cat((frames, fields, self.fovea(near).unsqueeze(1), clip.unsqueeze(1)), 1))
        # Of the frames only the first 1280: the earlier maps say how a picture is made, and not what it shows.
        still = (image.mean(1)[:, :TOP_CHANNELS], layout.amax(1), layout.mean(1), self.peaks_norm(activations["peaks"]))
        content = torch.cat((*still, near, _summary(statistics)), 1)
        return Seen(tokens, content, {}, self.faults(activations))

    def faults(self, activations: Activations) -> Tensor:
        """See `Encoder.faults` and `faults.py`."""
        traditional, temporal = measured_faults(activations["statistics"])
        nothing = torch.zeros_like(traditional)
        each = {"Traditional": traditional, "Temporal": temporal}
        return torch.stack([each.get(aspect, nothing) for aspect in ASPECTS], 1)

    def measured(self, activations: Activations) -> tuple[Tensor, ...]:
        """See `Encoder.measured`: how the picture is made and where its subject is, twice; and how it moves.

        Without what the network takes the picture for: its 1280 features drown the rest.
        """
        statistics = activations["statistics"].float()
        levels = torch.quantile(statistics, statistics.new_tensor((0.1, 0.5, 0.9)), dim=1).transpose(0, 1).flatten(1)
        in_time = torch.cat((_summary(statistics), levels), 1)
        layout = activations["layout"].float()
        finer = activations["image"][..., TOP_CHANNELS:].float().mean(1)
        picture = torch.cat((in_time, activations["subject"], finer, layout.mean(1), layout.amax(1)), 1)
        return picture, picture, in_time


def _every_four(series: Tensor) -> Tensor:
    """The mean of every four frames, (B, T, C) to (B, T / 4, C), the last of fewer where T is no multiple."""
    return nn.functional.avg_pool1d(series.transpose(1, 2), 4, ceil_mode=True).transpose(1, 2)


SUMMARIES = 7


def _summary(series: Tensor) -> Tensor:
    """What a clip's statistics do over time, (B, T, C) to (B, 7 C): level, extremes, spread, unrest, and trend."""
    step = series[:, 1:] - series[:, :-1]
    turn = step[:, 1:] - step[:, :-1]
    time = torch.linspace(-1, 1, series.shape[1], device=series.device).view(1, -1, 1)
    parts = (
        series.mean(1),
        series.std(1),
        series.amax(1),
        series.amin(1),
        step.abs().mean(1),
        turn.abs().sum(1) / max(turn.shape[1], 1),  # two frames have one step and no turn
        (series * time).mean(1),
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
