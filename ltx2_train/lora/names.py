"""How LoRA files spell the layers of a model, and the one spelling they are read into: the checkpoint's own.

prefixes    diffusion_model.  transformer.  base_model.model.  lora_unet_ ...: nested by each program that wrapped
            another one's model, so they are taken away in whatever order they come
dots        or underscores, which only the names of the layers at hand can resolve
modules     the checkpoint's, or those of diffusers, which calls everything outside of the blocks otherwise
halves      lora_A / lora_B, with or without the name of an adapter; lora_down / lora_up; lora.down / lora.up
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "diffusion_model."
FLAT_PREFIX = "lora_unet_"

# A name that follows one of these is a name of its own: no layer of the model begins with any of them.
_WRAPPERS = (
    "base_model.model.",
    "model.diffusion_model.",
    PREFIX,
    "transformer.",
    "velocity_model.",
    "unet.",
    "dit.",
    "pipe.",
    "pipeline.",
    "module.",
    "model.",
    "lycoris.",
)
_FLAT_WRAPPERS = (
    FLAT_PREFIX,
    "lora_transformer_",
    "lycoris_",
    "base_model_model_",
    "model_diffusion_model_",
    "diffusion_model_",
    "model_",
)
# put into the middle of names by compiling, sharding and recomputing
_INSERTED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_REST = r"(?:(?:\.(?P<adapter>[^.]+))?\.weight)?$"
_DOWN = re.compile(r"\.(?:lora_A|lora_down|lora\.down|lora_linear_layer\.down)" + _REST)
_UP = re.compile(r"\.(?:lora_B|lora_up|lora\.up|lora_linear_layer\.up)" + _REST)
_ALPHA = re.compile(r"\.alpha(?P<adapter>)$")

# diffusers' name of the first part of a path -> the checkpoint's
_DIFFUSERS = {
    "proj_in": "patchify_proj",
    "audio_proj_in": "audio_patchify_proj",
    "time_embed": "adaln_single",
    "audio_time_embed": "audio_adaln_single",
    "prompt_adaln": "prompt_adaln_single",
    "audio_prompt_adaln": "audio_prompt_adaln_single",
    "av_cross_attn_video_scale_shift": "av_ca_video_scale_shift_adaln_single",
    "av_cross_attn_audio_scale_shift": "av_ca_audio_scale_shift_adaln_single",
    "av_cross_attn_video_a2v_gate": "av_ca_a2v_gate_adaln_single",
    "av_cross_attn_audio_v2a_gate": "av_ca_v2a_gate_adaln_single",
}
_TO_DIFFUSERS = {own: theirs for theirs, own in _DIFFUSERS.items()}
# the connectors are a model of their own there
_CONNECTORS = re.compile(r"^connectors\.(video|audio)_connector\.transformer_blocks\.")
_PROJECTION = re.compile(r"^connectors\.((?:video_|audio_)?)text_proj_in\b")
_OWN_CONNECTORS = re.compile(r"^(video|audio)_embeddings_connector\.transformer_1d_blocks\.")
_OWN_PROJECTION = re.compile(r"^text_embedding_projection\.((?:video_|audio_)?)aggregate_embed\b")


class Key(NamedTuple):
    """A key of a LoRA file: its layer in the checkpoint's spelling, where the key allows that; and which part it is.

    `part` is down, up or alpha, None for what no plain LoRA has. `spelled` is the layer as it stands behind the
    prefixes, before diffusers' names are put back. `comfyui`: a key that ComfyUI looks for.
    """

    module: str
    part: str | None
    spelled: str
    comfyui: bool


def split_key(key: str) -> Key:
    """Take `key` apart."""
    part, raw, usual = None, key, False
    for name, pattern in (("down", _DOWN), ("up", _UP), ("alpha", _ALPHA)):
        if (match := pattern.search(key)) is not None:
            part, raw, usual = name, key[: match.start()], match["adapter"] in (None, "", "default")
            break
    spelled = without_prefixes(raw)
    module = checkpoint_name(spelled)
    wrapped = PREFIX if "." in spelled or raw.startswith(PREFIX) else FLAT_PREFIX
    return Key(module, part, spelled, usual and module == spelled and raw == wrapped + spelled)


def without_prefixes(name: str) -> str:
    """`name` without the prefixes that programs put before it, however they are nested."""
    name = _INSERTED.sub("", name)
    while True:
        found = next((one for one in _WRAPPERS if name.startswith(one)), "")
        if not found and (name.startswith(FLAT_PREFIX) or "." not in name):
            found = next((one for one in _FLAT_WRAPPERS if name.startswith(one)), "")
        if not found or found == name:
            return name
        name = name[len(found) :]


def checkpoint_name(name: str) -> str:
    """The checkpoint's name of the layer that diffusers calls `name`; other names stay."""
    first, dot, rest = name.partition(".")
    if first in _DIFFUSERS:
        return _DIFFUSERS[first] + dot + rest
    if first == "connectors":
        name = _CONNECTORS.sub(r"\1_embeddings_connector.transformer_1d_blocks.", name)
        name = _PROJECTION.sub(r"text_embedding_projection.\1aggregate_embed", name)
    return name


def in_diffusers(module: str) -> str:
    """What diffusers calls the layer `module` of the checkpoint, behind the part of its pipeline that has it."""
    if found := _OWN_CONNECTORS.match(module):
        return f"connectors.{found[1]}_connector.transformer_blocks.{module[found.end() :]}"
    if found := _OWN_PROJECTION.match(module):
        return f"connectors.{found[1] or ''}text_proj_in{module[found.end() :]}"
    first, dot, rest = module.partition(".")
    return f"transformer.{_TO_DIFFUSERS.get(first, first)}{dot}{rest}"


def flat_names(module: str) -> tuple[str, ...]:
    """The layer `module` with underscores for dots, as files of either naming spell it."""
    first, dot, rest = module.partition(".")
    return tuple(name.replace(".", "_") for name in (module, _TO_DIFFUSERS.get(first, first) + dot + rest))
