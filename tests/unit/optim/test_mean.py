"""The running mean of the weights: its formula, its state, and that looking at it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch

from ltx2_train.errors import RunError
from ltx2_train.optim import WeightMean


def walk(weights, mean, first, last):
    for step in range(first, last):
        with torch.no_grad():
            for weight in weights:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(step)))
        mean.update()


def fresh():
    return [torch.nn.Parameter(torch.full((3, 2), 5.0)), torch.nn.Parameter(torch.zeros(2))]


def test_it_is_the_mean_by_hand_and_forgets_where_it_began():
    weights = fresh()
    mean, by_hand = WeightMean(weights, 0.9), weights[0].detach().clone()
    for step in range(200):
        walk(weights, mean, step, step + 1)
        decay = min(0.9, (1 + step) / (10 + step))
        by_hand = decay * by_hand + (1 - decay) * weights[0].detach()
    with mean.shown():
        torch.testing.assert_close(weights[0].detach(), by_hand)
        assert weights[0].abs().max() < 2, "nothing of the fives is left"


def test_it_is_shown_and_the_weights_come_back_to_the_bit():
    weights = fresh()
    mean = WeightMean(weights, 0.9)
    walk(weights, mean, 0, 3)
    trained = [weight.detach().clone() for weight in weights]
    with mean.shown():
        assert not weights[0].equal(trained[0])
    assert all(weight.equal(was) for weight, was in zip(weights, trained, strict=True))


def test_a_resumed_mean_equals_an_unbroken_one():
    whole = fresh()
    unbroken = WeightMean(whole, 0.9)
    walk(whole, unbroken, 0, 6)
    first = fresh()
    mean = WeightMean(first, 0.9)
    walk(first, mean, 0, 3)
    state = copy.deepcopy(mean.state_dict())
    second = fresh()
    resumed = WeightMean(second, 0.9)
    resumed.load_state_dict(state)
    walk(second, resumed, 3, 6)
    assert all(a.equal(b) for a, b in zip(unbroken.state_dict()["mean"], resumed.state_dict()["mean"], strict=True))
    with pytest.raises(RunError, match="another LoRA"):
        WeightMean([torch.nn.Parameter(torch.zeros(4))], 0.9).load_state_dict(state)
