"""What the scores of clean, degraded and mismatched clips say: figures, `behaviour.json`, and a table.

Owns the figures and the layout of the report, not the picture (`pictures.py`). Contract: MOS units; a fall is by how
much a score lies below the clean clip's; a tau that does not exist is None, never 0.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.behaviour import pictures
from qualivision.behaviour.degradations import KINDS
from qualivision.behaviour.measure import NO_PROMPT
from qualivision.cache import write_atomically
from qualivision.labels import DIMENSIONS, prompt_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from qualivision.behaviour.measure import Measured, Measurement

FIGURES: Final = "behaviour.json"
PICTURE: Final = "behaviour.png"
_ALIGNMENT: Final = DIMENSIONS.index("Alignment")
_ASKED: Final = ("Alignment", "Overall")
"""What the true prompt should raise."""


def tau(severity: npt.ArrayLike, fall: npt.ArrayLike) -> float | None:
    """Kendall's tau-b between severity and fall, two equally long series of numbers.

    Returns:
        1 when each step falls deeper than the one before, -1 when each rises; None when nothing changes at all.
    Source: Kendall, "The treatment of ties in ranking problems", Biometrika 1945.
    """
    from scipy.stats import kendalltau

    x, y = np.asarray(severity, np.float64), np.asarray(fall, np.float64)
    return None if np.ptp(y) == 0 else float(kendalltau(x, y, variant="b").statistic)


def report_of(found: Measurement) -> dict[str, Any]:
    """What `behaviour.json` holds; floats to 4 decimals.

    Returns:
        "model"; "clips" and "clips_with_prompt", counts; "severities"; "skipped", the cause by clip;
        "tau": by dimension, the mean over the kinds that should lower it;
        "kinds": by name, "dimension" (which should fall), "unit" and "levels", and by dimension "tau" (mean over the
        clips that have one: "tau_clips"), "tau_of_mean" (of the mean fall) and "fall" (the mean at each severity);
        "prompts": "pairs" of a clip and another clip's prompt; by dimension the share "won" by the clip's own prompt
        and its mean "lead" in MOS. None where there is no such pair;
        "per_clip": by name, "prompt", "scores" of the clean clip, and by kind "tau" of the dimension that should fall.
        Of clips without a prompt, Alignment is not counted.
    """
    kinds = {kind: _of_kind(found, kind) for kind in found.kinds}
    lowered: dict[str, list[float]] = {}
    for kind, figures in kinds.items():
        if (known := figures["tau"][KINDS[kind].dimension]) is not None:
            lowered.setdefault(KINDS[kind].dimension, []).append(known)
    return {
        "model": found.model,
        "clips": len(found.clips),
        "clips_with_prompt": sum(measured.others is not None for measured in found.clips),
        "severities": _rounded(found.severities),
        "tau": {dimension: _rounded(np.mean(values)) for dimension, values in lowered.items()},
        "prompts": _of_prompts(found.clips),
        "kinds": kinds,
        "per_clip": {measured.clip.name: _of_clip(found, measured) for measured in found.clips},
        "skipped": found.skipped,
    }


def write_report(found: Measurement, folder: Path) -> dict[str, Any]:
    """Write `behaviour.json` and `behaviour.png` into a folder; returns what the first holds."""
    report = report_of(found)
    write_atomically(folder / PICTURE, pictures.behaviour(report))
    write_atomically(folder / FIGURES, as_json(report).encode())  # last: new numbers never lie beside an old picture
    return report


def as_json(report: dict[str, Any]) -> str:
    """The report as it stands in `behaviour.json`."""
    return json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _of_kind(found: Measurement, kind: str) -> dict[str, Any]:
    steps = (0.0, *found.severities)
    figures: dict[str, Any] = {"tau": {}, "tau_clips": {}, "tau_of_mean": {}, "fall": {}}
    for place, dimension in enumerate(DIMENSIONS):
        counted = [clip for clip in found.clips if place != _ALIGNMENT or clip.others is not None]
        falls = np.array([[0.0, *clip.falls(kind)[:, place]] for clip in counted]).reshape(-1, len(steps))
        known = [value for fall in falls if (value := tau(steps, fall)) is not None]
        mean = falls.mean(0) if len(falls) else None
        figures["tau"][dimension] = _rounded(np.mean(known)) if known else None
        figures["tau_clips"][dimension] = len(known)
        figures["tau_of_mean"][dimension] = None if mean is None else _rounded(tau(steps, np.round(mean, 6)))
        figures["fall"][dimension] = None if mean is None else _rounded(mean[1:])
    chosen = KINDS[kind]
    levels = _rounded([chosen.level(severity) for severity in found.severities])
    return {"dimension": chosen.dimension, "unit": chosen.unit, "levels": levels, **figures}


def _of_prompts(clips: Sequence[Measured]) -> dict[str, Any] | None:
    """None where no clip has another's prompt to be held against."""
    asked = [clip for clip in clips if clip.others is not None and len(clip.others)]
    if not asked:
        return None
    leads = np.concatenate([clip.clean - clip.others for clip in asked if clip.others is not None])
    places = [DIMENSIONS.index(dimension) for dimension in _ASKED]
    return {
        "clips": len(asked),
        "distinct": len({prompt_key(clip.clip.prompt or "") for clip in asked}),
        "pairs": len(leads),
        "won": {DIMENSIONS[place]: _rounded((leads[:, place] > 0).mean()) for place in places},
        "lead": {DIMENSIONS[place]: _rounded(leads[:, place].mean()) for place in places},
    }


def _of_clip(found: Measurement, measured: Measured) -> dict[str, Any]:
    steps = (0.0, *found.severities)
    taus = {}
    for kind in found.kinds:
        place = DIMENSIONS.index(KINDS[kind].dimension)
        taus[kind] = _rounded(tau(steps, [0.0, *measured.falls(kind)[:, place]]))
    scores = dict(zip(DIMENSIONS, _rounded(measured.clean), strict=True))
    if measured.others is None:
        del scores["Alignment"]
    return {"prompt": measured.clip.prompt, "scores": scores, "tau": taus}


def _rounded(value: Any) -> Any:
    if value is None:
        return None
    if np.ndim(value):
        return [_rounded(entry) for entry in value]
    return round(float(value), 4) + 0.0  # + 0.0 turns -0.0 into 0.0


def table(report: dict[str, Any]) -> str:
    """The report as plain text for a terminal, at most 110 columns wide; "-" for what does not exist."""
    lines = [
        f"{report['model']}: {report['clips']} clips, {report['clips_with_prompt']} of them with a prompt",
        "",
        f"{'':<31}{'fall when strongest, * where it is expected':>62}",
        f"{'degradation':<17}{'tau':>6} {'least':>6} " + "".join(f"{name:>13}" for name in DIMENSIONS),
    ]
    for kind, figures in report["kinds"].items():
        expected = figures["dimension"]
        taus = [clip["tau"][kind] for clip in report["per_clip"].values() if clip["tau"][kind] is not None]
        falls = "".join(_fall(figures["fall"][name], name == expected) for name in DIMENSIONS)
        lines.append(f"{kind:<17}{_shown(figures['tau'][expected]):>6} {_shown(min(taus, default=None)):>6} {falls}")
    return "\n".join([*lines, "", *_notes(report)])


def _fall(fall: list[float] | None, expected: bool) -> str:
    return f"{_shown(fall[-1] if fall else None):>12}" + ("*" if expected else " ")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know to read the numbers right."""
    means = ", ".join(f"{dimension} {value:.2f}" for dimension, value in report["tau"].items())
    notes = [
        f"Mean tau: {means or 'none'}.",
        "tau: Kendall's tau-b of severity and fall of the expected dimension, mean over clips;",
        "least: that of the clip with the lowest. Falls are in MOS, mean over clips.",
    ]
    if (prompts := report["prompts"]) is not None:
        won = ", ".join(
            f"{dimension} in {100 * share:.1f} % (by {prompts['lead'][dimension]:.2f} MOS)"
            for dimension, share in prompts["won"].items()
        )
        notes.append(f"The true prompt against those of other clips, {prompts['pairs']} pairs:")
        notes.append(f"wins {won}.")
    if report["clips"] > report["clips_with_prompt"]:
        notes.append(f'Clips without a prompt are scored against "{NO_PROMPT}", and not counted for Alignment.')
    if report["skipped"]:
        notes.append(f"Skipped: {len(report['skipped'])} that could not be used.")
    return notes
