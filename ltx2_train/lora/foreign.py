"""What a file is that is no plain LoRA, or no LoRA of an LTX-2 transformer: told by names, so that it can be said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..families import FAMILIES, UNSIZED

# what it is -> what stands behind the layer's name in its keys
_KINDS = {
    "LoKr": r"lokr_\w+",
    "LoHa": r"hada_\w+",
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "OFT": r"oft_\w+",
    "BOFT": r"boft_\w+",
    "GLoRA": r"[ab][12]",
    "LoCon with a middle weight": r"lora_mid",
    "biases": r"lora_B\.bias|diff_b",
    "full weights": r"diff|set_weight",
    "norms": r"[wb]_norm",
}
_ENDINGS = {kind: re.compile(rf"\.(?:{pattern})(?:\.[^.]+)?(?:\.weight)?$") for kind, pattern in _KINDS.items()}

_FAMILIES = (
    ("a text encoder", r"(^|[._])(te\d?|text_encoder(_\d)?|text_model|language_model)[._]"),
    ("a language model or text encoder", r"(^|[._])layers[._]\d+[._](self_attn|mlp)[._]"),
    ("a vision model", r"(^|[._])(vision_model|vision_tower)[._]"),
    ("the text connectors of LTX-2", r"embeddings_connector[._]|text_embedding_projection[._]"),
    ("a VAE", r"(^|[._])(vae|first_stage_model)[._]"),
    ("Flux or HunyuanVideo", r"(^|[._])(double_blocks|single_blocks|single_transformer_blocks)[._]\d"),
    ("Stable Diffusion 3", r"(^|[._])joint_blocks[._]\d"),
    ("Stable Diffusion", r"(^|[._])(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)[._]"),
    ("Wan video", r"(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]"),
    ("Qwen-Image, Flux or Stable Diffusion 3", r"(^|[._])transformer_blocks[._]\d+[._]attn[._]"),
    ("Lumina or Z-Image", r"(^|[._])layers[._]\d+[._](attention|feed_forward)[._]"),
)


def kinds_of(keys: Iterable[str]) -> dict[str, int]:
    """Kind -> number of layers, for `keys` that are of no plain LoRA; keys of no known kind are left out."""
    layers: dict[str, set[str]] = {}
    for key in keys:
        kind, layer = kind_and_layer(key)
        if kind:
            layers.setdefault(kind, set()).add(layer)
    return {kind: len(names) for kind, names in layers.items()}


def kind_and_layer(key: str) -> tuple[str, str]:
    """What `key` is a part of, "" where that is not known, and the layer's name in it."""
    for kind, pattern in _ENDINGS.items():
        if match := pattern.search(key):
            return kind, key[: match.start()]
    return "", key.rpartition(".")[0]


def family_of(names: Iterable[str]) -> str:
    """Of what model most of the layers called `names` are, or "" where it is not known."""
    counts: dict[str, int] = {}
    total = 0
    for name in names:
        total += 1
        found = next((family for family, pattern in _FAMILIES if re.search(pattern, f"{name}.")), "")
        counts[found] = counts.get(found, 0) + 1
    best = max(counts, key=lambda family: counts[family], default="")
    return best if total and 2 * counts[best] >= total else ""


def version_named(metadata: Mapping[str, str]) -> str:
    """The version of LTX that the metadata name, a key of FAMILIES or "LTX-Video"; "" where they name none."""
    ours = ("version",) if "format_version" in metadata else ()  # a word that others use for other things
    for key in (*ours, "ss_ltx_version", "model_version"):
        stated = metadata.get(key, "").strip().lstrip("v")
        if found := next((version for version in FAMILIES if stated.startswith(version)), ""):
            return found
    keys = ("modelspec.architecture", "ss_base_model_version", "base", "ss_sd_model_name", "base_model")
    return next((found for key in keys if (found := _named_version(metadata.get(key, "")))), "")


def unknown_version(metadata: Mapping[str, str]) -> str:
    """The version that the metadata give as such where it is none that is known; or ""."""
    if version_named(metadata):
        return ""
    found = (metadata.get(key, "").strip() for key in ("version", "ss_ltx_version", "model_version"))
    return next((stated for stated in found if stated), "")


def _named_version(words: str) -> str:
    words = words.lower().replace("_", "-")
    if re.search(r"ltxv|ltx-video|ltx-?0?\.9|video-13b|video-2b", words):
        return UNSIZED
    match = re.search(r"ltx-?(?:video-?)?(2\.[035])", words)
    if match:
        return match[1]
    return "2.0" if re.search(r"ltx-?2-19b", words) else "2.3" if re.search(r"ltx-?2.*-22b", words) else ""
