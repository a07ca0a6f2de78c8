"""The pipeline's stages as Prefect tasks, and their graph. Each runs `dvc repro` of its stage, and nothing else.

So a person at a shell and a schedule at night do the same thing and write the same `dvc.lock`. By `flows` of
`params.yaml`, a DVC remote is kept up with what is made, and stages that need a GPU run on the workers of another pool.
"""

from __future__ import annotations

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

from flows.commands import are_stopped
from flows.elsewhere import repro_elsewhere
from flows.remote import bring, share
from flows.repro import StageFailedError, repro_here
from qualivision.errors import AwayError

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
ON_GPU = ("encode", "train", "evaluate", "member", "evaluate-ensemble")


def _may_pass(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether a stage that failed is worth another try: not bad data, a full disk, or a run that is being stopped."""
    if are_stopped():
        return False
    err = state.result(raise_on_failure=False)
    return isinstance(err, AwayError) or (isinstance(err, StageFailedError) and err.may_pass)


@task(task_run_name="{stage}", retry_condition_fn=_may_pass)
def repro(stage: str, *, gpus: int = 0, seconds: float, force: bool = False, remote: str = "", pool: str = "") -> bool:
    """Bring one stage, and what it depends on, up to date.

    Args:
        stage: as `dvc.yaml` names it, such as `validate` or `train@lite`.
        gpus: how many cards it takes; it waits until so many slots of the limit `gpu` are free.
        seconds: that it may take.
        force: make it again, whatever there is of it. What it depends on has to be there.
        remote: a DVC remote: what is needed is pulled from it, and what was made is pushed to it.
        pool: a work pool, one of whose workers runs it in a checkout of its own; here, where there is none.
    Returns:
        Whether anything had to run.
    Raises:
        StageFailedError: the stage failed; what it had cached by then is kept.
        AwayError: the remote does not answer; RemoteError: there is none of that name, or it lacks what is needed.
        NotDeployedError: nothing on Prefect's server sends stages to the pool.
    """
    say = get_run_logger().info
    with _cards(gpus):
        if pool:
            return repro_elsewhere(stage, pool, remote, say, seconds=seconds, force=force)
        if remote:
            bring(stage, remote, say, seconds=seconds, anew=force)
        ran = repro_here(stage, say, seconds=seconds, force=force)
        if remote:
            share(stage, remote, say, seconds=seconds)
        return ran


def build(settings: Settings, *, rebuild: bool = False) -> list[str]:
    """Bring every stage of every model up to date, models side by side; returns the stages that ran.

    Args:
        settings: all of `params.yaml`.
        rebuild: make each anew.
    Raises:
        StageFailedError, AwayError, RemoteError, NotDeployedError: a stage failed; see `repro`. What does not depend on
            it was still done.
    """
    if any(cards(stage, model, settings) for model in settings.models for stage in ON_GPU):
        _ensure_gpu_limit(settings.flows.gpus)
    step, started = stage_task(settings), {}
    common = {"seconds": settings.flows.stage_hours * 3600, "force": rebuild, "remote": settings.flows.remote}

    def start(stage: str, model: str, after: list[PrefectFuture[bool]], *, item: str = "") -> PrefectFuture[bool]:
        name = f"{stage}@{item or model}" if item or model else stage
        gpus, pool = cards(stage, model, settings), pool_of(stage, model, settings)
        started[name] = step.submit(name, gpus=gpus, pool=pool, wait_for=after, **common)
        return started[name]

    checked = start("validate", "", [])
    if settings.flows.cluster:
        from flows.cluster import spread_frames

        wait([checked])
        if checked.state.is_completed():
            for model in settings.models:
                spread_frames(model)
    trained: dict[str, PrefectFuture[bool]] = {}
    for model in settings.models:
        frames, prompts = start("frames", model, [checked]), start("prompts", model, [checked])
        stems = start("encode", model, [frames])
        trained[model] = start("train", model, [stems, prompts])
        start("evaluate", model, [trained[model]])
    for name in settings.ensembles:
        members = [start("member", of, [trained[of]], item=f"{name}-{of}") for of in settings.made_of(name)]
        # Its behaviour is measured with all members loaded: where that runs which needs most.
        needy = max(
            settings.made_of(name), key=lambda of: (pool_of("member", of, settings), cards("member", of, settings))
        )
        start("evaluate-ensemble", needy, [start("ensemble", "", members, item=name)], item=name)
    wait(list(started.values()))
    failed = [future.state for future in started.values() if future.state.is_failed() or future.state.is_crashed()]
    if failed:
        raise_state_exception(failed[0])
    return [name for name, future in started.items() if future.result()]


def stage_task(settings: Settings) -> Task[..., bool]:
    """`repro` with the retries of `params.yaml`."""
    waits = list(settings.flows.retry_seconds)
    return repro.with_options(retries=len(waits), retry_delay_seconds=waits)


def cards(stage: str, model: str, settings: Settings) -> int:
    """How many cards a stage of a model takes: none where it does not compute, or where `lite` finds no card."""
    if stage not in ON_GPU or (model == "lite" and not pool_of(stage, model, settings) and not has_card()):
        return 0
    return settings.model(model).train.processes if stage == "train" else 1


def pool_of(stage: str, model: str, settings: Settings) -> str:
    """The work pool that a stage of a model runs on; empty where it runs with the flow."""
    return settings.flows.gpu_pool if stage in ON_GPU and model in settings.flows.gpu_models else ""


def has_card() -> bool:
    """Whether this machine has an NVIDIA card. Without torch, whose import takes seconds."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


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
