"""What a Gemma 3 text encoder on disk is, by its headers: a Hugging Face folder or one safetensors file.

Sizes come from the tensors' shapes, so a file without a config is enough. Names are those of the text tower
(`embed_tokens.weight`, `layers.0...`) after whatever prefix the file puts before them; the image tower is ignored.
Everything that is not usable is refused here, in milliseconds and before a weight is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .reader import TensorFile, TensorInfo

USABLE = (
    "Choose gemma_3_12B_it.safetensors or an fp8 version of it from ComfyUI's text_encoders folder, "
    "or the folder google/gemma-3-12b-it-qat-q4_0-unquantized."
)
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_PLAIN = ("F32", "F16", "BF16")
_LINEARS = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
_NORMS = (
    "self_attn.q_norm",
    "self_attn.k_norm",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.weight$")
SCALES = ("weight_scale", "scale_weight")
_IGNORED = ("input_scale", "scale_input")  # scales of activations, which stay in bf16 here
SPIECE = "spiece_model"


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
class GemmaFiles:
    """An opened text encoder; only headers have been read. Close it, or use it in a `with` block."""

    path: Path
    files: tuple[TensorFile, ...]
    tensors: Mapping[str, tuple[TensorFile, str]]  # the text tower's name -> where it lies
    shape: GemmaShape
    options: Mapping[str, Any] = field(default_factory=dict)  # text_config of config.json

    def info(self, name: str) -> TensorInfo:
        file, stored = self.tensors[name]
        return file.tensors[stored]

    def read(self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        file, stored = self.tensors[name]
        return file.read(stored, device, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the text tower as stored."""
        return sum(self.info(name).nbytes for name in self.tensors)

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> GemmaFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_gemma(path: Path | str) -> GemmaFiles:
    """Read the headers of the folder or file at `path` and check that it holds a usable Gemma 3 text tower.

    Raises CheckpointError where it does not, saying what it is instead and what to choose.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"The text encoder {path} does not exist. Check the path. {USABLE}")
    options: Mapping[str, Any] = {}
    if path.is_dir():
        options = _folder_options(path)
        found = tuple(TensorFile(file) for file in _shards(path))
    else:
        found = (TensorFile(path),)
    everything = {name: file for file in found for name in file.tensors}
    prefix = _prefix(path, everything)
    kept = (f"{prefix}embed_tokens.", f"{prefix}layers.", f"{prefix}norm.")
    tensors = {name[len(prefix) :]: (file, name) for name, file in everything.items() if name.startswith(kept)}
    _refuse_other_quantization(path, tensors, found)
    shape = _shape(path, {name: file.tensors[stored] for name, (file, stored) in tensors.items()})
    return GemmaFiles(path, found, tensors, shape, options)


def _folder_options(path: Path) -> Mapping[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"The text encoder folder {path} has no config.json. Choose the folder that holds config.json and "
            "the .safetensors files of Gemma 3, or a single .safetensors file."
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = str(config.get("model_type", ""))
        options = dict(config.get("text_config", config))
    except (ValueError, AttributeError, TypeError):
        raise CheckpointError(f"{file} is not readable. Download it again.") from None
    if kind not in ("gemma3", "gemma3_text"):
        raise CheckpointError(
            f"The text encoder folder {path} holds a model of type {kind or 'unknown'!r}; Gemma 3 is needed. {USABLE}"
        )
    return options


def _shards(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CheckpointError(f"{index} is not readable. Download it again.") from None
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise CheckpointError(
                f"The text encoder folder {path} is incomplete: {', '.join(missing)} of {len(names)} files missing. "
                "Finish the download."
            )
        return [path / name for name in names]
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"The text encoder folder {path} has no .safetensors files. {USABLE}")
    return found


def _prefix(path: Path, names: Mapping[str, TensorFile]) -> str:
    """What stands before the text tower's own names."""
    for name in names:
        if name.endswith("embed_tokens.weight"):
            prefix = name.removesuffix("embed_tokens.weight")
            if f"{prefix}layers.0.self_attn.q_norm.weight" in names:
                return prefix
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
    raise CheckpointError(f"The text encoder {path.name} is not Gemma 3: it {reason}. {USABLE}")


def _refuse_other_quantization(
    path: Path, tensors: Mapping[str, tuple[TensorFile, str]], found: tuple[TensorFile, ...]
) -> None:
    formats = set()
    for name, (file, stored) in tensors.items():
        kind = file.tensors[stored].dtype
        if name.endswith(".comfy_quant"):
            formats.add(_format(file.read_bytes(stored)))
        elif name.endswith((".weight_scale_2", ".pre_quant_scale")):
            formats.add("nvfp4")
        elif name.endswith(".weight") and kind not in _PLAIN and kind not in FP8:
            formats.add(f"packed {kind}")
    for file in found:
        text = file.metadata.get("_quantization_metadata")
        if text:
            try:
                layers = json.loads(text)["layers"].values()
                formats.update(str(layer.get("format")) for layer in layers)
            except (ValueError, KeyError, AttributeError, TypeError):
                formats.add("unreadable")
    wrong = sorted(formats - set(FP8.values()))
    if wrong:
        raise CheckpointError(
            f"The text encoder {path.name} is quantized as {', '.join(wrong)}, which cannot be used for training; "
            f"bf16, fp16, fp32 and fp8 can. {USABLE}"
        )


def _format(mark: bytes) -> str:
    try:
        return str(json.loads(mark)["format"])
    except (ValueError, KeyError, TypeError):
        return "unreadable"


def _shape(path: Path, infos: Mapping[str, TensorInfo]) -> GemmaShape:
    layers = 1 + max((int(match[1]) for match in map(_LAYER.match, infos) if match), default=-1)
    wanted = {"embed_tokens.weight", "norm.weight"} | {
        f"layers.{layer}.{part}.weight" for layer in range(layers) for part in _LINEARS + _NORMS
    }
    missing = sorted(wanted - infos.keys())
    if missing:
        part = " It is one part of several: choose the folder." if re.search(r"-\d+-of-\d+$", path.stem) else ""
        raise CheckpointError(
            f"The text encoder {path.name} is incomplete or not Gemma 3: {len(missing)} tensors are missing, "
            f"the first is {missing[0]}.{part} {USABLE}"
        )
    side = SCALES + _IGNORED + ("comfy_quant",)
    strange = sorted(name for name in infos.keys() - wanted if name.rsplit(".", 1)[-1] not in side)
    if strange:
        raise CheckpointError(
            f"The text encoder {path.name} is not a plain Gemma 3: it has {len(strange)} unknown tensors, "
            f"the first is {strange[0]}. {USABLE}"
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
    for name in sorted(wanted):
        expected = _expected(shape, name)
        if infos[name].shape != expected:
            raise CheckpointError(
                f"The text encoder {path.name} is not a Gemma 3: {name} has the shape {list(infos[name].shape)}, "
                f"{list(expected)} was expected. {USABLE}"
            )
    return shape


def _expected(shape: GemmaShape, name: str) -> tuple[int, ...]:
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    match = _LAYER.match(name)
    if match is None:
        return (shape.vocabulary, shape.hidden) if name.startswith("embed") else (shape.hidden,)
    return {
        "self_attn.q_proj": (queries, shape.hidden),
        "self_attn.k_proj": (keys, shape.hidden),
        "self_attn.v_proj": (keys, shape.hidden),
        "self_attn.o_proj": (shape.hidden, queries),
        "self_attn.q_norm": (shape.head_dim,),
        "self_attn.k_norm": (shape.head_dim,),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }.get(match[2], (shape.hidden,))
