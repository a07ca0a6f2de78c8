"""Statistics of frames that no image network sees well: sharpness, noise, blockiness, exposure, and motion.

Owns how they are measured, on all frames at once; they are part of lite's frozen stem. Frames come in as
(B, 3, T, H, W) float in [0, 1], the statistics of each frame go out as (B, T, STATISTICS) float32.

What depends on the frame before (differences, shifts) is for the first frame what it is for the second.

A video of fewer frames than are taken gives some of them several times. Measured as they come, its movement would stop
and start all the time, and nothing would tell that from a video that freezes; so it is measured at the video's own
rate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from qualivision.video import frame_indices

if TYPE_CHECKING:
    from torch import Tensor

BANDS = 8
"""Rings of the power spectrum, by the logarithm of the spatial frequency."""
HUES = 8
"""Sectors of the colour circle."""
LOCAL_GRID = 4
"""Shifts are measured on a grid of so many by so many fields."""
FLOW_GRID = 8
"""... and optical flow."""

_FEWEST = 12  # frames that a video is taken to have: one that stands still nearly always looks like one of two
_STILL = 6e-4  # a sixth of a grey level: below it nothing moves
_CALM, _PULSE = 1e-3, 5e-3  # of a picture that most often changes by less than the one, coding alone changes the other
_STILL_SHARE = 0.15  # ... nor where less changes than this share of what changes where most does
_FLOOR = 1e-4  # about a fortieth of a grey level: below it two frames are the same
_LUMA = (0.299, 0.587, 0.114)


def frame_statistics(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Every statistic of every frame.

    Args:
        frames: (B, 3, T, H, W) float in [0, 1], T at least 2, H and W at least 32.
    Returns:
        (B, T, STATISTICS) float32; energies as natural logarithms, shifts in pixels of the frames given. Of a video
        with fewer than T frames these are the rows of its own frames, there and back until there are T.
        And (B, T, FLOW_GRID, FLOW_GRID), how much each field moves against the rest of the picture; each map sums to 1.
    """
    rows, moving = [], []
    for clip in frames:  # clip by clip: the intermediates of 64 frames are some 100 MB
        source = own_frames(clip)
        once = torch.searchsorted(source, torch.arange(int(source[-1]) + 1, device=source.device))
        own = clip if len(once) == clip.shape[1] else clip[:, once]
        pixels = own.transpose(0, 1).float()
        luma = torch.einsum("tchw,c->thw", pixels, torch.tensor(_LUMA, device=pixels.device))
        halved = functional.avg_pool2d(luma, 2)
        coarse = functional.avg_pool2d(pixels, 4)  # light and colour need no fine detail
        light = functional.avg_pool2d(halved, 2)
        flow, where = _flow(halved)
        still = _still(luma)
        moving_last = _last_that_moved(still)
        made = (*_exposure(light), *_colour(coarse, light), *_detail(luma, halved, light), *_spectrum(luma))
        parts = (*made, _colour_change(coarse), *_motion(luma, halved), *flow, *_stills(still))
        rows.append(torch.stack(parts, dim=1)[_there_and_back(len(once), len(source))])
        moving.append(where[moving_last][source])
    return torch.stack(rows), torch.stack(moving)


def own_frames(clip: Tensor) -> Tensor:
    """Which frame of its video each frame of a clip is: (T,) int64, rising from 0, for (3, T, H, W) frames.

    The video is taken to have as few frames as its repetitions allow (`qualivision.video.frame_indices`). A frame that
    freezes repeats itself too, but not where a video of so few frames would.
    """
    times = clip.shape[1]
    for step in (8, 2):  # most often a few pixels tell that every frame is new
        new = (clip[:, 1:, ::step, ::step] != clip[:, :-1, ::step, ::step]).flatten(2).any(2).any(0)
        if bool(new.all()):
            return torch.arange(times, device=clip.device)
    if not bool(new.any()):
        return torch.arange(times, device=clip.device)
    totals = range(min(_FEWEST, times), times + 1)
    sources = torch.from_numpy(np.stack([frame_indices(total, times) for total in totals])).to(clip.device)
    fits = ~((sources[:, 1:] == sources[:, :-1]) & new).any(1)
    return sources[int(fits.int().argmax())]


def _still(luma: Tensor) -> Tensor:
    """(T,) bool: in which frames nothing moves but what coding leaves, against how much does where it moves most."""
    change = _size(luma[1:] - luma[:-1])
    most = float(change.topk(min(3, len(change))).values[-1])  # one or two may be jumps
    # A coder comes back to a still picture now and then, and where nothing moves at all that is the most there is.
    least = _PULSE if float(change.median()) <= _CALM else _STILL
    return _from_the_second(change <= max(_STILL_SHARE * most, least))


def _last_that_moved(still: Tensor) -> Tensor:
    """(T,): for each frame the last one in which something moves; before the first, that. Itself where nothing does."""
    frames = torch.arange(len(still), device=still.device)
    if bool(still.all()):
        return frames
    return torch.where(still, -1, frames).cummax(0).values.clamp(min=int((~still).int().argmax()))


def _stills(still: Tensor) -> list[Tensor]:
    """Whether each frame stands still, and of the whole clip the share of the longest stretch that does."""
    longest = run = 0
    for one in still.tolist():
        run = run + 1 if one else 0
        longest = max(longest, run)
    return [still.float(), torch.full(still.shape, longest / len(still), device=still.device)]


def _there_and_back(count: int, length: int) -> Tensor:
    """0, 1, ... count - 1, count - 2, ... 0, 1, ...: (length,)."""
    period = max(2 * (count - 1), 1)
    place = torch.arange(length) % period
    return torch.minimum(place, period - place)


def _log(energy: Tensor) -> Tensor:
    return torch.log(energy + _FLOOR)


def _size(maps: Tensor) -> Tensor:
    """The mean of what maps (T, H, W) hold, without its sign: (T,). In one pass, without a copy."""
    return torch.linalg.vector_norm(maps, 1, (1, 2)) / math.prod(maps.shape[1:])


def _spread(maps: Tensor) -> Tensor:
    """The standard deviation of maps (T, H, W), (T,): torch's own takes ten times as long."""
    centred = maps - maps.mean((1, 2), keepdim=True)
    return torch.linalg.vector_norm(centred, 2, (1, 2)) / math.sqrt(math.prod(maps.shape[1:]) - 1)


def _share(where: Tensor) -> Tensor:
    """The share of maps (T, H, W) of bool that is true: (T,)."""
    return where.mean((1, 2), dtype=torch.float32)


def _exposure(luma: Tensor) -> list[Tensor]:
    mean, spread = luma.mean((1, 2)), _spread(luma)
    centred = luma - mean.view(-1, 1, 1)
    skew = (centred * centred * centred).mean((1, 2)) / (spread**3 + _FLOOR)
    dark = _share(luma < 0.06)
    bright = _share(luma > 0.94)
    return [mean, spread, skew, dark, bright]


def _colour(pixels: Tensor, luma: Tensor) -> list[Tensor]:
    red_green = pixels[:, 0] - pixels[:, 1]
    yellow_blue = 0.5 * (pixels[:, 0] + pixels[:, 1]) - pixels[:, 2]
    chroma = torch.sqrt(red_green**2 + yellow_blue**2 + 1e-8)
    means = [red_green.mean((1, 2)), yellow_blue.mean((1, 2)), chroma.mean((1, 2))]
    spreads = [_spread(red_green), _spread(yellow_blue), _spread(chroma)]
    vivid = _share(chroma > 0.4)
    pairs = ((luma, red_green), (luma, yellow_blue), (red_green, yellow_blue))
    related = [_correlation(a, b) for a, b in pairs]  # of two tones only, each follows from the other
    return [*means, *spreads, vivid, *_hues(red_green, yellow_blue, chroma), *related]


def _colour_change(pixels: Tensor) -> Tensor:
    """By how much the mean colour differs from that of the frame before, (T,)."""
    red, green, blue = pixels.mean((2, 3)).unbind(1)
    means = torch.stack((red - green, 0.5 * (red + green) - blue), 1)
    return _from_the_second((means[1:] - means[:-1]).abs().sum(1))


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (value - value.mean((1, 2), keepdim=True) for value in (a, b))
    scale = ((a**2).mean((1, 2)) * (b**2).mean((1, 2))).sqrt()
    return (a * b).mean((1, 2)) / (scale + _FLOOR)


def _hues(red_green: Tensor, yellow_blue: Tensor, chroma: Tensor) -> tuple[Tensor, ...]:
    """How much of the frame's chroma lies in each sector of the colour circle: a palette."""
    sector = ((torch.atan2(yellow_blue, red_green) / (2 * math.pi) + 0.5) * HUES).long().clamp(max=HUES - 1)
    sums = chroma.new_zeros(len(chroma), HUES).scatter_add_(1, sector.flatten(1), chroma.flatten(1))
    return (sums / chroma[0].numel()).unbind(1)


def _detail(luma: Tensor, halved: Tensor, light: Tensor) -> list[Tensor]:
    """Gradients at three scales; noise by Immerkaer's mask (CVIU 1996), also in the calmest fields; blockiness."""
    out = []
    profiles = []
    for image in (luma, halved, light):
        across, down = (image[:, :, 1:] - image[:, :, :-1]).abs_(), (image[:, 1:] - image[:, :-1]).abs_()
        profiles += [across.mean(1), down.mean(2)]
        out += [_log(profile.mean(1)) for profile in profiles[-2:]]
    bend = luma[:, :, 2:] + luma[:, :, :-2] - 2 * luma[:, :, 1:-1]
    noise = (bend[:, 2:] + bend[:, :-2] - 2 * bend[:, 1:-1]).abs_()
    fields = functional.adaptive_avg_pool2d(noise, 8).flatten(1).sort(dim=1).values
    out += [_log(noise.mean((1, 2))), _log(fields[:, 6]), _log(fields[:, -6])]
    return [*out, _periodicity(profiles[0]), _periodicity(profiles[1])]


def _periodicity(profile: Tensor) -> Tensor:
    """How much the gradient's profile, (T, N), repeats itself across the frame: a coder's grid, whatever its pitch."""
    spectrum = torch.fft.rfft(profile - profile.mean(1, keepdim=True)).abs()
    fine = spectrum[:, spectrum.shape[1] // 8 :]
    return torch.log((fine.amax(1) + _FLOOR) / (fine.median(1).values + _FLOOR))


def _spectrum(luma: Tensor) -> list[Tensor]:
    height, width = luma.shape[1:]
    centred = (luma - luma.mean((1, 2), keepdim=True)) * _window(height, width, luma)
    spectrum = torch.fft.rfft2(centred, norm="ortho")
    power = spectrum.real**2 + spectrum.imag**2
    vertical = torch.fft.fftfreq(height, device=luma.device).view(-1, 1)
    horizontal = torch.fft.rfftfreq(width, device=luma.device).view(1, -1)
    radius = torch.sqrt(vertical**2 + horizontal**2).clamp(min=1 / max(height, width))
    low, high = math.log(1 / max(height, width)), math.log(math.sqrt(0.5))
    ring = ((radius.log() - low) / (high - low) * BANDS).long().clamp(max=BANDS - 1).flatten()
    each = functional.one_hot(ring, BANDS).float()
    return list(torch.log(power.flatten(1) @ each / each.sum(0).clamp(min=1) + 1e-7).unbind(1))


def _motion(luma: Tensor, halved: Tensor) -> list[Tensor]:
    difference = luma[1:] - luma[:-1]
    change = difference.abs()
    fields = functional.adaptive_avg_pool2d(change, 8).flatten(1).sort(dim=1).values
    turn = _size(difference[1:] - difference[:-1])
    acceleration = _from_the_second(turn) if len(turn) else difference.new_zeros(len(difference))  # needs three frames
    across, down, certain = _shift(halved, 1)
    local_across, local_down, local_certain = _shift(halved, LOCAL_GRID)
    lighter = difference.mean((1, 2))
    parts = [
        _log(change.mean((1, 2))),
        lighter,
        _log(lighter.abs()),
        _spread(difference),
        _share(change < 0.004),
        *(_log(fields[:, place]) for place in (6, 32, 57, 63)),
        _log(acceleration),
        across[:, 0],
        down[:, 0],
        torch.hypot(across, down)[:, 0],
        certain[:, 0],
        local_across.std(1),
        local_down.std(1),
        torch.hypot(local_across, local_down).amax(1),
        local_certain.mean(1),
        local_certain.amin(1),
    ]
    return [_from_the_second(part) for part in parts]


def _from_the_second(part: Tensor) -> Tensor:
    """(T - 1, ...) to (T, ...): the first is as the second."""
    return torch.cat((part[:1], part))


def _shift(halved: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Movement since the frame before, by phase correlation (Kuglin and Hines, 1975), in each field of a grid.

    Args:
        halved: frames at half their size, (T, H, W).
        grid: fields along each side.
    Returns:
        Horizontal and vertical shift in pixels of the whole size, and how sharp the correlation's peak is (0 to 1);
        each (T - 1, grid²).
    """
    height, width = (side // grid for side in halved.shape[1:])
    fields = halved[:, : height * grid, : width * grid].reshape(-1, grid, height, grid, width)
    fields = fields.permute(0, 1, 3, 2, 4).reshape(-1, grid * grid, height, width)
    fields = (fields - fields.mean((2, 3), keepdim=True)) * _window(height, width, halved)
    spectrum = torch.fft.rfft2(fields)
    cross = spectrum[1:] * spectrum[:-1].conj()
    surface = torch.fft.irfft2(cross / (cross.abs() + 1e-3), s=(height, width))
    peak, place = surface.flatten(2).max(2)
    vertical = torch.div(place, width, rounding_mode="floor")
    horizontal = place % width
    across = torch.where(horizontal > width // 2, horizontal - width, horizontal) * 2.0
    down = torch.where(vertical > height // 2, vertical - height, vertical) * 2.0
    return across, down, peak


def _flow(halved: Tensor) -> tuple[list[Tensor], Tensor]:
    """Optical flow since the frame before, of fields, by least squares on gradients (Lucas and Kanade, IJCAI 1981).

    What moves against the rest of the picture is taken for the subject: where it is, how it moves, turns and grows; and
    what no movement explains, for melting things.

    Args:
        halved: frames at half their size, (T, H, W).
    Returns:
        The statistics, each (T,), and the map of what moves, (T, FLOW_GRID, FLOW_GRID); the first is the second's.
    """
    # Of equal contrast: a flicker is no movement.
    halved = (halved - halved.mean((1, 2), keepdim=True)) / (_spread(halved).view(-1, 1, 1) + 0.02)
    middle = 0.5 * (halved[1:] + halved[:-1])
    across = 0.5 * (middle[:, 1:-1, 2:] - middle[:, 1:-1, :-2])
    down = 0.5 * (middle[:, 2:, 1:-1] - middle[:, :-2, 1:-1])
    later = (halved[1:] - halved[:-1])[:, 1:-1, 1:-1]
    products = (across**2, down**2, across * down, across * later, down * later, later**2)
    xx, yy, xy, xt, yt, tt = functional.adaptive_avg_pool2d(torch.stack(products, 1), FLOW_GRID).unbind(1)
    calm = 2e-3
    determinant = (xx + calm) * (yy + calm) - xy**2
    u = -((yy + calm) * xt - xy * yt) / determinant
    v = -((xx + calm) * yt - xy * xt) / determinant
    unexplained = (tt + u * xt + v * yt).clamp(min=0).flatten(1)
    camera_u, camera_v = u.flatten(1).median(1).values, v.flatten(1).median(1).values
    own_u, own_v = u.flatten(1) - camera_u.unsqueeze(1), v.flatten(1) - camera_v.unsqueeze(1)
    speed = torch.hypot(own_u, own_v)
    weight = speed * ((xx + yy) / (xx + yy + 0.02)).flatten(1) + _FLOOR
    share = weight / weight.sum(1, keepdim=True)
    place = torch.linspace(-1, 1, FLOW_GRID, device=halved.device)
    y, x = (grid.flatten() for grid in torch.meshgrid(place, place, indexing="ij"))
    centre_x, centre_y = share @ x, share @ y
    off_x, off_y = x - centre_x.unsqueeze(1), y - centre_y.unsqueeze(1)
    reach = (share * (off_x**2 + off_y**2)).sum(1) + _FLOOR
    parts = [
        camera_u,
        camera_v,
        torch.hypot(camera_u, camera_v),
        centre_x,
        centre_y,
        reach.sqrt(),
        _log(speed.mean(1)),
        _log(weight.amax(1)),
        (share * own_u).sum(1),
        (share * own_v).sum(1),
        (share * (own_u * off_x + own_v * off_y)).sum(1) / reach,  # grows
        (share * (own_v * off_x - own_u * off_y)).sum(1) / reach,  # turns
        _log(unexplained.mean(1)),
        _log(unexplained.amax(1)),
        unexplained.mean(1) / (tt.mean((1, 2)) + _FLOOR),
    ]
    where = _from_the_second(share).unflatten(1, (FLOW_GRID, FLOW_GRID))
    return [_from_the_second(part) for part in parts], where


def _window(height: int, width: int, like: Tensor) -> Tensor:
    """A Hann window: without it the frame's borders would be the strongest edges."""
    tall = torch.hann_window(height, periodic=False, device=like.device)
    wide = torch.hann_window(width, periodic=False, device=like.device)
    return tall.view(-1, 1) * wide.view(1, -1)


STATISTICS = 5 + 7 + HUES + 3 + 6 + 3 + 2 + BANDS + 1 + 19 + 15 + 2
