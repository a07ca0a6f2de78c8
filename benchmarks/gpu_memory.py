"""What a training step of `dover` and `vjepa2` needs of a GPU's memory, computed tensor by tensor, without a GPU.

    python benchmarks/gpu_memory.py
    python benchmarks/gpu_memory.py --only dover --batch 2

A step runs on tensors without content, and every storage is counted from when it is made until it is dropped. Norms
give float32, as mixed precision has them on a GPU. Not in it: the CUDA context, the workspaces of its libraries, and
what the allocator can't reuse. `gpu_training.py` measures all of that where there is a GPU.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parent))

from gpu_training import dover, training_step, vjepa2


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((out,)):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._drop, storage.nbytes())
        return out

    def _drop(self, size: int) -> None:
        self.now -= size


VARIANTS = {
    "dover": ("checkpointing", "plain"),
    "vjepa2": ("checkpointing", "plain", "stem cache+checkpointing", "stem cache"),
}


def main() -> int:
    """Compute, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(VARIANTS), help="one model")
    parser.add_argument("--batch", type=int, help="clips a step; by default 4 for dover and 2 for vjepa2")
    args = parser.parse_args()
    norm = functional.layer_norm
    functional.layer_norm = lambda x, *rest, **named: norm(x.float(), *rest, **named)
    torch.nn.Module.to_empty = to_empty
    print("full size, bf16 with AdamW; computed, not measured\n")
    for model in [args.only] if args.only else VARIANTS:
        batch = args.batch or {"dover": 4, "vjepa2": 2}[model]
        for variant in VARIANTS[model]:
            print(f"{model:8}{variant:28}batch {batch}{peak_bytes(model, variant, batch) / 1e9:8.1f} GB", flush=True)
    return 0


def peak_bytes(model: str, variant: str, batch: int) -> int:
    """The most bytes that are alive in two training steps; the optimizer's state is made in the first."""
    device = torch.device("cpu")
    with FakeTensorMode(), Live() as live:
        build = dover if model == "dover" else vjepa2
        network, activations = build(variant.split("+"), batch, small=False, device=device)
        if model == "vjepa2":
            network.encoder.backbone._filled = True  # it would look whether its weights are numbers
        if "grid" in activations:
            activations["grid"] = [Grid()]
        live.most = live.now
        step = training_step(network.train(), activations, batch, device)
        for _ in range(2):
            step()
    return live.most


class Grid:
    """What `vjepa2` reads of the grid of its tokens."""

    def tolist(self) -> list[int]:
        """64 x 384 x 384 in tubelets of 2 x 16 x 16."""
        return [32, 24, 24]


def to_empty(self: torch.nn.Module, *, device: Any, recurse: bool = True) -> torch.nn.Module:
    """`Module.to_empty` for tensors without content, which torch's own can't replace."""
    for module in self.modules():
        for name, value in module._parameters.items():
            if value is not None:
                empty = torch.empty(value.shape, dtype=value.dtype, device=device)
                module._parameters[name] = torch.nn.Parameter(empty, requires_grad=value.requires_grad)
    return self


if __name__ == "__main__":
    raise SystemExit(main())
