"""Our ConvNeXt-3D against a literal one, forward on the CPU: the same output, in what share of the time.

    python benchmarks/dover_forward.py
    python benchmarks/dover_forward.py --shape 1 3 32 320 320 --rounds 3

The two take turns in one process, so that whatever else the machine does falls on both. Exit code 1 when the outputs
differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from literal_convnext3d import LiteralConvNeXt3D

from qualivision.models.dover import ConvNeXt3D

DEPTHS, DIMS = (3, 3, 9, 3), (96, 192, 384, 768)
TOLERANCE = 1e-4


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=5, default=(1, 3, 16, 224, 224), metavar=("B", "C", "T", "H", "W"))
    parser.add_argument("--rounds", type=int, default=7, help="measured passes of each")
    args = parser.parse_args()
    torch.manual_seed(0)
    ours, literal = ConvNeXt3D(DEPTHS, DIMS).eval(), LiteralConvNeXt3D(DEPTHS, DIMS).eval()
    with torch.no_grad():
        for name, value in ours.named_parameters():
            value.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3 if name.endswith("gamma") else 0.05)
    literal.load_state_dict(ours.state_dict())
    frames = torch.rand(args.shape)
    difference = (once(ours, frames)[1] - once(literal, frames)[1].permute(0, 2, 3, 4, 1)).abs().max().item()
    seconds: dict[str, list[float]] = {"literal": [], "ours": []}
    for _ in range(args.rounds):
        seconds["literal"].append(once(literal, frames)[0])
        seconds["ours"].append(once(ours, frames)[0])
    plain, fast = (statistics.median(each) for each in seconds.values())
    print(f"shape {tuple(args.shape)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"literal   {plain:8.3f} s  (median of {args.rounds})")
    print(f"ours      {fast:8.3f} s")
    print(f"ratio     {plain / fast:8.2f} x")
    print(f"largest difference of the outputs {difference:.1e}")
    return int(difference > TOLERANCE)


def once(model: Any, frames: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of one pass, and its output."""
    with torch.inference_mode():
        started = time.perf_counter()
        out = model(frames)
        return time.perf_counter() - started, out


if __name__ == "__main__":
    raise SystemExit(main())
