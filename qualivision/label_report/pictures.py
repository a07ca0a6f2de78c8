"""The pictures of the label report, as PNG in memory; equal figures give equal bytes. Their look is `evaluation`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qualivision.evaluation.pictures import STYLES, png
from qualivision.label_report.figures import BASELINES, LEAKS
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def distributions(figures: dict[str, Any]) -> bytes:
    """A histogram of each dimension."""

    def draw(figure: Figure) -> None:
        for axes, (name, found), (colour, _) in zip(
            figure.subplots(1, 5, sharey=True), figures["dimensions"].items(), STYLES, strict=False
        ):
            edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
            axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=colour, edgecolor="white")
            axes.axvline(found["mean"], color="#222222", linestyle="--", linewidth=1.2)
            axes.set_title(f"{name}\nmean {found['mean']:.2f}, sd {found['sd']:.2f}")
            axes.set(xlabel="MOS", xlim=(0.7, 5.3), xticks=range(1, 6))

    return png(draw, (15, 3.6))


def generators(figures: dict[str, Any]) -> bytes:
    """The mean of each generator in each dimension."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        found = figures["by_generator"]
        width = 0.8 / len(found)
        for place, generator in enumerate(found):
            colour = STYLES[place % len(STYLES)][0]
            at = np.arange(len(DIMENSIONS)) + (place - (len(found) - 1) / 2) * width
            axes.bar(at, generator["mean"], width * 0.92, color=colour, label=generator["generator"])
        axes.set(ylim=(1, 5), ylabel="mean MOS")
        axes.set_xticks(range(len(DIMENSIONS)), DIMENSIONS)
        axes.legend(title="Generator", ncols=min(len(found), 8), frameon=False, loc="upper right")

    return png(draw, (15, 4))


def without_video(figures: dict[str, Any]) -> bytes:
    """What is predicted with no video: the leak of a random row split, and the best that is free of it."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        leak = "both" if "both" in figures["leaks"] else "siblings"
        clean = [name for name in ("generator", "prompt", "both", "both, SVR") if name in figures["no_video"]["scores"]]
        bars = [(f"leak: {LEAKS[leak]}", figures["leaks"][leak], "#D55E00")]
        bars += [
            (BASELINES[name], figures["no_video"]["scores"][name], colour)
            for name, colour in zip(clean, ("#C9CDD3", "#56B4E9", "#0072B2", "#003A63"), strict=False)
        ]
        width = 0.85 / len(bars)
        for place, (label, scores, colour) in enumerate(bars):
            at = np.arange(len(DIMENSIONS)) + (place - (len(bars) - 1) / 2) * width
            heights = [score or 0.0 for score in scores]
            axes.bar(at, heights, width * 0.92, color=colour, label=label)
            for x, height in zip(at, heights, strict=True):
                axes.annotate(
                    f"{height:.2f}", (x, max(height, 0)), (0, 2), textcoords="offset points", ha="center", fontsize=8
                )
        axes.set_xticks(range(len(DIMENSIONS)), DIMENSIONS)
        axes.set(ylabel="mean of SROCC and PLCC", ylim=(min(0.0, axes.get_ylim()[0]), 1))
        axes.legend(frameon=False, loc="upper left", ncols=2, fontsize=9)

    return png(draw, (15, 4.6))
