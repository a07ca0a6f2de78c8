"""Our ConvNeXt-3D is the published one: golden vector, key table, a literal twin; and all of it is trained."""

from __future__ import annotations

import importlib.util
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_models import FUSIONS, LOSS, TEXT_WIDTH, made_up_text

from qualivision.labels import FAULTS
from qualivision.models import dover
from qualivision.models.dover import ConvNeXt3D, DoverEncoder, Published, VideoHead, read_published
from qualivision.models.fusion import ConcatenationFusion, Match, QualityAwareFusion
from qualivision.models.quality import Judge, MosHead, QualityModel, unpacked
from qualivision.models.weights import WeightsError
from qualivision.training.data import Batch
from qualivision.training.loop import Objective
from qualivision.training.losses import AdaptiveWeights

FACTS = Path(__file__).parent / "facts"
DEPTHS, DIMS = (1, 2, 1, 1), (8, 16, 24, 32)


def key_table() -> dict[str, tuple[int, ...]]:
    """{key: shape} of the published checkpoint."""
    lines = (FACTS / "dover_plus_plus_keys.tsv").read_text().splitlines()[1:]
    return {key: tuple(map(int, shape.split("x"))) for key, shape in (line.split("\t") for line in lines)}


def made_up(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The weights that the golden vector was made with, by its own recipe."""
    random, state = torch.Generator().manual_seed(0), {}
    for key in sorted(key for key in shapes if key.startswith("aesthetic_")):
        r = torch.randn(shapes[key], generator=random)
        kind = key.rsplit(".", 1)[1]
        state[key] = 0.5 * r if kind == "gamma" else 1 + 0.1 * r if kind == "weight" and r.ndim == 1 else 0.05 * r
    return state


def small_checkpoint() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    backbone, head = ConvNeXt3D(DEPTHS, DIMS), VideoHead(DIMS[-1])
    for name, value in backbone.named_parameters():
        if name.endswith("gamma"):
            value.data.normal_(0, 0.5)
    state = {f"aesthetic_backbone.{name}": value for name, value in backbone.state_dict().items()}
    return state | {f"aesthetic_head.{name}": value for name, value in head.state_dict().items()}


def published(path: Path, state: dict[str, torch.Tensor]) -> Published:
    torch.save(state, path)
    return read_published(path)


@pytest.mark.parametrize("graph", [False, True], ids=["in parts", "with a graph"])
def test_output_matches_the_golden_vector(graph):
    state = made_up(key_table())
    backbone, head = ConvNeXt3D((3, 3, 9, 3), (96, 192, 384, 768)), VideoHead(768)
    parts = {name.split(".", 1)[0]: {} for name in state}
    for name, value in state.items():
        parts[name.split(".", 1)[0]][name.split(".", 1)[1]] = value
    backbone.load_state_dict(parts["aesthetic_backbone"])
    head.load_state_dict(parts["aesthetic_head"])
    frames = torch.rand(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))
    wanted = json.loads((FACTS / "dover_parity.json").read_text())
    with torch.set_grad_enabled(graph):
        maps = backbone(frames)
        score = head(maps)
    batch, channels, *places = wanted["backbone_output_shape"]
    assert maps.shape == (batch, *places, channels)
    assert [1, *score.shape] == wanted["aesthetic_head_output_shape"]
    errors = {
        "means": (maps.mean((0, 1, 2, 3))[:16] - torch.tensor(wanted["mean_over_time_and_space_first_16"])).abs().max(),
        "mean": (maps.mean() - wanted["output_mean"]).abs(),
        "std": (maps.std() - wanted["output_std"]).abs(),
        "head": (score.mean() - wanted["aesthetic_head_output_mean"]).abs(),
    }
    assert max(errors.values()) < 1e-4, errors


def test_every_key_of_the_published_checkpoint_is_accounted_for(monkeypatch, tmp_path):
    state = {key: torch.zeros(1).expand(shape) for key, shape in key_table().items()}
    monkeypatch.setattr(dover, "read_state", lambda path: state)
    found = read_published(tmp_path / "DOVER_plus_plus.pth")
    assert (found.depths, found.dims) == ((3, 3, 9, 3), (96, 192, 384, 768))
    used = {f"aesthetic_backbone.{name}" for name in found.backbone} | {f"aesthetic_head.{name}" for name in found.head}
    assert used | found.unused.keys() == state.keys()
    assert (len(found.backbone), len(found.head), len(found.unused)) == (180, 4, 197)
    assert all(found.unused.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("aesthetic_backbone.norm.bias"), r"1 missing: aesthetic_backbone\.norm\.bias"),
        (lambda state: state.update({"surprise": torch.zeros(1)}), "1 unknown: surprise"),
        (
            lambda state: state.update({"aesthetic_head.fc_last.bias": torch.zeros(2)}),
            r"another shape: aesthetic_head\.fc_last\.bias \(2,\) for \(1,\)",
        ),
        (lambda state: [state.pop(key) for key in list(state) if "backbone" in key], "no DOVER"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    state = small_checkpoint()
    change(state)
    with pytest.raises(WeightsError, match=message) as caught:
        published(tmp_path / "x.pth", state)
    assert str(tmp_path / "x.pth") in str(caught.value)


def test_all_kinds_of_files_give_the_same(tmp_path):
    from safetensors.torch import save_file

    state = small_checkpoint()
    plain = published(tmp_path / "plain.pth", state)
    torch.save({"state_dict": state}, tmp_path / "wrapped.pth")
    save_file(state, tmp_path / "converted.safetensors")
    for name in ("wrapped.pth", "converted.safetensors"):
        found = read_published(tmp_path / name)
        assert (found.depths, found.dims) == (plain.depths, plain.dims) == (DEPTHS, DIMS)
        assert all(torch.equal(found.backbone[key], value) for key, value in plain.backbone.items())


class Harm:
    def __reduce__(self):
        return print, ("harm",)


def test_a_file_that_carries_code_or_is_cut_is_refused(tmp_path):
    torch.save({"x": Harm()}, tmp_path / "harm.pth")
    published(tmp_path / "whole.pth", small_checkpoint())
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:5000])
    for name in ("harm.pth", "cut.pth"):
        with pytest.raises(WeightsError, match=rf"{name}: can't be read"):
            read_published(tmp_path / name)


def test_a_hub_that_can_not_be_reached_says_the_way_out(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(name, file):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(WeightsError, match=r"'teowu/DOVER'.*no route to host.*dover\.network\.weights"):
        dover.locate("teowu/DOVER")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(tmp_path / name / file))
    assert dover.locate("teowu/DOVER") == tmp_path / "teowu/DOVER" / "DOVER_plus_plus.pth"
    (tmp_path / "local.pth").touch()
    assert dover.locate(str(tmp_path / "local.pth")) == tmp_path / "local.pth"


@pytest.mark.parametrize("shape", [(2, 3, 4, 64, 64), (1, 3, 5, 70, 93)])
def test_output_and_gradients_equal_those_of_the_literal_twin(shape):
    path = Path(__file__).parent.parent / "benchmarks" / "literal_convnext3d.py"
    spec = importlib.util.spec_from_file_location("literal_convnext3d", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours, twin = ConvNeXt3D(DEPTHS, DIMS), module.LiteralConvNeXt3D(DEPTHS, DIMS)
    state = {
        name.split(".", 1)[1]: value for name, value in small_checkpoint().items() if name.startswith("aesthetic_b")
    }
    for model in (ours, twin):
        model.load_state_dict(state)
    frames = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    wanted = twin(frames).permute(0, 2, 3, 4, 1)
    found = ours(frames)
    with torch.no_grad():
        assert torch.allclose(ours(frames), wanted, atol=1e-5)
    assert torch.allclose(found, wanted, atol=1e-5)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    (found * weight).sum().backward()
    (wanted * weight).sum().backward()
    for (name, value), other in zip(ours.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(value.grad, other.grad, rtol=1e-3, atol=1e-4), name


def test_checkpointing_changes_neither_output_nor_gradients():
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = ConvNeXt3D(DEPTHS, DIMS, checkpointing=checkpointing)
        out = model(torch.rand(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(1)))
        out.square().mean().backward()
        results.append([out, *(value.grad for value in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def encoder(tmp_path: Path) -> DoverEncoder:
    return DoverEncoder.from_published(published(tmp_path / "x.pth", small_checkpoint()), width=16)


def clips(count: int) -> torch.Tensor:
    """(count, 3, 4, 64, 64) float, as of uint8 frames."""
    values = torch.randint(0, 256, (count, 3, 4, 64, 64), generator=torch.Generator().manual_seed(0))
    return values.float() / 255


def test_published_weights_are_where_they_belong_and_the_rest_starts_afresh(tmp_path):
    state, model = small_checkpoint(), encoder(tmp_path)
    assert all(torch.equal(state[f"aesthetic_backbone.{k}"], v) for k, v in model.backbone.state_dict().items())
    assert all(torch.equal(state[f"aesthetic_head.{k}"], v) for k, v in model.aesthetic.head.state_dict().items())
    assert not torch.equal(model.technical.head.fc_hid.weight, model.aesthetic.head.fc_hid.weight)
    rebuilt = DoverEncoder(**model.architecture, width=16)
    rebuilt.load_state_dict(model.state_dict())


def test_stem_packs_frames_exactly_and_see_gives_tokens_content_and_own_scores(tmp_path):
    model, frames = encoder(tmp_path).eval(), clips(2)
    packed = model.stem(frames)
    assert packed["frames"].dtype == torch.uint8 and torch.equal(unpacked(packed), frames)
    with torch.no_grad():
        seen = model.see(packed)
    assert seen.tokens.shape == (2, 2 * 2 * 2, 16)  # two maps in time of 2 x 2 places
    assert seen.content.shape == (2, model.content_width)
    assert set(seen.auxiliary) == {"Aesthetic", "Traditional"}
    assert all(score.shape == (2,) and (score > 1).all() and (score < 5).all() for score in seen.auxiliary.values())
    wide = dover._fields(torch.rand(1, 3, 20, 20, 5))
    assert wide.shape == (1, 3 * 7 * 7, 5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_gets_a_gradient(tmp_path, fusion):
    video = encoder(tmp_path)
    kind = QualityAwareFusion if fusion == "quality-aware" else ConcatenationFusion
    judge = Judge(video, kind(16, TEXT_WIDTH, 0.0), Match([32], TEXT_WIDTH, 0.0), MosHead(16, 0.0))
    model = QualityModel([judge], TEXT_WIDTH)
    count = 4
    batch = Batch(
        rows=torch.arange(count),
        names=[f"{row}.mp4" for row in range(count)],
        prompts=[f"prompt {row}" for row in range(count)],
        activations=video.stem(clips(count)),
        text=made_up_text(count),
        mos=1 + 4 * torch.rand(count, 5, generator=torch.Generator().manual_seed(3)),
        others=torch.empty(0, TEXT_WIDTH),
        own=torch.eye(count, dtype=torch.bool),
        known=torch.full((count, count), 2.0),
        faults=torch.ones(count, len(FAULTS)),
    )
    terms, _ = Objective(model).train()(batch, [])
    assert "auxiliary" in terms
    AdaptiveWeights(LOSS).total(terms).backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]


def test_bfloat16_is_close(tmp_path):
    model, frames = encoder(tmp_path).eval(), clips(1)
    with torch.no_grad():
        exact = model.see(model.stem(frames)).content
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.see(model.stem(frames)).content
    assert torch.allclose(exact, rough.float(), atol=0.15)


def test_filters_reach_into_time_in_every_second_block_of_three():
    blocks = ConvNeXt3D((7, 1), (4, 8)).stages[0]
    times = [block.dwconv.weight.shape[2] for block in blocks]
    assert times == [1, 3, 1, 1, 3, 1, 1]
    assert all(sum(pair) < 6 for pair in pairwise(times))
