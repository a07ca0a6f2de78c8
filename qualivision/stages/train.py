"""Stage `train`: the trained part of a model, from cached activations and prompt embeddings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import qualivision
from qualivision import tracking
from qualivision.cache import file_hash, make_key
from qualivision.progress import progress
from qualivision.prompts import PromptCache, sentence_transformer
from qualivision.settings import load_settings
from qualivision.stages import places
from qualivision.stages.encode import activations_cache

if TYPE_CHECKING:
    from collections.abc import Callable

    from qualivision.models.quality import QualityModel
    from qualivision.settings import TrainSettings
    from qualivision.training.data import ClipSet
    from qualivision.training.loop import Trainer


def run(model: str, *, resume: bool = False) -> str:
    """Train and write the checkpoint.

    Args:
        model: its name in `params.yaml`.
        resume: go on from an interrupted run of the same data and settings, if there is one.
    Raises:
        LabelError, CacheError, TrainingError
        ModelNotFoundError, CheckpointError: the start is not there, or does not fit.
    """
    from qualivision.models.factory import base_hash, base_name, build_model, build_stem, caches_stem, has_stem
    from qualivision.models.text import TextTower
    from qualivision.training.checkpoint import ModelCard, checkpoint_id, save_checkpoint
    from qualivision.training.data import ClipSet
    from qualivision.training.loop import Trainer
    from qualivision.training.starting import read_start

    settings = load_settings().model(model)
    if settings.train.processes > 1 and "LOCAL_RANK" not in os.environ:
        return _launch(model, settings.train.processes, resume=resume)
    embeddings = PromptCache(places.prompts_dir(model), settings.text.encoder).read()
    network = settings.network
    stems = activations_cache(model, network)
    train_set, val_set = (ClipSet(places.DATA, split, stems, embeddings) for split in ("train", "val"))
    text_width = train_set.text.shape[1]
    folder = places.checkpoint_dir(model)
    start = read_start(settings.train.start, model, settings, target=folder) if settings.train.start else None
    # Everything that the weights follow from, our own code included.
    package = Path(qualivision.__file__).parent
    code = sorted((*package.glob("models/*.py"), *package.glob("training/*.py")))
    identity = make_key(
        settings.model_dump_json(),
        base_hash(model, network),
        start.id if start else "",
        *map(file_hash, code),
        *(embeddings[prompt].tobytes().hex() for prompt in sorted(embeddings)),
        *(
            f"{part.keys} {part.table.to_csv()} {part.content} {part.asked} {part.faults.tolist()}"
            for part in (train_set, val_set)
        ),
    )

    def build() -> QualityModel:
        stem = build_stem(model, network) if has_stem(model) and not caches_stem(model, network) else None
        text = TextTower(sentence_transformer(settings.text.encoder)) if settings.text.train else None
        return build_model(model, network, text_width, stem=stem, text=text)

    def make_trainer(clips: ClipSet, state: Path | None) -> Trainer:
        return Trainer(build, clips, val_set, settings.train, state=state, identity=identity, start=start)

    _make_curve(model, make_trainer, train_set, val_set, settings.train, identity)
    trainer = make_trainer(train_set, folder / "trainer")
    if not trainer.accelerator.is_main_process:  # it works along; what is said, logged and written is the first one's
        trainer.run(resume=resume, log=lambda epoch, metrics: None, advance=lambda done, total: None)
        return ""
    _say_what_is_small(model, train_set, val_set, started=start is not None)
    with (
        tracking.training_run(model, settings.model_dump()) as record,
        progress(f"train {model}", unit="epochs") as advance,
    ):
        trained = trainer.run(resume=resume, log=record.epoch, log_step=record.step, advance=advance)
        card = ModelCard(
            name=model,
            frames=settings.frames,
            text=settings.text,
            network=network,
            text_width=text_width,
            architecture=trainer.model.encoder.architecture,
            base=base_name(model, network),
            base_hash=base_hash(model, network),
            training={
                "best_epoch": trained.epoch,
                "val_score": round(trained.score, 6),
                "loss_weights": {name: round(value, 6) for name, value in trained.loss_weights.items()},
                "clips": len(train_set),
                "prompts": len(set(train_set.prompts)),
                **({"start": {"name": start.name, "id": start.id, "val_score": trained.start_score}} if start else {}),
            },
            forests=trained.forests,
        )
        save_checkpoint(folder, card, trained.tensors)
        record.finish(checkpoint_id(folder))
    return f"train {model}: best epoch {trained.epoch} of {len(trained.history)}, validation score {trained.score:.3f}"


def _make_curve(
    model: str,
    make_trainer: Callable[[ClipSet, Path | None], Trainer],
    train_set: ClipSet,
    val_set: ClipSet,
    settings: TrainSettings,
    identity: str,
) -> None:
    """Write the learning curve, if one is wanted. Before the training: what was killed here goes on at either."""
    from qualivision.training.checkpoint import load_trained
    from qualivision.training.curve import CURVE, make_curve
    from qualivision.training.loop import predict

    path = places.checkpoint_dir(model) / CURVE
    if not settings.curve:
        path.unlink(missing_ok=True)
        return

    def train(clips: ClipSet | None, judged: ClipSet) -> Any:
        trainer = make_trainer(train_set if clips is None else clips, None)
        if clips is not None:
            trained = trainer.run(resume=False, log=lambda epoch, metrics: None, advance=lambda done, total: None)
            load_trained(trainer.averaged, trained.tensors, path)
        device = trainer.accelerator.device
        return predict(trainer.averaged, judged, device=device, batch_size=settings.batch_size)

    shares = (0.0, *settings.curve) if settings.start else settings.curve
    with progress(f"train {model}: learning curve", unit="trainings") as advance:
        make_curve(path, train_set, val_set, shares, train, seed=settings.seed, identity=identity, advance=advance)


FEW_CLIPS = 300
"""With fewer, training from nothing but the published weights learns little."""


def _say_what_is_small(model: str, train_set: ClipSet, val_set: ClipSet, *, started: bool) -> None:
    from qualivision.training.starting import CHOOSING_CLIPS

    if len(train_set) < FEW_CLIPS and not started:
        sys.stderr.write(
            f"train {model}: {len(train_set)} clips are few to learn from; set {model}.train.start in params.yaml to a "
            "trained checkpoint (README: Learn from your own ratings)\n"
        )
    if len(val_set) < CHOOSING_CLIPS:
        chosen = (
            "the last epoch is kept, whatever they say" if started else "the choice of an epoch by them is mostly luck"
        )
        sys.stderr.write(f"train {model}: val has {len(val_set)} clips, fewer than {CHOOSING_CLIPS}: {chosen}\n")


def _launch(model: str, processes: int, *, resume: bool) -> str:
    """The same command in several processes, a GPU for each. Raises TrainingError when they can't run, or fail."""
    import torch

    from qualivision.training.loop import TrainingError

    if torch.cuda.is_available() and processes > (gpus := torch.cuda.device_count()):
        raise TrainingError(f"{model}.train.processes in params.yaml is {processes}, but this machine has {gpus} GPUs")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, "-m", "qualivision.cli", "train", model, *(["--resume"] if resume else [])]
    if code := subprocess.run(command, check=False).returncode:
        raise TrainingError(f"train {model}: {processes} processes ended with exit code {code}; the cause stands above")
    return ""
