"""Every number of the report, from a label table alone. Knows no page and no file.

All scores are leak-free where they say so: clips of one prompt are never on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from qualivision.evaluation.baselines import no_video_baseline
from qualivision.evaluation.metrics import agreement
from qualivision.labels import DIMENSIONS, MOS_COLUMNS, LabelError, generator_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from qualivision.progress import Advance

    Encode = Callable[[Sequence[str]], NDArray[np.float32]]
    Predict = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]
    """From the rows to learn from and the rows to predict, their (M, 5) MOS."""

FOLDS: Final = 5
MIN_PROMPTS: Final = 10
LARGEST_SVR: Final = 6000
"""Rows; an SVR on more would take minutes a fold, so it then learns from a part of the prompts."""
FINEST: Final = 10
LEAKS: Final = {
    "siblings": "mean of the other clips of the prompt",
    "generator": "mean of the generator",
    "both": "sum of both",
}
BASELINES: Final = {
    "generator": "generator",
    "prompt": "prompt embedding, ridge",
    "prompt, by row": "prompt embedding, ridge, its penalty chosen by rows",
    "both": "prompt embedding and generator, ridge",
    "both, by row": "prompt embedding and generator, ridge, its penalty chosen by rows",
    "both, SVR": "prompt embedding and generator, SVR",
}
"""A penalty chosen by rows sees siblings on both sides, and takes the weakest; ours is chosen by prompts."""

Floats = NDArray[np.float64]


def label_figures(table: pd.DataFrame, *, encode: Encode, advance: Advance, name: str) -> dict[str, Any]:
    """All figures of a label table, as JSON takes them; scores are the mean of SROCC and PLCC (VQualA).

    Args:
        table: as `read_labels` gives it. Rows with a MOS missing are left out, and counted.
        encode: embeds prompts, (N, D).
        advance: told of the progress of the baselines.
        name: what to call the table.
    Raises:
        LabelError: fewer than `MIN_PROMPTS` prompts with all five MOS.
    """
    from sklearn.preprocessing import LabelBinarizer

    rated = table.dropna(subset=list(MOS_COLUMNS)).reset_index(drop=True)
    prompts, prompt_names = _numbered(rated["Prompt"].astype(str))
    if len(prompt_names) < MIN_PROMPTS:
        raise LabelError(f"{name}: {len(prompt_names)} prompts with all five MOS; at least {MIN_PROMPTS} are needed")
    mos = rated[list(MOS_COLUMNS)].to_numpy(dtype=np.float64)
    generators, generator_names = _generators(rated)
    known = len(generator_names) > 1
    letters = LabelBinarizer().fit_transform(generators).astype(np.float64) if known else None
    return {
        "table": name,
        "rows": len(rated),
        "left_out": len(table) - len(rated),
        "prompts": len(prompt_names),
        "generators": generator_names if known else [],
        "granularity": granularity(mos),
        "dimensions": {column: _distribution(mos[:, i], granularity(mos) or 4) for i, column in enumerate(DIMENSIONS)},
        "correlations": _correlations(mos),
        "overall_against_mean_of_others": float(np.abs(mos[:, 4] - mos[:, :4].mean(axis=1)).mean()),
        "by_generator": _by_generator(mos, generators, generator_names) if known else [],
        "variance": _variance(mos, prompts, generators if known else None),
        "leaks": _leaks(mos, prompts, generators if known else None),
        "no_video": _no_video(mos, prompts, encode(prompt_names)[prompts], letters, advance),
    }


def granularity(mos: Floats) -> int | None:
    """The smallest k up to 10 of which every MOS is a multiple of 1 / k: a mean of k raters. None if there is none."""
    # Two decimals are what tables have: 2.33 is a third.
    return next((k for k in range(1, FINEST + 1) if np.abs(mos - np.round(mos * k) / k).max() < 0.006), None)


def _numbered(values: pd.Series[Any]) -> tuple[NDArray[np.int64], list[str]]:
    import pandas as pd

    codes, names = pd.factorize(values, sort=True)
    return codes.astype(np.int64), [str(name) for name in names]


def _generators(rated: pd.DataFrame) -> tuple[NDArray[np.int64], list[str]]:
    """From the column `generator`, else from the names; one name for all where neither tells."""
    if "generator" in rated:
        return _numbered(rated["generator"].astype(str))
    found = rated["video_name"].map(generator_of)
    codes, names = _numbered(found)
    if "" in names or len(names) > len(rated) // 2:  # named by another scheme
        return np.zeros(len(rated), np.int64), [""]
    return codes, names


def _distribution(values: Floats, steps: int) -> dict[str, Any]:
    distinct, counts = np.unique(values, return_counts=True)
    pairs = len(values) * (len(values) - 1)
    quartiles = np.percentile(values, (25, 50, 75))
    # A bar for each value that raters' means can take, with that value in its middle.
    histogram, edges = np.histogram(values, bins=4 * steps + 1, range=(1 - 0.5 / steps, 5 + 0.5 / steps))
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)),
        "quartiles": [float(value) for value in quartiles],
        "distinct": len(distinct),
        "tied_pairs": float((counts * (counts - 1)).sum() / pairs),
        "histogram": {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in histogram]},
    }


def _correlations(mos: Floats) -> list[list[float | None]]:
    return [[agreement(mos[:, i], mos[:, j]).srocc for j in range(len(DIMENSIONS))] for i in range(len(DIMENSIONS))]


def _by_generator(mos: Floats, codes: NDArray[np.int64], names: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "generator": name,
            "rows": int((codes == code).sum()),
            "mean": [float(value) for value in mos[codes == code].mean(axis=0)],
            "sd": [float(value) for value in mos[codes == code].std(axis=0)],
        }
        for code, name in enumerate(names)
    ]


def _variance(mos: Floats, prompts: NDArray[np.int64], generators: NDArray[np.int64] | None) -> dict[str, Any]:
    """Share of the variance explained: adjusted R squared, 1 - MSE / MST.

    Plain R squared grows with the number of groups, and with a prompt for every five clips it would call noise
    explained. Source: Ezekiel, "Methods of Correlation Analysis", 1930; for groups it is epsilon squared, Kelley, PNAS
    1935.
    """
    sources: dict[str, list[NDArray[np.int64]]] = {"prompt": [prompts]}
    if generators is not None:
        sources |= {"generator": [generators], "both": [prompts, generators]}
    return {name: [_explained(mos[:, i], factors) for i in range(mos.shape[1])] for name, factors in sources.items()}


def _explained(values: Floats, factors: list[NDArray[np.int64]]) -> float | None:
    groups = sum(len(np.unique(factor)) for factor in factors) - (len(factors) - 1)
    rows = len(values)
    total = ((values - values.mean()) ** 2).sum()
    if rows <= groups or total == 0:
        return None
    left = values - values.mean()
    for _ in range(50 if len(factors) > 1 else 1):  # each factor's means in turn: least squares of their sum
        before = left
        for factor in factors:
            left = left - (np.bincount(factor, left) / np.bincount(factor))[factor]
        if np.abs(left - before).max() < 1e-9:
            break
    return float(1 - (left**2).sum() / (rows - groups) / (total / (rows - 1)))


def _leaks(mos: Floats, prompts: NDArray[np.int64], generators: NDArray[np.int64] | None) -> dict[str, Any]:
    """What a random row split gives away: each row predicted from the labels of its siblings, itself left out.

    Of a generator's mean no row is left out: among so many it tells nothing of itself, and leaving it out would turn a
    generator without effect into one that ranks its clips backwards.
    """
    siblings = _others_mean(mos, prompts)
    predicted: dict[str, Floats] = {"siblings": siblings}
    if generators is not None:
        means = np.stack([np.bincount(generators, column) / np.bincount(generators) for column in mos.T], axis=1)
        by_generator = means[generators].astype(np.float64)
        predicted |= {"generator": by_generator, "both": siblings + by_generator}
    return {name: _scores(mos, values) for name, values in predicted.items()}


def _others_mean(mos: Floats, groups: NDArray[np.int64]) -> Floats:
    """(N, 5) mean of the other rows of each row's group; NaN where it is alone."""
    counts = np.bincount(groups)[groups][:, None]
    sums = np.stack([np.bincount(groups, mos[:, i])[groups] for i in range(mos.shape[1])], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 1, (sums - mos) / (counts - 1), np.nan)


def _scores(mos: Floats, predicted: Floats) -> list[float | None]:
    there = np.isfinite(predicted).all(axis=1)
    if there.sum() < 3:
        return [None] * mos.shape[1]
    return [agreement(predicted[there, i], mos[there, i]).vquala for i in range(mos.shape[1])]


def _no_video(
    mos: Floats, prompts: NDArray[np.int64], embeddings: NDArray[Any], letters: Floats | None, advance: Advance
) -> dict[str, Any]:
    """Scores with no video at all: five folds that share no prompt, the mean over folds of each fold's score."""
    from sklearn.model_selection import GroupKFold

    embedded = np.asarray(embeddings, dtype=np.float64)
    ways = {"prompt": _ridge(embedded, mos, prompts), "prompt, by row": _ridge_by_row(embedded, mos)}
    if letters is not None:
        both = np.hstack([embedded, letters])
        ways |= {
            "generator": _ridge(letters, mos, prompts),
            "both": _ridge(both, mos, prompts),
            "both, by row": _ridge_by_row(both, mos),
            "both, SVR": _svr(np.hstack([5 * embedded, letters]), mos, prompts),
        }
    folds = list(GroupKFold(n_splits=FOLDS, shuffle=True, random_state=0).split(mos, groups=prompts))
    found: dict[str, list[list[float | None]]] = {name: [] for name in ways}
    for done, (fit, held) in enumerate(folds):
        for place, (name, way) in enumerate(ways.items()):
            advance(done * len(ways) + place, len(folds) * len(ways))
            found[name].append(_scores(mos[held], way(fit, held)))
    advance(len(folds) * len(ways), len(folds) * len(ways))
    return {
        "scores": {
            name: [_mean(column) for column in zip(*found[name], strict=True)] for name in BASELINES if name in found
        },
        "svr_rows": min(LARGEST_SVR, len(mos) - len(mos) // FOLDS) if letters is not None else 0,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _ridge(x: Floats, mos: Floats, prompts: NDArray[np.int64]) -> Predict:
    def predict(fit: NDArray[Any], held: NDArray[Any]) -> Floats:
        return no_video_baseline(x[fit], mos[fit], [str(prompt) for prompt in prompts[fit]], x[held])

    return predict


def _ridge_by_row(x: Floats, mos: Floats) -> Predict:
    def predict(fit: NDArray[Any], held: NDArray[Any]) -> Floats:
        from sklearn.linear_model import RidgeCV

        penalties = np.logspace(-1, 3, 9)
        found: Floats = RidgeCV(alphas=penalties, alpha_per_target=True).fit(x[fit], mos[fit]).predict(x[held])
        return found

    return predict


def _svr(x: Floats, mos: Floats, prompts: NDArray[np.int64]) -> Predict:
    """Support vector regression with an RBF kernel, C = 1, the embedding scaled by 5."""
    from sklearn.svm import SVR

    def predict(fit: NDArray[Any], held: NDArray[Any]) -> Floats:
        if len(fit) > LARGEST_SVR:
            order = np.random.default_rng(0).permutation(np.unique(prompts[fit]))
            rank = np.empty(order.max() + 1)
            rank[order] = np.arange(len(order))
            fit = fit[np.argsort(rank[prompts[fit]], kind="stable")[:LARGEST_SVR]]
        return np.stack([SVR(C=1.0).fit(x[fit], mos[fit, i]).predict(x[held]) for i in range(mos.shape[1])], axis=1)

    return predict
