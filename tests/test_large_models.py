"""`dover` and `vjepa2` through the stages, small and with made-up published weights: they learn, and score."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.stats import spearmanr
from small_models import write_dover

from qualivision.sample_data import make_sample_data
from qualivision.scoring import Scorer
from qualivision.settings import load_settings
from qualivision.stages import encode, evaluate, frames, places, prompts, train
from qualivision.training.checkpoint import WEIGHTS, CheckpointError, load_checkpoint
from qualivision.training.data import ClipSet
from qualivision.training.loop import TrainingError, predict

FRAMES = {"count": 8, "height": 64, "width": 64}
PARAMS = Path(__file__).parent.parent / "params.yaml"


def write_vjepa2(folder: Path, *, seed: int = 0) -> None:
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(seed)
    config = VJEPA2Config(
        crop_size=64,
        frames_per_clip=8,
        hidden_size=48,
        num_attention_heads=2,
        num_hidden_layers=4,
        mlp_ratio=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        initializer_range=0.2,
    )
    VJEPA2Model(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with data, made-up published weights, and settings that read them."""
    root = tmp_path_factory.mktemp("project")
    make_sample_data(root / "data", prompts=8, seed=0, workers=2)
    write_dover(root / "dover.pth")
    write_vjepa2(root / "vjepa2")
    params = yaml.safe_load(PARAMS.read_text())
    params |= {"models": ["lite", "dover", "vjepa2"]}
    for model, weights in (("dover", root / "dover.pth"), ("vjepa2", root / "vjepa2")):
        section = params[model]
        section["frames"], section["text"]["encoder"] = FRAMES, "all-MiniLM-L6-v2"
        section["network"] |= {"weights": str(weights), "width": 32, "dropout": 0.0, "checkpointing": True}
        section["train"] |= {"epochs": 24, "batch_size": 10, "accumulate": 1, "learning_rate": 3e-3, "precision": "no"}
        section["train"] |= {"warmup_steps": 4, "average": 0.5, "save_steps": 0, "patience": 24}
    params["vjepa2"]["network"] |= {"freeze_ratio": 0.5, "stem_precision": "fp32"}
    params["evaluate"] |= {"bootstrap_resamples": 100, "behaviour_clips": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        for model in ("dover", "vjepa2"):
            frames.run(model)
            prompts.run(model)
            encode.run(model)
            train.run(model)
    return root


def enter(root: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(root)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")


@pytest.fixture
def here(project, monkeypatch):
    """The project, in which both models are trained, as the working folder."""
    enter(project, monkeypatch)
    return project


@pytest.fixture
def own(project, tmp_path, monkeypatch):
    """A copy of it, to change."""
    shutil.copytree(project, tmp_path / "own")
    enter(tmp_path / "own", monkeypatch)


def change(section: str, **values: object) -> None:
    path = Path("params.yaml")
    params = yaml.safe_load(path.read_text())
    model, part = section.split(".")
    params[model][part] |= values
    path.write_text(yaml.safe_dump(params))


def histories(model: str) -> list[float]:
    from safetensors import safe_open

    from qualivision.training.loop import STATE

    with safe_open(places.checkpoint_dir(model) / "trainer" / STATE, framework="pt") as file:
        history = json.loads(file.metadata()["state"])["progress"]["history"]
    return [epoch["loss_total"] for epoch in history]


def train_clips(model: str) -> ClipSet:
    from qualivision.prompts import PromptCache

    settings = load_settings().model(model)
    embeddings = PromptCache(places.prompts_dir(model), settings.text.encoder).read()
    return ClipSet(places.DATA, "train", encode.activations_cache(model, settings.network), embeddings)


@pytest.mark.parametrize("model", ["dover", "vjepa2"])
def test_the_stages_teach_it_the_sample_data_and_it_scores_a_video(here, model):
    assert ("nothing to compute" in encode.run(model)) == (model == "dover")
    losses = histories(model)
    assert losses[-1] < 0.7 * losses[0]
    clips = train_clips(model)
    trained, card = load_checkpoint(places.checkpoint_dir(model), with_stem=False)
    found, rated = predict(trained, clips), clips.mos.numpy()
    assert np.mean([spearmanr(found[:, column], rated[:, column]).statistic for column in range(5)]) > 0.5
    assert card.base == str(here / ("dover.pth" if model == "dover" else "vjepa2")) and len(card.base_hash) >= 32
    evaluate.run(model)
    assert json.loads((places.report_dir(model) / "metrics.json").read_text())["model"] == model
    video = next((places.DATA / "test" / "videos").glob("*.mp4"))
    scores = Scorer(places.checkpoint_dir(model), device="cpu").score(video, prompt="A red ball on a lawn")
    assert all(1 <= value <= 5 for value in scores.values.values())


def test_a_checkpoint_of_vjepa2_holds_no_frozen_layer_and_refuses_another_base(here):
    folder = places.checkpoint_dir("vjepa2")
    names = load_file(folder / WEIGHTS).keys()
    assert not [name for name in names if "frozen" in name]
    layers = {name.split(".")[5] for name in names if name.startswith("judges.0.encoder.backbone.layers.")}
    assert len(layers) == 2, "of four"
    write_vjepa2(here / "vjepa2", seed=1)
    try:
        with pytest.raises(CheckpointError, match=r"was trained on .*vjepa2 with hash \w{12}, here is"):
            load_checkpoint(folder, with_stem=False)
    finally:
        write_vjepa2(here / "vjepa2")
    load_checkpoint(folder, with_stem=True)


def test_a_checkpoint_of_dover_needs_no_published_weights_to_score(here):
    (here / "dover.pth").rename(here / "away.pth")
    try:
        model, card = load_checkpoint(places.checkpoint_dir("dover"), with_stem=True)
    finally:
        (here / "away.pth").rename(here / "dover.pth")
    assert card.architecture == {"depths": [1, 2, 1, 1], "dims": [8, 16, 24, 32]}
    # Of fewer than 512 reference clips the rest is infinitely far.
    held = {name: value for name, value in model.state_dict().items() if not name.endswith(".reference")}
    assert all(value.isfinite().all() for value in held.values())


def test_training_from_the_stem_cache_follows_the_same_loss_curve_as_without(own):
    change("vjepa2.train", epochs=3)
    curves = []
    for cached in (True, False):
        change("vjepa2.network", cache_stem=cached)
        encode.run("vjepa2")
        train.run("vjepa2")
        curves.append(histories("vjepa2"))
    assert curves[0] == pytest.approx(curves[1], rel=0.02)  # what is cached is rounded to bfloat16
    assert curves[0] != curves[1], "else nothing was cached"


def test_a_sentence_encoder_that_is_trained_moves_and_is_kept(own):
    change("dover.train", epochs=1)
    change("dover.text", train=True)
    train.run("dover")
    folder = places.checkpoint_dir("dover")
    kept = {name for name in load_file(folder / WEIGHTS) if name.startswith("text.")}
    trained, card = load_checkpoint(folder, with_stem=False)
    assert card.text.train and kept
    with torch.no_grad():
        moved = trained.embed(["A red ball"], torch.zeros(1, 384))
    from qualivision.prompts import PromptEncoder

    still = torch.from_numpy(PromptEncoder("all-MiniLM-L6-v2").encode(["A red ball"]))
    assert moved.norm(dim=1).item() == pytest.approx(1.0, abs=1e-4)
    assert 1e-4 < (moved - still).abs().max() < 0.5


def test_a_stage_trains_in_as_many_processes_as_the_settings_say(own):
    change("dover.train", epochs=2, processes=2, batch_size=5)
    before = load_file(places.checkpoint_dir("dover") / WEIGHTS)
    assert train.run("dover") == ""
    after = load_file(places.checkpoint_dir("dover") / WEIGHTS)
    assert before.keys() == after.keys() and len(histories("dover")) == 2
    Path("cache/prompts/dover").rename("away")
    with pytest.raises(TrainingError, match="2 processes ended with exit code 1"):
        train.run("dover")
