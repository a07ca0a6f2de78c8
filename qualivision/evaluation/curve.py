"""The learning curve in a report: its picture, and whether more ratings would help.

Owns how a curve is read and drawn. What it says was made by training (`training/curve.py`, `curve.json`).
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

from qualivision.evaluation.metrics import shown
from qualivision.evaluation.pictures import png

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HELPS: Final = {"VQualA": 0.01, "MAE": 0.02}
"""By so much each must get better when the clips double, for more ratings to be worth their while."""
FEW: Final = 100
"""Judged on fewer clips, a curve is a hint."""
_COLOURS: Final = {"VQualA": "#0072B2", "MAE": "#D55E00"}


def read_curve(path: Path) -> dict[str, Any] | None:
    """What `curve.json` says, as `metrics.json` holds it; None where training made none."""
    if not path.exists():
        return None
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in values.items() if name != "identity"}


def advice(curve: Mapping[str, Any]) -> list[str]:
    """One or two lines: how much the last step brought, and whether more ratings would help."""
    few = f" It was judged on {curve['judged_clips']} clips only: a hint." if curve["judged_clips"] < FEW else ""
    if (gains := _gains(curve)) is None:
        return ["Learning curve: too short, or without correlations, to say whether more ratings would help." + few]
    before, last = curve["points"][-2:]
    helps = any(gains[name] >= least for name, least in HELPS.items())
    return [
        f"Learning curve: {before['clips']} to {last['clips']} clips took mean VQualA from {shown(before['VQualA'])} "
        f"to {shown(last['VQualA'])}, MAE from {before['MAE']:.3f} to {last['MAE']:.3f}.",
        ("More ratings would probably help." if helps else "More ratings of the same kind would hardly help.") + few,
    ]


def _gains(curve: Mapping[str, Any]) -> dict[str, float] | None:
    """How much better each figure gets when the clips double, from the last two points."""
    trained = [point for point in curve["points"] if point["clips"] > 0 and point["VQualA"] is not None]
    if len(trained) < 2 or trained[-1]["clips"] <= trained[-2]["clips"]:
        return None
    before, last = trained[-2:]
    doublings = math.log2(last["clips"] / before["clips"])
    return {
        "VQualA": (last["VQualA"] - before["VQualA"]) / doublings,
        "MAE": (before["MAE"] - last["MAE"]) / doublings,
    }


def learning_curve(curve: Mapping[str, Any], model: str) -> bytes:
    """The picture, as PNG: mean VQualA and mean absolute error against clips trained on."""
    return png(lambda figure: _draw(figure, curve, model), (11, 5))


def _draw(figure: Figure, curve: Mapping[str, Any], model: str) -> None:
    left, right = figure.subplots(1, 2)
    _draw_one(left, curve, "VQualA", "mean VQualA, higher is better")
    _draw_one(right, curve, "MAE", "mean absolute error, MOS, lower is better")
    figure.suptitle(f"{model}: what more ratings brought", fontsize=16, fontweight="bold")
    judged = f"Judged on {curve['judged_clips']} clips of {curve['judged_prompts']} prompts ({curve['judged_on']})."
    figure.supxlabel(judged, fontsize=11, color="#555B64")


def _draw_one(axes: Axes, curve: Mapping[str, Any], name: str, label: str) -> None:
    points = [point for point in curve["points"] if point[name] is not None]
    clips, values = [point["clips"] for point in points], [point[name] for point in points]
    axes.plot(clips, values, color=_COLOURS[name], marker="o", linewidth=2)
    for x, y in zip(clips, values, strict=True):
        axes.annotate(f"{y:.3f}", (x, y), (0, 7), textcoords="offset points", ha="center")
    if clips and clips[0] == 0:
        axes.axhline(values[0], color="#8A8F98", linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            "the start as it is",
            (1, values[0]),
            (-4, 5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color="#555B64",
        )
    axes.set(xlabel="clips trained on", ylabel=label)
    axes.margins(x=0.08, y=0.2)
    axes.grid(color="#E6E8EB", linewidth=0.8)
