"""Stage `train`: the trained part of a model, from cached activations and prompt embeddings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import qualivision
from qualivision import tracking
from qualivision.cache import file_hash, make_key
from qualivision.progress import progress
from qualivision.prompts import PromptCache, PromptEncoder
from qualivision.settings import load_settings
from qualivision.stages import places
from qualivision.stages.encode import activations_cache

if TYPE_CHECKING:
    from qualivision.models.quality import QualityModel


def run(model: str, *, resume: bool = False) -> str:
    """Train and write the checkpoint.

    Args:
        model: its name in `params.yaml`.
        resume: go on from an interrupted run of the same data and settings, if there is one.
    Raises:
        LabelError, CacheError, TrainingError
    """
    from qualivision.models.factory import base_hash, base_name, build_model, build_stem, caches_stem, has_stem
    from qualivision.models.text import TextTower
    from qualivision.training.checkpoint import ModelCard, checkpoint_id, save_checkpoint
    from qualivision.training.data import ClipSet
    from qualivision.training.loop import Trainer

    settings = load_settings().model(model)
    if settings.train.processes > 1 and "LOCAL_RANK" not in os.environ:
        return _launch(model, settings.train.processes, resume=resume)
    embeddings = PromptCache(places.prompts_dir(model), settings.text.encoder).read()
    network = settings.network
    stems = activations_cache(model, network)
    train_set, val_set = (ClipSet(places.DATA, split, stems, embeddings) for split in ("train", "val"))
    text_width = train_set.text.shape[1]
    folder = places.checkpoint_dir(model)
    # Everything that the weights follow from, our own code included.
    package = Path(qualivision.__file__).parent
    code = sorted((*package.glob("models/*.py"), *package.glob("training/*.py")))
    identity = make_key(
        settings.model_dump_json(),
        base_hash(model, network),
        *map(file_hash, code),
        *(embeddings[prompt].tobytes().hex() for prompt in sorted(embeddings)),
        *(f"{part.keys} {part.table.to_csv()} {part.content} {part.asked}" for part in (train_set, val_set)),
    )

    def build() -> QualityModel:
        stem = build_stem(model, network) if has_stem(model) and not caches_stem(model, network) else None
        text = TextTower(PromptEncoder(settings.text.encoder).sentences) if settings.text.train else None
        return build_model(model, network, text_width, stem=stem, text=text)

    trainer = Trainer(
        build,
        train_set,
        val_set,
        settings.train,
        state=folder / "trainer",
        identity=identity,
    )
    if not trainer.accelerator.is_main_process:  # it works along; what is said, logged and written is the first one's
        trainer.run(resume=resume, log=lambda epoch, metrics: None, advance=lambda done, total: None)
        return ""
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
            },
            forests=trained.forests,
        )
        save_checkpoint(folder, card, trained.tensors)
        record.finish(checkpoint_id(folder))
    return f"train {model}: best epoch {trained.epoch} of {len(trained.history)}, validation score {trained.score:.3f}"


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
