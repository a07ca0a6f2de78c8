"""What the server answers, as types: they check what we send, and the OpenAPI page teaches by them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

PROMPT = "A cat is running on the grass"


class FiveScores(BaseModel):
    """Mean opinion scores from 1 to 5; higher is better."""

    Traditional: float = Field(description="sharpness, noise, exposure", examples=[3.41])
    Alignment: float = Field(description="does it show what was asked for", examples=[4.02])
    Aesthetic: float = Field(description="composition, light, colours", examples=[3.55])
    Temporal: float = Field(description="motion, flicker, consistency", examples=[2.96])
    Overall: float = Field(description="all in all", examples=[3.38])


class AspectWeights(BaseModel):
    """What share each dimension has in Overall for this prompt; they sum to 1."""

    Traditional: float = Field(examples=[0.24])
    Alignment: float = Field(examples=[0.29])
    Aesthetic: float = Field(examples=[0.23])
    Temporal: float = Field(examples=[0.24])


class ScoreAnswer(BaseModel):
    """What the model says of one video."""

    scores: FiveScores
    aspect_weights: AspectWeights
    distance: float = Field(
        description="from the clips that the model was trained on: up to 1 for clips of their kind, with no upper end",
        examples=[0.71],
    )
    warning: str | None = Field(
        description="why not to trust the scores, where a clip is unlike those the model was trained on; else null",
        examples=[None],
    )
    model: str = Field(description="which model said so", examples=["models:/qualivision/3"])
    prompt: str = Field(description="the prompt as it was read", examples=[PROMPT])
    request_id: str = Field(description="as in X-Request-ID, and in the server's log", examples=["6f0c2b5e9a41"])


class Reference(BaseModel):
    """A video by its name: either `path` or `url`, as far as the server's settings allow it."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="the text that the video was generated from", examples=[PROMPT])
    path: str | None = Field(default=None, description="absolute, under a folder of serve.allow_folders")
    url: str | None = Field(
        default=None,
        description="http or https, with an origin of serve.allow_urls",
        examples=["https://cdn.example.com/clip.mp4"],
    )


class FrameSpecAnswer(BaseModel):
    """What a model reads of a video: that many uniform frames, each resized to height x width."""

    count: int = Field(examples=[64])
    height: int = Field(examples=[160])
    width: int = Field(examples=[160])


class ModelAnswer(BaseModel):
    """The model that scores what comes now."""

    model: str = Field(description="its version in the registry, or where it lies", examples=["models:/qualivision/3"])
    kind: str = Field(description="which of our models it is", examples=["lite"])
    follows: str | None = Field(
        description="the alias that decides; none when a model is pinned", examples=["models:/qualivision@champion"]
    )
    frames: list[FrameSpecAnswer] = Field(description="what it reads of a video; an ensemble may read several sizes")
    dimensions: list[str] = Field(examples=[["Traditional", "Alignment", "Aesthetic", "Temporal", "Overall"]])


class StateAnswer(BaseModel):
    """How the server is."""

    state: str = Field(examples=["ready"])


class ErrorDetail(BaseModel):
    """Why there is no score."""

    code: str = Field(description="for programs; it does not change", examples=["video_unusable"])
    message: str = Field(description="for people: what is wrong and the way out", examples=["the video is cut off"])


class ErrorAnswer(BaseModel):
    """Every answer that is not 2xx."""

    error: ErrorDetail
