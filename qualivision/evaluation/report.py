"""The report on one model: its numbers, what they are measured against, its predictions, and two pictures.

Owns the files of an evaluation and their layout (`metrics.json`, `predictions.csv`, `scatter.png`,
`comparison.png`). Does not score clips, compute a metric itself or read settings. Equal input gives equal
bytes: nothing carries a date. Importing this loads neither matplotlib nor scikit-learn nor SciPy; the first
report does.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.evaluation.baselines import no_video_baseline, noise_ceiling
from qualivision.evaluation.metrics import MEAN, METRICS, agreement, bootstrap_over_prompts
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, MOS_MAX, MOS_MIN, generator_of, has_mos

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PREDICTED_COLUMNS: Final = tuple(f"{dimension}_predicted" for dimension in DIMENSIONS)

_DECIMALS: Final = 4
_NO_CEILING: Final = "not known, no single ratings"
_NO_VIDEO_METRICS: Final = ("SROCC", "PLCC", "VQualA")
# Okabe and Ito's palette, told apart with every common colour blindness; each has its own marker.
_STYLES: Final = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
)
_OTHERS: Final = ("#7A7A7A", "X")
_UNKNOWN: Final = ("#222222", ".")
_BARS: Final = {"model": "#4FA0D8", "floor": "#C9CDD3"}  # light enough for the interval and numbers on it
_CEILING_COLOUR: Final = "#D55E00"
_INK: Final = "#222222"
_SOFT_INK: Final = "#555B64"
_GRID: Final = "#E6E8EB"
_DIAGONAL: Final[dict[str, Any]] = {"color": "#8A8F98", "linewidth": 1.2, "linestyle": (0, (4, 3))}
# On top of matplotlib's own defaults, so that a matplotlibrc on this machine changes nothing.
_LOOK: Final = {
    "font.size": 11.0,
    "axes.titlesize": 12.0,
    "axes.edgecolor": "#8A8F98",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a "$" in a model's or generator's name is no formula
}


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


def write_report(
    folder: Path,
    *,
    predictions: pd.DataFrame,
    train: TrainSide,
    ratings: pd.DataFrame | None,
    resamples: int,
    seed: int,
    model: str,
) -> dict[str, Any]:
    """Judge the predictions of a test split and write the report; each file appears whole or not at all.

    Args:
        folder: where to write; made if need be. Files of an earlier report are replaced.
        predictions: a row per clip: `video_name`, `Prompt`, `<D>_MOS` and `<D>_predicted` of the five
            dimensions in MOS units, and `generator` where it is known. More columns are kept in
            `predictions.csv`.
        train: for the no-video baseline; its test embeddings row-aligned with `predictions`.
        ratings: the single ratings of the split (`labels.ratings_path`), None where there are none. Only
            rows of predicted clips count, where it has a `video_name`.
        resamples: of the bootstrap over prompts.
        seed: of the bootstrap.
        model: the name of the model, for the titles.
    Returns:
        What `metrics.json` holds, rounded to 4 decimals, None for what does not exist. Per dimension and
        "mean" the five metrics; "intervals" with [low, high] for each; "no_video"; "ceiling" (see
        `noise_ceiling`; None without single ratings); "counts".
    Raises:
        ValueError: no MOS (such a split can be scored but not evaluated), a missing column, values that
            are NaN, rows that do not fit together, fewer than 3 rows or 2 prompts.
    """
    _check_predictions(predictions, train)
    metrics = _rounded(_judge(predictions, train, ratings, resamples, seed, model))
    folder.mkdir(parents=True, exist_ok=True)
    with _whole(folder / "predictions.csv") as path:
        # As float64, for float32 would print its rounding error.
        rows = predictions.astype(dict.fromkeys(PREDICTED_COLUMNS, float))
        rows = rows.round(dict.fromkeys(PREDICTED_COLUMNS, _DECIMALS))
        rows.to_csv(path, index=False, lineterminator="\n")
    scatter = folder / "scatter.png"
    _save_picture(scatter, lambda figure: _draw_scatter(figure, predictions, metrics, model), (13, 9))
    _save_picture(folder / "comparison.png", lambda figure: _draw_comparison(figure, metrics, model), (11, 6))
    # Last, so that new numbers never lie beside old pictures.
    with _whole(folder / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")
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
        f"{'':<12} {srocc_title:<23} {'PLCC':>6} {'KROCC':>6} {'RMSE':>6} {'VQualA':>7}"
        f" {'no-video SROCC':>15} {'ceiling SROCC':>14}",
    ]
    for name in (*DIMENSIONS, MEAN):
        found, interval = metrics[name], intervals[name]["SROCC"]
        srocc = _number(found["SROCC"]) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
        lines.append(
            f"{name:<12} {srocc:<23} {_number(found['PLCC']):>6} {_number(found['KROCC']):>6}"
            f" {_number(found['RMSE']):>6} {_number(found['VQualA']):>7}"
            f" {_number(metrics['no_video'][name]['SROCC']):>15} {_number(_ceiling_srocc(ceiling, name)):>14}"
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
    bootstrap = bootstrap_over_prompts(predicted, rated, prompts, resamples=resamples, seed=seed)
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
        "no_video": _by_dimension(floor, rated, _NO_VIDEO_METRICS),
        "ceiling": None if ratings is None else noise_ceiling(ratings),
        "counts": {
            "rows": len(predictions),
            "prompts": bootstrap.prompts,
            # Above 0, the no-video baseline has seen these prompts' labels: the split leaks.
            "prompts_also_in_training": len(set(prompts) & set(train.train_prompts)),
            "resamples": bootstrap.resamples,
        },
    }


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


def _ceiling_srocc(ceiling: dict[str, Any] | None, name: str) -> float | None:
    """The SROCC that no model should pass: of the truth where it is known, else estimated from raters."""
    if ceiling is None:
        return None
    if ceiling[name]["truth"] is not None:
        return ceiling[name]["truth"]["SROCC"]
    return None if ceiling[name]["raters"] is None else ceiling[name]["raters"]["bound_SROCC"]


def _ceiling_source(ceiling: dict[str, Any] | None) -> str:
    """What the ceilings come from, in words."""
    if all(_ceiling_srocc(ceiling, name) is None for name in DIMENSIONS):
        return _NO_CEILING
    truths = [ceiling is not None and ceiling[name]["truth"] is not None for name in DIMENSIONS]
    if all(truths):
        return "raters' mean against the truth"
    return "truth where known, else single ratings" if any(truths) else "estimated from single ratings"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _notes(metrics: dict[str, Any]) -> list[str]:
    """What a reader must know to read the numbers right."""
    counts, left_out = metrics["counts"], metrics["intervals"]["left_out"][MEAN]
    notes = [
        f"Interval: bootstrap over prompts, {counts['resamples']} resamples. No-video: the prompt alone.",
        f"Ceiling: {_ceiling_source(metrics['ceiling'])}.",
    ]
    if any(metrics[name]["SROCC"] is None for name in DIMENSIONS):
        notes.append("A dash for the model: its predictions or the ratings are constant; nothing correlates with that.")
    if left_out:
        notes.append(f"Left out of intervals: {left_out} resamples in which a column is constant.")
    if counts["prompts_also_in_training"]:
        notes.append(f"Leak: {counts['prompts_also_in_training']} of these prompts are in the training split too.")
    return notes


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block succeeds, and is gone if it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _save_picture(path: Path, draw: Callable[[Figure], None], size_inches: tuple[float, float]) -> None:
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # A context, and no pyplot: neither the backend nor the style of the calling program changes.
    with matplotlib.style.context(["default", _LOOK]), _whole(path) as temporary:
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
        figure = Figure(figsize=size_inches, dpi=120, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_scatter(figure: Figure, predictions: pd.DataFrame, metrics: dict[str, Any], model: str) -> None:
    """Predicted against rated MOS, a panel per dimension; the sixth place holds the legend."""
    generators, styles = _generator_styles(predictions)
    predicted = predictions[list(PREDICTED_COLUMNS)].to_numpy(dtype=np.float64)
    # One scale for all panels and both axes: a diagonal that is one, even where a prediction leaves 1 to 5.
    low, high = min(MOS_MIN, predicted.min()) - 0.2, max(MOS_MAX, predicted.max()) + 0.2
    panels = figure.subplots(2, 3).ravel()
    for i, (axes, dimension) in enumerate(zip(panels, DIMENSIONS, strict=False)):
        axes.plot([low, high], [low, high], **_DIAGONAL)
        for generator, (colour, marker) in styles.items():
            rows = generators == generator
            rated = predictions.loc[rows, f"{dimension}_MOS"]
            # MOS of few raters are tied: alpha shows how many lie on one place, where jitter would move them.
            axes.scatter(rated, predicted[rows, i], s=36, alpha=0.55, c=colour, marker=marker, linewidths=0)
        found = metrics[dimension]
        numbers = f"SROCC {_number(found['SROCC'])}   PLCC {_number(found['PLCC'])}"
        axes.set_title(dimension, loc="left", fontsize=14, fontweight="bold")
        axes.set_title(numbers, loc="right", fontsize=11)
        axes.set(xlim=(low, high), ylim=(low, high), xticks=range(1, 6), yticks=range(1, 6), aspect="equal")
        axes.set(xlabel="rated MOS", ylabel="predicted MOS")
        axes.grid(color=_GRID, linewidth=0.8)
    _draw_scatter_key(panels[-1], styles, metrics["counts"])
    figure.suptitle(f"{model}: predicted against rated MOS", fontsize=16, fontweight="bold")


def _draw_scatter_key(axes: Axes, styles: dict[str, tuple[str, str]], counts: dict[str, int]) -> None:
    from matplotlib.lines import Line2D

    axes.set_axis_off()
    if styles.keys() != {""}:
        handles = [
            Line2D([], [], color=colour, marker=marker, markersize=8, linestyle="", label=name or "not known")
            for name, (colour, marker) in styles.items()
        ]
        bold = {"size": 13, "weight": "bold"}
        axes.legend(
            handles=handles,
            loc="upper left",
            frameon=False,
            fontsize=12,
            title="Generator",
            title_fontproperties=bold,
            alignment="left",
        )
    lines = (
        f"{counts['rows']} clips of {counts['prompts']} prompts.",
        "Dashed: predicted = rated.",
        "A darker mark: more clips in one place.",
    )
    axes.text(0.04, 0.02, "\n".join(lines), transform=axes.transAxes, color=_SOFT_INK, linespacing=1.5)


def _generator_styles(
    predictions: pd.DataFrame,
) -> tuple[NDArray[np.object_], dict[str, tuple[str, str]]]:
    """The generator of each clip, and the colour and marker of each generator, by name.

    From the column `generator`, else from the clips' names where all are so named. More generators than
    there are colours: the rarest are drawn as "others". "" stands for a clip whose generator is not known.
    """
    if "generator" in predictions:
        known = predictions["generator"].notna()
        names = [str(name) if there else "" for name, there in zip(predictions["generator"], known, strict=True)]
    else:
        names = [generator_of(str(name)) for name in predictions["video_name"]]
        if "" in names or not 2 <= len(set(names)) <= len(_STYLES):  # named by another scheme
            names = [""] * len(names)
    ranked = sorted(set(names) - {""}, key=lambda name: (-names.count(name), name))
    shown = sorted(ranked if len(ranked) <= len(_STYLES) else ranked[: len(_STYLES) - 1])
    styles = dict(zip(shown, _STYLES, strict=False))
    names = [name if name in styles or not name else "others" for name in names]
    if "others" in names:
        styles.setdefault("others", _OTHERS)
    if "" in names:
        styles[""] = _UNKNOWN if styles else _STYLES[0]
    return np.array(names, dtype=object), styles


def _draw_comparison(figure: Figure, metrics: dict[str, Any], model: str) -> None:
    """SROCC per dimension: the model with its interval, beside the no-video baseline, below the ceiling."""
    axes = figure.subplots()
    names = (*DIMENSIONS, MEAN)
    for place, name in enumerate(names):
        floor, score = metrics["no_video"][name]["SROCC"], metrics[name]["SROCC"]
        _draw_bar(axes, place - 0.19, floor, "floor")
        _draw_bar(axes, place + 0.19, score, "model", metrics["intervals"][name]["SROCC"])
        ceiling = _ceiling_srocc(metrics["ceiling"], name)
        if ceiling is not None:
            axes.hlines(ceiling, place - 0.41, place + 0.41, color=_CEILING_COLOUR, linewidth=2.6)
            axes.annotate(
                f"{ceiling:.2f}",
                (place - 0.41, ceiling),
                (0, 4),
                textcoords="offset points",
                color=_CEILING_COLOUR,
            )
    axes.axhline(0, color="#8A8F98", linewidth=1)
    axes.axvline(len(DIMENSIONS) - 0.5, color="#C9CDD3", linewidth=1, linestyle=(0, (2, 3)))
    axes.set_xticks(range(len(names)), [*DIMENSIONS, "Mean of five"], fontsize=12)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel("SROCC", fontsize=12)
    axes.set_ylim(top=1.05)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    title = f"{model}: agreement with raters, and what the prompt alone reaches"
    axes.set_title(title, loc="left", fontsize=16, fontweight="bold", pad=38)
    _draw_comparison_key(axes, metrics, model)


def _draw_bar(axes: Axes, place: float, value: float | None, style: str, interval: list[float] | None = None) -> None:
    """One bar, its number at its foot, clear of the interval; a bar too short for it has it at its end."""
    if value is None:
        axes.annotate("none", (place, 0), (0, 4), textcoords="offset points", ha="center", color=_SOFT_INK)
        return
    axes.bar(place, value, 0.36, color=_BARS[style])
    up, long = value >= 0, abs(value) > 0.1
    axes.annotate(
        f"{value:.2f}",
        (place, 0 if long else value),
        (0, 5 if up else -5),
        textcoords="offset points",
        ha="center",
        va="bottom" if up else "top",
    )
    if interval is not None:
        # A percentile interval need not hold the value itself, and an error bar has no negative arm.
        arms = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
        axes.errorbar(place, value, yerr=arms, color=_INK, linewidth=1.6, capsize=5, capthick=1.6)


def _draw_comparison_key(axes: Axes, metrics: dict[str, Any], model: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    interval = f"{100 * metrics['intervals']['confidence']:g} % interval"
    handles: list[Patch | Line2D] = [
        Patch(color=_BARS["floor"], label="prompt alone, no video"),
        Patch(color=_BARS["model"], label=model),
        Line2D([], [], color=_INK, marker="|", markersize=12, markeredgewidth=1.6, linestyle="", label=interval),
    ]
    source = _ceiling_source(metrics["ceiling"])
    if source == _NO_CEILING:
        note = f"ceiling: {source}"
        axes.text(1.0, 1.03, note, transform=axes.transAxes, ha="right", va="bottom", color=_SOFT_INK)
    else:
        handles.append(Line2D([], [], color=_CEILING_COLOUR, linewidth=2.6, label=f"ceiling: {source}"))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=len(handles),
        frameon=False,
        borderaxespad=0.3,
        columnspacing=1.6,
    )
