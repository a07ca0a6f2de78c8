"""The picture of a behaviour report: a panel for each degradation, a line for each dimension. Equal input, equal bytes.

Owns how it looks; computes nothing and writes no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from qualivision.evaluation.pictures import STYLES, png
from qualivision.labels import DIMENSIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS: Final = 4
_PANEL_INCHES: Final = (3.3, 2.5)
_SOFT_INK: Final = "#555B64"
_GRID: Final = "#E6E8EB"
_LINES: Final = dict(zip(DIMENSIONS, STYLES, strict=False))


def behaviour(report: dict[str, Any]) -> bytes:
    """The fall of each dimension over severity; the one that should fall is drawn thick.

    Args:
        report: as `behaviour.json` holds it. One without clips gives a picture that says so.
    Returns:
        A PNG file.
    """
    if not report["clips"]:
        return png(lambda figure: _say(figure, "Behaviour: not measured on any clip"), (7, 1.2))
    rows = -(-(len(report["kinds"]) + 1) // _COLUMNS)  # one more for the key
    size = (_PANEL_INCHES[0] * _COLUMNS, _PANEL_INCHES[1] * rows + 0.6)
    return png(lambda figure: _draw(figure, report, rows), size)


def _say(figure: Figure, text: str) -> None:
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13)


def _draw(figure: Figure, report: dict[str, Any], rows: int) -> None:
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    falls = [0.0]
    for axes, (kind, figures) in zip(panels, report["kinds"].items(), strict=False):
        falls += _draw_panel(axes, kind, figures, report["severities"])
    low, high = min(falls) - 0.15, max(1.0, *falls) + 0.15
    for place, axes in enumerate(panels):
        if place < len(report["kinds"]):  # one scale: falls are compared between panels
            axes.set(ylim=(high, low), xlim=(0, 1.03), xticks=(0, 0.5, 1))
        else:
            axes.set_axis_off()
        if place % _COLUMNS == 0:
            axes.set_ylabel("fall (MOS)")
    _draw_key(panels[len(report["kinds"])], report)
    figure.suptitle(f"{report['model']}: what falls when clean clips are made worse", fontsize=15, fontweight="bold")


def _draw_panel(axes: Axes, kind: str, figures: dict[str, Any], severities: list[float]) -> list[float]:
    """One kind of degradation; returns what was drawn."""
    drawn: list[float] = []
    axes.axhline(0, color="#8A8F98", linewidth=1)
    for dimension, (colour, marker) in _LINES.items():
        if (fall := figures["fall"][dimension]) is None:
            continue
        expected = dimension == figures["dimension"]
        width, size, alpha = (3.0, 6, 1.0) if expected else (1.3, 3.5, 0.75)
        axes.plot([0, *severities], [0, *fall], color=colour, marker=marker, lw=width, ms=size, alpha=alpha)
        drawn += fall
    value = figures["tau"][figures["dimension"]]
    axes.set_title(kind, loc="left", fontsize=12, fontweight="bold")
    axes.set_title("no tau" if value is None else f"tau {value:.2f}", loc="right", fontsize=10.5)
    axes.set_xlabel("severity", fontsize=9.5, color=_SOFT_INK)
    axes.grid(color=_GRID, linewidth=0.8)
    return drawn


def _draw_key(axes: Axes, report: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, marker=marker, label=name) for name, (colour, marker) in _LINES.items()]
    axes.legend(handles=handles, loc="upper left", ncols=2, frameon=False, borderaxespad=0, columnspacing=1.0)
    lines = ["Thick: the one that should fall.", f"{report['clips']} clips, mean over them."]
    if (prompts := report["prompts"]) is not None:
        won = 100 * prompts["won"]["Alignment"]
        lines += [f"Own prompt wins {won:.0f} % of", f"{prompts['pairs']} pairs on Alignment."]
    axes.text(0, 0.0, "\n".join(lines), transform=axes.transAxes, color=_SOFT_INK, fontsize=9.5, linespacing=1.4)
