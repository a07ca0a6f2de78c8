"""How much each of several predictions counts: weights by dimension, fitted on clips that none of them was trained on.

Knows nothing of models, caches or checkpoints. Members may be whole models or parts of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import nnls

from qualivision.errors import QualiVisionError

if TYPE_CHECKING:
    import numpy.typing as npt

    Values = npt.NDArray[np.floating[Any]]

EQUAL_CLIPS = 10
"""So many clips speak for equal weights, beside those that are rated."""


class MixingError(QualiVisionError, ValueError):
    """Predictions that no weights can be fitted to: says what is wrong with them."""


def fit_weights(predicted: Values, rated: Values) -> npt.NDArray[np.float64]:
    """Weights with which the members' mean is closest to the ratings: least squares, shrunk towards equal weights.

    Few clips fit weights to chance. So beside the rated ones stand `EQUAL_CLIPS` thought ones, on which every member
    errs as much as all do on the average of the rated ones, each by itself: there equal weights are the best. Of N
    rated clips the share of what they say grows with N, and members that say the same count the same.

    Args:
        predicted: (M, N, K), MOS units: what M members say of N clips in K dimensions.
        rated: (N, K), MOS units: what the raters say.
    Returns:
        (M, K) float64, 0 or more, each column sums to 1.
    Raises:
        MixingError: other shapes, no member, no clip, or a value that is not a number.
    """
    if predicted.ndim != 3 or predicted.shape[1:] != rated.shape or 0 in predicted.shape:
        raise MixingError(
            f"predictions (members, clips, dimensions) of {predicted.shape} do not belong to ratings of {rated.shape}"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(rated).all()):
        raise MixingError("a prediction or a rating is not a number; without it no weights can be fitted")
    errors = predicted.astype(np.float64) - rated
    return np.stack([_on_simplex(errors[:, :, dimension].T) for dimension in range(rated.shape[1])], axis=1)


def mixed(predicted: Values, weights: Values) -> npt.NDArray[np.float64]:
    """The weighted mean (N, K) of what M members say, (M, N, K), by weights (M, K) whose columns sum to 1."""
    mean: npt.NDArray[np.float64] = (predicted * weights.astype(np.float64)[:, None, :]).sum(0)
    return mean


def _on_simplex(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The w >= 0 of sum 1 with the least |errors w|^2 + EQUAL_CLIPS s^2 |w|^2, from (N, M) errors of mean square s^2.

    As the weights sum to 1, their mean's error is the mean of the members' errors: what is sought is the shortest
    vector between the columns. Non-negative least squares finds it up to its scale, when one row more asks for a sum of
    1: for u = t w the cost is t^2 a + (t - 1)^2, at the best t it is a / (1 + a), the least where a is.
    """
    members = errors.shape[1]
    size = float(np.sqrt(np.mean(errors**2))) or 1.0
    rows = np.vstack((errors / size, np.sqrt(EQUAL_CLIPS) * np.eye(members), np.ones((1, members))))
    found, _ = nnls(rows, np.append(np.zeros(len(rows) - 1), 1.0))
    weights: npt.NDArray[np.float64] = found / found.sum()
    return weights
