"""MLflow runs: the only module that logs to them, and the one that knows where MLflow's store is by default.

Without `MLFLOW_TRACKING_URI` everything lies in the checkout: SQLite in `state/mlflow.db`, artifacts in
`state/mlartifacts`. The run of a checkpoint is found again by the hash of its tensors, so that no run's name has to
stand in a file that DVC versions.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qualivision.environment import STATE
from qualivision.errors import AwayError
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow import MlflowClient
    from mlflow.entities import Metric

EXPERIMENT = "qualivision"
CHECKPOINT_TAG = "qualivision.checkpoint"


def client() -> MlflowClient:
    """MLflow's client on the store of this project, which is made when there is none."""
    import mlflow
    from filelock import FileLock

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        STATE.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{(STATE / 'mlflow.db').absolute()}")
    if mlflow.get_tracking_uri().startswith(("http://", "https://")):
        return _with_experiment(None)
    STATE.mkdir(exist_ok=True)
    with FileLock(STATE / "mlflow.lock"):  # several processes on a new database: all but one die in its migrations
        # Pinned: MLflow's own default is a folder of whatever process comes first.
        return _with_experiment((STATE / "mlartifacts").absolute().as_uri())


def _with_experiment(artifacts: str | None) -> MlflowClient:
    import mlflow

    found = mlflow.MlflowClient()
    if found.get_experiment_by_name(EXPERIMENT) is None:
        found.create_experiment(EXPERIMENT, artifact_location=artifacts)
    mlflow.set_experiment(EXPERIMENT)
    return found


@contextmanager
def naming_what_is_away() -> Iterator[None]:
    """Raise AwayError for the error that MLflow raises, anywhere within, when its server does not answer."""
    try:
        yield
    except Exception as err:
        if not is_away(err):
            raise
        where = sys.modules["mlflow"].get_tracking_uri()
        cause = str(err).rpartition("Caused by ")[2].strip("()") or str(err)
        raise AwayError(
            f"MLflow at {where} does not answer ({cause}): start it, or correct MLFLOW_TRACKING_URI (unset, MLflow's "
            "store is state/mlflow.db)"
        ) from err


def is_away(err: Exception) -> bool:
    """Whether an error is that of MLflow's client after its last try to reach a server; it has no type of its own."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None:
        return False
    return isinstance(err, mlflow.exceptions.MlflowException) and "failed with exception" in str(err)


METRICS_PER_REQUEST = 1000
"""As many as MLflow takes."""


class TrainingRecord:
    """One training in MLflow: `NAME` is logged once an epoch, `step/NAME` once an optimizer step."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.run_id = run_id
        self._waiting: list[Metric] = []

    def step(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log an optimizer step's metrics. They are sent with others: a request for each would cost more than it."""
        self._add(number, {f"step/{name}": value for name, value in metrics.items()})
        if len(self._waiting) > METRICS_PER_REQUEST:
            self.flush()

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Log an epoch's metrics, and what is left of its steps'."""
        self._add(number, metrics)
        self.flush()

    def finish(self, checkpoint: str) -> None:
        """Tag the run with the checkpoint that it made."""
        self._client.set_tag(self.run_id, CHECKPOINT_TAG, checkpoint)

    def _add(self, number: int, metrics: Mapping[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(name, value, now, number) for name, value in metrics.items()]

    def flush(self) -> None:
        """Send what waits."""
        for start in range(0, len(self._waiting), METRICS_PER_REQUEST):
            self._client.log_batch(self.run_id, self._waiting[start : start + METRICS_PER_REQUEST])
        self._waiting.clear()


@contextmanager
def training_run(model: str, settings: Mapping[str, Any]) -> Iterator[TrainingRecord]:
    """A run around a training; it ends as FAILED when the training raises."""
    import mlflow

    store = client()
    with mlflow.start_run(run_name=f"train-{model}") as run:
        mlflow.log_params(dict(_flat(settings)))
        mlflow.set_tag("qualivision.model", model)
        record = TrainingRecord(store, run.info.run_id)
        try:
            yield record
        finally:
            record.flush()


def run_of(store: MlflowClient, checkpoint: str) -> str | None:
    """The run that made a checkpoint, by its hash; None when this store has none."""
    experiment = store.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    runs = store.search_runs([experiment.experiment_id], f"tags.`{CHECKPOINT_TAG}` = '{checkpoint}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


@contextmanager
def checkpoint_run(model: str, checkpoint: str, *, name: str) -> Iterator[str]:
    """The run that made a checkpoint, active again, or a new one of the given name (a checkpoint from elsewhere).

    Args:
        model: its name in `params.yaml`.
        checkpoint: its hash.
        name: of the run, if a new one is needed.
    Returns:
        The run's id.
    """
    import mlflow

    run_id = run_of(client(), checkpoint)
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else name) as run:
        if run_id is None:
            mlflow.set_tags({"qualivision.model": model, CHECKPOINT_TAG: checkpoint})
        yield run.info.run_id


def log_ensemble(model: str, checkpoint: str, weights: Mapping[str, Mapping[str, float]]) -> None:
    """Log the weights of an ensemble, {member: {dimension: its share}}, to the run of its checkpoint."""
    import mlflow

    with checkpoint_run(model, checkpoint, name=model):
        mlflow.log_metrics({f"weight.{name}": value for name, value in _flat(weights)})


def log_evaluation(model: str, checkpoint: str, metrics: Mapping[str, Any], folder: Path) -> None:
    """Log test metrics and the report's files to the run that made the checkpoint, or to a new one."""
    import mlflow

    with checkpoint_run(model, checkpoint, name=f"evaluate-{model}"):
        numbers = {
            f"test_{name}": value
            for name, value in _flat({key: metrics[key] for key in (*DIMENSIONS, "mean")})
            if value is not None
        }
        mlflow.log_metrics(numbers)
        mlflow.log_artifacts(str(folder), "evaluation")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
