"""A forest of extremely randomised trees, as tensors: what a whole clip's features say of its MOS, in logits.

Fitted by scikit-learn (`training/measuring.py`), kept and walked as tensors, so that scoring needs torch alone. A few
hundred clips teach it thresholds ("frozen for more than so long") that a network needs many more to find; and it never
leaves the range of what raters said of training clips, however strange a clip is.

Source: Geurts, Ernst and Wehenkel, Machine Learning 63 (2006).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

_LEAF = -1


class Forest(nn.Module):
    """Features of a clip (B, F) to a logit (B,): the mean over trees of the leaf that the clip falls into.

    Args:
        trees: how many.
        nodes: the most that one of them has.
    """

    feature: Tensor
    threshold: Tensor
    right: Tensor
    logit: Tensor

    def __init__(self, trees: int, nodes: int) -> None:
        super().__init__()
        self.register_buffer("feature", torch.full((trees, nodes), _LEAF, dtype=torch.int16))
        self.register_buffer("threshold", torch.zeros(trees, nodes))
        self.register_buffer("right", torch.zeros(trees, nodes, dtype=torch.int16))
        self.register_buffer("logit", torch.zeros(trees, nodes, dtype=torch.float16))

    @property
    def size(self) -> tuple[int, int]:
        """Trees, and the most nodes of one."""
        return self.feature.shape[0], self.feature.shape[1]

    @classmethod
    def of(cls, fitted: Any) -> Forest:
        """From a fitted `sklearn.ensemble.ExtraTreesRegressor` on float32 features; of several targets, the first.

        Raises:
            ValueError: more than 32767 features or nodes in a tree, or another order of nodes than is known here.
        """
        trees = [estimator.tree_ for estimator in fitted.estimators_]
        forest = cls(len(trees), max(tree.node_count for tree in trees))
        if max(fitted.n_features_in_, forest.size[1]) > (most := torch.iinfo(torch.int16).max):
            raise ValueError(
                f"a forest on {fitted.n_features_in_} features with up to {forest.size[1]} nodes a tree; "
                f"{most} of each can be kept"
            )
        for row, tree in enumerate(trees):
            count = tree.node_count
            is_leaf = tree.children_left < 0
            # Depth first: the left child of a node is the next one.
            if not np.array_equal(tree.children_left[~is_leaf], np.flatnonzero(~is_leaf) + 1):
                raise ValueError("scikit-learn has changed the order in which it keeps the nodes of a tree")
            right = np.where(is_leaf, 0, tree.children_right)
            values = np.where(is_leaf, _LEAF, tree.feature), _rounded_down(tree.threshold), right
            for held, given in zip((forest.feature, forest.threshold, forest.right), values, strict=True):
                held[row, :count] = torch.from_numpy(given).to(held.dtype)
            forest.logit[row, :count] = torch.from_numpy(tree.value[:, 0, 0]).half()
        return forest

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) to (B,) float32."""
        features = features.float().nan_to_num()
        row = torch.arange(len(self.feature), device=features.device)
        node = torch.zeros(len(features), len(row), dtype=torch.long, device=features.device)
        while True:
            asked = self.feature[row, node].long()
            if bool((asked == _LEAF).all()):
                break
            goes_left = features.gather(1, asked.clamp(min=0)) <= self.threshold[row, node]
            after = torch.where(goes_left, node + 1, self.right[row, node].long())
            node = torch.where(asked == _LEAF, node, after)
        return self.logit[row, node].float().mean(1)


def _rounded_down(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 that is not above each: no float32 lies between the two, so all of them go the same way."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)
