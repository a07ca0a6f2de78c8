"""`params.yaml` as typed, validated, frozen objects. The only reader of `params.yaml`.

Owns every setting's name, range and default meaning; an unknown key, a wrong type or a value out of range is a
`SettingsError` that names the key. Library functions take the values, never this whole object.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    from collections.abc import Mapping

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


class DecodeSettings(Section):
    """How videos are decoded; what of a sound video comes out does not depend on it."""

    decoder: Literal["pyav", "decord"] = Field(
        default="pyav", description="pyav refuses a damaged video; decord conceals damage"
    )
    seconds: float = Field(default=120.0, gt=0.0, description="that one video may take before its process is stopped")
    memory_gb: float = Field(default=4.0, ge=1.0, description="that the process may allocate (Linux)")


ModelName = Literal["lite", "dover", "vjepa2"]
ENSEMBLE: Final = "ensemble"
"""What an ensemble of models is called; the only one that `ensembles` of `params.yaml` can list."""
EnsembleName = Literal["ensemble"]


class TextSettings(Section):
    """The sentence encoder of the prompts: frozen and its embeddings cached, unless it is trained."""

    encoder: str = Field(
        min_length=1, description="'all-MiniLM-L6-v2' (in a package), a folder, or a name on the model hub"
    )
    train: bool = Field(default=False, description="train it too, at train.rates.text times the learning rate")


class NetworkSettings(Section):
    """The trained part of a model."""

    width: int = Field(ge=8, le=4096, description="channels of tokens, fusion and head")
    fusion: Literal["quality-aware", "concatenation"] = "quality-aware"
    dropout: float = Field(ge=0.0, lt=1.0)
    judges: int = Field(default=1, ge=1, le=16, description="trained parts that differ by their seed, averaged")


class DoverNetwork(NetworkSettings):
    """The network of `dover`; all of it is trained."""

    weights: str = Field(min_length=1, description="'teowu/DOVER' on the model hub, or a local .pth or .safetensors")
    checkpointing: bool = Field(default=False, description="less memory in training for about a third more time")


class Vjepa2Network(NetworkSettings):
    """The network of `vjepa2`."""

    weights: str = Field(min_length=1, description="a V-JEPA2 checkpoint on the model hub, or a local folder")
    freeze_ratio: float = Field(
        ge=0.0, le=1.0, description="share of the layers, from the bottom, that stay as they are"
    )
    cache_stem: bool = Field(description="compute the frozen layers once a clip, and keep what they give on disk")
    stem_precision: Literal["bf16", "fp32"] = Field(description="of the frozen layers; bf16 takes half the memory")
    checkpointing: bool = Field(default=False, description="less memory in training for about a third more time")


class RateSettings(Section):
    """Factors of the learning rate by part of the model."""

    text: float = Field(default=1.0, gt=0.0, description="the sentence encoder, if it is trained")
    video: float = Field(default=1.0, gt=0.0, description="published layers of the video encoder")
    head: float = Field(default=1.0, gt=0.0, description="everything else that starts afresh")


class LossSettings(Section):
    """Weights of the loss terms; the first two adapt while training (`training/losses.py`)."""

    regression: float = Field(ge=0.0, description="smooth-L1 against MOS")
    ranking: float = Field(ge=0.0, description="pairwise hinge on the order of clips")
    scale: float = Field(ge=0.0, description="squared error that counts more below 2.5 and above 4.0")
    correlation: float = Field(ge=0.0, description="1 - PLCC in a batch")
    alignment: float = Field(ge=0.0, description="every clip of a batch against every prompt of it")
    faults: float = Field(default=0.0, ge=0.0, description="what each kind of fault takes, where that is known")
    auxiliary: float = Field(default=0.0, ge=0.0, description="what the video encoder's own heads say, if it has any")


class TrainSettings(Section):
    """How a model is trained."""

    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    patience: int = Field(ge=1, description="epochs without a better validation score before training stops")
    batch_size: int = Field(ge=2)
    accumulate: int = Field(ge=1, description="batches per optimizer step")
    learning_rate: float = Field(gt=0.0)
    rates: RateSettings = RateSettings()
    weight_decay: float = Field(ge=0.0)
    warmup_steps: int = Field(ge=0)
    average: float = Field(
        ge=0.0, lt=1.0, description="share that a running average of the weights keeps at each step; 0 for none"
    )
    gradient_norm: float = Field(gt=0.0, description="clip the gradient to this norm")
    precision: Literal["no", "fp16", "bf16"] = "no"
    processes: int = Field(default=1, ge=1, le=64, description="GPUs of this machine to train on, a process for each")
    sharded: bool = Field(
        default=False, description="share parameters and optimizer among the processes (FSDP), each holding its part"
    )
    save_steps: int = Field(
        default=0, ge=0, description="optimizer steps between two states that --resume can go on from; 0: each epoch"
    )
    start: str = Field(
        default="", description="a checkpoint folder or MLflow model URI that training starts from; empty: none"
    )
    start_pull: float = Field(
        default=3.0,
        ge=0.0,
        description="with a start, in place of weight_decay: draws weights to it, more so the fewer clips there are",
    )
    start_steps: int = Field(
        default=150, ge=1, description="with a start, at least so many optimizer steps: epochs are added if need be"
    )
    curve: tuple[float, ...] = Field(
        default=(), description="shares of the training prompts to train on as well, for a learning curve; empty: none"
    )
    loss: LossSettings

    @field_validator("curve")
    @classmethod
    def _are_rising_shares(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value <= 1 for value in values) or list(values) != sorted(set(values)):
            raise ValueError(f"{list(values)}: rising shares above 0 and up to 1 are needed, such as [0.25, 0.5, 1.0]")
        return values

    @model_validator(mode="after")
    def _a_curve_is_one_process_work(self) -> TrainSettings:
        if self.curve and self.processes > 1:
            raise ValueError("curve: is trained in one process; set processes: 1, or curve: []")
        return self


class ModelSettings(Section):
    """One model: what it reads, its network, its training."""

    frames: FrameSpec
    text: TextSettings
    network: NetworkSettings
    train: TrainSettings


class DoverSettings(ModelSettings):
    """`dover`."""

    network: DoverNetwork


class Vjepa2Settings(ModelSettings):
    """`vjepa2`."""

    network: Vjepa2Network


NETWORKS: dict[str, type[NetworkSettings]] = {"lite": NetworkSettings, "dover": DoverNetwork, "vjepa2": Vjepa2Network}
"""The network section of each model."""


class ValidateSettings(Section):
    """Bounds that a data set has to keep. What is outside stops the line; outside the last three it is a warning."""

    min_frames: int = Field(ge=1)
    min_side_px: int = Field(ge=1)
    max_side_px: int = Field(ge=1)
    max_seconds: float = Field(gt=0.0)
    max_prompt_characters: int = Field(ge=1)
    short_prompt_characters: int = Field(default=1, ge=1, description="a prompt with fewer is called short")
    small_split_prompts: int = Field(default=1, ge=1, description="a split with fewer is called small")
    small_split_clips: int = Field(default=1, ge=1, description="a split with fewer is called small")


class EvaluateSettings(Section):
    """How the test split is judged."""

    bootstrap_resamples: int = Field(ge=100, le=100_000)
    seed: int = Field(ge=0)
    behaviour_clips: int = Field(
        default=6, ge=0, le=10_000, description="best rated test clips that are degraded and scored again; 0: none"
    )


class RegistrySettings(Section):
    """What a model is called in the registry."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9_.-]+$")


class PromoteSettings(Section):
    """When a challenger may become champion (`evaluation/verdict.py`)."""

    margin: float = Field(
        default=0.02, ge=0.0, le=2.0, description="by how much Overall's VQualA may be below the champion's"
    )
    min_gain_over_no_video: float = Field(
        default=0.0, ge=-2.0, le=2.0, description="by how much it must beat the no-video baseline"
    )
    resamples: int = Field(default=2000, ge=100, le=100_000, description="of the paired bootstrap over prompts")
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0, description="of its intervals")
    seed: int = Field(default=0, ge=0)


class ServeSettings(Section):
    """What `qualivision serve` takes from strangers, and how it works through it."""

    max_megabytes: float = Field(default=256.0, gt=0.0, le=65536.0, description="of one video")
    max_seconds: float = Field(default=600.0, gt=0.0, description="that a video may last")
    max_pixels: int = Field(default=2**25, ge=1024, le=2**26, description="of one frame; 8K has 33 million")
    max_prompt_characters: int = Field(default=2000, ge=1, le=100_000)
    queue: int = Field(default=32, ge=1, le=10_000, description="clips waiting or being scored; one more gets a 429")
    workers: int = Field(default=0, ge=0, le=256, description="processes that decode; 0: one a core")
    body_seconds: float = Field(default=60.0, gt=0.0, description="in which all of a request has to arrive")
    header_seconds: float = Field(default=10.0, gt=0.0, description="in which a request's headers have to arrive")
    connections: int = Field(default=128, ge=1, le=100_000, description="open at once; one more gets a 503")
    batch_size: int = Field(default=0, ge=0, le=256, description="clips scored at once; 0: 1 on a CPU, 8 on a GPU")
    batch_wait_ms: float = Field(default=5.0, ge=0.0, le=1000.0, description="that a clip may wait for others to join")
    poll_seconds: float = Field(default=5.0, gt=0.0, description="between two looks at which version is champion")
    stop_seconds: float = Field(default=30.0, ge=0.0, description="that a stop waits for what was admitted")
    allow_folders: tuple[Path, ...] = Field(default=(), description="whose files may be scored by their path")
    allow_urls: tuple[str, ...] = Field(default=(), description="origins to load from, such as https://cdn.example.com")

    @field_validator("allow_urls")
    @classmethod
    def _are_origins(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not re.fullmatch(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", value):
                raise ValueError(f"{value!r} is no origin: scheme, host in lower case and at most a port, no path")
        return values

    @field_validator("allow_folders")
    @classmethod
    def _are_absolute(cls, values: tuple[Path, ...]) -> tuple[Path, ...]:
        for value in values:
            if not value.is_absolute():
                raise ValueError(f"{str(value)!r} is not absolute; give the folder from the root")
        return values


class FlowsSettings(Section):
    """What runs by itself, and how (`flows/`)."""

    approval: Literal["manual", "auto"] = Field(
        default="manual", description="who promotes a model that passes the gate: a person who is asked, or the flow"
    )
    approval_hours: float = Field(
        default=72.0, gt=0.0, le=8760.0, description="until a question lapses; the challenger then stays what it is"
    )
    stage_hours: float = Field(
        default=24.0, gt=0.0, le=8760.0, description="that one stage may take; then it is stopped"
    )
    retry_seconds: tuple[float, ...] = Field(
        default=(30.0, 300.0), description="waits before a stage is tried again whose failure may pass by itself"
    )
    remote: str = Field(
        default="", description="a DVC remote: stages pull from it what they need and push what they made"
    )
    gpus: int = Field(
        default=1, ge=1, le=1024, description="slots of the concurrency limit `gpu`: how many cards there are"
    )
    gpu_pool: str = Field(default="", description="a work pool whose workers run the stages that need a GPU")
    gpu_models: tuple[ModelName, ...] = Field(
        default=("dover", "vjepa2"),
        description="models whose encode, train, evaluate, member and evaluate-ensemble run on gpu_pool",
    )
    cluster: str = Field(
        default="",
        pattern=r"^(|local:[1-9][0-9]*|(tcp|tls|ws|wss|ucx)://.+)$",
        description="where frames are made and folders scored: 'local:2' for two Dask workers, or a scheduler",
    )
    commit_branch: str = Field(
        default="", description="a branch on which a run that made something commits what it made"
    )

    @model_validator(mode="after")
    def _other_machines_need_a_remote(self) -> FlowsSettings:
        if self.gpu_pool and not self.remote:
            raise ValueError("gpu_pool: stages on other machines need a DVC remote; name it as flows.remote")
        return self


Column = Literal[
    "video_name",
    "Prompt",
    "generator",
    "Traditional_MOS",
    "Alignment_MOS",
    "Aesthetic_MOS",
    "Temporal_MOS",
    "Overall_MOS",
]
"""A column of a label table, by our name (`importing.ALIASES`)."""


class IngestSettings(Section):
    """Where new rated videos arrive, and which splits their prompts go to (`qualivision ingest`)."""

    inbox: str = Field(default="inbox", min_length=1, description="a folder, or a bucket such as s3://ratings/inbox")
    shares: tuple[float, float, float] = Field(
        default=(0.8, 0.1, 0.1), description="of new prompts, to train, val and test"
    )
    columns: dict[Column, str] = Field(
        default={}, description="{our name: theirs}, of columns that are called otherwise than import-labels knows"
    )
    settle_seconds: float = Field(
        default=60.0, ge=0.0, le=86_400.0, description="since a batch last changed, before it is looked at"
    )
    wait_hours: float = Field(
        default=24.0, gt=0.0, le=8760.0, description="that a batch may lack videos of its rows; then it is refused"
    )

    @field_validator("shares")
    @classmethod
    def _are_shares(cls, values: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(values) < 0 or abs(sum(values) - 1) > 1e-6:
            raise ValueError("three shares that add up to 1 are needed")
        return values


class MonitorSettings(Section):
    """When what is scored has drifted from what the champion was judged on (`qualivision monitor`)."""

    scores: Path = Field(default=Path("scores"), description="tables of scores, or a folder of them")
    videos: tuple[Path, ...] = Field(
        default=(), description="folders in which the scored videos lie; without them no picture is looked at"
    )
    clips: int = Field(default=200, ge=20, le=10_000, description="looked at in each of the two windows")
    days: float = Field(default=7.0, gt=0.0, description="how old a video of the current window may be")
    seed: int = Field(default=0, ge=0, description="of the samples and permutations: equal windows, equal verdict")
    min_clips: int = Field(default=10, ge=5, description="in each window; below it there is no verdict")
    min_prompts: int = Field(
        default=5, ge=3, description="in each window: clips of one prompt are alike, and count less than others"
    )
    distance: float = Field(
        default=0.3, gt=0.0, lt=1.0, description="between the distributions of a figure (Kolmogorov-Smirnov): large"
    )
    auc: float = Field(
        default=0.8, gt=0.5, lt=1.0, description="with which the windows' prompts are told apart by meaning: large"
    )
    unscored: float = Field(
        default=0.05, gt=0.0, lt=1.0, description="more than in the reference of videos that can't be scored: large"
    )
    significance: float = Field(
        default=0.01, gt=0.0, le=0.2, description="of a drift; the false discovery rate over all figures"
    )
    open_scores: int = Field(default=1, ge=1, description="so many drifted scores open a retraining")
    open_inputs: int = Field(default=2, ge=1, description="and so many drifted inputs do")

    @model_validator(mode="after")
    def _windows_can_be_large_enough(self) -> MonitorSettings:
        if self.min_clips > self.clips:
            raise ValueError(f"min_clips: {self.min_clips} is more than the {self.clips} clips that are looked at")
        return self

    def but(self, **options: object) -> MonitorSettings:
        """The same with some values given otherwise, None for none. Raises SettingsError for one out of range."""
        given = {name: value for name, value in options.items() if value is not None}
        try:
            return MonitorSettings.model_validate({**self.model_dump(), **given})
        except ValidationError as err:
            raise SettingsError(f"monitor: {_problems(err)}") from err


class EnsembleSettings(Section):
    """An ensemble: several models whose scores are averaged, with weights fitted on val."""

    members: list[ModelName] = Field(default=[], description="two or more of `models`")


class Settings(Section):
    """All of `params.yaml`."""

    models: list[ModelName] = Field(min_length=1, description="the models that the pipeline builds")
    ensembles: list[EnsembleName] = Field(default=[], max_length=1, description="what it then makes of several of them")
    deploy: Literal[ModelName, EnsembleName] = Field(description="the one of all these that is registered")
    validate_: ValidateSettings = Field(alias="validate")
    decode: DecodeSettings = DecodeSettings()
    evaluate: EvaluateSettings
    registry: RegistrySettings
    promote: PromoteSettings = PromoteSettings()
    serve: ServeSettings = ServeSettings()
    flows: FlowsSettings = FlowsSettings()
    ingest: IngestSettings = IngestSettings()
    monitor: MonitorSettings = MonitorSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    lite: ModelSettings
    dover: DoverSettings
    vjepa2: Vjepa2Settings

    @model_validator(mode="after")
    def _deployed_model_is_built(self) -> Settings:
        if self.deploy == ENSEMBLE and not self.ensembles:
            raise ValueError(
                f"deploy: {ENSEMBLE} is not in ensembles, which lists none; write `ensembles: [{ENSEMBLE}]`"
            )
        if self.deploy not in self.built:
            raise ValueError(f"deploy: {self.deploy} is not in models: {', '.join(self.models)}")
        return self

    @model_validator(mode="after")
    def _members_are_built(self) -> Settings:
        members = self.ensemble.members if self.ensembles else ()
        if self.ensembles and len({*members}) < 2:
            raise ValueError(f"ensemble.members: {', '.join(members) or 'none'}; an ensemble has two models or more")
        if len({*members}) < len(members):
            raise ValueError(f"ensemble.members: {', '.join(members)}; each model can be a member once")
        if others := [name for name in members if name not in self.models]:
            raise ValueError(f"ensemble.members: {', '.join(others)} is not in models: {', '.join(self.models)}")
        return self

    @property
    def built(self) -> tuple[str, ...]:
        """All that the pipeline evaluates and could register: models and ensembles."""
        return (*self.models, *self.ensembles)

    def check_built(self, name: str) -> None:
        """Raises SettingsError for a name that the pipeline neither trains nor makes an ensemble of."""
        if name not in self.ensembles:
            self.model(name)

    def made_of(self, name: str) -> tuple[str, ...]:
        """The models that one of `built` is made of: itself, or an ensemble's members."""
        return tuple(self.ensemble.members) if name in self.ensembles else (name,)

    def member(self, name: str) -> ModelSettings:
        """The section of one member of the ensemble. Raises SettingsError when there is no ensemble, or it lacks it."""
        if not self.ensembles or name not in self.ensemble.members:
            raise SettingsError(
                f"{name}: is no member of an ensemble; params.yaml lists ensembles: "
                f"{', '.join(self.ensembles) or 'none'}, ensemble.members: {', '.join(self.ensemble.members) or 'none'}"
            )
        return self.model(name)

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
        raise SettingsError(f"{path}: {_problems(err)}") from err


def serving(options: Mapping[str, object]) -> tuple[ServeSettings, DecodeSettings]:
    """The sections that the server needs, with some values of `serve` given otherwise. Needs no `params.yaml`.

    Raises:
        SettingsError: as `load_settings`; or a value out of range.
    """
    settings = load_settings() if PARAMS_FILE.exists() else None
    section = settings.serve if settings else ServeSettings()
    try:
        section = ServeSettings.model_validate({**section.model_dump(), **options})
    except ValidationError as err:
        raise SettingsError(f"serve: {_problems(err)}") from err
    return section, settings.decode if settings else DecodeSettings()


def _problems(err: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}"
        + (f", got {problem['input']!r}" if not isinstance(problem["input"], dict) else "")
        for problem in err.errors()
    )
