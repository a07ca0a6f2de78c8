"""Scoring many videos: `Scorer.score` one after the other against `qualivision score --out`'s way, in turns.

    python benchmarks/batch.py FOLDER PROMPTS.csv --clips 200 --rounds 2

Prints clips a second of each round, their ratio, and the most memory that the process with the model held.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from itertools import islice
from pathlib import Path

from qualivision import environment


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model")
    options = parser.parse_args()
    environment.prepare()
    environment.keep_freed_memory()

    from qualivision.batch import decoding_processes, judged, plan
    from qualivision.decoding import Decoders
    from qualivision.scoring import Scorer
    from qualivision.settings import DecodeSettings

    videos = dict(islice(plan([options.folder], options.prompts).videos.items(), options.clips))
    scorer = Scorer(options.model)
    ratios = []
    for _ in range(options.rounds + 1):  # the first one warms up
        start = time.perf_counter()
        alone = {name: scorer.score(asked.path, prompt=asked.prompt) for name, asked in videos.items()}
        one_by_one = len(videos) / (time.perf_counter() - start)
        decoders = Decoders(DecodeSettings(), workers=decoding_processes(len(videos)))
        try:
            start = time.perf_counter()
            together = dict(judged(scorer, decoders, videos.items()))
            ahead = len(videos) / (time.perf_counter() - start)
        finally:
            decoders.close()
        differ = max(abs(alone[name][key] - together[name][key]) for name in videos for key in alone[name].values)
        ratios.append(ahead / one_by_one)
        print(f"one by one {one_by_one:.2f}, ahead {ahead:.2f} clips/s: {ratios[-1]:.2f}; differ by {differ:.1e}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"median ratio {statistics.median(ratios[1:]):.2f}; at most {peak:.2f} GB in this process")


if __name__ == "__main__":
    main()
