"""The numbers of a weight file, whatever way they are stored: see stored.py for the layouts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..quant.base import QuantLinear
from ..quant.formats import FORMATS
from ..quant.fp8 import KeptFp8
from ..quant.int8 import Int8, KeptConvrot
from ..quant.mxfp8 import KeptMxfp8
from ..quant.nvfp4 import KeptNvfp4
from .reader import TensorInfo
from .stored import (
    FP8_TYPES,
    INT8,
    KEPT_CONVROT,
    KEPT_FP8,
    KEPT_MXFP8,
    KEPT_NVFP4,
    PLAIN_TYPES,
    SCALES,
    USABLE_CHECKPOINTS,
    StoredLinears,
    Tensors,
    ending_of,
)

# an fp8 weight that was divided by a scale reaches the end of its range, which is 448 or more; a trained one does not
_SCALED_FROM = 256
# kind -> its class, what its tensors are called in a file, and to what multiple rows and inputs may be padded
_TILED: dict[str, tuple[type[KeptNvfp4] | type[KeptMxfp8], tuple[str, ...], int]] = {
    KEPT_NVFP4: (KeptNvfp4, (".weight", ".weight_scale", ".weight_scale_2"), 16),
    KEPT_MXFP8: (KeptMxfp8, (".weight", ".weight_scale"), 32),
}


def read_stored(
    file: Tensors,
    layer: str,
    storage: StoredLinears,
    bias: Tensor | None,
    compute_dtype: torch.dtype,
    device: torch.device | str,
    shape: tuple[int, int],
) -> QuantLinear:
    """The linear `layer` (whole name in the file) of `shape` (O, I) as it is stored, on `device`.

    Raises CheckpointError where the file has another shape, or shows that a scale is missing.
    """
    kind = storage.kinds[layer]
    if kind == KEPT_FP8:
        weight, scale = file.read(f"{layer}.weight", device), read_scale(file, layer, device)
        if scale is None:
            refuse_unscaled(weight, layer, file.name)
        return _fitting(KeptFp8(weight, scale, bias=bias, compute_dtype=compute_dtype), file, layer, shape)
    if kind in _TILED:
        cls, endings, pad = _TILED[kind]
        stored = [file.read(layer + end, device) for end in endings]
        rows, width = stored[0].shape[0], stored[0].shape[1] * cls.storage.per_byte
        if (rows, width) not in (shape, tuple(-(-size // pad) * pad for size in shape)):
            raise CheckpointError(_other_shape(file.name, layer, (rows, width), shape))
        return cls(*stored, bias=bias, compute_dtype=compute_dtype, shape=shape)
    if kind in (INT8, KEPT_CONVROT):
        weight, scale = file.read(f"{layer}.weight", device), read_scale(file, layer, device)
        assert scale is not None, layer
        scale = scale.reshape(-1, 1).expand(weight.shape[0], 1).clone()
        made = (
            Int8(weight, scale, bias=bias, compute_dtype=compute_dtype)
            if kind == INT8
            else KeptConvrot(weight, scale, bias=bias, compute_dtype=compute_dtype, group=storage.groups[layer])
        )
        return _fitting(made, file, layer, shape)
    cls = FORMATS.get(kind)
    tensors = []
    for name in cls.stored_names:
        as_type = storage.types.get(name)
        tensor = file.read(layer + ending_of(name), device)
        tensors.append(tensor if as_type is None else tensor.view(getattr(torch, as_type)))
    return _fitting(cls(*tensors, bias=bias, compute_dtype=compute_dtype), file, layer, shape)


def read_scale(file: Tensors, layer: str, device: torch.device | str = "cpu") -> Tensor | None:
    """The scale of the weight of `layer` in float32: one number, or one a row; None where there is none."""
    return next((file.read(layer + end, device, torch.float32) for end in SCALES if layer + end in file), None)


def read_numbers(file: Tensors, name: str, info: TensorInfo, device: torch.device | str = "cpu") -> Tensor:
    """The tensor `name`, with its scale where it is fp8 or int8; then in float32.

    Raises CheckpointError where the scale is of another kind, is missing, or stands beside plain numbers.
    """
    tensor = file.read(name, device)
    layer = name.removesuffix(".weight")
    scale = read_scale(file, layer, device)
    if info.dtype not in (*FP8_TYPES, "I8"):
        if scale is not None and info.dtype in PLAIN_TYPES and not bool((scale == 1).all()):
            raise CheckpointError(
                f"{file.name} stores {layer} as {info.dtype} beside a scale. Whether it is multiplied in is not known: "
                "a program that knew nothing of scales has converted the file. Use the original."
            )
        return tensor
    if scale is None:
        refuse_unscaled(tensor, layer, file.name)
        return tensor.float()
    if scale.numel() not in (1, tensor.shape[0]):
        raise CheckpointError(
            f"{file.name} stores {name} with {scale.numel()} scales for {tensor.shape[0]} rows, a block format this "
            "program cannot read. Use the bf16 checkpoint, or fp8 with one scale a tensor."
        )
    rows = scale.numel() > 1
    return tensor.float().mul_(scale.reshape(-1, *[1] * (tensor.ndim - 1)) if rows else scale.reshape(()))


def refuse_unscaled(weight: Tensor, layer: str, file_name: str) -> None:
    """Raise CheckpointError where the numbers of an fp8 matrix without a scale show that there was one."""
    if weight.dim() < 2 or weight.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
        return
    limit = torch.tensor(float(_SCALED_FROM)).to(weight.dtype).view(torch.uint8)
    if bool(((weight.view(torch.uint8) & 0x7F) >= limit.to(weight.device)).any()):
        raise CheckpointError(
            f"{file_name} stores {layer} as fp8 without a scale, but its numbers reach the end of the range of fp8, as "
            "they do where a scale was taken out. It has been lost, and with these numbers the model would give noise. "
            f"Download the file again. {USABLE_CHECKPOINTS}"
        )


def _fitting(made: QuantLinear, file: Tensors, layer: str, shape: tuple[int, int]) -> QuantLinear:
    found = (made.out_features, made.in_features)
    if found != shape:
        raise CheckpointError(_other_shape(file.name, layer, found, shape))
    return made


def _other_shape(file_name: str, layer: str, found: tuple[int, int], shape: tuple[int, int]) -> str:
    return (
        f"{file_name} stores {layer} as {found[0]}x{found[1]}, expected {shape[0]}x{shape[1]}. Its header belongs to "
        f"another file. {USABLE_CHECKPOINTS}"
    )
