"""int8, and what the rotation is for."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ltx2_train.quant import QuantSettings
from ltx2_train.quant.int8 import Int8, Int8Rotated, KeptConvrot, hadamard_rotate, rotation_size

SETTINGS = QuantSettings()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loss_db(kind, weight, x=None):
    """Signal over error of the weight, or of its product with x [N, I]."""
    module = kind.quantize(weight, None, SETTINGS, torch.float32)
    expected, found = (weight, module.dequantize()) if x is None else (x @ weight.t(), module(x))
    return float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum()))


def test_scales_and_steps():
    weight = draw(8, 40)
    module = Int8.quantize(weight, None, SETTINGS, torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert torch.equal(module.scale, step)
    assert ((module.dequantize() - weight).abs() <= step * 0.5001).all()
    assert module.weight.abs().max() == 127
    assert module.weight.min() >= -127


def test_outliers_are_what_the_rotation_is_for():
    """A few input channels 20 to 50 times as strong as the rest, as networks have them."""
    weight = draw(256, 1024)
    weight[:, [7, 300, 301, 900]] *= torch.tensor([20.0, 30.0, 40.0, 50.0])
    x = draw(64, 1024, seed=1)
    x[:, [7, 300, 301, 900]] /= torch.tensor([20.0, 30.0, 40.0, 50.0])  # what such channels meet: all count alike
    assert loss_db(Int8Rotated, weight, x) > loss_db(Int8, weight, x) + 6
    # the ordinary channels alone, which the grid of the plain format barely resolves
    quiet = [channel for channel in range(1024) if channel not in (7, 300, 301, 900)]
    error = {
        kind: (kind.quantize(weight, None, SETTINGS, torch.float32).dequantize() - weight)[:, quiet].norm()
        for kind in (Int8, Int8Rotated)
    }
    assert error[Int8Rotated] < 0.5 * error[Int8]


def test_without_outliers_both_are_alike():
    weight = draw(512, 2048)
    assert loss_db(Int8, weight) == pytest.approx(41.7, abs=0.6)
    assert loss_db(Int8Rotated, weight) == pytest.approx(loss_db(Int8, weight), abs=0.3)


@pytest.mark.parametrize(
    ("width", "size"), [(4096, 256), (2048, 256), (256, 256), (384, 128), (96, 32), (40, 8), (7, 1)]
)
def test_the_rotation_is_orthogonal_and_its_own_inverse(width, size):
    assert rotation_size(width) == size
    x = draw(5, width).double()
    turned = hadamard_rotate(x)
    torch.testing.assert_close(hadamard_rotate(turned), x)
    torch.testing.assert_close(turned.norm(dim=1), x.norm(dim=1))
    if size > 1:
        assert not torch.allclose(turned, x)
        spike = torch.zeros(1, width, dtype=torch.float64)
        spike[0, 0] = 1
        torch.testing.assert_close(
            hadamard_rotate(spike)[0, :size].abs(), torch.full((size,), size**-0.5, dtype=torch.float64)
        )


@pytest.mark.parametrize("kind", ["size a square", "size no square", "convrot"])
def test_turning_back_adds_to_what_is_there_in_one_product(kind):
    if kind == "convrot":
        layer = KeptConvrot(torch.zeros(8, 128, dtype=torch.int8), torch.ones(8), group=16)
    else:
        layer = Int8Rotated.quantize(draw(8, 64 if kind == "size a square" else 96), None, SETTINGS, torch.float32)
    x, out = draw(5, layer.in_features), draw(5, layer.in_features, seed=1)
    expected, calls = out + layer.turn_back(x), []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not func.is_view:
                calls.append(func)
            return func(*args, **(kwargs or {}))

    with Calls():
        found = layer.add_turned_back(x, out)
    torch.testing.assert_close(found, expected)
    assert calls == [torch.ops.aten.addmm_.default]


def test_the_dequantized_weight_is_in_the_basis_of_the_inputs():
    weight = draw(32, 128)
    module = Int8Rotated.quantize(weight, None, SETTINGS, torch.float32)
    assert (module.dequantize() - weight).norm() / weight.norm() < 0.01
    assert (module.stored_weight(torch.float32) - weight).norm() / weight.norm() > 1
    assert torch.equal(module.dequantize(torch.bfloat16), module.dequantize(torch.float32).bfloat16())


@pytest.mark.parametrize("width", [256, 384, 32])
def test_no_bias_of_strength_in_bfloat16(width):
    """A rounded 1/sqrt(size) would change the strength of everything by up to 0.2 %."""
    x = draw(400, width).bfloat16()
    ratio = hadamard_rotate(x).double().norm() / x.double().norm()
    assert abs(float(ratio) - 1) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_an_accelerator_works_the_weight_out_in_one_pass_to_the_same_numbers(dtype):
    layer = Int8.quantize(torch.randn(16, 32, generator=torch.Generator().manual_seed(0)), None, SETTINGS, dtype)
    once = torch.mul(layer.weight, layer.scale, out=torch.empty(16, 32, dtype=dtype))  # what it does there
    assert torch.equal(once, layer.stored_weight(dtype))
    calls = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    layer.to("meta")
    with Calls():
        assert layer.stored_weight(dtype).dtype == dtype
    assert [name for name in calls if "empty" not in name] == ["aten.mul.out"]
