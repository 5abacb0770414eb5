"""What a Gemma text encoder on disk is, by its headers: a Hugging Face folder or one safetensors file.

Gemma 3 belongs to LTX-2 and LTX-2.3, Gemma 4 to LTX-2.5; `layers.0.layer_scalar` tells them apart.

Sizes come from the tensors' shapes, so a file without a config is enough. Names are those of the text tower
(`embed_tokens.weight`, `layers.0...`) after whatever prefix the file puts before them; the image tower is ignored.
Everything that is not usable is refused here, in milliseconds and before a weight is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from . import gemma4
from .encoder_files import EncoderFiles, folder_config, folder_tensors, stored_layers
from .gemma4 import Gemma4Shape
from .reader import TensorFile, TensorInfo
from .stored import StoredLinears, numbers_shape
from .twice import unlike

USABLE_GEMMA3 = (
    "Choose gemma_3_12B_it.safetensors or an fp8 or fp4 version of it from ComfyUI's text_encoders folder, "
    "or the folder google/gemma-3-12b-it-qat-q4_0-unquantized."
)
_LINEARS = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
_NORMS = (*gemma4.HEAD_NORMS, *gemma4.LAYER_NORMS)
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight$")
# beside a weight: its scales, a mark, and the scales of activations, which stay in bf16 here
_BESIDE = ("weight_scale", "scale_weight", "weight_scale_2", "comfy_quant", "input_scale", "scale_input")
TOKENIZER = "tokenizer_json"  # the bytes of tokenizer.json in a packed Gemma 4
_FAMILIES = ("gemma3", "gemma3_text", "gemma4_unified", "gemma4", "gemma4_text")


@dataclass(frozen=True)
class GemmaShape:
    """Sizes, as the tensors show them."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int

    @property
    def columns(self) -> int:
        """Width of all hidden states side by side: the embeddings and one state a layer."""
        return self.hidden * (self.layers + 1)


@dataclass(frozen=True)
class GemmaFiles(EncoderFiles):
    """An opened Gemma; only headers have been read. Close it, or use it in a `with` block.

    `version` is what a Gemma 4 calls itself; "" where it is a stock one, or a Gemma 3.
    """

    shape: GemmaShape | Gemma4Shape
    options: Mapping[str, Any] = field(default_factory=dict)  # text_config of config.json
    version: str = ""

    @property
    def family(self) -> str:
        return "Gemma 4" if isinstance(self.shape, Gemma4Shape) else "Gemma 3"

    @property
    def usable(self) -> str:
        """What to choose where a file of this family will not do."""
        return gemma4.USABLE_GEMMA4 if isinstance(self.shape, Gemma4Shape) else USABLE_GEMMA3


def open_gemma(path: Path | str) -> GemmaFiles:
    """Read the headers of the folder or file at `path` and check that it holds a usable Gemma text tower.

    Raises CheckpointError where it does not, saying what it is instead and what to choose.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"The text encoder {path} does not exist. Check the path. {USABLE_GEMMA3}")
    config: Mapping[str, Any] = {}
    if path.is_dir():
        config = folder_config(path, _FAMILIES, "Gemma 3 is needed, or Gemma 4 for LTX-2.5", USABLE_GEMMA3)
        found, everything = folder_tensors(path, USABLE_GEMMA3)
    else:
        found = (TensorFile(path),)
        everything = dict.fromkeys(found[0].tensors, found[0])
    try:
        return _opened(path, config, found, everything)
    except BaseException:
        for file in found:
            file.close()
        raise


def _opened(
    path: Path, config: Mapping[str, Any], opened: tuple[TensorFile, ...], everything: Mapping[str, TensorFile]
) -> GemmaFiles:
    prefix = _prefix(path, everything)
    kept = (f"{prefix}embed_tokens.", f"{prefix}layers.", f"{prefix}norm.")
    tensors = {name[len(prefix) :]: (file, name) for name, file in everything.items() if name.startswith(kept)}
    infos = {name: file.tensors[stored] for name, (file, stored) in tensors.items()}
    newer = gemma4.MARK in infos
    stored = stored_layers(
        path, prefix, infos, everything, gemma4.USABLE_GEMMA4 if newer else USABLE_GEMMA3, "embed_tokens"
    )
    if newer and not path.is_dir():
        config = gemma4.packed_config(opened[0])
    options = config.get("text_config", config)
    options = options if isinstance(options, Mapping) else {}
    if not newer:
        return GemmaFiles(path, opened, tensors, stored, _shape(path, infos, stored), options)
    sizes = {name: numbers_shape(name, info, stored) for name, info in infos.items()}
    shape = gemma4.tower_shape(path.name, infos, sizes, options)
    return GemmaFiles(path, opened, tensors, stored, shape, options, str(config.get("gemma_version") or ""))


def _prefix(path: Path, names: Mapping[str, TensorFile]) -> str:
    """What stands before the text tower's own names."""
    found = [name.removesuffix("embed_tokens.weight") for name in names if name.endswith("embed_tokens.weight")]
    found = [prefix for prefix in found if f"{prefix}layers.0.self_attn.q_norm.weight" in names]
    if len(found) > 1 and (text := unlike({name: (file, name) for name, file in names.items()}, found)):
        raise CheckpointError(f"The text encoder {path.name} {text}")
    if found:
        return found[0]
    if any("layers." in name and name.endswith(".self_attn.q_proj.weight") for name in names):
        reason = (
            "is one part of a model that was published in several files; choose its folder"
            if re.search(r"-\d+-of-\d+$", path.stem)
            else "holds another language model"
        )
    elif any(name.startswith(("model.diffusion_model.", "transformer_blocks.")) for name in names):
        reason = "is an LTX checkpoint; it belongs into the checkpoint field"
    else:
        reason = "holds no language model"
    raise CheckpointError(f"The text encoder {path.name} is not Gemma 3: it {reason}. {USABLE_GEMMA3}")


def _shape(path: Path, infos: Mapping[str, TensorInfo], stored: StoredLinears) -> GemmaShape:
    layers = 1 + max((int(match[1]) for match in map(_LAYER.match, infos) if match), default=-1)
    wanted = {"embed_tokens.weight", "norm.weight"} | {
        f"layers.{layer}.{part}.weight" for layer in range(layers) for part in _LINEARS + _NORMS
    }
    missing = sorted(wanted - infos.keys())
    if missing:
        part = " It is one part of several: choose the folder." if re.search(r"-\d+-of-\d+$", path.stem) else ""
        raise CheckpointError(
            f"The text encoder {path.name} is incomplete or not Gemma 3: {len(missing)} tensors are missing, "
            f"the first is {missing[0]}.{part} {USABLE_GEMMA3}"
        )
    strange = sorted(name for name in infos.keys() - wanted if name.rsplit(".", 1)[-1] not in _BESIDE)
    if strange:
        raise CheckpointError(
            f"The text encoder {path.name} is not a plain Gemma 3: it has {len(strange)} unknown tensors, "
            f"the first is {strange[0]}. {USABLE_GEMMA3}"
        )
    head_dim = infos["layers.0.self_attn.q_norm.weight"].shape[0]
    rows = {part: infos[f"layers.0.{part}.weight"].shape[0] for part in _LINEARS}
    vocabulary, hidden = infos["embed_tokens.weight"].shape
    shape = GemmaShape(
        vocabulary=vocabulary,
        hidden=hidden,
        layers=layers,
        heads=rows["self_attn.q_proj"] // head_dim,
        kv_heads=rows["self_attn.k_proj"] // head_dim,
        head_dim=head_dim,
        intermediate=rows["mlp.gate_proj"],
    )
    of_layer = layer_shapes(shape)
    whole = {"embed_tokens.weight": (vocabulary, hidden), "norm.weight": (hidden,)}
    for name in sorted(wanted):
        match = _LAYER.match(name)
        expected = whole[name] if match is None else of_layer[match[2]]
        found = numbers_shape(name, infos[name], stored)
        if found != expected:
            raise CheckpointError(
                f"The text encoder {path.name} is not a Gemma 3: {name} has the shape {list(found)}, "
                f"{list(expected)} was expected. {USABLE_GEMMA3}"
            )
    return shape


def layer_shapes(shape: GemmaShape) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of one layer, by their path in it."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        **dict.fromkeys(gemma4.HEAD_NORMS, (shape.head_dim,)),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
        **dict.fromkeys(gemma4.LAYER_NORMS, (shape.hidden,)),
    }
