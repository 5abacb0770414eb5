"""Weights that files bring in a low precision already are held as they are."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.functional import linear

from ltx2_train.models import fused
from ltx2_train.models.fused import Fused
from ltx2_train.quant import base
from ltx2_train.quant.fp8 import KeptFp8
from ltx2_train.quant.int8 import KeptConvrot
from ltx2_train.quant.mxfp8 import KeptMxfp8
from ltx2_train.quant.nvfp4 import KeptNvfp4


def draw(*shape, seed=0, by=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * by


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.37), torch.tensor([0.37]), draw(24).abs(), draw(24, 1).abs()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_official_fp8(stored, scale, dtype):
    weight, bias = draw(24, 40).to(stored), draw(24, seed=1)
    module = KeptFp8(weight, scale, bias=bias, compute_dtype=dtype)
    factor = 1.0 if scale is None else scale if scale.dim() == 0 else scale.reshape(-1, 1)
    expected = (weight.float() * factor).to(dtype)
    assert torch.equal(module.dequantize(), expected)
    x = draw(3, 40, seed=2).to(dtype).requires_grad_()
    y = module(x)
    assert torch.equal(y, linear(x, expected, bias.to(dtype)))
    grad = draw(3, 24, seed=3).to(dtype)
    y.backward(grad)
    assert torch.equal(x.grad, grad @ expected)
    assert torch.equal(module.weight.view(torch.uint8), weight.view(torch.uint8))
    again = KeptFp8(**module.stored(), **({} if scale is not None else {"scale": None}), compute_dtype=dtype)
    assert torch.equal(again.dequantize(), expected)
    module.to(torch.bfloat16)
    assert module.weight.dtype == stored
    assert scale is None or module.scale.dtype == torch.float32
    assert module.nbytes == 24 * 40 + (0 if scale is None else 4 * scale.numel())


@pytest.mark.parametrize("shape", [(128, 64), (256, 128), (48, 32), (144, 80), (40, 24)])
def test_nvfp4_reads_what_comfyui_writes(shape):
    kitchen = pytest.importorskip("comfy_kitchen")
    weight = draw(*shape, by=0.02)
    weight[3] = 0
    scale = weight.abs().amax() / (448.0 * 6.0)
    padded = any(size % 16 for size in shape)
    packed, block_scale = kitchen.quantize_nvfp4(weight, scale, pad_16x=padded)
    expected = kitchen.dequantize_nvfp4(packed, scale, block_scale, torch.float32)[: shape[0], : shape[1]]
    bias = draw(shape[0], seed=1)
    module = KeptNvfp4(packed, block_scale, scale, bias=bias, compute_dtype=torch.float32, shape=shape)
    assert (module.out_features, module.in_features) == shape
    torch.testing.assert_close(module.dequantize(), expected, rtol=1e-6, atol=0)
    assert 15 < 10 * torch.log10(weight.square().sum() / (module.dequantize() - weight).square().sum()) < 30
    x = draw(2, 3, shape[1], seed=2).requires_grad_()
    y = module(x)
    assert torch.equal(y, linear(x, module.dequantize(), bias))
    grad = draw(2, 3, shape[0], seed=3)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ module.dequantize())
    module.to(torch.bfloat16)
    assert module.dequantize().dtype == torch.bfloat16
    assert module.block_scale.dtype == torch.float8_e4m3fn
    assert module.nbytes == packed.nbytes + block_scale.nbytes + 4


@pytest.mark.parametrize("shape", [(128, 64), (256, 128), (48, 32), (160, 160), (40, 24)])
@pytest.mark.parametrize("stored", [torch.uint8, torch.float8_e8m0fnu])
def test_mxfp8_reads_what_comfyui_writes(shape, stored):
    kitchen = pytest.importorskip("comfy_kitchen")
    weight = draw(*shape, by=0.02)
    weight[3] = 0
    values, exponents = kitchen.quantize_mxfp8(weight, pad_32x=any(size % 32 for size in shape))
    expected = kitchen.dequantize_mxfp8(values, exponents, torch.float32)[: shape[0], : shape[1]]
    bias = draw(shape[0], seed=1)
    module = KeptMxfp8(values, exponents.view(stored), bias=bias, compute_dtype=torch.float32, shape=shape)
    assert (module.out_features, module.in_features) == shape
    assert torch.equal(module.dequantize(), expected)
    assert 28 < 10 * torch.log10(weight.square().sum() / (expected - weight).square().sum()) < 36
    x = draw(2, 3, shape[1], seed=2).requires_grad_()
    y = module(x)
    assert torch.equal(y, linear(x, expected, bias))
    grad = draw(2, 3, shape[0], seed=3)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ expected)
    module.to(torch.bfloat16)
    assert module.weight.dtype == torch.float8_e4m3fn
    assert module.nbytes == values.nbytes + exponents.nbytes


@pytest.mark.parametrize(("shape", "group"), [((24, 512), 256), ((16, 64), 64), ((8, 48), 16), ((8, 12), 4)])
def test_a_rotated_int8_weight_is_what_comfyui_wrote(shape, group):
    kitchen = pytest.importorskip("comfy_kitchen.tensor.int8").TensorWiseINT8Layout
    weight = draw(*shape, by=0.02)
    stored, about = kitchen.quantize(weight, per_channel=True, convrot=True, convrot_groupsize=group)
    expected = kitchen.dequantize(stored, about)
    bias = draw(shape[0], seed=1)
    module = KeptConvrot(stored, about.scale, bias=bias, compute_dtype=torch.float32, group=group)
    torch.testing.assert_close(module.dequantize(), expected, rtol=1e-6, atol=1e-9)
    assert 38 < 10 * torch.log10(weight.square().sum() / (module.dequantize() - weight).square().sum())
    x = draw(2, 3, shape[1], seed=2).requires_grad_()
    y = module(x)
    torch.testing.assert_close(y, linear(x, expected, bias), rtol=1e-5, atol=1e-5)
    grad = draw(2, 3, shape[0], seed=3)
    y.backward(grad)
    torch.testing.assert_close(x.grad, grad @ expected, rtol=1e-5, atol=1e-5)
    assert module.nbytes == stored.nbytes + 4 * shape[0]


def nvfp4(rows, width, shape):
    weight = torch.randint(256, (rows, width // 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales = draw(128, -(-width // 64) * 4).abs().to(torch.float8_e4m3fn)
    return KeptNvfp4(weight, scales, torch.tensor(0.1), shape=shape)


def mxfp8(rows, width, shape):
    exponents = torch.randint(100, 140, (128, -(-width // 128) * 4), generator=torch.Generator().manual_seed(1))
    return KeptMxfp8(draw(rows, width).to(torch.float8_e4m3fn), exponents.to(torch.uint8), shape=shape)


# compiled anew for each: every value of the three always, every triple with -m slow
ALWAYS = (("nvfp4", (96, 160), torch.float32), ("mxfp8", (40, 24), torch.bfloat16))
PASSES = [
    pytest.param(make, shape, dtype, marks=() if (make.__name__, shape, dtype) in ALWAYS else pytest.mark.slow)
    for make in (nvfp4, mxfp8)
    for shape in ((96, 160), (40, 24))
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize(("make", "shape", "dtype"), PASSES)
def test_one_compiled_pass_gives_the_same_weight(make, shape, dtype, monkeypatch):
    module = make(*(-(-size // 32) * 32 for size in shape), shape)
    expected = module.stored_weight(dtype)
    assert expected.shape == shape
    assert expected.is_contiguous()
    monkeypatch.setattr(fused, "BACKEND", "eager")
    module.unpacking = Fused()
    found = module.stored_weight(dtype)
    assert module.unpacking.failure is None
    assert found.is_contiguous()
    assert torch.equal(found, expected)
    module.unpacking = lambda *arguments: None  # it cannot be compiled here
    assert torch.equal(module.stored_weight(dtype), expected)


@pytest.mark.parametrize("make", [nvfp4, mxfp8])
def test_weights_worked_out_in_parts_are_the_same(make, monkeypatch):
    module = make(64, 96, (40, 70))
    expected = module.dequantize()
    monkeypatch.setattr(base, "_AT_ONCE", 96 * 7)
    assert torch.equal(module.dequantize(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [nvfp4, mxfp8])
def test_an_accelerator_which_reads_them_in_few_bytes_gives_the_same_weight(make, dtype, monkeypatch):
    module = make(64, 96, (40, 70))
    expected = module.stored_weight(dtype)
    source = sys.modules[type(module).__module__]
    read = []
    monkeypatch.setattr(source, "exact_dtype", lambda out: out.dtype)
    monkeypatch.setattr(source, "scale_into", lambda out, *two: read.append(two[0].dtype) or torch.mul(*two, out=out))
    assert torch.equal(module.stored_weight(dtype), expected)
    assert set(read) == {dtype}


def test_nvfp4_state_goes_round():
    weight = torch.randint(256, (32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales = draw(128, 4).abs().to(torch.float8_e4m3fn)
    module = KeptNvfp4(weight, scales, torch.tensor(0.1))
    other = KeptNvfp4(torch.zeros_like(weight), torch.zeros(128, 4).to(scales.dtype), torch.tensor(1.0))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.dequantize(), module.dequantize())
    assert module.dequantize().abs().max() > 0
