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

from prefect import flow, task  # noqa: E402
from prefect.artifacts import create_markdown_artifact  # noqa: E402

from flows.stages import StageFailedError, repro  # noqa: E402
from qualivision.errors import QualiVisionError  # noqa: E402
from qualivision.settings import load_settings  # noqa: E402

MODEL_STAGES = ("frames", "prompts", "encode", "train", "evaluate")


@task
def register(model: str) -> int:
    """Put the evaluated checkpoint into the registry, as challenger; returns its version."""
    from qualivision import registry
    from qualivision.stages import places

    metrics = places.report_dir(model) / "metrics.json"
    return registry.register(places.checkpoint_dir(model), metrics, load_settings().registry).version


@task
def promote(version: int) -> None:
    """Make a version the champion, if it may be."""
    from qualivision import registry

    registry.promote(version, load_settings().registry)


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
    """Rebuild what changed, register the model that `deploy` of params.yaml names, and make it the champion.

    Returns:
        Which stages ran, and the champion's URI.
    """
    settings = load_settings()
    ran = [stage for stage in ("validate",) if repro(stage)]
    for model in settings.models:
        ran += [name for stage in MODEL_STAGES if repro(name := f"{stage}@{model}")]
        show_metrics(model)
    version = register(settings.deploy)
    promote(version)
    return {"ran": ran, "champion": f"models:/{settings.registry.name}/{version}"}


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
    sys.stdout.write(f"retrain: ran {ran}\nretrain: {done['champion']} is the champion\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
