"""fp8: where its scales lie and what they are worth."""

from __future__ import annotations

import pytest
import torch

from ltx2_train.quant import QuantSettings
from ltx2_train.quant.fp8 import Fp8, Fp8Cast, Fp8Uz

SETTINGS = QuantSettings()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("kind", "most"), [(Fp8, 448.0), (Fp8Uz, 240.0)])
def test_scales_of_blocks_of_64(kind, most):
    weight = (draw(24, 192) * torch.logspace(-3, 3, 24)[:, None]).bfloat16()
    module = kind.quantize(weight, None, SETTINGS, torch.bfloat16)
    blocks = weight.float().view(24, 3, 64)
    assert module.scale.shape == (24, 3, 1)
    assert module.scale.dtype == torch.bfloat16
    assert torch.equal(module.scale, (blocks.abs().amax(-1, keepdim=True) / most).bfloat16())
    stored = (blocks / module.scale.float()).clamp(-most, most).view(24, 192).to(kind.stored_dtypes[0])
    assert torch.equal(module.weight.view(torch.uint8), stored.view(torch.uint8))
    expected = (stored.float().view(24, 3, 64) * module.scale.float()).view(24, 192)
    assert torch.equal(module.dequantize(torch.float32), expected)
    assert torch.equal(module.dequantize(torch.bfloat16), expected.bfloat16())
    assert (
        (expected - weight.float()).abs()
        <= blocks.abs().amax(-1, keepdim=True).expand(-1, -1, 64).reshape(24, 192) / 16
    ).all()


@pytest.mark.parametrize(("source", "kept"), [(torch.float32, torch.float32), (torch.float16, torch.float32)])
def test_scales_have_the_dtype_of_the_source_if_it_reaches_far_enough(source, kept):
    module = Fp8.quantize((draw(8, 64) * 1e-4).to(source), None, SETTINGS, source)
    assert module.scale.dtype == kept
    assert module.dequantize().abs().max() > 1e-4


def test_one_scale_a_row_where_64_does_not_divide():
    module = Fp8.quantize(draw(8, 100), None, SETTINGS, torch.float32)
    assert module.scale.shape == (8, 1, 1)
    assert (module.dequantize() - draw(8, 100)).norm() / draw(8, 100).norm() < 0.03


def test_smallest_scale():
    module = Fp8.quantize(torch.zeros(2, 64), None, SETTINGS, torch.float32)
    assert torch.equal(module.scale, torch.full((2, 1, 1), 1e-8))


def test_without_scales_small_values_are_lost_and_large_ones_cut():
    weight = torch.tensor([[1e-4, 0.5, 1000.0, -1000.0] * 4])
    module = Fp8Cast.quantize(weight, None, SETTINGS, torch.float32)
    assert torch.equal(module.dequantize(), torch.tensor([[0.0, 0.5, 448.0, -448.0] * 4]))
    assert set(module.stored()) == {"weight"}
    assert (Fp8.quantize(weight, None, SETTINGS, torch.float32).dequantize()[0, 2] - 1000).abs() < 1


def test_small_weights_need_the_scales():
    weight = draw(64, 256) * 0.01
    loss = {
        kind: float((kind.quantize(weight, None, SETTINGS, torch.float32).dequantize() - weight).norm() / weight.norm())
        for kind in (Fp8, Fp8Cast)
    }
    assert loss[Fp8Cast] > 2 * loss[Fp8]


def test_a_compiled_function_may_work_the_weight_out(monkeypatch):
    asked = []

    def unpacking(function, *arguments):
        asked.append(function)
        return function(*arguments)

    layer = Fp8.quantize(draw(8, 128), None, SETTINGS, torch.float32)
    expected, x = layer.stored_weight(torch.float32), torch.ones(2, 128)
    before = layer(x)
    layer.unpacking = unpacking
    assert torch.equal(layer.stored_weight(torch.float32), expected)
    assert torch.equal(layer(x), before)
    assert len(asked) == 2
    layer.unpacking = lambda *_: None  # it cannot be compiled here
    assert torch.equal(layer.stored_weight(torch.float32), expected)
