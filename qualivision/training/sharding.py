"""Parameters shared among processes (FSDP): each holds a part, and gathers a layer when it is its turn.

The frozen part of a model stays whole: it has no gradient and no optimizer state, and may be cached anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.tensor import DTensor, distribute_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import Tensor, nn


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


def whole(value: Tensor) -> Tensor:
    """A tensor of which every process holds a part, put together; all processes have to ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def part_like(value: Tensor, like: Tensor) -> Tensor:
    """Our part of a whole tensor, shared as another one is; the tensor itself where that one is whole."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
