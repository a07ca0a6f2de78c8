"""DOVER++: a ConvNeXt-3D that was trained on people's judgements of video, and its aesthetic head; all is trained on.

The network is the aesthetic branch of DOVER++ (Wu et al., ICCV 2023), a ConvNeXt (Liu et al., CVPR 2022) whose filters
reach into time. Its second, technical branch (a Swin transformer on fragments of frames) is not used. The published
checkpoint is DOVER_plus_plus.pth of `teowu/DOVER`; for its licence see there. Every tensor of it is used, or listed as
unused with the reason.

Maps are kept as (B, T, H, W, C) throughout: norms and pointwise layers then read memory in order, and a depthwise
convolution is that of two dimensions on every frame.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from qualivision.models.quality import Encoder, Seen, bounded, packed, unpacked
from qualivision.models.weights import WeightsError, read_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from qualivision.models.quality import Activations

log = logging.getLogger(__name__)

FILE = "DOVER_plus_plus.pth"
"""What the checkpoint is called on the model hub."""
STRIDE = (2, 4, 4)
"""Of the first layer: what one place of the first map covers, in frames and pixels."""
TOKEN_SIDE = 7
"""The fusion gets at most so many by so many fields of every map in time: 1568 tokens of 12 800 at 64 x 640 x 640."""
_EPS = 1e-6
_HIDDEN = 64  # of the heads
_PLACES_AT_ONCE = 2048  # 3 MB of the widest layer at 96 channels
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_BACKBONE = "aesthetic_backbone."
_HEAD = "aesthetic_head."
_UNUSED = {
    "technical_backbone.": "the Swin branch, which judges fragments of frames, is not part of this model",
    "technical_head.": "reads the Swin branch's features; ours starts afresh on those of the ConvNeXt",
}


# The checkpoint


@dataclass(frozen=True)
class Published:
    """A checkpoint of DOVER++, every tensor of it accounted for."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    backbone: dict[str, Tensor]
    head: dict[str, Tensor]
    unused: dict[str, str]
    """by name: why"""


def locate(weights: str) -> Path:
    """The file of a checkpoint: a local one as it is, or `DOVER_plus_plus.pth` of a name on the model hub.

    Raises:
        WeightsError: no such file, or the hub can't be reached or has none.
    """
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(weights, FILE))
    except Exception as err:  # the hub's, the HTTP client's and the disk's errors have no base of their own
        cause = (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")
        raise WeightsError(
            f"DOVER++ weights {weights!r} are no local file and can't be downloaded ({cause}); set "
            f"dover.network.weights in params.yaml to a local {FILE} or its .safetensors conversion"
        ) from err


def read_published(path: Path) -> Published:
    """Read `DOVER_plus_plus.pth` or its conversion to safetensors; its size is read off its tensors.

    Raises:
        WeightsError: a file that can't be read, or tensors that are missing, unknown or of another shape.
    """
    state = read_state(path)
    backbone = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    head = {name.removeprefix(_HEAD): value for name, value in state.items() if name.startswith(_HEAD)}
    unused = {
        name: next((why for prefix, why in _UNUSED.items() if name.startswith(prefix)), "")
        for name in state
        if not name.startswith((_BACKBONE, _HEAD))
    }
    depths, dims = _size(backbone)
    if not depths or not dims:
        raise WeightsError(f"{path}: is no DOVER++ checkpoint: there are no tensors below {_BACKBONE}")
    with torch.device("meta"):
        expected = {_BACKBONE: ConvNeXt3D(depths, dims).state_dict(), _HEAD: VideoHead(dims[-1]).state_dict()}
    problems = {
        "missing": [],
        "unknown": [name for name, why in unused.items() if not why],
        "of another shape": [],
    }
    for prefix, found in ((_BACKBONE, backbone), (_HEAD, head)):
        problems["missing"] += [prefix + name for name in expected[prefix] if name not in found]
        problems["unknown"] += [prefix + name for name in found if name not in expected[prefix]]
        problems["of another shape"] += [
            f"{prefix}{name} {tuple(found[name].shape)} for {tuple(value.shape)}"
            for name, value in expected[prefix].items()
            if name in found and found[name].shape != value.shape
        ]
    if any(problems.values()):
        parts = [f"{len(names)} {what}: {', '.join(names[:5])}" for what, names in problems.items() if names]
        raise WeightsError(f"{path}: tensors don't fit DOVER++ of depths {depths}, dims {dims}: {'; '.join(parts)}")
    for prefix, why in _UNUSED.items():
        if count := sum(name.startswith(prefix) for name in unused):
            log.info("%s: %d tensors of %s* are not used: %s", path, count, prefix, why)
    return Published(depths, dims, backbone, head, unused)


def _size(backbone: dict[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and dims, from the names and shapes of a backbone's tensors."""
    numbered = (re.match(r"stages\.(\d+)\.(\d+)\.", name) for name in backbone)
    blocks = {(int(found[1]), int(found[2])) for found in numbered if found}
    stages = sorted({stage for stage, _ in blocks})
    dims = [
        backbone[name].shape[0]
        for stage in stages
        if (name := f"downsample_layers.{stage}.{0 if stage == 0 else 1}.weight") in backbone
    ]
    return tuple(sum(stage == other for other, _ in blocks) for stage in stages), tuple(dims)


# The network


class ConvNeXt3D(nn.Module):
    """ConvNeXt over space and time, with the parameter names of the published checkpoint.

    Args:
        depths: blocks of each stage.
        dims: channels of each stage.
        checkpointing: while training, keep only what goes into each block and compute the rest again.
    """

    def __init__(self, depths: Sequence[int], dims: Sequence[int], *, checkpointing: bool = False) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        stem = nn.Sequential(nn.Conv3d(3, dims[0], STRIDE, STRIDE), nn.LayerNorm(dims[0], _EPS))
        halve = (1, 2, 2)
        self.downsample_layers = nn.ModuleList([stem])
        for before, after in pairwise(dims):
            down = nn.Sequential(nn.LayerNorm(before, _EPS), nn.Conv3d(before, after, halve, halve))
            self.downsample_layers.append(down)
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(channels, 3 if place % 3 == 1 else 1) for place in range(depth))
            for depth, channels in zip(depths, dims, strict=True)
        )
        self.norm = nn.LayerNorm(dims[-1], _EPS)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, 3, T, H, W), normalised, to (B, T / 2, H / 32, W / 32, C) for four stages; remainders are cut off."""
        again = self.checkpointing and torch.is_grad_enabled()
        maps = frames.permute(0, 2, 3, 4, 1)
        for down, blocks in zip(self.downsample_layers, self.stages, strict=True):
            for layer in down.children():
                maps = _strided(maps, layer) if isinstance(layer, nn.Conv3d) else layer(maps)
            for block in blocks.children():
                maps = checkpoint(block, maps, use_reentrant=False) if again else block(maps)
        normed: Tensor = self.norm(maps)
        return normed


class Block(nn.Module):
    """Residual: depthwise convolution, LayerNorm, a pointwise network four times as wide, a scale for each channel.

    Args:
        channels: C.
        times: frames that the depthwise filter spans, 1 or 3.
    """

    def __init__(self, channels: int, times: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv3d(channels, channels, (times, 7, 7), padding=(times // 2, 3, 3), groups=channels)
        self.norm = nn.LayerNorm(channels, _EPS)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, T, H, W, C) to the same shape."""
        inner = _depthwise(maps, self.dwconv)
        if maps.is_cuda or torch.is_grad_enabled():
            out: Tensor = maps + self.gamma * self.pwconv2(functional.gelu(self.pwconv1(self.norm(inner))))
            return out
        return self._pointwise_in_parts(maps, inner)

    def _pointwise_in_parts(self, maps: Tensor, inner: Tensor) -> Tensor:
        """The same on a CPU, without a gradient: as many places at once as leave the widest layer in the cache."""
        out = torch.empty_like(maps)
        flat = (each.reshape(-1, maps.shape[-1]).split(_PLACES_AT_ONCE) for each in (out, maps, inner))
        for into, given, part in zip(*flat, strict=True):
            wide = functional.gelu(self.pwconv1(self.norm(part)))
            torch.addcmul(given, self.pwconv2(wide), self.gamma, out=into)
        return out


def _strided(maps: Tensor, layer: nn.Conv3d) -> Tensor:
    """A convolution of (B, T, H, W, C)."""
    out: Tensor = layer(maps.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    return out.contiguous()


def _depthwise(maps: Tensor, layer: nn.Conv3d) -> Tensor:
    """A depthwise convolution of (B, T, H, W, C): two-dimensional on every frame, for each moment that it spans."""
    weight = layer.weight
    frames = maps.flatten(0, 1).permute(0, 3, 1, 2)  # channels last, in memory
    channels, times = len(weight), weight.shape[2]
    if times == 1:
        out = functional.conv2d(frames, weight[:, :, 0], layer.bias, padding=3, groups=channels)
        return out.permute(0, 2, 3, 1).unflatten(0, maps.shape[:2])
    before, now, after = (
        functional.conv2d(frames, weight[:, :, moment], bias, padding=3, groups=channels)
        .permute(0, 2, 3, 1)
        .unflatten(0, maps.shape[:2])
        for moment, bias in enumerate((None, layer.bias, None))
    )
    now[:, 1:] += before[:, :-1]
    now[:, :-1] += after[:, 1:]
    return now


class VideoHead(nn.Module):
    """A score of every place: 1 x 1 x 1 convolutions to 64 channels and to one, with the published names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_hid = nn.Conv3d(channels, _HIDDEN, 1)
        self.fc_last = nn.Conv3d(_HIDDEN, 1, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, T, H, W, C) to (B, T, H, W), on the head's own scale; higher is better."""
        hidden = functional.gelu(functional.linear(maps, self.fc_hid.weight.flatten(1), self.fc_hid.bias))
        score: Tensor = functional.linear(hidden, self.fc_last.weight.flatten(1), self.fc_last.bias)
        return score.squeeze(-1)


class OwnScore(nn.Module):
    """A head's mean over a clip, on the MOS scale by a learned factor and offset."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = VideoHead(channels)
        self.scale = nn.Parameter(torch.ones(1))
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, T, H, W, C) to (B,) MOS."""
        score = self.head(maps).float().mean((1, 2, 3))
        return bounded(score * self.scale + self.offset)


class DoverEncoder(Encoder):
    """DOVER++'s ConvNeXt-3D with its aesthetic head, and a technical head of our own beside it.

    Args:
        depths, dims: blocks and channels of each stage; published are (3, 3, 9, 3) and (96, 192, 384, 768).
        width: channels of the tokens.
        dropout: share of channels dropped before the tokens are made, while training.
        checkpointing: see `ConvNeXt3D`; then also clip by clip (`benchmarks/gpu_memory.py` says what that saves).
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        width: int,
        *,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.depths, self.dims = tuple(depths), tuple(dims)
        self.content_width = dims[-1]
        self.backbone = ConvNeXt3D(depths, dims, checkpointing=checkpointing)
        self.aesthetic = OwnScore(dims[-1])
        self.technical = OwnScore(dims[-1])
        self.project = nn.Sequential(nn.Dropout(dropout), nn.Linear(dims[-1], width), nn.LayerNorm(width))

    @classmethod
    def from_published(cls, published: Published, width: int, **options: Any) -> DoverEncoder:
        """With the published backbone and aesthetic head; the technical head, scales and projection are fresh."""
        encoder = cls(published.depths, published.dims, width, **options)
        encoder.backbone.load_state_dict(published.backbone)
        encoder.aesthetic.head.load_state_dict(published.head)
        return encoder

    @property
    def architecture(self) -> dict[str, Any]:
        """Its size."""
        return {"depths": list(self.depths), "dims": list(self.dims)}

    def layers(self) -> Iterable[nn.Module]:
        """The blocks of all stages."""
        return (block for stage in self.backbone.stages.children() for block in stage.children())

    def stem(self, frames: Tensor) -> Activations:
        """Nothing is frozen: the frames, packed."""
        return packed(frames)

    def see(self, activations: Activations) -> Seen:
        """All of the network.

        Args:
            activations: `frames` (B, T, H, W, 3) uint8, T at least 2, H and W at least 32.
        Returns:
            A token for each of at most 7 x 7 fields of every two frames; content, the mean of the map; and what the
            heads say: the aesthetic one of Aesthetic, the technical one of Traditional.
        """
        frames = activations["frames"]
        if self.backbone.checkpointing and torch.is_grad_enabled():
            # Clip by clip: in the backward pass only one clip's maps are there at a time, and of these one block's.
            clips = [checkpoint(self._maps, clip, use_reentrant=False) for clip in frames.split(1)]
            maps = torch.cat(clips)
        else:
            maps = self._maps(frames)
        content = functional.layer_norm(maps.mean((1, 2, 3)), maps.shape[-1:])
        own = {"Aesthetic": self.aesthetic(maps), "Traditional": self.technical(maps)}
        return Seen(self.project(_fields(maps)), content, own)

    def _maps(self, packed_frames: Tensor) -> Tensor:
        frames = unpacked({"frames": packed_frames})
        mean, std = (frames.new_tensor(values).view(1, 3, 1, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        maps: Tensor = self.backbone((frames - mean) / std)
        return maps


def _fields(maps: Tensor) -> Tensor:
    """(B, T, H, W, C) to (B, N, C): the means of at most TOKEN_SIDE by TOKEN_SIDE fields of every map."""
    kernel = math.ceil(maps.shape[2] / TOKEN_SIDE), math.ceil(maps.shape[3] / TOKEN_SIDE)
    flat = maps.flatten(0, 1).permute(0, 3, 1, 2)
    pooled = functional.avg_pool2d(flat, kernel, ceil_mode=True, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1).unflatten(0, maps.shape[:2]).flatten(1, 3)
