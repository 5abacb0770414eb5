"""AWQ looks at what really flows through the layers."""

from __future__ import annotations

import pytest
import torch
from parity.oracles_transformer import build, inputs
from torch import nn

from ltx2_train.errors import CheckpointError
from ltx2_train.quant.awq import AwqNf4, channel_scales
from ltx2_train.quant.nf4 import Nf4
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights.awq import collect_activations, load_activations, save_activations
from ltx2_train.weights.load import load_transformer
from ltx2_train.weights.quantize import Quantizer, quantized_paths

SETTINGS = QuantSettings(format="nf4", awq=True)
PATH = "transformer_blocks.0.attn1.to_q"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def outliers(width):
    """Inputs of which a few are far stronger than the rest, as in real transformers."""
    strength = torch.ones(width)
    strength[::29] = 40.0
    return strength


def quantized(linear, activations, alpha, dtype=torch.float32):
    settings = SETTINGS.model_copy(update={"awq_alpha": alpha})
    make = Quantizer(settings, "nf4", torch.device("cpu"), dtype, activations=activations)
    return make(PATH, linear)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_outputs_are_nearer_than_those_of_plain_nf4_where_inputs_have_outliers(alpha):
    strength = outliers(256)
    x = draw(500, 256) * strength
    linear = nn.Linear(256, 128)
    with torch.no_grad():
        linear.weight.copy_(draw(128, 256, seed=1))
    plain = Nf4.quantize(linear.weight, linear.bias, SETTINGS, torch.float32)
    made = quantized(linear, {PATH: x.abs().mean(0)}, alpha)
    fresh = draw(300, 256, seed=2) * strength
    error = {name: (layer(fresh) - linear(fresh)).norm() for name, layer in (("plain", plain), ("awq", made))}
    assert error["awq"] < 0.95 * error["plain"]


def test_alpha_zero_is_plain_nf4_to_the_bit():
    linear, x = nn.Linear(96, 64), draw(7, 96)
    plain = Nf4.quantize(linear.weight, linear.bias, SETTINGS, torch.float32)
    made = quantized(linear, {PATH: x.abs().mean(0)}, 0.0)
    assert torch.equal(made.weight, plain.weight)
    assert torch.equal(made.scale, plain.scale)
    assert torch.equal(made(x), plain(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradient_are_those_of_its_dequantized_weight(dtype):
    linear = nn.Linear(64, 48)
    made = quantized(linear, {PATH: outliers(64)}, 0.5, dtype)
    x = draw(5, 64).to(dtype).requires_grad_()
    y, weight = made(x), made.dequantize(torch.float32)
    loose = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(y.float(), x.float() @ weight.T + linear.bias, **loose)
    grad = draw(5, 48, seed=3).to(dtype)
    y.backward(grad)
    torch.testing.assert_close(x.grad.float(), grad.float() @ weight, **loose)
    made.to(torch.bfloat16)
    assert made.inverse.dtype == torch.float32
    assert made.nbytes == 48 * 32 + made.scale.nbytes + 64 * 4


def test_channels_that_nobody_used_keep_their_weights():
    seen = torch.tensor([0.0, 1.0, 3.0])
    scales = channel_scales(seen, 0.5)
    assert (scales > 0).all()
    assert scales[2] > scales[1] > scales[0]
    assert torch.equal(channel_scales(torch.zeros(3), 0.5), torch.ones(3))


def test_activations_are_the_mean_over_all_tokens_of_all_batches(tiny):
    model = load_transformer(tiny.checkpoint, "video", torch.float32)
    paths = quantized_paths(model)
    inputs = {path: [draw(3, model.get_submodule(path).in_features), draw(2, 1, model.get_submodule(path).in_features)]
              for path in paths}  # fmt: skip

    def run():
        for path in paths:
            for x in inputs[path]:
                assert not model.get_submodule(path)(x).requires_grad

    found = collect_activations(model, run, paths)
    assert found.keys() == set(paths)
    for path, mean in found.items():
        tokens = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs[path]])
        torch.testing.assert_close(mean, tokens.abs().mean(0))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_the_model_itself_shows_its_layers_what_flows():
    model, batch = build("2.3"), inputs("2.3")
    paths = quantized_paths(model)
    assert len(paths) > 40
    both = collect_activations(model, lambda: model(batch.video, batch.audio), paths)
    assert list(both) == paths
    assert all((mean > 0).any() for mean in both.values())
    video = collect_activations(model, lambda: model(batch.video, None), paths)
    silent = {path for path in paths if not video[path].any()}
    assert silent
    assert all("audio" in path for path in silent)


def test_layers_that_saw_nothing_are_not_scaled_and_nonsense_is_named(caplog):
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    found = collect_activations(model, lambda: model["a"](torch.ones(1, 4)), ["a", "b"])
    assert torch.equal(channel_scales(found["b"], 0.5), torch.ones(4))
    assert "1 layers saw no token" in caplog.text
    with pytest.raises(CheckpointError, match="no layer saw a token"):
        collect_activations(model, lambda: None, ["a", "b"])
    with pytest.raises(CheckpointError, match="not finite"):
        collect_activations(model, lambda: model["a"](torch.full((1, 4), float("inf"))), ["a"])

    def fail():
        raise ValueError("a batch is bad")

    with pytest.raises(ValueError, match="a batch is bad"):
        collect_activations(model, fail, ["a"])
    assert not model["a"]._forward_pre_hooks


def test_what_was_measured_is_kept_for_the_same_inputs_only(tmp_path):
    path, about = tmp_path / "awq_scales.safetensors", {"checkpoint": "abc", "mode": "av", "batches": "8"}
    assert load_activations(path, about) is None
    save_activations(path, {"a.b": torch.rand(5)}, about)
    assert load_activations(path, about).keys() == {"a.b"}
    assert load_activations(path, about | {"batches": "9"}) is None


def test_a_model_is_scaled_on_load(tiny):
    plain = load_transformer(tiny.checkpoint, "video", torch.float32)
    paths = quantized_paths(plain)
    seen = {path: outliers(plain.get_submodule(path).in_features) for path in paths}
    model = load_transformer(tiny.checkpoint, "video", torch.float32, quant=SETTINGS, activations=seen)
    assert {path for path, one in model.named_modules() if isinstance(one, AwqNf4)} == set(paths)
    with pytest.raises(CheckpointError, match="measured on another model"):
        load_transformer(tiny.checkpoint, "video", quant=SETTINGS, activations={PATH: seen[PATH]})
