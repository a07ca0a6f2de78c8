"""Scoring: one loaded model, many videos. The champion of the registry by default.

Owns where a model comes from (the registry, any MLflow model URI, a checkpoint folder) and the way from a video and a
prompt to five scores; the same frames, stem and tensors as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any


class ModelNotFoundError(QualiVisionError, LookupError):
    """There is no model to score with: says how to get one."""


@dataclass(frozen=True)
class Scores:
    """What a model says of one video; `scores["Overall"]` reads one value."""

    video: str
    prompt: str
    values: Mapping[str, float]
    """MOS by dimension, 1 to 5; higher is better"""
    aspect_weights: Mapping[str, float]
    """what share each of the first four dimensions has in Overall for this prompt; they sum to 1"""
    model: str
    """which model: `models:/NAME/VERSION`, or the checkpoint's folder"""

    def __getitem__(self, dimension: str) -> float:
        return self.values[dimension]

    def as_dict(self) -> dict[str, Any]:
        """As `qualivision score --json` prints it."""
        return {
            "video": self.video,
            "prompt": self.prompt,
            "scores": {name: round(value, 4) for name, value in self.values.items()},
            "model": self.model,
        }


class Scorer:
    """A loaded model.

    Args:
        model: a checkpoint folder or an MLflow model URI (`models:/qualivision/3`, `models:/qualivision@champion`);
            by default the champion of the registry that `params.yaml` names.
        device: as torch names devices; by default the GPU when there is one.
    Raises:
        ModelNotFoundError: no such model, or no champion yet.
        CheckpointError: the model is damaged or does not fit this version.
    """

    def __init__(self, model: str | Path | None = None, *, device: str | None = None) -> None:
        import torch

        from qualivision.prompts import PromptEncoder
        from qualivision.training.checkpoint import load_checkpoint

        folder, self.name = _locate(model)
        self._model, self.card = load_checkpoint(folder, with_stem=True)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model.to(self._device)
        self._encoder = PromptEncoder(self.card.text.encoder, device=str(self._device))
        self._embed = lru_cache(maxsize=4096)(self._embed_one)

    def score(self, video: str | Path, *, prompt: str) -> Scores:
        """Score one video.

        Args:
            video: a file that decord or PyAV can read.
            prompt: the text that the video was generated from.
        Raises:
            VideoError: the video can't be read.
            PromptError: the prompt is blank.
        """
        import torch

        from qualivision.models.quality import ASPECTS, frames_to_input
        from qualivision.prompts import PromptError
        from qualivision.video import read_frames

        if not prompt.strip():
            raise PromptError(f"{video}: the prompt is blank; a score is always against a prompt")
        frames = frames_to_input(read_frames(Path(video), self.card.frames)).to(self._device)
        with torch.inference_mode():
            found = self._model(frames, self._model.embed([prompt], self._embed(prompt).to(self._device)))
        return Scores(
            video=str(video),
            prompt=prompt,
            values=dict(zip(DIMENSIONS, found.mos[0].tolist(), strict=True)),
            aspect_weights=dict(zip(ASPECTS, found.aspect_weights[0].tolist(), strict=True)),
            model=self.name,
        )

    def score_many(self, items: Iterable[tuple[str | Path, str]]) -> Iterator[Scores | QualiVisionError]:
        """Score (video, prompt) after (video, prompt); one that can't be scored gives its error instead."""
        from qualivision.prompts import PromptError
        from qualivision.video import VideoError

        for video, prompt in items:
            try:
                yield self.score(video, prompt=prompt)
            except (PromptError, VideoError) as err:
                yield err

    def _embed_one(self, prompt: str) -> Any:
        import torch

        return torch.from_numpy(self._encoder.encode([prompt]))


@lru_cache(maxsize=1)
def _scorer(model: str | Path | None) -> Scorer:
    return Scorer(model)


def score(video: str | Path, *, prompt: str, model: str | Path | None = None) -> Scores:
    """Score one video with the champion, or with `model` (see `Scorer`).

    The model stays loaded for the next call; a champion promoted in the meantime is used by a new `Scorer`.

    Raises:
        VideoError: the video can't be read.
        ModelNotFoundError: there is no model yet.
    """
    return _scorer(model).score(video, prompt=prompt)


def _locate(model: str | Path | None) -> tuple[Path, str]:
    """The checkpoint folder of a model, and what to call it."""
    if model is None or "://" in str(model) or str(model).startswith(("models:/", "runs:/")):
        from qualivision.registry import fetch

        return fetch(None if model is None else str(model))
    folder = Path(model)
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{folder}: no such checkpoint folder; give one, or an MLflow URI such as models:/qualivision@champion"
        )
    return folder, str(folder)
