"""Each statistic moves with the flaw that it is there to measure, and none is ever NaN."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from qualivision.models import statistics
from qualivision.models.statistics import BANDS, FLOW_GRID, LOCAL_GRID, STATISTICS, frame_statistics
from qualivision.video import frame_indices

SIDE = 128


def texture(seed: int = 0, *, side: int = SIDE) -> torch.Tensor:
    """A (side, side) grey picture in [0.2, 0.8] with the falling spectrum of photographs and no grid in it."""
    random = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(side).view(-1, 1), torch.fft.rfftfreq(side).view(1, -1))
    spectrum = torch.fft.rfft2(torch.randn(side, side, generator=random)) / frequency.clamp(min=1 / side)
    picture = torch.fft.irfft2(spectrum, s=(side, side))
    return 0.2 + 0.6 * (picture - picture.min()) / (picture.max() - picture.min())


def blurred(picture: torch.Tensor, radius: int = 2) -> torch.Tensor:
    padded = functional.pad(picture[None, None], (radius,) * 4, mode="reflect")
    return functional.avg_pool2d(padded, 2 * radius + 1, 1)[0, 0]


def noisy(picture: torch.Tensor, deviation: float = 0.05) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return (picture + deviation * torch.randn(picture.shape, generator=random)).clamp(0, 1)


def blocked(picture: torch.Tensor, pitch: int = 8) -> torch.Tensor:
    """Each block keeps its detail at a third and moves to its own mean, as a coarse coder leaves it."""
    means = functional.avg_pool2d(picture[None, None], pitch)
    return (picture + 2 * functional.interpolate(means, scale_factor=pitch)[0, 0]) / 3


def clip(*pictures: torch.Tensor) -> torch.Tensor:
    """Grey (H, W) pictures as one clip (1, 3, T, H, W)."""
    return torch.stack(pictures).expand(1, 3, -1, -1, -1)


def of_picture(group, picture: torch.Tensor) -> torch.Tensor:
    """A group's statistics of one grey picture."""
    return torch.stack([part[0] for part in group(picture[None])])


def half(pictures: torch.Tensor) -> torch.Tensor:
    """(T, H, W) pictures at half their size."""
    return functional.avg_pool2d(pictures, 2)


def detail(pictures: torch.Tensor) -> list[torch.Tensor]:
    """Statistics of detail."""
    return statistics._detail(pictures, half(pictures), half(half(pictures)))


def motion(*pictures: torch.Tensor) -> torch.Tensor:
    """(T, statistics of motion)."""
    luma = torch.stack(pictures)
    return torch.stack(statistics._motion(luma, half(luma)), 1)


@pytest.mark.parametrize(("count", "height", "width"), [(2, 32, 32), (3, 64, 48), (5, 45, 97), (4, 160, 160)])
def test_every_frame_gets_every_statistic_as_float32(count, height, width):
    frames = torch.rand(2, 3, count, height, width, generator=torch.Generator().manual_seed(0))
    found, moving = frame_statistics(frames)
    assert found.shape == (2, count, STATISTICS)
    assert moving.shape == (2, count, FLOW_GRID, FLOW_GRID)
    assert found.dtype == moving.dtype == torch.float32
    assert found.isfinite().all()
    assert (moving > 0).all() and torch.allclose(moving.sum((2, 3)), torch.ones(2, count))


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_frames_give_finite_statistics(level):
    found, moving = frame_statistics(torch.full((1, 3, 4, 64, 64), level))
    assert found.isfinite().all()
    assert torch.allclose(moving, torch.tensor(FLOW_GRID**-2.0)), "nothing moves, and nowhere more than elsewhere"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_precision_of_the_frames_hardly_matters(dtype):
    frames = clip(texture(0), texture(1), texture(2))
    wanted = frame_statistics(frames)[0]
    assert torch.allclose(frame_statistics(frames.to(dtype))[0], wanted, atol=0.05)


def test_a_clips_statistics_do_not_depend_on_the_other_clips():
    frames = torch.rand(3, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    for together, alone in zip(frame_statistics(frames), frame_statistics(frames[1:2]), strict=True):
        assert torch.equal(together[1], alone[0])


def test_statistics_come_group_by_group():
    frames = torch.rand(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    luma = (frames[0] * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1, 1)).sum(0)
    found = frame_statistics(frames)[0][0]
    exposure = torch.stack(statistics._exposure(functional.avg_pool2d(luma, 4)), 1)
    change, flow = motion(*luma), torch.stack(statistics._flow(half(luma))[0], 1)
    stills = torch.zeros(4, 2)
    moving = torch.cat((change, flow, stills), 1)
    assert torch.allclose(found[:, : exposure.shape[1]], exposure, atol=1e-5)
    assert torch.allclose(found[:, -moving.shape[1] :], moving, atol=1e-4)


# --- the video's own rate, and where it stands still


def shaky(count: int) -> torch.Tensor:
    """A clip (1, 3, count, H, W) in which every frame differs from all others."""
    picture, steps = texture(), torch.Generator().manual_seed(3)
    moves = torch.randint(-3, 4, (count, 2), generator=steps).cumsum(0).tolist()
    shown = [picture.roll((down, across), (0, 1)) + 1e-3 * number for number, (down, across) in enumerate(moves)]
    return clip(*shown).clone()


def taken(video: torch.Tensor, count: int) -> torch.Tensor:
    """So many frames of a video, as `qualivision.video` takes them."""
    return video[:, :, frame_indices(video.shape[2], count).tolist()]


@pytest.mark.parametrize("count", [12, 16, 23, 24, 30, 48, 63, 64])
def test_the_frames_of_a_shorter_video_are_found(count):
    source = statistics.own_frames(taken(shaky(count), 64)[0])
    assert source.tolist() == frame_indices(count, 64).tolist()


@pytest.mark.parametrize("held", [3, 8, 14])
def test_the_frames_of_a_shorter_video_that_freezes_are_found(held):
    video = shaky(23)
    video[:, :, 5 : 5 + held] = video[:, :, 5:6].clone()
    source = statistics.own_frames(taken(video, 64)[0])
    assert source.tolist() == frame_indices(23, 64).tolist()


def test_a_shorter_video_has_the_rows_of_its_own_frames_there_and_back():
    alone = frame_statistics(shaky(24))
    found, moving = frame_statistics(taken(shaky(24), 64))
    assert torch.equal(found[0, :24], alone[0][0]) and torch.equal(found[0, 24:47], alone[0][0, :23].flip(0))
    assert torch.equal(found[0, 47:64], alone[0][0, 1:18])
    assert torch.equal(moving[0], alone[1][0, frame_indices(24, 64).tolist()])


def test_where_a_clip_stands_still_is_told_and_the_subject_stays_where_it_was():
    video = shaky(32)
    before = frame_statistics(video)[0][0]
    video[:, :, 11:27] = video[:, :, 10:11].clone()
    found, moving = (part[0] for part in frame_statistics(video))
    assert torch.equal(before[:, -2:], torch.zeros(32, 2)) and torch.equal(found[:11, :-2], before[:11, :-2])
    assert found[:, -2].nonzero()[:, 0].tolist() == list(range(11, 27)) and found[:, -1].unique().tolist() == [0.5]
    assert torch.equal(moving[11:27], moving[10:11].expand(16, -1, -1)) and not torch.equal(moving[27], moving[10])


def test_a_clip_that_stands_still_at_the_start_does_so_and_its_subject_is_where_it_moves_first():
    video = shaky(16)
    video[:, :, :7] = video[:, :, 6:7].clone()
    found, moving = (part[0] for part in frame_statistics(video))  # as of a video of 15 frames, the first of them twice
    assert found[:12, -2].tolist() == [1.0] * 6 + [0.0] * 6
    assert torch.equal(moving[:7], moving[7:8].expand(7, -1, -1))


def test_what_coding_leaves_is_no_movement_and_slow_movement_is_one():
    picture = texture()
    jumps = [picture.roll(6 * number, 1) for number in range(8)]
    coded = [jump + noise for jump in jumps for noise in (0.0, 1e-3, -1e-3, 1e-3)]
    assert frame_statistics(clip(*coded))[0][0, :, -2].mean() == pytest.approx(0.75, abs=0.04)
    slow = [picture * (1 - 0.004 * number) for number in range(8)]
    assert not frame_statistics(clip(*slow))[0][0, :, -2].any()


def test_a_still_clip_is_still_throughout():
    found = frame_statistics(clip(*[texture()] * 8))[0][0]
    assert torch.equal(found[:, -2:], torch.ones(8, 2))


@pytest.mark.parametrize(("pulse", "still"), [(0.003, True), (0.02, False)])
def test_a_still_clip_that_a_coder_paints_anew_now_and_then_is_still_throughout(pulse, still):
    steps = [0.0002, 0.0002, 0.0002, pulse, 0.0002, 0.0002, pulse, 0.0002, 0.0002, pulse, 0.0002]
    shown, sign = [texture() * 0.8], 1
    for step in steps:
        shown.append(shown[-1] + sign * step)
        sign = -sign
    found = frame_statistics(clip(*shown))[0][0]
    assert (found[0, -1] == 1) == still
    assert found[:, -2].mean() == (1.0 if still else pytest.approx(0.75))


def test_channels_are_taken_as_red_green_blue():
    def colour(red: float, green: float, blue: float) -> list[float]:
        pixels = torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(2, 3, 32, 32)
        return [part[0].item() for part in statistics._colour(pixels, pixels.mean(1))]

    red_green, yellow_blue, *_ = colour(1.0, 0.0, 0.0)
    assert (red_green, yellow_blue) == pytest.approx((1.0, 0.5))
    red_green, yellow_blue, *_ = colour(0.0, 0.0, 1.0)
    assert (red_green, yellow_blue) == pytest.approx((0.0, -1.0))


def test_luma_weighs_green_most():
    levels = []
    for channel in range(3):
        frames = torch.zeros(1, 3, 2, 32, 32)
        frames[:, channel] = 1.0
        levels.append(frame_statistics(frames)[0][0, 0, 0].item())
    assert levels == pytest.approx([0.299, 0.587, 0.114])


def test_dark_and_bright_shares_count_crushed_and_blown_out_pixels():
    picture = torch.full((64, 64), 0.5)
    picture[:16] = 0.0
    picture[-32:] = 1.0
    dark, bright = of_picture(statistics._exposure, picture)[3:5].tolist()
    assert (dark, bright) == pytest.approx((0.25, 0.5))


def test_blur_lowers_gradient_energy_at_every_scale():
    sharp, soft = (of_picture(detail, picture)[:6] for picture in (texture(), blurred(texture())))
    assert (soft < sharp - 0.05).all()


def test_more_blur_lowers_the_finest_gradients_more():
    energies = [of_picture(detail, blurred(texture(), radius))[0] for radius in (1, 2, 4)]
    assert energies[0] > energies[1] > energies[2]


def test_noise_raises_every_noise_statistic():
    clean, grainy = (of_picture(detail, picture)[6:9] for picture in (texture(), noisy(texture())))
    assert (grainy > clean + 0.1).all()


@pytest.mark.parametrize("pitch", [4, 8, 16])
def test_a_block_grid_raises_periodicity_in_both_directions(pitch):
    plain, coarse = (of_picture(detail, picture)[9:11] for picture in (texture(), blocked(texture(), pitch)))
    assert (coarse > plain + 0.3).all()


def test_blur_lowers_the_highest_band_of_the_spectrum_most():
    sharp, soft = (of_picture(statistics._spectrum, picture) for picture in (texture(), blurred(texture())))
    assert len(sharp) == BANDS
    fall = sharp - soft
    assert fall[-3] > 1.0 > fall[0].abs()


def test_the_first_frame_moves_as_the_second_does():
    found = motion(texture(0), texture(1), texture(2))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_a_frozen_clip_is_at_the_floor_of_all_differences():
    frozen = motion(*[texture()] * 4)[1:]
    floor = math.log(statistics._FLOOR)
    assert torch.allclose(frozen[:, 0], torch.tensor(floor))
    across, down, _ = statistics._shift(half(texture().expand(3, -1, -1)), 1)
    assert (across == 0).all() and (down == 0).all()
    moving = motion(*[texture().roll(step, 1) for step in range(4)])[1:]
    assert (moving[:, 0] > floor + 1).all()


def test_flicker_raises_the_luma_difference_and_keeps_its_sign():
    dim, bright = texture() * 0.8, texture()
    change = motion(dim, bright, dim)[:, 1]
    steady = motion(dim, dim, dim)[:, 1]
    expected = (bright - dim).mean().item()
    assert change.tolist() == pytest.approx([expected, expected, -expected], abs=1e-6)
    assert (steady == 0).all()


@pytest.mark.parametrize(
    ("right", "down"),
    [(6, 0), (-6, 0), (0, 4), (0, -4), (10, -8)],  # pixels; even, for motion is measured at half size
)
def test_a_shift_of_the_picture_is_measured_in_sign_and_size(right, down):
    pictures = torch.stack([texture().roll((down * step, right * step), (0, 1)) for step in range(3)])
    across, vertical, certain = statistics._shift(half(pictures), 1)
    assert across[:, 0].tolist() == [right, right]
    assert vertical[:, 0].tolist() == [down, down]
    assert (certain > 0.2).all()


def test_an_unrelated_picture_gives_no_certain_shift():
    moved = statistics._shift(half(torch.stack([texture(0), texture(0).roll(6, 1)])), 1)[2]
    cut = statistics._shift(half(torch.stack([texture(0), texture(1)])), 1)[2]
    assert cut.item() < 0.5 * moved.item()


def test_local_shifts_are_those_of_each_field():
    still, moved = texture(), texture().roll(4, 1)
    middle = SIDE // 2
    after = torch.cat([still[:, :middle], moved[:, middle:]], 1)  # the right half moves, the left one does not
    across, down, _ = statistics._shift(half(torch.stack([still, after])), LOCAL_GRID)
    across = across.view(LOCAL_GRID, LOCAL_GRID)
    assert (across[:, : LOCAL_GRID // 2] == 0).float().mean() > 0.8
    assert (across[:, LOCAL_GRID // 2 :] == 4).float().mean() > 0.6
    assert (down == 0).float().mean() > 0.8


def test_jerk_raises_acceleration_and_steady_motion_does_not():
    steady = motion(*[texture() * (0.7 + 0.1 * step) for step in range(4)])
    jerky = motion(*[texture() * level for level in (0.7, 0.8, 0.7, 0.8)])
    assert torch.allclose(steady[1:, 0], jerky[1:, 0], atol=1e-3)
    assert (jerky[2:, 9] > steady[2:, 9] + 1).all()


# Flow


FLOW = ("camera_u", "camera_v", "camera", "x", "y", "reach", "speed", "fastest", "own_u", "own_v", "grows", "turns")
"""The first statistics of the flow, by name."""


def flow(*pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    """(T - 1,) of each statistic of the flow from the second frame on, by name: the first has that of the second."""
    parts, _ = statistics._flow(half(torch.stack(pictures)))
    assert all(part[0] == part[1] for part in parts)
    return {name: part[1:] for name, part in zip(FLOW, parts, strict=False)}


def warped(scale: float, turn: float, *, drift: float = 0.0) -> torch.Tensor:
    """A soft texture in a disc that is larger by `scale` and turned clockwise by `turn`, on one that drifts right."""
    place = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(place, place, indexing="ij")
    cosine, sine = math.cos(turn) / scale, math.sin(turn) / scale
    grid = torch.stack((x * cosine + y * sine, -x * sine + y * cosine), -1)
    disc, ground = (blurred(texture(seed), 2)[None, None] for seed in (0, 1))
    near = functional.grid_sample(disc, grid[None], align_corners=True, padding_mode="reflection")[0, 0]
    behind = torch.stack((x - drift, y), -1)
    far = functional.grid_sample(ground, behind[None], align_corners=True, padding_mode="reflection")[0, 0]
    return torch.where(torch.hypot(x, y) < 0.5, near, far)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-1, 0), (0, 1), (2, 0), (1, -1)])
def test_flow_finds_a_movement_of_the_whole_picture(right, down):
    soft = blurred(texture(), 3)
    found = flow(*(soft.roll((down * step, right * step), (0, 1)) for step in range(3)))
    # Pixels of the halved frames.
    assert found["camera_u"].tolist() == pytest.approx([right / 2] * 2, abs=0.15)
    assert found["camera_v"].tolist() == pytest.approx([down / 2] * 2, abs=0.15)
    assert found["camera"].tolist() == pytest.approx([math.hypot(right, down) / 2] * 2, abs=0.15)


def test_a_flicker_is_no_movement():
    soft = blurred(texture(), 3)
    brighter, moved = flow(soft, 1.2 * soft, 0.9 * soft), flow(soft, soft.roll(1, 1), soft)
    assert (brighter["camera"] < 0.02).all() and (moved["camera"] > 0.3).all()
    assert (brighter["speed"] < math.log(0.15)).all(), "pixels"
    lighter = flow(soft, soft + 0.15)
    assert lighter["camera"].item() < 1e-3 and lighter["speed"].item() < math.log(1e-3)


def test_what_grows_and_what_shrinks_have_opposite_signs():
    grows, shrinks = (flow(warped(1.0, 0.0), warped(scale, 0.0))["grows"].item() for scale in (1.04, 0.96))
    assert grows > 0.02 and shrinks < -0.02


def test_what_turns_clockwise_and_back_have_opposite_signs():
    clockwise, back = (flow(warped(1.0, 0.0), warped(1.0, turn))["turns"].item() for turn in (0.05, -0.05))
    assert clockwise > 0.02 and back < -0.02  # y points down


def test_the_camera_is_not_taken_for_the_subject():
    found = flow(warped(1.0, 0.0), warped(1.06, 0.0, drift=0.01))
    assert found["camera_u"].item() == pytest.approx(0.01 * SIDE / 4, abs=0.15)
    assert abs(found["x"].item()) < 0.35 and abs(found["y"].item()) < 0.35, "the disc in the middle is what moves"
