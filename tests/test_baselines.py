"""The floor (prompt alone) and the ceiling (raters' noise), on data whose answer is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from qualivision.evaluation.baselines import (
    PENALTIES,
    _fold_errors,
    _ridge_path,
    no_video_baseline,
    noise_ceiling,
)
from qualivision.evaluation.metrics import MEAN, agreement
from qualivision.labels import DIMENSIONS


def unit_embeddings(prompts: int, width: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(prompts, width))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rated_by(raters: int, clips: int, *, noise: float, seed: int) -> pd.DataFrame:
    """Single ratings with normal noise around a normal truth of spread 1, for all dimensions."""
    random = np.random.default_rng(seed)
    columns: dict[str, np.ndarray] = {}
    for dimension in DIMENSIONS:
        truth = random.normal(3, 1, clips)
        columns[f"{dimension}_truth"] = truth
        for rater in range(raters):
            columns[f"{dimension}_{rater + 1}"] = truth + random.normal(0, noise, clips)
    return pd.DataFrame(columns)


def test_baseline_finds_a_planted_prompt_signal_and_nothing_where_there_is_none():
    random = np.random.default_rng(0)
    embeddings = unit_embeddings(300, 16, seed=1)
    signal = 3 + 3 * embeddings @ random.normal(size=(16, 5))
    signal[:, 3] = 3  # nothing about Temporal is in the prompt
    mos = np.clip(np.repeat(signal, 3, axis=0) + random.normal(0, 0.5, (900, 5)), 1, 5)
    rows = np.repeat(embeddings, 3, axis=0)
    prompts = [f"prompt {i // 3}" for i in range(900)]
    predicted = no_video_baseline(rows[:600], mos[:600], prompts[:600], rows[600:])
    assert predicted.shape == (300, 5)
    for i, dimension in enumerate(DIMENSIONS):
        srocc = agreement(predicted[:, i], mos[600:, i]).srocc
        assert srocc is not None
        if dimension == "Temporal":
            assert abs(srocc) < 0.2
        else:
            assert srocc > 0.7, dimension


def test_penalty_is_not_fooled_by_clips_of_one_prompt_on_both_sides():
    # MOS follow the prompt, but not its embedding: folds that share prompts reward learning by heart.
    random = np.random.default_rng(0)
    embeddings = np.repeat(unit_embeddings(60, 64, seed=1), 5, axis=0)
    mos = np.repeat(random.uniform(1, 5, (60, 5)), 5, axis=0) + random.normal(0, 0.2, (300, 5))
    prompts = [f"prompt {i // 5}" for i in range(300)]
    weakest, strongest = 0, len(PENALTIES) - 1
    by_prompt = _fold_errors(embeddings, mos, prompts)
    by_row = _fold_errors(embeddings, mos, [f"clip {i}" for i in range(300)])
    assert (by_prompt[weakest] > 1.2 * by_prompt[strongest]).all()
    assert (by_row[weakest] < 0.5 * by_row[strongest]).all()

    unseen = unit_embeddings(500, 64, seed=2)
    spread = no_video_baseline(embeddings, mos, prompts, unseen).std(axis=0)
    leaked = no_video_baseline(embeddings, mos, [f"clip {i}" for i in range(300)], unseen).std(axis=0)
    assert spread.mean() < leaked.mean() / 3  # it stays by the mean, as it should


@pytest.mark.parametrize("width", [4, 90])  # fewer and more directions than rows
def test_ridge_path_equals_scikit_learn(width):
    random = np.random.default_rng(0)
    x, y, new = (
        random.normal(2, 1, (40, width)),
        random.normal(3, 1, (40, 5)),
        random.normal(2, 1, (7, width)),
    )
    found = _ridge_path(x, y, new)
    for i, penalty in enumerate(PENALTIES):
        np.testing.assert_allclose(found[i], Ridge(alpha=penalty).fit(x, y).predict(new), atol=1e-8)
    assert (PENALTIES[0], PENALTIES[-1]) == pytest.approx((0.1, 1000))


def test_baseline_stays_on_the_mos_scale_and_repeats_itself():
    embeddings = unit_embeddings(30, 4, seed=0)
    mos = np.where(embeddings[:, :1] > 0, 5.0, 1.0).repeat(5, axis=1)
    prompts = [f"prompt {i}" for i in range(30)]
    predicted = no_video_baseline(embeddings, mos, prompts, 50 * embeddings)
    assert predicted.min() == 1.0
    assert predicted.max() == 5.0
    np.testing.assert_array_equal(predicted, no_video_baseline(embeddings, mos, prompts, 50 * embeddings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_mos": np.ones((6, 4))}, r"\(6, 4\)"),
        ({"train_prompts": ["a"] * 6}, "at least 2 training prompts, not 1"),
        ({"train_prompts": ["a", "b"]}, "and 2"),
        ({"test_embeddings": np.ones((2, 4))}, r"\(M, 3\) as in training, not \(2, 4\)"),
        ({"train_mos": np.full((6, 5), np.nan)}, "30 values of the training MOS"),
        ({"test_embeddings": np.full((2, 3), np.inf)}, "6 values of the test embeddings"),
    ],
)
def test_baseline_refuses_what_does_not_fit(change, message):
    good = {
        "train_embeddings": unit_embeddings(6, 3, seed=0),
        "train_mos": np.ones((6, 5)),
        "train_prompts": list("abcdef"),
        "test_embeddings": np.ones((2, 3)),
    }
    with pytest.raises(ValueError, match=message):
        no_video_baseline(**{**good, **change})


def test_ceiling_from_raters_alone_meets_theory_and_the_known_truth():
    found = noise_ceiling(rated_by(3, 20_000, noise=0.8, seed=0))
    assert found is not None
    for name in DIMENSIONS:
        raters, truth = found[name]["raters"], found[name]["truth"]
        # Truth of variance 1, noise of variance 0.64, three raters.
        assert raters["inter_rater"] == pytest.approx(1 / 1.64, abs=0.01)
        assert raters["reliability"] == pytest.approx(1 / (1 + 0.64 / 3), abs=0.01)
        assert raters["bound_PLCC"] == pytest.approx(truth["PLCC"], abs=0.01)
        assert raters["bound_SROCC"] == pytest.approx(truth["SROCC"], abs=0.01)
    assert (found["Overall"]["rows"], found["Overall"]["raters_per_clip"]) == (20_000, 3)


def test_reliability_predicts_the_correlation_with_other_raters():
    ratings = rated_by(6, 20_000, noise=1.0, seed=1)
    first = noise_ceiling(ratings[[column for column in ratings if column.endswith(("_1", "_2", "_3"))]])
    assert first is not None
    mean = [ratings[[f"Overall_{i}" for i in half]].mean(axis=1) for half in ((1, 2, 3), (4, 5, 6))]
    assert first["Overall"]["raters"]["reliability"] == pytest.approx(agreement(*mean).plcc, abs=0.015)
    assert first["Overall"]["truth"] is None


def test_ceiling_mean_is_the_mean_over_dimensions_where_all_have_it():
    ratings = rated_by(2, 200, noise=0.5, seed=0)
    found = noise_ceiling(ratings)
    assert found is not None
    srocc = [found[dimension]["truth"]["SROCC"] for dimension in DIMENSIONS]
    assert found[MEAN]["truth"]["SROCC"] == pytest.approx(np.mean(srocc))
    partly = noise_ceiling(ratings.drop(columns="Temporal_truth"))
    assert partly is not None
    assert partly[MEAN]["truth"] is None
    assert partly[MEAN]["raters"] == found[MEAN]["raters"]


def test_no_ceiling_without_single_ratings_of_every_dimension():
    ratings = rated_by(3, 20, noise=0.5, seed=0)
    assert noise_ceiling(pd.DataFrame({"video_name": ["a"]})) is None
    assert noise_ceiling(ratings.drop(columns=[f"Temporal_{i}" for i in (1, 2, 3)])) is None


def test_ceiling_does_not_make_up_what_the_ratings_do_not_hold():
    ratings = rated_by(2, 50, noise=0.5, seed=0)
    ratings.loc[[0, 1], "Traditional_1"] = np.nan  # two clips with one rater only
    ratings["Alignment_2"] = 3.0  # a rater who always says the same
    ratings["Aesthetic_2"] = -ratings["Aesthetic_1"]  # raters who disagree on everything
    found = noise_ceiling(ratings.drop(columns="Temporal_2"))
    assert found is not None
    assert found["Traditional"]["rows"] == 48
    assert found["Traditional"]["raters"] is not None
    assert found["Alignment"]["raters"] is found["Aesthetic"]["raters"] is found["Temporal"]["raters"] is None
    assert found["Aesthetic"]["truth"] is None  # their mean is constant
    assert found["Temporal"]["truth"] is not None  # one rater can be held against the truth
