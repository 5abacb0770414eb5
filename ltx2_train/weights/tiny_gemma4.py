"""Writes a tiny random Gemma 4 in the two layouts in which people own that of LTX-2.5.

 - one safetensors file with everything: `model.*`, the text projection, tokenizer.json as the bytes of a uint8 tensor,
   the tokenizer's settings beside it, and the configuration in the header;
 - a Hugging Face folder: config.json, two shards with tensors named `model.language_model.*`, tokenizer.json. It has
   no text projection, which is the checkpoint's then.

Both hold the same numbers. Five of six layers look back a few tokens only; the sixth sees all, with wider heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from .gemma4 import CONFIG, LAYER_NORMS, PUBLISHED
from .gemma_files import TOKENIZER
from .tiny_gemma import BEGIN, tokenizer_json, train_tokenizer

KINDS = (*["sliding_attention"] * 5, "full_attention")
VOCABULARY, INTERMEDIATE, HEADS, WINDOW = 384, 48, 4, 8
_SIZES = {"sliding_attention": (2, 16), "full_attention": (1, 32)}  # heads of keys and values, and their width
_ASSETS = ("chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer_config.json")


def write_tiny_gemma4(
    folder: Path | str,
    projection: Mapping[str, Tensor],
    *,
    hidden: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    version: str = PUBLISHED,
) -> tuple[Path, Path]:
    """Write `gemma4-tiny-with-proj.safetensors`, with `projection`, and `gemma4-tiny/` into `folder`; returns both.

    `version` is what they call themselves; "" nothing, as a stock Gemma 4.
    """
    folder = Path(folder)
    single, hugging_face = folder / "gemma4-tiny-with-proj.safetensors", folder / "gemma4-tiny"
    tensors = _tensors(hidden, seed, dtype)
    config = _config(hidden, version)
    tokenizer = tokenizer_json(train_tokenizer(VOCABULARY), begin=False)
    settings = json.dumps({"tokenizer_class": "GemmaTokenizer", "bos_token": BEGIN})
    packed = {f"model.{name}": tensor for name, tensor in tensors.items()} | dict(projection)
    packed[TOKENIZER] = _bytes(tokenizer)
    packed |= {f"hf_asset__{name}": _bytes(settings if "tokenizer" in name else "{}") for name in _ASSETS}
    packed["vision_model.patch_dense.weight"] = torch.zeros(4, 4, dtype=dtype)  # no part of the text tower
    files.write_tensors(single, packed, {"format": "pt", CONFIG: json.dumps(config)})
    named = {f"model.language_model.{name}": tensor for name, tensor in tensors.items()}
    names = list(named)
    for number in range(2):
        shard = {name: named[name] for name in names[number::2]}
        files.write_tensors(hugging_face / f"model-{number + 1:05d}-of-00002.safetensors", shard, {"format": "pt"})
    files.write_json(hugging_face / "config.json", config)
    files.write_text(hugging_face / "tokenizer.json", tokenizer)
    files.write_text(hugging_face / "tokenizer_config.json", settings)
    return single, hugging_face


def _tensors(hidden: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The text tower: matrices of unit gain, norms about 1, and layers that keep a fifth to nine tenths."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        noise = torch.randn(shape, generator=generator)
        tensors[f"{name}.weight"] = (noise / math.sqrt(shape[-1]) if len(shape) > 1 else 1 + 0.2 * noise).to(dtype)

    add("embed_tokens", VOCABULARY, hidden)
    for number, kind in enumerate(KINDS):
        prefix, (keys, width) = f"layers.{number}.", _SIZES[kind]
        for name in LAYER_NORMS:
            add(prefix + name, hidden)
        add(f"{prefix}self_attn.q_proj", HEADS * width, hidden)
        add(f"{prefix}self_attn.k_proj", keys * width, hidden)
        if kind == "sliding_attention":
            add(f"{prefix}self_attn.v_proj", keys * width, hidden)
        add(f"{prefix}self_attn.o_proj", hidden, HEADS * width)
        for name in ("q_norm", "k_norm"):
            add(f"{prefix}self_attn.{name}", width)
        for name in ("gate_proj", "up_proj"):
            add(f"{prefix}mlp.{name}", INTERMEDIATE, hidden)
        add(f"{prefix}mlp.down_proj", hidden, INTERMEDIATE)
        tensors[f"{prefix}layer_scalar"] = (0.2 + 0.7 * torch.rand(1, generator=generator)).to(dtype)
    add("norm", hidden)
    return tensors


def _config(hidden: int, version: str) -> dict[str, Any]:
    text_config = {
        "model_type": "gemma4_unified_text",
        "hidden_size": hidden, "num_hidden_layers": len(KINDS), "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS, "hidden_activation": "gelu_pytorch_tanh",
        "num_key_value_heads": _SIZES["sliding_attention"][0], "head_dim": _SIZES["sliding_attention"][1],
        "num_global_key_value_heads": _SIZES["full_attention"][0], "global_head_dim": _SIZES["full_attention"][1],
        "attention_k_eq_v": True, "attention_bias": False, "layer_types": list(KINDS), "sliding_window": WINDOW,
        "rms_norm_eps": 1e-6, "vocab_size": VOCABULARY, "tie_word_embeddings": True,
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "max_position_embeddings": 262144,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        },
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": False,
        "use_double_wide_mlp": False, "use_bidirectional_attention": "vision",
    }  # fmt: skip
    named = {"gemma_version": version} if version else {}
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"],
        "model_type": "gemma4_unified",
        **named,
        "text_config": text_config,
    }


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
