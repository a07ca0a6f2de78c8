"""The two pictures of a report, as PNG files in memory. Equal input gives equal bytes: nothing carries a date.

Owns how they look. Computes no metric and writes no file. Importing this does not load matplotlib; the first picture
does.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.evaluation.baselines import NO_CEILING, ceiling_source, ceiling_srocc
from qualivision.evaluation.metrics import MEAN, PREDICTED_COLUMNS, shown
from qualivision.labels import DIMENSIONS, MOS_MAX, MOS_MIN, generator_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Okabe and Ito's palette, told apart with every common colour blindness; each has its own marker.
STYLES: Final = (
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


def scatter(predictions: pd.DataFrame, metrics: dict[str, Any], model: str) -> bytes:
    """Predicted against rated MOS, a panel per dimension, the clips of a generator in one colour.

    Args:
        predictions: as `write_report` takes them.
        metrics: as `metrics.json` holds them.
        model: its name, for the title.
    """
    return png(lambda figure: _draw_scatter(figure, predictions, metrics, model), (13, 9))


def comparison(metrics: dict[str, Any], model: str) -> bytes:
    """SROCC per dimension: the model with its interval, beside the no-video baseline, below the ceiling.

    Args:
        metrics: as `metrics.json` holds them.
        model: its name, for the title.
    """
    return png(lambda figure: _draw_comparison(figure, metrics, model), (11, 6))


def png(draw: Callable[[Figure], None], size_inches: tuple[float, float]) -> bytes:
    """What `draw` puts on a figure, as PNG: the same bytes for the same picture, in the look of all our pictures."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    content = BytesIO()
    # A context, and no pyplot: neither the backend nor the style of the calling program changes.
    with matplotlib.style.context(["default", _LOOK]):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches
        figure = Figure(figsize=size_inches, dpi=120, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def _draw_scatter(figure: Figure, predictions: pd.DataFrame, metrics: dict[str, Any], model: str) -> None:
    """The five panels; the sixth place holds the legend."""
    generators, styles = generator_styles(predictions)
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
        numbers = f"SROCC {shown(found['SROCC'])}   PLCC {shown(found['PLCC'])}"
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


def generator_styles(
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
        if "" in names or not 2 <= len(set(names)) <= len(STYLES):  # named by another scheme
            names = [""] * len(names)
    ranked = sorted(set(names) - {""}, key=lambda name: (-names.count(name), name))
    coloured = sorted(ranked if len(ranked) <= len(STYLES) else ranked[: len(STYLES) - 1])
    styles = dict(zip(coloured, STYLES, strict=False))
    names = [name if name in styles or not name else "others" for name in names]
    if "others" in names:
        styles.setdefault("others", _OTHERS)
    if "" in names:
        styles[""] = _UNKNOWN if styles else STYLES[0]
    return np.array(names, dtype=object), styles


def _draw_comparison(figure: Figure, metrics: dict[str, Any], model: str) -> None:
    axes = figure.subplots()
    names = (*DIMENSIONS, MEAN)
    for place, name in enumerate(names):
        floor, score = metrics["no_video"][name]["SROCC"], metrics[name]["SROCC"]
        _draw_bar(axes, place - 0.19, floor, "floor")
        _draw_bar(axes, place + 0.19, score, "model", metrics["intervals"][name]["SROCC"])
        ceiling = ceiling_srocc(metrics["ceiling"], name)
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
    source = ceiling_source(metrics["ceiling"])
    if source == NO_CEILING:
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
