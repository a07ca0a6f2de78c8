"""The whole data set: prompts split, clips made by worker processes, label tables written, all or nothing.

Owns the folder. It is built beside the place where it is to be and renamed at the end, so an interruption leaves
nothing half-made there.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from qualivision.labels import DIMENSIONS, SPLITS, labels_path, other_prompts_path, ratings_path, videos_dir
from qualivision.sample_data import SampleDataError, SampleSummary
from qualivision.sample_data.clips import Clip, Task, make_clip
from qualivision.sample_data.content import Prompt, draw_prompts
from qualivision.sample_data.ratings import GENERATORS, mos, panel_biases
from qualivision.workers import in_processes

if TYPE_CHECKING:
    from collections.abc import Callable

_TEST_SHARE: Final = 0.2
_VAL_SHARE: Final = 0.1
OTHER_PROMPTS: Final = 1200


def write_data_set(
    out: Path,
    *,
    prompts: int,
    seed: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> SampleSummary:
    """See `make_sample_data`, which checks the numbers."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise SampleDataError(f"{out}: is there already and not empty; remove it or choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        building.chmod(0o755)  # mkdtemp's folder is for its owner alone
        summary = _fill(building, prompts, seed, workers, progress)
        if out.exists():
            out.rmdir()
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return SampleSummary(out, summary.prompts, summary.clips, summary.video_bytes)


def _fill(
    folder: Path, count: int, seed: int, workers: int | None, progress: Callable[[int, int], None] | None
) -> SampleSummary:
    rng = np.random.default_rng([seed, 0])
    prompts = draw_prompts(rng, count)
    split_of = split_prompts(rng, prompts)
    for split in SPLITS:
        videos_dir(folder, split).mkdir(parents=True)
        labels_path(folder, split).parent.mkdir(parents=True, exist_ok=True)
    tasks = _tasks(folder, prompts, split_of, seed)
    clips: list[Clip] = []
    with closing(in_processes(make_clip, [(task,) for task in tasks], workers=workers)) as made:
        for clip in made:
            clips.append(clip)
            if progress:
                progress(len(clips), len(tasks))
    clips.sort(key=lambda clip: clip.place)
    shuffled = [clips[place] for place in rng.permutation(len(clips))]  # as in the release: no order to learn from
    for split in SPLITS:
        _write_tables(folder, split, [clip for clip in shuffled if split_of[clip.prompt.identity] == split])
    _write_other_prompts(folder, prompts, split_of, seed)
    chosen = list(split_of.values())
    return SampleSummary(
        folder,
        prompts={split: chosen.count(split) for split in SPLITS},
        clips={split: chosen.count(split) * len(GENERATORS) for split in SPLITS},
        video_bytes=sum(task.path.stat().st_size for task in tasks),
    )


def split_prompts(rng: np.random.Generator, prompts: list[Prompt]) -> dict[str, str]:
    """Prompt id -> split. Prompts with photo subjects and with drawn ones are shared out in the same proportion."""
    photos = [prompt for prompt in prompts if prompt.is_photo]
    drawn = [prompt for prompt in prompts if not prompt.is_photo]
    photo_places = {round((k + 0.5) * len(prompts) / len(photos)) for k in range(len(photos))}
    # Spread evenly over one line, so that each stretch of it holds both in proportion.
    photos = [photos[k] for k in rng.permutation(len(photos))]
    drawn = [drawn[k] for k in rng.permutation(len(drawn))]
    line: list[Prompt] = []
    for place in range(len(prompts)):
        take_photo = photos and (place in photo_places or not drawn)
        line.append(photos.pop() if take_photo else drawn.pop() if drawn else photos.pop())
    test, val = max(1, round(_TEST_SHARE * len(line))), max(1, round(_VAL_SHARE * len(line)))
    names = ["test"] * test + ["val"] * val + ["train"] * (len(line) - test - val)
    return {prompt.identity: name for prompt, name in zip(line, names, strict=True)}


def _tasks(folder: Path, prompts: list[Prompt], split_of: dict[str, str], seed: int) -> list[Task]:
    biases = panel_biases(seed)
    tasks: list[Task] = []
    for number, prompt in enumerate(prompts):
        for column, generator in enumerate(GENERATORS):
            videos = videos_dir(folder, split_of[prompt.identity])
            tasks.append(
                Task(
                    place=len(tasks),
                    path=videos / f"{generator.letter}_{prompt.identity}.mp4",
                    prompt=prompt,
                    generator=generator,
                    entropy=(seed, 2, number, column),
                    biases=biases,
                )
            )
    return tasks


def _write_tables(folder: Path, split: str, clips: list[Clip]) -> None:
    import pandas as pd

    labels = pd.DataFrame([_label_row(clip) for clip in clips])
    labels.to_csv(labels_path(folder, split), index=False, lineterminator="\n")
    ratings = pd.DataFrame([_ratings_row(clip) for clip in clips])
    ratings.to_csv(ratings_path(folder, split), index=False, lineterminator="\n")


def _write_other_prompts(folder: Path, prompts: list[Prompt], split_of: dict[str, str], seed: int) -> None:
    """Prompts to learn from that have no clip. None of them asks for what a prompt of val or test asks for."""
    import pandas as pd

    held = [prompt for prompt in prompts if split_of[prompt.identity] != "train"]
    others = draw_prompts(np.random.default_rng([seed, 3]), OTHER_PROMPTS, taken=held)
    ours = {prompt.text for prompt in prompts}
    rows = [(p.text, json.dumps(dict(p.asks), sort_keys=True)) for p in others if p.text not in ours]
    table = pd.DataFrame(rows, columns=["Prompt", "asks"])
    table.to_csv(other_prompts_path(folder, "train"), index=False, lineterminator="\n")


def _video_name(clip: Clip) -> str:
    return f"{clip.letter}_{clip.prompt.identity}.mp4"


def _label_row(clip: Clip) -> dict[str, Any]:
    return {
        "video_name": _video_name(clip),
        "Prompt": clip.prompt.text,
        **{f"{dimension}_MOS": mos(clip.ratings[dimension]) for dimension in DIMENSIONS},
        "generator": clip.letter,
    }


def _ratings_row(clip: Clip) -> dict[str, Any]:
    row: dict[str, Any] = {"video_name": _video_name(clip), "generator": clip.letter}
    for dimension in DIMENSIONS:
        for number, rating in enumerate(clip.ratings[dimension], start=1):
            row[f"{dimension}_{number}"] = rating
        row[f"{dimension}_truth"] = round(clip.truth[dimension], 4)
    row["asks"] = json.dumps(dict(clip.prompt.asks), sort_keys=True)
    row["shows"] = json.dumps(clip.shows, sort_keys=True)
    row["degradations"] = json.dumps(clip.degradations, sort_keys=True)
    return row
