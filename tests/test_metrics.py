"""Agreement and bootstrap: checked against SciPy and against resamples that are written out row by row."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from qualivision.evaluation.metrics import MEAN, METRICS, Bootstrap, agreement, bootstrap_over_prompts
from qualivision.labels import DIMENSIONS


def mos_like(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) predicted and rated with heavy ties on both sides, as means of three raters have."""
    random = np.random.default_rng(seed)
    rated = np.round(random.uniform(1, 5, rows) * 3) / 3
    return np.round(rated + random.normal(0, 1, rows), 1), rated


def clustered(prompts: int, clips: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(N, 5) predicted and rated where all clips of a prompt are alike, and the N prompts."""
    random = np.random.default_rng(seed)
    level = random.normal(3, 1, (prompts, 5))
    guess = level + random.normal(0, 1, (prompts, 5))
    rated = np.repeat(level, clips, axis=0) + random.normal(0, 0.1, (prompts * clips, 5))
    predicted = np.repeat(guess, clips, axis=0) + random.normal(0, 0.1, (prompts * clips, 5))
    return predicted, rated, [f"prompt {i // clips}" for i in range(prompts * clips)]


def width(bootstrap: Bootstrap, name: str, metric: str) -> float:
    interval = bootstrap.intervals[name][metric]
    assert interval is not None
    return interval[1] - interval[0]


@pytest.mark.parametrize("rows", [3, 10, 150])
def test_agreement_equals_scipy_on_tied_mos(rows):
    predicted, rated = mos_like(rows, seed=rows)
    found = agreement(predicted, rated)
    assert found.srocc == pytest.approx(spearmanr(predicted, rated).statistic)
    assert found.plcc == pytest.approx(pearsonr(predicted, rated).statistic)
    assert found.krocc == pytest.approx(kendalltau(predicted, rated).statistic)
    assert found.rmse == pytest.approx(np.sqrt(((predicted - rated) ** 2).mean()))
    assert found.vquala == pytest.approx((found.srocc + found.plcc) / 2)
    assert found.rows == rows


def test_krocc_of_ties_is_the_worked_tau_b():
    # Pairs: 4 concordant, 0 discordant, one tied on each side alone: 4 / sqrt(5 * 5).
    assert agreement([1, 1, 2, 3], [1, 2, 3, 3]).krocc == pytest.approx(0.8)


def test_plcc_is_raw_and_not_mended_by_a_monotone_fit():
    rated = np.linspace(1, 5, 20)
    found = agreement(np.exp(2 * rated), rated)
    assert found.srocc == pytest.approx(1.0)
    assert found.plcc is not None and found.plcc < 0.8


@pytest.mark.parametrize(("predicted", "rated"), [([3, 3, 3], [1, 2, 4]), ([1, 2, 4], [3, 3, 3])])
def test_a_constant_column_has_no_correlation_but_an_error(predicted, rated):
    found = agreement(predicted, rated)
    assert (found.srocc, found.plcc, found.krocc, found.vquala) == (None, None, None, None)
    assert found.rmse == pytest.approx(np.sqrt((4 + 1 + 1) / 3))


@pytest.mark.parametrize(
    ("predicted", "rated", "message"),
    [
        ([1, np.nan, 3, np.inf], [1, 2, 3, 4], "2 predicted and 0 rated of 4"),
        ([1, 2, 3, 4], [np.nan, 2, 3, 4], "0 predicted and 1 rated of 4"),
        ([1, 2], [1, 2], "at least 3 rows, not 2"),
        ([1, 2, 3], [1, 2, 3, 4], r"\(3,\) and \(4,\)"),
        ([[1], [2], [3]], [[1], [2], [3]], r"must both be \(N,\)"),
    ],
)
def test_agreement_refuses_what_it_cannot_measure(predicted, rated, message):
    with pytest.raises(ValueError, match=message):
        agreement(predicted, rated)


def test_bootstrap_equals_resamples_written_out_row_by_row():
    prompts = [f"p{i % 7}" for i in range(23)]  # prompts of three and of four clips, rows mixed
    columns = [mos_like(23, seed) for seed in range(5)]
    predicted, rated = (np.stack(side, axis=1) for side in zip(*columns, strict=True))
    found = bootstrap_over_prompts(predicted, rated, prompts, resamples=60, seed=4, confidence=0.8)

    drawn = np.random.default_rng(4).multinomial(7, np.full(7, 1 / 7), size=60)
    twin = np.array(
        [
            [list(agreement(predicted[rows, i], rated[rows, i]).named().values()) for i in range(len(DIMENSIONS))]
            for rows in ([r for r in range(23) for _ in range(times[r % 7])] for times in drawn)
        ],
        dtype=float,
    )  # (resamples, 5, metrics)
    twin = np.concatenate([twin, twin.mean(axis=1, keepdims=True)], axis=1)
    for place, name in enumerate((*DIMENSIONS, MEAN)):
        for column, metric in enumerate(METRICS):
            expected = np.quantile(twin[:, place, column], [0.1, 0.9])
            assert found.intervals[name][metric] == pytest.approx(expected, abs=1e-9), (name, metric)
    assert found.prompts == 7
    assert set(found.left_out.values()) == {0}


def test_rows_of_one_prompt_stay_together():
    predicted, rated, prompts = clustered(prompts=20, clips=10, seed=0)
    by_prompt = bootstrap_over_prompts(predicted, rated, prompts, resamples=300, seed=0)
    by_row = bootstrap_over_prompts(predicted, rated, range(len(prompts)), resamples=300, seed=0)
    for metric in METRICS:
        # Ten alike clips carry the evidence of one: the honest interval is about sqrt(10) times as wide.
        assert width(by_prompt, MEAN, metric) > 2 * width(by_row, MEAN, metric), metric


def test_intervals_hold_the_true_correlation_about_as_often_as_they_say():
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(40):
        level = random.normal(size=(100, 5))
        guess = 0.6 * level + 0.8 * random.normal(size=(100, 5))  # PLCC 0.6 by construction
        found = bootstrap_over_prompts(guess, level, range(100), resamples=200, seed=trial)
        intervals = [found.intervals[dimension]["PLCC"] for dimension in DIMENSIONS]
        covered += sum(interval is not None and interval[0] <= 0.6 <= interval[1] for interval in intervals)
    assert 0.88 < covered / 200 < 0.99


def test_same_seed_same_intervals_whatever_the_order_of_the_rows():
    predicted, rated, prompts = clustered(prompts=8, clips=3, seed=2)
    first = bootstrap_over_prompts(predicted, rated, prompts, resamples=50, seed=7)
    order = np.random.default_rng(0).permutation(len(prompts))
    mixed = bootstrap_over_prompts(predicted[order], rated[order], [prompts[i] for i in order], resamples=50, seed=7)
    other = bootstrap_over_prompts(predicted, rated, prompts, resamples=50, seed=8)
    for name in (*DIMENSIONS, MEAN):
        for metric in METRICS:
            assert mixed.intervals[name][metric] == pytest.approx(first.intervals[name][metric])
    assert other.intervals != first.intervals


def test_blocks_of_resamples_do_not_change_the_intervals(monkeypatch):
    predicted, rated, prompts = clustered(prompts=8, clips=3, seed=2)
    whole = bootstrap_over_prompts(predicted, rated, prompts, resamples=50, seed=7)
    monkeypatch.setattr("qualivision.evaluation.metrics._CELLS_AT_ONCE", 24 * 7)  # seven at a time, one left
    blocks = bootstrap_over_prompts(predicted, rated, prompts, resamples=50, seed=7)
    for metric in METRICS:
        assert blocks.intervals[MEAN][metric] == pytest.approx(whole.intervals[MEAN][metric])


def test_resamples_with_a_constant_column_are_counted_and_left_out():
    predicted, rated, prompts = clustered(prompts=3, clips=2, seed=0)
    rated[:, 4] = [1, 1, 2, 2, 3, 3]  # constant wherever one prompt is drawn three times: 1 of 9 resamples
    predicted[:, 0] = 3.0  # constant always
    found = bootstrap_over_prompts(predicted, rated, prompts, resamples=900, seed=0)
    assert 60 < found.left_out["Overall"] < 140
    assert found.left_out["Alignment"] == 0
    assert found.left_out["Traditional"] == found.left_out[MEAN] == 900
    assert found.intervals["Overall"]["SROCC"] is not None
    assert found.intervals["Traditional"]["SROCC"] is None
    assert found.intervals[MEAN]["PLCC"] is None
    assert found.intervals["Traditional"]["RMSE"] is not None


@pytest.mark.parametrize(
    ("prompts", "changes", "message"),
    [
        (["a"] * 6, {}, "at least 2 distinct ones, not 1"),
        (["a", "b", None, "a", float("nan"), "b"], {}, "2 of 6 rows have no prompt"),
        (["a", "b"], {}, r"must both be \(2, 5\)"),
        (list("abcdef"), {"resamples": 0}, "resamples of 1 or more"),
        (list("abcdef"), {"confidence": 95}, "confidence < 1"),
    ],
)
def test_bootstrap_refuses_what_it_cannot_resample(prompts, changes, message):
    predicted, rated, _ = clustered(prompts=3, clips=2, seed=0)
    with pytest.raises(ValueError, match=message):
        bootstrap_over_prompts(predicted, rated, prompts, **{"resamples": 10, "seed": 0, **changes})


def test_bootstrap_refuses_nan():
    predicted, rated, prompts = clustered(prompts=3, clips=2, seed=0)
    rated[1, 2] = np.nan
    with pytest.raises(ValueError, match="0 predicted and 1 rated of 30"):
        bootstrap_over_prompts(predicted, rated, prompts, resamples=10, seed=0)


def test_a_thousand_resamples_of_a_test_split_take_seconds_at_most():
    predicted, rated, prompts = clustered(prompts=30, clips=5, seed=0)
    start = time.perf_counter()
    bootstrap_over_prompts(predicted, rated, prompts, resamples=1000, seed=0)
    assert time.perf_counter() - start < 5.0
