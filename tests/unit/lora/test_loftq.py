"""A LoRA that begins as what the quantized base lacks, and leaves it out of what it saves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.lora.file import load_lora_state, verify_saved
from ltx2_train.lora.inject import inject
from ltx2_train.lora.layer import LoRALinear
from ltx2_train.lora.loftq import apply_loftq, loftq_for
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.quant.nf4 import Nf4
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights.load import load_transformer
from ltx2_train.weights.loftq import Loftq, companion
from ltx2_train.weights.quantize import check_quant
from ltx2_train.weights.quantized_file import quantize_checkpoint
from ltx2_train.weights.reader import TensorFile

QUANT = QuantSettings(format="nf4", loftq=True, loftq_iters=2)
# alpha / rank = 0.75: a scale that would be forgotten unnoticed at 1
LORA = LoraSettings(rank=8, alpha=6.0)


def prepared(path, lora=LORA, quant=QUANT, initial=None, mode="video"):
    """(model, LoRA set, LoftQ) as a run sets them up."""
    found = loftq_for(path, mode, lora)
    if initial is not None:
        found.initial.update(initial)
    model = load_transformer(path, mode, torch.float32, quant=quant, loftq=found)
    loras = inject(model, lora, torch.Generator().manual_seed(0))
    apply_loftq(loras, found)
    return model, loras, found


@pytest.fixture(scope="module")
def plain(tiny):
    return load_transformer(tiny.checkpoint, "video", torch.float32)


def effective(layer):
    """The weight that the layer works with."""
    return layer.base.dequantize(torch.float32) + layer.alpha / layer.rank * (layer.lora_B @ layer.lora_A).detach()


def test_every_layer_begins_nearer_to_the_original_than_plain_nf4(tiny, plain):
    model, loras, found = prepared(tiny.checkpoint)
    assert found.initial.keys() == loras.layers.keys()
    for path, layer in loras.layers.items():
        weight = plain.get_submodule(path).weight
        alone = Nf4.quantize(weight, None, QUANT, torch.float32).dequantize()
        assert (effective(layer) - weight).norm() < 0.95 * (alone - weight).norm(), path
        # the base belongs to this part: without it, it is farther off than plain nf4
        assert not torch.equal(layer.base.dequantize(torch.float32), alone)
    assert loras.norms() == pytest.approx(dict.fromkeys(loras.norms(), 0.0), abs=1e-4)
    others = [path for path, one in model.named_modules() if isinstance(one, Nf4) and not path.endswith(".base")]
    assert others
    for path in others:
        weight = plain.get_submodule(path).weight
        assert torch.equal(
            model.get_submodule(path).dequantize(),
            Nf4.quantize(weight.bfloat16(), None, QUANT, torch.float32).dequantize(),
        )


@pytest.mark.parametrize("alpha", [8.0, 6.0, 1.0])
def test_any_alpha_begins_alike(tiny, alpha):
    _, loras, found = prepared(tiny.checkpoint, LoraSettings(rank=8, alpha=alpha))
    path, layer = next(iter(loras.layers.items()))
    a, b = (part.float() for part in found.initial[path])
    torch.testing.assert_close(loras.scale * (layer.lora_B @ layer.lora_A), b @ a)


def test_the_saved_file_holds_what_was_learned_and_fits_the_original(tiny, plain, tmp_path):
    _, loras, _ = prepared(tiny.checkpoint)
    generator = torch.Generator().manual_seed(3)
    learned = {}
    with torch.no_grad():
        for path, layer in loras.layers.items():
            before = effective(layer)
            # far smaller than what LoftQ put in, as after a few steps
            layer.lora_B.add_(torch.randn(layer.lora_B.shape, generator=generator) * 1e-3)
            learned[path] = effective(layer) - before
    save_lora(tmp_path / "x.safetensors", loras, {}, torch.bfloat16)
    file = load_lora_state(tmp_path / "x.safetensors")
    assert file.ranks == [16]
    assert (file.metadata["rank"], file.metadata["alpha"]) == ("16", "16")
    for path, entry in file.entries.items():
        change = entry.up.float() @ entry.down.float()
        assert (change - learned[path]).norm() < 0.02 * learned[path].norm(), path
    with TensorFile(tiny.checkpoint) as checkpoint:
        verify_saved(tmp_path / "x.safetensors", checkpoint.tensors, trained=True)


def test_without_loftq_a_file_is_as_ever(tiny, tmp_path):
    model = load_transformer(tiny.checkpoint, "video", torch.float32)
    loras = inject(model, LORA, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in loras.layers.values():
            layer.lora_B.fill_(0.5)
    save_lora(tmp_path / "x.safetensors", loras, {}, torch.float32)
    file = load_lora_state(tmp_path / "x.safetensors")
    assert file.ranks == [8]
    for path, entry in file.entries.items():
        assert torch.equal(entry.down, loras.layers[path].lora_A)
        assert torch.equal(entry.up, loras.layers[path].lora_B * loras.scale)


def test_strength_weighs_what_was_learned(tiny, plain):
    _, loras, _ = prepared(tiny.checkpoint)
    path, layer = next(iter(loras.layers.items()))
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(1))
    start = layer(x).detach()
    with torch.no_grad():
        layer.lora_B.add_(0.01)
    full = layer(x).detach()
    for strength in (0.0, 0.5, 1.0, 2.0):
        loras.set_strength(strength)
        torch.testing.assert_close(layer(x).detach(), start + strength * (full - start), rtol=1e-3, atol=1e-4)
    loras.set_strength(0.5)
    grad = torch.ones(5, layer.out_features)
    inputs = x.clone().requires_grad_()
    layer(inputs).backward(grad)
    hidden = x.clone().requires_grad_()
    layer.unread(hidden).backward(grad)
    whole = layer.base.dequantize(torch.float32) + layer.delta() + layer.initial[1].float() @ layer.initial[0].float()
    torch.testing.assert_close(inputs.grad, grad @ whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(hidden.grad, inputs.grad)


def test_a_resumed_run_has_the_same_base_and_beginning(tiny, tmp_path):
    model, loras, found = prepared(tiny.checkpoint)
    found.save(tmp_path / "loftq.safetensors", {})
    again = Loftq(found.rank, found.paths)
    again.load(tmp_path / "loftq.safetensors")
    resumed, new, _ = prepared(tiny.checkpoint, initial=again.initial)
    assert {name: one.sum() for name, one in model.state_dict().items()} == {
        name: one.sum() for name, one in resumed.state_dict().items()
    }
    for path, layer in loras.layers.items():
        assert torch.equal(new.layers[path].base.weight, layer.base.weight)
        assert all(torch.equal(a, b) for a, b in zip(new.layers[path].initial, layer.initial, strict=True))


def test_a_quantized_file_brings_its_beginning_along(tiny, plain, tmp_path):
    path = quantize_checkpoint(tiny.checkpoint, tmp_path / "q.safetensors", QUANT, rank=8).path
    _, loras, found = prepared(path)
    assert found.initial.keys() == loras.layers.keys()
    for name, layer in loras.layers.items():
        weight, base = plain.get_submodule(name).weight, layer.base.dequantize(torch.float32)
        assert torch.equal(base, Nf4.quantize(weight.bfloat16(), None, QUANT, torch.float32).dequantize())
        assert (effective(layer) - weight).norm() < 0.95 * (base - weight).norm()
    for ask in (lambda: prepared(path, LoraSettings(rank=4)), lambda: check_quant(path, QUANT, 4)):
        with pytest.raises(ConfigError, match=r"LoftQ of rank 8 beside it, but lora\.rank is 4"):
            ask()
    assert check_quant(path, QUANT, 8) == "nf4"
    quantize_checkpoint(tiny.checkpoint, path, QUANT, rank=4)  # the file is the same, so both serve
    prepared(path, LoraSettings(rank=4))
    prepared(path)
    for rank in (4, 8):
        companion(path, rank).unlink()
    with pytest.raises(ConfigError, match=r"q\.loftq_r8\.safetensors must lie beside it.*--loftq --rank 8"):
        prepared(path)


def test_a_companion_of_another_file_is_refused(tiny, tiny20, tmp_path):
    quantize_checkpoint(tiny.checkpoint, tmp_path / "a.safetensors", QUANT, rank=8)
    other = quantize_checkpoint(tiny20.checkpoint, tmp_path / "b.safetensors", QuantSettings(format="nf4")).path
    companion(tmp_path / "a.safetensors", 8).rename(companion(other, 8))
    with pytest.raises(CheckpointError, match="was made for another file"):
        prepared(other)


def test_only_layers_that_get_a_lora_are_changed(tiny):
    lora = LORA.model_copy(update={"include_patterns": [r"transformer_blocks\.0\.attn1\.to_(q|gate_logits)"]})
    found = loftq_for(tiny.checkpoint, "video", lora)
    assert found.paths == ["transformer_blocks.0.attn1.to_q"]
    _, loras, found = prepared(tiny.checkpoint, lora)
    assert loras.layers["transformer_blocks.0.attn1.to_gate_logits"].initial is None
    assert not loras.layers["transformer_blocks.0.attn1.to_gate_logits"].lora_B.any()


def test_a_lora_to_start_from_is_refused(tiny):
    with pytest.raises(ConfigError, match=r"lora\.weights names another"):
        loftq_for(tiny.checkpoint, "video", LORA.model_copy(update={"weights": tiny.checkpoint}))


def test_a_rank_beyond_the_layer_can_still_learn():
    base = nn.Linear(8, 8, bias=False)
    loftq = Loftq(12, ["transformer_blocks.0.attn1.to_q"])
    loftq.quantize(loftq.paths[0], base, QUANT)
    model = nn.Module()
    model.transformer_blocks = nn.ModuleList([nn.Module()])
    model.transformer_blocks[0].attn1 = nn.Module()
    model.transformer_blocks[0].attn1.to_q = base
    loras = inject(model, LoraSettings(rank=12, target_modules=["attn1.to_q"]), torch.Generator().manual_seed(0))
    apply_loftq(loras, loftq)
    layer = loras.layers[loftq.paths[0]]
    assert isinstance(layer, LoRALinear)
    assert layer.lora_A.any(dim=1).all()
