"""What is measured of noise, stops, flicker and shaking is taken from a MOS, and from nothing else."""

from __future__ import annotations

import pytest
import torch
from small_models import made_up_activations, made_up_text, small_model
from test_statistics import blurred, clip, noisy, texture

from qualivision.models import faults
from qualivision.models.faults import measured_faults
from qualivision.models.quality import ASPECTS, bounded, logits_of
from qualivision.models.statistics import frame_statistics

FRAMES = 24
ALL_STILL = sum(much * (1 - above) for much, above in (faults._STILL, faults._NEARLY_ALL))
TRADITIONAL, TEMPORAL = ASPECTS.index("Traditional"), ASPECTS.index("Temporal")


def pan(*, noise: float = 0.0, held: int = 0, flicker: float = 0.0, shake: int = 0) -> torch.Tensor:
    """A camera that moves to the right by two pixels a frame, (1, 3, FRAMES, H, W), and what is wrong with it."""
    random = torch.Generator().manual_seed(5)
    offsets = (shake * torch.randn(FRAMES, 2, generator=random)).round().long().tolist()
    gains = (flicker * torch.randn(FRAMES, generator=random)).exp().tolist()
    shown = []
    for number in range(FRAMES):
        down, across = offsets[number]
        picture = texture().roll((down, across + 2 * number), (0, 1)) * gains[number]
        shown.append(noisy(picture, noise) if noise else picture.clamp(0, 1))
    frames = clip(*shown).clone()
    frames[:, :, 4 : 4 + held] = frames[:, :, 3:4].clone()
    return frames


def taken(**wrong: float) -> tuple[float, float]:
    """From Traditional and from Temporal."""
    traditional, temporal = measured_faults(frame_statistics(pan(**wrong))[0])
    return traditional.item(), temporal.item()


def test_more_noise_takes_more_from_traditional():
    levels = [taken(noise=noise) for noise in (0.0, 0.02, 0.05, 0.1, 0.2)]
    traditional = [level[0] for level in levels]
    assert traditional == sorted(traditional) and traditional[-1] > traditional[0] + 0.5


def test_more_blur_takes_more_from_traditional(monkeypatch):
    monkeypatch.setattr(faults, "_NOISE", (0.0, 0.0))  # these pictures are fine all over, which looks like noise
    monkeypatch.setattr(faults, "_SMOOTH", (0.0, 0.0))

    def blur(radius: int) -> float:
        shown = [blurred(texture().roll(2 * number, 1), radius) for number in range(8)]
        return measured_faults(frame_statistics(clip(*shown))[0])[0].item()

    levels = [blur(radius) for radius in (0, 1, 2, 4)]
    assert levels == sorted(levels) and levels[0] == 0 and levels[-1] > 0.5


def test_less_texture_takes_more_from_traditional_and_noise_gives_none_of_it_back(monkeypatch):
    plain = torch.full_like(texture(), 0.5)

    def taken_of(share: float, noise: float = 0.0) -> float:
        picture = plain + share * (texture() - plain)
        pan = [picture.roll(2 * number, 1) for number in range(8)]
        return measured_faults(frame_statistics(clip(*(noisy(one, noise) if noise else one for one in pan)))[0])[
            0
        ].item()

    noisier = [taken_of(0.1, noise) for noise in (0.0, 0.02, 0.05, 0.1)]
    assert noisier == sorted(noisier), "noise looks like texture where there is little, and costs more than it brings"
    monkeypatch.setattr(faults, "_NOISE", (0.0, 0.0))
    monkeypatch.setattr(faults, "_UNSHARP", (0.0, 0.0))
    lost = [taken_of(share) for share in (1.0, 0.5, 0.2, 0.05)]
    assert lost == sorted(lost) and lost[-1] > lost[0] + 1


@pytest.mark.parametrize(
    ("fault", "steps"), [("held", (0, 6, 12, 20)), ("flicker", (0.0, 0.03, 0.1, 0.3)), ("shake", (0, 1, 2))]
)
def test_more_of_what_is_wrong_in_time_takes_more_from_temporal(fault, steps):
    levels = [taken(**{fault: step}) for step in steps]
    temporal = [level[1] for level in levels]
    assert temporal == sorted(temporal) and temporal[-1] > temporal[0] + 0.2


def test_a_short_stop_takes_nothing_and_a_still_picture_most():
    assert taken(held=1)[1] == pytest.approx(taken()[1], abs=0.05)
    still = measured_faults(frame_statistics(clip(*[texture()] * FRAMES))[0])[1].item()
    assert still == pytest.approx(ALL_STILL, abs=1e-6)
    half, most = (taken(held=held)[1] - taken()[1] for held in (FRAMES // 2, FRAMES - 5))
    assert most > 2 * half, "the last third of a clip that stands still takes more than the ones before"


def test_two_frames_and_values_that_are_no_numbers_take_a_finite_amount():
    two = measured_faults(frame_statistics(clip(texture(0), texture(1)))[0])
    broken = measured_faults(torch.full((1, 4, frame_statistics(clip(texture(0), texture(1)))[0].shape[-1]), torch.nan))
    assert all(part.isfinite().all() for part in (*two, *broken))


def test_each_lies_where_it_is_looked_for():
    flat, loud = (frame_statistics(pan(noise=noise))[0][0].mean(0) for noise in (0.0, 0.1))
    assert loud[faults._CALM_NOISE] > flat[faults._CALM_NOISE] + 1
    coarse = list(faults._COARSE_DETAIL)
    assert loud[coarse].tolist() == pytest.approx(flat[coarse].tolist(), abs=0.3)
    soft = frame_statistics(clip(*[blurred(texture(number), 1) for number in range(3)]))[0][0].mean(0)
    sharp = frame_statistics(clip(*[texture(number) for number in range(3)]))[0][0].mean(0)
    lost = sharp - soft
    assert (lost[list(faults._FINE_DETAIL)] > 0.2).all() and (
        lost[coarse] < 0.5 * lost[list(faults._FINE_DETAIL)]
    ).all()
    picture = texture()
    brighter = frame_statistics(clip(*[picture * (0.5 + 0.05 * number) for number in range(6)]))[0][0]
    assert brighter[1:, faults._LIGHT_CHANGE].tolist() == pytest.approx([0.05 * picture.mean().item()] * 5, rel=1e-3)
    moved = frame_statistics(clip(*[picture.roll(number, 1) for number in range(6)]))[0][0]
    across, down = (moved[1:, place].mean().item() for place in faults._CAMERA)
    assert abs(across) > 0.2 and abs(down) < 0.1 * abs(across)


def test_logits_are_the_inverse_of_a_mos_within_the_scale():
    mos = torch.tensor([[1.3, 3.0, 4.4, 2.0]])
    assert torch.allclose(bounded(logits_of(mos)), mos, atol=1e-5)
    ends = logits_of(torch.tensor([1.0, 5.0]))
    assert ends.isfinite().all() and bounded(ends).tolist() == pytest.approx([1.2, 4.8], abs=1e-5)


def test_a_model_takes_them_whatever_its_weights_say():
    torch.manual_seed(0)
    model, text = small_model("quality-aware").eval(), made_up_text(2)
    activations = made_up_activations(2)
    calm = {name: value.clone() for name, value in activations.items()}
    calm["statistics"][:, :, faults._LONGEST_STILL] = 0.0
    stopped = {name: value.clone() for name, value in calm.items()}
    stopped["statistics"][:, :, faults._LONGEST_STILL] = 1.0
    difference = model.encoder.faults(stopped) - model.encoder.faults(calm)
    assert difference[:, TEMPORAL].tolist() == pytest.approx([ALL_STILL] * 2, abs=1e-5)
    assert (difference[:, [place for place in range(4) if place != TEMPORAL]] == 0).all()
    with torch.no_grad():
        seen = model.judges[0].see(stopped)
        with_it = model.judges[0].judge(seen, text)[0]
        without = model.judges[0].judge(seen._replace(faults=None), text)[0]
    logits = torch.logit((without - 1) / 4) - seen.faults
    assert torch.allclose(with_it, bounded(logits), atol=1e-3)
    assert (with_it[:, TEMPORAL] < without[:, TEMPORAL]).all()
