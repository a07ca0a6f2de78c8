"""A cluster for frames and scores: what is spread over it, in chunks that are tasks of the flow run.

Without `flows.cluster` in `params.yaml` nothing here does anything. What comes out is the same with and without: frames
are entries of the same cache under the same keys, and rows go to the same table.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import get_run_logger, task  # noqa: E402
from prefect.cache_policies import NO_CACHE  # noqa: E402

from flows.dask_workers import dask_workers  # noqa: E402
from qualivision import chunks  # noqa: E402
from qualivision.progress import in_lines  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402
from qualivision.stages import places  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qualivision.batch import Asked, Asking, Found
    from qualivision.cache import Filled
    from qualivision.chunks import Judge, Place
    from qualivision.settings import DecodeSettings
    from qualivision.workers import Job


@task(task_run_name="score chunk {number}", cache_policy=NO_CACHE)
def score_chunk(
    number: int, place: Place, judge: Judge, chunk: list[tuple[str, Asked]], processes: int
) -> list[tuple[str, Found]]:
    """Score some videos on a worker; see `chunks.score_chunk`."""
    found = chunks.score_chunk(place, judge, chunk, processes)
    failed = sum(isinstance(what, Exception) for _, what in found)
    get_run_logger().info(f"{len(found)} videos" + (f", {failed} can't be scored" if failed else ""))
    return found


@task(task_run_name="frames chunk {number}", cache_policy=NO_CACHE)
def frames_chunk(
    number: int, place: Place, work: Callable[..., None], jobs: list[Job], limits: DecodeSettings, processes: int
) -> tuple[int, list[Exception]]:
    """Decode some videos on a worker: how many there were, and what failed; see `chunks.run_jobs`."""
    failed = chunks.run_jobs(place, work, jobs, limits, processes)
    get_run_logger().info(f"{len(jobs)} videos" + (f", {len(failed)} can't be used" if failed else ""))
    return len(jobs), failed


@dataclass(frozen=True)
class ScoresOnCluster:
    """Scores on a cluster, which is started (or connected to) when there is something to score; as `batch.Here`.

    Attributes:
        setting: see `dask_workers`.
        judge: the model, for the workers.
    """

    setting: str
    judge: Judge

    def __call__(self, videos: Asking) -> Iterator[tuple[str, Found]]:
        """Each name with its scores or its error, as chunks come back."""
        with dask_workers(self.setting) as workers:
            common = {
                "place": workers.place,
                "judge": self.judge,
                "processes": workers.processes(beside_model=True),
            }
            parts = enumerate(chunks.in_chunks(videos, len(videos), workers.size), start=1)
            calls = ({"number": number, "chunk": chunk} | common for number, chunk in parts)
            with closing(workers.spread(score_chunk, calls)) as found:
                for chunk in found:
                    yield from chunk


def spread_frames(model: str) -> str:
    """Make the frames that a model's frame cache lacks on the cluster, so that the stage `frames` finds them there.

    To be called within a flow run, before `dvc repro frames@MODEL`. That stage still checks the cache, names the videos
    that can't be used, removes what nothing needs and writes `dvc.lock`: all of it is as without a cluster.

    Args:
        model: as `params.yaml` lists it.
    Returns:
        What was made, in a line; empty without `flows.cluster` in `params.yaml`.
    Raises:
        LabelError: a label table that can't be read.
        CacheError: the disk has no room for what is missing.
        ClusterError: there is no cluster, or its workers can't do the work.
    """
    settings = load_settings()
    if not settings.flows.cluster:
        return ""
    log = get_run_logger()
    runs = JobsOnCluster(settings.flows.cluster, settings.decode)
    try:
        done = _fill(model, runs, log.info)
    except _UnusableError as err:
        line = f"frames {model}: {runs.made} made, {len(runs.failed)} can't be used ({settings.flows.cluster})"
        log.warning(f"{line}; the stage will name each, such as: {err}")
        return line
    line = f"frames {model}: {done} ({settings.flows.cluster})"
    log.info(line)
    return line


def _fill(model: str, runs: JobsOnCluster, say: Callable[[str], None]) -> Filled:
    from qualivision.frames import fill_frames, frame_cache

    settings = load_settings()
    folder = places.frames_dir(model).absolute()  # workers may be anywhere in the file system
    folder.parent.mkdir(parents=True, exist_ok=True)
    others = [other for other in folder.parent.iterdir() if other.is_dir() and other != folder]
    return fill_frames(
        frame_cache(folder, model),
        places.DATA.absolute(),
        settings.model(model).frames,
        settings.decode,
        advance=in_lines(f"frames {model}", say),
        say=lambda line: say(f"frames {model}: {line}"),
        others=[frame_cache(other, other.name) for other in others],
        prune=False,
        run=runs,
    )


class _UnusableError(Exception):
    """There are videos of which no frames could be made; the stage's affair."""


class JobsOnCluster:
    """Runs the jobs of `fill_frames` on a cluster; remembers how they fared."""

    def __init__(self, setting: str, limits: DecodeSettings) -> None:
        self._setting = setting
        self._limits = limits
        self.made = 0
        self.failed: list[Exception] = []

    def __call__(self, work: Callable[..., None], jobs: list[Job]) -> Iterator[Any]:
        if not jobs:
            return
        with dask_workers(self._setting) as workers:
            common = {
                "place": workers.place,
                "work": work,
                "limits": self._limits,
                "processes": workers.processes(beside_model=False),
            }
            parts = enumerate(chunks.in_chunks(jobs, len(jobs), workers.size), start=1)
            calls = ({"number": number, "jobs": chunk} | common for number, chunk in parts)
            with closing(workers.spread(frames_chunk, calls)) as found:
                for count, failed in found:
                    self.failed += failed
                    self.made += count - len(failed)
                    yield from range(count - len(failed))
        if self.failed:
            raise _UnusableError(str(self.failed[0]))
