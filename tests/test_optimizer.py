"""What is decayed, and a learning rate that rises, falls and ends where the steps end."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from small_models import small_model, train_settings
from torch import nn

from qualivision.training.optimizer import make_optimizer, make_schedule


def rates(*, warmup_steps: int, total_steps: int) -> list[float]:
    """The learning rate of each step, as a share of the full one."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_schedule(optimizer, warmup_steps=warmup_steps, total_steps=total_steps)
    found = []
    for _ in range(total_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_matrices_are_decayed_and_norms_and_biases_are_not():
    model = small_model()
    optimizer = make_optimizer(model, train_settings(weight_decay=0.25))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay.pop(id(parameter)) == (0.25 if parameter.ndim > 1 else 0.0), name
    assert not decay


def test_what_is_frozen_is_not_optimized():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    optimizer = make_optimizer(layers, train_settings())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_rate_rises_in_equal_steps_and_then_falls_along_a_cosine():
    found = rates(warmup_steps=10, total_steps=110)
    rises = [after - before for before, after in pairwise(found[:11])]
    assert found[0] > 0, "a first step at rate 0 would be lost"
    assert rises == pytest.approx([rises[0]] * 10)
    assert found[10] == max(found) == pytest.approx(1.0)
    assert found[10:] == pytest.approx([(1 + math.cos(math.pi * step / 100)) / 2 for step in range(100)])


def test_rate_ends_near_zero_at_the_last_step():
    found = rates(warmup_steps=30, total_steps=300)
    assert 0 < found[-1] < 1e-3


def test_warmup_longer_than_training_is_cut_so_that_the_full_rate_is_reached():
    found = rates(warmup_steps=1000, total_steps=20)
    assert max(found) == pytest.approx(1.0)
    assert found[-1] < 0.1


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(0, 5), (0, 1), (5, 1), (1, 2)])
def test_short_schedules_have_a_rate_for_every_step(warmup_steps, total_steps):
    assert all(0 < rate <= 1 for rate in rates(warmup_steps=warmup_steps, total_steps=total_steps))
