"""Two windows compared: distances and chances are right, equal windows pass, others are found and named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from qualivision.monitoring import drift
from qualivision.monitoring.drift import GROUP, Change, Figure, Side, compare, distance, settle, unusual
from qualivision.monitoring.prompts import FIGURE as PROMPTS
from qualivision.monitoring.prompts import compare_prompts, tell_apart
from qualivision.settings import MonitorSettings

RULES = MonitorSettings()
FIGURES = [Figure(name) for name in ("sharpness", "motion", "noise", "width")]
UNSCORED = Figure("not scored", kind="unscored")


@pytest.fixture
def few_permutations(monkeypatch):
    """Enough for four figures at 0.01, at a tenth of the time."""
    monkeypatch.setattr(drift, "PERMUTATIONS", 999)


def window(*, prompts: int = 20, clips: int = 5, seed: int = 0, **shift: float) -> pd.DataFrame:
    """Clips of prompts; those of one prompt are alike in all but noise. A shift is in standard deviations."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(prompts), clips)
    table = pd.DataFrame({GROUP: [f"prompt {seed} {group}" for group in groups]})
    for figure in FIGURES:
        own = random.normal(0, 1, prompts)[groups]
        among = random.normal(0, 1, len(groups))
        values = {"sharpness": own, "motion": 0.9 * own + 0.4 * among, "noise": among, "width": 320 + 0 * own}
        table[figure.name] = values[figure.name] + shift.get(figure.name, 0.0)
    table["video_name"] = [f"{seed}_{number}.mp4" for number in range(len(table))]
    return table


def drifted(reference: pd.DataFrame, current: pd.DataFrame, figures=FIGURES, rules=RULES) -> dict[str, str]:
    settled = settle(compare(reference, current, figures, rules), rules)
    return {change.figure.name: change.way for change in settled if change.drifted}


@pytest.mark.parametrize(
    ("reference", "current"),
    [
        ([1, 2, 3, 4], [2.5, 3.5, 5]),
        ([1, 1, 1, 2, 2], [1, 2, 2, 2]),  # ties enter both sides at once
        ([3, 3, 3], [3, 3]),
        ([1, 2], [3, 4, 5]),
        ([0, 0, 1, 5, 5, 5, 9], [5, 5, 0, 9, 9, 9]),
    ],
)
def test_the_distance_is_the_kolmogorov_smirnov_statistic(reference, current):
    values = np.array([*reference, *current], float)
    is_current = np.repeat([False, True], [len(reference), len(current)])
    groups = np.array([str(number) for number in range(len(values))], dtype=object)
    found, by_chance = distance(values, is_current, groups, permutations=7, seed=0)
    assert found == pytest.approx(ks_2samp(reference, current).statistic)
    assert by_chance.shape == (7,)


def test_for_clips_that_are_all_of_different_prompts_chance_is_what_scipy_says():
    random = np.random.default_rng(3)
    reference, current = random.normal(0, 1, 80), random.normal(0.45, 1, 40)
    values, is_current = np.concatenate([reference, current]), np.repeat([False, True], [80, 40])
    found, by_chance = distance(values, is_current, np.arange(120).astype(object), permutations=4999, seed=0)
    p = (1 + (by_chance >= found - 1e-9).sum()) / 5000
    assert p == pytest.approx(ks_2samp(reference, current, method="exact").pvalue, rel=0.25)


def test_permutations_in_parts_are_those_in_one(monkeypatch):
    table = window(prompts=6)
    values, is_current = table["motion"].to_numpy(), np.repeat([False, True], [20, 10])
    groups = table[GROUP].to_numpy(dtype=object)
    whole = distance(values, is_current, groups, permutations=50, seed=1)[1]
    monkeypatch.setattr(drift, "CELLS_AT_ONCE", 7 * len(values))
    assert np.array_equal(distance(values, is_current, groups, permutations=50, seed=1)[1], whole)


def test_two_halves_of_one_population_pass_where_clips_taken_for_independent_would_not(few_permutations):
    alarms, naive = 0, 0
    for seed in range(50):
        reference, current = window(prompts=40, seed=2 * seed), window(prompts=10, seed=2 * seed + 1)
        alarms += bool(drifted(reference, current))
        found = [ks_2samp(reference[figure.name], current[figure.name]) for figure in FIGURES[:3]]
        naive += any(one.statistic >= RULES.distance and one.pvalue * 3 <= RULES.significance for one in found)
    assert alarms <= 3  # of 50 at 0.01: four or more come once in 600 times
    assert naive >= 10


@pytest.mark.parametrize(
    ("shift", "found"),
    [
        ({"noise": 1.5}, {"noise": "higher"}),
        ({"noise": -1.5, "width": 192.0}, {"noise": "lower", "width": "higher"}),
        ({"sharpness": -3.0, "motion": 3.0}, {"sharpness": "lower", "motion": "higher"}),
    ],
)
def test_a_shifted_population_is_found_and_nothing_else(few_permutations, shift, found):
    for seed in range(5):
        assert drifted(window(prompts=40, seed=100 + seed), window(prompts=20, seed=200 + seed, **shift)) == found


@pytest.mark.parametrize(("factor", "way"), [(10.0, "more varied"), (0.1, "more alike")])
def test_what_is_spread_otherwise_around_the_same_middle_is_said_so(few_permutations, factor, way):
    current = window(prompts=40, seed=2)
    current["noise"] *= factor
    assert drifted(window(prompts=40, seed=1), current) == {"noise": way}


def test_what_is_significant_but_small_has_not_drifted(few_permutations):
    reference, current = window(prompts=300, seed=1), window(prompts=300, seed=2, noise=0.4)
    [change] = settle(compare(reference, current, [Figure("noise")], RULES), RULES)
    assert change.p is not None and change.p <= RULES.significance
    assert change.distance is not None and change.distance < RULES.distance
    assert not change.drifted
    assert drifted(reference, current, rules=MonitorSettings(distance=0.1)) == {"noise": "higher"}


def test_p_values_are_corrected_for_the_number_of_figures():
    def change(number: int, p: float) -> Change:
        return Change(Figure(str(number)), Side(9), Side(9), distance=0.9, p=p)

    lonely = settle([change(0, 0.005)], RULES)
    among = settle([change(0, 0.005), *(change(number, 0.9) for number in range(1, 20))], RULES)
    assert lonely[0].drifted and not among[0].drifted
    assert among[0].p == pytest.approx(0.1)


def test_constant_columns_of_equal_value_do_not_differ_and_of_another_do(few_permutations):
    same, other = window(seed=1), window(seed=2, width=192.0)
    [change] = settle(compare(same, window(seed=3), [Figure("width")], RULES), RULES)
    assert (change.distance, change.p, change.drifted, change.way) == (0.0, 1.0, False, "as before")
    [change] = settle(compare(same, other, [Figure("width")], RULES), RULES)
    assert (change.distance, change.drifted, change.way) == (1.0, True, "higher")


def test_values_that_are_missing_are_left_out_and_a_figure_without_enough_is_not_compared(few_permutations):
    reference, current = window(seed=1), window(seed=2)
    reference.loc[::2, "noise"] = np.nan
    current["motion"] = np.nan
    current.loc[20:, "sharpness"] = np.nan  # four prompts are left
    found = {change.figure.name: change for change in settle(compare(reference, current, FIGURES, RULES), RULES)}
    assert (found["noise"].reference.count, found["noise"].current.count, found["noise"].note) == (50, 100, "")
    assert found["motion"].note == "none current" and found["motion"].current == Side(0)
    assert found["sharpness"].note == "too few current" and found["sharpness"].current.count == 20
    assert [found[name].p for name in ("motion", "sharpness")] == [None, None]
    assert compare(current, reference, [Figure("motion")], RULES)[0].note == "none reference"


def test_nothing_to_compare_is_settled_too():
    assert settle([], RULES) == []
    assert settle(compare(window(prompts=2), window(prompts=2), FIGURES, RULES), RULES)[0].drifted is False


@pytest.mark.parametrize(("failed", "way"), [(30, {"not scored": "more"}), (0, {})])
def test_more_videos_that_cannot_be_scored_are_a_drift_and_fewer_are_none(few_permutations, failed, way):
    reference, current = window(prompts=40, clips=1, seed=1), window(prompts=60, clips=1, seed=2)
    reference[UNSCORED.name], current[UNSCORED.name] = 0.0, 0.0
    current.loc[: failed - 1, UNSCORED.name] = 1.0
    assert drifted(reference, current, [UNSCORED]) == way
    assert drifted(current, reference, [UNSCORED]) == {}


@pytest.mark.parametrize(("clips", "prompts", "enough"), [(10, 5, True), (9, 9, False), (10, 4, False), (0, 0, False)])
def test_how_many_clips_of_how_many_prompts_are_enough(clips, prompts, enough):
    assert drift.enough([str(number % max(prompts, 1)) for number in range(clips)], RULES) is enough


def test_the_most_unusual_clips_are_named_with_what_is_unusual_in_them():
    reference, current = window(seed=1), window(seed=1)
    current[["sharpness", "motion", "noise"]] *= 0.1
    current.loc[7, "noise"] = 1e9  # counts as 5 deviations, and no more
    current.loc[3, ["sharpness", "motion"]] = [-40.0, -40.0]
    current.loc[4, "width"] = 1.0  # the reference knows one width only
    current.loc[5, "noise"] = np.nan
    far = unusual(reference, current, FIGURES, count=3)
    assert [clip.video_name for clip in far[:1]] == ["1_3.mp4"]
    assert {clip.video_name for clip in far} == {"1_3.mp4", "1_4.mp4", "1_7.mp4"}
    assert {clip.figure.name: clip.value for clip in far} == {"sharpness": -40.0, "width": 1.0, "noise": 1e9}


def test_unusual_clips_of_nothing_are_none():
    blank = window().assign(sharpness=np.nan)
    assert unusual(blank, window(seed=1), [Figure("sharpness")], count=3) == []
    assert unusual(window(), blank, [Figure("sharpness")], count=3) == []
    assert unusual(window(), window().iloc[:0], FIGURES, count=3) == []


def vectors(count: int, *, about: float = 0.0, seed: int = 0) -> np.ndarray:
    """Directions in 64 dimensions; what they are about pulls them towards the first."""
    found = np.random.default_rng(seed).normal(0, 1, (count, 64))
    found[:, 0] += about
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_prompts_of_one_kind_are_told_apart_no_better_than_by_chance():
    found = []
    for seed in range(50):
        is_current, names = np.repeat([False, True], [40, 12]), [str(number) for number in range(52)]
        auc, by_chance = tell_apart(vectors(52, seed=seed), is_current, names, permutations=199, seed=seed)
        found.append((1 + (by_chance >= auc - 1e-9).sum()) / 200)
    assert sum(p <= 0.02 for p in found) <= 5  # of 50: six or more come once in 3000 times
    assert 0.3 < np.median(found) < 0.7


def test_prompts_of_another_kind_are_told_apart():
    is_current, names = np.repeat([False, True], [40, 12]), [str(number) for number in range(52)]
    rows = np.concatenate([vectors(40), vectors(12, about=12.0, seed=1)])
    auc, by_chance = tell_apart(rows, is_current, names, permutations=999, seed=0)
    assert auc > 0.95 > by_chance.max()


def test_a_prompt_that_is_in_both_windows_is_never_learned_and_then_recognised():
    prompts = [f"prompt {number}" for number in range(30)]
    change = compare_prompts(prompts, [prompt.upper() for prompt in prompts], lambda asked: vectors(len(asked)), RULES)
    assert (change.reference.count, change.current.count) == (30, 30)
    same = np.concatenate([vectors(30), vectors(30)])
    change = compare_prompts(prompts, prompts, lambda asked: same, RULES)
    # Learned by heart, it would be taken for the other one, at 1. Equal figures may differ in their last digit.
    assert change.distance == pytest.approx(0.5, abs=0.01)


def test_few_different_prompts_are_no_ground_for_a_verdict():
    change = compare_prompts(["a cat"] * 50, [f"dog {number}" for number in range(50)], pytest.fail, RULES)
    assert (change.note, change.p, change.figure) == ("fewer than 5 different", None, PROMPTS)
    assert settle([change], RULES) == [change]
