"""The product in 8 bits: near the exact one, exactly where it may be, and a training that learns as well with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltx2_train.lora.layer import LoRALinear
from ltx2_train.quant import FORMATS, QuantSettings, faster, multiply, quantize_linear
from ltx2_train.quant.faster import faster_matmul, has_matmul, set_matmul
from ltx2_train.quant.fp8 import Fp8, KeptFp8

SETTINGS = QuantSettings()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(kind, inputs=128, outputs=96, dtype=torch.float32):
    weight, bias = draw(outputs, inputs).to(dtype), draw(outputs, seed=1).to(dtype)
    if kind == "kept_fp8":
        return KeptFp8((weight * 100).to(torch.float8_e4m3fn), torch.tensor(0.01), bias=bias, compute_dtype=dtype)
    if kind == "kept_fp8_rows":
        scale = 0.01 + draw(outputs, seed=2).abs()
        return KeptFp8((weight * 100).to(torch.float8_e4m3fn), scale, bias=bias, compute_dtype=dtype)
    return FORMATS.get(kind).quantize(weight, bias, SETTINGS, dtype)


def snr(found, expected):
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


ABLE = ["int8", "int8_rotated", "fp8_cast", "kept_fp8", "kept_fp8_rows"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ABLE)
def test_close_to_the_exact_product_forward_and_back(kind, dtype):
    module = make(kind, dtype=dtype)
    size = 10.0 ** draw(40, 1, seed=3)  # tokens of very different strength: each has a scale of its own
    values, grad = (draw(40, 128, seed=4) * size).to(dtype), (draw(40, 96, seed=5) / size).to(dtype)
    found = []
    for on in (False, True):
        module.matmul = on
        x = values.clone().requires_grad_()
        y = module(x)
        assert y.dtype == dtype
        y.backward(grad)
        found.append((y.detach().float(), x.grad.float()))
    least = 36 if kind.startswith("int8") else 28
    for exact, fast in zip(*found, strict=True):
        assert snr(fast, exact) > least
        rows = [snr(a, b) for a, b in zip(fast, exact, strict=True)]
        assert min(rows) > least - 8  # no token drowns in another's scale
        assert not torch.equal(fast, exact)  # it was really the other path


def test_integers_multiply_exactly():
    weight = torch.randint(-127, 128, (96, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scale = torch.full((96, 1), 0.5)
    x = torch.randint(-127, 128, (20, 64), generator=torch.Generator().manual_seed(1)).float()
    x[:, 0] = 127  # so the scale of each token is one
    assert torch.equal(multiply.int8_multiply(x, weight, scale), x @ (weight.float() * 0.5).t())
    grad = torch.randint(-127, 128, (20, 96), generator=torch.Generator().manual_seed(2)).float()
    grad[:, 0] = 127
    assert torch.equal(multiply.int8_multiply_back(grad, weight, scale), grad @ (weight.float() * 0.5))


@pytest.mark.parametrize("kind", ["int8", "int8_rotated", "fp8_cast"])
def test_a_card_gets_the_second_factor_by_columns_forward_and_back(kind, monkeypatch):
    """CUDA 13 has no product with a row-major second factor; a processor takes either, so the strides are asserted."""
    strides, name = [], "_scaled_mm" if kind == "fp8_cast" else "_int_mm"
    real = getattr(torch, name)

    def watched(first, second, **more):
        strides.append((first.stride(), second.stride(), first.shape[1]))
        return real(first, second, **more)

    monkeypatch.setattr(torch, name, watched)
    module = make(kind)
    module.matmul = True
    x = draw(24, 128).requires_grad_()
    module(x).backward(draw(24, 96))
    assert strides == [((128, 1), (1, 128), 128), ((96, 1), (1, 96), 96)]


@pytest.mark.parametrize("kind", ABLE)
def test_zero_tokens_and_empty_batches(kind):
    module = make(kind)
    module.matmul = True
    x = torch.zeros(20, 128, requires_grad=True)
    y = module(x)
    assert torch.equal(y, module.bias.expand(20, -1))
    y.backward(torch.zeros_like(y))
    assert torch.equal(x.grad, torch.zeros_like(x))
    assert module(torch.zeros(0, 128)).shape == (0, 96)


def test_formats_and_shapes_that_cannot_fall_back():
    for format in ("fp8", "nf4", "int4"):
        module = make(format)
        assert not module.can_multiply(64)
        module.matmul = True
        assert module(draw(3, 128)).shape == (3, 96)
    assert make("fp8_cast").can_multiply(64)
    assert not make("fp8_cast", inputs=120).can_multiply(64)  # fp8 units take multiples of 16
    rows = Fp8.quantize(draw(32, 48), None, SETTINGS, torch.float32)  # 64 does not divide 48: one scale a row
    assert rows.scale.shape == (32, 1, 1)
    assert rows.can_multiply(64)
    e5m2 = KeptFp8(draw(32, 64).to(torch.float8_e5m2), None)
    assert not e5m2.can_multiply(64)


class OnCard:
    """As much of a weight as the questions ask."""

    def __init__(self, *shape, dtype=torch.float8_e4m3fn):
        self.shape, self.dtype, self.device = shape, dtype, torch.device("cuda", 0)


def test_what_cards_can(monkeypatch):
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert multiply.fp8_can(OnCard(64, 32), 17)
    assert not multiply.fp8_can(OnCard(64, 32), 16)
    assert not multiply.fp8_can(OnCard(64, 24), 17)
    assert not multiply.fp8_can(OnCard(64, 32, dtype=torch.float8_e5m2), 17)
    capability = (8, 6)
    assert not multiply.fp8_can(OnCard(64, 32), 17)
    assert multiply.int8_can(OnCard(64, 24), 17)
    assert not multiply.int8_can(OnCard(64, 24), 16)
    assert not multiply.int8_can(OnCard(60, 24), 17)


def test_switching_reaches_into_lora_and_counts_who_can():
    model = nn.Sequential(
        LoRALinear(make("int8"), 2, 2.0),
        nn.Linear(96, 128),
        make("nf4"),
        quantize_linear(nn.Linear(96, 8), "int8", SETTINGS),
    )
    assert set_matmul(model, True) == 2
    assert [model[0].base.matmul, model[2].matmul, model[3].matmul] == [True, False, True]
    assert set_matmul(model, False) == 2
    assert not model[0].base.matmul
    assert [has_matmul(make(kind)) for kind in ("int8", "int8_rotated", "kept_fp8", "nf4")] == [True, True, True, False]


def test_the_faster_way_is_measured_both_ways(monkeypatch):
    module = make("int8", dtype=torch.bfloat16)
    assert isinstance(faster_matmul(module, 32, "cpu"), bool)
    assert not module.matmul
    assert module.bias is not None
    answers, ran = iter([1.0, 2.0, 2.0, 1.0]), []

    def seconds(run, device):
        run()
        ran.append(str(device))
        return next(answers)

    monkeypatch.setattr(faster, "_seconds", seconds)
    assert faster_matmul(module, 32, "cpu") is True
    assert faster_matmul(module, 32, "cpu") is False
    assert ran == ["cpu"] * 4
    assert faster_matmul(make("nf4"), 32, "cpu") is False
    assert faster_matmul(KeptFp8(draw(8, 24).to(torch.float8_e4m3fn), None), 32, "cpu") is False
    assert len(ran) == 4
    monkeypatch.setattr(faster, "_seconds", lambda run, device: 2.0 if run() is None and module else 1.0)
    assert faster_matmul(KeptFp8(draw(32, 64).to(torch.float8_e4m3fn), None), 32, "cpu") is False  # a tie is not faster


def losses(format, seed, steps=150):
    """LoRAs of rank 8 around two frozen layers learn a low-rank change of both; the loss of each step, in bfloat16."""
    layers = []
    for number in (0, 1):
        linear = nn.Linear(128, 128, dtype=torch.bfloat16)
        with torch.no_grad():
            linear.weight.copy_(draw(128, 128, seed=number) / 11)
            linear.bias.zero_()
        base = linear if format is None else quantize_linear(linear, format, SETTINGS)
        layers.append(LoRALinear(base, 8, 8.0, generator=torch.Generator().manual_seed(number)))
    model = nn.Sequential(layers[0], nn.GELU(), layers[1])
    set_matmul(model, True)
    true = [
        (draw(128, 128, seed=n) / 11).bfloat16().float() + draw(128, 4, seed=8) @ draw(4, 128, seed=9) / 30
        for n in (0, 1)
    ]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    curve = []
    for step in range(steps):
        x = draw(64, 128, seed=seed + step)
        wanted = nn.functional.gelu(x @ true[0].t()) @ true[1].t() + 0.3 * draw(64, 128, seed=-1 - seed - step)
        loss = (model(x.bfloat16()).float() - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return torch.tensor(curve)


def test_a_training_learns_as_well_with_it():
    reference, other_data = losses(None, 1000), losses(None, 5000)
    assert reference[-30:].mean() < 0.6 * reference[:5].mean()  # something is learned
    noise = (reference - other_data)[-30:].abs().mean() / 30**0.5  # of the mean of 30 losses
    for format in ("int8", "int8_rotated"):
        assert (losses(format, 1000) - reference)[-30:].mean().abs() < noise
