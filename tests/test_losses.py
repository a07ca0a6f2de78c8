"""Each loss term against plain loops, and on the shapes and batches where such terms go wrong in silence."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import pearsonr

from qualivision.settings import LossSettings
from qualivision.training.losses import (
    CHOICE_SHARPNESS,
    FITTING,
    FITTING_WEIGHT,
    OTHER_PROMPT_MARGIN,
    RANK_MARGIN,
    RANK_MIN_GAP,
    SCALE_HIGH,
    SCALE_LOW,
    SCALE_WEIGHT,
    SMOOTH_L1_BETA,
    AdaptiveWeights,
    ShapeError,
    alignment_loss,
    choice_loss,
    correlation_loss,
    fault_loss,
    ranking_loss,
    regression_loss,
    scale_aware_loss,
)

TERMS = (regression_loss, ranking_loss, scale_aware_loss, correlation_loss)


def rated(clips: int, seed: int = 0) -> torch.Tensor:
    """(clips, 5) with heavy ties, as means of three raters have."""
    random = torch.Generator().manual_seed(seed)
    return (1 + 4 * torch.rand(clips, 5, generator=random) * 3).round() / 3


def guessed(clips: int, seed: int = 1) -> torch.Tensor:
    return 1 + 4 * torch.rand(clips, 5, generator=torch.Generator().manual_seed(seed))


def smooth_l1(error: float) -> float:
    error = abs(error)
    return error**2 / 2 / SMOOTH_L1_BETA if error < SMOOTH_L1_BETA else error - SMOOTH_L1_BETA / 2


def slow_regression(p, t):
    errors = [smooth_l1(p[i][k] - t[i][k]) for i in range(len(p)) for k in range(5)]
    return sum(errors) / len(errors)


def slow_ranking(p, t):
    hinges = [
        max(0.0, RANK_MARGIN - (p[i][k] - p[j][k]))
        for k in range(5)
        for i in range(len(p))
        for j in range(len(p))
        if t[i][k] - t[j][k] > RANK_MIN_GAP
    ]
    return sum(hinges) / max(len(hinges), 1)


def slow_scale(p, t):
    errors = [
        (p[i][k] - t[i][k]) ** 2 * (SCALE_WEIGHT if t[i][k] < SCALE_LOW or t[i][k] > SCALE_HIGH else 1.0)
        for i in range(len(p))
        for k in range(5)
    ]
    return sum(errors) / len(errors)


def slow_correlation(p, t):
    columns = [([row[k] for row in p], [row[k] for row in t]) for k in range(5)]
    found = [1 - pearsonr(x, y).statistic for x, y in columns if max(y) > min(y)]
    return sum(found) / max(len(found), 1)


@pytest.mark.parametrize("clips", [2, 3, 17])
@pytest.mark.parametrize(
    ("fast", "slow"),
    list(zip(TERMS, (slow_regression, slow_ranking, slow_scale, slow_correlation), strict=True)),
    ids=lambda term: term.__name__,
)
def test_term_equals_its_slow_twin(fast, slow, clips):
    p, t = guessed(clips).double(), rated(clips).double()
    t[:, 4] = 3.0  # one dimension in which the raters saw no difference
    assert fast(p, t).item() == pytest.approx(slow(p.tolist(), t.tolist()), abs=1e-5)


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.__name__)
@pytest.mark.parametrize("shapes", [((5,), (5,)), ((4,), (4, 1)), ((5, 5), (5,)), ((4, 5), (4, 1)), ((4, 5), (3, 5))])
def test_shapes_that_would_be_broadcast_in_silence_are_refused(term, shapes):
    with pytest.raises(ShapeError, match=r"wanted two \(B, K\) tensors, got"):
        term(torch.full(shapes[0], 3.0), torch.full(shapes[1], 3.0))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.__name__)
@pytest.mark.parametrize(
    ("predicted", "target"),
    [
        (torch.full((4, 5), 3.0), torch.full((4, 5), 3.0)),  # all constant and equal
        (torch.full((4, 5), 3.0), rated(4)),  # a model that has not learned to tell clips apart
        (guessed(4), torch.full((4, 5), 4.0)),  # raters who saw no difference
        (guessed(1), rated(1)),  # a batch of one
    ],
)
def test_constant_columns_give_a_finite_loss_and_gradient(term, predicted, target):
    predicted = predicted.clone().requires_grad_()
    loss = term(predicted, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(predicted.grad).all()


def test_rank_loss_is_zero_when_order_matches_with_margin():
    target = torch.tensor([[1.0], [2.0], [3.0]])
    assert ranking_loss(1.01 * RANK_MARGIN * target, target) == 0.0
    assert ranking_loss(-RANK_MARGIN * target, target) > RANK_MARGIN


def test_rank_loss_pulls_a_pair_apart_in_the_direction_of_its_targets():
    predicted = torch.tensor([[3.0], [3.0]], requires_grad=True)
    ranking_loss(predicted, torch.tensor([[2.0], [4.0]])).backward()
    assert predicted.grad[0] > 0 > predicted.grad[1]


def test_rank_loss_skips_pairs_within_rater_noise():
    near = torch.tensor([[3.0], [3.0 + 0.9 * RANK_MIN_GAP]])
    assert ranking_loss(torch.tensor([[5.0], [1.0]]), near) == 0.0


def test_a_constant_dimension_does_not_dilute_the_correlation():
    p, t = guessed(6), rated(6)
    t[:, 1:] = 2.0
    assert correlation_loss(p, t).item() == pytest.approx(correlation_loss(p[:, :1], t[:, :1]).item(), abs=1e-6)


def slow_alignment(p, mos, known, own):
    losses = []
    for i in range(len(p)):
        of_own = next(p[i][j] for j in range(len(p[i])) if own[i][j])
        for j in range(len(p[i])):
            if math.isnan(known[i][j]) and own[i][j]:
                continue
            if math.isnan(known[i][j]):
                losses.append(max(0.0, p[i][j] - of_own + OTHER_PROMPT_MARGIN * (mos[i] - 1)))
            else:
                losses.append((p[i][j] - known[i][j]) ** 2 * (FITTING_WEIGHT if known[i][j] > FITTING else 1.0))
    return sum(losses) / max(len(losses), 1)


def alignment_batch(clips: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions of every clip with every prompt, ratings, what is known (about half), own prompts (some shared)."""
    prompt = torch.arange(clips) // 2
    own = prompt.unsqueeze(0) == prompt.unsqueeze(1)
    by_prompt = guessed(clips)[:, :3]  # a clip's prediction for a prompt is one number, however often it stands there
    predicted = by_prompt[:, prompt].double()
    known = torch.where(torch.arange(clips * clips).view(clips, clips) % 3 == 0, torch.nan, 2.5).double()
    return predicted, rated(clips)[:, 1].double(), known, own


def test_alignment_loss_equals_its_slow_twin():
    predicted, mos, known, own = alignment_batch()
    wanted = slow_alignment(predicted.tolist(), mos.tolist(), known.tolist(), own.tolist())
    assert alignment_loss(predicted, mos, known, own).item() == pytest.approx(wanted, abs=1e-6)


def test_alignment_loss_draws_known_pairs_to_their_value():
    _, mos, _, own = alignment_batch()
    known = torch.where(own, 5.0, 2.0)
    assert alignment_loss(known, mos.float(), known, own) == 0.0
    predicted = torch.where(own, 4.0, 3.0).requires_grad_()
    alignment_loss(predicted, mos.float(), known, own).backward()
    assert (predicted.grad[~own] > 0).all() and (predicted.grad[own] < 0).all()


def test_alignment_loss_leaves_the_own_prompt_to_the_other_terms_where_nothing_is_known_of_it():
    _, mos, _, own = alignment_batch()
    known = torch.where(own, torch.nan, 2.0)
    predicted = torch.where(own, 5.0, 3.0).requires_grad_()
    alignment_loss(predicted, mos.float(), known, own).backward()
    assert (predicted.grad[~own] > 0).all() and (predicted.grad[own] == 0).all()


def slow_choice(p, known):
    losses = []
    for clip, fits in zip(p, known, strict=True):
        there = [j for j, value in enumerate(fits) if not math.isnan(value)]
        if there:
            odds = [(clip[j] - 1) / (5 - clip[j]) for j in there]
            wanted = [math.exp(CHOICE_SHARPNESS * fits[j]) for j in there]
            losses.append(-sum(w / sum(wanted) * math.log(o / sum(odds)) for w, o in zip(wanted, odds, strict=True)))
    return sum(losses) / len(losses)


def test_choice_loss_equals_its_slow_twin():
    predicted, _, known, _ = alignment_batch()
    known = known + torch.arange(known.shape[1])
    known[2] = torch.nan  # of a clip nothing is known
    wanted = slow_choice(predicted.tolist(), known.tolist())
    assert choice_loss(predicted, known).item() == pytest.approx(wanted, abs=1e-6)


def test_choice_loss_without_anything_known_is_zero_with_a_finite_gradient():
    predicted = torch.full((2, 3), 2.0, requires_grad=True)
    loss = choice_loss(predicted, torch.full((2, 3), torch.nan))
    loss.backward()
    assert loss == 0.0 and (predicted.grad == 0).all()


def test_choice_loss_raises_the_prompt_that_fits_and_lowers_the_others():
    predicted = torch.full((1, 3), 2.0, requires_grad=True)
    choice_loss(predicted, torch.tensor([[1.0, 5.0, torch.nan]])).backward()
    assert predicted.grad[0, 1] < 0 < predicted.grad[0, 0] and predicted.grad[0, 2] == 0


def test_alignment_loss_wants_the_own_prompt_ahead_by_more_the_better_it_fits():
    unknown = torch.full((2, 2), torch.nan)
    own = torch.eye(2).bool()
    predicted = torch.full((2, 2), 3.0, requires_grad=True)
    by_rating = [alignment_loss(predicted, torch.full((2,), mos), unknown, own) for mos in (1.0, 3.0, 5.0)]
    assert by_rating[0] < by_rating[1] < by_rating[2]
    by_rating[2].backward()
    assert (predicted.grad[own] < 0).all() and (predicted.grad[~own] > 0).all()


def test_alignment_loss_of_one_prompt_only_is_zero_with_a_finite_gradient():
    predicted = guessed(4)[:, :4].requires_grad_()
    everything = torch.ones(4, 4).bool()
    loss = alignment_loss(predicted, torch.full((4,), 3.0), torch.full((4, 4), torch.nan), everything)
    loss.backward()
    assert loss == 0.0
    assert (predicted.grad == 0).all()


def test_alignment_loss_has_a_finite_gradient_beside_unknown_pairs():
    predicted, mos, known, own = alignment_batch()
    predicted.requires_grad_()
    alignment_loss(predicted, mos, known, own).backward()
    assert torch.isfinite(predicted.grad).all()


def test_alignment_loss_refuses_ratings_of_another_shape():
    predicted, mos, known, own = alignment_batch()
    with pytest.raises(ShapeError, match=r"got \(6, 6\), \(6, 1\)"):
        alignment_loss(predicted, mos.unsqueeze(1), known, own)


def test_fault_loss_sums_over_kinds_and_is_the_mean_of_the_clips_of_which_they_are_known():
    predicted = torch.tensor([[1.0, 0.0], [0.5, 2.0], [9.0, 9.0]], requires_grad=True)
    known = torch.tensor([[0.0, 0.0], [0.5, 0.0], [math.nan, math.nan]])
    loss = fault_loss(predicted, known)
    assert loss.item() == pytest.approx((1.0 + 4.0) / 2)
    loss.backward()
    assert predicted.grad.tolist() == [[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]


def test_fault_loss_is_nothing_where_nothing_is_known():
    predicted = torch.rand(3, 2, requires_grad=True)
    loss = fault_loss(predicted, torch.full((3, 2), math.nan))
    loss.backward()
    assert loss.item() == 0 and not predicted.grad.any()


def test_fault_loss_refuses_another_number_of_kinds():
    with pytest.raises(ShapeError, match=r"got \(3, 2\) and \(3, 4\)"):
        fault_loss(torch.rand(3, 2), torch.rand(3, 4))


BASE = LossSettings(regression=0.7, ranking=0.3, scale=0.1, correlation=0.2, alignment=0.5)


def adapted(*epochs: tuple[float, float]) -> AdaptiveWeights:
    weights = AdaptiveWeights(BASE)
    for regression, ranking in epochs:
        weights.end_epoch({"regression": regression, "ranking": ranking, "scale": 1.0})
    return weights


def test_weights_are_the_settings_until_two_epochs_can_be_compared():
    assert adapted((1.0, 1.0)).current == BASE.model_dump()


def test_weights_shift_to_the_term_that_stalls_and_keep_their_sum():
    ranking_stalls = adapted((1.0, 1.0), (0.5, 1.0)).current
    regression_stalls = adapted((1.0, 1.0), (1.0, 0.5)).current
    assert ranking_stalls["ranking"] > BASE.ranking > regression_stalls["ranking"]
    for current in (ranking_stalls, regression_stalls):
        assert current["regression"] + current["ranking"] == pytest.approx(BASE.regression + BASE.ranking)
        assert {name: current[name] for name in ("scale", "correlation", "alignment")} == {
            name: BASE.model_dump()[name] for name in ("scale", "correlation", "alignment")
        }


def test_weights_stay_when_both_terms_improve_alike():
    assert adapted((1.0, 2.0), (0.5, 1.0)).current == pytest.approx(BASE.model_dump())


@pytest.mark.parametrize("epochs", [((1.0, 0.0), (1.0, 0.5)), ((0.0, 0.0), (1.0, 1.0)), ((1.0, 1.0), (0.0, 0.0))])
def test_weights_survive_a_term_that_was_zero(epochs):
    current = adapted(*epochs).current
    assert current["regression"] + current["ranking"] == pytest.approx(BASE.regression + BASE.ranking)
    assert min(current[term] for term in AdaptiveWeights.ADAPTING) > 0


def test_a_term_that_is_switched_off_stays_off():
    weights = AdaptiveWeights(BASE.model_copy(update={"ranking": 0.0}))
    for ranking in (1e-9, 1.0, 1.0):
        weights.end_epoch({"regression": 1.0, "ranking": ranking})
    assert (weights.current["regression"], weights.current["ranking"]) == (pytest.approx(BASE.regression), 0.0)


def test_restored_weights_go_on_as_if_never_stopped():
    gone_on, restored = adapted((1.0, 1.0), (0.5, 1.0)), AdaptiveWeights(BASE)
    restored.restore(gone_on.state())
    for weights in (gone_on, restored):
        weights.end_epoch({"regression": 0.4, "ranking": 0.7})
    assert restored.current == gone_on.current != BASE.model_dump()


def test_total_is_the_weighted_sum():
    terms = {name: torch.tensor(float(place)) for place, name in enumerate(BASE.model_dump())}
    wanted = sum(weight * place for place, weight in enumerate(BASE.model_dump().values()))
    assert AdaptiveWeights(BASE).total(terms).item() == pytest.approx(wanted)
