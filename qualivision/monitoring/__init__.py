"""Drift: whether what is scored now is still like what the champion was judged on, and whether its scores are.

    windows.py   which clips: scored lately; and rated, as the champion scores them
    figures.py   what a clip is like, measured once
    drift.py     two windows compared, figure by figure
    prompts.py   whether they ask for other things
    report.py    what came of it, and when a retraining is due
    pictures.py  its picture
    opened.py    for which drift a retraining was opened already

Owns the order of these. What is remembered lies in `state/monitor`; opening a retraining is the flow's.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qualivision import environment
from qualivision.cache import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from qualivision.monitoring.report import Report
    from qualivision.monitoring.windows import Window
    from qualivision.progress import Advance
    from qualivision.prompts import Embeddings
    from qualivision.settings import DecodeSettings, Settings

SUGGESTED: Final = 10
"""Unusual clips that are named."""


def folder() -> Path:
    """Where reference scores, figures of videos, embeddings and opened retrainings are kept."""
    return environment.STATE / "monitor"


def look(settings: Settings, data: Path, *, advance: Callable[[str], Advance]) -> Report:
    """Compare what the champion scored lately with what it was judged on.

    Args:
        settings: all of `params.yaml`; its `monitor` section says where the tables and videos lie.
        data: the data folder, whose rated test clips are the reference.
        advance: gives the progress of a piece of work of that name.
    Raises:
        ModelNotFoundError: there is no champion, or it can't be read.
        RegistryError: the registry can't be asked.
        MonitorError: a table or folder that is named is not there, or the test clips are not rated.
        ScoreTableError: a table that is named is none; or another run is scoring the reference.
        LabelError: there is no test table.
    """
    from qualivision import registry
    from qualivision.monitoring import windows
    from qualivision.monitoring.drift import GROUP, enough
    from qualivision.monitoring.report import Report
    from qualivision.scoring import ModelNotFoundError

    rules = settings.monitor
    version = registry.version_of(registry.CHAMPION, settings.registry)
    if version is None:
        raise ModelNotFoundError(registry.HOW_TO_GET_ONE)
    champion = f"models:/{settings.registry.name}/{version}"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    current = windows.current([rules.scores], rules.videos, champion, rules, now_ns=time.time_ns())
    if not enough(current.clips[GROUP].tolist(), rules):  # then nothing needs to be scored or decoded
        sizes = (0, len(current.clips)), (0, current.prompts)
        return Report(champion, when, *sizes, (), (), current.notes, rules)
    table = folder() / f"reference-{settings.registry.name}-{version}.parquet"
    reference = windows.reference(
        data, champion, rules, settings.decode, table, advance=advance("monitor: scoring the reference")
    )
    return _compare(champion, when, reference, current, settings, advance)


def write(report: Report, out: Path) -> None:
    """Write `drift.json` and `drift.html`. Raises OSError."""
    text = json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(out / "drift.json", text.encode())
    write_atomically(out / "drift.html", report.as_html(picture(report)).encode())


def picture(report: Report) -> bytes | None:
    """The picture of what has drifted, as PNG; None when nothing has that can be drawn."""
    from qualivision.monitoring.pictures import distributions

    drawn = [
        (change.figure, *report.values[change.figure.name])
        for change in report.drifted
        if change.figure.name in report.values
    ]
    return distributions(drawn) if drawn else None


def news(report: Report) -> list[str]:
    """What has drifted that no retraining was opened for under this champion."""
    from qualivision.monitoring import opened

    return opened.news(report.champion, report.named, folder())


def remember(report: Report, *, run: str) -> None:
    """Put down that a retraining was opened for a drift, as the run of that name. Raises OSError."""
    from qualivision.monitoring import opened

    opened.remember(report.champion, report.named, folder(), run=run)


def _compare(
    champion: str,
    when: str,
    reference: Window,
    current: Window,
    settings: Settings,
    advance: Callable[[str], Advance],
) -> Report:
    from qualivision.monitoring import drift, figures
    from qualivision.monitoring.drift import GROUP
    from qualivision.monitoring.prompts import compare_prompts
    from qualivision.monitoring.report import Report
    from qualivision.monitoring.windows import first

    rules, notes = settings.monitor, [*reference.notes, *current.notes]
    windows = (reference.clips, current.clips)
    sizes = (len(windows[0]), len(windows[1])), (reference.prompts, current.prompts)
    if not drift.enough(windows[0][GROUP].tolist(), rules):
        return Report(champion, when, *sizes, (), (), tuple(notes), rules)
    measured, failed = _measured(windows, settings.decode, advance("monitor: looking at clips"))
    if failed:
        named = first([f"{path.name} ({cause})" for path, cause in sorted(failed.items())])
        notes.append(f"videos that can't be looked at: {len(failed)}: {named}")
    before, now = measured
    changes = drift.compare(before, now, figures.INPUTS, rules)
    changes.append(compare_prompts(before["Prompt"].tolist(), now["Prompt"].tolist(), _embed, rules))
    changes += drift.compare(before, now, (*figures.SCORES, figures.UNSCORED), rules)
    settled = drift.settle(changes, rules)
    drifted = [change.figure.name for change in settled if change.drifted and change.figure.kind in ("input", "score")]
    values = {name: (before[name].dropna().to_numpy(float), now[name].dropna().to_numpy(float)) for name in drifted}
    counting = [figure for figure in (*figures.INPUTS, *figures.SCORES) if figure.name in values or not values]
    far = drift.unusual(before, now, counting, count=SUGGESTED)
    return Report(champion, when, *sizes, tuple(settled), tuple(far), tuple(notes), rules, values)


def _measured(
    windows: Sequence[pd.DataFrame], limits: DecodeSettings, advance: Advance
) -> tuple[list[pd.DataFrame], dict[Path, str]]:
    """The windows with the figures of each video, NaN where it is not at hand or can't be read; and why it can't."""
    import numpy as np

    from qualivision.monitoring.figures import FILE, PICTURES, Album

    paths = [Path(path) for window in windows for path in window["path"] if path]
    known, failed = Album(folder(), limits).look(paths, advance=advance)
    found = []
    for window in windows:
        figures_of = [known.get(Path(path), {}) if path else {} for path in window["path"]]
        columns = {
            figure.name: np.array([measured.get(figure.name, np.nan) for measured in figures_of], np.float64)
            for figure in (*FILE, *PICTURES)
        }
        found.append(window.assign(**columns))
    return found, failed


def _embed(prompts: Sequence[str]) -> Embeddings:
    """Their embeddings, kept, so that a night with no new prompt loads no encoder."""
    import numpy as np

    from qualivision.prompts import MINILM, PromptCache

    cache = PromptCache(folder() / "prompts", MINILM)
    cache.fill(prompts)
    vectors = cache.read()
    return np.stack([vectors[prompt] for prompt in prompts])
