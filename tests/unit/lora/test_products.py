"""Linears that read one input, multiplied together; and the copies of the factors that are made once a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ltx2_train.lora.held import Held
from ltx2_train.lora.inject import inject
from ltx2_train.lora.layer import LoRALinear
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.models.attention import together
from ltx2_train.models.recompute import Remade
from ltx2_train.quant import QuantSettings, quantize_linear
from ltx2_train.training.fit.tracker import LiveBytes

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.addmm_.default, aten.mm.out)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear(outputs: int, seed: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    made = nn.Linear(64, outputs, bias=bias).to(dtype).requires_grad_(False)
    made.weight.copy_(numbers(outputs, 64, seed=seed) / 8)
    if bias:
        made.bias.copy_(numbers(outputs, seed=seed + 1))
    return made


def adapted(outputs: int, rank: int, alpha: float, seed: int, dtype: torch.dtype, kept=torch.float64) -> LoRALinear:
    layer = LoRALinear(
        linear(outputs, seed, dtype, bias=seed % 2 == 0), rank, alpha, 0.0, kept, torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        layer.lora_B.copy_(numbers(outputs, rank, seed=seed + 2))
    return layer


def set_of(dtype=torch.float64, kept=torch.float64) -> list[nn.Module]:
    """As an attention has them: three of unlike ranks and scales, one without bias, and a gate without factors."""
    layers = [
        adapted(48, 4, 4.0, 0, dtype, kept),
        adapted(48, 3, 6.0, 1, dtype, kept),
        adapted(32, 4, 8.0, 2, dtype, kept),
    ]
    return [*layers, linear(8, 6, dtype)]


def apart(linears, x):
    return [
        one.base(x) + one.scale * x @ one.lora_A.to(x.dtype).T @ one.lora_B.to(x.dtype).T
        if isinstance(one, LoRALinear)
        else one(x)
        for one in linears
    ]


def gradients(outputs, linears, x):
    loss = sum((out.double() * numbers(*out.shape, seed=9 + i)).sum() for i, out in enumerate(outputs))
    factors = [p for one in linears if isinstance(one, LoRALinear) for p in (one.lora_A, one.lora_B)]
    return torch.autograd.grad(loss, [x, *factors])


@pytest.mark.parametrize("held", [False, True])
def test_values_and_gradients_are_those_of_each_alone(held):
    linears, x = set_of(), numbers(2, 5, 64, seed=8).requires_grad_()
    expected = apart(linears, x)
    ours = together(linears, x)
    if held:
        copies = Held(linears[:3], torch.float64)
        with copies.fresh():
            ours = together(linears, x)
            found = gradients(ours, linears, x)
    else:
        found = gradients(ours, linears, x)
    for a, b in zip((*ours, *found), (*expected, *gradients(expected, linears, x)), strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_equal_finite_differences():
    linears, x = set_of()[:2], numbers(3, 64, seed=8).requires_grad_()
    factors = [p for one in linears for p in (one.lora_A, one.lora_B)]
    assert torch.autograd.gradcheck(lambda x, *_: tuple(together(linears, x)), (x, *factors))


def test_an_output_that_nobody_uses_has_no_share():
    linears, x = set_of(), numbers(5, 64, seed=8).requires_grad_()
    _, k, _, _ = together(linears, x)
    grads = torch.autograd.grad(k.sum(), [x, linears[1].lora_A, linears[0].lora_A], allow_unused=True)
    own = torch.autograd.grad(linears[1](x).sum(), [x, linears[1].lora_A])
    torch.testing.assert_close(grads[0], own[0])
    torch.testing.assert_close(grads[1], own[1])
    assert grads[2] is None or not grads[2].any()


def test_an_input_that_is_made_again_is_let_go_before_its_gradient_is_there():
    layer, x = LoRALinear(nn.Linear(32, 32).requires_grad_(False), 2, 2), torch.randn(1000, 32, requires_grad=True)
    with Remade() as remade:
        out = layer(remade.note(torch.clone, x))
    grad = torch.ones_like(out)
    with LiveBytes("cpu") as tracker:
        torch.autograd.backward(out, grad)
    assert tracker.peak < 1.5 * x.nbytes


def test_dropout_strength_and_foreign_bases_go_their_own_way():
    linears, x = set_of(), numbers(5, 64, seed=8)
    linears[1].strength = 0.0
    for one, other in zip(together(linears, x), [one(x) for one in linears], strict=True):
        assert torch.equal(one, other)
    linears[1].strength, linears[2].dropout = 1.0, 0.5
    draws = linears[2].dropout_draws
    outputs = together(linears, x.requires_grad_())
    outputs[2].sum().backward()
    assert linears[2].dropout_draws == draws + 1


class Count(TorchDispatchMode):
    """How many products and how many casts there are."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.casts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func in PRODUCTS
        self.casts += func is aten._to_copy.default
        return func(*args, **(kwargs or {}))


def test_held_factors_are_multiplied_at_once_and_cast_for_no_product():
    linears, x = set_of(torch.bfloat16, torch.float32), numbers(5, 64).bfloat16().requires_grad_()
    with Held(linears[:3], torch.bfloat16).fresh(), Count() as count:
        outputs = together(linears, x)
    assert count.products == 1 + 3 * 2 + 1, "all A, then B and base of three, and the gate"
    assert count.casts == 0
    with Count() as count:
        torch.autograd.grad(sum(out.sum() for out in outputs), [x, linears[0].lora_A, linears[0].lora_B])
    assert count.casts <= 4, "of gradients only: the A together, and each B"


def test_the_copies_follow_the_factors_and_end_with_the_step():
    block = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": linear(8, 0, torch.bfloat16)})})
    model = nn.ModuleDict({"transformer_blocks": nn.ModuleList([block])})
    loras = inject(model, LoraSettings(rank=2, target_modules=["attn1.to_q"]), torch.Generator().manual_seed(0))
    layer = loras.layers["transformer_blocks.0.attn1.to_q"]
    for value in (1.0, 2.0):
        with torch.no_grad():
            layer.lora_B.fill_(value)
        with loras.held(torch.bfloat16):
            assert layer.held is not None
            assert torch.equal(layer.held[1], layer.lora_B.bfloat16())
            assert torch.equal(layer.held[0], layer.lora_A.bfloat16())
        assert layer.held is None, "outside, whoever changes the factors is seen at once"
    with pytest.raises(ValueError, match="no"), loras.held(torch.bfloat16):
        raise ValueError("no")
    assert layer.held is None
    with loras.held(torch.float32):
        assert layer.held is None, "they are in this dtype already"


@pytest.mark.parametrize("format", ["fp8", "int8", "int8_rotated", "nf4"])
@pytest.mark.parametrize("matmul", [False, True])
def test_a_quantized_base_adds_its_product_to_the_low_rank_one(format, matmul):
    base = quantize_linear(linear(48, 0, torch.float32), format, QuantSettings())
    base.matmul = matmul
    layer = LoRALinear(base, 4, 8.0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_B.copy_(numbers(48, 4, seed=3))
    x = numbers(20, 64, seed=8, dtype=torch.float32).requires_grad_()
    plain = base(x) + layer.scale * x @ layer.lora_A.T @ layer.lora_B.T
    weights = numbers(20, 48, seed=5, dtype=torch.float32)
    leaves = [x, layer.lora_A, layer.lora_B]
    out = layer(x)
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-4)
    ours = torch.autograd.grad(out, leaves, weights)
    for a, b, c in zip(
        ours,
        torch.autograd.grad(plain, leaves, weights),
        torch.autograd.grad(layer.unread(x), leaves, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert torch.equal(a, c)
