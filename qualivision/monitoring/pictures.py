"""The picture of a drift, as PNG in memory: each drifted figure in both windows. Its look is `evaluation`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from qualivision.evaluation.pictures import STYLES, png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from numpy.typing import NDArray

    from qualivision.monitoring.drift import Figure

    Floats = NDArray[np.float64]
    Drifted = tuple[Figure, Floats, Floats]

MOST: Final = 12
"""Panels; what has drifted farther comes first."""
_BINS: Final = 20
_ACROSS: Final = 4
_REFERENCE, _CURRENT = STYLES[0][0], STYLES[1][0]


def distributions(drifted: Sequence[Drifted]) -> bytes:
    """Shares of the clips by value, reference against current, a panel per figure; at most `MOST`.

    Args:
        drifted: each figure with its values in the reference and in the current window, finite.
    """
    shown = drifted[:MOST]
    across = min(_ACROSS, len(shown))
    down = -(-len(shown) // across)

    def draw(canvas: Canvas) -> None:
        panels = canvas.subplots(down, across, squeeze=False).ravel()
        for axes, (figure, reference, current) in zip(panels, shown, strict=False):
            _draw(axes, figure, reference, current)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=12)

    return png(draw, (max(6.0, 3.6 * across), 0.6 + 2.7 * down))


def _draw(axes: Axes, figure: Figure, reference: Floats, current: Floats) -> None:
    both = np.concatenate([reference, current])
    low, high = np.quantile(both, (0.01, 0.99))  # one absurd clip shall not squeeze the others into a bar
    if low == high:
        low, high = both.min() - 0.5, both.max() + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    for values, colour, name in ((reference, _REFERENCE, "reference"), (current, _CURRENT, "current")):
        counts, _ = np.histogram(np.clip(values, low, high), edges)
        axes.stairs(100 * counts / len(values), edges, fill=True, color=colour, alpha=0.45, label=name)
        axes.axvline(np.clip(np.median(values), low, high), color=colour, linewidth=1.8, linestyle=(0, (4, 2)))
    axes.set_title(figure.name, loc="left", fontweight="bold")
    axes.set(xlabel=figure.unit, ylabel="% of clips")
