"""Names of tensors as data: which part of a checkpoint owns which prefix, and what gives other files away.

A published LTX-2 file holds all parts side by side:

    model.diffusion_model.                             transformer, and inside it
    model.diffusion_model.{video,audio}_embeddings_connector.   the connectors, which belong to the text path
    text_embedding_projection.                         49 layers of Gemma to one feature per token
    vae.{encoder,decoder,per_channel_statistics}.      video VAE
    audio_vae.{encoder,decoder,per_channel_statistics}.
    vocoder.                                           2.3: vocoder.vocoder., vocoder.bwe_generator., vocoder.mel_stft.

LTX-2.5 is published in four files: the transformer with the connectors; the text encoder with the text projection; the
video VAE, whose names have no prefix; the audio VAE with the vocoder. LTX-Video's file has the transformer and the
video VAE alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

TRANSFORMER = "model.diffusion_model."
# Files with the transformer alone use any of these.
TRANSFORMER_PREFIXES = (TRANSFORMER, "diffusion_model.", "")
CONNECTORS = (f"{TRANSFORMER}video_embeddings_connector.", f"{TRANSFORMER}audio_embeddings_connector.")
TEXT_PROJECTION = "text_embedding_projection."
VIDEO_VAE = "vae."
AUDIO_VAE = "audio_vae."
VOCODER = "vocoder."
BLOCKS = "transformer_blocks"  # a part of the path of what is in a block
GATES = "to_gate_logits"  # the last part of the path of those linears that scale whole heads

# part -> prefixes; the first part with a matching prefix owns a tensor
PARTS: dict[str, tuple[str, ...]] = {
    "connectors": CONNECTORS,
    "transformer": (TRANSFORMER,),
    "text_projection": (TEXT_PROJECTION,),
    "video_vae_encoder": ("vae.encoder.",),
    "video_vae_decoder": ("vae.decoder.",),
    "video_vae_statistics": ("vae.per_channel_statistics.",),
    "audio_vae": (AUDIO_VAE,),
    "vocoder": (VOCODER,),
}

# What a cache depends on. Text caches hold what the projection puts out, so the connectors are not among it: a file
# with quantized connectors does not make them stale.
FINGERPRINTS: dict[str, tuple[str, ...]] = {
    "transformer": ("transformer", "connectors"),
    "video_vae": ("video_vae_encoder", "video_vae_decoder", "video_vae_statistics"),
    "audio_vae": ("audio_vae",),
    "text": ("text_projection",),
}

# Statistics that early files carry and no program reads.
UNUSED = frozenset(
    f"{vae}per_channel_statistics.{name}"
    for vae in (VIDEO_VAE, AUDIO_VAE)
    for name in ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means")
)

# Tensors that quantized files put beside a weight, as endings after the layer's name.
QUANTIZATION_ENDINGS = (
    ".weight_scale",
    ".input_scale",
    ".scale_weight",
    ".scale_input",
    ".comfy_quant",
    ".weight_scale_2",
    ".weight_scale_inv",
    ".pre_quant_scale",
    ".nf4_shape",
)
QUANTIZATION_MARK = "scaled_fp8"
# our own files: further stored tensors of a layer, `<layer>.quant_<name>`
QUANTIZATION_PART = "quant_"

LORA_MARKS = (".lora_A", ".lora_B", ".lora_down", ".lora_up", "lora_unet_", ".hada_w", ".lokr_w", ".dora_scale")

# Other models: (name, endings or fragments that must all occur in some tensor's name)
OTHER_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Wan video", ("blocks.0.self_attn.norm_q.weight", "patch_embedding.weight")),
    ("HunyuanVideo", ("txt_in.individual_token_refiner.", "double_blocks.0.")),
    ("Flux", ("double_blocks.0.img_attn.norm.", "single_blocks.0.")),
    ("Stable Diffusion 3", ("joint_blocks.0.context_block.",)),
    ("Stable Diffusion XL", ("input_blocks.0.0.weight", "label_emb.0.0.weight")),
    ("Stable Diffusion 1 or 2", ("input_blocks.0.0.weight",)),
    ("Qwen-Image", ("transformer_blocks.0.img_mod.1.weight",)),
    ("Mochi", ("blocks.0.mod_x.weight",)),
    ("Cosmos", ("net.blocks.block0.",)),
    ("Lumina or Z-Image", ("noise_refiner.0.", "cap_embedder.")),
    ("CogVideoX", ("transformer_blocks.0.norm1.linear.weight", "patch_embed.proj.weight")),
)
DIFFUSERS_TRANSFORMER = ("time_embed.emb.timestep_embedder.linear_1.weight", "proj_in.weight")

TEXT_ENCODERS: tuple[tuple[str, str], ...] = (
    ("Gemma 4", "layers.0.layer_scalar"),  # it has the mark of Gemma 3 as well
    ("Gemma 3", "layers.0.self_attn.q_norm.weight"),
    ("T5", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ("CLIP", "text_model.encoder.layers.0."),
    ("a language model", "model.layers.0.self_attn.q_proj.weight"),
)
UPSAMPLER_MARKS = ("initial_conv.weight", "post_upsample_res_blocks.0.conv1.weight")


# of a video VAE in a file of its own, whose names begin at the root; the kernel of a sound's has two axes
_ROOT_VAE = ("per_channel_statistics.mean-of-means", "encoder.conv_in.conv.weight")
DIFFUSION_DECODER = "decoder.conv_in_x_t.weight"


def video_vae_prefix(tensors: Mapping[str, Any]) -> str | None:
    """What stands before the names of the video VAE among `tensors` (name -> its shape); None where there is none."""
    if any(name.startswith(VIDEO_VAE) for name in tensors):
        return VIDEO_VAE
    if all(name in tensors for name in _ROOT_VAE) and len(tensors[_ROOT_VAE[1]].shape) == 5:
        return ""
    return None


def is_ltxv_vae(tensors: Mapping[str, Any]) -> bool:
    """Whether the video VAE among `tensors` is LTX-Video's, whose decoder alone is told how noisy latents are."""
    prefix = video_vae_prefix(tensors)
    return prefix is not None and f"{prefix}decoder.timestep_scale_multiplier" in tensors


def part_of(name: str) -> str | None:
    """The part of a single-file checkpoint that owns tensor `name`, or None."""
    for part, prefixes in PARTS.items():
        if name.startswith(prefixes):
            return part
    return None


def is_quantization(name: str) -> bool:
    """Whether `name` is a scale or a mark beside a quantized weight and not a weight itself."""
    leaf = name.rpartition(".")[2]
    return name.endswith(QUANTIZATION_ENDINGS) or leaf == QUANTIZATION_MARK or leaf.startswith(QUANTIZATION_PART)


def transformer_prefix(names: Iterable[str]) -> str | None:
    """The prefix of the transformer's tensors among `names`, or None where there is no LTX transformer."""
    names = names if isinstance(names, (set, frozenset, dict)) else set(names)
    for prefix in TRANSFORMER_PREFIXES:
        if f"{prefix}transformer_blocks.0.attn1.to_q.weight" in names and f"{prefix}patchify_proj.weight" in names:
            return prefix
    return None


def in_mode(name: str, mode: str) -> bool:
    """Whether transformer tensor `name` (no prefix) belongs to a model built for `mode`: "video", "audio" or "av".

    Tensors of the other modality and of the attention between the two are not loaded in a single-modality mode.
    """
    if mode == "av":
        return True
    local = name.split(".", 2)[-1] if name.startswith("transformer_blocks.") else name
    between = local.startswith(("av_ca_", "scale_shift_table_a2v_", "audio_to_video_attn.", "video_to_audio_attn."))
    return not between and local.startswith("audio_") == (mode == "audio")
