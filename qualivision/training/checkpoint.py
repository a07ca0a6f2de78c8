"""A checkpoint on disk: a folder with what training changed, and how to rebuild the rest.

    model.safetensors          the trained tensors, and nothing of the frozen stem
    curve.json                 the learning curve, if one was asked for (`curve.py`)
    model.json                 name, settings, architecture, name and hash of the published weights, how training went
    trainer/state.safetensors  what a resumed run needs (`loop.py` writes it); never served

Every file is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision.cache import file_hash, make_key, write_atomically
from qualivision.errors import QualiVisionError
from qualivision.settings import NETWORKS, FrameSpec, NetworkSettings, TextSettings
from qualivision.training.sharding import part_like, whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qualivision.models.quality import QualityModel

WEIGHTS = "model.safetensors"
CARD = "model.json"
FROZEN = ".encoder.frozen."


class CheckpointError(QualiVisionError):
    """A checkpoint that can't be used: names the folder and the way out."""


@dataclass(frozen=True)
class ModelCard:
    """What `model.json` says."""

    name: str
    frames: FrameSpec
    text: TextSettings
    network: NetworkSettings
    text_width: int
    architecture: dict[str, Any]
    """what rebuilds the encoder without its published weights (`factory.Architecture`)"""
    base: str
    """what the published weights are called"""
    base_hash: str
    """their SHA-256"""
    training: dict[str, Any]
    forests: list[tuple[int, int]] = field(default_factory=list)
    """trees, and the most nodes of one, of each forest"""

    def to_json(self) -> str:
        """As stored."""
        values = asdict(self) | {
            "frames": self.frames.model_dump(),
            "text": self.text.model_dump(),
            "network": self.network.model_dump(),
        }
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes or measures: everything but the frozen stem; on the CPU."""
    return {
        name: whole(value.detach()).cpu().contiguous()
        for name, value in model.state_dict().items()
        if FROZEN not in name
    }


def save_checkpoint(folder: Path, card: ModelCard, tensors: dict[str, Tensor]) -> None:
    """Write `model.safetensors` and `model.json`."""
    from safetensors.torch import save

    # The card goes first and comes last: whatever is killed in between, an old card never describes new tensors.
    (folder / CARD).unlink(missing_ok=True)
    write_atomically(folder / WEIGHTS, save(tensors))
    write_atomically(folder / CARD, card.to_json().encode())


def read_card(folder: Path) -> ModelCard:
    """Read `model.json`. Raises CheckpointError when there is none or it is not ours."""
    path = folder / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if (name := values["name"]) not in NETWORKS:
            raise CheckpointError(f"{folder}: is a {name!r} model; this version knows {', '.join(NETWORKS)}")
        return ModelCard(
            **values
            | {
                "frames": FrameSpec(**values["frames"]),
                "text": TextSettings(**values["text"]),
                "network": NETWORKS[values["name"]](**values["network"]),
                "forests": [(int(trees), int(nodes)) for trees, nodes in values.get("forests", [])],
            }
        )
    except FileNotFoundError as err:
        raise CheckpointError(f"{folder}: is no checkpoint ({CARD} is missing); `dvc repro train` makes one") from err
    except (ValueError, TypeError, KeyError) as err:
        raise CheckpointError(f"{path}: can't be read: {err}") from err


def load_checkpoint(folder: Path, *, with_stem: bool) -> tuple[QualityModel, ModelCard]:
    """Rebuild a model.

    Args:
        folder: a checkpoint.
        with_stem: load the frozen stem too, to score frames; without it only cached activations can be scored.
    Returns:
        The model in evaluation mode, and its card.
    Raises:
        CheckpointError: not a checkpoint, damaged, tensors that don't fit, or another stem than in training.
    """
    from qualivision.models.factory import base_hash, build_model, build_stem, caches_stem, has_stem
    from qualivision.models.text import TextTower
    from qualivision.prompts import PromptEncoder

    card = read_card(folder)
    stem = text = None
    if has_stem(card.name):
        if (here := base_hash(card.name, card.network)) != card.base_hash:
            raise CheckpointError(
                f"{folder}: was trained on {card.base} with hash {card.base_hash[:12]}, here is {here[:12]}; "
                "get the weights or the package that it was trained on, or train again"
            )
        if with_stem or not caches_stem(card.name, card.network):
            stem = build_stem(card.name, card.network)
    if card.text.train:
        text = TextTower(PromptEncoder(card.text.encoder).sentences)
    model = build_model(
        card.name,
        card.network,
        card.text_width,
        architecture=card.architecture,
        stem=stem,
        text=text,
        forests=card.forests,
    )
    load_trained(model, read_tensors(folder), folder / WEIGHTS)
    return model.eval(), card


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's `model.safetensors`. Raises CheckpointError when it can't be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as err:
        raise CheckpointError(f"{folder / WEIGHTS}: can't be read: {err}") from err


def load_trained(model: QualityModel, tensors: dict[str, Tensor], source: Path) -> None:
    """Put trained tensors into a model; all of them and no others, or CheckpointError."""
    held = {name: value for name, value in model.state_dict().items() if FROZEN not in name}
    ours = {name: value.shape for name, value in held.items()}
    missing, unexpected = sorted(ours.keys() - tensors.keys()), sorted(tensors.keys() - ours.keys())
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(shape)}"
        for name, shape in ours.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or unexpected or reshaped:
        raise CheckpointError(
            f"{source}: does not fit this version of the model: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"of another shape {reshaped[:5]}; train again"
        )
    tensors = {name: part_like(value, held[name]) for name, value in tensors.items()}
    model.load_state_dict(tensors, strict=False)  # not strict only for the frozen stem, which has weights of its own


def checkpoint_id(folder: Path) -> str:
    """What names a checkpoint everywhere else (MLflow runs, the registry): SHA-256 of its tensors and its card."""
    return make_key(file_hash(folder / WEIGHTS), file_hash(folder / CARD))
