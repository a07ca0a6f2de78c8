"""What a training step of `dover` needs of a GPU's memory, computed tensor by tensor; no GPU, no memory, no minutes.

    python benchmarks/gpu_memory.py
    python benchmarks/gpu_memory.py --batch 2

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

from gpu_training import dover, training_step


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


def main() -> int:
    """Compute, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="clips of 64 x 640 x 640")
    args = parser.parse_args()
    norm = functional.layer_norm
    functional.layer_norm = lambda x, *rest, **named: norm(x.float(), *rest, **named)
    print(f"dover, 64 x 640 x 640, batch {args.batch}, bf16 with AdamW; computed, not measured")
    for variant in ("checkpointing", "plain"):
        device = torch.device("cpu")
        with FakeTensorMode(), Live() as live:
            network, activations = dover([variant], args.batch, small=False, device=device)
            step = training_step(network.train(), activations, args.batch, device)
            for _ in range(2):  # the optimizer's state is made in the first
                step()
        print(f"{variant:16}{live.most / 1e9:8.1f} GB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
