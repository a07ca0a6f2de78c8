"""The registered model as MLflow serves it: a pyfunc made from this file, with our package beside it and no pickle.

In: a table with `video`, the bytes of a video file (base64 in JSON), and `prompt`. A client sends its video and names
none: it can't make the server read a file of its own. Out: one row each with the five MOS, `distance` and `warning` as
in `Scores`, and `error`, which is empty where there are scores. One bad video in a million rows costs its own row.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from qualivision.decoding import Decoders
from qualivision.environment import keep_freed_memory
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS
from qualivision.scoring import Scorer, check_prompt
from qualivision.settings import DecodeSettings
from qualivision.training.checkpoint import CheckpointError, checkpoint_id
from qualivision.video import Bounds, VideoError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

BOUNDS = Bounds(seconds=600)
_AT_ONCE = 16
"""Rows whose videos lie on disk, and whose frames may wait in memory."""
_NUMBERS = (*DIMENSIONS, "distance")


class QualityScorer(PythonModel):
    """A `Scorer` behind MLflow's interface; several threads may call it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint that was registered."""
        keep_freed_memory()
        folder, recorded = Path(context.artifacts["checkpoint"]), context.model_config["checkpoint"]
        if checkpoint_id(folder) != recorded:
            raise CheckpointError(f"{folder}: is not the checkpoint that was registered; register it again")
        self._scorer = Scorer(folder)
        self._decoders = Decoders(DecodeSettings(), bounds=BOUNDS)
        self._model_is_busy = Lock()  # threads that share the cores only slow each other down

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score each row.

        Args:
            context: not used.
            model_input: columns `video` (bytes) and `prompt` (text).
            params: not used.
        Returns:
            The five MOS, `distance`, `warning` and `error`, a row each; where `error` says something, there are no
            numbers.
        """
        rows = list(zip(model_input["video"], model_input["prompt"], strict=True))
        found = [row for start in range(0, len(rows), _AT_ONCE) for row in self._score(rows[start : start + _AT_ONCE])]
        table = pd.DataFrame(found, columns=[*_NUMBERS, "warning", "error"], index=model_input.index)
        # None and not NaN, which MLflow's server would put into its answer as it is: that is no JSON.
        return table.astype(object).where(table.notna(), None) if table["error"].any() else table

    def _score(self, rows: Iterable[tuple[object, object]]) -> Iterator[dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="qualivision-") as folder:
            waiting = [self._decode(Path(folder) / str(number), *row) for number, row in enumerate(rows)]
            for decoding in waiting:
                yield self._judge(decoding)

    def _decode(self, path: Path, video: object, prompt: object) -> tuple[Future[Any], str] | QualiVisionError:
        try:
            check_prompt("the video", prompt)
        except QualiVisionError as err:
            return err
        if not isinstance(video, bytes):
            return VideoError(path, "is not the bytes of a file")
        path.write_bytes(video)
        return self._decoders.frames(path, self._scorer.specs), str(prompt)

    def _judge(self, decoding: tuple[Future[Any], str] | QualiVisionError) -> dict[str, Any]:
        if isinstance(decoding, tuple):
            frames, prompt = decoding
            try:
                shown = frames.result()
                with self._model_is_busy:
                    scores = self._scorer.judge([("the video", prompt, shown)])[0]
                return {**scores.values, "distance": scores.distance, "warning": scores.warning, "error": ""}
            except QualiVisionError as err:
                decoding = err
        # Of a video the cause alone: where it lay is nobody's business.
        said = f"the video {decoding.cause}" if isinstance(decoding, VideoError) else str(decoding)
        return dict.fromkeys(_NUMBERS, float("nan")) | {"warning": "", "error": said}


mlflow.models.set_model(QualityScorer())
