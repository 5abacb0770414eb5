"""Linears are quantized the moment they arrive, and lie where they belong."""

from __future__ import annotations

import pytest
import torch
from quantized_layouts import as_bytes
from torch import nn

from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.quant.base import QuantLinear
from ltx2_train.quant.formats import FORMATS, quantize_linear
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights import materialise as loading
from ltx2_train.weights.load import load_transformer
from ltx2_train.weights.quantize import check_quant, eligible, quantizer

ALL = sorted(FORMATS)


def chosen(model):
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantLinear)}


@pytest.fixture(scope="module")
def plain(tiny):
    return load_transformer(tiny.checkpoint, "av", torch.bfloat16)


@pytest.mark.parametrize("format", ALL)
def test_every_linear_of_the_blocks_but_the_gates_is_quantized_and_nothing_else(tiny, plain, format):
    settings = QuantSettings(format=format)
    model = load_transformer(tiny.checkpoint, "av", torch.bfloat16, quant=settings)
    expected = {
        path: module
        for path, module in plain.named_modules()
        if isinstance(module, nn.Linear) and path.startswith("transformer_blocks.") and "to_gate_logits" not in path
    }
    found = chosen(model)
    assert found.keys() == expected.keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.bfloat16
    for path, module in found.items():
        alone = quantize_linear(expected[path], format, settings)
        assert type(module) is type(alone)
        for name, tensor in alone.stored().items():
            assert torch.equal(as_bytes(module.stored()[name]), as_bytes(tensor)), (path, name)
        assert torch.equal(module.bias, expected[path].bias)
        assert module.compute_dtype == torch.bfloat16


def test_the_stored_numbers_do_not_depend_on_the_dtype_of_the_run(tiny):
    settings = QuantSettings(format="nf4")
    low = chosen(load_transformer(tiny.checkpoint, "video", torch.bfloat16, quant=settings))
    high = chosen(load_transformer(tiny.checkpoint, "video", torch.float32, quant=settings))
    for path, module in low.items():
        assert high[path].compute_dtype == high[path].bias.dtype == torch.float32
        for name, tensor in module.stored().items():
            assert torch.equal(high[path].stored()[name], tensor)


@pytest.mark.parametrize("format", ["auto", "none"])
def test_nothing_asked_for_is_nothing_done(tiny, plain, format):
    model = load_transformer(tiny.checkpoint, "av", torch.bfloat16, quant=QuantSettings(format=format))
    assert not chosen(model)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert check_quant(tiny.checkpoint, QuantSettings(format=format)) == "none"
    assert check_quant(tiny.checkpoint, QuantSettings(format="fp8")) == "fp8"


def test_everything_lies_at_home_and_work_is_done_where_it_is_asked(tiny, monkeypatch):
    """The meta device stands in for a card: what is laid there never has memory here."""
    worked = []
    original = loading.Quantizer.__call__

    def spy(self, path, linear):
        worked.append((path, linear.weight.device.type, linear.weight.dtype))
        return original(self, path, linear)

    monkeypatch.setattr(loading.Quantizer, "__call__", spy)
    asked = []

    def home(path):
        asked.append(path)
        return "meta" if path.startswith("transformer_blocks.1") else "cpu"

    monkeypatch.setattr(loading, "_check_full", lambda *_: None)
    model = load_transformer(
        tiny.checkpoint, "video", torch.float32, "cpu", quant=QuantSettings(format="int8", device="cpu"), home=home
    )
    assert {device for _, device, _ in worked} == {"cpu"}
    assert {dtype for _, _, dtype in worked} == {torch.bfloat16}
    assert len(worked) == len(set(worked)) == len(chosen(model))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.is_meta == name.startswith("transformer_blocks.1"), name
    assert set(asked) >= {path for path, _, _ in worked}


def test_only_one_linear_is_unquantized_at_a_time(tiny, monkeypatch):
    """Counts the full-precision block weights that are alive whenever one more is quantized."""
    import weakref

    alive, most = weakref.WeakSet(), 0
    original = loading.Quantizer.__call__

    def spy(self, path, linear):
        nonlocal most
        alive.add(linear.weight)
        most = max(most, len(alive))
        return original(self, path, linear)

    monkeypatch.setattr(loading.Quantizer, "__call__", spy)
    load_transformer(tiny.checkpoint, "av", torch.bfloat16, quant=QuantSettings(format="nf4"))
    assert most == 1


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"quant\.device: 'cuda:99' cannot be used"):
        quantizer(QuantSettings(format="nf4", device="cuda:99"), "cpu")


def test_parts_that_need_more_than_settings_say_so(tiny):
    with pytest.raises(ConfigError, match=r"quant\.loftq needs"):
        load_transformer(tiny.checkpoint, quant=QuantSettings(format="nf4", loftq=True))
    with pytest.raises(ConfigError, match=r"quant\.awq needs"):
        load_transformer(tiny.checkpoint, quant=QuantSettings(format="nf4", awq=True))


def test_a_model_in_few_bits_still_answers_and_hands_gradients_on(tiny):
    model = load_transformer(tiny.checkpoint, "video", torch.float32, quant=QuantSettings(format="int8"))
    exact = load_transformer(tiny.checkpoint, "video", torch.float32)
    path = "transformer_blocks.0.attn1.to_q"
    x = torch.randn(3, exact.get_submodule(path).in_features, requires_grad=True)
    found, expected = model.get_submodule(path)(x), exact.get_submodule(path)(x)
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()
    found.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("transformer_blocks.3.attn1.to_q", True),
        ("model.diffusion_model.transformer_blocks.3.ff.net.2", True),
        ("transformer_blocks.3.attn1.to_gate_logits", False),
        ("patchify_proj", False),
        ("model.diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q", False),
        ("adaln_single.linear", False),
    ],
)
def test_which_linears_are_quantized(path, answer):
    assert eligible(path) is answer


def test_shapes_that_a_format_cannot_hold_are_named(tmp_path, tiny):
    layer = nn.Linear(7, 4)
    with pytest.raises((ConfigError, CheckpointError), match="7 inputs"):
        quantizer(QuantSettings(format="nf4"), "cpu")("transformer_blocks.0.attn1.to_q", layer)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad):
    linear = torch.nn.Linear(64, 64, bias=False)
    with torch.no_grad():
        linear.weight[3, 5] = bad
    path = "transformer_blocks.0.attn1.to_q"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        quantize = quantizer(QuantSettings(format="nf4"), "cpu")
        assert quantize is not None
        with pytest.raises(CheckpointError, match=f"{path} of the checkpoint holds numbers that are not finite"):
            quantize(path, linear.to(dtype))
