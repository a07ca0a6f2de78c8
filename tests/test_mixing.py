"""Weights of members: against a plain search, at the edges, and where few clips say little."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from qualivision.errors import QualiVisionError
from qualivision.training.mixing import EQUAL_CLIPS, MixingError, fit_weights, mixed


def members(errors: list[float], clips: int, *, seed: int = 0):
    """Ratings (N, 1) and what members say of them (M, N, 1), whose errors have these deviations."""
    chance = np.random.default_rng(seed)
    rated = chance.uniform(1, 5, (clips, 1))
    return np.stack([rated + error * chance.normal(size=(clips, 1)) for error in errors]), rated


def searched(predicted, rated):
    """The same by a general solver, from what the docstring says."""
    count, size = len(predicted), np.mean((predicted - rated) ** 2)

    def cost(weights):
        misses = (weights @ predicted - rated) ** 2
        return misses.sum() + EQUAL_CLIPS * size * (weights**2).sum()

    start = np.full(count, 1 / count)
    rule = {"type": "eq", "fun": lambda weights: weights.sum() - 1}
    options = {"ftol": 1e-12, "maxiter": 500}
    return minimize(cost, start, bounds=[(0, 1)] * count, constraints=rule, method="SLSQP", options=options).x


@pytest.mark.parametrize(
    ("errors", "clips"),
    [([0.4, 0.6], 60), ([0.3, 0.9, 0.5], 40), ([0.1, 1.5], 500), ([0.5, 0.5, 0.5, 0.5], 7), ([0.2, 2.0, 2.0], 1)],
)
def test_the_weights_are_those_that_a_general_solver_finds(errors, clips):
    predicted, rated = members(errors, clips)
    found = fit_weights(predicted, rated)
    assert found.shape == (len(errors), 1)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-12)
    np.testing.assert_allclose(found[:, 0], searched(predicted[:, :, 0], rated[:, 0]), atol=2e-4)


def test_each_dimension_has_weights_of_its_own():
    one, rated = members([0.2, 0.8], 200)
    other = one[::-1]
    found = fit_weights(np.concatenate((one, other), 2), np.concatenate((rated, rated), 1))
    assert found[0, 0] > 0.8
    np.testing.assert_allclose(found[:, 0], found[::-1, 1])


def test_a_member_that_only_harms_gets_nothing():
    rated = np.linspace(1, 5, 400)[:, None]
    chance = np.random.default_rng(0).normal(size=rated.shape)
    found = fit_weights(np.stack([rated + 0.2 * chance, rated + 1.5 * chance]), rated)  # the same error, only larger
    assert found[1, 0] == 0


def test_few_clips_move_the_weights_less_than_many():
    away = [abs(fit_weights(*members([0.3, 0.7], clips))[0, 0] - 0.5) for clips in (2, 30, 2000)]
    assert away[0] < away[1] < away[2]


def test_members_that_say_the_same_count_the_same():
    predicted, rated = members([0.5], 50)
    np.testing.assert_allclose(fit_weights(np.concatenate([predicted] * 3), rated), 1 / 3)


def test_members_without_an_error_count_the_same():
    rated = np.full((4, 2), 3.0)
    np.testing.assert_allclose(fit_weights(np.stack([rated, rated]), rated), 0.5)


def test_the_fitted_mean_is_closer_to_the_ratings_than_equal_weights():
    predicted, rated = members([0.3, 0.8], 100)
    fitted = mixed(predicted, fit_weights(predicted, rated))
    assert np.mean((fitted - rated) ** 2) < np.mean((predicted.mean(0) - rated) ** 2)


def test_mixed_is_the_weighted_mean():
    predicted = np.array([[[1.0, 2.0]], [[3.0, 4.0]]])
    np.testing.assert_allclose(mixed(predicted, np.array([[0.25, 1.0], [0.75, 0.0]])), [[2.5, 2.0]])


@pytest.mark.parametrize(
    ("predicted", "rated", "says"),
    [
        (np.zeros((2, 3, 5)), np.zeros((4, 5)), "do not belong to ratings of (4, 5)"),
        (np.zeros((3, 5)), np.zeros((3, 5)), "do not belong"),
        (np.zeros((0, 3, 5)), np.zeros((3, 5)), "(0, 3, 5)"),
        (np.zeros((2, 0, 5)), np.zeros((0, 5)), "(2, 0, 5)"),
        (np.full((2, 3, 5), np.nan), np.zeros((3, 5)), "not a number"),
        (np.zeros((2, 3, 5)), np.full((3, 5), np.nan), "not a number"),
    ],
)
def test_what_no_weights_can_be_fitted_to_is_refused(predicted, rated, says):
    with pytest.raises(MixingError) as caught:
        fit_weights(predicted, rated)
    assert says in str(caught.value)
    assert isinstance(caught.value, QualiVisionError)
