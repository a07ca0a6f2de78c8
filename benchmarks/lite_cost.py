"""What `lite` costs: `qualivision score` of one clip cold, each further clip, and the share of each part.

    python benchmarks/lite_cost.py VIDEO --model checkpoints/lite --clips 20

Cold is a new process, from its start to its end; the median of three. The parts are those of one clip in a warm
process, the median over the clips; `encode` is what the stage `encode` does of a clip, with one thread, as each of its
processes does it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision import environment

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="checkpoints/lite")
    parser.add_argument("--clips", type=int, default=20)
    options = parser.parse_args()
    environment.prepare()
    environment.keep_freed_memory()
    command = ["-m", "qualivision.cli", "score", str(options.video), "--prompt", "A red ball", "--model", options.model]
    cold = [seconds(lambda: subprocess.run([sys.executable, *command], check=True, capture_output=True)) for _ in "123"]
    print(f"cold: {statistics.median(cold):.2f} s")

    import torch

    from qualivision.models.fovea import crops, describe, track
    from qualivision.models.quality import frames_to_input
    from qualivision.models.statistics import frame_statistics
    from qualivision.prompts import MINILM, PromptEncoder
    from qualivision.scoring import Scorer
    from qualivision.training.checkpoint import load_checkpoint
    from qualivision.video import read_frames

    scorer, encoder = Scorer(options.model), PromptEncoder(MINILM)
    (spec,) = scorer.specs
    model, _ = load_checkpoint(Path(options.model), with_stem=True)
    shown = read_frames(options.video, spec)
    frames = frames_to_input(shown)
    text = torch.from_numpy(encoder.encode(["A red ball"]))
    with torch.inference_mode():
        activations = model.stem(frames)
        moving = frame_statistics(frames)[1][0]
        stem = model.encoder.frozen
        near = crops(frames[0], track(moving))
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: read_frames(options.video, spec),
            "to tensors": lambda: frames_to_input(shown),
            "statistics": lambda: frame_statistics(frames),
            "subject": lambda: describe(near, track(moving)),
            "network, frames": lambda: stem._features(frames[0][:, ::4].transpose(0, 1), taps=True),
            "network, subject": lambda: stem._features(near),
            "prompt": lambda: encoder.encode(["A red ball"]),
            "judges and forests": lambda: model.from_stem(activations, text),
        }
        took = {name: median(part, options.clips) for name, part in parts.items()}
        total = median(lambda: scorer.score(options.video, prompt="A red ball"), options.clips)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        encode = median(lambda: model.stem(frames), options.clips)
    print(f"each further clip, its prompt known: {total:.3f} s with {threads} threads; encode: {encode:.3f} s with one")
    for name, value in took.items():
        print(f"  {name:<20} {1000 * value:6.1f} ms  {value / sum(took.values()):5.0%}")


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median(run: Callable[[], object], times: int) -> float:
    run()
    return statistics.median(seconds(run) for _ in range(times))


if __name__ == "__main__":
    main()
