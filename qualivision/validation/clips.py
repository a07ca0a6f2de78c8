"""The rules of the videos, as a Great Expectations suite over a table with one row a video.

Owns which rules there are, what their findings say, and what is counted of the videos. Opens no file: `videos.py` does.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.validation.report import Finding, counted
from qualivision.validation.suites import about

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import pandas as pd

    from qualivision.settings import ValidateSettings
    from qualivision.validation.suites import Outcome, Suites
    from qualivision.validation.videos import Answer, Clip
    from qualivision.video import VideoInfo

_SUITE: Final = "videos"
_CONSTANT: Final = {
    "same picture": "All its frames are the same picture: is it a video, and does its Temporal_MOS know?",
    "one colour": "Every frame is a single colour, so it shows nothing: replace the video, or remove it and its row.",
}

# What every current browser plays, on every system (MDN, "Web video codec guide" and "Media container formats").
_BROWSER_CODECS: Final = frozenset({"h264", "vp8", "vp9", "av1", "gif"})
_BROWSER_CONTAINERS: Final = frozenset({"mp4", "m4v", "mov", "webm", "gif"})
_BROWSER_PIXELS: Final = frozenset({"yuv420p", "yuvj420p"})  # of H.264; the other codecs have no such restriction


def check_clips(
    suites: Suites, clips: list[Clip], answers: Mapping[Path, Answer], bounds: ValidateSettings, data: str
) -> tuple[list[Finding], dict[str, Any]]:
    """Hold the videos against their suite.

    Args:
        suites: where it runs.
        clips: the videos.
        answers: what the container of each says, or why it can't be used.
        bounds: what they have to keep to.
        data: the name of the data folder, for what is said of all of them.
    Returns:
        What was found, and what there is to count.
    """
    if not clips:
        return [], {}
    clip_of = {clip.file: clip for clip in clips}
    frame = _frame(clips, answers)
    values = {row["file"]: row for row in frame.to_dict("records")}

    def findings_of(outcome: Outcome) -> Iterator[Finding]:
        for file in outcome.rows:
            clip, row = clip_of[file], values[file]
            shown_value, message = _said(outcome, row)
            named = f" It is named in {clip.row}." if clip.row else ""
            # A file that no row names is never read, and stops nothing.
            severity = clip.severity if outcome.severity == "error" else outcome.severity
            yield Finding(severity, outcome.check, file, None, shown_value, message + named)

    findings = suites.check(_SUITE, frame, _rules(bounds), "file", findings_of)
    known = [(clip, info) for clip in clips if not isinstance(info := answers[clip.path], str)]
    facts = _facts([info for _, info in known], [container(info, clip.path) for clip, info in known])
    return [*findings, *_formats(known, data)], {
        "count": len(clips),
        "unreadable": len(clips) - len(known),
        **facts,
        "expectations": suites.held(_SUITE),
    }


def container(info: VideoInfo, path: Path) -> str:
    """One name for a container that FFmpeg knows by several: the file's own ending if it is among them."""
    names = info.container.split(",")
    ending = path.suffix[1:].lower()
    return ending if ending in names else names[0]


def browsers_play(container_name: str, codec: str, pixels: str) -> bool:
    """Whether every current browser shows such a file."""
    fits = codec != "h264" or pixels in _BROWSER_PIXELS
    return container_name in _BROWSER_CONTAINERS and codec in _BROWSER_CODECS and fits


def _frame(clips: list[Clip], answers: Mapping[Path, Answer]) -> pd.DataFrame:
    """A row per video; NaN and None where it can't be read."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for clip in clips:
        info = answers[clip.path]
        if isinstance(info, str):
            rows.append({"file": clip.file, "cause": info})
            continue
        name = container(info, clip.path)
        rows.append(
            {
                "file": clip.file,
                "container": name,
                "codec": info.codec,
                "pixels": info.pixels,
                "frames": info.frames,
                "seconds": info.seconds,
                "size": f"{info.width}x{info.height}",
                "shorter side": min(info.width, info.height),
                "longer side": max(info.width, info.height),
                "constant": info.constant or "no",
                "plays in browsers": browsers_play(name, info.codec, info.pixels),
            }
        )
    texts = ("file", "cause", "container", "codec", "pixels", "size", "constant", "plays in browsers")
    numbers = ("frames", "seconds", "shorter side", "longer side")
    columns: dict[str, pd.Series[Any]] = {
        name: pd.Series([row.get(name) for row in rows], dtype=object) for name in texts
    }
    columns |= {name: pd.Series([row.get(name, np.nan) for row in rows], dtype="float64") for name in numbers}
    return pd.DataFrame(columns)


def _rules(bounds: ValidateSettings) -> list[Any]:
    import great_expectations.expectations as gxe

    way_out = "replace the video, or change the bound in params.yaml"
    unreadable = "The video can't be used: replace the file, or remove it and its row."
    few = f"The video has fewer than {bounds.min_frames} frames (min_frames): {way_out}."
    small = f"A side is below {bounds.min_side_px} pixels (min_side_px): {way_out}."
    large = f"A side is above {bounds.max_side_px} pixels (max_side_px): {way_out}."
    long = f"The video is longer than {bounds.max_seconds:g} seconds (max_seconds): {way_out}."
    between = gxe.ExpectColumnValuesToBeBetween
    in_set = gxe.ExpectColumnValuesToBeInSet
    return [
        gxe.ExpectColumnValuesToBeNull(column="cause", **about("error", "unreadable-video", unreadable, "cause")),
        between(column="frames", min_value=bounds.min_frames, **about("error", "too-few-frames", few, "frames")),
        between(column="shorter side", min_value=bounds.min_side_px, **about("error", "frame-size", small, "size")),
        between(column="longer side", max_value=bounds.max_side_px, **about("error", "frame-size", large, "size")),
        between(column="seconds", max_value=bounds.max_seconds, **about("error", "too-long", long, "seconds")),
        in_set(column="constant", value_set=["no"], **about("warning", "constant-video", "", "constant")),
        # mostly=0: it holds always, and says how many.
        in_set(column="plays in browsers", value_set=[True], mostly=0.0, **about("info", "video-format")),
    ]


def _said(outcome: Outcome, row: dict[Any, Any]) -> tuple[str, str]:
    """Value and message of a finding about one video."""
    value = row[outcome.column]
    if outcome.column == "frames":
        return f"{value:.0f} frames", outcome.message
    if outcome.column == "seconds":
        return f"{value:.1f} seconds", outcome.message
    return str(value), outcome.message or _CONSTANT[str(value)]


def _formats(known: list[tuple[Clip, VideoInfo]], data: str) -> Iterator[Finding]:
    """What the videos are encoded in, a finding for each kind."""
    kinds = Counter((container(info, clip.path), info.codec, info.pixels) for clip, info in known)
    for kind, count in kinds.items():
        plays = "browsers play it" if browsers_play(*kind) else "not every browser plays it; the pipeline does"
        yield Finding("info", "video-format", data, None, ", ".join(kind), f"{counted(count, 'video')}; {plays}.")


def _facts(infos: list[VideoInfo], containers: list[str]) -> dict[str, Any]:
    return {
        "containers": _counts(containers),
        "codecs": _counts(info.codec for info in infos),
        "pixels": _counts(info.pixels for info in infos),
        "sizes": _counts(f"{info.width}x{info.height}" for info in infos),
        "constant": _counts(info.constant for info in infos if info.constant),
        "frames": _spread([info.frames for info in infos]),
        "seconds": _spread([info.seconds for info in infos]),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _spread(values: list[int] | list[float]) -> dict[str, float] | None:
    if not values:
        return None
    named = {"min": min(values), "median": float(np.median(values)), "max": max(values)}
    return {name: round(value, 3) for name, value in named.items()}
