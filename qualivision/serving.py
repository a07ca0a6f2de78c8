"""The registered model as MLflow serves it: a pyfunc made from this file, with our package beside it and no pickle.

In: a table with `video` (path of a file on the server's machine) and `prompt`. Out: one row each with the five MOS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from qualivision.labels import DIMENSIONS
from qualivision.prompts import PromptError
from qualivision.scoring import Scorer


class QualityScorer(PythonModel):
    """A `Scorer` behind MLflow's interface; stateless between calls, so several threads may call it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the checkpoint that was registered."""
        self._scorer = Scorer(Path(context.artifacts["checkpoint"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score each row.

        Raises:
            VideoError: a video can't be read; the message names it.
            PromptError: a prompt is missing or blank.
        """
        items = list(zip(model_input["video"], model_input["prompt"], strict=True))
        for video, prompt in items:
            if not isinstance(prompt, str):  # null in the request; as text it would be scored against "None"
                raise PromptError(f"{video}: has no prompt; a score is always against a prompt")
        rows = [dict(self._scorer.score(str(video), prompt=prompt).values) for video, prompt in items]
        return pd.DataFrame(rows, columns=list(DIMENSIONS))


mlflow.models.set_model(QualityScorer())
