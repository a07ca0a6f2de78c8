"""Published weights into our modules: every tensor is accounted for, nothing stays random in silence.

The one place that reads a `.pth`, with `weights_only=True`: such a file is data, never code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from torch import Tensor, nn


class WeightsError(QualiVisionError):
    """Weights that don't fit the module they are meant for: names the file and the tensors."""


def load_in_order(module: nn.Module, path: Path) -> None:
    """Fill a module from a checkpoint whose tensors have other names but the same order and shapes.

    Args:
        module: gets every one of its parameters and buffers from the file.
        path: a `.pth` holding a flat state dict.
    Raises:
        WeightsError: no such file, one that can't be read or carries code, another number of tensors, or a shape that
            differs.
    """
    theirs = read_state(path)
    ours = module.state_dict()
    if len(theirs) != len(ours):
        raise WeightsError(f"{path}: holds {len(theirs)} tensors, the module has {len(ours)}")
    pairs = list(zip(ours.items(), theirs.items(), strict=True))
    wrong = [
        f"{theirs_name} {tuple(theirs_value.shape)} for {our_name} {tuple(our_value.shape)}"
        for (our_name, our_value), (theirs_name, theirs_value) in pairs
        if our_value.shape != theirs_value.shape
    ]
    if wrong:
        raise WeightsError(f"{path}: {len(wrong)} tensors have another shape: {'; '.join(wrong[:5])}")
    module.load_state_dict({our_name: value for (our_name, _), (_, value) in pairs}, strict=True)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or a `.pth`, by name; a `.pth` may hold them below `state_dict`.

    Raises:
        WeightsError: no such file, one that can't be read or carries code, or that holds anything but tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    try:
        state: Any = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    except Exception as err:  # torch has no error of its own for a file that is cut or carries code
        raise WeightsError(
            f"{path}: can't be read: {str(err).splitlines()[0] if str(err) else type(err).__name__}"
        ) from err
    if isinstance(state, dict) and set(state) >= {"state_dict"}:
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds something else than named tensors")
    return state


def _read_pth(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)
