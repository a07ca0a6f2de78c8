"""Faults that a clip's statistics show by themselves: noise, lost detail and texture, stops, flicker and shaking.

A model that learned from some hundred clips knows these in such clips. In a clip unlike them anything may drive it
anywhere, and a worse copy of the clip could come out better. What is measured here is therefore taken from the aspect
in any case: the judges and the forests learn what is left of the ratings once it has been taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

MEASURED = ("noise", "blur", "low_resolution", "smooth", "freeze", "flicker", "jitter")
"""Of the kinds that may be known of a clip (`labels.FAULTS`), those that are taken here."""

# Where each lies among a frame's statistics (`statistics.py`); a test holds each to what it says.
_FINE_DETAIL, _COARSE_DETAIL = (23, 24), (27, 28)
_FINEST_DETAIL, _CALM_NOISE = 29, 30
_LIGHT_CHANGE = 44
_CAMERA = (62, 63)
_LONGEST_STILL = -1

# Of each fault: what more of it takes, in logits of the MOS, and from where on. What usually is there takes nothing:
# the levels are about those of the median clip of the sample data, for lost detail that of the sharpest fifth. Lost
# texture has none such: nearly every clip is above it.
_NOISE = (2.0, -1.8)
_UNSHARP = (1.6, 0.55)
_SMOOTH = (0.7, 2.5)
_STILL = (3.0, 0.1)
_NEARLY_ALL = (2.0, 0.6)
_FLICKER = (0.2, -6.2)
_SHAKE = (0.15, -1.8)


def measured_faults(statistics: Tensor) -> tuple[Tensor, Tensor]:
    """What the faults of clips take from Traditional and from Temporal, by statistics (B, T, STATISTICS).

    Returns:
        Two (B,) float32, logits of a MOS, 0 or more. Noise: its logarithm in the calmest fields against that of the
        coarse detail. Lost detail: that of the coarse detail against the fine. Lost texture: how little there is of the
        finest detail, which a coder drops first; noise passes for some, and takes more than that gives. Standing still:
        the longest stretch, as a share of the clip; more where it is nearly all. Flicker: the logarithm of how much the
        light changes from frame to frame. Shaking: that of how much the camera's movement does.
    """
    statistics = statistics.float()
    fine, coarse = (statistics[..., places].mean(1) for places in (_FINE_DETAIL, _COARSE_DETAIL))
    noise = statistics[..., _CALM_NOISE].mean(1) - coarse[:, 0]
    unsharp = (coarse - fine).mean(1)
    smooth = -statistics[..., _FINEST_DETAIL].mean(1)
    flicker = torch.log(statistics[..., _LIGHT_CHANGE].abs().mean(1) + 1e-3)
    camera = statistics[..., _CAMERA]
    turn = (camera[:, 2:] - 2 * camera[:, 1:-1] + camera[:, :-2]).abs().sum(1) / max(camera.shape[1] - 2, 1)
    shake = torch.log(turn + 0.02).mean(-1)
    still = statistics[:, 0, _LONGEST_STILL]
    temporal = _taken(still, _STILL) + _taken(still, _NEARLY_ALL) + _taken(flicker, _FLICKER) + _taken(shake, _SHAKE)
    return _taken(noise, _NOISE) + _taken(unsharp, _UNSHARP) + _taken(smooth, _SMOOTH), temporal


def _taken(level: Tensor, rule: tuple[float, float]) -> Tensor:
    much, above = rule
    return much * (level - above).clamp(min=0).nan_to_num(0.0)
