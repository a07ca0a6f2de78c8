"""The pipeline's stages as Prefect tasks. Each runs `dvc repro` of its stage, and nothing else.

So a person at a shell and a schedule at night do the same thing and write the same `dvc.lock`.
"""

from __future__ import annotations

import re
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.futures import wait
from prefect.states import raise_state_exception

from flows.commands import Ended, are_stopped, run_command
from qualivision.errors import AWAY_EXIT_CODE, QualiVisionError
from qualivision.stages import places

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from prefect.client.schemas.objects import TaskRun
    from prefect.futures import PrefectFuture
    from prefect.states import State
    from prefect.tasks import Task

    from qualivision.settings import Settings

GPU_LIMIT = "gpu"
"""The global concurrency limit that stages on a GPU share: a slot a card."""
GPU_LEASE_SECONDS = 60.0
"""After which the slot of a killed run is free again."""
ON_GPU = ("encode", "train", "evaluate")
BUSY = "is busy"
BUSY_WAIT_SECONDS = 5.0
_SAID = 20
_STAGE_ENDED = re.compile(r"exited with (-?\d+)")


class StageFailedError(QualiVisionError):
    """A stage that `dvc repro` could not finish: names it, says why, and quotes it.

    Attributes:
        may_pass: whether the same command may do better a while later.
    """

    def __init__(self, stage: str, ended: Ended, seconds: float) -> None:
        code = _code_of(ended)
        self.may_pass = not ended.late and (code < 0 or code > 128 or code == AWAY_EXIT_CODE)
        if ended.late:
            why = f"was stopped after {seconds / 3600:g} h, the limit that flows.stage_hours of params.yaml sets"
        elif code < 0 or code > 128:
            number = -code if code < 0 else code - 128
            why = f"was killed by signal {number}" + (", as the kernel does when memory runs out" * (number == 9))
        elif code == AWAY_EXIT_CODE:
            why = "needs something that is away"
        else:
            why = f"failed (exit code {code})"
        super().__init__(f"stage {stage} {why}:\n" + "\n".join(_excerpt(ended.lines)))


def _excerpt(lines: tuple[str, ...]) -> list[str]:
    """Of what the stage said the beginning and the end: a report names the worst first, a defect's traceback last."""
    start = next((at for at, line in enumerate(lines) if line.startswith("Running stage")), 0)
    said = list(lines[start:])
    left = len(said) - 2 * _SAID
    return said if left <= 0 else [*said[:_SAID], f"... {left} lines more are in the log ...", *said[-_SAID:]]


def _code_of(ended: Ended) -> int:
    """The exit code of the stage's own command, which DVC tells in words."""
    for line in reversed(ended.lines):
        if found := _STAGE_ENDED.search(line):
            return int(found[1])
    return ended.code


def _may_pass(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage that failed is worth another try: not bad data, a full disk, or a run that is being stopped."""
    if are_stopped():
        return False
    err = state.result(raise_on_failure=False)
    return isinstance(err, StageFailedError) and err.may_pass


@task(task_run_name="{stage}", retry_condition_fn=_may_pass)
def repro(stage: str, *, gpus: int = 0, seconds: float, force: bool = False) -> bool:
    """Bring one stage, and what it depends on, up to date.

    Args:
        stage: as `dvc.yaml` names it, such as `validate` or `train@lite`.
        gpus: how many cards it takes; it waits until so many slots of the limit `gpu` are free.
        seconds: that it may take.
        force: make it again, whatever there is of it. What it depends on has to be there.
    Returns:
        Whether anything had to run.
    Raises:
        StageFailedError: the stage failed; what it had cached by then is kept.
    """
    log = get_run_logger()
    deadline = time.monotonic() + seconds
    if force:
        _clear(stage)
    command = [
        "dvc",
        "repro",
        *(["--force"] if force else []),
        *(["--single-item"] if force and "@" in stage else []),
        stage,
    ]
    with _cards(gpus):
        while True:
            ended = run_command(command, log.info, seconds=max(0.0, deadline - time.monotonic()))
            if ended.ok:
                return any(line.startswith("Running stage") for line in ended.lines)
            if ended.late or not any(BUSY in line for line in ended.lines):
                raise StageFailedError(stage, ended, seconds)
            log.info("another `dvc repro` has the stage; waiting")
            time.sleep(BUSY_WAIT_SECONDS)


def build(settings: Settings, *, rebuild: bool = False) -> list[str]:
    """Bring every stage of every model up to date, models side by side; returns the stages that ran.

    Args:
        settings: all of `params.yaml`.
        rebuild: make each anew.
    Raises:
        StageFailedError: a stage failed. What does not depend on it was still done.
    """
    if any(cards(stage, model, settings) for model in settings.models for stage in ON_GPU):
        _ensure_gpu_limit(settings.flows.gpus)
    step, started = stage_task(settings), {}

    def start(stage: str, model: str, after: list[PrefectFuture[bool]]) -> PrefectFuture[bool]:
        name = f"{stage}@{model}" if model else stage
        gpus = cards(stage, model, settings) if model else 0
        started[name] = step.submit(
            name, gpus=gpus, seconds=settings.flows.stage_hours * 3600, force=rebuild, wait_for=after
        )
        return started[name]

    checked = start("validate", "", [])
    if settings.flows.cluster:
        from flows.cluster import spread_frames

        wait([checked])
        if checked.state.is_completed():
            for model in settings.models:
                spread_frames(model)
    for model in settings.models:
        frames, prompts = start("frames", model, [checked]), start("prompts", model, [checked])
        stems = start("encode", model, [frames])
        start("evaluate", model, [start("train", model, [stems, prompts])])
    wait(list(started.values()))
    failed = [future.state for future in started.values() if future.state.is_failed() or future.state.is_crashed()]
    if failed:
        raise_state_exception(failed[0])
    return [name for name, future in started.items() if future.result()]


def up_to_date() -> bool:
    """Whether every stage and the data set are as `dvc.lock` has them: then `dvc repro` would do nothing."""
    ended = run_command(["dvc", "status", "--quiet"], lambda line: None)
    return ended.code == 0


def stage_task(settings: Settings) -> Task[..., bool]:
    """`repro` with the retries of `params.yaml`."""
    waits = list(settings.flows.retry_seconds)
    return repro.with_options(retries=len(waits), retry_delay_seconds=waits)


def cards(stage: str, model: str, settings: Settings) -> int:
    """How many cards a stage of a model takes: none where it does not compute, or where `lite` finds no card."""
    if stage not in ON_GPU or (model == "lite" and not has_card()):
        return 0
    return settings.model(model).train.processes if stage == "train" else 1


def has_card() -> bool:
    """Whether this machine has an NVIDIA card. Without torch, whose import takes seconds."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def _clear(stage: str) -> None:
    """Remove what a stage goes on from, so that it starts with nothing. DVC's cache still has the last that it made."""
    kind, _, model = stage.partition("@")
    kept = {
        "frames": places.frames_dir,
        "prompts": places.prompts_dir,
        "encode": places.stems_dir,
        "train": places.checkpoint_dir,
    }
    if kind in kept:
        shutil.rmtree(kept[kind](model), ignore_errors=True)


def _ensure_gpu_limit(slots: int) -> None:
    """Make the limit where there is none; one that is there stays as somebody set it."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=slots))


def _cards(count: int) -> AbstractContextManager[None]:
    """Hold so many slots. A limit that was deleted does not hold anybody up: a warning says so."""
    return concurrency(GPU_LIMIT, occupy=count, lease_duration=GPU_LEASE_SECONDS) if count else nullcontext()
