from __future__ import annotations

import pytest
import torch
from torch import nn

from ltx2_train.lora.layer import LoRALinear


class Foreign(nn.Module):
    """A linear that keeps its weight in a way of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("stored", linear.weight.detach().clone())
        self.register_buffer("offset", linear.bias.detach().clone())

    def forward(self, x):
        return nn.functional.linear(x, self.stored, self.offset)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(kind="plain", dropout=0.0, dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linear = nn.Linear(6, 5).to(dtype)
    base = linear if kind == "plain" else Foreign(linear)
    layer = LoRALinear(base, 2, 3.0, dropout, dtype=dtype, generator=generator(seed))
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator(1))
    return layer, linear


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["plain", "foreign"])
def test_value_and_gradients_are_those_of_the_formula(kind, dropout):
    layer, linear = make(kind, dropout)
    layer.strength = 0.7
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator(2)).requires_grad_()
    mask = layer._mask(x) if dropout else torch.ones_like(x)
    expected = linear(x) + 0.7 * 3.0 / 2 * (x * mask) @ layer.lora_A.T @ layer.lora_B.T
    out = layer(x)
    torch.testing.assert_close(out, expected)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=generator(3))
    leaves = [x, layer.lora_A, layer.lora_B]
    ours = torch.autograd.grad(out, leaves, weights)
    for a, b in zip(ours, torch.autograd.grad(expected, leaves, weights), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["plain", "foreign"])
def test_gradients_equal_finite_differences(kind):
    layer, _ = make(kind)
    x = torch.randn(4, 6, dtype=torch.float64, generator=generator(2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, layer.lora_A, layer.lora_B))


@pytest.mark.parametrize("kind", ["plain", "foreign"])
def test_an_unread_layer_has_the_gradients_of_the_layer(kind):
    layer, _ = make(kind)
    x = torch.randn(4, 6, dtype=torch.float64, generator=generator(2)).requires_grad_()
    weights = torch.randn(4, 5, dtype=torch.float64, generator=generator(3))
    leaves = [x, layer.lora_A, layer.lora_B]
    for a, b in zip(
        torch.autograd.grad(layer.unread(x), leaves, weights),
        torch.autograd.grad(layer(x), leaves, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_fresh_layer_and_strength_zero_are_exactly_the_base():
    linear = nn.Linear(6, 5)
    x = torch.randn(3, 6, generator=generator())
    expected = linear(x).detach()
    layer = LoRALinear(linear, 2, 2.0, generator=generator())
    assert torch.equal(layer(x), expected)
    with torch.no_grad():
        layer.lora_B.fill_(1.0)
    assert not torch.equal(layer(x), expected)
    layer.strength = 0.0
    assert torch.equal(layer(x), expected)


def test_the_base_gets_no_gradient_and_low_precision_keeps_float32_adapters():
    layer = LoRALinear(nn.Linear(6, 5).bfloat16(), 2, 2.0, generator=generator())
    out = layer(torch.randn(3, 6, generator=generator()).bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert layer.base.weight.grad is None
    assert layer.base.bias.grad is None
    assert layer.lora_B.grad.dtype == torch.float32


def test_a_is_drawn_from_the_generator_within_kaimings_bound():
    first, second, other = (LoRALinear(nn.Linear(64, 5), 8, 8.0, generator=generator(s)) for s in (4, 4, 5))
    assert torch.equal(first.lora_A, second.lora_A)
    assert not torch.equal(first.lora_A, other.lora_A)
    assert first.lora_A.abs().max() <= 1 / 8
    assert float(first.lora_A.detach().std()) == pytest.approx(1 / 8 / 3**0.5, rel=0.1)
    assert not first.lora_B.any()


def test_dropout_changes_with_each_backward_pass_and_rests_in_evaluation():
    layer, linear = make("plain", dropout=0.5)
    x = torch.randn(4, 6, dtype=torch.float64, generator=generator(2))
    first = layer(x)
    assert torch.equal(first, layer(x))
    first.sum().backward()
    assert not torch.equal(first, layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), linear(x) + layer.scale * x @ layer.lora_A.T @ layer.lora_B.T)


@pytest.mark.parametrize("kind", ["plain", "foreign"])
@pytest.mark.parametrize(("ranks", "whole"), [(0.5, 0.0), (0.0, 0.4), (0.5, 0.4)])
def test_ranks_and_whole_layers_are_dropped_by_the_formula(kind, ranks, whole):
    _, linear = make()
    base = linear if kind == "plain" else Foreign(linear)
    options = {"dtype": torch.float64, "generator": generator(7), "rank_dropout": ranks, "module_dropout": whole}
    layer = LoRALinear(base, 8, 3.0, **options)
    with torch.no_grad():
        layer.lora_B.normal_(generator=generator(1))
    x = torch.randn(4, 6, dtype=torch.float64, generator=generator(2))
    factors = []
    for _ in range(200):
        kept = layer._kept_ranks(x.device)
        factors.append(kept)
        out = layer(x)
        assert torch.equal(out, layer(x)), "a recomputed forward meets the same"
        expected = linear(x) + layer.scale * (x @ layer.lora_A.T * kept) @ layer.lora_B.T
        torch.testing.assert_close(out, expected)
        leaves = [layer.lora_A, layer.lora_B]
        for a, b in zip(
            torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(a, b)
    assert layer.dropout_draws == 200
    stacked = torch.stack(factors)
    gone = (stacked == 0).all(dim=1).double().mean()
    assert float(gone) == pytest.approx(whole, abs=0.1)
    assert set(stacked.unique().tolist()) <= {0.0, 1 / (1 - ranks)}
    there = stacked[(stacked != 0).any(dim=1)]
    assert float((there == 0).double().mean()) == pytest.approx(ranks, abs=0.05)
    torch.testing.assert_close(layer.eval()(x), linear(x) + layer.scale * x @ layer.lora_A.T @ layer.lora_B.T)


def test_delta_is_the_change_of_the_weight_and_moving_the_layer_works():
    layer, linear = make()
    x = torch.randn(4, 6, dtype=torch.float64, generator=generator(2))
    merged = nn.functional.linear(x, linear.weight + layer.delta().double(), linear.bias)
    torch.testing.assert_close(layer(x), merged, rtol=1e-5, atol=1e-6)
    assert layer.to(torch.float32).lora_A.dtype == torch.float32
    assert set(layer.state_dict()) == {"lora_A", "lora_B", "base.weight", "base.bias"}


def test_a_transposed_input_is_handled_like_a_contiguous_one():
    layer, _ = make()
    x = torch.randn(2, 6, 4, dtype=torch.float64, generator=generator(2)).transpose(1, 2)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))
