"""Keys of LoRA files, however they are wrapped and whatever their layers are called."""

from itertools import permutations

import pytest

from ltx2_train.lora.names import checkpoint_name, flat_names, split_key, without_prefixes

WRAPPERS = ("base_model.model.", "transformer.", "diffusion_model.", "module.")
MODULE = "transformer_blocks.3.attn1.to_out.0"


@pytest.mark.parametrize("order", list(permutations(WRAPPERS)))
@pytest.mark.parametrize("count", [1, 2, 4])
def test_prefixes_are_taken_away_in_any_order(order, count):
    prefix = "".join(order[:count])
    for name in (MODULE, "patchify_proj"):
        key = split_key(f"{prefix}{name}.lora_A.weight")
        assert (key.module, key.part) == (name, "down")
        assert key.comfyui == (prefix == "diffusion_model.")


@pytest.mark.parametrize(
    "flat",
    ["lora_unet_{}", "lora_unet_model_{}", "lora_transformer_{}", "lycoris_{}", "lora_unet_base_model_model_{}"],
)
def test_flat_prefixes_are_taken_away(flat):
    name = MODULE.replace(".", "_")
    key = split_key(flat.format(name) + ".lora_up.weight")
    assert (key.module, key.part) == (name, "up")
    assert key.comfyui == (flat == "lora_unet_{}")


@pytest.mark.parametrize(
    ("ending", "part"),
    [
        ("lora_A.weight", "down"),
        ("lora_A.default.weight", "down"),
        ("lora_A.my_style.weight", "down"),
        ("lora_A", "down"),
        ("lora.down.weight", "down"),
        ("lora_linear_layer.up.weight", "up"),
        ("alpha", "alpha"),
        ("lora_B.bias", None),
        ("lora_magnitude_vector", None),
        ("dora_scale", None),
        ("lokr_w1", None),
    ],
)
def test_halves_are_told_by_their_ending(ending, part):
    assert split_key(f"diffusion_model.{MODULE}.{ending}").part == part


def test_words_put_into_the_middle_are_taken_out():
    name = "model._orig_mod.transformer_blocks.3._orig_mod.attn1.to_q"
    assert without_prefixes(name) == "transformer_blocks.3.attn1.to_q"


@pytest.mark.parametrize("name", ["text_encoder.layers.0.mlp.up_proj", "lora_te1_text_model_layers_0_mlp_fc1"])
def test_what_belongs_to_another_model_keeps_its_name(name):
    assert without_prefixes(name) == name


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ("proj_in", "patchify_proj"),
        ("audio_time_embed.emb.timestep_embedder.linear_1", "audio_adaln_single.emb.timestep_embedder.linear_1"),
        ("av_cross_attn_audio_v2a_gate.linear", "av_ca_v2a_gate_adaln_single.linear"),
        (MODULE, MODULE),
        ("caption_projection.linear_1", "caption_projection.linear_1"),
        (
            "connectors.audio_connector.transformer_blocks.1.attn1.to_q",
            "audio_embeddings_connector.transformer_1d_blocks.1.attn1.to_q",
        ),
        ("connectors.video_text_proj_in", "text_embedding_projection.video_aggregate_embed"),
    ],
)
def test_the_names_of_diffusers_become_the_checkpoints(theirs, own):
    assert checkpoint_name(theirs) == own
    if not theirs.startswith("connectors"):
        assert flat_names(own) == (own.replace(".", "_"), theirs.replace(".", "_"))
