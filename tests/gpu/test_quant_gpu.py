"""On a card the storage formats hold the bytes and give the numbers that they give on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltx2_train.lora.layer import LoRALinear
from ltx2_train.quant import FORMATS, QuantSettings, nf4
from ltx2_train.quant.faster import faster_matmul
from ltx2_train.quant.fp8 import KeptFp8
from ltx2_train.quant.loftq import loftq
from ltx2_train.quant.nvfp4 import KeptNvfp4
from ltx2_train.quant.report import error_table

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

IN, OUT, TOKENS = 512, 320, 96
SETTINGS = QuantSettings()
formats = pytest.mark.parametrize("format", list(FORMATS))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(format, dtype=torch.bfloat16, device="cpu"):
    weight, bias = draw(OUT, IN).to(dtype), draw(OUT, seed=1).to(dtype)
    weight[5] = 0
    return FORMATS.get(format).quantize(weight.to(device), bias.to(device), SETTINGS, dtype)


def run(module, dtype, device, tokens=TOKENS):
    x = draw(2, tokens // 2, IN, seed=2).to(device, dtype).requires_grad_()
    y = module(x)
    y.backward(draw(2, tokens // 2, OUT, seed=3).to(device, dtype))
    return y.detach().cpu().float(), x.grad.cpu().float()


def close(found, expected, dtype):
    limit = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    assert torch.isfinite(found).all()
    assert (found - expected).norm() <= limit * expected.norm()


@formats
@dtypes
def test_quantizing_gives_the_bytes_of_the_cpu(format, dtype):
    here, there = make(format, dtype), make(format, dtype, "cuda")
    for name, tensor in there.stored().items():
        assert tensor.is_cuda
        ours, theirs = here.stored()[name], tensor.cpu()
        if format in ("int8_rotated", "int4", "int2"):  # a sum in another order, a library's own division
            torch.testing.assert_close(
                theirs.float(), ours.float(), rtol=1e-2, atol=1.001 if name == "weight" else 1e-3
            )
        else:
            assert torch.equal(theirs.view(torch.uint8), ours.view(torch.uint8))


@formats
@dtypes
def test_dequantizing_gives_the_numbers_of_the_cpu(format, dtype):
    module = make(format, dtype)
    expected = module.dequantize(dtype)
    found = module.to("cuda").dequantize(dtype)
    assert found.is_cuda
    if format == "int8_rotated":
        close(found.cpu().float(), expected.float(), dtype)
    else:
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6 if dtype == torch.float32 else 8e-3, atol=0)


@formats
@dtypes
def test_value_and_gradient(format, dtype):
    module = make(format, dtype)
    expected = run(module, dtype, "cpu")
    for found, value in zip(run(module.to("cuda"), dtype, "cuda"), expected, strict=True):
        close(found, value, dtype)


@formats
def test_lora_around_it(format):
    module = make(format, device="cuda")
    plain = nn.Linear(IN, OUT, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        plain.weight.copy_(module.dequantize())
        plain.bias.copy_(module.bias)
    found = []
    for base in (module, plain):
        layer = LoRALinear(base, 8, 8.0, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            layer.lora_B.copy_(draw(OUT, 8, seed=4))
        x = draw(TOKENS, IN, seed=5).to("cuda", torch.bfloat16).requires_grad_()
        layer(x).backward(draw(TOKENS, OUT, seed=6).to("cuda", torch.bfloat16))
        found.append((x.grad, layer.lora_A.grad, layer.lora_B.grad))
    for ours, theirs in zip(*found, strict=True):
        close(ours.cpu().float(), theirs.cpu().float(), torch.bfloat16)


@formats
def test_storage_put_behind_the_buffers_counts_at_once(format):
    module, other = make(format, device="cuda"), make(format, device="cuda")
    expected = run(other, torch.bfloat16, "cuda")
    for tensor in module.stored().values():
        tensor.data = torch.zeros_like(tensor.view(torch.uint8)).view(tensor.dtype)
    run(module, torch.bfloat16, "cuda")
    for name, tensor in module.stored().items():
        tensor.data = getattr(other, name).data
    for found, value in zip(run(module, torch.bfloat16, "cuda"), expected, strict=True):
        assert torch.equal(found, value)


@formats
def test_no_weight_outlives_its_product(format):
    weight = draw(2048, 2048).to("cuda", torch.bfloat16)
    module = FORMATS.get(format).quantize(weight, None, SETTINGS, torch.bfloat16)
    x = draw(64, 2048, seed=1).to("cuda", torch.bfloat16).requires_grad_()
    module(x).sum().backward()  # workspaces and constant tables are there
    x.grad = None
    before = torch.cuda.memory_allocated()
    y = module(x)
    assert torch.cuda.memory_allocated() - before <= y.nbytes + 1024


def kept(kind):
    weight = (draw(OUT, IN) * 100).to(torch.float8_e4m3fn)
    scale = {"one": torch.tensor(0.01), "rows": 0.01 + draw(OUT, seed=2).abs(), "none": None}[kind]
    return KeptFp8(weight, scale, bias=draw(OUT, seed=1))


@pytest.mark.parametrize("kind", ["one", "rows", "none"])
def test_kept_fp8(kind):
    module = kept(kind)
    expected = run(module, torch.bfloat16, "cpu")
    for found, value in zip(run(module.to("cuda"), torch.bfloat16, "cuda"), expected, strict=True):
        close(found, value, torch.bfloat16)


def test_kept_nvfp4():
    weight = torch.randint(256, (48, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module = KeptNvfp4(weight, draw(128, 4).abs().to(torch.float8_e4m3fn), torch.tensor(0.1))
    expected = module.dequantize(torch.float32)
    torch.testing.assert_close(module.to("cuda").dequantize(torch.float32).cpu(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kind", ["int8", "int8_rotated", "fp8_cast", "one", "rows"])
def test_products_in_8_bits(kind, dtype):
    module = (kept(kind) if kind in ("one", "rows") else make(kind, dtype)).to("cuda")
    if not module.can_multiply(TOKENS):
        assert "int8" not in kind
        assert torch.cuda.get_device_capability() < (8, 9)
        pytest.skip("this card has no fp8 units")
    exact = run(module, dtype, "cuda")
    module.matmul = True
    fast = run(module, dtype, "cuda")
    for found, value in zip(fast, exact, strict=True):
        assert not torch.equal(found, value)
        assert (found - value).norm() < (0.02 if "int8" in kind else 0.05) * value.norm()
    few = run(module, dtype, "cuda", tokens=16)  # too few for the kernel: the ordinary product
    module.matmul = False
    for found, value in zip(few, run(module, dtype, "cuda", tokens=16), strict=True):
        assert torch.equal(found, value)
    assert isinstance(faster_matmul(module, TOKENS, "cuda"), bool)


@pytest.mark.parametrize("block", [32, 64, 128, 256])
@dtypes
def test_the_nf4_kernel_of_the_library_agrees_or_is_left_alone(block, dtype):
    module = FORMATS.get("nf4").quantize(draw(64, 512).bfloat16().cuda(), None, QuantSettings(block_size=block), dtype)
    assert torch.equal(module.dequantize(), nf4._by_lookup(module.weight, module.scale, dtype))


def test_loftq():
    weight = draw(512, 512).cuda()
    module, a, b = loftq(weight, lambda part: FORMATS.get("nf4").quantize(part, None, SETTINGS, torch.float32), 32, 2)
    assert a.is_cuda
    assert b.is_cuda
    plain = FORMATS.get("nf4").quantize(weight, None, SETTINGS, torch.float32).dequantize()
    assert (module.dequantize() + b @ a - weight).norm() < 0.95 * (plain - weight).norm()


def test_the_error_table_is_that_of_the_cpu():
    for ours, theirs in zip(error_table(512), error_table(512, device="cuda"), strict=True):
        assert ours["name"] == theirs["name"]
        assert theirs["snr_db"] == pytest.approx(ours["snr_db"], abs=0.02)
