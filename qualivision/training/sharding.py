"""Parameters shared among processes (FSDP): each holds a part, and gathers a layer when it is its turn.

The frozen part of a model stays whole: it has no gradient and no optimizer state, and may be cached anyway.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor, nn
    from torch.distributed.tensor import DTensor


def shard(module: nn.Module, layers: Iterable[nn.Module], device: torch.device) -> None:
    """Share the parameters of a module among all processes, in place.

    Args:
        module: what is called in training.
        layers: modules in it that are gathered one at a time; all others at once.
        device: of this process.
    """
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module.to(device)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=frozen)
    fully_shard(module, mesh=mesh, ignored_params=frozen)


def _is_part(value: Tensor) -> TypeGuard[DTensor]:
    """Whether the processes share a tensor. Most have none, and torch's module for it takes half a second to import."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(value, tensors.DTensor)


def whole(value: Tensor) -> Tensor:
    """A tensor of which every process holds a part, put together; all processes have to ask for it."""
    return value.full_tensor() if _is_part(value) else value


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """Our part of a whole tensor, shared as another one is; the tensor itself where that one is whole."""
    if not _is_part(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
