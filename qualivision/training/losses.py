"""The hybrid loss: its terms on a batch, and the weights with which they are summed.

Every term takes predictions and targets (B, K) in MOS units and is a vectorised scalar; lower is better. Tensors of
other shapes are a ShapeError: they would be broadcast against each other in silence.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from qualivision.settings import LossSettings

SMOOTH_L1_BETA = 0.1
RANK_MARGIN = 0.2
RANK_MIN_GAP = 0.1
SCALE_LOW, SCALE_HIGH, SCALE_WEIGHT = 2.5, 4.0, 1.5
OTHER_PROMPT_MARGIN = 0.25
FITTING, FITTING_WEIGHT = 3.0, 4.0
CHOICE_SHARPNESS = 1.5
"""A prompt that fits by a MOS more is wanted e^1.5 times as often."""


class ShapeError(ValueError):
    """Tensors whose shapes a loss can't take."""


def regression_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Smooth-L1 with beta 0.1 MOS."""
    _check_shapes(predicted, target)
    return functional.smooth_l1_loss(predicted, target, beta=SMOOTH_L1_BETA)


def ranking_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Hinge on the order of every two clips, in each dimension.

    Args:
        predicted: (B, K), MOS units.
        target: (B, K), MOS units. Pairs whose targets differ by 0.1 or less are rater noise and do not count.
    Returns:
        Mean over the counted pairs of max(0, 0.2 - difference in the right direction); 0 if no pair counts.
    Raises:
        ShapeError: not two tensors of one 2-D shape. A (B,) tensor would give only differences of 0, in silence.
    Source: pairwise hinge as in RankIQA (Liu et al., ICCV 2017). The least gap and the mean are ours.
    """
    _check_shapes(predicted, target)
    wanted = target.unsqueeze(0) - target.unsqueeze(1)
    given = predicted.unsqueeze(0) - predicted.unsqueeze(1)
    counts = wanted > RANK_MIN_GAP  # each pair once, in the direction in which it should rise
    hinge = functional.relu(RANK_MARGIN - given) * counts
    return hinge.sum() / counts.sum().clamp(min=1)


def scale_aware_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error, 1.5 times as much for targets below 2.5 and above 4.0, where clips are few."""
    _check_shapes(predicted, target)
    extreme = (target < SCALE_LOW) | (target > SCALE_HIGH)
    return ((predicted - target) ** 2 * torch.where(extreme, SCALE_WEIGHT, 1.0)).mean()


def correlation_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """1 - PLCC over the batch, mean over the dimensions. A dimension without spread in its targets does not count."""
    _check_shapes(predicted, target)
    p = predicted - predicted.mean(0)
    t = target - target.mean(0)
    spread = t.norm(dim=0)
    plcc = (p * t).sum(0) / (p.norm(dim=0) * spread + 1e-6)
    counts = spread > 1e-6
    return ((1 - plcc) * counts).sum() / counts.sum().clamp(min=1)


def alignment_loss(predicted: Tensor, rated: Tensor, known: Tensor, own: Tensor) -> Tensor:
    """Every clip of a batch against every prompt of it.

    Where it is known how well a clip fits a prompt, the prediction is drawn to that, by the squared error; four
    times as much if that is above 3, for few prompts of others fit. Where it is not known, a clip must fit its own
    prompt better than the other, by a margin that grows with how well it was rated to fit its own.

    Args:
        predicted: (B, P) Alignment of every clip with every prompt, MOS units.
        rated: (B,) rated Alignment with its own prompt, MOS units.
        known: (B, P) Alignment with every prompt where known, else NaN.
        own: (B, P) bool, True where the prompt is the clip's own: counted only where it is known how well it fits.
    Returns:
        Mean over the pairs; 0 where every prompt is every clip's own.
    Raises:
        ShapeError: shapes other than these.
    """
    if not (predicted.ndim == 2 and predicted.shape == known.shape == own.shape and rated.shape == predicted.shape[:1]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (predicted, rated, known, own))
        raise ShapeError(f"wanted (B, P), (B,), (B, P) and (B, P) tensors, got {shapes}")
    is_known = ~known.isnan()
    counts = is_known | ~own
    target = known.nan_to_num()  # a NaN that is masked later would still make its gradient NaN
    graded = (predicted - target) ** 2 * torch.where(target > FITTING, FITTING_WEIGHT, 1.0)
    fits_own = (predicted * own).sum(1, keepdim=True) / own.sum(1, keepdim=True).clamp(min=1)
    margin = OTHER_PROMPT_MARGIN * (rated.unsqueeze(1) - 1)
    contrast = functional.relu(predicted - fits_own + margin)
    loss = torch.where(is_known, graded, contrast) * counts
    return loss.sum() / counts.sum().clamp(min=1)


def choice_loss(predicted: Tensor, known: Tensor) -> Tensor:
    """Which prompts each clip fits best: cross-entropy of its choice among all whose fit is known.

    That a clip shows a cat says that it shows no horse. The squared error of single pairs hardly tells that, for nearly
    all of them fit badly.

    Args:
        predicted: (B, P) Alignment of every clip with every prompt, MOS units, between 1 and 5.
        known: (B, P) Alignment with every prompt where known, else NaN.
    Returns:
        Mean over the clips of which anything is known, nats; 0 without any.
    Raises:
        ShapeError: shapes other than these.
    """
    _check_shapes(predicted, known)
    is_known = ~known.isnan()
    rows = is_known.any(1)
    if not rows.any():
        return predicted.sum() * 0.0
    logits = torch.logit((predicted[rows] - 1) / 4, eps=1e-6).masked_fill(~is_known[rows], -1e4)
    wanted = (CHOICE_SHARPNESS * known[rows]).masked_fill(~is_known[rows], -1e4).softmax(1)
    return -(wanted * logits.log_softmax(1)).sum(1).mean()


def fault_loss(predicted: Tensor, known: Tensor) -> Tensor:
    """What each kind of fault takes from a clip, where it is known: the squared error, summed over the kinds.

    Args:
        predicted: (B, K), MOS that each kind takes.
        known: (B, K), the same where known, else NaN.
    Returns:
        Mean over the clips of which it is known; 0 without any.
    Raises:
        ShapeError: shapes other than these.
    """
    _check_shapes(predicted, known)
    rows = known.isfinite().all(1)
    errors = (predicted - known.nan_to_num()) ** 2  # a NaN that is masked later would still make its gradient NaN
    return (errors.sum(1) * rows).sum() / rows.sum().clamp(min=1)


def _check_shapes(predicted: Tensor, target: Tensor) -> None:
    if predicted.ndim != 2 or predicted.shape != target.shape:
        raise ShapeError(f"wanted two (B, K) tensors, got {tuple(predicted.shape)} and {tuple(target.shape)}")


class AdaptiveWeights:
    """The weights of the loss terms; those of regression and ranking shift to the one that stalls.

    After each epoch each of the two is weighted by softmax(r / temperature), r being its mean loss over that of the
    epoch before (near 1: it stalls), relative to an even share; their sum stays what the settings say.

    Source: dynamic weight averaging (Liu, Johns and Davison, CVPR 2019), temperature 2; ours: it scales the settings'
    weights instead of starting from equal ones, and only these two take part.
    """

    ADAPTING = ("regression", "ranking")
    TEMPERATURE = 2.0
    MAX_RATIO = 10.0
    """A term that was next to nothing an epoch ago has a ratio without bound, which `exp` would not survive."""

    def __init__(self, settings: LossSettings) -> None:
        self.base: dict[str, float] = settings.model_dump()
        self.current = dict(self.base)
        self.previous: dict[str, float] = {}

    def end_epoch(self, means: Mapping[str, float]) -> None:
        """Adapt to the mean of each term over the epoch that ended."""
        if self.previous:
            pull = {
                term: math.exp(self._ratio(means[term], self.previous[term]) / self.TEMPERATURE) * self.base[term]
                for term in self.ADAPTING
            }
            total = sum(self.base[term] for term in self.ADAPTING)
            for term in self.ADAPTING:
                self.current[term] = total * pull[term] / max(sum(pull.values()), 1e-8)
        self.previous = {term: means[term] for term in self.ADAPTING}

    def _ratio(self, now: float, before: float) -> float:
        return min(now / max(before, 1e-8), self.MAX_RATIO)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum."""
        return torch.stack([self.current[name] * value for name, value in terms.items()]).sum()

    def state(self) -> dict[str, dict[str, float]]:
        """What a resumed run needs."""
        return {"current": dict(self.current), "previous": dict(self.previous)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from `state()`."""
        self.current, self.previous = dict(state["current"]), dict(state["previous"])
