"""The contracts of the model: stem and trained part, gradients, bounded MOS, pairs with prompts, published weights."""

from __future__ import annotations

import pytest
import torch
from small_models import (
    FIELDS,
    FUSIONS,
    LOSS,
    TEXT_WIDTH,
    made_up_activations,
    made_up_text,
    network,
    real_stem,
    small_model,
)
from torch import nn

from qualivision.labels import FAULTS
from qualivision.models.bridge import CLASSES
from qualivision.models.factory import base_hash, build_model, build_stem, stem_fingerprint
from qualivision.models.fovea import SUBJECT_CHANNELS
from qualivision.models.fusion import QualityAwareFusion
from qualivision.models.lite import Piecewise, Standardise, moments
from qualivision.models.lite_stem import (
    EVERY,
    FOVEA_CHANNELS,
    IMAGE_CHANNELS,
    LAYOUT_CHANNELS,
    PEAK_CHANNELS,
    weights_file,
)
from qualivision.models.quality import ALIGNMENT, ASPECTS, Fused, MosHead, bounded, frames_to_input
from qualivision.models.statistics import STATISTICS
from qualivision.models.weights import WeightsError, load_in_order
from qualivision.training.data import Batch
from qualivision.training.loop import Objective
from qualivision.training.losses import AdaptiveWeights

each_fusion = pytest.mark.parametrize("fusion", FUSIONS)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Two clips of five frames, 48 x 64."""
    return torch.rand(2, 3, 5, 48, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def activations(frames) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return real_stem()(frames)


def known_faults(clips: int) -> torch.Tensor:
    """Of every clip but the last."""
    faults = 2 * torch.rand(clips, len(FAULTS), generator=torch.Generator().manual_seed(5))
    faults[-1] = torch.nan
    return faults


def a_batch(clips: int = 6) -> Batch:
    """Clips two of which share each prompt, and two prompts without one; what is known of the pairs, where it is."""
    text = made_up_text(clips // 2).repeat(2, 1)
    prompt = torch.arange(clips) % (clips // 2)
    others = made_up_text(2, seed=7)
    known = torch.full((clips, clips + len(others)), torch.nan)
    known[::2] = 2.0
    own = torch.zeros(known.shape, dtype=torch.bool)
    own[:, :clips] = prompt.unsqueeze(0) == prompt.unsqueeze(1)
    return Batch(
        rows=torch.arange(clips),
        names=[f"{clip}.mp4" for clip in range(clips)],
        prompts=[f"prompt {number}" for number in prompt.tolist()],
        activations=made_up_activations(clips),
        text=text,
        mos=1 + 4 * torch.rand(clips, 5, generator=torch.Generator().manual_seed(3)),
        others=others,
        own=own,
        known=known,
        faults=known_faults(clips),
    )


# The whole model


@each_fusion
def test_stem_then_from_stem_is_forward_exactly(fusion, frames):
    model = small_model(fusion, stem=real_stem()).eval()
    with torch.no_grad():
        whole = model(frames, made_up_text(2))
        parts = model.from_stem(model.stem(frames), made_up_text(2))
    assert torch.equal(whole.mos, parts.mos)
    assert torch.equal(whole.aspect_weights, parts.aspect_weights)


@each_fusion
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(fusion):
    model = small_model(fusion, dropout=0.1, stem=real_stem())
    AdaptiveWeights(LOSS).total(Objective(model).train()(a_batch(), [])[0]).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert not without
    frozen = list(real_stem().parameters())
    assert frozen and all(not parameter.requires_grad and parameter.grad is None for parameter in frozen)


@each_fusion
@pytest.mark.parametrize("size", [0.0, 1e3, 6e4, torch.inf, -torch.inf])
def test_mos_stay_on_the_scale_for_absurd_activations(fusion, size):
    activations = {name: torch.full_like(value, size) for name, value in made_up_activations(3).items()}
    with torch.no_grad():
        found = small_model(fusion).eval().from_stem(activations, 1e3 * made_up_text(3))
    assert found.mos.shape == (3, 5)
    assert ((found.mos >= 1) & (found.mos <= 5)).all()  # false for NaN
    assert torch.allclose(found.aspect_weights.sum(1), torch.ones(3))


@pytest.mark.parametrize("logit", [-1e6, -3.0, 3.0, 1e6])
def test_head_is_bounded_for_absurd_logits(logit):
    head = MosHead(16, 0.0)
    for readout in head.readouts:
        readout[-1].bias.data.fill_(logit)
    fused = Fused(torch.randn(2, len(ASPECTS), 16), torch.full((2, len(ASPECTS)), 0.25))
    parts = head(fused, torch.full((2,), logit))
    assert parts.shape == (2, len(ASPECTS))
    mos = torch.cat((parts, head.overall(parts, fused.weights).unsqueeze(1)), 1)
    assert ((mos >= 1) & (mos <= 5)).all()
    assert ((mos > 3) == (logit > 0)).all()


@each_fusion
def test_aspect_weights_sum_to_one_and_follow_the_prompt(fusion):
    with torch.no_grad():
        weights = small_model(fusion).eval().from_stem(made_up_activations(4), made_up_text(4)).aspect_weights
    assert weights.shape == (4, len(ASPECTS))
    assert (weights > 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(4))
    assert not torch.allclose(weights[0], weights[1])


def test_alignment_of_all_pairs_is_that_of_each_pair_alone():
    judge, text = small_model().eval().judges[0], made_up_text(2)
    with torch.no_grad():
        seen = judge.see(made_up_activations(3))
        pairs, content = judge.alignment_of_all_pairs(seen, text), seen.content
        slow = [[bounded(judge.match(content[[clip]], text[[p]])).item() for p in range(2)] for clip in range(3)]
    assert content.shape == (3, judge.encoder.content_width)
    assert torch.allclose(pairs, torch.tensor(slow), atol=1e-5)
    assert pairs.std() > 1e-3, "else anything would be close"


def test_a_better_match_raises_alignment_and_overall_alone():
    head = small_model().eval().judges[0].head
    fused = Fused(torch.randn(1, len(ASPECTS), 16), torch.full((1, len(ASPECTS)), 0.25))
    with torch.no_grad():
        low, high = (head(fused, torch.tensor([match])) for match in (-2.0, 2.0))
        overall = [head.overall(parts, fused.weights) for parts in (low, high)]
    assert ((high - low).abs() > 1e-6).tolist() == [[False, True, False, False]]
    assert high[0, ALIGNMENT] > low[0, ALIGNMENT]
    assert overall[0] != overall[1]


@each_fusion
def test_prediction_does_not_depend_on_the_other_clips_of_the_batch(fusion):
    model, text, activations = small_model(fusion).eval(), made_up_text(4), made_up_activations(4)
    with torch.no_grad():
        together = model.from_stem(activations, text).mos
        alone = [
            model.from_stem({name: value[clip : clip + 1] for name, value in activations.items()}, text[clip][None])
            for clip in range(4)
        ]
    assert torch.allclose(together, torch.cat([found.mos for found in alone]), atol=1e-5)


@each_fusion
@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_any_number_of_frames_gives_a_finite_prediction(fusion, count):
    model = small_model(fusion).eval()
    with torch.no_grad():
        assert model.from_stem(made_up_activations(2, frames=count), made_up_text(2)).mos.isfinite().all()


def test_prediction_depends_on_the_order_of_the_frames():
    model, activations = small_model().eval(), made_up_activations(1, frames=8)
    shuffled = activations | {"statistics": activations["statistics"][:, [3, 0, 6, 1, 7, 4, 2, 5]]}
    with torch.no_grad():
        before, after = (model.from_stem(given, made_up_text(1)).mos for given in (activations, shuffled))
    assert (before - after).abs().max() > 1e-4


def test_frames_become_a_batch_of_one_with_channels_first_and_values_up_to_one():
    frames = torch.zeros(2, 3, 4, 3, dtype=torch.uint8)
    frames[1, 2, 3, 0] = 255
    given = frames_to_input(frames.numpy())
    assert given.shape == (1, 3, 2, 3, 4)
    assert given[0, 0, 1, 2, 3] == 1.0 and given.sum() == 1.0


# lite


def test_stem_gives_what_the_encoder_and_the_cache_expect(activations):
    assert activations["image"].shape == (2, 2, IMAGE_CHANNELS), "frames 0 and 4"
    assert activations["fovea"].shape == (2, FOVEA_CHANNELS)
    assert activations["layout"].shape == (2, FIELDS, LAYOUT_CHANNELS)
    assert activations["peaks"].shape == (2, PEAK_CHANNELS)
    assert activations["subject"].shape == (2, SUBJECT_CHANNELS)
    assert activations["classes"].shape == (2, CLASSES)
    assert activations["statistics"].shape == (2, 5, STATISTICS)
    half = {name for name, value in activations.items() if value.dtype == torch.float16}
    assert half == {"image", "layout", "peaks", "fovea"} and all(
        v.dtype == torch.float32 for n, v in activations.items() if n not in half
    )
    assert torch.allclose(activations["classes"].sum(1), torch.ones(2), atol=1e-5)
    assert all(value.isfinite().all() for value in activations.values())


def test_folding_batch_norm_leaves_the_networks_function(frames, activations):
    import timm

    plain = timm.create_model("efficientnet_lite0", pretrained=False)
    load_in_order(plain, weights_file())
    plain.eval()
    pictures = frames[:, :, ::EVERY].transpose(1, 2).flatten(0, 1)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        wanted = plain.forward_features((pictures - mean) / std).mean((2, 3))
    found = activations["image"].flatten(0, 1)[:, : wanted.shape[1]].float()
    assert torch.allclose(found, wanted, rtol=2e-3, atol=2e-3)  # half precision
    assert wanted.std() > 0.05, "else anything would be close"
    assert not [name for name, module in real_stem().named_modules() if isinstance(module, nn.BatchNorm2d)]


def test_stem_gives_the_same_in_training_mode(frames, activations):
    stem = real_stem()
    try:
        found = stem.train()(frames)
    finally:
        stem.eval()
    assert torch.equal(found["image"], activations["image"])


def test_stem_sees_each_frame_alone(frames, activations):
    with torch.no_grad():
        part = real_stem()(frames[1:, :, [4, 0]])
    assert torch.allclose(part["image"].float(), activations["image"][1:, 1:].float(), rtol=5e-3, atol=5e-3)


def test_model_without_its_stem_refuses_frames_and_takes_activations(frames, activations):
    model = small_model().eval()
    with pytest.raises(RuntimeError, match="built without its stem"):
        model(frames, made_up_text(2))
    assert model.from_stem(activations, made_up_text(2)).mos.shape == (2, 5)


def test_standardise_gives_zero_mean_and_unit_deviation_over_all_frames():
    random = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([0.1, 1.0, 50.0]), torch.tensor([5.0, -1.0, 1000.0])
    clips = [torch.randn(16, 3, generator=random) * scale + shift for _ in range(3)]
    norm = Standardise(3)
    norm.fit([moments(clip) for clip in clips])
    found = norm(torch.cat(clips))
    assert torch.allclose(found.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(found.std(0, correction=0), torch.ones(3), atol=1e-3)


def test_standardise_survives_a_constant_channel_and_bounds_outliers():
    norm = Standardise(2)
    norm.fit([moments(torch.tensor([[7.0, 0.0], [7.0, 1.0]]))])
    found = norm(torch.tensor([[7.0, 1e9], [7.5, -torch.inf]]))
    assert found[0, 0] == 0.0
    assert found.isfinite().all() and found.abs().max() <= 6


def test_piecewise_says_how_far_a_value_has_come_through_each_range():
    encoding = Piecewise(2, 2)
    encoding.fit(torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]]))  # the second channel is constant
    found = encoding(torch.tensor([[0.0, 5.0], [0.5, 5.0], [2.0, 5.0], [99.0, 5.0]])).unflatten(1, (2, 2))
    assert found[:, :, 0].tolist() == [[-0.5, -0.5], [0.0, -0.5], [0.5, 0.0], [0.5, 0.5]]
    assert (found[:, :, 1] == -0.5).all()


def test_piecewise_bounds_what_is_infinite():
    found = Piecewise(3, 4)(torch.tensor([[torch.inf, -torch.inf, torch.nan]])).unflatten(1, (4, 3))[0]
    assert (found[:, 0] == 0.5).all() and (found[:, 1] == -0.5).all() and (found[:, 2] == 0.0).all()


def test_encoder_fit_measures_every_kind_of_activations():
    model, activations = small_model(), made_up_activations(30, frames=8)
    clips = [{name: 3 * value[clip] + 2 for name, value in activations.items()} for clip in range(30)]
    model.encoder.fit(iter(clips))  # read once
    encoder = model.encoder
    for norm in (
        encoder.image_norm,
        encoder.layout_norm,
        encoder.peaks_norm,
        encoder.fovea_norm,
        encoder.subject_norm,
        encoder.statistics_norm,
    ):
        assert norm.mean.mean().item() == pytest.approx(2.0, abs=0.2)
        assert norm.scale.mean().item() == pytest.approx(1 / 3, abs=0.1)
    edges = encoder.summary.edges
    assert (edges[1:] >= edges[:-1]).all() and edges[-1].mean() > 2


# Building and weights


def test_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 4, got 18"):
        QualityAwareFusion(18, TEXT_WIDTH, 0.0)


def test_a_foreign_stem_is_refused():
    with pytest.raises(TypeError, match="LiteStem, got Linear"):
        build_model("lite", network(), TEXT_WIDTH, stem=nn.Linear(1, 1))


def test_equal_seeds_build_equal_models():
    first, second = small_model().state_dict(), small_model().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_stem_is_known_by_the_hash_of_its_weights():
    import hashlib

    assert base_hash("lite", network()) == hashlib.sha256(weights_file().read_bytes()).hexdigest()
    assert stem_fingerprint("lite", network()) == stem_fingerprint("lite", network()) != base_hash("lite", network())
    assert type(build_stem("lite", network())) is type(real_stem())


@pytest.fixture
def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def test_load_in_order_fills_every_tensor_whatever_its_name(two_layers, tmp_path):
    theirs = {f"their.{place}": torch.full_like(v, place) for place, v in enumerate(two_layers.state_dict().values())}
    torch.save(theirs, tmp_path / "w.pth")
    load_in_order(two_layers, tmp_path / "w.pth")
    assert [value.unique().item() for value in two_layers.state_dict().values()] == [0, 1, 2, 3]


def test_load_in_order_refuses_another_number_of_tensors(two_layers, tmp_path):
    torch.save({"a": torch.zeros(3, 2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: holds 1 tensors, the module has 4"):
        load_in_order(two_layers, tmp_path / "w.pth")


def test_load_in_order_names_the_tensors_of_another_shape_and_changes_nothing(two_layers, tmp_path):
    before = [value.clone() for value in two_layers.state_dict().values()]
    shapes = {"conv.kernel": (3, 2), "conv.shift": (3,), "top.kernel": (3, 1), "top.shift": (1,)}
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"1 tensors have another shape: top\.kernel \(3, 1\) for 1\.weight \(1, 3\)"
    ):
        load_in_order(two_layers, tmp_path / "w.pth")
    assert all(torch.equal(*pair) for pair in zip(before, two_layers.state_dict().values(), strict=True))


def test_load_in_order_names_a_file_that_is_not_there(two_layers, tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth: no such file"):
        load_in_order(two_layers, tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"])
def test_load_in_order_names_a_damaged_file(two_layers, tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"w\.pth: can't be read"):
        load_in_order(two_layers, tmp_path / "w.pth")


class _Code:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_weights_that_carry_code_are_refused_unrun(two_layers, tmp_path, capsys):
    torch.save({"a": _Code()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"w\.pth: can't be read"):
        load_in_order(two_layers, tmp_path / "w.pth")
    assert "ran" not in capsys.readouterr().out
