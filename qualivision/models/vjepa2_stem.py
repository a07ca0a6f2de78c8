"""V-JEPA2's frozen stem: the patch embedding and the bottom layers of the encoder, and the reading of its checkpoints.

The network is that of Assran et al., "V-JEPA 2" (2025, arXiv:2506.09985), from transformers' modules. The predictor,
which only pre-training needs, is never built. Weights come from a checkpoint in transformers' format, such as
facebook/vjepa2-vitg-fpc64-384-ssv2. Their licence stands in the checkpoint's model card: some are MIT, some Apache-2.0.

Every tensor of a checkpoint is used, or listed as unused with the reason; one that is missing, unknown or of another
shape is a WeightsError. A change in this file makes the stem cache anew.
"""

from __future__ import annotations

import json
import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qualivision.errors import QualiVisionError
from qualivision.models.weights import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from qualivision.models.quality import Activations

    Config = dict[str, Any]
    """What rebuilds the network without its checkpoint; plain values, for a model card."""
    Grid = tuple[int, int, int]
    """Tokens of a clip along time, height and width."""

log = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_FIELDS = (
    "patch_size",
    "crop_size",
    "tubelet_size",
    "in_chans",
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "mlp_ratio",
    "layer_norm_eps",
    "qkv_bias",
    "hidden_act",
)
"""What the encoder's function depends on. Dropout and stochastic depth are left out: they are not wanted here."""
_WHOLE_NUMBERS = tuple(name for name in _FIELDS if name.endswith(("_size", "_heads", "_layers", "_chans")))
_UNUSED = {
    "predictor.": "predicts masked patches while pre-training; never run here",
    "pooler.": "pools for the checkpoint's own classes; ours is trained for ratings",
    "classifier.": "names the checkpoint's own classes",
}
_INNER = "vjepa2."
"""Where a checkpoint of VJEPA2ForVideoClassification keeps the model."""


class FrameSizeError(QualiVisionError, ValueError):
    """Frames of a size that the checkpoint does not take: names both, and the setting."""


# The checkpoint


def locate(weights: str) -> Path:
    """The folder of a checkpoint: a local one as it is, or a name on the model hub, downloaded once.

    Raises:
        WeightsError: no such folder, or the hub can't be reached or has no such model.
    """
    if Path(weights).expanduser().is_dir():
        return Path(weights).expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(weights, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as err:  # the hub's, the HTTP client's and the disk's errors have no base of their own
        cause = (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")
        raise WeightsError(
            f"V-JEPA2 weights {weights!r} are no local folder and can't be downloaded ({cause}); set "
            f"vjepa2.network.weights in params.yaml to a folder with {CONFIG} and {WEIGHTS}"
        ) from err


def weights_files(folder: Path) -> list[Path]:
    """Every file that the network depends on, in a fixed order: what to hash.

    Raises WeightsError when one is missing.
    """
    files = [folder / CONFIG, *_shards(folder), *(folder / name for name in _PROCESSORS if (folder / name).is_file())]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise WeightsError(f"{', '.join(missing)}: no such file")
    return files


def read_config(folder: Path) -> Config:
    """Read how a checkpoint's network is built, and how its video processor normalises.

    Raises:
        WeightsError: no `config.json`, not one of V-JEPA2, or values that no network can have.
    """
    values = _read_json(folder / CONFIG)
    if values.get("model_type") != "vjepa2":
        raise WeightsError(f"{folder / CONFIG}: model_type is {values.get('model_type')!r}, not 'vjepa2'")
    from transformers import VJEPA2Config

    try:
        published = VJEPA2Config.from_dict(values)
    except Exception as err:  # whatever its validation raises
        raise WeightsError(f"{folder / CONFIG}: {' '.join(str(err).split())}") from err
    config: Config = {name: getattr(published, name) for name in _FIELDS}
    wrong = [name for name in _WHOLE_NUMBERS if type(config[name]) is not int or config[name] < 1]
    if wrong:
        raise WeightsError(f"{folder / CONFIG}: {wrong[0]} must be a whole number from 1, got {config[wrong[0]]!r}")
    if config["in_chans"] != len(_IMAGENET_MEAN):
        raise WeightsError(f"{folder / CONFIG}: in_chans must be 3 (RGB), got {config['in_chans']}")
    processor = next((_read_json(folder / name) for name in _PROCESSORS if (folder / name).is_file()), {})
    config["image_mean"] = list(processor.get("image_mean", _IMAGENET_MEAN))
    config["image_std"] = list(processor.get("image_std", _IMAGENET_STD))
    return config


@dataclass(frozen=True)
class Account:
    """Where each tensor of a checkpoint goes."""

    used: dict[str, tuple[Path, str]]
    """By the name in transformers' VJEPA2Model: the file, and the name in that file."""
    unused: dict[str, str]
    """By the name in the file: why it is not used."""


def account(folder: Path, config: Config) -> Account:
    """Check every tensor of a checkpoint by name and shape; reads the files' headers only.

    Raises:
        WeightsError: a file that is missing or can't be read, or tensors that are missing, unknown, there twice, or of
            another shape.
    """
    whole = _on_meta(_whole_encoder, config).state_dict()
    expected = {f"encoder.{name}": tuple(value.shape) for name, value in whole.items()}
    used: dict[str, tuple[Path, str]] = {}
    unused: dict[str, str] = {}
    problems: dict[str, list[str]] = {"missing": [], "unknown": [], "there twice": [], "of another shape": []}
    for path, key, shape in _headers(folder):
        name = key.removeprefix(_INNER)
        if reason := next((why for prefix, why in _UNUSED.items() if name.startswith(prefix)), None):
            unused[key] = reason
        elif name not in expected:
            problems["unknown"].append(key)
        elif name in used:
            problems["there twice"].append(key)
        else:
            used[name] = path, key
            if shape != expected[name]:
                problems["of another shape"].append(f"{key} {shape} for {expected[name]}")
    problems["missing"] = [name for name in expected if name not in used]
    if any(problems.values()):
        parts = [f"{len(found)} {what}: {_some(found)}" for what, found in problems.items() if found]
        raise WeightsError(f"{folder}: its tensors are not those of its {CONFIG}: {'; '.join(parts)}")
    return Account(used, unused)


def read_tensors(folder: Path, config: Config, names: Mapping[str, str], dtype: torch.dtype) -> dict[str, Tensor]:
    """Some tensors of a checkpoint, once all of it is accounted for. The others are never in memory.

    Args:
        folder: the checkpoint.
        config: as `read_config` gives it.
        names: {our name: name in transformers' VJEPA2Model}.
        dtype: what matrices are converted to, one by one. Vectors (biases, norms) are float32.
    Raises:
        WeightsError: see `account`.
    """
    accounted = account(folder, config)
    for prefix, why in _UNUSED.items():
        if count := sum(key.removeprefix(_INNER).startswith(prefix) for key in accounted.unused):
            log.info("%s: %d tensors of %s* are not used: %s", folder, count, prefix, why)
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for ours, theirs in names.items():
        path, key = accounted.used[theirs]
        by_file.setdefault(path, []).append((ours, key))
    found: dict[str, Tensor] = {}
    for path, wanted in by_file.items():
        with _opened(path) as file:
            for ours, key in wanted:
                value = file.get_tensor(key)
                # A copy in any case: a view would keep the whole file mapped.
                found[ours] = value.to(dtype if value.ndim > 1 else torch.float32, copy=True)
    return found


def _headers(folder: Path) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
    """File, name and shape of every tensor of a checkpoint."""
    for path in _shards(folder):
        with _opened(path) as file:
            names = list(file.keys())
            shapes = [tuple(file.get_slice(name).get_shape()) for name in names]
        yield from ((path, name, shape) for name, shape in zip(names, shapes, strict=True))


def _shards(folder: Path) -> list[Path]:
    """The weights' files: one, or those that the index lists."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise WeightsError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; pickled weights (.bin, .pt) are not read")
    listed = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise WeightsError(f"{folder / INDEX}: lists no files")
    return [folder / name for name in sorted(set(listed.values()))]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        cause = "no such file" if isinstance(err, FileNotFoundError) else f"can't be read: {err}"
        raise WeightsError(f"{path}: {cause}") from err
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: can't be read: not a JSON object")
    return values


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as err:
        cause = "no such file" if isinstance(err, FileNotFoundError) else f"can't be read: {err}"
        raise WeightsError(f"{path}: {cause}") from err


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# The network's parts, for the stem and for what is trained on top of it


def published_config(config: Config) -> Any:
    """transformers' configuration of the encoder, with PyTorch's fused attention."""
    from transformers import VJEPA2Config

    published = VJEPA2Config(**{name: config[name] for name in _FIELDS})
    published._attn_implementation = "sdpa"
    return published


def frozen_count(config: Config, freeze_ratio: float) -> int:
    """How many layers are frozen: the ratio rounded down, so that never more is frozen than was asked for.

    0.85 freezes 34 of 40 layers. The patch embedding is frozen at any ratio, the final norm at none.
    Raises ValueError for a ratio outside 0 to 1.
    """
    if not 0 <= freeze_ratio <= 1:
        raise ValueError(f"freeze_ratio must be between 0 and 1, got {freeze_ratio}")
    layers: int = config["num_hidden_layers"]
    return math.floor(freeze_ratio * layers + 1e-6)  # 0.29 * 100 is a little less than 29


def build_layers(config: Config, count: int) -> nn.ModuleList:
    """So many of transformers' layers, (B, N, D) to (B, N, D)."""
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer

    published = published_config(config)
    sizes = {
        "hidden_size": published.hidden_size,
        "num_attention_heads": published.num_attention_heads,
        "mlp_ratio": published.mlp_ratio,
    }
    return nn.ModuleList(VJEPA2Layer(published, **sizes) for _ in range(count))


def grid_of(config: Config, frames: Tensor) -> Grid:
    """The grid of tokens of (B, 3, T, H, W) frames.

    Raises:
        FrameSizeError: T is no multiple of the tubelet, H or W none of the patch, or larger than what the checkpoint
            was trained on: it has seen no position beyond, and transformers' layers would take one for another.
    """
    count, height, width = frames.shape[2:]
    tubelet, patch, most = config["tubelet_size"], config["patch_size"], config["crop_size"]
    if count % tubelet or height % patch or width % patch or max(height, width) > most or not min(count, height, width):
        raise FrameSizeError(
            f"frames of {count}x{height}x{width}: this V-JEPA2 takes a count in steps of {tubelet}, and heights and "
            f"widths in steps of {patch} up to {most}; set vjepa2.frames in params.yaml"
        )
    return count // tubelet, height // patch, width // patch


def positions(config: Config, grid: Grid, device: torch.device) -> Tensor | None:
    """Where each token stands, for the layers' rotary embedding; None where they find out themselves.

    transformers' layers read time, row and column off a token's number, as if each frame were a square of `crop_size`.
    For frames of another size the tokens get the numbers that they would have in the top left corner of that square.

    Returns:
        (1, N) int64, or None for frames of `crop_size` by `crop_size`, which need less memory that way.
    """
    side = config["crop_size"] // config["patch_size"]
    if grid[1:] == (side, side):
        return None
    time, row, column = torch.meshgrid(*(torch.arange(size, device=device) for size in grid), indexing="ij")
    return ((time * side + row) * side + column).reshape(1, -1)


def _whole_encoder(config: Config) -> nn.Module:
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder

    encoder: nn.Module = VJEPA2Encoder(published_config(config))
    return encoder


def _on_meta(build: Callable[[Config], nn.Module], config: Config) -> nn.Module:
    """A module without memory for its tensors: names and shapes only."""
    with torch.device("meta"):
        return build(config)


class Vjepa2Stem(nn.Module):
    """The frozen part of V-JEPA2. Its tensors have no values, and no memory, until `load_stem` fills them.

    It runs without a graph and in its own precision, whatever autocast is on around it, so that what is cached is what
    an uncached run sees. Loaded as float32: as published. Loaded as bfloat16: matrices in half the memory and products
    in bfloat16, norms and the sums along the layers in float32, as in mixed precision.

    Args:
        config: as `read_config` gives it.
        freeze_ratio: share of the layers that are frozen; see `frozen_count`.
    """

    def __init__(self, config: Config, freeze_ratio: float) -> None:
        super().__init__()
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Embeddings

        self.config = dict(config)
        with torch.device("meta"):
            self.embeddings = VJEPA2Embeddings(published_config(config), hidden_size=config["hidden_size"])
            self.layers = build_layers(config, frozen_count(config, freeze_ratio))
        self.requires_grad_(False)

    def forward(self, frames: Tensor) -> Activations:
        """What the frozen layers make of clips, as it is cached.

        Args:
            frames: (B, 3, T, H, W) float in [0, 1].
        Returns:
            `hidden` (B, N, D) bfloat16: the tokens after the last frozen layer, time first, then rows; and `grid`
            (B, 3) int64: how many along time, height and width. 64 x 384 x 384 of ViT-g: 18 432 x 1408, 52 MB a clip.
        Raises:
            FrameSizeError: see `grid_of`.
        """
        hidden, grid = self.run(frames)
        return {
            "hidden": hidden.to(torch.bfloat16),
            "grid": torch.tensor(grid, device=hidden.device).expand(len(hidden), 3),
        }

    @torch.no_grad()
    def run(self, frames: Tensor) -> tuple[Tensor, Grid]:
        """The same unrounded: (B, N, D) and the grid. The sums along the layers are float32 in either precision."""
        grid = grid_of(self.config, frames)
        weight = self.embeddings.patch_embeddings.proj.weight
        if weight.is_meta:
            raise RuntimeError("V-JEPA2's frozen layers hold no weights: load_stem has to fill them")
        half = weight.dtype.itemsize == 2
        with torch.autocast(frames.device.type, weight.dtype if half else None, enabled=half):
            hidden = self.embeddings(self._normalised(frames).transpose(1, 2)).float()
            where = positions(self.config, grid, frames.device)
            for layer in self.layers:
                hidden = layer(hidden, where)[0]
        return hidden, grid

    def _normalised(self, frames: Tensor) -> Tensor:
        # Not buffers: `.to(torch.bfloat16)` would round them.
        mean, std = (
            torch.tensor(self.config[name], device=frames.device).view(1, 3, 1, 1, 1)
            for name in ("image_mean", "image_std")
        )
        return (frames.float() - mean) / std


def load_stem(folder: Path, freeze_ratio: float, *, dtype: torch.dtype = torch.float32) -> Vjepa2Stem:
    """The frozen part of a checkpoint, on the CPU. The layers above it are not read.

    Args:
        folder: as `locate` gives it.
        freeze_ratio: share of the layers that are frozen; see `frozen_count`.
        dtype: of the matrices: float32 (ViT-g at 0.85: 3.5 GB), or bfloat16 (half of that, and for a GPU).
    Raises:
        WeightsError: a tensor of the checkpoint is missing, unknown or misshapen, or a file can't be read.
    """
    config = read_config(folder)
    stem = Vjepa2Stem(config, freeze_ratio)
    names = {name: f"encoder.{name.replace('layers.', 'layer.', 1)}" for name in stem.state_dict()}
    stem.load_state_dict(read_tensors(folder, config, names, dtype), assign=True)
    return stem.eval()
