"""Stage `evaluate`: a checkpoint against the raters on the test split."""

from __future__ import annotations

from qualivision import tracking
from qualivision.labels import DIMENSIONS, LabelError, has_mos, labels_path, ratings_path
from qualivision.prompts import PromptCache
from qualivision.settings import load_settings
from qualivision.stages import places
from qualivision.stages.encode import activations_cache

LEAST_CLIPS = 3


def run(model: str) -> str:
    """Score the test split and write the report; returns its table.

    Raises:
        LabelError: the test table has no MOS, or fewer than 3 clips: it can be scored, not evaluated.
        CheckpointError, CacheError
    """
    import pandas as pd

    from qualivision.evaluation.curve import read_curve
    from qualivision.evaluation.report import TrainSide, table, write_report
    from qualivision.training.checkpoint import checkpoint_id, load_checkpoint
    from qualivision.training.curve import CURVE
    from qualivision.training.data import ClipSet
    from qualivision.training.loop import predict

    settings = load_settings()
    embeddings = PromptCache(places.prompts_dir(model), settings.model(model).text.encoder).read()
    stems = activations_cache(model, settings.model(model).network)
    train_set, test_set = (ClipSet(places.DATA, split, stems, embeddings) for split in ("train", "test"))
    if not has_mos(test_set.table):
        raise LabelError(f"{labels_path(places.DATA, 'test')}: has no MOS, so the model can't be evaluated on it")
    if len(test_set) < LEAST_CLIPS:
        raise LabelError(
            f"{labels_path(places.DATA, 'test')}: has {len(test_set)} clips, and no correlation with fewer than "
            f"{LEAST_CLIPS}; give the test split a larger share"
        )
    checkpoint = places.checkpoint_dir(model)
    scored, _ = load_checkpoint(checkpoint, with_stem=False)
    identity = checkpoint_id(checkpoint)
    predictions = test_set.table.copy()
    predictions[[f"{dimension}_predicted" for dimension in DIMENSIONS]] = predict(
        scored, test_set, batch_size=settings.model(model).train.batch_size
    )
    ratings = ratings_path(places.DATA, "test")
    metrics = write_report(
        places.report_dir(model),
        predictions=predictions,
        train=TrainSide(
            train_embeddings=train_set.text.numpy(),
            train_mos=train_set.mos.numpy(),
            train_prompts=train_set.prompts,
            test_embeddings=test_set.text.numpy(),
        ),
        ratings=pd.read_csv(ratings) if ratings.exists() else None,
        resamples=settings.evaluate.bootstrap_resamples,
        seed=settings.evaluate.seed,
        model=model,
        checkpoint=identity,
        curve=read_curve(checkpoint / CURVE),
    )
    tracking.log_evaluation(model, identity, metrics, places.report_dir(model))
    return table(metrics)
