"""V-JEPA2: equal to transformers' model, frozen and trained parts, every tensor of a checkpoint accounted for."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from qualivision.models import vjepa2_stem
from qualivision.models.factory import build_model, build_stem
from qualivision.models.fusion import ConcatenationFusion, Match, QualityAwareFusion
from qualivision.models.quality import Judge, MosHead, QualityModel
from qualivision.models.vjepa2 import QUERIES, Vjepa2Encoder, _fields, load_top
from qualivision.models.vjepa2_stem import (
    FrameSizeError,
    Vjepa2Stem,
    account,
    frozen_count,
    load_stem,
    locate,
    positions,
    read_config,
    weights_files,
)
from qualivision.models.weights import WeightsError
from qualivision.settings import Vjepa2Network
from qualivision.training.checkpoint import load_trained, trained_tensors

if TYPE_CHECKING:
    from qualivision.models.quality import Activations

LAYERS, CHANNELS, WIDTH, TEXT_WIDTH = 4, 48, 16, 8
SIDE_PX = 64
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def small_config(**changes: Any) -> VJEPA2Config:
    values = {
        "crop_size": SIDE_PX,
        "frames_per_clip": 4,
        "hidden_size": CHANNELS,
        "num_attention_heads": 2,
        "num_hidden_layers": LAYERS,
        "mlp_ratio": 48 / 11,  # as in ViT-g: no whole number of channels unless it is computed as published
        "num_pooler_layers": 1,
        "pred_hidden_size": 24,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
        "initializer_range": 0.2,
    }
    return VJEPA2Config(**values | changes)


@pytest.fixture(scope="module")
def published() -> VJEPA2Model:
    torch.manual_seed(0)
    return VJEPA2Model(small_config()).eval()


@pytest.fixture(scope="module")
def folder(published, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vjepa2")
    published.save_pretrained(path)
    return path


@pytest.fixture
def spoiled(folder, tmp_path) -> Path:
    """A copy of the checkpoint, for a test to change."""
    return Path(shutil.copytree(folder, tmp_path / "spoiled"))


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """Two clips of four frames, with the values that uint8 frames have."""
    picture = torch.randint(0, 256, (2, 3, 4, SIDE_PX, SIDE_PX), generator=torch.Generator().manual_seed(0))
    return picture / 255


def encoder_of(folder: Path, ratio: float = 0.5, *, with_stem: bool = True, **settings: Any) -> Vjepa2Encoder:
    torch.manual_seed(1)
    stem = load_stem(folder, ratio) if with_stem else None
    encoder = Vjepa2Encoder(read_config(folder), WIDTH, freeze_ratio=ratio, stem=stem, **settings)
    load_top(encoder, folder)
    return encoder


def model_of(encoder: Vjepa2Encoder, fusion: type[nn.Module] = ConcatenationFusion) -> QualityModel:
    match = Match(encoder.content_parts, TEXT_WIDTH, 0.0)
    return QualityModel([Judge(encoder, fusion(WIDTH, TEXT_WIDTH, 0.0), match, MosHead(WIDTH, 0.0))], TEXT_WIDTH)


def made_up_text(prompts: int) -> torch.Tensor:
    text = torch.randn(prompts, TEXT_WIDTH, generator=torch.Generator().manual_seed(2))
    return nn.functional.normalize(text, dim=1)


def a_loss(model: QualityModel, activations: Activations) -> torch.Tensor:
    """MOS, Alignment of all pairs and what faults take, as training asks for them."""
    text, judge = made_up_text(2), model.judges[0]
    wanted = torch.tensor([[1.5], [4.5]])
    mos = model.from_stem(activations, text).mos
    seen = judge.see(activations)
    pairs, faults = judge.alignment_of_all_pairs(seen, text), judge.head.fault_losses(judge.judge(seen, text)[1])
    return sum(((each - wanted).square().sum() for each in (mos, pairs, faults)), torch.zeros(()))


def reference(model: VJEPA2Model, frames: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(((frames - MEAN) / STD).transpose(1, 2), skip_predictor=True).last_hidden_state


def video(encoder: Vjepa2Encoder, frames: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return encoder._video(encoder.stem(frames))[0]


# Equal to transformers


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.85, 1.0])
def test_stem_and_top_are_transformers_model(published, folder, frames, ratio):
    encoder = encoder_of(folder, ratio, cache_stem=False).eval()
    wanted = reference(published, frames)
    assert torch.allclose(video(encoder, frames), wanted, atol=1e-6)
    assert wanted.std() > 0.5, "else anything would be close"


def test_checkpoint_with_a_classifier_gives_the_model_below_it(frames, tmp_path):
    torch.manual_seed(3)
    theirs = VJEPA2ForVideoClassification(small_config(num_labels=5)).eval()
    theirs.save_pretrained(tmp_path)
    encoder = encoder_of(tmp_path, cache_stem=False).eval()
    assert torch.allclose(video(encoder, frames), reference(theirs.vjepa2, frames), atol=1e-6)


def test_any_even_number_of_frames_is_that_of_transformers(published, folder):
    frames = torch.rand(1, 3, 10, SIDE_PX, SIDE_PX)
    encoder = encoder_of(folder, cache_stem=False).eval()
    assert torch.allclose(video(encoder, frames), reference(published, torch.round(frames * 255) / 255), atol=1e-6)


def test_smaller_frames_are_those_of_a_model_of_that_size(published, folder):
    frames = torch.randint(0, 256, (1, 3, 4, 32, 32)) / 255
    smaller = VJEPA2Model(small_config(crop_size=32)).eval()
    smaller.load_state_dict(published.state_dict())
    encoder = encoder_of(folder, cache_stem=False).eval()
    assert torch.allclose(video(encoder, frames), reference(smaller, frames), atol=1e-5)
    assert not torch.allclose(video(encoder, frames), reference(published, frames), atol=1e-2), "other positions"


def test_each_token_of_a_wide_frame_stands_at_its_own_time_row_and_column(folder):
    grid = (3, 2, 4)
    encoder = encoder_of(folder)
    where = positions(encoder.config, grid, torch.device("cpu"))
    found = encoder.backbone.layers[0].attention.get_position_ids(torch.zeros(1, 24, CHANNELS), masks=where)
    wanted = [(time, row, column) for time in range(3) for row in range(2) for column in range(4)]
    assert list(zip(*(axis[0, 0].tolist() for axis in found), strict=True)) == wanted


def test_wide_frames_are_seen(folder):
    seen = encoder_of(folder).eval().see(encoder_of(folder).stem(torch.rand(2, 3, 6, 32, 64)))
    assert seen.tokens.shape == (2, 3 * 2 * 4, WIDTH)
    assert seen.tokens.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 64, 64), (4, 60, 64), (4, 64, 72), (4, 80, 64), (0, 64, 64)])
def test_frames_of_a_size_that_the_checkpoint_does_not_take_are_refused(folder, shape):
    with pytest.raises(FrameSizeError, match=rf"{'x'.join(map(str, shape))}: .* steps of 2, .* of 16 up to 64; set"):
        load_stem(folder, 0.5)(torch.zeros(1, 3, *shape))


def test_the_processors_mean_and_deviation_are_used(spoiled, frames):
    (spoiled / "video_preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3})
    )
    stem = load_stem(spoiled, 0.5)
    same = load_stem(spoiled, 0.5)
    same.config |= {"image_mean": MEAN.flatten().tolist(), "image_std": STD.flatten().tolist()}
    assert torch.allclose(stem.run(frames)[0], same.run((frames - 0.5) / 0.25 * STD + MEAN)[0], atol=1e-4)
    assert spoiled / "video_preprocessor_config.json" in weights_files(spoiled)


# Frozen and trained


@pytest.mark.parametrize(
    ("layers", "ratio", "frozen"),
    [(40, 0.85, 34), (4, 0.85, 3), (24, 0.85, 20), (100, 0.29, 29), (4, 0.99, 3), (4, 0.0, 0), (4, 1.0, 4)],
)
def test_the_share_of_frozen_layers_is_rounded_down(layers, ratio, frozen):
    assert frozen_count({"num_hidden_layers": layers}, ratio) == frozen


@pytest.mark.parametrize("ratio", [-0.1, 1.01, float("nan")])
def test_a_share_of_frozen_layers_that_is_none_is_refused(ratio):
    with pytest.raises(ValueError, match="freeze_ratio must be between 0 and 1"):
        frozen_count({"num_hidden_layers": 4}, ratio)


def test_the_stem_gives_bfloat16_tokens_and_their_grid_without_a_graph(folder, frames):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value), lambda value: value):
        found = encoder_of(folder).train().stem(frames.clone().requires_grad_())
    assert (found["hidden"].shape, found["hidden"].dtype) == ((2, 2 * 4 * 4, CHANNELS), torch.bfloat16)
    assert found["grid"].tolist() == [[2, 4, 4]] * 2
    assert found["hidden"].grad_fn is None and not found["hidden"].requires_grad
    assert not kept


def test_stem_then_see_is_the_uncut_run_but_for_bfloat16(folder, frames):
    cut, uncut = (encoder_of(folder, cache_stem=cached).eval() for cached in (True, False))
    with torch.no_grad():
        short, whole = cut.see(cut.stem(frames)), uncut.see(uncut.stem(frames))
    assert list(uncut.stem(frames)) == ["frames"]
    for ours, theirs in ((short.tokens, whole.tokens), (short.content, whole.content)):
        assert torch.allclose(ours, theirs, atol=0.03)
        assert not torch.equal(ours, theirs), "the uncut run rounds nothing"
        assert theirs.std() > 0.5


def test_hidden_may_come_as_the_bits_of_bfloat16(folder, frames):
    encoder = encoder_of(folder).eval()
    activations = encoder.stem(frames)
    bits = activations | {"hidden": torch.from_numpy(activations["hidden"].view(torch.int16).numpy())}
    assert torch.equal(encoder.see(bits).tokens, encoder.see(activations).tokens)


@pytest.mark.parametrize("fusion", [ConcatenationFusion, QualityAwareFusion])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("cache_stem", [True, False])
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(folder, frames, fusion, ratio, cache_stem):
    model = model_of(encoder_of(folder, ratio, cache_stem=cache_stem), fusion).train()
    a_loss(model, model.stem(frames)).backward()
    without = [
        name
        for name, value in model.named_parameters()
        if value.requires_grad and (value.grad is None or not value.grad.abs().sum() > 0)
    ]
    assert not without
    frozen = dict(model.encoder.frozen.named_parameters())
    assert all(not value.requires_grad and value.grad is None for value in frozen.values())
    assert len(frozen) == 2 + 16 * round(ratio * LAYERS)


def test_checkpointing_gives_equal_gradients_and_keeps_less(folder, frames):
    gradients, kept = [], []
    for checkpointing in (False, True):
        model = model_of(encoder_of(folder, 0.0, checkpointing=checkpointing)).train()
        activations, sizes = model.stem(frames), []

        def measure(value: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(measure, lambda value: value):
            loss = a_loss(model, activations)
        kept.append(sum(sizes))
        loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])
    assert kept[1] < kept[0] / 3


def test_a_stem_in_bfloat16_is_near_the_published_one_and_the_same_under_any_autocast(folder, frames):
    exact, half = load_stem(folder, 1.0), load_stem(folder, 1.0, dtype=torch.bfloat16)
    wanted, found = exact.run(frames)[0], half.run(frames)[0]
    assert ((found - wanted).norm() / wanted.norm()) < 0.02
    assert found.dtype == torch.float32
    assert {value.dtype for name, value in half.named_parameters() if value.ndim > 1} == {torch.bfloat16}
    assert half.layers[0].norm1.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.run(frames)[0], found)
        assert torch.equal(exact.run(frames)[0], wanted)


def test_training_under_autocast_works_on_cached_activations(folder, frames):
    model = model_of(encoder_of(folder, checkpointing=True)).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = a_loss(model, model.stem(frames))
    loss.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.requires_grad)


def test_prediction_does_not_depend_on_the_other_clips_of_the_batch(folder, frames):
    model = model_of(encoder_of(folder, cache_stem=False)).eval()
    with torch.no_grad():
        together = model(frames, made_up_text(2)).mos
        alone = [model(frames[[clip]], made_up_text(2)[[clip]]).mos for clip in range(2)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_prediction_depends_on_the_order_of_the_frames(folder, frames):
    model = model_of(encoder_of(folder, cache_stem=False)).eval()
    with torch.no_grad():
        forth, back = (model(given, made_up_text(2)).mos for given in (frames, frames.flip(2)))
    assert (forth - back).abs().max() > 1e-4


# Pooling


def test_untrained_queries_take_the_mean_of_all_tokens(folder):
    encoder, tokens = encoder_of(folder), torch.randn(2, 32, CHANNELS)
    encoder.queries.data.zero_()
    wanted = nn.functional.layer_norm(tokens.mean(1), (CHANNELS,))
    assert torch.allclose(encoder._pool(tokens), wanted.unsqueeze(1).expand(2, QUERIES, CHANNELS), atol=1e-5)


def test_a_query_finds_its_token_wherever_it_is(folder):
    encoder, tokens = encoder_of(folder), torch.randn(1, 32, CHANNELS)
    encoder.queries.data[0] = 100 * tokens[0, 17]
    assert torch.allclose(encoder._pool(tokens)[0, 0], nn.functional.layer_norm(tokens[0, 17], (CHANNELS,)), atol=1e-4)


@pytest.mark.parametrize(
    ("grid", "blocks"),
    [((32, 24, 24), (1, 4, 4)), ((2, 4, 6), (1, 1, 1)), ((3, 7, 13), (1, 2, 3)), ((65, 2, 2), (3, 1, 1))],
)
def test_fields_are_the_means_of_their_blocks(grid, blocks):
    tokens = torch.rand(2, grid[0] * grid[1] * grid[2], 3, generator=torch.Generator().manual_seed(0))
    maps = tokens.unflatten(1, grid)
    starts = [range(0, size, step) for size, step in zip(grid, blocks, strict=True)]
    time, height, width = blocks
    wanted = [
        # Space first, then time: the last block of time may be of fewer, all in it count alike.
        maps[:, t : t + time, row : row + height, column : column + width].mean((1, 2, 3))
        for t in starts[0]
        for row in starts[1]
        for column in starts[2]
    ]
    found = _fields(tokens, grid)
    assert torch.allclose(found, torch.stack(wanted, 1), atol=1e-5)
    assert found.shape[1] <= 32 * 6 * 6


# Building


def test_an_encoder_is_rebuilt_from_its_config_and_trained_tensors_alone(folder, frames):
    trained = model_of(encoder_of(folder)).eval()
    tensors, config = trained_tensors(trained), json.loads(json.dumps(trained.encoder.config))
    assert not [name for name in tensors if "frozen" in name]
    assert {name for name in tensors if name.startswith("judges.0.encoder.backbone.layers.")} >= {
        "judges.0.encoder.backbone.layers.0.norm1.weight",
        "judges.0.encoder.backbone.layers.1.mlp.fc2.bias",
    }
    rebuilt = model_of(Vjepa2Encoder(config, WIDTH, freeze_ratio=0.5)).eval()
    load_trained(rebuilt, tensors, Path("checkpoint"))
    activations = trained.stem(frames)
    with torch.no_grad():
        wanted, found = (model.from_stem(activations, made_up_text(2)).mos for model in (trained, rebuilt))
    assert torch.equal(found, wanted)
    assert config == read_config(folder)


def test_a_backbone_that_nothing_filled_is_refused_and_not_random(folder, frames):
    encoder = Vjepa2Encoder(read_config(folder), WIDTH, freeze_ratio=0.5)
    activations = load_stem(folder, 0.5)(frames)
    with pytest.raises(RuntimeError, match="top layers are NaN: load_top"):
        encoder.see(activations)
    filled = copy.deepcopy(encoder)
    load_top(filled, folder)
    assert filled.see(activations).tokens.isfinite().all()
    with pytest.raises(RuntimeError, match="frozen layers hold no weights"):
        Vjepa2Stem(read_config(folder), 0.5)(frames)


def test_building_draws_no_random_numbers_for_published_layers(folder):
    after = []
    for ratio in (0.0, 1.0):
        torch.manual_seed(0)
        Vjepa2Encoder(read_config(folder), WIDTH, freeze_ratio=ratio)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_model_without_its_stem_refuses_frames_and_takes_activations(folder, frames):
    encoder = encoder_of(folder, with_stem=False).eval()
    with pytest.raises(RuntimeError, match="built without its stem"):
        encoder.stem(frames)
    encoder.cache_stem = False
    with pytest.raises(RuntimeError, match="built without its stem"):
        encoder.see(encoder.stem(frames))
    assert encoder.see(load_stem(folder, 0.5)(frames)).content.shape == (2, encoder.content_width)


@pytest.mark.parametrize("cache_stem", [True, False])
def test_several_judges_share_the_frozen_layers(folder, frames, cache_stem):
    values = {"weights": str(folder), "width": WIDTH, "dropout": 0.0, "freeze_ratio": 0.5, "stem_precision": "fp32"}
    settings = Vjepa2Network.model_validate(values | {"cache_stem": cache_stem, "judges": 2})
    model = build_model("vjepa2", settings, TEXT_WIDTH, stem=build_stem("vjepa2", settings)).eval()
    first, second = (judge.encoder for judge in model.judges)
    assert first.frozen is second.frozen and not [name for name in trained_tensors(model) if "frozen" in name]
    text = made_up_text(2)
    with torch.no_grad():
        activations = model.stem(frames)
        judged = [judge.judge(judge.see(activations), text)[0] for judge in model.judges]
        assert torch.allclose(model(frames, text).mos[:, :4], torch.stack(judged).mean(0), atol=1e-4)
    assert not torch.allclose(*judged)


def test_a_stem_of_another_ratio_is_refused(folder):
    with pytest.raises(ValueError, match="the stem has 2 layers"):
        Vjepa2Encoder(read_config(folder), WIDTH, freeze_ratio=0.85, stem=load_stem(folder, 0.5))


def test_a_checkpoint_of_another_network_is_refused_for_the_top(folder):
    encoder = Vjepa2Encoder(read_config(folder) | {"layer_norm_eps": 1e-3}, WIDTH)
    with pytest.raises(WeightsError, match=r"another network than the encoder's: layer_norm_eps 1e-06 for 0\.001"):
        load_top(encoder, folder)


# Checkpoints


def test_every_tensor_is_used_or_listed_with_a_reason(tmp_path):
    VJEPA2ForVideoClassification(small_config(num_labels=5)).save_pretrained(tmp_path)
    found, tensors = account(tmp_path, read_config(tmp_path)), load_file(tmp_path / "model.safetensors")
    used = {key for _, key in found.used.values()}
    assert used | found.unused.keys() == tensors.keys() and not used & found.unused.keys()
    assert all(key.startswith("vjepa2.encoder.") for key in used)
    kinds = {key.removeprefix("vjepa2.").split(".")[0]: why for key, why in found.unused.items()}
    assert kinds.keys() == {"predictor", "pooler", "classifier"}
    assert "never run here" in kinds["predictor"]


def respell(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


KEY = "encoder.layer.0.norm1.weight"
"""Of a frozen layer: the top, which does not read it, has to notice too."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), rf"1 missing: {KEY}"),
        (lambda t: t.update({"encoder.extra": torch.zeros(1)}), r"1 unknown: encoder\.extra"),
        (lambda t: t.update({"layer.0.norm1.weight": torch.zeros(1)}), r"1 unknown: layer\.0\.norm1"),
        (lambda t: t.update({KEY: torch.zeros(3)}), rf"1 of another shape: {KEY} \(3,\) for \(48,\)"),
        (lambda t: t.update({f"vjepa2.{KEY}": torch.zeros(CHANNELS)}), rf"1 there twice: (vjepa2\.)?{KEY}"),
        (lambda t: [t.pop(key) for key in list(t) if "layer.3" in key], r"16 missing: .* and 11 more"),
    ],
)
@pytest.mark.parametrize("part", ["stem", "top"])
def test_tensors_that_do_not_fit_are_named(spoiled, change, message, part):
    respell(spoiled, change)
    with pytest.raises(WeightsError, match=message):
        if part == "stem":
            load_stem(spoiled, 0.5)
        else:
            load_top(Vjepa2Encoder(read_config(spoiled), WIDTH), spoiled)


def test_a_checkpoint_in_shards_is_the_same(published, tmp_path, frames):
    published.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    encoder = encoder_of(tmp_path, cache_stem=False).eval()
    assert torch.allclose(video(encoder, frames), reference(published, frames), atol=1e-6)
    assert len(weights_files(tmp_path)) == 1 + len(list(tmp_path.glob("*.safetensors")))


def test_a_missing_shard_is_named(published, tmp_path):
    published.save_pretrained(tmp_path, max_shard_size="100KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(WeightsError, match=rf"{lost.name}: no such file"):
        load_stem(tmp_path, 0.5)
    with pytest.raises(WeightsError, match=rf"{lost.name}: no such file"):
        weights_files(tmp_path)


def test_only_the_tensors_of_the_wanted_part_are_read(folder, monkeypatch):
    import safetensors

    read: list[str] = []
    genuine = safetensors.safe_open

    class Recording:
        def __init__(self, *given: Any, **settings: Any) -> None:
            self.file = genuine(*given, **settings)

        def __enter__(self) -> Recording:
            self.file.__enter__()
            return self

        def __exit__(self, *what: object) -> None:
            self.file.__exit__(*what)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            read.append(name)
            return self.file.get_tensor(name)

    monkeypatch.setattr(safetensors, "safe_open", Recording)
    load_stem(folder, 0.5)
    assert {name.split(".")[2] for name in read if name.startswith("encoder.layer.")} == {"0", "1"}
    assert len(read) == 2 + 2 * 16
    read.clear()
    load_top(Vjepa2Encoder(read_config(folder), WIDTH, freeze_ratio=0.5), folder)
    assert {name.split(".")[2] for name in read if name.startswith("encoder.layer.")} == {"2", "3"}
    assert len(read) == 2 + 2 * 16


def test_a_checkpoint_in_half_precision_is_read_as_asked(spoiled):
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: value.half() for name, value in tensors.items()})

    respell(spoiled, halve)
    assert {value.dtype for value in load_stem(spoiled, 0.5).parameters()} == {torch.float32}
    assert {value.dtype for value in encoder_of(spoiled).backbone.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"config\.json: no such file"),
        ("config.json", b"{", r"config\.json: can't be read"),
        ("config.json", b"[]", r"config\.json: can't be read: not a JSON object"),
        ("config.json", b'{"model_type": "vit"}', r"config\.json: model_type is 'vit', not 'vjepa2'"),
        ("config.json", b'{"model_type": "vjepa2", "hidden_size": "wide"}', r"config\.json: .*hidden_size"),
        ("config.json", b'{"model_type": "vjepa2", "patch_size": [16, 16]}', r"patch_size must be a whole number"),
        ("config.json", b'{"model_type": "vjepa2", "in_chans": 4}', r"in_chans must be 3 \(RGB\), got 4"),
        ("model.safetensors", None, r"holds neither model\.safetensors nor .*; pickled weights"),
        ("model.safetensors", b"cut", r"model\.safetensors: can't be read"),
        ("model.safetensors.index.json", b"{}", r"index\.json: lists no files"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_named(spoiled, name, content, message):
    if "index" in name:
        (spoiled / "model.safetensors").unlink()
    if content is None:
        (spoiled / name).unlink()
    else:
        (spoiled / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_stem(spoiled, 0.5)


# The hub


def test_a_local_folder_is_taken_as_it_is(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    assert locate(str(folder)) == folder


def test_a_name_on_the_hub_is_downloaded_without_pickles(folder, monkeypatch):
    asked = {}

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert locate("facebook/vjepa2-vitg-fpc64-384-ssv2") == folder
    assert asked == {"facebook/vjepa2-vitg-fpc64-384-ssv2": ["*.json", "*.safetensors"]}


@pytest.mark.parametrize("weights", ["facebook/vjepa2-vitg-fpc64-384-ssv2", "/no/such/folder", "a/b/c"])
def test_weights_that_can_not_be_had_name_the_way_out(weights):
    """Offline, as all tests are."""
    with pytest.raises(WeightsError, match=rf"'{weights}' .* can't be downloaded .*vjepa2\.network\.weights in params"):
        locate(weights)


@pytest.mark.parametrize("error", [TimeoutError("slow"), RuntimeError(""), ValueError("two\nlines")])
def test_whatever_the_download_raises_is_one_line(monkeypatch, error):
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(WeightsError) as caught:
        locate("some/model")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


# ViT-g


def test_vit_giant_has_the_published_sizes():
    """Counted without memory: 40 layers of 1408 channels, about 1.01 billion parameters, 34 layers of them frozen."""
    config = {
        "patch_size": 16,
        "crop_size": 384,
        "tubelet_size": 2,
        "in_chans": 3,
        "hidden_size": 1408,
        "num_attention_heads": 22,
        "num_hidden_layers": 40,
        "mlp_ratio": 48 / 11,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    whole = vjepa2_stem._on_meta(vjepa2_stem._whole_encoder, config)
    assert 1.00e9 < sum(value.numel() for value in whole.parameters()) < 1.02e9
    assert len(Vjepa2Stem(config, 0.85).layers) == 34
    assert vjepa2_stem.grid_of(config, torch.empty(1, 3, 64, 384, 384, device="meta")) == (32, 24, 24)
