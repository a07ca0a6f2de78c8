"""A forest as tensors says what scikit-learn's says, goes its ways on every value, and refuses what it can't keep."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.ensemble import ExtraTreesRegressor

from qualivision.models.forest import Forest

FEATURES = 7


def fitted() -> ExtraTreesRegressor:
    random = np.random.default_rng(0)
    features = random.normal(size=(120, FEATURES)).astype(np.float32)
    rated = 3 + np.tanh(features[:, 0]) + 0.3 * random.normal(size=120)
    return ExtraTreesRegressor(25, min_samples_leaf=2, random_state=0).fit(features, rated)


def walked(trees: ExtraTreesRegressor, features: np.ndarray) -> np.ndarray:
    """(B,): the mean over trees of the leaves that scikit-learn finds, rounded as they are kept."""
    each = [tree.tree_.value[tree.apply(features)][:, 0, 0].astype(np.float16) for tree in trees.estimators_]
    return np.mean([leaf.astype(np.float32) for leaf in each], 0)


def test_it_equals_scikit_learns_prediction():
    trees = fitted()
    features = np.random.default_rng(1).normal(0, 2, (500, FEATURES)).astype(np.float32)
    found = Forest.of(trees)(torch.from_numpy(features)).numpy()
    assert found.shape == (500,) and found.dtype == np.float32
    np.testing.assert_allclose(found, walked(trees, features), atol=1e-6)
    np.testing.assert_allclose(found, trees.predict(features), atol=2e-3)  # leaves are halves
    assert found.std() > 0.1, "else anything would be close"


def test_a_value_beside_a_threshold_goes_the_same_way():
    """Thresholds are float64 there and float32 here: one that is rounded up would take the value above it along."""
    trees = fitted()
    rows = []
    for tree in (estimator.tree_ for estimator in trees.estimators_):
        inner = tree.children_left >= 0
        for feature, threshold in zip(tree.feature[inner], tree.threshold[inner], strict=True):
            near = np.float32(threshold)
            for value in (near, np.nextafter(near, np.float32(9)), np.nextafter(near, np.float32(-9))):
                row = np.zeros(FEATURES, np.float32)
                row[feature] = value
                rows.append(row)
    features = np.stack(rows)
    found = Forest.of(trees)(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(found, walked(trees, features), atol=1e-6)


def test_what_is_no_number_counts_as_nought_and_what_is_infinite_as_far_out():
    forest = Forest.of(fitted())
    given = torch.zeros(3, FEATURES)
    given[1] = torch.nan
    given[2, 0] = torch.inf
    given[2, 1] = -torch.inf
    found = forest(given)
    assert torch.equal(found[0], found[1])
    far = torch.zeros(1, FEATURES)
    far[0, 0], far[0, 1] = 1e9, -1e9
    assert torch.equal(found[2:], forest(far))
    assert forest.logit.min() <= found.min() and found.max() <= forest.logit.max()


def test_half_precision_and_one_clip_are_taken():
    forest, features = Forest.of(fitted()), torch.randn(4, FEATURES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(forest(features.half()), forest(features.half().float()))
    assert torch.allclose(forest(features[2:3]), forest(features)[2:3])


def test_a_tree_of_one_leaf_is_a_constant():
    forest = ExtraTreesRegressor(3, min_samples_leaf=3).fit(np.eye(3, dtype=np.float32), [2.0, 2.0, 2.0])
    assert Forest.of(forest)(torch.randn(5, 3)).tolist() == [2.0] * 5


def test_its_size_rebuilds_it_for_its_tensors():
    forest = Forest.of(fitted())
    rebuilt = Forest(*forest.size)
    rebuilt.load_state_dict(forest.state_dict())
    features = torch.randn(9, FEATURES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rebuilt(features), forest(features))
    assert not list(forest.parameters()), "no optimizer touches it"


def a_tree(**changes):
    """One split, as scikit-learn keeps it."""
    values = {
        "node_count": 3,
        "children_left": np.array([1, -1, -1]),
        "children_right": np.array([2, -1, -1]),
        "feature": np.array([0, -2, -2]),
        "threshold": np.array([0.5, -2.0, -2.0]),
        "value": np.array([[[3.0]], [[1.0]], [[5.0]]]),
    }
    return SimpleNamespace(tree_=SimpleNamespace(**values | changes))


def test_another_order_of_the_nodes_is_refused():
    plain = SimpleNamespace(n_features_in_=1, estimators_=[a_tree()])
    assert Forest.of(plain)(torch.tensor([[0.0], [1.0]])).tolist() == [1.0, 5.0]
    turned = a_tree(children_left=np.array([2, -1, -1]), children_right=np.array([1, -1, -1]))
    with pytest.raises(ValueError, match="changed the order"):
        Forest.of(SimpleNamespace(n_features_in_=1, estimators_=[turned]))


def test_more_than_it_can_number_is_refused():
    with pytest.raises(ValueError, match="on 40000 features with up to 3 nodes a tree; 32767 of each"):
        Forest.of(SimpleNamespace(n_features_in_=40000, estimators_=[a_tree()]))
    with pytest.raises(ValueError, match="with up to 50001 nodes"):
        Forest.of(SimpleNamespace(n_features_in_=1, estimators_=[a_tree(node_count=50001)]))
