"""Scoring: one loaded model, many videos. The champion of the registry by default.

Owns where a model comes from (the registry, any MLflow model URI, a checkpoint folder) and the way from a video and a
prompt to five scores; the same frames, stem and tensors as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from qualivision import depth
from qualivision.errors import QualiVisionError
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from qualivision.models.quality import Prediction
    from qualivision.settings import FrameSpec
    from qualivision.video import Frames

_PROMPTS_AT_ONCE = 16
"""Of one clip: bounds the memory that its repeated activations take."""


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
    distance: float
    """from the clips that the model was trained on: up to 1 for clips of their kind, without an upper end"""

    @property
    def warning(self) -> str:
        """Why not to trust the scores: one sentence on a clip unlike the training clips; empty for all others."""
        return depth.warning(self.distance)

    def __getitem__(self, dimension: str) -> float:
        return self.values[dimension]

    def as_dict(self) -> dict[str, Any]:
        """As `qualivision score --json` prints it."""
        return {
            "video": self.video,
            "prompt": self.prompt,
            "scores": {name: round(value, 4) for name, value in self.values.items()},
            "distance": round(self.distance, 4),
            "warning": self.warning or None,
            "model": self.model,
        }


@dataclass(frozen=True)
class Located:
    """A model that was found, and not loaded.

    Attributes:
        folder: its checkpoint, on this machine.
        name: `models:/NAME/VERSION`, or the checkpoint's folder as it was given.
    """

    folder: Path
    name: str

    @property
    def label(self) -> str:
        """What to call it in a table: a version of the registry, or a folder and what lies in it now."""
        from qualivision.training.checkpoint import checkpoint_id

        return self.name if self.name.startswith("models:/") else f"{self.name}@{checkpoint_id(self.folder)[:12]}"


class Scorer:
    """A loaded model.

    Args:
        model: a checkpoint folder or an MLflow model URI (`models:/qualivision/3`, `models:/qualivision@champion`);
            by default the champion of the registry that `params.yaml` names. Or what `locate` made of one of these.
        device: as torch names devices; by default the GPU when there is one.
    Raises:
        ModelNotFoundError: no such model, or no champion yet.
        CheckpointError: the model is damaged or does not fit this version.
    """

    def __init__(self, model: str | Path | Located | None = None, *, device: str | None = None) -> None:
        import torch

        from qualivision.prompts import PromptEncoder
        from qualivision.training.checkpoint import load_checkpoint

        found = locate(model)
        self.folder, self.name = found.folder, found.name
        self._model, self.card = load_checkpoint(self.folder, with_stem=True)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model.to(self._device)
        self._encoder = PromptEncoder(self.card.text.encoder, device=str(self._device))
        self._embed = lru_cache(maxsize=4096)(self._embed_one)

    @property
    def device(self) -> str:
        """Where the model runs, as torch names devices."""
        return str(self._device)

    @property
    def spec(self) -> FrameSpec:
        """What the model reads of a video."""
        return self.card.frames

    def score(self, video: str | Path, *, prompt: str) -> Scores:
        """Score one video, decoded in this process: for files that are trusted not to crash a decoder.

        Args:
            video: a file that FFmpeg can read.
            prompt: the text that the video was generated from.
        Raises:
            VideoError: the video can't be read.
            PromptError: the prompt is blank.
        """
        from qualivision.video import read_frames

        check_prompt(video, prompt)
        return self.judge([(str(video), prompt, read_frames(Path(video), self.spec))])[0]

    def judge(self, clips: Sequence[tuple[str, str, Frames]]) -> list[Scores]:
        """Score a batch of clips that are decoded already.

        Args:
            clips: (name, prompt, frames): frames as `read_frames` gives them for `spec`, (T, H, W, 3) uint8.
        Returns:
            Scores of each, in order; the name stands in `Scores.video`.
        Raises:
            PromptError: a prompt is blank.
        """
        import torch

        from qualivision.models.quality import frames_to_input

        frames = torch.cat([frames_to_input(shown) for _, _, shown in clips]).to(self._device)
        with torch.inference_mode():
            found = self._model(frames, self._text([(name, prompt) for name, prompt, _ in clips]))
        return self._named([(name, prompt) for name, prompt, _ in clips], found)

    def judge_prompts(self, name: str, prompts: Sequence[str], frames: Frames) -> list[Scores]:
        """Score one clip against many prompts; its frozen stem runs once.

        Args:
            name: stands in `Scores.video`.
            prompts: any number.
            frames: as `judge` takes them.
        Returns:
            Scores against each prompt, in order; what `judge` gives for each alone.
        Raises:
            PromptError: a prompt is blank.
        """
        import torch

        from qualivision.models.quality import frames_to_input

        scores = []
        with torch.inference_mode():
            activations = self._model.stem(frames_to_input(frames).to(self._device))
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
                part = [(name, prompt) for prompt in prompts[start : start + _PROMPTS_AT_ONCE]]
                repeated = {key: value.expand(len(part), *value.shape[1:]) for key, value in activations.items()}
                scores += self._named(part, self._model.from_stem(repeated, self._text(part)))
        return scores

    def score_many(self, items: Iterable[tuple[str | Path, str]]) -> Iterator[Scores | QualiVisionError]:
        """Score (video, prompt) after (video, prompt); one that can't be scored gives its error instead."""
        from qualivision.prompts import PromptError
        from qualivision.video import VideoError

        for video, prompt in items:
            try:
                yield self.score(video, prompt=prompt)
            except (PromptError, VideoError) as err:
                yield err

    def _text(self, asked: Sequence[tuple[str, str]]) -> Any:
        """The (B, Dt) embeddings of the prompts of (name, prompt). Raises PromptError for a blank one."""
        import torch

        for name, prompt in asked:
            check_prompt(name, prompt)
        prompts = [prompt for _, prompt in asked]
        return self._model.embed(prompts, torch.cat([self._embed(prompt) for prompt in prompts]).to(self._device))

    def _named(self, asked: Sequence[tuple[str, str]], found: Prediction) -> list[Scores]:
        """A batch's prediction as scores of each (name, prompt)."""
        from qualivision.models.quality import ASPECTS

        return [
            Scores(
                video=name,
                prompt=prompt,
                values=dict(zip(DIMENSIONS, mos, strict=True)),
                aspect_weights=dict(zip(ASPECTS, weights, strict=True)),
                model=self.name,
                distance=distance,
            )
            for (name, prompt), mos, weights, distance in zip(
                asked, found.mos.tolist(), found.aspect_weights.tolist(), found.distance.tolist(), strict=True
            )
        ]

    def _embed_one(self, prompt: str) -> Any:
        import torch

        return torch.from_numpy(self._encoder.encode([prompt]))


def check_prompt(video: str | Path, prompt: object) -> None:
    """Raises PromptError when there is no prompt to score a video against."""
    from qualivision.prompts import PromptError

    if not isinstance(prompt, str) or not prompt.strip():
        raise PromptError(f"{video}: the prompt is blank; a score is always against a prompt")


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


def locate(model: str | Path | Located | None) -> Located:
    """Find a model (see `Scorer`); an alias becomes the version that it means now. Loads nothing.

    Raises:
        ModelNotFoundError: no such model, or no champion yet.
        RegistryError: its files are not those that were registered.
    """
    if isinstance(model, Located):
        return model
    if model is None or "://" in str(model) or str(model).startswith(("models:/", "runs:/")):
        from qualivision.registry import fetch

        return Located(*fetch(None if model is None else str(model)))
    folder = Path(model)
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{folder}: no such checkpoint folder; give one, or an MLflow URI such as models:/qualivision@champion"
        )
    return Located(folder, str(folder))
