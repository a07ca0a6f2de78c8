"""Stage `evaluate`: a checkpoint against the raters on the test split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qualivision import tracking
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, LabelError, has_mos, labels_path, ratings_path, read_labels
from qualivision.prompts import PromptCache, embedded
from qualivision.settings import load_settings
from qualivision.stages import places
from qualivision.stages.encode import activations_cache
from qualivision.stages.member import said_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from qualivision.evaluation.report import MemberSide
    from qualivision.prompts import Embeddings
    from qualivision.settings import ModelSettings


def run(model: str) -> str:
    """Score the test split and write the report; returns its table.

    Args:
        model: its name in `models` or `ensembles` of `params.yaml`.

    Raises:
        LabelError: the test table has no MOS: it can be scored, not evaluated.
        CheckpointError, CacheError, MemberError
    """
    import pandas as pd

    from qualivision.evaluation.report import TrainSide, table, write_report
    from qualivision.training.checkpoint import checkpoint_id

    settings = load_settings()
    settings.check_built(model)
    read = {name: settings.model(name) for name in settings.made_of(model)}
    encoders = {of.text.encoder: PromptCache(places.prompts_dir(name), of.text.encoder) for name, of in read.items()}
    embeddings = [cache.read() for cache in encoders.values()]
    train_table = read_labels(labels_path(places.DATA, "train"))
    train_prompts: list[str] = train_table["Prompt"].tolist()
    test_table = read_labels(labels_path(places.DATA, "test"), require_mos=False)
    if not has_mos(test_table):
        raise LabelError(f"{labels_path(places.DATA, 'test')}: has no MOS, so the model can't be evaluated on it")
    identity = checkpoint_id(places.checkpoint_dir(model))
    if model in settings.ensembles:
        predicted, members = _by_members(model, test_table)
    else:
        predicted, members = _by_caches(model, read[model], embeddings[0]), []
    predictions = test_table.copy()
    predictions[[f"{dimension}_predicted" for dimension in DIMENSIONS]] = predicted
    ratings = ratings_path(places.DATA, "test")
    metrics = write_report(
        places.report_dir(model),
        predictions=predictions,
        train=TrainSide(
            train_embeddings=embedded(train_prompts, embeddings),
            train_mos=train_table[list(MOS_COLUMNS)].to_numpy(np.float32),
            train_prompts=train_prompts,
            test_embeddings=embedded(test_table["Prompt"].tolist(), embeddings),
        ),
        ratings=pd.read_csv(ratings) if ratings.exists() else None,
        resamples=settings.evaluate.bootstrap_resamples,
        seed=settings.evaluate.seed,
        model=model,
        checkpoint=identity,
        members=members,
    )
    tracking.log_evaluation(model, identity, metrics, places.report_dir(model))
    return table(metrics)


def _by_caches(model: str, settings: ModelSettings, embeddings: dict[str, Embeddings]) -> NDArray[np.float64]:
    """What a model says of the test clips, (N, 5) MOS, from its cached activations."""
    from qualivision.training.checkpoint import load_checkpoint
    from qualivision.training.data import ClipSet
    from qualivision.training.loop import predict

    clips = ClipSet(places.DATA, "test", activations_cache(model, settings.network), embeddings)
    scored, _ = load_checkpoint(places.checkpoint_dir(model), with_stem=False)
    return predict(scored, clips, batch_size=settings.train.batch_size)


def _by_members(model: str, clips: pd.DataFrame) -> tuple[NDArray[np.float64], list[MemberSide]]:
    """What an ensemble says of the clips of a label table, (N, 5) MOS, and what its members say."""
    from qualivision.evaluation.report import MemberSide
    from qualivision.training.checkpoint import members_of, weights_of
    from qualivision.training.mixing import mixed

    members = members_of(places.checkpoint_dir(model))
    said = said_of(clips, "test", [member.name for member in members])
    sides = [MemberSide(member.name, member.weights, of) for member, of in zip(members, said, strict=True)]
    return mixed(said, weights_of(members)), sides
