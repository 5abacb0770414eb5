"""NF4: codebook, packing and scales as published, through bitsandbytes and without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltx2_train.errors import ConfigError
from ltx2_train.models import fused
from ltx2_train.models.fused import Fused
from ltx2_train.quant import QuantSettings, nf4, quantize_linear
from ltx2_train.quant.nf4 import CODEBOOK, Nf4, quantize_nf4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(packed, scale, block):
    """The layout, spelled out one value at a time."""
    rows = []
    for row, bytes_ in enumerate(packed.tolist()):
        codes = [code for byte in bytes_ for code in (byte >> 4, byte & 15)]
        rows.append([CODEBOOK[code] * float(scale[row, place // block, 0]) for place, code in enumerate(codes)])
    return torch.tensor(rows)


@pytest.mark.parametrize("block", [32, 64, 128, 256])
def test_layout_and_nearest_value(block):
    weight = draw(6, 512).bfloat16()
    module = quantize_linear(linear_of(weight), "nf4", QuantSettings(block_size=block))
    assert module.weight.shape == (6, 256)
    assert module.scale.shape == (6, 512 // block, 1)
    assert module.scale.dtype == torch.bfloat16
    assert module.block_size == block
    assert torch.equal(module.scale[..., 0], weight.view(6, -1, block).abs().amax(-1))
    assert torch.equal(module.dequantize(torch.float32), by_hand(module.weight, module.scale, block))
    choices = torch.tensor(CODEBOOK) * module.scale.float().repeat_interleave(block, 1)  # [6, 512, 16]
    nearest = (choices - weight.float().unsqueeze(-1)).abs().amin(-1)
    torch.testing.assert_close((module.dequantize(torch.float32) - weight.float()).abs(), nearest)


def linear_of(weight):
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight)
    return linear


def test_the_even_element_is_in_the_high_half():
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 1], weight[0, 2] = 1.0, -1.0, 0.45
    packed, scale = quantize_nf4(weight, 32)
    assert packed[0, :2].tolist() == [0xF0, 0xC7]
    assert scale.item() == 1.0


def test_smallest_scale():
    packed, scale = quantize_nf4(torch.zeros(2, 32), 32)
    assert torch.equal(scale, torch.full((2, 1, 1), 1e-8))
    assert torch.equal(packed, torch.full((2, 16), 0x77, dtype=torch.uint8))


def test_a_row_is_one_block_where_the_size_does_not_divide():
    module = Nf4.quantize(draw(6, 40), None, QuantSettings(block_size=32), torch.float32)
    assert module.scale.shape == (6, 1, 1)
    assert torch.equal(module.dequantize(), by_hand(module.weight, module.scale, 40))


def test_an_odd_number_of_inputs_is_refused():
    with pytest.raises(ConfigError, match=r"nf4 packs two .* 7 inputs"):
        quantize_linear(nn.Linear(7, 4), "nf4", QuantSettings())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [32, 64, 128, 256])
def test_the_library_and_our_own_reader_agree(block, dtype, monkeypatch):
    pytest.importorskip("bitsandbytes")
    used = []
    real = nf4._by_library
    monkeypatch.setattr(nf4, "_by_library", lambda *arguments: used.append(1) or real(*arguments))
    nf4._library_agrees.cache_clear()
    module = Nf4.quantize(draw(48, 512).bfloat16(), None, QuantSettings(block_size=block), dtype)
    found = module.dequantize()
    assert len(used) == 2  # the trial and the weight
    assert torch.equal(found, nf4._by_lookup(module.weight, module.scale, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [32, 64])
def test_without_the_library_one_compiled_pass_gives_the_same_weight(block, dtype, monkeypatch):
    monkeypatch.setattr(nf4, "_library_agrees", lambda *arguments: False)
    module = Nf4.quantize(draw(48, 320).bfloat16(), None, QuantSettings(block_size=block), dtype)
    expected = module.dequantize()
    assert torch.equal(expected, by_hand(module.weight, module.scale, block).to(dtype))
    monkeypatch.setattr(fused, "BACKEND", "eager")
    module.unpacking = Fused()
    assert torch.equal(module.dequantize(), expected)
    assert module.unpacking.failure is None
    module.unpacking = lambda *arguments: None  # it cannot be compiled here
    assert torch.equal(module.dequantize(), expected)


def test_the_kernel_of_the_library_is_taken_before_a_compiled_pass():
    pytest.importorskip("bitsandbytes")
    nf4._library_agrees.cache_clear()
    module = Nf4.quantize(draw(48, 512).bfloat16(), None, QuantSettings(), torch.float32)
    module.unpacking = lambda *arguments: pytest.fail("the kernel reads it in one pass already")
    module.dequantize()


@pytest.mark.parametrize("fault", [ImportError, RuntimeError, "wrong"])
def test_a_library_that_is_absent_or_disagrees_is_left_alone(fault, monkeypatch):
    module = Nf4.quantize(draw(16, 64), None, QuantSettings(), torch.float32)
    expected = nf4._by_lookup(module.weight, module.scale, torch.float32)

    def broken(packed, scale, dtype):
        if fault == "wrong":
            return nf4._by_lookup(packed, scale, dtype) * 1.0001
        raise fault("no kernel")

    monkeypatch.setattr(nf4, "_by_library", broken)
    nf4._library_agrees.cache_clear()
    assert torch.equal(module.dequantize(), expected)
    nf4._library_agrees.cache_clear()


def test_rows_do_not_depend_on_each_other(monkeypatch):
    """Whatever is quantized piece by piece is the same as in one go."""
    from ltx2_train.quant import base

    weight = draw(37, 64)
    whole = quantize_nf4(weight, 32)
    monkeypatch.setattr(base, "_AT_ONCE", 64 * 5)
    for one, other in zip(quantize_nf4(weight, 32), whole, strict=True):
        assert torch.equal(one, other)
    packed, scale = whole
    assert torch.equal(nf4._by_lookup(packed, scale, torch.float32), by_hand(packed, scale, 32))


@pytest.mark.parametrize("fault", [None, RuntimeError])
def test_why_the_kernel_is_not_used_is_told(fault, monkeypatch):
    pytest.importorskip("bitsandbytes")
    from ltx2_train.placement import read_slowly

    module = Nf4.quantize(draw(16, 64), None, QuantSettings(), torch.float32)
    agrees = fault is None
    monkeypatch.setattr(nf4, "_library_agrees", lambda device, block, dtype: agrees)
    said = read_slowly(nn.Sequential(module), torch.device("cuda"))
    assert (said is None) == agrees
    if said is not None:
        assert "kernel of bitsandbytes, which reads other numbers here: a step takes about 1.3 times" in said
    monkeypatch.setattr(nf4, "why_missing", lambda name: "is not installed")
    assert agrees or "which is not installed" in read_slowly(nn.Sequential(module), torch.device("cuda"))
    assert read_slowly(nn.Sequential(module), torch.device("cpu")) is None
    assert read_slowly(nn.Linear(2, 2), torch.device("cuda")) is None
