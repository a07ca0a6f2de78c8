"""How good `lite` is: several random splits by prompt of one rated data set, each trained and tested anew.

    qualivision sample-data --preset large --seed 1
    qualivision frames lite && qualivision prompts lite && qualivision encode lite
    python benchmarks/lite_splits.py --splits 3 [--prompts 200]

Run where `data/` and `cache/` lie. Prints for each split and their mean: SROCC, PLCC and MAE on the test prompts, and
beside them the ceiling (the raters' mean against the truth), the model without the prompt, and the prompt alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qualivision import environment
from qualivision.labels import DIMENSIONS, SPLITS, labels_path, other_prompts_path, ratings_path

if TYPE_CHECKING:
    from qualivision.cache import Cache
    from qualivision.training.data import ClipSet

TEST, VAL = 0.2, 0.1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--prompts", type=int, help="of all, at random; by default all")
    parser.add_argument("--processes", type=int, default=2, help="so many splits side by side, each with one thread")
    options = parser.parse_args()
    environment.prepare()
    found = []
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        each = pool.map(split, range(options.splits), [options.prompts] * options.splits)
        for number, figures in enumerate(each):
            found.append(figures)
            show(f"split {number}", figures)
    show("mean", {row: {k: np.mean([f[row][k] for f in found], 0) for k in found[0][row]} for row in found[0]})


def split(number: int, prompts: int | None) -> dict[str, dict[str, Any]]:
    """Deal, train and test once."""
    import torch

    torch.set_num_threads(1)  # threads that wait for each other at every step of a small batch keep no core busy
    environment.keep_freed_memory()
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        return one(resplit(Path(scratch), np.random.default_rng(number), prompts), Path(scratch))


def resplit(scratch: Path, rng: np.random.Generator, count: int | None) -> dict[str, ClipSet]:
    """The clips of all splits, dealt anew by prompt; the entries of the stem cache are linked."""
    from qualivision.frames import clip_name, stem_cache
    from qualivision.prompts import PromptCache
    from qualivision.settings import load_settings
    from qualivision.training.data import ClipSet

    data = Path("data")
    tables = {kind: _all(kind) for kind in (labels_path, ratings_path)}
    prompts = rng.permutation(sorted(tables[labels_path]["Prompt"].unique()))[:count]
    edges = [round(TEST * len(prompts)), round((TEST + VAL) * len(prompts))]
    dealt = dict(zip(("test", "val", "train"), np.split(prompts, edges), strict=True))
    stems = stem_cache(Path("cache/stems/lite"), "lite")
    index, wanted = stems.index(), {}
    names = {}
    for split in SPLITS:
        labels = tables[labels_path][tables[labels_path]["Prompt"].isin(dealt[split])]
        ratings = tables[ratings_path].set_index("video_name").loc[labels["video_name"]].reset_index()
        names[split] = ratings
        labels_path(scratch / "data", split).parent.mkdir(parents=True)
        labels.drop(columns="split").to_csv(labels_path(scratch / "data", split), index=False)
        ratings.drop(columns="split").to_csv(ratings_path(scratch / "data", split), index=False)
        for name, before in zip(labels["video_name"], labels["split"], strict=True):
            wanted[clip_name(split, name)] = index[clip_name(before, name)]
    held = {json.dumps(json.loads(asks), sort_keys=True) for split in ("val", "test") for asks in names[split]["asks"]}
    others = pd.read_csv(other_prompts_path(data, "train"))
    others = others[~others["asks"].map(lambda asks: json.dumps(json.loads(asks), sort_keys=True)).isin(held)]
    others.to_csv(other_prompts_path(scratch / "data", "train"), index=False)
    linked: Cache = stem_cache(scratch / "stems", "lite")
    linked.refer(wanted)
    for key in set(wanted.values()):
        os.link(stems.path(key), linked.path(key))
    embeddings = PromptCache(Path("cache/prompts/lite"), load_settings().model("lite").text.encoder).read()
    return {split: ClipSet(scratch / "data", split, linked, embeddings) for split in SPLITS}


def _all(kind: Any) -> pd.DataFrame:
    """The tables of all splits as one, with the split that a row came from."""
    return pd.concat([pd.read_csv(kind(Path("data"), split)).assign(split=split) for split in SPLITS])


def one(sets: dict[str, ClipSet], scratch: Path) -> dict[str, dict[str, Any]]:
    """Train on a split and test; (5,) figures by row and name."""
    from qualivision.evaluation.baselines import ceiling_srocc, no_video_baseline, noise_ceiling
    from qualivision.models.factory import build_model
    from qualivision.settings import load_settings
    from qualivision.training.loop import Trainer, predict

    settings = load_settings().model("lite")
    train, test = sets["train"], sets["test"]
    start = time.perf_counter()
    trainer = Trainer(
        lambda: build_model("lite", settings.network, train.text.shape[1]),
        train,
        sets["val"],
        settings.train,
        state=scratch / "trainer",
        identity="",
    )
    trained = trainer.run(resume=False, log=lambda epoch, metrics: None, advance=lambda done, total: None)
    print(
        f"train {len(train)}, val {len(sets['val'])}, test {len(test)} clips: {time.perf_counter() - start:.0f} s, "
        f"validation score {trained.score:.3f}",
        flush=True,
    )
    rated = test.mos.double().numpy()
    nothing = train.text.mean(0)
    blind = predict(trainer.averaged, test, text=nothing / nothing.norm())
    alone = no_video_baseline(train.text.numpy(), train.mos.numpy(), train.prompts, test.text.numpy())
    ceiling = noise_ceiling(pd.read_csv(ratings_path(scratch / "data", "test")))
    return {
        "lite": agreement_of(predict(trainer.averaged, test), rated),
        "video alone": agreement_of(blind, rated),
        "prompt alone": agreement_of(alone, rated),
        "ceiling": {"SROCC": np.array([ceiling_srocc(ceiling, name) for name in DIMENSIONS], float)},
    }


def agreement_of(predicted: np.ndarray, rated: np.ndarray) -> dict[str, Any]:
    from qualivision.evaluation.metrics import agreement

    each = [agreement(predicted[:, k], rated[:, k]) for k in range(len(DIMENSIONS))]
    return {
        "SROCC": np.array([of.srocc for of in each], float),
        "PLCC": np.array([of.plcc for of in each], float),
        "MAE": np.abs(predicted - rated).mean(0),
        "spread": predicted.std(0),
        "spread of MOS": rated.std(0),
    }


def show(title: str, found: dict[str, dict[str, Any]]) -> None:
    print(f"\n{title:<29}" + "".join(f"{name:>13}" for name in DIMENSIONS))
    for row, figures in found.items():
        for name, values in figures.items():
            print(f"{row:<14} {name:<14}" + "".join(f"{value:>13.3f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
