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
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from torch import Tensor

    from qualivision.models.quality import Activations, Prediction
    from qualivision.settings import FrameSpec
    from qualivision.training.checkpoint import Member
    from qualivision.video import Clip

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

        from qualivision.training.checkpoint import kind_of, members_of

        found = locate(model)
        self.folder, self.name = found.folder, found.name
        self.members = members_of(self.folder)
        self.kind = kind_of(self.members)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        embedding: dict[str, Callable[[str], Tensor]] = {}
        for encoder in dict.fromkeys(member.card.text.encoder for member in self.members):
            embedding[encoder] = _embedding(encoder, self.device)
        specs = self.specs
        self._parts = [
            _Part(member, specs.index(member.card.frames), embedding[member.card.text.encoder], self.device)
            for member in self.members
        ]

    @property
    def specs(self) -> tuple[FrameSpec, ...]:
        """What the model reads of a video: one, or as many as its members read different ones."""
        return tuple(dict.fromkeys(member.card.frames for member in self.members))

    def score(self, video: str | Path, *, prompt: str) -> Scores:
        """Score one video, decoded in this process: for files that are trusted not to crash a decoder.

        Args:
            video: a file that FFmpeg can read.
            prompt: the text that the video was generated from.
        Raises:
            VideoError: the video can't be read.
            PromptError: the prompt is blank.
        """
        from qualivision.video import read_clip

        check_prompt(video, prompt)
        return self.judge([(str(video), prompt, read_clip(Path(video), self.specs))])[0]

    def judge(self, clips: Sequence[tuple[str, str, Clip]]) -> list[Scores]:
        """Score a batch of clips that are decoded already.

        Args:
            clips: (name, prompt, frames): frames as `video.read_clip` gives them for `specs`, each (T, H, W, 3) uint8.
        Returns:
            Scores of each, in order; the name stands in `Scores.video`.
        Raises:
            PromptError: a prompt is blank.
        """
        asked = [(name, prompt) for name, prompt, _ in clips]
        for name, prompt in asked:
            check_prompt(name, prompt)
        prompts, shown = [prompt for _, prompt in asked], [clip for _, _, clip in clips]
        return self._named(asked, [part.predict(part.stem(shown), prompts) for part in self._parts])

    def judge_prompts(self, name: str, prompts: Sequence[str], clip: Clip) -> list[Scores]:
        """Score one clip against many prompts; the frozen stem, of each member, runs once.

        Args:
            name: stands in `Scores.video`.
            prompts: any number.
            clip: its frames, as `judge` takes them.
        Returns:
            Scores against each prompt, in order; what `judge` gives for each alone.
        Raises:
            PromptError: a prompt is blank.
        """
        for prompt in prompts:
            check_prompt(name, prompt)
        stems = [part.stem([clip]) for part in self._parts]
        scores = []
        for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
            some = list(prompts[start : start + _PROMPTS_AT_ONCE])
            each = [
                part.predict({key: value.expand(len(some), *value.shape[1:]) for key, value in stem.items()}, some)
                for part, stem in zip(self._parts, stems, strict=True)
            ]
            scores += self._named([(name, prompt) for prompt in some], each)
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

    def _named(self, asked: Sequence[tuple[str, str]], each: Sequence[Prediction]) -> list[Scores]:
        """What the members predict of a batch, as scores of each (name, prompt)."""
        from qualivision.models.quality import ASPECTS

        found = each[0] if len(each) == 1 else _mean(each, self.members)
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


class _Part:
    """A member, loaded. Of a clip, which is one array of frames for each spec, it reads that at `place`."""

    def __init__(self, member: Member, place: int, embed: Callable[[str], Tensor], device: str) -> None:
        from qualivision.training.checkpoint import load_checkpoint

        self.place = place
        self.embed = embed
        self.device = device
        self.model, _ = load_checkpoint(member.folder, with_stem=True)
        self.model.to(device)

    def stem(self, clips: Sequence[Clip]) -> Activations:
        """What its frozen stem makes of clips."""
        import torch

        from qualivision.models.quality import frames_to_input

        with torch.inference_mode():
            return self.model.stem(torch.cat([frames_to_input(clip[self.place]) for clip in clips]).to(self.device))

    def predict(self, activations: Activations, prompts: list[str]) -> Prediction:
        """What it says of clips, each against its own prompt."""
        import torch

        text = torch.cat([self.embed(prompt) for prompt in prompts]).to(self.device)
        with torch.inference_mode():
            return self.model.from_stem(activations, self.model.embed(prompts, text))


def _mean(each: Sequence[Prediction], members: Sequence[Member]) -> Prediction:
    """The members' mean by their weights, as far as the clip is for the one to which it is strangest.

    What share an aspect has in Overall follows from the members' weights there.
    """
    import torch

    from qualivision.models.quality import Prediction
    from qualivision.training.checkpoint import weights_of

    weights = torch.from_numpy(weights_of(members))
    mos = torch.stack([found.mos.double().cpu() for found in each])
    aspects = torch.stack([found.aspect_weights.double().cpu() for found in each])
    overall = weights[:, DIMENSIONS.index("Overall")]
    return Prediction(
        mos=(mos * weights[:, None, :]).sum(0),
        aspect_weights=(aspects * overall[:, None, None]).sum(0),
        auxiliary={},
        distance=torch.stack([found.distance.double().cpu() for found in each]).amax(0),
    )


def _embedding(encoder: str, device: str) -> Callable[[str], Tensor]:
    """A prompt's embedding, (1, Dt), by a sentence encoder; of what was asked lately without computing it again."""
    import torch

    from qualivision.prompts import PromptEncoder

    loaded = PromptEncoder(encoder, device=device)
    return lru_cache(maxsize=4096)(lambda prompt: torch.from_numpy(loaded.encode([prompt])))


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
