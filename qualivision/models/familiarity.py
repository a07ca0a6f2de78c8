"""How far a clip is from those that a model was trained on: what a model knows of its own depth.

Owns the measure and what it needs of the training clips; it learns nothing, and nothing learns through it. Whose
content it is measured on is `training/familiarity.py`'s, what is said of a far clip `depth.py`'s.

In each kind of features: the distance to the nearest training clips in the leading whitened components, and, beside
them, how much of the clip lies outside of these, where training clips hardly reach (probabilistic PCA: Tipping and
Bishop, JRSS B 1999; nearest neighbours against unknown kinds of input: Sun et al., ICML 2022). Without the second part,
noise or a black picture would be near: what makes them odd is not what training clips differ in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

COMPONENTS = 24
"""Leading components of each kind of features, at most."""
REFERENCE = 512
"""Training clips that others are held against, at most."""
NEAREST = 3
OF_ITS_KIND = 0.99
"""What share of held-out clips of the training clips' kind is nearer than 1."""
_SHRINKAGE = 1.0
"""Of the mean variance, added to each component's own: weak ones, which few clips do not tell well, count less."""
_LINEAR = 3.0
"""Up to about so many deviations a channel counts in full."""
_LEAST_SPREAD = 0.1
"""Of the mean deviation: a channel that hardly moved in training would make any other clip infinitely far."""


class Familiarity(nn.Module):
    """The distance of clips from the training clips, by their content.

    Before `fit` every clip is far.

    Args:
        kinds: which channels of the content hold features of one kind, for each kind that counts. Each is measured on
            its own, and the kind in which a clip is farthest decides: in one distance over all, many channels that vary
            much would hide few that are unlike anything seen.
    """

    scale: Tensor

    def __init__(self, kinds: Sequence[slice]) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.spaces = nn.ModuleList(_Space(kind.stop - kind.start) for kind in self.kinds)
        self.register_buffer("scale", torch.ones(1))

    def fit(self, train: Tensor, held: Tensor) -> None:
        """Measure the training clips.

        Args:
            train: (N, C) content of training clips, N at least 1.
            held: (M, C) content of clips of their kind that the model was not trained on, M at least 1; they decide
                what is far. The fewer, the more the farthest of them alone does.
        Raises:
            ValueError: no clips, or a content that is no number.
        """
        for name, clips in (("training", train), ("held-out", held)):
            if not len(clips) or not bool(clips.isfinite().all()):
                raise ValueError(f"the content of {len(clips)} {name} clips can't be measured: none, or no number")
        for kind, space in self._each():
            space.fit(train[:, kind], held[:, kind])
        self.scale.copy_(_edge(self._farthest(held)))

    @torch.no_grad()
    def forward(self, content: Tensor) -> Tensor:
        """The distance of each clip, content (B, C) to (B,) float32, 0 or more and without an upper end.

        Up to 1 is as near as clips of the training clips' kind are, save one in a hundred. NaN where the content is no
        number.
        """
        # In full precision whatever the network runs in: the difference of large numbers is what counts.
        with torch.autocast(content.device.type, enabled=False):
            return self._farthest(content.float()) / self.scale

    def _farthest(self, content: Tensor) -> Tensor:
        return torch.stack([space.distance(content[:, kind]) for kind, space in self._each()]).amax(0)

    def _each(self) -> Iterator[tuple[slice, _Space]]:
        for kind, space in zip(self.kinds, self.spaces, strict=True):
            assert isinstance(space, _Space)
            yield kind, space


class _Space(nn.Module):
    """The same for one kind of features, C channels; K components, R reference clips."""

    centre: Tensor
    spread: Tensor
    middle: Tensor
    axes: Tensor
    stretch: Tensor
    outside: Tensor
    reference: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        components = min(COMPONENTS, channels)
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("middle", torch.zeros(channels))
        self.register_buffer("axes", torch.zeros(channels, components))
        self.register_buffer("stretch", torch.ones(components))
        self.register_buffer("outside", torch.ones(1))
        self.register_buffer("reference", torch.zeros(REFERENCE, components))
        self.register_buffer("scale", torch.ones(1))

    def fit(self, train: Tensor, held: Tensor) -> None:
        """(N, C) and (M, C)."""
        clips = train.double().cpu()
        deviation = clips.std(0, correction=0)
        self.centre.copy_(clips.mean(0))
        self.spread.copy_(deviation.clamp(min=max(_LEAST_SPREAD * float(deviation.mean()), 1e-6)))
        self.middle.zero_()
        self.middle.copy_(self._standard(clips).mean(0))
        standard = self._standard(clips)
        _, singular, axes = torch.linalg.svd(standard, full_matrices=False)
        variance = singular**2 / len(clips)
        kept = min(len(self.stretch), len(variance))
        mean = max(float(variance.sum()) / len(deviation), 1e-6)
        left = len(deviation) - kept
        self.axes.zero_()[:, :kept].copy_(axes[:kept].T)
        self.stretch.zero_()[:kept].copy_((variance[:kept] + _SHRINKAGE * mean).rsqrt())
        beyond = float(variance[kept:].sum()) / left if left else 0.0
        self.outside.fill_(1 / (beyond + _SHRINKAGE * mean))
        self._refer_to(train)
        self.scale.copy_(_edge(self._raw(held)))

    def _refer_to(self, train: Tensor) -> None:
        rows = drawn(len(train), REFERENCE)
        rows = rows.repeat(-(-NEAREST // len(rows)))[: max(len(rows), NEAREST)]  # of two clips, one counts twice
        self.reference.fill_(torch.inf)  # what is not filled is nearest to nothing
        self.reference[: len(rows)] = self._components(train[rows])[0]

    def distance(self, content: Tensor) -> Tensor:
        """(B, C) to (B,)."""
        return self._raw(content) / self.scale

    def _raw(self, content: Tensor) -> Tensor:
        inside, outside = self._components(content)
        # Not by a matrix product, whose rounding depends on how many clips share the batch.
        each = torch.cdist(inside, self.reference, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = each.topk(NEAREST, largest=False).values
        return (nearest**2 + outside.unsqueeze(1)).sqrt().mean(1)

    def _components(self, content: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened (B, K), and the squared length (B,) of what is left, in deviations of what was left in training."""
        standard = self._standard(content)
        along = standard @ self.axes
        left = (standard - along @ self.axes.T).square().sum(1)
        return along * self.stretch, left * self.outside

    def _standard(self, content: Tensor) -> Tensor:
        """In deviations of the channel, around 0; many of them count less and less, but without an end.

        Some statistics are rare events: squared, one of them would outweigh all the rest of a clip, and of the clips
        that decide what is far.
        """
        standard = (content - self.centre.to(content)) / self.spread.to(content)
        return _LINEAR * torch.asinh(standard / _LINEAR) - self.middle.to(content)


def drawn(count: int, most: int) -> Tensor:
    """Which of so many rows are taken, at most so many: (N,) int64, sorted. By chance, and always the same.

    Every so-manyth would take clips of one generator alone where a table goes round.
    """
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(count))[:most].sort().values


def _edge(distances: Tensor) -> Tensor:
    """What all but the farthest held-out clips stay below; above 0, for they may equal training clips."""
    return distances.double().quantile(OF_ITS_KIND).clamp(min=1e-6).float()
