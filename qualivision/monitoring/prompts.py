"""Whether two windows ask for other things: how well their prompts are told apart by meaning.

Owns the test on sentence embeddings. A classifier learns which window a prompt is from, and is judged on prompts that
it has not seen: an AUC of 0.5 is guessing, 1 is certainty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from qualivision.labels import prompt_key
from qualivision.monitoring.drift import CELLS_AT_ONCE, PERMUTATIONS, Change, Figure, Side, held_against_chance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from qualivision.prompts import Embeddings
    from qualivision.settings import MonitorSettings

    Floats = NDArray[np.float64]

FIGURE: Final = Figure(
    "prompts",
    means="How often a classifier on sentence embeddings takes the prompt of the current window, of a pair that it has "
    "not seen, for the current one (AUC): half of the time if the windows ask for the same kind of thing.",
    kind="prompts",
)
FOLDS: Final = 5
_RIDGE: Final = 1.0
"""Embeddings have length 1."""


def compare_prompts(
    reference: Sequence[str],
    current: Sequence[str],
    encode: Callable[[Sequence[str]], Embeddings],
    rules: MonitorSettings,
) -> Change:
    """Tell the windows' prompts apart; not settled yet.

    A prompt counts once in each window. One that is in both stays in one fold, so that it can't be learned by heart.

    Args:
        reference: the prompts of the clips.
        current: the same.
        encode: gives (N, D) embeddings of N prompts.
        rules: how few prompts are too few, and the seed of the folds.
    """
    windows = [_distinct(prompts) for prompts in (reference, current)]
    sides = [Side(len(prompts)) for prompts in windows]
    fewest = max(FOLDS, rules.min_prompts)
    if min(map(len, windows)) < fewest:
        return Change(FIGURE, sides[0], sides[1], note=f"fewer than {fewest} different")
    keys = [key for window in windows for key in window]
    is_current = np.repeat([False, True], [len(window) for window in windows])
    vectors = encode([prompt for window in windows for prompt in window.values()])
    auc, by_chance = tell_apart(vectors, is_current, keys, permutations=PERMUTATIONS, seed=rules.seed)
    return held_against_chance(Change(FIGURE, sides[0], sides[1], way="of another kind"), auc, by_chance, rules)


def tell_apart(
    vectors: Embeddings, is_current: NDArray[np.bool_], groups: Sequence[str], *, permutations: int, seed: int
) -> tuple[float, Floats]:
    """The cross-validated AUC with which rows are told apart, and those that chance gives.

    The rank sum of a cross-validated classifier is no rank sum of independent values: its p-value at 0.01 is found in 5
    of 100 equal windows. So the windows are dealt out anew, and a classifier is trained on each deal. Ridge regression
    does that for all deals at once.

    Args:
        vectors: (N, D), of length 1.
        is_current: (N,) which window each is of; both have some.
        groups: (N,) rows with the same one are never on both sides of a fold.
        permutations: how many deals.
        seed: of the folds and the deals.
    Returns:
        The AUC, and (permutations,) AUCs.
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold, cross_val_predict

    random = np.random.default_rng(seed)
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    centred = vectors - vectors.mean(axis=0)
    inside = int(is_current.sum())
    outside = len(is_current) - inside
    chunk = max(1, CELLS_AT_ONCE // len(is_current))
    found = []
    for start in range(0, permutations + 1, chunk):
        dealt = np.tile(is_current[:, None], min(chunk, permutations + 1 - start))
        dealt = random.permuted(dealt, axis=0)
        if start == 0:
            dealt[:, 0] = is_current
        model = Ridge(alpha=_RIDGE, fit_intercept=False)
        said = cross_val_predict(model, centred, dealt - inside / len(is_current), groups=groups, cv=folds)
        ranks = np.where(dealt, rankdata(said, axis=0), 0.0).sum(axis=0)
        found.append((ranks - inside * (inside + 1) / 2) / (inside * outside))
    aucs = np.concatenate(found)
    return float(aucs[0]), aucs[1:]


def _distinct(prompts: Sequence[str]) -> dict[str, str]:
    """The prompts that differ by more than case and blanks, by what makes them differ."""
    found: dict[str, str] = {}
    for prompt in prompts:
        if prompt.strip():
            found.setdefault(prompt_key(prompt), prompt)
    return dict(sorted(found.items()))
