"""Putting LoRA in and taking it out."""

import pytest
import torch
from torch import nn

from ltx2_train.errors import ConfigError, RunError
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.inject import inject
from ltx2_train.lora.layer import LoRALinear
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.settings import parse

PATH = "transformer_blocks.1.attn1.to_out.0"


def test_layers_stand_at_their_own_paths(make_model):
    model = make_model()
    before = {path: model.get_submodule(path) for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    loras = inject(model, LoraSettings(rank=4), torch.Generator().manual_seed(0))
    for path, layer in loras.layers.items():
        assert model.get_submodule(path) is layer
        assert layer.base is before[path]
    assert type(model.get_submodule("patchify_proj")) is nn.Linear
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * len(loras.layers)
    assert {id(p) for p in trained} == {id(p) for p in loras.parameters()}


def test_a_fresh_lora_changes_nothing_and_strength_zero_undoes_a_trained_one(make_set):
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    fresh = make_set(trained=False).layers[PATH]
    assert torch.equal(fresh(x), fresh.base(x))
    loras = make_set()
    layer = loras.layers[PATH]
    assert not torch.allclose(layer(x), layer.base(x))
    loras.set_strength(0.0)
    assert torch.equal(layer(x), layer.base(x))
    loras.set_strength(0.5)
    half = layer(x) - layer.base(x)
    loras.set_strength(1.0)
    assert torch.allclose(2 * half, layer(x) - layer.base(x), atol=1e-5)


def test_alpha_defaults_to_the_rank(make_set):
    assert make_set(rank=5).scale == 1.0
    assert make_set(rank=5, alpha=0).scale == 1.0
    loras = make_set(rank=4, alpha=2)
    assert loras.scale == 0.5
    layer = loras.layers[PATH]
    x = torch.randn(2, 12)
    expected = layer.base(x) + 0.5 * x @ layer.lora_A.T @ layer.lora_B.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_same_seed_same_start_and_weights_in_the_asked_dtype(make_model):
    def start(seed, dtype=torch.float32):
        return (
            inject(make_model(), LoraSettings(rank=2), torch.Generator().manual_seed(seed), dtype).layers[PATH].lora_A
        )

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    assert start(1, torch.bfloat16).dtype == torch.bfloat16


def test_norms_are_of_the_weight_change_per_branch(make_set):
    loras = make_set(rank=3, alpha=6, target="full")
    squares = {"video": 0.0, "audio": 0.0, "a2v": 0.0, "v2a": 0.0}
    for path, layer in loras.layers.items():
        part = path.split(".")[2]
        branch = {"audio_to_video_attn": "a2v", "video_to_audio_attn": "v2a"}.get(
            part, "audio" if part.startswith("audio") else "video"
        )
        squares[branch] += float((2 * layer.lora_B @ layer.lora_A).detach().square().sum())
    assert loras.norms() == pytest.approx({branch: square**0.5 for branch, square in squares.items()}, rel=1e-4)
    assert set(make_set(trained=False).norms().values()) == {0.0}


def test_removing_gives_the_model_back(make_model):
    model = make_model()
    names = list(model.state_dict())
    loras = inject(model, LoraSettings(rank=2), torch.Generator())
    assert list(model.state_dict()) != names
    loras.remove()
    assert list(model.state_dict()) == names
    assert not any(isinstance(m, LoRALinear) for m in model.modules())
    assert loras.layers == {}


def test_state_restores_every_number(make_set):
    loras = make_set(dropout=0.5)
    loras.layers[PATH].dropout_draws = 3
    saved = {
        path: {k: v.clone() if torch.is_tensor(v) else v for k, v in s.items()} for path, s in loras.state().items()
    }
    other = make_set(seed=9, dropout=0.5)
    other.restore(saved)
    for path, layer in other.layers.items():
        assert torch.equal(layer.lora_A, loras.layers[path].lora_A)
        assert torch.equal(layer.lora_B, loras.layers[path].lora_B)
    assert other.layers[PATH].dropout_draws == 3


def test_state_of_another_lora_is_refused(make_set):
    state = make_set().state()
    with pytest.raises(RunError, match="rank 3, this run has 4"):
        make_set(rank=4).restore(state)
    with pytest.raises(RunError, match="not the same"):
        make_set(target="audio").restore(state)


def test_description_counts_by_branch(make_set):
    text = make_set(target="audio", rank=2).describe()
    assert "rank 2" in text
    assert "20 audio, 8 v2a" in text


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="rank"):
        parse(LoraSettings, {"rank": 0}, "run.toml")
    with pytest.raises(ConfigError, match="target"):
        parse(LoraSettings, {"target": "video"}, "run.toml")


def test_rslora_scales_by_the_root_of_the_rank_and_the_file_has_it_folded_in(make_model, tmp_path):
    loras = inject(make_model(), LoraSettings(rank=4, alpha=6, rslora=True), torch.Generator())
    assert loras.scale == pytest.approx(6 / 4**0.5)
    assert inject(make_model(), LoraSettings(rank=4, alpha=6), torch.Generator()).scale == 6 / 4
    layer = loras.layers[PATH]
    with torch.no_grad():
        layer.lora_B.normal_(generator=torch.Generator().manual_seed(1))
    save_lora(tmp_path / "l.safetensors", loras, {}, "fp32")
    entry = load_lora_state(tmp_path / "l.safetensors").entries[PATH]
    assert entry.scale == 1.0
    torch.testing.assert_close(entry.up @ entry.down, 3.0 * (layer.lora_B @ layer.lora_A).detach())
