"""Where to look: the subject of a clip is taken to be what moves against the rest of the picture.

Owns the subject's track, the crops around it and their colours; part of lite's frozen stem. A whole frame shows a small
subject to an image network in a few cells of its maps; a crop shows it large.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor

CROPS = 8
"""So many times are looked at, evenly over the clip."""
CROP_SIDE = 128
"""Pixels of a crop, which shows half the frame's width and height."""
TRACK = 16
"""The subject is followed at so many times."""
_HUES = 16
SUBJECT_CHANNELS = 4 * (_HUES + 2) + 3 + 4 * TRACK + 4
_SHARPNESS = 4
"""Power of the map of what moves, before its centre is taken: what hardly moves must not drag it to the middle."""
_COLOUR_SIDE = 40


def track(moving: Tensor) -> Tensor:
    """Where the subject is.

    Args:
        moving: (T, G, G), how much each field of a grid moves against the rest.
    Returns:
        (T, 4): x and y of its centre from -1 to 1, how far it is spread (variance), and its share at the edge.
    """
    times, side = len(moving), moving.shape[1]
    # Over a sixth of the clip: a subject that stops for a moment is still there.
    reach = max(times // 12, 1)
    series = functional.pad(moving.flatten(1).T.unsqueeze(0), (reach, reach), mode="replicate")
    calm = functional.avg_pool1d(series, 2 * reach + 1, stride=1)[0].T.reshape(times, 1, side, side)
    calm = functional.avg_pool2d(calm, 3, 1, 1)[:, 0]
    sharp = (calm / calm.amax((1, 2), keepdim=True)) ** _SHARPNESS
    share = sharp / sharp.sum((1, 2), keepdim=True)
    place = torch.linspace(-1, 1, side, device=moving.device)
    x, y = share.sum(1) @ place, share.sum(2) @ place
    far = (place.view(1, 1, -1) - x.view(-1, 1, 1)) ** 2 + (place.view(1, -1, 1) - y.view(-1, 1, 1)) ** 2
    at_edge = 1 - share[:, 1:-1, 1:-1].sum((1, 2))
    return torch.stack((x, y, (share * far).sum((1, 2)), at_edge), 1)


def crops(frames: Tensor, followed: Tensor) -> Tensor:
    """The subject, large: (CROPS, 3, CROP_SIDE, CROP_SIDE), from frames (3, T, H, W) and its track (T, 4)."""
    times, (height, width) = frames.shape[1], frames.shape[2:]
    tall, wide = height // 2, width // 2
    found = []
    for number in range(CROPS):
        time = (2 * number + 1) * times // (2 * CROPS)
        x, y = (float(value) for value in followed[time, :2])
        left = min(max(round((x + 1) / 2 * width - wide / 2), 0), width - wide)
        top = min(max(round((y + 1) / 2 * height - tall / 2), 0), height - tall)
        found.append(frames[:, time, top : top + tall, left : left + wide])
    size = (CROP_SIDE, CROP_SIDE)
    return functional.interpolate(torch.stack(found), size, mode="bilinear", align_corners=False)


def describe(shown: Tensor, followed: Tensor) -> Tensor:
    """What colours the subject has, how they change, those around it, and its way: (SUBJECT_CHANNELS,).

    Args:
        shown: the crops, (CROPS, 3, CROP_SIDE, CROP_SIDE).
        followed: its track, (T, 4).
    """
    small = functional.adaptive_avg_pool2d(shown, _COLOUR_SIDE)
    place = torch.linspace(-1, 1, _COLOUR_SIDE, device=shown.device)
    far = place.view(-1, 1) ** 2 + place.view(1, -1) ** 2
    inner, outer = torch.exp(-far / (2 * 0.3**2)), (far > 0.9).float()
    centre, around = _hues(small, inner / inner.sum()), _hues(small, outer / outer.sum())
    restless = (centre[1:] - centre[:-1]).abs().mean(0)
    middle = small[:, :, 14:26, 14:26].mean((2, 3)).median(0).values
    way = functional.adaptive_avg_pool1d(followed.T.unsqueeze(0), TRACK).flatten()
    out = followed[:, :2].abs()  # towards an edge: a subject that is cut off
    edges = torch.stack((out.amax(1).mean(), out.max(), *out.mean(0)))
    return torch.cat((centre.mean(0), centre.median(0).values, restless, around.mean(0), middle, way, edges))


def _hues(pictures: Tensor, weights: Tensor) -> Tensor:
    """(N, 3, H, W) to (N, 18): shares of chroma around the colour circle, all chroma, light; weighted by (H, W)."""
    red_green = pictures[:, 0] - pictures[:, 1]
    yellow_blue = 0.5 * (pictures[:, 0] + pictures[:, 1]) - pictures[:, 2]
    chroma = (torch.sqrt(red_green**2 + yellow_blue**2 + 1e-8) * weights).flatten(1)
    turn = (torch.atan2(yellow_blue, red_green) / (2 * math.pi) + 0.5).flatten(1) * _HUES
    low = turn.floor()
    sums = chroma.new_zeros(len(pictures), _HUES)
    sums.scatter_add_(1, low.long() % _HUES, chroma * (1 + low - turn))
    sums.scatter_add_(1, (low.long() + 1) % _HUES, chroma * (turn - low))
    total = sums.sum(1, keepdim=True)
    light = (pictures.mean(1) * weights).sum((1, 2)).unsqueeze(1)
    return torch.cat((sums / (total + 1e-3), total, light), 1)
