"""`params.yaml` as typed, validated, frozen objects. The only reader of `params.yaml`.

Owns every setting's name, range and default meaning; an unknown key, a wrong type or a value out of range is a
`SettingsError` that names the key. Library functions take the values, never this whole object.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qualivision.errors import QualiVisionError

PARAMS_FILE = Path("params.yaml")


class SettingsError(QualiVisionError, ValueError):
    """`params.yaml` can't be used: names the file, the key and what is allowed."""


class Section(BaseModel):
    """A part of `params.yaml`: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FrameSpec(Section):
    """What a model reads of a video, and the frame cache holds: uint8 RGB frames, (count, height, width, 3)."""

    count: int = Field(ge=2, le=1024, description="uniform frames per clip")
    height: int = Field(ge=32, le=4096, description="pixels")
    width: int = Field(ge=32, le=4096, description="pixels")

    @property
    def bytes(self) -> int:
        """Size of one clip's frames, in bytes."""
        return self.count * self.height * self.width * 3

    def __str__(self) -> str:
        return f"{self.count}x{self.height}x{self.width}"


class TextSettings(Section):
    """The frozen sentence encoder of the prompts."""

    encoder: str = Field(
        min_length=1, description="'all-MiniLM-L6-v2' (in a package), a folder, or a name on the model hub"
    )


class NetworkSettings(Section):
    """The trained part of a model."""

    width: int = Field(ge=8, le=4096, description="channels of tokens, fusion and head")
    fusion: Literal["quality-aware", "concatenation"] = "quality-aware"
    dropout: float = Field(ge=0.0, lt=1.0)


class LossSettings(Section):
    """Weights of the loss terms; the first two adapt while training (`training/losses.py`)."""

    regression: float = Field(ge=0.0, description="smooth-L1 against MOS")
    ranking: float = Field(ge=0.0, description="pairwise hinge on the order of clips")
    scale: float = Field(ge=0.0, description="squared error that counts more below 2.5 and above 4.0")
    correlation: float = Field(ge=0.0, description="1 - PLCC in a batch")
    alignment: float = Field(ge=0.0, description="every clip of a batch against every prompt of it")


class TrainSettings(Section):
    """How a model is trained."""

    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    patience: int = Field(ge=1, description="epochs without a better validation score before training stops")
    batch_size: int = Field(ge=2)
    accumulate: int = Field(ge=1, description="batches per optimizer step")
    learning_rate: float = Field(gt=0.0)
    weight_decay: float = Field(ge=0.0)
    warmup_steps: int = Field(ge=0)
    average: float = Field(
        ge=0.0, lt=1.0, description="share that a running average of the weights keeps at each step; 0 for none"
    )
    gradient_norm: float = Field(gt=0.0, description="clip the gradient to this norm")
    precision: Literal["no", "fp16", "bf16"] = "no"
    loss: LossSettings


class ModelSettings(Section):
    """One model: what it reads, its trained part, its training."""

    frames: FrameSpec
    text: TextSettings
    network: NetworkSettings
    train: TrainSettings


class ValidateSettings(Section):
    """Bounds that a data set has to keep. A clip or a prompt outside them stops the line."""

    min_frames: int = Field(ge=1)
    min_side_px: int = Field(ge=1)
    max_side_px: int = Field(ge=1)
    max_seconds: float = Field(gt=0.0)
    max_prompt_characters: int = Field(ge=1)


class EvaluateSettings(Section):
    """How the test split is judged."""

    bootstrap_resamples: int = Field(ge=100, le=100_000)
    seed: int = Field(ge=0)


class RegistrySettings(Section):
    """What a model is called in the registry, and when it may become champion."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")
    min_gain_over_no_video: float = Field(
        ge=-1.0, le=1.0, description="by how much Overall's VQualA score must beat the no-video baseline"
    )


class Settings(Section):
    """All of `params.yaml`."""

    models: list[Literal["lite"]] = Field(min_length=1, description="the models that the pipeline builds")
    deploy: Literal["lite"] = Field(description="the one of them that is registered")
    validate_: ValidateSettings = Field(alias="validate")
    evaluate: EvaluateSettings
    registry: RegistrySettings
    lite: ModelSettings

    @model_validator(mode="after")
    def _deployed_model_is_built(self) -> Settings:
        if self.deploy not in self.models:
            raise ValueError(f"deploy: {self.deploy} is not in models: {', '.join(self.models)}")
        return self

    def model(self, name: str) -> ModelSettings:
        """The section of one model. Raises SettingsError for a name that the pipeline does not build."""
        if name not in self.models:
            raise SettingsError(f"no model named {name!r}; params.yaml lists models: {', '.join(self.models)}")
        section: ModelSettings = getattr(self, name)
        return section


def load_settings(path: Path = PARAMS_FILE) -> Settings:
    """Read and check `params.yaml`.

    Raises:
        SettingsError: no such file, not YAML, an unknown or missing key, a value out of range.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise SettingsError(f"{path}: no such file; run this in the folder that holds {path.name}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise SettingsError(f"{path}: not valid YAML: {' '.join(str(err).split())}") from err
    try:
        return Settings.model_validate(values)
    except ValidationError as err:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
            + (f", got {problem['input']!r}" if not isinstance(problem["input"], dict) else "")
            for problem in err.errors()
        )
        raise SettingsError(f"{path}: {problems}") from err
