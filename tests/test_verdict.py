"""The gate's rules, on made-up predictions: who passes, who does not, and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qualivision.evaluation.metrics import METRICS, agreement, resampled_metrics
from qualivision.evaluation.verdict import Verdict, judge
from qualivision.labels import DIMENSIONS
from qualivision.settings import PromoteSettings

RULES = PromoteSettings(margin=0.02, min_gain_over_no_video=0.0, resamples=400)
CLIPS, PROMPTS = 200, 40
NAMES = ("models:/q/2", "models:/q/1")


def rated(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 5, (CLIPS, len(DIMENSIONS)))


def noisy(mos: np.ndarray, noise, seed: int = 1) -> np.ndarray:
    """Predictions that are off by `noise`, one number or one for each dimension."""
    return mos + np.random.default_rng(seed).normal(size=mos.shape) * np.asarray(noise)


def prompts() -> list[str]:
    return [f"prompt {row % PROMPTS}" for row in range(CLIPS)]


def decide(challenger, champion, *, rules=RULES, no_video=None) -> Verdict:
    mos = rated()
    floor = noisy(mos, 20, seed=9) if no_video is None else no_video
    return judge(challenger, champion, floor, mos, prompts(), rules, names=NAMES, data="table")


def test_the_first_model_is_held_against_the_baseline_alone():
    verdict = decide(noisy(rated(), 1), None)
    assert verdict.passed and verdict.champion is None and verdict.against_champion == ()
    assert "no champion yet" in verdict.line
    assert "champion" not in verdict.as_markdown().splitlines()[2]


def test_a_model_that_does_not_beat_the_prompt_alone_is_refused_even_without_a_champion():
    floor = noisy(rated(), 0.5, seed=9)
    verdict = decide(noisy(rated(), 2), None, no_video=floor)
    assert not verdict.passed
    assert "without any video is a gain of -" in verdict.reasons[0] and "min_gain_over_no_video" in verdict.reasons[0]


def test_as_good_as_the_baseline_is_not_better():
    floor = noisy(rated(), 1, seed=9)
    assert not decide(floor, None, no_video=floor).passed
    assert decide(floor, None, no_video=floor, rules=RULES.model_copy(update={"min_gain_over_no_video": -0.01})).passed


def test_the_same_model_passes_and_so_does_a_better_one():
    champion = noisy(rated(), 1)
    same = decide(champion, champion)
    assert same.passed
    assert [(row.difference, row.low, row.high) for row in same.against_champion] == [(0.0, 0.0, 0.0)] * 6
    better = decide(noisy(rated(), 0.5), champion)
    assert better.passed and all(row.low > 0 for row in better.against_champion)


def test_a_worse_model_is_refused_with_every_dimension_named():
    verdict = decide(noisy(rated(), 2), noisy(rated(), 0.5))
    assert not verdict.passed
    assert [reason.split()[0] for reason in verdict.reasons] == list(DIMENSIONS)
    assert all("significantly worse" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("dimension", range(len(DIMENSIONS) - 1))
def test_one_dimension_that_is_significantly_worse_is_enough(dimension):
    noise = np.full(len(DIMENSIONS), 0.4)
    noise[dimension] = 2.0
    verdict = decide(noisy(rated(), noise), noisy(rated(), 0.5))
    assert [reason.split()[0] for reason in verdict.reasons] == [DIMENSIONS[dimension]]


def test_overall_may_be_worse_by_the_margin_and_not_by_more():
    mos = rated()
    champion, challenger = noisy(mos, 1.0), noisy(mos, 1.0, seed=3)
    overall = DIMENSIONS.index("Overall")
    gap = (
        agreement(challenger[:, overall], mos[:, overall]).vquala
        - agreement(champion[:, overall], mos[:, overall]).vquala
    )
    if gap > 0:
        champion, challenger, gap = challenger, champion, -gap
    wide = decide(challenger, champion, rules=RULES.model_copy(update={"margin": -gap + 0.001}))
    narrow = decide(challenger, champion, rules=RULES.model_copy(update={"margin": -gap - 0.001}))
    assert wide.passed
    assert len(narrow.reasons) == 1 and "Overall is worse by more than promote.margin" in narrow.reasons[0]


def test_a_model_that_says_the_same_of_every_clip_is_refused():
    constant = np.full((CLIPS, len(DIMENSIONS)), 3.0)
    verdict = decide(constant, noisy(rated(), 1))
    assert not verdict.passed
    assert "Overall is the same for every clip" in verdict.reasons
    assert decide(noisy(rated(), 1), constant).passed, "whoever says anything beats a champion that says nothing"


def test_the_intervals_are_those_of_the_written_out_paired_resamples():
    """Against a slow twin: draw prompts, write out their rows, judge both on them."""
    mos, a, b = rated(), noisy(rated(), 1), noisy(rated(), 1.5, seed=2)
    names = sorted(set(prompts()), key=repr)
    rows_of = {name: [row for row, prompt in enumerate(prompts()) if prompt == name] for name in names}
    draws = np.random.default_rng(7).multinomial(PROMPTS, np.full(PROMPTS, 1 / PROMPTS), size=30)
    held = resampled_metrics(a, mos, prompts(), resamples=30, seed=7) - resampled_metrics(
        b, mos, prompts(), resamples=30, seed=7
    )
    for resample, times in enumerate(draws):
        rows = [row for name, n in zip(names, times, strict=True) for _ in range(n) for row in rows_of[name]]
        for i in range(len(DIMENSIONS)):
            expected = agreement(a[rows, i], mos[rows, i]).vquala - agreement(b[rows, i], mos[rows, i]).vquala
            assert held[i, resample, METRICS.index("VQualA")] == pytest.approx(expected, abs=1e-9)


def test_pairing_narrows_the_interval_of_two_models_that_err_alike():
    mos = rated()
    shared = noisy(mos, 1.5)
    row = decide(noisy(shared, 0.2, seed=4), noisy(shared, 0.2, seed=5)).against_champion[-1]
    alone = resampled_metrics(shared, mos, prompts(), resamples=400, seed=0)[5, :, METRICS.index("VQualA")]
    assert row.high - row.low < 0.5 * np.ptp(np.quantile(alone, [0.025, 0.975]))


def test_a_verdict_survives_json_and_shows_its_table():
    verdict = decide(noisy(rated(), 2), noisy(rated(), 0.5))
    assert Verdict.from_dict(json.loads(json.dumps(verdict.as_dict()))) == verdict
    for shown in (verdict.as_text(), verdict.as_markdown()):
        for name in (*DIMENSIONS, "mean"):
            assert sum(name in line for line in shown.splitlines()) >= 1
        assert "200 test clips of 40 prompts" in shown and "paired bootstrap" in shown
        assert "models:/q/2 does not pass the gate, against models:/q/1" in shown
