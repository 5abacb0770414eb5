"""How a weight file stores each linear: as plain numbers, or in a quantized layout of ours or of another program.

    KIND          TENSORS OF A LAYER                                                       WHO WRITES IT
    kept_fp8      weight F8 [O, I]; weight_scale or scale_weight, one number or O; or none   Lightricks, ComfyUI
    kept_nvfp4    weight U8 [O, I/2]; weight_scale F8 in tiles; weight_scale_2 one number    ComfyUI
    kept_mxfp8    weight F8 [O, I]; weight_scale U8 or E8M0 in tiles                         ComfyUI
    int8          weight I8 [O, I]; weight_scale, one number or O                            ComfyUI, quantize
    kept_convrot  as int8, and ComfyUI's mark says convrot: the inputs are rotated           ComfyUI
    nf4           weight U8 [O, I/2]; scale_weight [O, I/block, 1]; nf4_shape I64 [2]        community trainer, quantize
    fp8 ...       weight; scale_weight; quant_<name>; metadata `quant_format`                quantize

`input_scale` belongs to the activations of another program's matmul and is not read. What fits none of these is named
with its remedy and never guessed at. That holds above all for a weight that was divided by a scale which is not there:
as plain numbers it would be hundreds of times too large, and nothing would tell but the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import parse_json
from ..quant.formats import FORMATS, STORED
from ..quant.fp8 import KeptFp8
from ..quant.int8 import LARGEST_ROTATION, Int8, KeptConvrot, is_convrot_group
from ..quant.mxfp8 import KeptMxfp8
from ..quant.nvfp4 import KeptNvfp4
from ..quant.tiles import tiled_size
from . import keys
from .reader import TensorFile, TensorInfo

# metadata of our own files
FORMAT, TYPES, VERSION, SOURCE = "quant_format", "quant_types", "quant_version", "quant_source_fingerprint"
VERSION_WRITTEN = "1"
# the community trainer's words for nf4, which our files carry too
NF4_MARK, NF4_BLOCK_SIZE, NF4_SHAPE = "nf4_quantized", "nf4_block_size", ".nf4_shape"
COMFY_METADATA, COMFY_MARK = "_quantization_metadata", ".comfy_quant"

KEPT_FP8, KEPT_NVFP4, KEPT_MXFP8 = (kind.storage.name for kind in (KeptFp8, KeptNvfp4, KeptMxfp8))
INT8, KEPT_CONVROT = Int8.storage.name, KeptConvrot.storage.name
FP8_TYPES = ("F8_E4M3", "F8_E5M2")
PLAIN_TYPES = ("BF16", "F16", "F32", "F64")
SCALES = (".weight_scale", ".scale_weight")
# ComfyUI's names of the formats that are read
_COMFY = {
    "float8_e4m3fn": KEPT_FP8,
    "float8_e5m2": KEPT_FP8,
    "nvfp4": KEPT_NVFP4,
    "mxfp8": KEPT_MXFP8,
    "int8_tensorwise": INT8,
}
# what a mark may say besides: how another program multiplies, what the scales show too, and the rotation
_COMFY_DETAILS = {"format", "full_precision_matrix_mult", "per_row", "orig_dtype", "orig_shape"}
_ROTATED, _GROUP = "convrot", "convrot_groupsize"
_LONGEST_MARK = 4096  # bytes
_LOST = "whose scale is missing"
USABLE_CHECKPOINTS = "Use the bf16 or fp8 checkpoint; quant.format makes it small in memory."


class Tensors(Protocol):
    """What tensors are read from: a file, or several that are one model."""

    @property
    def name(self) -> str: ...

    def read(self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Tensor: ...

    def read_bytes(self, name: str, start: int = 0, count: int | None = None) -> bytes: ...

    def __contains__(self, name: str) -> bool: ...


@dataclass(frozen=True)
class StoredLinears:
    """What of a file is quantized. `kinds`: layer -> kind, by the whole name in the file without ".weight".

    `format` is the format of this program the file was written in, or "". `unreadable`: layer -> the layout it has that
    cannot be used; then `kinds` lacks that layer. `groups`: rotated layer -> how many inputs are rotated together.
    """

    kinds: dict[str, str]
    format: str = ""
    block_size: int = 0
    types: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    def complaint(self, layers: Iterable[str] | None = None, usable: str = USABLE_CHECKPOINTS) -> str:
        """What of `layers` (None: of the whole file) cannot be read, as the end of a sentence; "" where all can."""
        named: dict[str, list[str]] = {}
        for layer in self.unreadable if layers is None else layers:
            if layer in self.unreadable:
                named.setdefault(self.unreadable[layer], []).append(layer)
        if not named:
            return ""
        listed = []
        for why, names in sorted(named.items()):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            listed.append(f"{why} ({names[0]}{more})" if names[0] else why)
        text = f"{', '.join(listed)}, which cannot be read."
        if any(why.endswith(_LOST) for why in named):
            text += " Without it the numbers are hundreds of times too large. Download the file again."
        return f"{text} {usable}"

    def in_blocks(self) -> dict[str, str]:
        """The layers inside the transformer's blocks."""
        return {layer: kind for layer, kind in self.kinds.items() if "transformer_blocks." in layer}


def stored_in(file: TensorFile) -> StoredLinears:
    """How `file` stores its linears. Of ComfyUI's marks beside the layers one of each sort is read."""
    return find_stored(file.tensors, file.metadata, read_marks(file, file.tensors, sample=True))


def find_stored(
    tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str], marks: Mapping[str, object] | None = None
) -> StoredLinears:
    """Look at names, types and shapes, and at what `marks` (layer -> parsed) say beside the header."""
    own = metadata.get(FORMAT, "") or ("nf4" if metadata.get(NF4_MARK, "").lower() == "true" else "")
    if own and own not in FORMATS:
        return StoredLinears({}, own, unreadable={"": f"{own} of a newer version of this program"})
    kinds: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    groups: dict[str, int] = {}
    header = _Header(tensors, {**declared_layers(metadata), **(marks or {})})
    for name, info in tensors.items():
        if keys.is_quantization(name):
            continue
        layer = name.removesuffix(".weight")
        if info.dtype in PLAIN_TYPES:
            if layer in header.declared and name.endswith(".weight"):
                unreadable[layer] = f"{info.dtype}, but marked as {_format_of(header.declared[layer])}"
            continue
        if name.endswith(".weight") and len(info.shape) == 2:
            kind, why = _kind(layer, info, header, own)
        else:
            kind, why = "", header.lost_scale(layer, info)
        if why:
            unreadable[layer] = why
        elif kind:
            kinds[layer] = kind
            if kind == KEPT_CONVROT:
                groups[layer] = _group_of(header.declared[layer])
    return StoredLinears(
        kinds,
        own,
        _number(metadata.get(NF4_BLOCK_SIZE)),
        _table(metadata.get(TYPES)),
        unreadable,
        groups,
    )


def read_marks(file: Tensors, tensors: Mapping[str, TensorInfo], sample: bool = False) -> dict[str, object]:
    """layer -> what ComfyUI's mark beside it says, parsed; None where it is not readable.

    `sample`: of marks of one length beside weights of one type, which say the same, a single one is read.
    """
    marks: dict[str, object] = {}
    known: dict[tuple[object, ...], object] = {}
    for name, info in tensors.items():
        if not name.endswith(COMFY_MARK):
            continue
        layer = name[: -len(COMFY_MARK)]
        weight, scale = (tensors.get(layer + end) for end in (".weight", ".weight_scale"))
        types = tuple(None if one is None else one.dtype for one in (weight, scale))
        sort = (info.nbytes, types, None if sample else layer)
        if sort not in known:
            try:
                known[sort] = parse_json(file.read_bytes(name, 0, _LONGEST_MARK))
            except ValueError:
                known[sort] = None
        marks[layer] = known[sort]
    return marks


def check_marks(file: TensorFile, layers: Iterable[str]) -> None:
    """Read all marks beside `layers`; CheckpointError where one names a layout that is not known."""
    found = find_stored(file.tensors, file.metadata, read_marks(file, file.tensors))
    if text := found.complaint(layers):
        raise CheckpointError(f"{file.path.name} is stored as {text}")


def weight_shapes(file: TensorFile) -> dict[str, tuple[int, ...]]:
    """name -> shape of every tensor, packed weights counted in numbers."""
    stored = stored_in(file)
    return {name: numbers_shape(name, info, stored) for name, info in file.tensors.items()}


def numbers_shape(name: str, info: TensorInfo, stored: StoredLinears) -> tuple[int, ...]:
    """The shape of the tensor `name`, a packed weight counted in numbers and not in the bytes they share."""
    kind = stored.kinds.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
    if kind is None:
        return info.shape
    return (*info.shape[:-1], info.shape[-1] * STORED.get(kind).storage.per_byte)


def ending_of(name: str) -> str:
    """What stands after the layer's name for the stored tensor `name` in a file of ours."""
    known = {"weight": ".weight", "scale": ".scale_weight"}
    return known.get(name, f".{keys.QUANTIZATION_PART}{name}")


class _Header:
    """A header, and what it says of a layer's scales beside the tensors themselves."""

    def __init__(self, tensors: Mapping[str, TensorInfo], declared: Mapping[str, object]) -> None:
        self.tensors, self.declared = tensors, declared
        self._beside: dict[str, list[str]] = {}  # layer -> last parts of the names under it that speak of a scale
        self._marked: list[str] = []  # prefixes under which every fp8 weight has a scale
        self._scaled = False
        for name in tensors:
            layer, _, leaf = name.rpartition(".")
            if leaf == keys.QUANTIZATION_MARK:
                self._marked.append(name[: -len(leaf)])
            elif "scale" in leaf:
                self._beside.setdefault(layer, []).append(leaf)
                self._scaled = self._scaled or f".{leaf}" in SCALES

    def scale(self, layer: str) -> TensorInfo | None:
        return next((self.tensors[layer + end] for end in SCALES if layer + end in self.tensors), None)

    def lost_scale(self, layer: str, info: TensorInfo) -> str:
        """Why the numbers of an fp8 or int8 tensor cannot be taken as they are, or ""."""
        if info.dtype not in (*FP8_TYPES, "I8"):
            return ""
        kind = "int8" if info.dtype == "I8" else "fp8"
        scale = self.scale(layer)
        if scale is not None:
            plain = scale.dtype in PLAIN_TYPES and scale.elements in (1, *info.shape[:1])
            return "" if plain else f"{kind} with {scale.elements} scales"
        if "weight_scale_inv" in self._beside.get(layer, ()):
            return f"{kind} with weight_scale_inv"
        was_scaled = (
            kind == "int8"
            or self._scaled
            or layer in self.declared
            or layer in self._beside
            or any(layer.startswith(prefix) for prefix in self._marked)
        )
        return f"{kind} {_LOST}" if was_scaled else ""


def _kind(layer: str, info: TensorInfo, header: _Header, own: str) -> tuple[str, str]:
    """(kind, why it cannot be read) of a layer whose weight is no plain number."""
    if own and "transformer_blocks." in layer:
        endings = [ending_of(name) for name in FORMATS.get(own).stored_names]
        missing = [end for end in endings if layer + end not in header.tensors]
        return ("", f"{own} without {missing[0]}") if missing else (own, "")
    declared = header.declared.get(layer)
    why = _foreign(declared) if layer in header.declared else ""
    kind = ""
    if not why:
        kind, why = _by_types(layer, info, header)
    if kind and isinstance(declared, Mapping) and _COMFY[str(declared["format"])] != kind:
        return "", f"{STORED.get(kind).storage.words}, but marked as {declared['format']}"
    if kind == INT8 and (group := _group_of(declared)):
        fits = is_convrot_group(group, info.shape[1])
        return (KEPT_CONVROT, "") if fits else ("", f"int8_tensorwise with convrot in groups of {group}")
    return ("", why) if why else (kind, "")


def _by_types(layer: str, info: TensorInfo, header: _Header) -> tuple[str, str]:
    tensors, scale = header.tensors, header.scale(layer)
    if f"{layer}.pre_quant_scale" in tensors:
        return "", "a format with pre_quant_scale"
    if info.dtype in FP8_TYPES:
        if scale is not None and scale.dtype in ("U8", "F8_E8M0"):
            return _tiles(KEPT_MXFP8, layer, info.shape, header) if info.dtype == "F8_E4M3" else ("", "mxfp8 in e5m2")
        if scale is not None and (scale.dtype not in PLAIN_TYPES or scale.elements not in (1, info.shape[0])):
            return _blocks_of_64(info, scale)
        why = header.lost_scale(layer, info)
        return ("", why) if why else (KEPT_FP8, "")
    if info.dtype == "I8":
        why = header.lost_scale(layer, info)
        return ("", why) if why else (INT8, "")
    if info.dtype == "U8" and layer + NF4_SHAPE in tensors and f"{layer}.scale_weight" in tensors:
        return "nf4", ""
    if info.dtype in ("U8", "F4") and f"{layer}.weight_scale_2" in tensors:
        good = info.dtype == "U8" and scale is not None and scale.dtype == "F8_E4M3"
        if not good or tensors[f"{layer}.weight_scale_2"].elements != 1:
            return "", "nvfp4 of an unknown layout"
        return _tiles(KEPT_NVFP4, layer, (info.shape[0], 2 * info.shape[1]), header)
    return "", "4-bit" if info.dtype in ("U8", "F4") else info.dtype


def _tiles(kind: str, layer: str, shape: tuple[int, ...], header: _Header) -> tuple[str, str]:
    """`kind` where the scales of its blocks lie in tiles, as ComfyUI's do; other programs lay them row by row."""
    block, name = {KEPT_NVFP4: 16, KEPT_MXFP8: 32}[kind], STORED.get(kind).storage.words
    rows, width = shape
    scale = header.tensors[f"{layer}.weight_scale"] if f"{layer}.weight_scale" in header.tensors else None
    if scale is None or width % block or scale.elements != tiled_size(rows, width // block):
        return "", f"{name} of an unknown layout"
    if layer not in header.declared and scale.shape == (rows, width // block):
        return "", f"{name} without ComfyUI's mark, so that the order of its scales is not known"
    return kind, ""


def _blocks_of_64(info: TensorInfo, scale: TensorInfo) -> tuple[str, str]:
    rows, width = info.shape
    if info.dtype == "F8_E4M3" and scale.shape == (rows, width // 64, 1) and width % 64 == 0:
        return "fp8", ""
    return "", f"fp8 with {scale.elements} scales for {rows} rows"


def declared_layers(metadata: Mapping[str, str]) -> dict[str, object]:
    """ComfyUI's table of layers in the header."""
    text = metadata.get(COMFY_METADATA)
    if not text:
        return {}
    try:
        layers = parse_json(text)["layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    return layers if isinstance(layers, dict) else {}


def _group_of(entry: object) -> int:
    """How many inputs of an int8 layer its mark says are rotated together; 0: none are."""
    if not isinstance(entry, Mapping) or not entry.get(_ROTATED):
        return 0
    group = entry.get(_GROUP, LARGEST_ROTATION)
    return group if isinstance(group, int) and group > 0 else -1


def _format_of(entry: object) -> str:
    return str(entry.get("format")) if isinstance(entry, dict) else "an unreadable format"


def _foreign(entry: object) -> str:
    """The name of a ComfyUI format that cannot be read, or ""."""
    if not isinstance(entry, dict):
        return "an unreadable format"
    name = str(entry.get("format"))
    known = {*_COMFY_DETAILS, _ROTATED, _GROUP} if name == "int8_tensorwise" else _COMFY_DETAILS
    more = {key for key, value in entry.items() if key not in known and value} if name.startswith("int8") else {}
    return "" if name in _COMFY and not more else " with ".join([name, *sorted(more)])


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _table(text: str | None) -> dict[str, str]:
    try:
        value = parse_json(text) if text else {}
    except ValueError:
        value = {}
    return {str(key): str(entry) for key, entry in value.items()} if isinstance(value, dict) else {}
