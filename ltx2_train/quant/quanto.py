"""Weights in 4 or 2 bits, even steps between the smallest and the largest value of a group, by optimum-quanto.

    W = index * scale - shift        one scale and one shift for each group of up to 128 inputs

The library chooses scale, shift and index; storing and reading is done here. Its own reader compiles a C++ extension on
first use, which a user's machine often cannot, and its tensor subclasses do not let streaming put other storage behind
them. Values share a byte, the first in the highest bits; scale and shift are kept in the dtype of the source weight.

Shape letters: O out, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import QuantLinear, QuantNumbers, Storage, require_library, row_parts, scale_dtype

if TYPE_CHECKING:
    from typing_extensions import Self


class Int4(QuantLinear):
    """weight [O, I / 2] uint8; scale, shift [O, groups, 1]."""

    storage: ClassVar[Storage] = Storage(
        "int4", bits=4, snr_db=20.0, about="4 bits by optimum-quanto", library="optimum.quanto", official="int4-quanto"
    )
    stored_names: ClassVar[tuple[str, ...]] = ("weight", "scale", "shift")

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        out, width = weight.shape[0], weight.shape[1] * self.storage.per_byte
        assert weight.dtype == torch.uint8, weight.dtype
        assert scale.shape == shift.shape == (out, scale.numel() // out, 1), (scale.shape, shift.shape)
        super().__init__(width, out, {"weight": weight, "scale": scale, "shift": shift}, bias, compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        return cls(*_quantize(weight, cls.storage), bias=bias, compute_dtype=compute_dtype)

    def stored_weight(self, dtype: torch.dtype) -> Tensor:
        values = torch.empty(self.out_features, self.in_features, dtype=dtype, device=self.weight.device)
        for part in row_parts(*values.shape):
            index = _unpacked(self.weight[part], self.storage.bits).view(-1, self.scale.shape[1], self.group_size)
            grid = index.float().mul_(self.scale[part]).sub_(self.shift[part])
            values[part] = grid.view(-1, self.in_features)
        return values

    @property
    def group_size(self) -> int:
        """Values that share a scale and a shift."""
        return self.in_features // self.scale.shape[1]


class Int2(Int4):
    """As `Int4` with weight [O, I / 4]."""

    storage: ClassVar[Storage] = Storage(
        "int2", bits=2, snr_db=6.0, about="2 bits by optimum-quanto", library="optimum.quanto", official="int2-quanto"
    )


def group_size(width: int) -> int:
    """The library's choice: 128, 96, 64 or 32, whichever divides `width` first; else the whole row."""
    return next((size for size in (128, 96, 64, 32) if size < width and width % size == 0), width)


def _quantize(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor, Tensor]:
    (out, width), bits, count = weight.shape, storage.bits, storage.per_byte
    if width % count:
        raise ConfigError(
            f"{storage.name} packs {count} values into a byte, but a layer has {width} inputs, which {count} does "
            'not divide. Set quant.format to "int8" or "fp8".'
        )
    levels, optimizer = _library(storage)
    group = group_size(width)
    packed = torch.empty(out, width // count, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(out, width // group, 1, dtype=scale_dtype(weight.dtype), device=weight.device)
    shift = torch.empty_like(scale)
    for part in row_parts(out, width):
        values = weight[part].detach().float().reshape(-1, group)  # [groups of these rows, group]
        # `optimize` rather than a call, which would take a lone group for a whole tensor
        found, offset = optimizer.optimize(values, levels, 0)
        found = torch.where(found > 0, found, torch.ones_like(found))  # a constant group: index 0, all in the shift
        scale[part], shift[part] = found.view(-1, width // group, 1), offset.view(-1, width // group, 1)
        kept = (tensor[part].reshape(-1, 1).float() for tensor in (scale, shift))
        index = torch.ops.quanto.quantize_affine(values, bits, 0, None, *kept)
        packed[part] = _packed(index.view(-1, width), bits)
    return packed, scale, shift


def _library(storage: Storage) -> tuple[Any, Any]:
    """(the levels of the library for so many bits, what chooses scale and shift)."""
    require_library(storage)
    from optimum.quanto import MaxOptimizer, qint2, qint4

    return {4: qint4, 2: qint2}[storage.bits], MaxOptimizer()


def _packed(index: Tensor, bits: int) -> Tensor:
    """index [O, I] uint8 -> [O, I * bits / 8]."""
    places = index.view(index.shape[0], -1, 8 // bits) << _places(bits, index.device)
    return places.sum(-1, dtype=torch.uint8)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The inverse of `_packed`."""
    places = packed.unsqueeze(-1) >> _places(bits, packed.device)
    return places.bitwise_and_(2**bits - 1).view(packed.shape[0], -1)


def _places(bits: int, device: torch.device) -> Tensor:
    return torch.arange(8 - bits, -1, -bits, dtype=torch.uint8, device=device)
