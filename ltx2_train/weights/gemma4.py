"""What a Gemma 4 text tower on disk is: its layers by the tensors, the rest by its config, its version by the gate.

LTX-2.5 was trained with a Gemma 4 of its own, so a file must say by `gemma_version` that it is one. Google's Gemma 4
has the same shapes and other weights, and nothing but this word tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..files import parse_json
from ..models.gemma4 import FULL, SLIDING, Gemma4Config, LayerShape
from .reader import TensorFile, TensorInfo

MARK = "layers.0.layer_scalar"
USABLE_GEMMA4 = (
    "Choose gemma4-12b-with-proj-ltx-2.5-bf16.safetensors of Lightricks/LTX-2.5 from ComfyUI's text_encoders folder, "
    "or the folder ltx-2.5-22b-gemma4-12b."
)
PUBLISHED = "gemma4-12b-ltx-v1"
SOURCE, CONFIG = "gemma_source_checkpoint", "gemma_config"  # metadata of the transformer, and of the encoder
_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_VALUES = "self_attn.v_proj"
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_LAYER = re.compile(r"layers\.(\d+)\.")
# what would change the computation if it said something else
_FIXED: dict[str, Any] = {
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "enable_moe_block": False,
    "use_double_wide_mlp": False,
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
}


@dataclass(frozen=True)
class Gemma4Shape:
    """Sizes, as the tensors and the config show them."""

    config: Gemma4Config

    @property
    def hidden(self) -> int:
        return self.config.hidden

    @property
    def layers(self) -> int:
        return len(self.config.layers)

    @property
    def columns(self) -> int:
        """Width of all hidden states side by side: the embeddings and one state a layer."""
        return self.hidden * (self.layers + 1)


def packed_config(file: TensorFile) -> Mapping[str, Any]:
    """The config that a single file carries in its header; empty where it has none."""
    try:
        found = parse_json(file.metadata.get(CONFIG) or "{}")
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"The text encoder {file.path.name} has an unreadable {CONFIG} in its header. {USABLE_GEMMA4}"
        )
    return found


def tower_shape(
    name: str, infos: Mapping[str, TensorInfo], sizes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> Gemma4Shape:
    """The tower of the tensors `infos`, whose shapes in numbers are `sizes`; `options` is text_config.

    Raises CheckpointError where it is incomplete, or not what this program computes.
    """
    strange = [f"{key} = {options[key]!r}" for key, value in _FIXED.items() if options.get(key, value) != value]
    if strange:
        raise CheckpointError(
            f"The text encoder {name} is another Gemma 4: its config says {strange[0]}. {USABLE_GEMMA4}"
        )
    count = 1 + max((int(match[1]) for match in map(_LAYER.match, infos) if match), default=-1)
    wanted: dict[str, tuple[int, ...] | None] = {"embed_tokens.weight": None, "norm.weight": None}
    for number in range(count):
        for part in (*_LINEARS, *HEAD_NORMS, *LAYER_NORMS):
            wanted[f"layers.{number}.{part}.weight"] = None
        wanted[f"layers.{number}.layer_scalar"] = (1,)
    missing = sorted(wanted.keys() - infos.keys())
    if missing:
        raise CheckpointError(
            f"The text encoder {name} is incomplete or not Gemma 4: {len(missing)} tensors are missing, the first is "
            f"{missing[0]}. {USABLE_GEMMA4}"
        )
    vocabulary, hidden = sizes["embed_tokens.weight"]
    config = Gemma4Config(
        vocabulary,
        hidden,
        sizes["layers.0.mlp.gate_proj.weight"][0],
        tuple(_layer(number, sizes, options) for number in range(count)),
        int(options.get("sliding_window") or 1024),
        float(options.get("rms_norm_eps") or 1e-6),
    )
    wanted |= _expected(config)
    for tensor, size in sorted(wanted.items()):
        if sizes[tensor] != size:
            raise CheckpointError(
                f"The text encoder {name} is not a Gemma 4 of this program: {tensor} has the shape "
                f"{list(sizes[tensor])}, {list(size or ())} was expected. {USABLE_GEMMA4}"
            )
    beside = {tensor.removesuffix(".weight") for tensor in wanted}
    unknown = sorted(tensor for tensor in infos.keys() - wanted.keys() if tensor.rpartition(".")[0] not in beside)
    if unknown:
        raise CheckpointError(
            f"The text encoder {name} is another Gemma 4: it has {len(unknown)} unknown tensors, the first is "
            f"{unknown[0]}. {USABLE_GEMMA4}"
        )
    return Gemma4Shape(config)


def _expected(config: Gemma4Config) -> dict[str, tuple[int, ...]]:
    """The shape of each matrix and norm of the tower."""
    hidden, intermediate = config.hidden, config.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocabulary, hidden),
        "norm.weight": (hidden,),
    }
    for number, layer in enumerate(config.layers):
        queries, keys = layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        expected: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries), "mlp.gate_proj": (intermediate, hidden),
            "mlp.up_proj": (intermediate, hidden), "mlp.down_proj": (hidden, intermediate),
            **dict.fromkeys(HEAD_NORMS, (layer.head_dim,)), **dict.fromkeys(LAYER_NORMS, (hidden,)),
        }  # fmt: skip
        if layer.own_values:
            expected[_VALUES] = (keys, hidden)
        shapes |= {f"layers.{number}.{part}.weight": size for part, size in expected.items()}
    return shapes


def _layer(number: int, sizes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]) -> LayerShape:
    prefix = f"layers.{number}."
    own_values = f"{prefix}{_VALUES}.weight" in sizes
    kinds = options.get("layer_types") or ()
    kind = kinds[number] if number < len(kinds) else SLIDING if own_values else FULL
    rope = (options.get("rope_parameters") or {}).get(kind) or {}
    head_dim = sizes[f"{prefix}self_attn.q_norm.weight"][0]
    default, share = (1e4, 1.0) if kind == SLIDING else (1e6, 0.25)
    return LayerShape(
        kind,
        sizes[f"{prefix}self_attn.q_proj.weight"][0] // head_dim,
        sizes[f"{prefix}self_attn.k_proj.weight"][0] // head_dim,
        head_dim,
        float(rope.get("rope_theta") or default),
        float(rope.get("partial_rotary_factor") or share),
        own_values,
    )


def source_version(checkpoint: TensorFile) -> str:
    """The gemma_version that the transformer of 2.5 in `checkpoint` was trained with; the published one if unsaid."""
    try:
        stated = parse_json(checkpoint.metadata.get(SOURCE) or "{}")
    except ValueError:
        stated = {}
    found = stated.get("gemma_version") if isinstance(stated, Mapping) else None
    return str(found or PUBLISHED)


def check_version(name: str, version: str, checkpoint: TensorFile) -> None:
    """Raise CheckpointError where the Gemma 4 `name`, which calls itself `version`, is not that of the checkpoint."""
    wanted = source_version(checkpoint)
    if version == wanted:
        return
    what = (
        f"is a Gemma 4 of version {version!r}"
        if version
        else "is a stock Gemma 4 (its config has no gemma_version), which has other weights"
    )
    raise CheckpointError(
        f"The text encoder {name} {what}; {checkpoint.path.name} was trained with {wanted!r}. {USABLE_GEMMA4}"
    )
