"""Frames and scores on a Dask cluster of this machine against the same in this process, in turns.

    python benchmarks/cluster.py FOLDER PROMPTS.csv --clips 100 --rounds 3 --workers 2

Prints, for each, clips a second of both and their ratio: from the start, which for the cluster is that of its workers,
and from the first result on, when all are at work. A machine has its cores once: with as many workers as in-process
work uses cores, the second ratio is about 1, and says what chunks, tasks and Prefect cost. More machines are what it is
for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision import environment

environment.prepare()
environment.keep_freed_memory()

from prefect import flow  # noqa: E402

from flows.cluster import JobsOnCluster, ScoresOnCluster  # noqa: E402
from qualivision import frames  # noqa: E402
from qualivision.batch import Asked, Here, plan  # noqa: E402
from qualivision.chunks import Judge  # noqa: E402
from qualivision.frames import frame_cache  # noqa: E402
from qualivision.scoring import locate  # noqa: E402
from qualivision.settings import DecodeSettings, FrameSpec  # noqa: E402
from qualivision.video import decoding_guard  # noqa: E402
from qualivision.workers import in_processes  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMITS = DecodeSettings()


def rates(results: Iterable[object]) -> tuple[float, float]:
    """Clips a second from the start, and from the first result on."""
    start = time.perf_counter()
    times = [time.perf_counter() for _ in results]
    since_first = [moment for moment in times if moment > times[0] + 0.1]  # those of one chunk come together
    running = len(since_first) / (times[-1] - times[0]) if since_first else float("nan")
    return len(times) / (time.perf_counter() - start), running


def decoded(videos: list[Path], run: Callable[..., Iterable[object]], spec: FrameSpec) -> tuple[float, float]:
    """Rates of making frames into an empty cache."""
    with tempfile.TemporaryDirectory(dir=environment.STATE) as folder:
        cache = frame_cache(Path(folder).absolute(), "benchmark")
        jobs = [(video.absolute(), cache, str(number), spec, LIMITS.decoder) for number, video in enumerate(videos)]
        return rates(run(frames._decode_one, jobs))


def compare(
    what: str, rounds: int, here: Callable[[], tuple[float, float]], there: Callable[[], tuple[float, float]]
) -> None:
    """Both in turns; prints each round and the medians of the ratios."""
    whole, running = [], []
    for number in range(rounds + 1):  # the first one warms up
        alone, cluster = here(), there()
        ratios = [b / a for a, b in zip(alone, cluster, strict=True)]
        print(
            f"{what}: here {alone[0]:.2f} ({alone[1]:.2f} running), on the cluster {cluster[0]:.2f} ({cluster[1]:.2f}) "
            f"clips/s: {ratios[0]:.2f} ({ratios[1]:.2f}){' warm-up' if not number else ''}",
            flush=True,
        )
        if number:
            whole.append(ratios[0])
            running.append(ratios[1])
    print(
        f"{what}: median ratio {statistics.median(whole):.2f} from the start, {statistics.median(running):.2f} running"
    )


@flow(name="benchmark-cluster")
def benchmark(folder: Path, prompts: Path, clips: int, rounds: int, workers: int, model: str | None) -> None:
    """Within one flow run, to which all tasks belong."""
    videos: dict[str, Asked] = dict(islice(plan([folder], prompts).videos.items(), clips))
    asked = list(videos.items())
    found, setting = locate(model), f"local:{workers}"
    spec = FrameSpec(count=64, height=160, width=160)
    files = [Path(video.path) for video in videos.values()]
    guard = decoding_guard(LIMITS)
    compare(
        "frames",
        rounds,
        lambda: decoded(files, lambda work, jobs: in_processes(work, jobs, workers=workers, guard=guard), spec),
        lambda: decoded(files, JobsOnCluster(setting, LIMITS), spec),
    )
    judge = Judge(found.name, found.label, LIMITS)
    compare(
        "scores",
        rounds,
        lambda: rates(Here(found, LIMITS)(asked)),
        lambda: rates(ScoresOnCluster(setting, judge)(asked)),
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model")
    benchmark(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
