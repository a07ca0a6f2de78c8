"""The subject is found by its movement, seen large, and its colour is told."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import real_stem
from test_statistics import blurred, texture

from qualivision.models import fovea
from qualivision.models.fovea import CROP_SIDE, CROPS, SUBJECT_CHANNELS, TRACK, crops, describe, track
from qualivision.models.lite_stem import FOVEA_CHANNELS, IMAGE_CHANNELS, LAYOUT_CHANNELS
from qualivision.models.statistics import FLOW_GRID, STATISTICS, frame_statistics

SIDE, SQUARE = 128, 32
COLOURS = {
    "red": (0.84, 0.15, 0.13),
    "orange": (0.96, 0.53, 0.09),
    "yellow": (0.96, 0.85, 0.16),
    "green": (0.18, 0.66, 0.24),
    "blue": (0.15, 0.34, 0.86),
    "purple": (0.57, 0.22, 0.75),
}


def way(frames: int, start: tuple[float, float], end: tuple[float, float], *, stop: int = 0) -> torch.Tensor:
    """(frames, 2) from -1 to 1, evenly, with so many frames of standing still in the middle."""
    share = torch.linspace(0, 1, frames - stop)
    half = len(share) // 2
    share = torch.cat((share[:half], share[half].expand(stop), share[half:])).unsqueeze(1)
    return torch.tensor(start) * (1 - share) + torch.tensor(end) * share


def shown(places: torch.Tensor, colour: str = "red", *, drift: int = 1) -> torch.Tensor:
    """(3, T, SIDE, SIDE): a coloured, textured square on its way, over a soft grey texture that drifts."""
    ground, skin = blurred(texture(0), 2), 0.7 + 0.6 * blurred(texture(1), 1)[:SQUARE, :SQUARE]
    frames = []
    for number, (x, y) in enumerate(places.tolist()):
        frame = ground.roll(drift * number, 1).expand(3, -1, -1).clone()
        left, top = (round((value + 1) / 2 * SIDE - SQUARE / 2) for value in (x, y))
        frame[:, top : top + SQUARE, left : left + SQUARE] = torch.tensor(COLOURS[colour]).view(3, 1, 1) * skin
        frames.append(frame.clamp(0, 1))
    return torch.stack(frames, 1)


def followed(frames: torch.Tensor) -> torch.Tensor:
    return track(frame_statistics(frames.unsqueeze(0))[1][0])


@pytest.mark.parametrize(
    ("start", "end"),
    [((-0.7, 0.0), (0.7, 0.0)), ((0.0, 0.7), (0.0, -0.7)), ((0.6, -0.5), (-0.6, 0.5))],
    ids=["right", "up", "down and left"],
)
def test_the_track_follows_what_moves_against_the_ground(start, end):
    places = way(32, start, end)
    found = followed(shown(places))
    assert found.shape == (32, 4)
    inner = slice(3, -3)  # at the ends the mean over time looks one way only
    assert (found[inner, :2] - places[inner]).abs().max() < 0.3
    for axis in range(2):
        if start[axis] != end[axis]:
            assert torch.corrcoef(torch.stack((found[:, axis], places[:, axis])))[0, 1] > 0.98


@pytest.mark.parametrize("drift", [0, 1])  # pixels a frame; where it is 0, nothing moves at all for a moment
def test_a_subject_that_stops_for_a_moment_is_still_there(drift):
    places = way(60, (0.1, 0.3), (0.7, 0.3), stop=4)
    found = followed(shown(places, drift=drift))
    standing = slice(27, 33)
    assert (found[standing, :2] - places[standing]).abs().max() < 0.3


def test_where_nothing_moves_it_looks_at_the_middle():
    frozen = texture(0).expand(3, 8, -1, -1)
    assert followed(frozen)[:, :2].abs().max() < 1e-4


def test_what_is_all_over_the_picture_is_spread_further_than_a_subject():
    noise = torch.rand(3, 16, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert followed(noise)[:, 2].min() > followed(shown(way(16, (-0.4, 0.0), (0.4, 0.0))))[3:-3, 2].max()


# Crops


@pytest.mark.parametrize(("height", "width"), [(128, 128), (45, 97), (64, 33)])
@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_crops_show_half_the_frame_around_the_subject(height, width, count):
    frames = torch.zeros(3, count, height, width)
    places = torch.tensor([[0.2, -0.3, 0.0, 0.0]]).expand(count, 4)
    y, x = round((1 - 0.3) / 2 * height), round((1 + 0.2) / 2 * width)
    frames[0, :, y - 3 : y + 3, x - 3 : x + 3] = 1.0
    seen = crops(frames, places)
    assert seen.shape == (CROPS, 3, CROP_SIDE, CROP_SIDE)
    tall, wide = (torch.linspace(-1, 1, CROP_SIDE) @ seen[0, 0].mean(axis) / seen[0, 0].mean() for axis in (1, 0))
    assert abs(tall) / CROP_SIDE < 0.1 and abs(wide) / CROP_SIDE < 0.1
    assert seen[0, 0].mean() == pytest.approx(4 * 36 / (height * width), rel=0.15), "twice as large on each side"


@pytest.mark.parametrize("corner", [(-1.0, -1.0), (1.0, 1.0), (1.0, -1.0), (-3.0, 9.0)])
def test_crops_stay_within_the_frame(corner):
    frames = torch.zeros(3, 4, 64, 80)
    frames[0, :, :32, :40], frames[1, :, 32:, 40:], frames[2, :, :32, 40:] = 1.0, 1.0, 1.0
    seen = crops(frames, torch.tensor([[*corner, 0.0, 0.0]]).expand(4, 4)).mean((0, 2, 3)).tolist()
    quarter = {(-1.0, -1.0): [1, 0, 0], (1.0, 1.0): [0, 1, 0], (1.0, -1.0): [0, 0, 1], (-3.0, 9.0): [0, 0, 0]}
    assert seen == pytest.approx(quarter[corner])


def test_crops_are_of_times_evenly_over_the_clip():
    frames = (torch.arange(16.0).view(1, 16, 1, 1) / 16).expand(3, 16, 64, 64)
    assert (16 * crops(frames, torch.zeros(16, 4)).mean((1, 2, 3))).tolist() == pytest.approx(range(1, 16, 2))


def test_crops_show_the_subject_that_was_followed():
    frames = shown(way(32, (-0.6, -0.4), (0.6, 0.4)), "blue")
    seen = crops(frames, followed(frames))
    middle = seen[:, :, 44:84, 44:84].mean((2, 3))
    assert (middle[:, 2] > middle[:, 0] + 0.2).all(), "blue, on grey"


# Colours and the way


def hues(colour: str, *, light: float = 1.0) -> torch.Tensor:
    frames = light * shown(way(24, (-0.6, 0.0), (0.6, 0.0)), colour)
    found = describe(crops(frames, places := followed(frames)), places)
    assert found.shape == (SUBJECT_CHANNELS,)
    return found[: fovea._HUES]


def test_hues_tell_the_subjects_colour():
    found = {colour: hues(colour) for colour in COLOURS}
    # As places on the circle, weighted: neighbours share the two sectors between them.
    angle = torch.arange(fovea._HUES) / fovea._HUES * 2 * math.pi
    turns = {
        name: math.atan2((share @ angle.sin()).item(), (share @ angle.cos()).item()) for name, share in found.items()
    }
    apart = [
        abs(math.remainder(turns[one] - turns[other], 2 * math.pi)) for one in turns for other in turns if one < other
    ]
    assert min(apart) > 0.2
    for name, share in found.items():
        assert share.sum() > 0.9 and share.max() > 0.4, name


def test_hues_do_not_depend_on_the_light():
    assert (hues("green") - hues("green", light=0.6)).abs().max() < 0.15


def test_hues_of_grey_are_finite_and_nearly_nothing():
    grey = torch.full((CROPS, 3, CROP_SIDE, CROP_SIDE), 0.5)
    found = describe(grey, torch.zeros(8, 4))
    assert found.isfinite().all()
    assert found[fovea._HUES].item() == pytest.approx(1e-4, abs=1e-5), "all chroma"
    assert found[fovea._HUES + 1].item() == pytest.approx(0.5, abs=1e-4), "light"


def test_what_is_around_the_subject_is_told_apart_from_it():
    seen = torch.zeros(CROPS, 3, CROP_SIDE, CROP_SIDE)
    seen[:, 2] = 1.0
    seen[:, :, 40:88, 40:88] = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
    count = fovea._HUES + 2
    found = describe(seen, torch.zeros(8, 4))
    centre, around = found[: fovea._HUES], found[3 * count : 3 * count + fovea._HUES]
    assert centre.argmax() != around.argmax()
    middle = found[4 * count : 4 * count + 3]
    assert (found[2 * count : 3 * count] == 0).all(), "nothing changes"
    assert middle.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)


@pytest.mark.parametrize("count", [2, 5, 16, 40])
def test_the_way_is_told_at_as_many_times_whatever_the_frames(count):
    still = [torch.full((count,), value) for value in (0.25, 0.1, 0.4)]
    places = torch.stack((torch.linspace(-0.5, 0.5, count), *still), 1)
    described = describe(torch.rand(CROPS, 3, CROP_SIDE, CROP_SIDE), places)
    found = described[-4 * TRACK - 4 : -4].view(4, TRACK)
    assert (found[0, 1:] >= found[0, :-1]).all() and found[0, -1] > found[0, 0] + 0.2
    assert torch.allclose(found[1], torch.tensor(0.25)) and torch.allclose(found[2], torch.tensor(0.1))
    assert torch.allclose(found[3], torch.tensor(0.4))
    farthest, mean_x = described[-3], described[-2]
    assert farthest == 0.5 and described[-1] == 0.25, "towards an edge"
    assert mean_x == pytest.approx(places[:, 0].abs().mean())


# In the stem


@pytest.mark.parametrize(("count", "height", "width"), [(2, 45, 97), (3, 33, 35), (4, 64, 65), (5, 40, 32)])
def test_the_stem_takes_any_number_of_frames_of_odd_sizes(count, height, width):
    frames = torch.rand(1, 3, count, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = real_stem()(frames)
    assert found["image"].shape == (1, -(-count // 4), IMAGE_CHANNELS) and found["fovea"].shape == (1, FOVEA_CHANNELS)
    assert found["layout"].shape == (1, 36, LAYOUT_CHANNELS)
    highest = found["peaks"][0, :LAYOUT_CHANNELS]
    assert (highest >= found["layout"][0].mean(0) - 1e-2).all(), "of single cells, against means of fields"
    assert found["subject"].shape == (1, SUBJECT_CHANNELS) and found["statistics"].shape == (1, count, STATISTICS)
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("rest", [1e-6, 0.03])
def test_what_hardly_moves_does_not_drag_the_track_to_the_middle(rest):
    moving = torch.full((4, FLOW_GRID, FLOW_GRID), rest)
    moving[:, 6, 1] = 1.0
    found = track(moving)
    place = torch.linspace(-1, 1, FLOW_GRID)
    # The mean over 3 x 3 fields spreads it evenly around its place.
    assert torch.allclose(found[:, :2], torch.stack((place[1], place[6])).expand(4, 2), atol=0.05)
