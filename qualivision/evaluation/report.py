"""The report on one model: its numbers, what they are measured against, its predictions, and two or three pictures.

Owns the files of an evaluation and their layout (`metrics.json`, `predictions.csv`, `scatter.png`, `comparison.png`,
and `learning_curve.png` where training made a curve). Does not score clips, compute a metric itself, draw
(`pictures.py`, `curve.py`) or read settings. Equal input gives equal bytes: nothing carries a date. Importing this
loads neither matplotlib nor scikit-learn nor SciPy; the first report does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.cache import write_atomically
from qualivision.depth import FAMILIAR
from qualivision.evaluation import pictures
from qualivision.evaluation.baselines import ceiling_source, ceiling_srocc, no_video_baseline, noise_ceiling
from qualivision.evaluation.curve import advice, learning_curve
from qualivision.evaluation.metrics import (
    CONFIDENCE,
    MEAN,
    METRICS,
    PREDICTED_COLUMNS,
    Bootstrap,
    agreement,
    bootstrap_over_prompts,
    shown,
)
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, has_mos

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import NDArray

_DECIMALS: Final = 4
LEARNING_CURVE: Final = "learning_curve.png"
FEW_PROMPTS: Final = 10
"""With fewer test prompts the table says to look at the intervals first."""
_BASELINE_METRICS: Final = ("SROCC", "PLCC", "VQualA")
WITHOUT_PROMPT: Final = tuple(f"{dimension}_without_prompt" for dimension in DIMENSIONS)
"""What the model says of a clip when it is not told the prompt, where that is known."""


@dataclass(frozen=True, eq=False)
class TrainSide:
    """What the no-video baseline learns from, and the embeddings of the clips that it predicts.

    Attributes:
        train_embeddings: (N, D) prompt embedding per training clip.
        train_mos: (N, 5) MOS of the training clips, columns in the order of `DIMENSIONS`.
        train_prompts: N prompts of the training clips.
        test_embeddings: (M, D) prompt embedding per test clip, in the order of the predictions.
    """

    train_embeddings: NDArray[np.floating[Any]]
    train_mos: NDArray[np.floating[Any]]
    train_prompts: Sequence[str]
    test_embeddings: NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class MemberSide:
    """A member of an ensemble, to be shown beside it.

    Attributes:
        name: which of our models it is.
        weights: by dimension, its share in the ensemble's score.
        predicted: (N, 5) MOS that it gives by itself, in the order of the predictions.
    """

    name: str
    weights: Mapping[str, float]
    predicted: NDArray[np.floating[Any]]


def write_report(
    folder: Path,
    *,
    predictions: pd.DataFrame,
    train: TrainSide,
    ratings: pd.DataFrame | None,
    resamples: int,
    seed: int,
    model: str,
    checkpoint: str,
    curve: dict[str, Any] | None = None,
    members: Sequence[MemberSide] = (),
) -> dict[str, Any]:
    """Judge the predictions of a test split and write the report; each file appears whole or not at all.

    Args:
        folder: where to write; made if need be. Files of an earlier report are replaced.
        predictions: a row per clip: `video_name`, `Prompt`, `<D>_MOS` and `<D>_predicted` of the five
            dimensions in MOS units, and `distance` (from the training clips) and `generator` where they are
            known. More columns are kept in `predictions.csv`.
        train: for the no-video baseline; its test embeddings row-aligned with `predictions`.
        ratings: the single ratings of the split (`labels.ratings_path`), None where there are none. Only
            rows of predicted clips count, where it has a `video_name`.
        resamples: of the bootstrap over prompts.
        seed: of the bootstrap.
        model: the name of the model, for the titles.
        checkpoint: the hash of what predicted (`checkpoint_id`), so that nobody takes the report for another's.
        curve: the learning curve (`curve.read_curve`), if training made one; else a picture of an older one is removed.
        members: of an ensemble.
    Returns:
        What `metrics.json` holds, rounded to 4 decimals, None for what does not exist. Per dimension and
        "mean" the five metrics; "intervals" with [low, high] for each; "no_video"; "video_only" (None without the
        columns `WITHOUT_PROMPT`); "levels" (MAE, and the spread of predictions and ratings); "ceiling" (see
        `noise_ceiling`; None without single ratings); "counts"; "unfamiliar", the share of clips unlike those
        of training (None without distances); "learning_curve" where there is one; of an ensemble "members",
        each with its "weights" and its own "SROCC" by dimension and as mean.
    Raises:
        ValueError: no MOS (such a split can be scored but not evaluated), a missing column, values that
            are NaN, rows that do not fit together, fewer than 3 rows or 2 training prompts.
    """
    _check_predictions(predictions, train)
    judged = _judge(predictions, train, ratings, resamples, seed, model)
    if members:
        judged["members"] = _members(members, predictions)
    metrics = {**_rounded(judged), "checkpoint": checkpoint}
    if curve is not None:
        metrics["learning_curve"] = curve
    # As float64, for float32 would print its rounding error.
    rows = predictions.astype(dict.fromkeys(PREDICTED_COLUMNS, float))
    rows = rows.round(dict.fromkeys((*PREDICTED_COLUMNS, "distance"), _DECIMALS))
    files = {
        "predictions.csv": rows.to_csv(index=False, lineterminator="\n").encode(),
        "scatter.png": pictures.scatter(predictions, metrics, model),
        "comparison.png": pictures.comparison(metrics, model),
        "metrics.json": (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode(),
    }
    if curve is None:
        (folder / LEARNING_CURVE).unlink(missing_ok=True)
    else:
        files = {LEARNING_CURVE: learning_curve(curve, model), **files}
    for name, content in files.items():  # the numbers last, so that new ones never lie beside old pictures
        write_atomically(folder / name, content)
    return metrics


def table(metrics: dict[str, Any]) -> str:
    """The report as plain text for a terminal, at most 110 columns wide; "-" for what does not exist.

    Args:
        metrics: as `write_report` returns them, or as read from `metrics.json`.
    """
    counts, intervals, ceiling = metrics["counts"], metrics["intervals"], metrics["ceiling"]
    srocc_title = f"SROCC [{100 * intervals['confidence']:g} % interval]"
    lines = [
        f"{metrics['model']}: {counts['rows']} clips of {counts['prompts']} prompts",
        "",
        f"{'':<12} {srocc_title:<23} {'PLCC':>6} {'KROCC':>6} {'MAE':>6} {'VQualA':>7}   SROCC: {'no video':>8}"
        f" {'no prompt':>9} {'ceiling':>8}",
    ]
    blind = metrics["video_only"] or {key: {"SROCC": None} for key in (*DIMENSIONS, MEAN)}
    for name in (*DIMENSIONS, MEAN):
        found, interval = metrics[name], intervals[name]["SROCC"]
        srocc = shown(found["SROCC"]) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
        lines.append(
            f"{name:<12} {srocc:<23} {shown(found['PLCC']):>6} {shown(found['KROCC']):>6}"
            f" {shown(metrics['levels'][name]['MAE']):>6} {shown(found['VQualA']):>7}"
            f" {shown(metrics['no_video'][name]['SROCC']):>18} {shown(blind[name]['SROCC']):>9}"
            f" {shown(ceiling_srocc(ceiling, name)):>8}"
        )
    return "\n".join([*lines, "", *_notes(metrics)])


def _check_predictions(predictions: pd.DataFrame, train: TrainSide) -> None:
    if not has_mos(predictions):
        missing = [column for column in MOS_COLUMNS if column not in predictions]
        raise ValueError(f"a split without MOS can be scored but not evaluated: column {', '.join(missing)} is missing")
    missing = [column for column in ("video_name", "Prompt", *PREDICTED_COLUMNS) if column not in predictions]
    if missing:
        raise ValueError(f"the predictions lack column {', '.join(missing)}")
    if len(train.test_embeddings) != len(predictions):
        raise ValueError(f"{len(train.test_embeddings)} test embeddings, {len(predictions)} predictions: need one each")


def _judge(
    predictions: pd.DataFrame,
    train: TrainSide,
    ratings: pd.DataFrame | None,
    resamples: int,
    seed: int,
    model: str,
) -> dict[str, Any]:
    """Everything in `metrics.json`, unrounded."""
    rated = predictions[list(MOS_COLUMNS)].to_numpy(dtype=np.float64)
    predicted = predictions[list(PREDICTED_COLUMNS)].to_numpy(dtype=np.float64)
    prompts = predictions["Prompt"].tolist()
    floor = no_video_baseline(train.train_embeddings, train.train_mos, train.train_prompts, train.test_embeddings)
    bootstrap = _intervals(predicted, rated, prompts, resamples, seed)
    if ratings is not None and "video_name" in ratings:
        ratings = ratings[ratings["video_name"].isin(predictions["video_name"])]
    return {
        "model": model,
        **_by_dimension(predicted, rated, METRICS),
        "intervals": {
            "confidence": bootstrap.confidence,
            "left_out": bootstrap.left_out,
            **bootstrap.intervals,
        },
        "no_video": _by_dimension(floor, rated, _BASELINE_METRICS),
        "video_only": _video_only(predictions, rated),
        "levels": _levels(predicted, rated),
        "ceiling": None if ratings is None else noise_ceiling(ratings),
        "unfamiliar": _unfamiliar(predictions),
        "counts": {
            "rows": len(predictions),
            "prompts": bootstrap.prompts,
            # Above 0, the no-video baseline has seen these prompts' labels: the split leaks.
            "prompts_also_in_training": len(set(prompts) & set(train.train_prompts)),
            "resamples": bootstrap.resamples,
        },
    }


def _video_only(predictions: pd.DataFrame, rated: NDArray[np.float64]) -> dict[str, dict[str, float | None]] | None:
    if not set(WITHOUT_PROMPT) <= set(predictions.columns):
        return None
    return _by_dimension(predictions[list(WITHOUT_PROMPT)].to_numpy(np.float64), rated, _BASELINE_METRICS)


def _levels(predicted: NDArray[np.float64], rated: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """How far off predictions are, and how wide they and the ratings are spread (standard deviation); MOS units."""
    columns = {
        "MAE": np.abs(predicted - rated).mean(0),
        "predicted_spread": predicted.std(0),
        "rated_spread": rated.std(0),
    }
    return {name: {key: float(values[i]) for key, values in columns.items()} for i, name in enumerate(DIMENSIONS)} | {
        MEAN: {key: float(values.mean()) for key, values in columns.items()}
    }


def _unfamiliar(predictions: pd.DataFrame) -> float | None:
    """The share of clips that are unlike those of training; a distance that is no number is none of theirs."""
    if "distance" not in predictions:
        return None
    return 1 - float((predictions["distance"] <= FAMILIAR).mean())


def _intervals(
    predicted: NDArray[np.float64], rated: NDArray[np.float64], prompts: list[str], resamples: int, seed: int
) -> Bootstrap:
    """The bootstrap over prompts; without any interval where there is only one prompt."""
    if len(set(prompts)) > 1:
        return bootstrap_over_prompts(predicted, rated, prompts, resamples=resamples, seed=seed)
    names = (*DIMENSIONS, MEAN)
    nothing: dict[str, tuple[float, float] | None] = dict.fromkeys(METRICS)
    return Bootstrap({name: dict(nothing) for name in names}, dict.fromkeys(names, 0), 0, 1, CONFIDENCE)


def _members(members: Sequence[MemberSide], predictions: pd.DataFrame) -> dict[str, Any]:
    rated = predictions[list(MOS_COLUMNS)].to_numpy(dtype=np.float64)
    found = {}
    for member in members:
        figures = _by_dimension(np.asarray(member.predicted, np.float64), rated, ("SROCC",))
        srocc = {name: figure["SROCC"] for name, figure in figures.items()}
        found[member.name] = {"weights": dict(member.weights), "SROCC": srocc}
    return found


def _by_dimension(
    predicted: NDArray[np.float64], rated: NDArray[np.float64], metrics: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """(N, 5) twice -> dimension -> metric -> number; "mean" over the five, None where one has none."""
    found: dict[str, dict[str, float | None]] = {}
    for i, dimension in enumerate(DIMENSIONS):
        named = agreement(predicted[:, i], rated[:, i]).named()
        found[dimension] = {metric: named[metric] for metric in metrics}
    found[MEAN] = {}
    for metric in metrics:
        numbers = [found[dimension][metric] for dimension in DIMENSIONS]
        known = [number for number in numbers if number is not None]
        found[MEAN][metric] = float(np.mean(known)) if len(known) == len(numbers) else None
    return found


def _rounded(value: Any) -> Any:
    """The same tree, fit for JSON: floats to 4 decimals, NaN as None, tuples as lists."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(value, _DECIMALS) + 0.0 if np.isfinite(value) else None  # + 0.0 turns -0.0 into 0.0
    return value


def _notes(metrics: dict[str, Any]) -> list[str]:
    """What a reader must know to read the numbers right."""
    counts, left_out = metrics["counts"], metrics["intervals"]["left_out"][MEAN]
    one = "Interval: none, for from the clips of one prompt nothing can be said about others."
    several = f"Interval: bootstrap over prompts, {counts['resamples']} resamples."
    members = [f"{name} {shown(of['SROCC'][MEAN])}" for name, of in metrics.get("members", {}).items()]
    levels = metrics["levels"]
    notes = [
        *([f"Members by themselves, mean SROCC: {', '.join(members)}."] if members else []),
        f"{one if counts['prompts'] < 2 else several} No video: the prompt alone. No prompt: the clip alone.",
        "Spread (standard deviation) of scores / of ratings:",
        ", ".join(
            f"{name} {levels[name]['predicted_spread']:.2f}/{levels[name]['rated_spread']:.2f}" for name in DIMENSIONS
        )
        + ".",
        f"Ceiling: {ceiling_source(metrics['ceiling'])}.",
    ]
    if metrics.get("unfamiliar") is not None:  # reports of earlier versions have none
        notes.append(f"Unlike what the model was trained on: {100 * metrics['unfamiliar']:.3g} % of these clips.")
    if any(metrics[name]["SROCC"] is None for name in DIMENSIONS):
        notes.append("A dash for the model: its predictions or the ratings are constant; nothing correlates with that.")
    if left_out:
        notes.append(f"Left out of intervals: {left_out} resamples in which a column is constant.")
    if counts["prompts_also_in_training"]:
        notes.append(f"Leak: {counts['prompts_also_in_training']} of these prompts are in the training split too.")
    if 1 < counts["prompts"] < FEW_PROMPTS:
        notes.append(f"{counts['prompts']} prompts are few: look at the intervals before the figures.")
    if "learning_curve" in metrics:
        notes += advice(metrics["learning_curve"])
    return notes
