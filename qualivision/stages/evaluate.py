"""Stage `evaluate`: a checkpoint against the raters on the test split, and its behaviour on the best rated clips."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from qualivision import tracking
from qualivision.labels import (
    DIMENSIONS,
    MOS_COLUMNS,
    LabelError,
    has_mos,
    labels_path,
    ratings_path,
    read_labels,
    videos_dir,
)
from qualivision.prompts import PromptCache, embedded
from qualivision.settings import load_settings
from qualivision.stages import places
from qualivision.stages.encode import activations_cache
from qualivision.stages.member import said_of

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from qualivision.behaviour.folder import Clip
    from qualivision.evaluation.report import MemberSide
    from qualivision.prompts import Embeddings
    from qualivision.settings import ModelSettings, Settings

log = logging.getLogger(__name__)
LEAST_CLIPS = 3


def run(model: str) -> str:
    """Score the test split and write the reports; returns their tables.

    Args:
        model: its name in `models` or `ensembles` of `params.yaml`.

    Raises:
        LabelError: the test table has no MOS, or fewer than 3 clips: it can be scored, not evaluated.
        CheckpointError, CacheError, MemberError
    """
    import pandas as pd

    from qualivision.evaluation.curve import read_curve
    from qualivision.evaluation.report import WITHOUT_PROMPT, TrainSide, table, write_report
    from qualivision.training.checkpoint import checkpoint_id
    from qualivision.training.curve import CURVE

    settings = load_settings()
    settings.check_built(model)
    read = {name: settings.model(name) for name in settings.made_of(model)}
    encoders = {of.text.encoder: PromptCache(places.prompts_dir(name), of.text.encoder) for name, of in read.items()}
    embeddings = [cache.read() for cache in encoders.values()]
    train_table = read_labels(labels_path(places.DATA, "train"))
    train_prompts: list[str] = train_table["Prompt"].tolist()
    test_table = _rated_test_clips()
    checkpoint = places.checkpoint_dir(model)
    identity = checkpoint_id(checkpoint)
    members: list[MemberSide] = []
    predictions = test_table.copy()
    if model in settings.ensembles:
        predicted, distance, members = _by_members(model, test_table)
    else:
        nothing = embedded(train_prompts, embeddings).mean(0)  # a prompt that says what all of them say
        predicted, distance, blind = _by_caches(model, read[model], embeddings[0], nothing)
        predictions[list(WITHOUT_PROMPT)] = blind
    predictions[[f"{dimension}_predicted" for dimension in DIMENSIONS]] = predicted
    predictions["distance"] = distance
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
        curve=read_curve(checkpoint / CURVE),  # an ensemble has none
        members=members,
    )
    behaviour = _behaviour(model, settings, test_table)
    tracking.log_evaluation(model, identity, metrics, places.report_dir(model))
    return "\n\n".join(part for part in (table(metrics), behaviour) if part)


def _rated_test_clips() -> pd.DataFrame:
    path = labels_path(places.DATA, "test")
    table = read_labels(path, require_mos=False)
    if not has_mos(table):
        raise LabelError(f"{path}: has no MOS, so the model can't be evaluated on it")
    if len(table) < LEAST_CLIPS:
        raise LabelError(
            f"{path}: has {len(table)} clips, and no correlation with fewer than {LEAST_CLIPS}; give the test split a "
            "larger share"
        )
    return table


def _by_caches(
    model: str, settings: ModelSettings, embeddings: dict[str, Embeddings], nothing: Embeddings
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """What a model says of the test clips, from its cached activations.

    Returns:
        (N, 5) MOS, (N,) distances, and (N, 5) MOS of the same clips against `nothing` in place of their prompts.
    """
    import torch

    from qualivision.training.checkpoint import load_checkpoint
    from qualivision.training.data import ClipSet
    from qualivision.training.loop import predict, predict_with_distance

    clips = ClipSet(places.DATA, "test", activations_cache(model, settings.network), embeddings)
    scored, _ = load_checkpoint(places.checkpoint_dir(model), with_stem=False)
    size = settings.train.batch_size
    predicted, distance = predict_with_distance(scored, clips, batch_size=size)
    unit = torch.from_numpy(nothing / np.linalg.norm(nothing))
    return predicted, distance, predict(scored, clips, text=unit, batch_size=size)


def _by_members(model: str, clips: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64], list[MemberSide]]:
    """What an ensemble says of the clips of a label table, (N, 5) MOS, and (N,) distances; and what its members say."""
    from qualivision.evaluation.report import MemberSide
    from qualivision.training.checkpoint import members_of, weights_of
    from qualivision.training.mixing import mixed

    members = members_of(places.checkpoint_dir(model))
    said = said_of(clips, "test", [member.name for member in members])
    sides = [MemberSide(member.name, member.weights, of) for member, of in zip(members, said.mos, strict=True)]
    return mixed(said.mos, weights_of(members)), said.distance.max(0), sides


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
