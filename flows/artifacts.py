"""What a run shows of itself in Prefect's UI: data, metrics, pictures, and the versions that a model came from."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact

from qualivision import markdown, registry, tracking
from qualivision.labels import DIMENSIONS, SPLITS
from qualivision.stages import places

if TYPE_CHECKING:
    from qualivision.settings import Settings

_SHOWN_FINDINGS = 20


def show_data() -> None:
    """The validation's report: clips of each split, and what was found."""
    path = places.REPORTS / "validation.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [(split, count["rows"], count["videos"]) for split in SPLITS if (count := report["counts"].get(split))]
    found = [finding for finding in report["findings"] if finding["severity"] != "info"]
    shown = [(one["severity"], one["file"], one["message"]) for one in found[:_SHOWN_FINDINGS]]
    parts = ["## Data", markdown.table(("split", "rows", "videos"), rows)]
    if shown:
        parts += [f"### {len(found)} findings", markdown.table(("severity", "file", "what"), shown)]
    parts.append(f"All of it: `{path.with_suffix('.html')}`, and Data Docs in `{places.REPORTS / 'data-docs'}`.")
    total = sum(row[1] for row in rows)
    create_markdown_artifact(
        key="data",
        markdown="\n\n".join(parts),
        description=f"{total} clips, {len(found)} findings that are no mere info",
    )


def show_model(model: str, settings: Settings) -> None:
    """The evaluation of a model: metrics with intervals, the change against the champion, scatter plots."""
    from qualivision.model_card import metrics_table

    metrics: dict[str, Any] = json.loads((places.report_dir(model) / "metrics.json").read_text(encoding="utf-8"))
    counts = metrics["counts"]
    parts = [
        f"## {model} on {counts['rows']} test clips of {counts['prompts']} prompts",
        markdown.table(*metrics_table(metrics)),
    ]
    if change := _change(metrics, settings):
        parts += ["### VQualA against the champion, as that was registered", change]
    create_markdown_artifact(
        key=f"metrics-{model}",
        markdown="\n\n".join(parts),
        description=f"{model}: Overall SROCC {metrics['Overall']['SROCC']}",
    )
    pictures = (places.report_dir(model) / name for name in ("scatter.png", "comparison.png"))
    create_markdown_artifact(
        key=f"pictures-{model}",
        markdown="\n\n".join(markdown.picture(path.read_bytes(), path.stem) for path in pictures if path.is_file()),
        description=f"{model}: predicted against rated",
    )


def _change(metrics: dict[str, Any], settings: Settings) -> str:
    champion = next((one for one in registry.entries(settings.registry) if registry.CHAMPION in one.aliases), None)
    if champion is None:
        return ""
    rows = []
    for name in DIMENSIONS:
        new, old = metrics[name]["VQualA"], champion.scores[name]
        change = "-" if new is None or old is None else f"{new - old:+.3f}"
        rows.append((name, "-" if new is None else f"{new:.3f}", "-" if old is None else f"{old:.3f}", change))
    return markdown.table(("dimension", "this model", f"version {champion.version}", "change"), rows)


def show_version(version: int, settings: Settings) -> None:
    """What a registered version was made of, and where MLflow shows it."""
    tags = registry.tags_of(version, settings.registry)
    names = {
        "qualivision.git_commit": "git commit",
        "qualivision.dvc_lock": "SHA-256 of dvc.lock",
        "qualivision.data": "data.dvc",
        tracking.CHECKPOINT_TAG: "checkpoint",
        "qualivision.base": "published weights",
        "qualivision.run": "MLflow run",
    }
    rows = [(name, f"`{tags[tag]}`") for tag, name in names.items() if tags.get(tag)]
    uri = f"models:/{settings.registry.name}/{version}"
    create_markdown_artifact(
        key=f"version-{version}",
        markdown=f"## {uri}\n\n{markdown.table(('made of', ''), rows)}",
        description=f"what {uri} was made of",
    )
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if server.startswith(("http://", "https://")):
        run = tags["qualivision.run"]
        experiment = tracking.client().get_run(run).info.experiment_id
        create_link_artifact(
            key=f"mlflow-{version}",
            link=f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run}",
            link_text=f"the MLflow run of {uri}",
            description=f"the training of {uri} in MLflow",
        )
