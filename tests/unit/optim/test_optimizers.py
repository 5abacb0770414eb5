"""What every optimizer must keep: its formula, and a resume equal to an unbroken run."""

import copy
import sys

import numpy as np
import pytest
import torch

from ltx2_train.errors import ConfigError
from ltx2_train.optim import (
    OPTIMIZERS,
    OptimizerSettings,
    averaged,
    build_optimizer,
    choose_optimizer,
    rehearse,
    state_bytes,
    why_not,
)
from ltx2_train.optim.optimizers import DEFAULTS
from ltx2_train.optim.settings import optimizer_numbers
from ltx2_train.settings import parse

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
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
    numbers = OptimizerSettings(name=name, **settings)
    if name == "adamw8bit_paged":  # the library does without pages on a CPU, and says so
        return OPTIMIZERS.get(name).build(list(params), numbers, lr, torch.device("cuda"))
    return build_optimizer(params, numbers, lr, "cpu")[0]


def adamw_by_hand(weights, grads, lr, beta1, beta2, eps, decay):
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for t, g in enumerate(grads, start=1):
        weights = weights * (1 - lr * decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        weights = weights - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return weights


# block-wise 8-bit state errs by a few percent of a step, bf16 by half a percent of each mean
@pytest.mark.parametrize(
    ("name", "tolerance"), [("adamw", 1e-5), ("adamw8bit", 2e-2), ("adamw8bit_paged", 2e-2), ("adamw_bf16", 1e-2)]
)
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
    params = parameters(sizes=((32, 4096), (4096, 32)))
    optimizer = make(name, params, args=args)
    advance(optimizer, params, 0, 1)
    tensors = [value for param in params for value in optimizer.state[param].values()]
    # not the tables that all tensors share
    kept = sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor) and value.shape != (256,))
    counted = state_bytes(OptimizerSettings(name=name, args=args), "cuda", rank=32)
    assert kept / sum(param.numel() for param in params) == pytest.approx(counted, rel=0.01)


SIZES = ((64, 96), (7, 3))  # two matrices, as Muon wants; the second is too small for 8 bits


@pytest.mark.parametrize("name", NAMES)
def test_resume_from_the_state_equals_an_unbroken_run(name):
    whole = parameters(sizes=SIZES)
    unbroken = make(name, whole)
    advance(unbroken, whole, 0, 3)
    with averaged(unbroken):  # a save or a sample on the way changes nothing
        pass
    advance(unbroken, whole, 3, 6)

    first = parameters(sizes=SIZES)
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
    for a, b in zip(parameters(sizes=SIZES), second, strict=True):
        assert not torch.equal(a, b), "they did move"


@pytest.mark.parametrize("name", NAMES)
def test_each_learns_a_small_low_rank_layer(name):
    """From A drawn and B zero, as a LoRA begins, to the change of a layer that can be reached with this rank."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(24, 2, generator=generator) @ torch.randn(2, 80, generator=generator) / 10
    a = torch.nn.Parameter(torch.randn(4, 80, generator=generator) / 9)
    b = torch.nn.Parameter(torch.zeros(24, 4))
    before = torch.random.get_rng_state()
    optimizer = make(name, [a, b], lr=1.0 if name == "prodigy" else 0.03, weight_decay=0.0)
    for _ in range(150):
        (b @ a - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with averaged(optimizer):
        assert (b @ a - target).square().mean() < 0.02 * target.square().mean()
    assert torch.equal(before, torch.random.get_rng_state()), "the random numbers of training are not its own"


def test_without_a_schedule_the_mean_is_shown_and_training_goes_on_to_the_bit():
    params = parameters(sizes=SIZES)
    optimizer = make("schedule_free", params, betas=(0.5, 0.999))
    advance(optimizer, params, 0, 4)
    trained = [param.detach().clone() for param in params]
    with averaged(optimizer):
        for param, was in zip(params, trained, strict=True):
            # y = beta x + (1 - beta) z, of which x is shown
            shown = (was - 0.5 * optimizer.state[param]["z"]) / 0.5
            torch.testing.assert_close(param.detach(), shown)
    for param, was in zip(params, trained, strict=True):
        assert torch.equal(param, was)
    advance(optimizer, params, 4, 5)  # it is in training mode


def test_bf16_state_follows_a_mean_that_moves_by_less_than_its_spacing():
    from ltx2_train.optim.adamw_bf16 import by_chance

    values = torch.full((1 << 16,), 1.001)  # neighbours in bf16 are 1 and 1.0078125
    rounded = by_chance(values, torch.Generator().manual_seed(0)).float()
    assert set(rounded.tolist()) == {1.0, 1.0078125}
    assert rounded.mean().item() == pytest.approx(1.001, abs=1e-4)
    assert torch.equal(by_chance(-values, torch.Generator().manual_seed(0)).float(), -rounded)
    exact = torch.tensor([0.0, 1.5, -3.0])
    assert torch.equal(by_chance(exact, torch.Generator().manual_seed(1)).float(), exact)

    param = torch.nn.Parameter(torch.zeros(4096, 1))
    optimizer = make("adamw_bf16", [param], lr=1e-6)
    for gradient in (1.0, *[0.1] * 400):
        param.grad = torch.full_like(param, gradient)
        optimizer.step()
    expected = 0.001 * 0.999**400 + 0.01 * (1 - 0.999**400)
    assert optimizer.state[param]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=0.01)


def test_a_class_by_its_dotted_name_takes_its_arguments_and_its_bytes_are_measured():
    settings = OptimizerSettings(name="torch.optim.RAdam", args={"decoupled_weight_decay": True})
    assert settings.model_dump()["name"] == "torch.optim.RAdam"
    optimizer, note = build_optimizer(parameters(), settings, 1e-3, "cpu")
    assert type(optimizer) is torch.optim.RAdam
    assert note == "Optimizer torch.optim.RAdam."
    group = optimizer.param_groups[0]
    assert (group["decoupled_weight_decay"], group["weight_decay"], group["lr"]) == (True, 0.01, 1e-3)
    assert state_bytes(settings, "cpu", rank=16) == pytest.approx(8, rel=0.001)
    sgd = OptimizerSettings(name="torch.optim.SGD", args=["momentum=0.9"])
    assert state_bytes(sgd, "cpu", rank=16) == pytest.approx(4, rel=0.001)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("torch.optim.Lion", {}, "torch.optim.Lion is no optimizer"),
        ("torch.optim.lr_scheduler", {}, "no optimizer"),
        ("os.path", {}, r"os\.path is no optimizer of PyTorch\.$"),
        ("torch.optim.adamax", {}, r"Did you mean torch\.optim\.Adamax\?"),
        ("no_such_package.Lion", {}, "not installed.*pip install no-such-package"),
        ("torch.optim.LBFGS", {}, "a step failed"),
        ("torch.optim.SGD", {"betas": (0.5, 0.9)}, "optimizer.betas is set, and SGD has no betas"),
        ("torch.optim.SGD", {"args": {"momentun": 0.9}}, "no argument 'momentun'.*momentum"),
        ("adafactor", {"args": {"relative_step": True}}, "relative_step.*ignore train.learning_rate"),
        ("came", {"eps": 1e-6}, "optimizer.eps is set, and CAME has eps = "),
        ("muon", {"betas": (0.5, 0.9)}, "optimizer.betas is set, and Muon has no betas"),
    ],
)
def test_what_an_optimizer_cannot_use_is_named_before_training(name, settings, words):
    with pytest.raises(ConfigError, match=words):
        rehearse(parameters(sizes=SIZES), OptimizerSettings(name=name, **settings), 1e-3, rank=4)


@pytest.mark.parametrize("name", NAMES)
def test_each_uses_the_numbers_that_it_says_and_refuses_the_others(name):
    changed = {"betas": (0.5, 0.7), "eps": 1e-4, "weight_decay": 0.2}
    assert set(changed) == set(DEFAULTS)
    for number, value in changed.items():
        if number in OPTIMIZERS.get(name).numbers:
            got = make(name, parameters(sizes=SIZES), **{number: value}).param_groups[0][number]
            assert (got[:2] if number == "betas" else got) == value, number
        else:
            with pytest.raises(ConfigError, match=f"optimizer.{number} is set, and"):
                make(name, parameters(sizes=SIZES), **{number: value})
    assert optimizer_numbers()[name] == OPTIMIZERS.get(name).numbers


def test_one_rate_for_all_is_said_where_layers_have_several():
    a, b = parameters(sizes=SIZES)
    groups = [{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.5}]
    with pytest.raises(ConfigError, match="prodigy finds one rate.*train.loraplus_ratio"):
        build_optimizer(groups, OptimizerSettings(name="prodigy"), 1.0, "cpu")


def test_pages_need_a_card():
    with pytest.raises(ConfigError, match="adamw8bit_paged.*CUDA.*Choose adamw8bit"):
        build_optimizer(parameters(), OptimizerSettings(name="adamw8bit_paged"), 1e-4, "cpu")


@pytest.mark.parametrize(
    ("name", "wants", "usual"),
    [
        ("prodigy", "1 is usual", (1.0, "linear")),
        ("schedule_free", "constant_with_warmup", (1e-4, "constant")),
        ("came", "a tenth", (1e-5, "linear")),
    ],
)
def test_unusual_numbers_are_said(name, wants, usual):
    advice = OPTIMIZERS.get(name).advice
    assert wants in advice(1e-4, "linear")
    assert advice(*usual) == ""
    assert OPTIMIZERS.get("adamw").advice(1e-4, "linear") == ""


def test_groups_keep_their_own_rates():
    a, b = parameters()
    optimizer, _ = build_optimizer(
        [{"params": [a], "lr": 0.5}, {"params": [b]}], OptimizerSettings(name="adamw"), 0.1, "cpu"
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_auto_is_adamw_wherever_nobody_asks_for_less_memory():
    optimizer, note = build_optimizer(parameters(), OptimizerSettings(), 1e-4, "cpu")
    assert type(optimizer) is torch.optim.AdamW
    assert note == "Optimizer adamw (auto)."
    assert choose_optimizer(OptimizerSettings(), "cuda")[0] == "adamw"
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"], group["lr"]) == ((0.9, 0.999), 1e-8, 0.01, 1e-4)


@pytest.mark.parametrize(
    ("name", "module", "library"),
    [
        ("adamw8bit", "bitsandbytes", "bitsandbytes"),
        ("prodigy", "prodigyopt", "prodigyopt"),
        ("came", "came_pytorch", "came-pytorch"),
        ("schedule_free", "schedulefree", "schedulefree"),
    ],
)
def test_a_missing_library_is_named_with_the_pip_line(name, module, library, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"pip install {library}"):
        build_optimizer(parameters(), OptimizerSettings(name=name), 1e-4, "cpu")


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


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_a_state_that_is_made_ahead_is_that_of_the_first_step_and_changes_none(name):
    plain, ahead = parameters(), parameters()
    first, second = make(name, plain), make(name, ahead)
    OPTIMIZERS.get(name).prepare(second)
    held = sum(t.nbytes for state in second.state.values() for t in state.values() if isinstance(t, torch.Tensor))
    advance(first, plain, 0, 3)
    assert held == sum(t.nbytes for s in first.state.values() for t in s.values() if isinstance(t, torch.Tensor))
    assert [one.grad for one in ahead] == [None, None]
    assert all(torch.equal(a, b) for a, b in zip(ahead, parameters(), strict=True))
    OPTIMIZERS.get(name).prepare(second)  # again does nothing
    advance(second, ahead, 0, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain, ahead, strict=True))


def test_a_library_that_loads_and_cannot_step_is_found_before_a_run_begins(monkeypatch):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.optim.adamw import AdamW8bit

    settings = OptimizerSettings(name="adamw8bit")
    assert why_not("adamw8bit", settings, "cpu") == ""

    def broken(self, closure=None):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(AdamW8bit, "step", broken)
    assert why_not("adamw8bit", settings, "cpu").startswith("fails in a step (RuntimeError: CUDA error: no kernel")
    monkeypatch.setattr(AdamW8bit, "step", lambda self, closure=None: None)
    assert why_not("adamw8bit", settings, "cpu") == "does not move the numbers of a step"


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
