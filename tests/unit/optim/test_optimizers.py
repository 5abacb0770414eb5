"""What every optimizer must keep: its formula, and a resume equal to an unbroken run."""

import copy
import importlib.util
import sys

import numpy as np
import pytest
import torch

from ltx2_train.errors import ConfigError
from ltx2_train.optim import OPTIMIZERS, OptimizerSettings, build_optimizer
from ltx2_train.settings import parse

NAMES = [pytest.param(name, id=name) for name in OPTIMIZERS]


def parameters(seed=0, sizes=((64, 96), (7,))):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(*size, generator=generator)) for size in sizes]


def gradients(step, params):
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def advance(optimizer, params, first, last):
    for step in range(first, last):
        gradients(step, params)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def leaves(value):
    """Walk a state; it must hold nothing that JSON and safetensors could not."""
    if isinstance(value, dict):
        for inner in value.values():
            leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            leaves(inner)
    else:
        assert value is None or isinstance(value, (bool, int, float, str, torch.Tensor)), type(value)


def make(name, params, lr=1e-2, **settings):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    return build_optimizer(params, OptimizerSettings(name=name, **settings), lr, "cpu")[0]


def adamw_by_hand(weights, grads, lr, beta1, beta2, eps, decay):
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for t, g in enumerate(grads, start=1):
        weights = weights * (1 - lr * decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        weights = weights - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return weights


# block-wise 8-bit state errs by a few percent of a step
@pytest.mark.parametrize(("name", "tolerance"), [("adamw", 1e-5), ("adamw8bit", 2e-2)])
def test_steps_equal_the_closed_form(name, tolerance):
    params = parameters()
    start = [p.detach().double().numpy().copy() for p in params]
    grads = [[], []]
    optimizer = make(name, params, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    for step in range(5):
        gradients(step, params)
        for history, param in zip(grads, params, strict=True):
            history.append(param.grad.double().numpy().copy())
        optimizer.step()
    for param, weights, history in zip(params, start, grads, strict=True):
        expected = adamw_by_hand(weights, history, 1e-2, 0.8, 0.95, 1e-6, 0.1)
        moved = np.abs(expected - weights).mean()
        assert np.abs(param.detach().double().numpy() - expected).mean() < tolerance * moved


def test_8bit_state_is_really_8bit_for_large_tensors():
    params = parameters()
    optimizer = make("adamw8bit", params)
    advance(optimizer, params, 0, 1)
    assert optimizer.state[params[0]]["state1"].dtype == torch.uint8
    assert optimizer.state[params[1]]["state1"].dtype == torch.float32


@pytest.mark.parametrize(("name", "args"), [*((name, {}) for name in OPTIMIZERS), ("adamw", {"amsgrad": True})])
def test_the_bytes_of_the_state_are_those_that_a_plan_counts(name, args):
    params = parameters(sizes=((256, 512),))
    optimizer = make(name, params, args=args)
    advance(optimizer, params, 0, 1)
    tensors = [value for value in optimizer.state[params[0]].values() if isinstance(value, torch.Tensor)]
    kept = sum(value.nbytes for value in tensors if value.numel() > 256)  # not the tables that all tensors share
    counted = OPTIMIZERS.get(name).state_bytes(OptimizerSettings(name=name, args=args))
    assert kept / params[0].numel() == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_resume_from_the_state_equals_an_unbroken_run(name):
    whole = parameters()
    advance(make(name, whole), whole, 0, 6)

    first = parameters()
    optimizer = make(name, first)
    advance(optimizer, first, 0, 3)
    state = copy.deepcopy(optimizer.state_dict())
    leaves(state)

    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = make(name, second)
    resumed.load_state_dict(state)
    advance(resumed, second, 3, 6)
    for a, b in zip(whole, second, strict=True):
        assert torch.equal(a, b)


def test_groups_keep_their_own_rates():
    a, b = parameters()
    optimizer, _ = build_optimizer(
        [{"params": [a], "lr": 0.5}, {"params": [b]}], OptimizerSettings(name="adamw"), 0.1, "cpu"
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_auto_takes_plain_adamw_without_cuda_and_says_why():
    optimizer, note = build_optimizer(parameters(), OptimizerSettings(), 1e-4, "cpu")
    assert type(optimizer) is torch.optim.AdamW
    assert "not CUDA" in note
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.9, 0.999), 1e-8, 0.01, 1e-4)


def test_missing_bitsandbytes_names_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        build_optimizer(parameters(), OptimizerSettings(name="adamw8bit"), 1e-4, "cpu")


def test_arguments_come_as_table_or_as_pairs_and_unknown_ones_are_named():
    settings = OptimizerSettings(name="AdamW", args=["amsgrad=True", "eps=1e-5"])
    assert settings.args == {"amsgrad": True, "eps": 1e-5}
    group = build_optimizer(parameters(), settings, 1e-4, "cpu")[0].param_groups[0]
    assert group["amsgrad"] is True
    assert group["eps"] == 1e-5
    with pytest.raises(ConfigError, match="no argument 'amsgra'.*amsgrad"):
        build_optimizer(parameters(), OptimizerSettings(name="adamw", args={"amsgra": True}), 1e-4, "cpu")
    with pytest.raises(ConfigError, match="name=value"):
        parse(OptimizerSettings, {"args": ["amsgrad"]}, "run.toml")


def test_every_name_of_the_setting_is_in_the_table():
    choices = OptimizerSettings.model_fields["name"].annotation.__args__
    assert set(choices) - {"auto"} == set(OPTIMIZERS)


def test_wrong_betas_are_refused():
    with pytest.raises(ConfigError, match="betas"):
        parse(OptimizerSettings, {"betas": [0.9, 1.0]}, "run.toml")


def test_auto_takes_8bit_state_with_cuda_and_bitsandbytes_and_says_so(monkeypatch):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    optimizer, note = build_optimizer(parameters(), OptimizerSettings(), 1e-4, "cuda")
    assert type(optimizer) is bitsandbytes.optim.AdamW8bit
    assert "auto" in note
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    optimizer, note = build_optimizer(parameters(), OptimizerSettings(), 1e-4, "cuda")
    assert type(optimizer) is torch.optim.AdamW
    assert "bitsandbytes is not installed" in note


class Card(torch.Tensor):
    """A tensor that says it lies on a card, and remembers that it was taken to RAM and back."""

    home = "cuda"

    @property
    def device(self):
        return torch.device(self.home)

    def to(self, device):
        moved = self.as_subclass(Card)
        moved.home = str(device)
        return moved


def test_state_goes_to_ram_and_comes_back():
    from ltx2_train.optim import state_aside

    params = parameters()
    optimizer = make("adamw", params)
    advance(optimizer, params, 0, 2)
    state = optimizer.state[params[0]]
    kept = state["exp_avg"].clone()
    state["exp_avg"] = state["exp_avg"].as_subclass(Card)
    with state_aside(optimizer, "cuda"):
        assert state["exp_avg"].home == "cpu"
    assert state["exp_avg"].home == "cuda"
    assert torch.equal(state["exp_avg"].as_subclass(torch.Tensor), kept)
    assert state["step"].device.type == "cpu"  # what lay in RAM stays there
