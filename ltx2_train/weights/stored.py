"""How a weight file stores each linear: as plain numbers, or in a quantized layout of ours or of another program.

    KIND          TENSORS OF A LAYER                                                       WHO WRITES IT
    kept_fp8      weight F8 [O, I]; weight_scale or scale_weight, one number or O; or none   Lightricks, ComfyUI
    kept_nvfp4    weight U8 [O, I/2]; weight_scale F8 in tiles; weight_scale_2 one number    ComfyUI
    int8          weight I8 [O, I]; weight_scale, one number or O                            ComfyUI, quantize
    nf4           weight U8 [O, I/2]; scale_weight [O, I/block, 1]; nf4_shape I64 [2]        community trainer, quantize
    fp8 ...       weight; scale_weight; quant_<name>; metadata `quant_format`                quantize

`input_scale` belongs to the activations of another program's matmul and is not read. What fits none of these is named
with its remedy and never guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..quant.base import QuantLinear
from ..quant.formats import FORMATS, STORED
from ..quant.fp8 import KeptFp8
from ..quant.int8 import Int8
from ..quant.nvfp4 import KeptNvfp4
from . import keys
from .reader import TensorFile, TensorInfo

# metadata of our own files
FORMAT, TYPES, VERSION, SOURCE = "quant_format", "quant_types", "quant_version", "quant_source_fingerprint"
VERSION_WRITTEN = "1"
# the community trainer's words for nf4, which our files carry too
NF4_MARK, NF4_BLOCK_SIZE, NF4_SHAPE = "nf4_quantized", "nf4_block_size", ".nf4_shape"
COMFY_METADATA, COMFY_MARK = "_quantization_metadata", ".comfy_quant"

KEPT_FP8, KEPT_NVFP4 = KeptFp8.storage.name, KeptNvfp4.storage.name
_FP8 = ("F8_E4M3", "F8_E5M2")
_PLAIN = ("BF16", "F16", "F32", "F64")
_SCALES = (".weight_scale", ".scale_weight")
# ComfyUI's names of formats that are read
_COMFY = ("float8_e4m3fn", "float8_e5m2", "nvfp4", "int8_tensorwise")
_COMFY_DETAILS = {"format", "full_precision_matrix_mult"}
USABLE = "Use the bf16 or fp8 checkpoint; quant.format makes it small in memory."


@dataclass(frozen=True)
class StoredLinears:
    """What of a file is quantized. `kinds`: layer -> kind, by the whole name in the file without ".weight".

    `format` is the format of this program the file was written in, or "". `unreadable`: layer -> the layout it has that
    cannot be used; then `kinds` lacks that layer.
    """

    kinds: dict[str, str]
    format: str = ""
    block_size: int = 0
    types: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def layouts(self) -> list[str]:
        """The layouts that cannot be used."""
        return sorted(set(self.unreadable.values()))

    def in_blocks(self) -> dict[str, str]:
        """The layers inside the transformer's blocks."""
        return {layer: kind for layer, kind in self.kinds.items() if "transformer_blocks." in layer}


def find_stored(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> StoredLinears:
    """Look at names, types and shapes; no data is read except where a header speaks of it."""
    own = metadata.get(FORMAT, "") or ("nf4" if metadata.get(NF4_MARK, "").lower() == "true" else "")
    if own and own not in FORMATS:
        return StoredLinears({}, own, unreadable={"": f"{own} of a newer version of this program"})
    kinds: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    declared = _declared(metadata)
    for name, info in tensors.items():
        if not name.endswith(".weight") or info.dtype in _PLAIN or len(info.shape) != 2:
            continue
        layer = name[: -len(".weight")]
        kind, why = _kind(layer, info, tensors, own, declared.get(layer))
        if why:
            unreadable[layer] = why
        elif kind:
            kinds[layer] = kind
    return StoredLinears(
        kinds,
        own,
        _number(metadata.get(NF4_BLOCK_SIZE)),
        _table(metadata.get(TYPES)),
        unreadable,
    )


def check_marks(file: TensorFile, layers: Iterable[str]) -> None:
    """Read the small `.comfy_quant` marks of `layers`; CheckpointError where one names a layout that is not known."""
    for layer in layers:
        if f"{layer}{COMFY_MARK}" in file:
            try:
                entry = json.loads(file.read_bytes(f"{layer}{COMFY_MARK}"))
            except ValueError:
                entry = None
            why = _foreign(entry)
            if why:
                raise CheckpointError(f"{file.path.name} stores {layer} as {why}, which cannot be read. {USABLE}")


def read_stored(
    file: TensorFile,
    layer: str,
    found: StoredLinears,
    bias: Tensor | None,
    compute_dtype: torch.dtype,
    device: torch.device | str,
    shape: tuple[int, int],
) -> QuantLinear:
    """The linear `layer` (whole name in the file) of `shape` (O, I) as it is stored, on `device`."""
    kind = found.kinds[layer]
    if kind == KEPT_FP8:
        scale = next((file.read(layer + end, device) for end in _SCALES if layer + end in file), None)
        weight = file.read(f"{layer}.weight", device)
        return KeptFp8(weight, scale, bias=bias, compute_dtype=compute_dtype)
    if kind == KEPT_NVFP4:
        stored = [file.read(layer + end, device) for end in (".weight", ".weight_scale", ".weight_scale_2")]
        return KeptNvfp4(*stored, bias=bias, compute_dtype=compute_dtype, shape=shape)
    if kind == Int8.storage.name and f"{layer}.weight_scale" in file:
        weight, scale = file.read(f"{layer}.weight", device), file.read(f"{layer}.weight_scale", device)
        scale = scale.reshape(-1, 1).expand(weight.shape[0], 1).clone()
        return Int8(weight, scale, bias=bias, compute_dtype=compute_dtype)
    cls = FORMATS.get(kind)
    tensors = []
    for name in cls.stored_names:
        key = layer + ending_of(name)
        tensor = file.read(key, device) if key in file else None
        as_type = found.types.get(name)
        tensors.append(tensor if tensor is None or as_type is None else tensor.view(getattr(torch, as_type)))
    return cls(*tensors, bias=bias, compute_dtype=compute_dtype)


def weight_shapes(file: TensorFile) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor, packed weights counted in numbers and not in the bytes they share."""
    shapes = {name: info.shape for name, info in file.tensors.items()}
    for layer, kind in find_stored(file.tensors, file.metadata).kinds.items():
        rows, width = shapes[f"{layer}.weight"]
        shapes[f"{layer}.weight"] = (rows, width * STORED.get(kind).storage.per_byte)
    return shapes


def ending_of(name: str) -> str:
    """What stands after the layer's name for the stored tensor `name` in a file of ours."""
    known = {"weight": ".weight", "scale": ".scale_weight"}
    return known.get(name, f".{keys.QUANTIZATION_PART}{name}")


def _kind(
    layer: str, info: TensorInfo, tensors: Mapping[str, TensorInfo], own: str, declared: object
) -> tuple[str, str]:
    """(kind, why it cannot be read) of a layer whose weight is no plain number."""
    if own and "transformer_blocks." in layer:
        return own, ""
    why = _foreign(declared) if declared is not None else ""
    if why:
        return "", why
    scale = next((tensors[layer + end] for end in _SCALES if layer + end in tensors), None)
    if f"{layer}.pre_quant_scale" in tensors:
        return "", "a format with pre_quant_scale"
    if info.dtype in _FP8:
        if scale is None or (scale.dtype in _PLAIN and scale.elements in (1, info.shape[0])):
            return KEPT_FP8, ""
        if scale.dtype in ("U8", "F8_E8M0"):
            return "", "mxfp8"
        return _blocks_of_64(info, scale)
    if info.dtype == "I8":
        good = scale is not None and scale.dtype in _PLAIN and scale.elements in (1, info.shape[0])
        return ("int8", "") if good else ("", "int8 without a scale a row")
    if info.dtype == "U8" and layer + NF4_SHAPE in tensors and f"{layer}.scale_weight" in tensors:
        return "nf4", ""
    if info.dtype in ("U8", "F4") and f"{layer}.weight_scale_2" in tensors:
        good = info.dtype == "U8" and scale is not None and scale.dtype == "F8_E4M3"
        return (KEPT_NVFP4, "") if good else ("", "nvfp4 of an unknown layout")
    return "", "4-bit" if info.dtype in ("U8", "F4") else info.dtype


def _blocks_of_64(info: TensorInfo, scale: TensorInfo) -> tuple[str, str]:
    rows, width = info.shape
    if info.dtype == "F8_E4M3" and scale.shape == (rows, width // 64, 1) and width % 64 == 0:
        return "fp8", ""
    return "", f"fp8 with {scale.elements} scales for {rows} rows"


def _declared(metadata: Mapping[str, str]) -> Mapping[str, object]:
    """ComfyUI's table of layers in the header."""
    text = metadata.get(COMFY_METADATA)
    if not text:
        return {}
    try:
        layers = json.loads(text)["layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    return layers if isinstance(layers, dict) else {}


def _foreign(entry: object) -> str:
    """The name of a ComfyUI format that cannot be read, or ""."""
    if not isinstance(entry, dict):
        return "an unreadable format"
    name = str(entry.get("format"))
    more = (
        {key for key, value in entry.items() if key not in _COMFY_DETAILS and value} if name.startswith("int8") else {}
    )
    return "" if name in _COMFY and not more else " with ".join([name, *sorted(more)])


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _table(text: str | None) -> dict[str, str]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = {}
    return {str(key): str(entry) for key, entry in value.items()} if isinstance(value, dict) else {}
