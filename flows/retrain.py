"""The flow `retrain`: from the data set to a champion.

python -m flows.retrain              runs it here; no Prefect server is needed
PREFECT_API_URL=... python -m ...    the same, visible in that server's UI
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from qualivision import environment

environment.prepare()  # before Prefect is imported: it reads its home and its telemetry switch then

from prefect import flow, get_run_logger, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402

from flows.stages import StageFailedError, repro  # noqa: E402
from qualivision import registry  # noqa: E402
from qualivision.errors import QualiVisionError  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402

MODEL_STAGES = ("frames", "prompts", "encode", "train", "evaluate")


@task
def register(model: str) -> int:
    """Put the evaluated checkpoint into the registry, as challenger; returns its version."""
    from qualivision.stages import places

    settings = load_settings().registry
    return registry.register(places.checkpoint_dir(model), places.report_dir(model), settings, data=places.DATA).version


@task
def gate(version: int) -> None:
    """Hold a version against the champion, and show the verdict in Prefect's UI."""
    from qualivision.gate import judge
    from qualivision.stages import places

    verdict = judge(version, load_settings(), places.DATA, advance=lambda uri: lambda done, total: None)
    create_markdown_artifact(key=f"gate-{version}", markdown=verdict.as_markdown(), description=verdict.line)
    get_run_logger().info(verdict.line)


@task
def promote(version: int) -> None:
    """Make a version that passed the gate the champion."""
    registry.promote(version, load_settings().registry, why="the gate passed, in a run of retrain")


@task
def show_metrics(model: str) -> None:
    """The evaluation as an artifact in Prefect's UI."""
    import json

    from qualivision.evaluation.report import table
    from qualivision.stages import places

    metrics: dict[str, Any] = json.loads((places.report_dir(model) / "metrics.json").read_text(encoding="utf-8"))
    create_markdown_artifact(
        key=f"metrics-{model}", markdown=f"```\n{table(metrics)}\n```", description=f"{model} on the test split"
    )


@flow(name="retrain", log_prints=False)
def retrain() -> dict[str, object]:
    """Rebuild what changed, register the model that `deploy` of params.yaml names, and promote it if it may be.

    Returns:
        Which stages ran, the champion's URI, and why what came of it was not promoted.
    """
    settings = load_settings()
    ran = [stage for stage in ("validate",) if repro(stage)]
    for model in settings.models:
        ran += [name for stage in MODEL_STAGES if repro(name := f"{stage}@{model}")]
        show_metrics(model)
    version, objection = register(settings.deploy), None
    champion = registry.version_of(registry.CHAMPION, settings.registry)
    if version != champion:
        if registry.needs_gate(version, settings.registry):
            gate(version)
        objection = registry.objection(version, settings.registry)
    if version != champion and objection is None:
        promote(version)
        champion = version
    uri = f"models:/{settings.registry.name}/{champion}" if champion else None
    return {"ran": ran, "champion": uri, "objection": objection}


def main() -> int:
    """Run the flow in this process."""
    argparse.ArgumentParser(prog="python -m flows.retrain", description=retrain.description).parse_args()
    if not Path("dvc.yaml").exists():
        sys.stderr.write("dvc.yaml: no such file; run this in the folder that holds it\n")
        return 1
    try:
        done = retrain()
    except (StageFailedError, QualiVisionError) as err:
        sys.stderr.write(f"{err}\n")
        return 1
    ran = ", ".join(done["ran"]) if done["ran"] else "nothing: data, code and settings are unchanged"  # type: ignore[arg-type]
    sys.stdout.write(f"retrain: ran {ran}\n")
    if done["objection"]:
        sys.stdout.write(f"retrain: {done['objection']}\n")
    sys.stdout.write(f"retrain: {done['champion'] or 'nobody'} is the champion\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
