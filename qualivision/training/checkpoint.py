"""A checkpoint on disk: a folder with what training changed, and how to rebuild the rest.

    model.safetensors          the trained tensors, and nothing of the frozen stem
    curve.json                 the learning curve, if one was asked for (`curve.py`)
    model.json                 name, settings, architecture, name and hash of the published weights, how training went
    trainer/state.safetensors  what a resumed run needs (`loop.py` writes it); never served

An ensemble is a checkpoint too:

    members/NAME/              of each member a copy of its checkpoint
    model.json                 "ensemble", the members' names and hashes, and the share of each in each dimension

Every file is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.cache import file_hash, make_key, write_atomically
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS
from qualivision.settings import ENSEMBLE, NETWORKS, FrameSpec, NetworkSettings, TextSettings
from qualivision.training.sharding import part_like, whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

    from qualivision.models.quality import QualityModel

WEIGHTS = "model.safetensors"
CARD = "model.json"
MEMBERS = "members"
FROZEN = ".encoder.frozen."
_SUMS_TO_1: Final = 1e-6


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
    """Read the `model.json` of one model. Raises CheckpointError when there is none or it is not ours."""
    path = folder / CARD
    values = _read_json(folder)
    try:
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
    except (ValueError, TypeError, KeyError) as err:
        raise CheckpointError(f"{path}: can't be read: {err}") from err


@dataclass(frozen=True)
class Member:
    """One of the models whose scores a checkpoint's scores are the weighted mean of."""

    folder: Path
    """its own checkpoint"""
    card: ModelCard
    weights: Mapping[str, float]
    """its share in the score of each dimension; over the members these sum to 1"""

    @property
    def name(self) -> str:
        """Which of our models it is."""
        return self.card.name


def members_of(folder: Path) -> tuple[Member, ...]:
    """The models that a checkpoint is made of: itself alone, or the members of an ensemble, two or more.

    Raises:
        CheckpointError: not a checkpoint, an ensemble whose card says nothing sound, or a member that is missing or
            another than the card was written for.
    """
    values = _read_json(folder)
    if values.get("name") != ENSEMBLE:
        return (Member(folder, read_card(folder), dict.fromkeys(DIMENSIONS, 1.0)),)
    names = _member_names(folder, values)
    try:
        weights = [
            {dimension: float(values["weights"][dimension][i]) for dimension in DIMENSIONS} for i in range(len(names))
        ]
    except (ValueError, TypeError, LookupError) as err:
        raise CheckpointError(f"{folder / CARD}: can't be read: it has no weight for a member: {err!r}") from err
    for dimension in DIMENSIONS:
        shares = [shares[dimension] for shares in weights]
        if not (min(shares) >= 0 and abs(sum(shares) - 1) <= _SUMS_TO_1):
            raise CheckpointError(f"{folder / CARD}: {dimension}: {shares} are no weights: 0 or more, of sum 1")
    cards = [read_card(folder / MEMBERS / name) for name in names]
    for name, card in zip(names, cards, strict=True):
        if card.name != name:
            raise CheckpointError(
                f"{folder / MEMBERS / name}: is a {card.name!r} model; `dvc repro ensemble` copies it"
            )
        # Members come from other machines too, by ways that know nothing of the card beside them.
        if values.get("checkpoints", {}).get(name) != checkpoint_id(folder / MEMBERS / name):
            raise CheckpointError(
                f"{folder / MEMBERS / name}: is not what the ensemble's weights were fitted to; `dvc repro ensemble`"
            )
    return tuple(
        Member(folder / MEMBERS / name, card, shares) for name, card, shares in zip(names, cards, weights, strict=True)
    )


def kind_of(members: Sequence[Member]) -> str:
    """What a checkpoint of these members is called: the name of the one, or `ensemble`."""
    return members[0].name if len(members) == 1 else ENSEMBLE


def weights_of(members: Sequence[Member]) -> npt.NDArray[np.float64]:
    """(M, 5): what share each member has in each dimension, in the order of `DIMENSIONS`."""
    return np.array([[member.weights[dimension] for dimension in DIMENSIONS] for member in members], np.float64)


def copy_member(folder: Path, checkpoint: Path) -> Path:
    """Put a copy of a model's checkpoint among the members of an ensemble, which is none until it is saved again.

    Returns:
        Where it lies.
    """
    target = folder / MEMBERS / read_card(checkpoint).name
    for card in (folder / CARD, target / CARD):
        card.unlink(missing_ok=True)
    for name in (WEIGHTS, CARD):
        write_atomically(target / name, (checkpoint / name).read_bytes())
    return target


def save_ensemble(folder: Path, weights: Mapping[str, Mapping[str, float]]) -> None:
    """Write the card of an ensemble: {member: {dimension: its share}}. CheckpointError when a member is not there."""
    named = {name: checkpoint_id(folder / MEMBERS / name) for name in weights}
    shares = {dimension: [of[dimension] for of in weights.values()] for dimension in DIMENSIONS}
    values = {"name": ENSEMBLE, "members": list(weights), "checkpoints": named, "weights": shares}
    write_atomically(folder / CARD, (json.dumps(values, indent=2) + "\n").encode())


def files_of(folder: Path) -> tuple[str, ...]:
    """The files that a checkpoint consists of, relative to it. Raises CheckpointError when it is none."""
    values = _read_json(folder)
    own = [WEIGHTS] if values.get("name") != ENSEMBLE else []
    names = _member_names(folder, values) if not own else []
    return (*own, CARD, *(f"{MEMBERS}/{name}/{file}" for name in names for file in (WEIGHTS, CARD)))


def has_files(folder: Path) -> bool:
    """Whether the files of a checkpoint are there; of one whose card can't be read, the card. Checks no content."""
    try:
        return all((folder / name).is_file() for name in files_of(folder))
    except CheckpointError:
        return (folder / CARD).is_file()


def _read_json(folder: Path) -> dict[str, Any]:
    """What the card of a checkpoint says, whatever it is."""
    path = folder / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise CheckpointError(f"{folder}: is no checkpoint ({CARD} is missing); `dvc repro train` makes one") from err
    except (OSError, ValueError) as err:
        raise CheckpointError(f"{path}: can't be read: {err}") from err
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: can't be read: it holds no object")
    return values


def _member_names(folder: Path, values: dict[str, Any]) -> list[str]:
    names: list[str] = values.get("members", [])
    # From a file of somebody's, and parts of paths: nothing but our models' names.
    known = isinstance(names, list) and all(isinstance(name, str) and name in NETWORKS for name in names)
    if not known or len(names) < 2 or len({*names}) < len(names):
        raise CheckpointError(
            f"{folder / CARD}: can't be read: its members are {names!r}, not two or more of {', '.join(NETWORKS)}"
        )
    return names


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
    from qualivision.prompts import sentence_transformer

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
        text = TextTower(sentence_transformer(card.text.encoder))
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
    """What names a checkpoint everywhere else (MLflow runs, the registry): SHA-256 of its tensors and its card(s).

    Raises CheckpointError when it is none.
    """
    return make_key(*(file_hash(folder / name) for name in files_of(folder)))
