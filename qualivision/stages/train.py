"""Stage `train`: the trained part of a model, from cached activations and prompt embeddings."""

from __future__ import annotations

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
        *(f"{part.keys} {part.table.to_csv()} {part.content}" for part in (train_set, val_set)),
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
        )
        save_checkpoint(folder, card, trained.tensors)
        record.finish(checkpoint_id(folder))
    return f"train {model}: best epoch {trained.epoch} of {len(trained.history)}, validation score {trained.score:.3f}"
