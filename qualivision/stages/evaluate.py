"""Stage `evaluate`: a checkpoint against the raters on the test split, and its behaviour on the best rated clips."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from qualivision import tracking
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, LabelError, has_mos, labels_path, ratings_path, videos_dir
from qualivision.prompts import PromptCache
from qualivision.settings import load_settings
from qualivision.stages import places
from qualivision.stages.encode import activations_cache

if TYPE_CHECKING:
    import pandas as pd

    from qualivision.behaviour.folder import Clip
    from qualivision.settings import Settings

log = logging.getLogger(__name__)
LEAST_CLIPS = 3


def run(model: str) -> str:
    """Score the test split and write the reports; returns their tables.

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
    from qualivision.training.loop import predict_with_distance

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
    predicted, distance = predict_with_distance(scored, test_set, batch_size=settings.model(model).train.batch_size)
    predictions[[f"{dimension}_predicted" for dimension in DIMENSIONS]] = predicted
    predictions["distance"] = distance
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
    behaviour = _behaviour(model, settings, test_set.table)
    tracking.log_evaluation(model, identity, metrics, places.report_dir(model))
    return "\n\n".join(part for part in (table(metrics), behaviour) if part)


def _behaviour(model: str, settings: Settings, rated: pd.DataFrame) -> str:
    """Write the behaviour report; returns its table, "" where `evaluate.behaviour_clips` is 0."""
    from qualivision.behaviour.measure import Measurement, measure
    from qualivision.behaviour.report import table, write_report
    from qualivision.progress import progress
    from qualivision.scoring import Scorer

    checkpoint = places.checkpoint_dir(model)
    clips = best_rated(rated, settings.evaluate.behaviour_clips)
    if not clips:  # the stage's outputs are there all the same, and say that nothing was measured
        write_report(Measurement(str(checkpoint), (), (), (), {}), places.report_dir(model))
        return ""
    with progress(f"evaluate {model}: behaviour", "scores") as advance:
        found = measure(Scorer(checkpoint), clips, settings.decode, advance=advance)
    for name, cause in found.skipped.items():
        log.warning("%s can't be used for the behaviour report: %s", name, cause)
    return table(write_report(found, places.report_dir(model)))


def best_rated(rated: pd.DataFrame, count: int) -> list[Clip]:
    """The cleanest clips of the test split, as far as raters say: the highest mean MOS, at most one of a prompt."""
    from qualivision.behaviour.folder import Clip

    order = rated.assign(mean=rated[list(MOS_COLUMNS)].mean(axis=1)).sort_values(
        ["mean", "video_name"], ascending=[False, True]
    )
    chosen = order.drop_duplicates("Prompt").head(count)
    folder = videos_dir(places.DATA, "test")
    return [
        Clip(name, folder / name, prompt) for name, prompt in zip(chosen["video_name"], chosen["Prompt"], strict=True)
    ]
