"""Puts the flows on a Prefect server: work pools, deployments with their schedules, limits and automations.

python -m flows.deploy               to the server that PREFECT_API_URL names; again after each change of prefect.yaml

Doing it again changes what is there to what prefect.yaml says. A schedule that was switched off in the UI stays off.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

import httpx  # noqa: E402
from prefect.client.orchestration import get_client  # noqa: E402
from prefect.client.schemas.actions import WorkPoolCreate  # noqa: E402
from prefect.exceptions import ObjectNotFound  # noqa: E402

from flows import automations  # noqa: E402
from flows.commands import run_command  # noqa: E402
from flows.stages import GPU_LIMIT  # noqa: E402
from qualivision.errors import AwayError, QualiVisionError  # noqa: E402
from qualivision.settings import SettingsError, load_settings  # noqa: E402

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from qualivision.settings import FlowsSettings

POOL = "qualivision"
WEBHOOK_VARIABLE = "QUALIVISION_WEBHOOK"


class DeployError(QualiVisionError):
    """The flows can't be deployed: says why and the way out."""


def deploy(settings: FlowsSettings, *, pool: str = POOL, webhook: str | None = None) -> list[str]:
    """Deploy; returns a line for each thing that is there now.

    Args:
        settings: the `flows` section.
        pool: the work pool; made as one of processes where there is none of that name.
        webhook: who is told of failures and questions.
    Raises:
        AwayError: the server does not answer.
        DeployError: Prefect refuses prefect.yaml.
    """
    server = os.environ.get("PREFECT_API_URL")
    if not server:
        raise DeployError(
            "PREFECT_API_URL is not set: `python -m flows.up` starts a server on this machine and deploys to it"
        )
    try:
        with get_client(sync_client=True) as client:
            pools = [name for name in (pool, settings.gpu_pool) if name]
            for name in pools:
                _make_pool(client, name)
            _set_gpu_limit(client, settings.gpus)
            _deploy_all(pool, settings.gpu_pool)
            close = client.read_deployment_by_name("close-question/close").id
    except httpx.TransportError as err:
        raise AwayError(f"PREFECT_API_URL={server}: no answer ({err}); start it, or correct the address") from err
    made = automations.set_up(close, webhook)
    return [
        *(f"work pool {name}: `prefect worker start --pool {name}` runs what is scheduled" for name in pools),
        f"concurrency limit {GPU_LIMIT}: {settings.gpus}",
        *(f"automation {name}" for name in made),
    ]


def _make_pool(client: SyncPrefectClient, name: str) -> None:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def _set_gpu_limit(client: SyncPrefectClient, cards: int) -> None:
    client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, cards)


def _deploy_all(pool: str, gpu_pool: str) -> None:
    """What prefect.yaml lists, by Prefect's own command."""
    said = {"QUALIVISION_POOL": pool, "QUALIVISION_GPU_POOL": gpu_pool or pool, "QUALIVISION_CHECKOUT": str(Path.cwd())}
    ended = run_command(
        ["prefect", "--no-prompt", "deploy", "--all"],
        lambda line: None,
        environment={name: os.environ.get(name, value) for name, value in said.items()},
    )
    if not ended.ok:
        raise DeployError("prefect.yaml can't be deployed:\n" + "\n".join(ended.lines[-20:]))


def main() -> int:
    """Deploy to the server of this environment."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.deploy",
        description="Put the flows of prefect.yaml on the server that PREFECT_API_URL names, with their schedules, the "
        "work pool, the limit `gpu` and the automations.",
        epilog=f"{WEBHOOK_VARIABLE}=https://... : that address is told of runs that failed or wait for an answer.",
    )
    parser.add_argument(
        "--pool", default=POOL, help="the work pool; made as one of processes if there is none (%(default)s)"
    )
    given = parser.parse_args()
    if not Path("prefect.yaml").exists():
        sys.stderr.write("prefect.yaml: no such file; run this in the folder that holds it\n")
        return 1
    try:
        lines = deploy(load_settings().flows, pool=given.pool, webhook=os.environ.get(WEBHOOK_VARIABLE))
    except (QualiVisionError, SettingsError) as err:
        sys.stderr.write(f"deploy: {err}\n")
        return getattr(err, "exit_code", 1)
    sys.stdout.writelines(f"deploy: {line}\n" for line in lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
