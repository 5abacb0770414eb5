"""Each weight has an optimizer of its own: what it keeps, how it rounds, and gradients that are let go of."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ltx2_train import make_run
from ltx2_train.full.optimizer import WeightOptimizer
from ltx2_train.optim import OptimizerSettings, build_optimizer
from ltx2_train.training.loop import _report_bad

RATES = (1e-2, 1e-3)


def weights(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(1)
    shapes = ((300, 64), (300,), (8, 8))
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def optimizer(params, name="adamw", master=False, **settings):
    groups = [{"params": params[:2], "lr": RATES[0]}, {"params": params[2:], "lr": RATES[1]}]
    numbers = OptimizerSettings(name=name, **settings)
    return WeightOptimizer(
        groups, lambda weight, lr: build_optimizer([{"params": [weight], "lr": lr}], numbers, lr, "cpu")[0], 7, master
    )


def take(params, one, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for weight in params:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        one.step()


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adamw_bf16", "adafactor"])
def test_a_resumed_optimizer_goes_on_to_the_bit(name, master):
    whole = weights()
    take(whole, optimizer(whole, name, master), 0, 4)
    begun = weights()
    first = optimizer(begun, name, master)
    take(begun, first, 0, 2)
    state = copy.deepcopy(first.state_dict())
    resumed = [nn.Parameter(weight.detach().clone()) for weight in begun]
    second = optimizer(resumed, name, master)
    second.load_state_dict(state)
    take(resumed, second, 2, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_float32_weights_move_as_under_one_optimizer_for_all():
    ours, plain = weights(torch.float32), weights(torch.float32)
    take(ours, optimizer(ours), 0, 3)
    groups = [{"params": plain[:2], "lr": RATES[0]}, {"params": plain[2:], "lr": RATES[1]}]
    take(plain, torch.optim.AdamW(groups), 0, 3)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("master", [False, True])
def test_steps_smaller_than_a_digit_of_bf16_add_up(master):
    """Rounded to the nearest, ones would stay ones for ever: half a digit is 0.0039, and a step 0.0001."""
    (weight,) = params = [nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))]
    numbers = OptimizerSettings(weight_decay=0.0)
    one = WeightOptimizer(
        [{"params": params, "lr": 1e-4}],
        lambda weight, lr: build_optimizer([{"params": [weight], "lr": lr}], numbers, lr, "cpu")[0],
        0,
        master,
    )
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        one.step()
    assert float(weight.detach().float().mean()) == pytest.approx(1 - 100 * 1e-4, abs=4e-4 if not master else 4e-3)
    if not master:
        assert len(weight.unique()) > 1


def test_float32_copies_are_made_for_one_weight_at_a_time():
    params = weights()
    one = optimizer(params)
    take(params, one, 0, 1)
    assert all(own.float32.untyped_storage().nbytes() == 4 for own in one._own.values())
    assert all(weight.grad is None for weight in params)


def test_gradients_are_let_go_of_as_they_come_and_bad_ones_count_as_none():
    params, kept = weights(torch.float32), weights(torch.float32)
    released, later = optimizer(params, weight_decay=0.0), optimizer(kept, weight_decay=0.0)
    x = torch.linspace(-1, 1, 64)

    def loss(a, b, c):
        return (a @ x + b).square().sum() + c.square().sum()

    with released.releasing():
        loss(*params).backward()
        assert all(weight.grad is None for weight in params)
        assert released.moved
        norm = released.released_norm()
    released.step()
    assert not released.moved
    loss(*kept).backward()
    expected = torch.linalg.vector_norm(
        torch.cat([weight.grad.flatten() for weight in kept if weight.grad is not None])
    )
    later.step()
    torch.testing.assert_close(norm, expected)
    assert all(torch.equal(a, b) for a, b in zip(params, kept, strict=True))

    before = params[2].detach().clone()
    with released.releasing():
        (loss(*params) + (params[2] * float("nan")).sum()).backward()
        assert not torch.isfinite(released.released_norm())
    assert all(torch.isfinite(weight).all() for weight in params)
    assert (params[2] - before).abs().max() < 2 * RATES[1]
    loss(*params).backward()  # outside of it gradients stay
    assert all(weight.grad is not None for weight in params)


def test_a_gradient_that_is_not_finite_stays_out_and_the_step_ends():
    """What moved is told of, and the step is over, so that it can be saved."""
    params = weights(torch.float32)
    before, one = [weight.detach().clone() for weight in params], optimizer(params, weight_decay=0.0)
    with one.releasing():
        (params[0].sum() + params[1].sum() * float("inf")).backward()
    assert not torch.isfinite(one.released_norm())
    assert torch.equal(params[1], before[1])
    assert not torch.equal(params[0], before[0])
    assert one.moved
    one.step()
    assert not one.moved
    told = []
    events = SimpleNamespace(message=lambda text, level: told.append(text))
    run = SimpleNamespace(step=3, config=make_run({"train": {"what": "full"}}))
    _report_bad(run, ["clip"], 1, events, moved=True)
    assert told == [
        "Step 3: a gradient is not finite (clip). The weights that it was of stayed as they were; the others have "
        "moved (full.release_gradients)."
    ]
