"""Whether a file fits a model, and what is said where a part of it does not."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.errors import ConfigError
from ltx2_train.events import Events
from ltx2_train.lora.apply import apply_file
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.fit import tell_left_out, tell_start, tell_version
from ltx2_train.lora.save import save_lora

ABOUT = {"base": {"file": "base.safetensors", "version": "2.3"}}


class Heard(Events):
    def __init__(self):
        self.said = []

    def message(self, text, level="info"):
        self.said.append((level, text))


def pair(name, sizes=(3, 2, 4)):
    inputs, rank, outputs = sizes
    return {f"{name}.lora_A.weight": torch.ones(rank, inputs), f"{name}.lora_B.weight": torch.ones(outputs, rank)}


@pytest.fixture
def lora(make_set, tmp_path):
    path = tmp_path / "x.safetensors"
    save_lora(path, make_set(target="v2v"), ABOUT, "fp32")
    return path


def changed(path, more=None, metadata=None, drop=()):
    tensors = {key: tensor for key, tensor in load_file(path).items() if not any(part in key for part in drop)}
    out = path.with_name("y.safetensors")
    save_file(tensors | (more or {}), out, metadata)
    return load_lora_state(out)


def test_what_has_no_place_is_counted_and_named(make_model, lora):
    more = pair("diffusion_model.video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q")
    more |= pair("diffusion_model.transformer_blocks.9.attn1.to_q")
    file, heard = changed(lora, more), Heard()
    applied = apply_file(make_model(mode="video"), file)
    assert len(applied.layers) + len(applied.left_out) == len(file.entries)
    tell_left_out(file, applied.left_out, "video", heard)
    (quiet, sound), (loud, rest) = heard.said
    total, silent = len(file.entries), sum("audio" in name for name in file.entries)
    assert (quiet, loud) == ("info", "warning")
    assert sound.startswith(f"{silent} of the {total} layers of y.safetensors are left out")
    assert "model.mode = video" in sound
    assert rest.startswith(f"2 of the {total} layers of y.safetensors have no place in this model and are left out: ")
    assert "video_embeddings_connector" in rest
    assert "transformer_blocks.9.attn1.to_q" in rest


def test_a_file_that_fits_whole_says_nothing(make_model, lora):
    file, heard = load_lora_state(lora), Heard()
    tell_left_out(file, apply_file(make_model(), file).left_out, "av", heard)
    tell_version(file, "2.3", heard)
    tell_start(file, list(file.entries), heard)
    assert heard.said == []


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "a text encoder"),
        ("base_model.model.model.layers.0.self_attn.q_proj", "a language model or text encoder"),
        ("text_encoder.model.layers.0.mlp.up_proj", "a text encoder"),
        ("diffusion_model.blocks.0.self_attn.q", "Wan video"),
        ("lora_unet_double_blocks_0_img_attn_proj", "Flux or HunyuanVideo"),
        ("connectors.video_connector.transformer_blocks.0.attn1.to_q", "the text connectors of LTX-2"),
    ],
)
def test_a_file_of_which_nothing_fits_is_called_what_it_is(make_model, make_set, tmp_path, name, family):
    save_file(pair(name), tmp_path / "x.safetensors")
    file = load_lora_state(tmp_path / "x.safetensors")
    for use in (lambda: apply_file(make_model(), file), lambda: make_set(rank=2).load(file)):
        with pytest.raises(ConfigError, match=f"It is a LoRA of {family}. Choose one of an LTX-2 transformer"):
            use()


def test_a_file_of_another_branch_is_not_called_foreign(make_model, make_set, tmp_path):
    save_lora(tmp_path / "x.safetensors", make_set(target="audio"), ABOUT)
    with pytest.raises(ConfigError, match="20 audio, 8 v2a.*for a branch that is not loaded"):
        apply_file(make_model(mode="video"), load_lora_state(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        ({"ss_ltx_version": "2.0"}, "2.0"),
        ({"format_version": "1", "version": "2.0"}, "2.0"),
        ({"model_version": "2.3.0"}, "2.3"),
        ({"modelspec.architecture": "ltx-2.3/lora"}, "2.3"),
        ({"ss_sd_model_name": "ltx-2-19b-dev-fp8.safetensors"}, "2.0"),
        ({"base_model": "Lightricks/LTX-2.3"}, "2.3"),
        ({"modelspec.architecture": "ltxv-13b/lora"}, "LTX-Video"),
        ({"ss_base_model_version": "ltx2_v1", "version": "2.0"}, ""),
        ({}, ""),
    ],
)
def test_the_version_stands_in_the_metadata(lora, metadata, version):
    assert changed(lora, metadata=metadata).version == version


def test_the_layers_are_believed_before_the_metadata(lora):
    gate = pair("diffusion_model.transformer_blocks.0.attn1.to_gate_logits")
    assert changed(lora, gate, {"ss_ltx_version": "2.0"}).version == "2.3"
    for rows, version in ((6 * 5, "2.0"), (9 * 5, "2.3")):
        adaln = pair("transformer.time_embed.linear", (5, 2, rows))
        assert changed(lora, adaln).version == version
    assert changed(lora, pair("transformer.caption_projection.linear_1")).version == "2.0"


def test_a_lora_of_another_version_is_a_warning(lora):
    file, heard = changed(lora, metadata={"ss_ltx_version": "2.0"}), Heard()
    tell_version(file, "2.3", heard)
    ((level, text),) = heard.said
    assert level == "warning"
    assert "y.safetensors is a LoRA of LTX-2.0, and the base is LTX-2.3" in text


def test_what_training_does_not_begin_with_is_said(make_set, lora):
    file, heard = load_lora_state(lora), Heard()
    result = make_set(trained=False, target="audio").load(file)
    tell_start(file, make_set(target="audio").layers, heard)
    ((level, text),) = heard.said
    assert level == "warning"
    assert text.startswith(f"{len(result.unknown)} of the {len(file.entries)} layers of x.safetensors are not trained")
    heard.said.clear()
    tell_start(changed(lora, drop=(".ff.",)), file.entries, heard)
    ((level, text),) = heard.said
    assert level == "info"
    assert text.startswith("4 of the 56 layers that are trained are not in y.safetensors")
