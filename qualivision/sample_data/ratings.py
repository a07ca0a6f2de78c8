"""Who made a clip, what is true of it, and what raters say.

Owns the five generators' characters, how visible faults add up to five latent truths on the MOS scale, and the panel of
raters. Does not know how a fault is done or measured (`degradations.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from qualivision.labels import DIMENSIONS, MOS_MAX, MOS_MIN, graded_alignment

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]

RATERS_PER_CLIP: Final = 3
PANEL: Final = 12
_BIAS: Final = 0.25
_NOISE: Final = 0.55
_BEST: Final = 4.85  # of a clip in which nothing can be seen to be wrong
# What a fault of one dimension takes from another: a blurred picture is not beautiful either.
_SPILL: Final = {
    ("Traditional", "Aesthetic"): 0.16,
    ("Traditional", "Temporal"): 0.04,
    ("Temporal", "Traditional"): 0.06,
}
_OVERALL_WEIGHTS: Final = {"Traditional": 0.26, "Alignment": 0.26, "Aesthetic": 0.2, "Temporal": 0.28}
_PULL_TO_WORST: Final = 0.25
# A mix of four varies less than each of them, but raters use the whole scale for their overall verdict too.
_OVERALL_STRETCH: Final = 1.4
_OVERALL_CENTRE: Final = 3.2


@dataclass(frozen=True)
class Generator:
    """A character: how much worse (above 1) or better it is per dimension, its favourite faults, what it gets wrong."""

    letter: str
    severity: Mapping[str, float]
    favourites: tuple[str, ...]
    wrong: Mapping[str, float]


# Mild on purpose: the spread within a generator must stay wider than that between them.
GENERATORS: Final = (
    Generator(  # sharp, but flickers and shakes
        "A",
        {"Traditional": 0.75, "Aesthetic": 0.95, "Temporal": 1.25},
        ("flicker", "jitter", "noise"),
        {"subject": 0.26, "scene": 0.28, "colour": 0.3, "motion": 0.36},
    ),
    Generator(  # smooth, but blurred
        "B",
        {"Traditional": 1.25, "Aesthetic": 1.0, "Temporal": 0.75},
        ("blur", "low_resolution", "smooth", "washed_out"),
        {"subject": 0.28, "scene": 0.26, "colour": 0.28, "motion": 0.28},
    ),
    Generator(  # pretty, but does not listen
        "C",
        {"Traditional": 0.95, "Aesthetic": 0.72, "Temporal": 0.95},
        ("wobble", "overexposure", "off_frame"),
        {"subject": 0.34, "scene": 0.36, "colour": 0.56, "motion": 0.4},
    ),
    Generator(  # slow machine: stalls, and compresses hard
        "D",
        {"Traditional": 1.1, "Aesthetic": 0.9, "Temporal": 1.15},
        ("freeze", "judder", "jump", "compression", "blocking"),
        {"subject": 0.26, "scene": 0.28, "colour": 0.3, "motion": 0.34},
    ),
    Generator(  # garish and crowded, melts things; does what it is told
        "E",
        {"Traditional": 0.9, "Aesthetic": 1.3, "Temporal": 0.85},
        ("clutter", "palette_clash", "melting", "morph"),
        {"subject": 0.2, "scene": 0.22, "colour": 0.22, "motion": 0.26},
    ),
)


def combined(losses: list[float]) -> float:
    """The MOS that several faults of one dimension take together: less than their sum, more than the worst."""
    span = MOS_MAX - MOS_MIN
    left = 1.0
    for loss in losses:
        left *= 1 - min(loss, span) / span
    return span * (1 - left)


def latent_truth(losses: Mapping[str, float], asks: Mapping[str, str], shows: Mapping[str, str]) -> dict[str, float]:
    """The five truths, 1 to 5, by dimension.

    Args:
        losses: what the visible faults of Traditional, Aesthetic and Temporal take, in MOS.
        asks: what the prompt asks for, by aspect.
        shows: what the clip shows.
    """
    truth = {}
    for dimension in ("Traditional", "Aesthetic", "Temporal"):
        spilled = sum(share * losses[source] for (source, to), share in _SPILL.items() if to == dimension)
        truth[dimension] = _on_scale(_BEST - losses[dimension] - spilled)
    # In a picture that is nearly destroyed, what fits is hard to recognise too.
    unrecognised = 0.25 * max(0.0, losses["Traditional"] - 3.0)
    truth["Alignment"] = _on_scale(MOS_MIN + (graded_alignment(asks, shows) - MOS_MIN) * (1 - unrecognised))
    mean = sum(weight * truth[dimension] for dimension, weight in _OVERALL_WEIGHTS.items())
    worst = min(truth.values())
    mixed = (1 - _PULL_TO_WORST) * mean + _PULL_TO_WORST * worst
    truth["Overall"] = _on_scale(_OVERALL_CENTRE + _OVERALL_STRETCH * (mixed - _OVERALL_CENTRE))
    return {dimension: truth[dimension] for dimension in DIMENSIONS}


def panel_biases(seed: int) -> Floats:
    """How lenient each rater of the panel is: (PANEL,), MOS."""
    return np.random.default_rng([seed, 1]).normal(0, _BIAS, PANEL)


def rate(rng: np.random.Generator, truth: Mapping[str, float], biases: Floats) -> dict[str, list[int]]:
    """What `RATERS_PER_CLIP` raters of the panel say of each dimension: whole numbers from 1 to 5."""
    raters = rng.choice(len(biases), RATERS_PER_CLIP, replace=False)
    ratings = {}
    for dimension in DIMENSIONS:
        felt = truth[dimension] + biases[raters] + rng.normal(0, _NOISE, RATERS_PER_CLIP)
        ratings[dimension] = [int(v) for v in np.clip(np.rint(felt), MOS_MIN, MOS_MAX)]
    return ratings


def mos(ratings: list[int]) -> float:
    """Their mean to three decimals, as the release writes it."""
    return round(sum(ratings) / len(ratings), 3)


def _on_scale(value: float) -> float:
    return min(MOS_MAX, max(MOS_MIN, value))
