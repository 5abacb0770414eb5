"""What every storage format owes to those who use it, whatever it does inside."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltx2_train.errors import ConfigError
from ltx2_train.lora.layer import LoRALinear
from ltx2_train.quant import FORMATS, QuantSettings, quantize_linear

IN, OUT = 128, 48
SETTINGS = QuantSettings()
formats = pytest.mark.parametrize("format", list(FORMATS))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(dtype=torch.float32, inputs=IN, outputs=OUT, bias=True):
    linear = nn.Linear(inputs, outputs, bias=bias, device="meta").to_empty(device="cpu").to(dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator()))
    return linear


def make(format, dtype=torch.float32, **kind):
    return quantize_linear(plain(dtype, **kind), format, SETTINGS)


def twin(module, dtype=None):
    """A plain linear of the dequantized weight."""
    dtype = module.compute_dtype if dtype is None else dtype
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, dtype=dtype)
    with torch.no_grad():
        linear.weight.copy_(module.dequantize(dtype))
        if module.bias is not None:
            linear.bias.copy_(module.bias)
    return linear.requires_grad_(False)


def tolerance(format, dtype):
    """The rotation reaches the same product another way; everything else is the same arithmetic."""
    if format != "int8_rotated":
        return {"rtol": 0.0, "atol": 0.0}
    return {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.4}


def inputs(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, IN, generator=generator(seed)).to(dtype).requires_grad_()


@formats
@dtypes
def test_value_and_gradient_are_those_of_the_dequantized_weight(format, dtype):
    module = make(format, dtype)
    expected = twin(module)
    x, again = inputs(2, 5, dtype=dtype), inputs(2, 5, dtype=dtype)
    y, ours = expected(x), module(again)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, y, **tolerance(format, dtype))
    grad = torch.randn(y.shape, generator=generator(2)).to(dtype)
    y.backward(grad)
    ours.backward(grad)
    torch.testing.assert_close(again.grad, x.grad, **tolerance(format, dtype))


@formats
def test_the_dtype_of_x_decides(format):
    module = make(format, torch.bfloat16)
    x = inputs(3)
    assert module.compute_dtype == torch.bfloat16
    assert module.dequantize().dtype == torch.bfloat16
    torch.testing.assert_close(module(x), twin(module, torch.float32)(x), rtol=1e-4, atol=1e-3)


@formats
def test_float16_and_float64_work(format):
    module = make(format, torch.float16)
    assert torch.isfinite(module.dequantize()).all()
    torch.testing.assert_close(module.dequantize().double(), module.dequantize(torch.float64), rtol=1e-3, atol=1e-3)
    assert module(inputs(3, dtype=torch.float64)).dtype == torch.float64


@formats
def test_gradients_equal_finite_differences(format):
    module = make(format)
    x = inputs(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(module, (x,))


@formats
@pytest.mark.parametrize("value", [True, False], ids=["read", "unread"])
def test_lora_around_it_gets_the_gradients_of_a_plain_linear(format, value):
    module = make(format)
    layers = [LoRALinear(base, 4, 8.0, generator=generator(3)) for base in (module, twin(module))]
    found = []
    for layer in layers:
        with torch.no_grad():
            layer.lora_B.normal_(generator=generator(4))
        x = inputs(2, 3)
        y = layer(x) if value else layer.unread(x)
        y.backward(torch.randn(y.shape, generator=generator(5)))
        found.append((x.grad, layer.lora_A.grad, layer.lora_B.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-3)
    assert not any(parameter.requires_grad for parameter in module.parameters())


@formats
def test_unread_computes_nothing_and_has_the_gradient(format, monkeypatch):
    module = make(format)
    x, again = inputs(2, 3), inputs(2, 3)
    with monkeypatch.context() as patch:
        patch.setattr(module, "stored_weight", None)
        stand_in = module.unread(x)
    assert stand_in.shape == (2, 3, OUT)
    assert stand_in.untyped_storage().nbytes() == 4
    grad = torch.randn(stand_in.shape, generator=generator(2))
    stand_in.backward(grad)
    module(again).backward(grad)
    assert torch.equal(x.grad, again.grad)


@formats
def test_nothing_is_kept_for_backward(format):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        make(format)(inputs(4))
    assert kept == []


@formats
def test_storage_put_behind_the_buffers_counts_at_once_forward_and_back(format):
    """What weight streaming does: other bytes behind the same buffer, between forward and backward too."""
    module, other = make(format), quantize_linear(plain(bias=False), format, SETTINGS)
    other = type(other).quantize(plain().weight.flip(0) * 1.5, None, SETTINGS, torch.float32)
    expected, kept = other(inputs(3)), {name: tensor.data for name, tensor in module.stored().items()}
    module(inputs(3)), module.dequantize()  # a chance to keep something derived
    x = inputs(3)
    y = module(x)
    for name, tensor in module.stored().items():
        tensor.data = getattr(other, name).data.clone()
    torch.testing.assert_close(module(inputs(3)) - module.bias, expected, rtol=1e-4, atol=1e-4)
    y.sum().backward()
    reference = inputs(3)
    other(reference).sum().backward()
    assert torch.equal(x.grad, reference.grad)
    for name, tensor in module.stored().items():
        tensor.data = kept[name]
    assert torch.equal(module(inputs(3)), y)


@formats
def test_state_goes_round(format):
    module = make(format)
    other = type(module).quantize(torch.zeros(OUT, IN), torch.zeros(OUT), SETTINGS, torch.float32)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert set(state) == {*module.stored(), "bias"}
    other.load_state_dict(state)
    assert torch.equal(other.dequantize(), module.dequantize())
    assert torch.equal(other(inputs(2)), module(inputs(2)))


@formats
def test_it_is_built_again_from_its_stored_tensors(format):
    module = make(format)
    built = type(module)(**module.stored(), bias=module.bias, compute_dtype=module.compute_dtype)
    assert (built.in_features, built.out_features) == (IN, OUT)
    assert torch.equal(built(inputs(2)), module(inputs(2)))


@formats
def test_a_change_of_dtype_leaves_the_stored_numbers(format):
    module = nn.Sequential(make(format))
    before = {name: tensor.clone() for name, tensor in module[0].stored().items()}
    same = module[0].stored()
    module.to(torch.bfloat16)
    for name, tensor in module[0].stored().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
        assert tensor is same[name]  # nothing moved: who holds the buffer still holds the right one
    assert module[0].bias.dtype == module[0].compute_dtype == module[0].dequantize().dtype == torch.bfloat16
    assert module(inputs(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@formats
def test_it_moves(format):
    module = make(format)
    module.to("meta")
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    assert module.nbytes == make(format).nbytes


@formats
def test_bytes_are_counted_and_saved(format):
    linear = plain(inputs=1024, outputs=64)
    module = quantize_linear(linear.to(torch.bfloat16), format, SETTINGS)
    assert module.nbytes == sum(t.numel() * t.element_size() for n, t in module.state_dict().items() if n != "bias")
    share = module.nbytes / linear.weight.nbytes
    assert share < {"nf4": 0.29, "int4": 0.29, "int2": 0.17}.get(format, 0.52), share


@formats
@dtypes
def test_zero_rows_stay_zero_and_nothing_is_nan(format, dtype):
    linear = plain(dtype)
    with torch.no_grad():
        linear.weight[3:7] = 0
        linear.weight[9] = 1e-30
        linear.weight[10] *= 1e4
    module = quantize_linear(linear, format, SETTINGS)
    weight = module.dequantize()
    assert torch.isfinite(weight).all()
    assert torch.equal(weight[3:7], torch.zeros_like(weight[3:7]))
    x = inputs(3, dtype=dtype)
    module(x).sum().backward()
    assert torch.isfinite(x.grad).all()


@formats
def test_an_empty_batch_and_a_lone_row(format):
    module = make(format)
    x = torch.zeros(0, 3, IN, requires_grad=True)
    y = module(x)
    assert y.shape == (0, 3, OUT)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert module(torch.zeros(IN)).shape == (OUT,)


@formats
def test_without_gradients_it_is_the_same(format):
    module, x = make(format), inputs(3)
    with torch.no_grad():
        quiet = module(x)
    with torch.inference_mode():
        quieter = module(x)
        assert torch.equal(module.dequantize(), make(format).dequantize())
    assert torch.equal(quiet, module(x))
    assert torch.equal(quieter, quiet)
    module(inputs(3)).sum().backward()  # nothing of inference mode was left behind


@formats
def test_a_strided_input_and_no_bias(format):
    module = make(format, bias=False)
    x = torch.randn(3, IN, 2, generator=generator(1)).transpose(1, 2).requires_grad_()
    y = module(x)
    assert torch.equal(y, module(x.detach().contiguous()))
    y.transpose(1, 2).sum().backward()
    assert x.grad.shape == x.shape


def test_an_unknown_format_names_the_known():
    with pytest.raises(ConfigError, match=r"quant.format 'fp9'.*Did you mean fp8"):
        quantize_linear(plain(), "fp9", SETTINGS)


@formats
@pytest.mark.filterwarnings("error:.*lru_cache")
def test_a_compiler_can_trace_it_whole(format):
    """In one graph, so that a compiled block does not break at its linears."""
    module = make(format)
    expected, x = inputs(3), inputs(3)
    module(expected).sum().backward()
    torch._dynamo.reset()
    torch.compile(module, backend="aot_eager", fullgraph=True)(x).sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)
