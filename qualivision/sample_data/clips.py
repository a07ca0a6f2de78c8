"""One clip: planned, rendered, encoded, measured.

Owns the draw of what a generator makes of a prompt, and the H.264 file. A clip depends on the data set's seed, its
prompt and its generator only, never on which process makes it or when.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.labels import ASPECT_OF_PROMPT, FAULTS
from qualivision.sample_data.content import (
    COLOURS,
    DRAWN_SUBJECTS,
    MOTIONS,
    SCENES,
    SUBJECTS,
    Prompt,
    draw_other,
    pick,
)
from qualivision.sample_data.degradations import Look, are_alike, degrade, loss_of, luma, structural_loss
from qualivision.sample_data.ratings import Generator, combined, latent_truth, rate
from qualivision.sample_data.rendering import FRAMES, HEIGHT, WIDTH, make_shot

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]

RATE: Final = 24
_FAULT_CHANCE: Final = 0.82  # per dimension; the rest of the clips have nothing wrong there
_SECOND_CHANCE: Final = 0.15  # of a dimension with a fault, to have another that is unlike it
_FAVOURED: Final = 2.0  # how much likelier a generator's favourite faults are
_RARE: Final = {"off_frame": 0.5}  # generators seldom lose their subject; and of one cut off nobody is sure what it is
# Of a severity: clips that went wrong in one way did so in others. In TaobaoVD-GC's 4000 labels Traditional and
# Temporal go together (PLCC .44), and Aesthetic with neither.
_SHARED: Final = {"Traditional": 0.75, "Aesthetic": 0.25, "Temporal": 0.75}
_LEAST_TIME: Final = 0.25  # of the clip's time: from less of it nobody can tell a motion
_MEASURED: Final = (0.16, 0.52, 0.89)  # of a clip: where compression is measured
_COUNTS: Final = (FRAMES, FRAMES, 48, 32, 24)
"""Frames of a clip, each as likely: generators make few, and a model that reads 64 of them sees some twice."""
_FINE_IN_TIME: Final = ("judder", "shuffle")  # of neighbouring frames: with fewer of them they would not be seen


@dataclass(frozen=True)
class Task:
    """A clip to make. `entropy` is all that its random draws depend on; `place` is its row among all clips."""

    place: int
    path: Path
    prompt: Prompt
    generator: Generator
    entropy: tuple[int, ...]
    biases: Floats


@dataclass(frozen=True)
class Clip:
    """What is known of a clip that has been written."""

    place: int
    prompt: Prompt
    letter: str
    shows: dict[str, str]
    degradations: dict[str, dict[str, float]]
    truth: dict[str, float]
    ratings: dict[str, list[int]]


def make_clip(task: Task) -> Clip:
    """Render, write and rate one clip."""
    rng = np.random.default_rng(list(task.entropy))
    failure = rng.random()
    shows = draw_shows(rng, task.prompt.asks, task.generator, failure)
    faults = draw_faults(rng, task.generator, failure)
    count = FRAMES if any(kind in faults for kind in _FINE_IN_TIME) else int(rng.choice(_COUNTS))
    truth, degradations, seen = render(rng, task.path, task.prompt.asks, shows, faults, count)
    return Clip(
        place=task.place,
        prompt=task.prompt,
        letter=task.generator.letter,
        shows=seen,
        degradations=degradations,
        truth=truth,
        ratings=rate(rng, truth, task.biases),
    )


def render(
    rng: np.random.Generator,
    path: Path,
    asks: Mapping[str, str],
    shows: Mapping[str, str],
    faults: Mapping[str, float],
    count: int = FRAMES,
) -> tuple[dict[str, float], dict[str, dict[str, float]], dict[str, str]]:
    """Write a clip with the given content and faults, of so many frames.

    Returns:
        The latent truth by dimension; for each fault its nominal `severity`, the visible `effect` measured (in the
        unit of its kind), and the `loss` in MOS that follows from that; and what can be seen of the content.
    """
    shot = make_shot(rng, shows, off_frame=faults.get("off_frame", 0.0))
    outcome = degrade(rng, shot, faults)
    sources = encode(path, outcome.look, count)
    if "compression" in faults:
        effect = _compression_effect(path, sources)
        outcome.effects["compression"] = effect
        outcome.losses["Traditional"].append(loss_of("compression", effect))
    losses = {dimension: combined(each) for dimension, each in outcome.losses.items()}
    degradations = {
        kind: {
            "severity": round(severity, 3),
            "effect": round(outcome.effects[kind], 4),
            "loss": round(loss_of(kind, outcome.effects[kind]), 3),
        }
        for kind, severity in faults.items()
    }
    seen = _seen(shows, outcome.look)
    return latent_truth(losses, asks, seen), degradations, seen


def _seen(shows: Mapping[str, str], look: Look) -> dict[str, str]:
    """What of the content can be seen: no motion in a still picture."""
    still = np.ptp(look.order) < _LEAST_TIME * FRAMES
    return {aspect: value for aspect, value in shows.items() if not (still and aspect == "motion")}


def draw_shows(
    rng: np.random.Generator, asks: Mapping[str, str], generator: Generator, failure: float
) -> dict[str, str]:
    """What a generator shows for what a prompt asks: each aspect right, or one of the other values.

    Args:
        rng: draws which aspects go wrong, and how.
        asks: what is wanted, by aspect.
        generator: whose habits to follow.
        failure: 0 to 1, how badly this clip went as a whole.
    """
    values = {
        "subject": tuple(SUBJECTS),
        "scene": tuple(SCENES),
        "colour": COLOURS,
        "motion": tuple(MOTIONS),
    }
    shows = {}
    for aspect in ASPECT_OF_PROMPT:
        wanted = asks.get(aspect)
        if wanted is None:
            continue
        is_wrong = rng.random() < generator.wrong[aspect] * (0.6 + failure)
        shows[aspect] = draw_other(rng, values[aspect], wanted) if is_wrong else wanted
    if shows["subject"] not in DRAWN_SUBJECTS:
        shows.pop("colour", None)
    elif "colour" not in shows:
        shows["colour"] = pick(rng, COLOURS)
    return shows


def draw_faults(rng: np.random.Generator, generator: Generator, failure: float) -> dict[str, float]:
    """Up to two faults of each of three dimensions: kind -> nominal severity, 0 to 1; arguments as `draw_shows`."""
    faults: dict[str, float] = {}
    for dimension, factor in generator.severity.items():
        kinds = [kind for kind, lowers in FAULTS.items() if lowers == dimension]
        shared, chance = _SHARED[dimension], _FAULT_CHANCE
        while kinds and rng.random() < chance:
            likely = [_RARE.get(kind, 1.0) * (_FAVOURED if kind in generator.favourites else 1.0) for kind in kinds]
            weights = np.array(likely)
            kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
            severity = shared * failure + (1 - shared) * rng.random()
            faults[kind] = float(np.clip(severity * factor, 0.02, 1))
            kinds = [] if chance == _SECOND_CHANCE else [other for other in kinds if not are_alike(kind, other)]
            chance = _SECOND_CHANCE
    return faults


def encode(path: Path, look: Look, count: int = FRAMES) -> dict[int, Floats]:
    """Write a clip of `count` frames as H.264 in mp4, as long as one of all; the luma of those that are measured."""
    import av

    # One thread, no macroblock tree: with either, x264 gives other bytes from run to run.
    options = {"crf": str(look.crf), "preset": "superfast", "threads": "1", "x264-params": "mbtree=0"}
    moments = np.linspace(0, FRAMES - 1, count).astype(int)
    measured = [round(share * (count - 1)) for share in _MEASURED]
    sources = {}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE * count // FRAMES, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count = 1
        for place, moment in enumerate(moments):
            picture = look.frame(int(moment))
            if place in measured:
                sources[place] = luma(picture)
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return sources


def _compression_effect(path: Path, sources: Mapping[int, Floats]) -> float:
    """Mean 1 - SSIM of a file's frames to what was encoded."""
    import av

    losses: list[float] = []
    with av.open(str(path)) as container:
        for place, frame in enumerate(container.decode(video=0)):
            if place in sources:
                shown = np.asarray(frame.to_image().convert("L"), np.float32)
                losses.append(structural_loss(sources[place], shown))
    return float(np.mean(losses))
