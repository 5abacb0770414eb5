"""Weights in 8-bit integers, one scale a row, plain or after a rotation of the inputs.

    W = q * scale                scale = absmax of the row / 127 in float32
    W = (q * scale) R^T          R orthogonal: the stored weight is W R, and x R meets it

A few strong input channels make every row's largest value, and with it the step of the grid, large. R mixes blocks of
up to 256 neighbouring channels by a normalised Hadamard matrix, which spreads each channel over the block and leaves
the lengths of rows as they are; so the grid becomes fine again. On a weight without outliers nothing is won or lost.

Files of ComfyUI may bring another rotation of the same kind, see KeptConvrot.

Rotation: Ashkboos et al. 2024, "QuaRot", arXiv:2404.00456. Hadamard matrix: Sylvester's construction.

Shape letters: O out, I in, N tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .base import QuantLinear, QuantNumbers, Storage, row_parts
from .multiply import int8_can, int8_multiply, int8_multiply_back

if TYPE_CHECKING:
    from typing_extensions import Self

LARGEST_ROTATION = 256
_SMALLEST_SCALE = 1e-8 / 127


class Int8(QuantLinear):
    """weight [O, I] int8; scale [O, 1] float32."""

    storage: ClassVar[Storage] = Storage(
        "int8", bits=8, snr_db=41.2, about="8 bits, one scale a row", official="int8-quanto"
    )

    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        out, width = weight.shape
        assert weight.dtype == torch.int8, weight.dtype
        assert scale.numel() == out, (scale.shape, out)
        stored = {"weight": weight, "scale": scale.detach().to(torch.float32).reshape(out, 1)}
        super().__init__(width, out, stored, bias, compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        stored = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(weight.shape[0], 1, dtype=torch.float32, device=weight.device)
        # a tensor: a card divides by a plain number by way of its inverse, and its bytes would not be the CPU's
        divisor = torch.full((), 127.0, device=weight.device)
        for part in row_parts(*weight.shape):
            values = cls.into_basis(weight[part].detach().float())
            scale[part] = values.abs().amax(-1, keepdim=True).div_(divisor).clamp_(min=_SMALLEST_SCALE)
            stored[part] = (values / scale[part]).round_().clamp_(-127, 127).to(torch.int8)
        return cls(stored, scale, bias=bias, compute_dtype=compute_dtype)

    @staticmethod
    def into_basis(values: Tensor) -> Tensor:
        """Rows [.., I] in the basis in which the weight is stored."""
        return values

    def stored_weight(self, dtype: torch.dtype) -> Tensor:
        if self.weight.device.type == "cpu":
            return self.weight.to(dtype).mul_(self.scale)
        # an accelerator casts as it reads and writes, so one pass does: the same numbers, since q is exact in `dtype`
        out = torch.empty(self.weight.shape, dtype=dtype, device=self.weight.device)
        return torch.mul(self.weight, self.scale, out=out)

    def can_multiply(self, tokens: int) -> bool:
        return int8_can(self.weight, tokens)

    def multiply(self, x: Tensor) -> Tensor:
        return int8_multiply(x, self.weight, self.scale)

    def multiply_back(self, grad: Tensor) -> Tensor:
        return int8_multiply_back(grad, self.weight, self.scale)


class Int8Rotated(Int8):
    """As `Int8`, for the weight after `hadamard_rotate`."""

    storage: ClassVar[Storage] = Storage(
        "int8_rotated",
        bits=8,
        snr_db=41.2,
        about="the same after a rotation that spreads outliers, the closest to the original",
        planned=True,
    )

    @staticmethod
    def into_basis(values: Tensor) -> Tensor:
        return hadamard_rotate(values)

    def turn(self, x: Tensor) -> Tensor:
        return hadamard_rotate(x)

    def turn_back(self, x: Tensor) -> Tensor:
        return hadamard_rotate(x)  # a symmetric orthogonal matrix is its own inverse

    def add_turned_back(self, x: Tensor, out: Tensor) -> Tensor:
        matrix, factor = _rotation(x)
        out.view(-1, matrix.shape[0]).addmm_(x.reshape(-1, matrix.shape[0]), matrix, alpha=factor)
        return out

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype = self.compute_dtype if dtype is None else dtype
        return hadamard_rotate(self.stored_weight(torch.float32)).to(dtype)  # rounded to `dtype` once


class KeptConvrot(Int8):
    """Int8 after a rotation as ComfyUI's convrot files bring it, within groups of `group` inputs, a power of 4.

    Its matrix is another than that of Int8Rotated: the Kronecker power of one of four, see `_regular_hadamard`.
    """

    storage: ClassVar[Storage] = Storage("kept_convrot", bits=8, called="int8 convrot", like="int8_rotated")

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
        group: int = LARGEST_ROTATION,
    ) -> None:
        assert is_convrot_group(group, weight.shape[1]), (group, weight.shape)
        self.group = group
        super().__init__(weight, scale, bias=bias, compute_dtype=compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        raise NotImplementedError("a format of files; nothing is quantized into it")

    def turn(self, x: Tensor) -> Tensor:
        return (x.reshape(-1, self.group) @ self._rotation(x)).view(x.shape)

    def turn_back(self, x: Tensor) -> Tensor:
        return self.turn(x)  # a symmetric orthogonal matrix is its own inverse

    def add_turned_back(self, x: Tensor, out: Tensor) -> Tensor:
        out.view(-1, self.group).addmm_(x.reshape(-1, self.group), self._rotation(x))
        return out

    def _rotation(self, x: Tensor) -> Tensor:
        """The matrix [group, group] that inputs like `x` meet."""
        build = _regular_hadamard if torch.compiler.is_compiling() else _kept_regular_hadamard
        return build(self.group, x.device, x.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype = self.compute_dtype if dtype is None else dtype
        return self.turn(self.stored_weight(torch.float32)).to(dtype)  # rounded to `dtype` once


def is_convrot_group(group: int, width: int) -> bool:
    """Whether `width` inputs can be rotated in groups of `group`: a power of 4 that divides them."""
    return group >= 4 and group & (group - 1) == 0 and group.bit_length() % 2 == 1 and width % group == 0


def rotation_size(width: int) -> int:
    """The largest power of two up to LARGEST_ROTATION that divides `width`."""
    return min(width & -width, LARGEST_ROTATION)


def hadamard_rotate(x: Tensor) -> Tensor:
    """x [.., I] times the block-diagonal Hadamard rotation of I; in the dtype of x."""
    matrix, factor = _rotation(x)
    turned = x.reshape(-1, matrix.shape[0]) @ matrix
    return (turned if factor == 1.0 else turned.mul_(factor)).view(x.shape)


def _rotation(x: Tensor) -> tuple[Tensor, float]:
    """The matrix that blocks of the last dimension of `x` are multiplied by, and a factor of the product."""
    size = rotation_size(x.shape[-1])
    build = _hadamard if torch.compiler.is_compiling() else _kept_hadamard
    # where size is no square, what is left of the root is not a number of every dtype
    return build(size, x.device, x.dtype), 0.5**0.5 if size.bit_length() % 2 == 0 else 1.0


def _hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[size, size], symmetric, its square a multiple of one: the sign of entry i, j is the parity of the bits of i & j.

    The entries are 1/sqrt(size), rounded up to a power of two, so they are exact in every dtype.
    """
    number = torch.arange(size, device=device)
    bits = number.unsqueeze(1) & number
    for step in (4, 2, 1):  # LARGEST_ROTATION has eight bits
        bits = bits ^ (bits >> step)
    return (1 - 2 * (bits & 1)).to(dtype) * 0.5 ** ((size.bit_length() - 1) // 2)


def _regular_hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[size, size], a power of 4, symmetric, all its rows of one sum, as convrot has it (arXiv:2512.03673).

    Row i, column j of the matrix of four is -1 where i + j = 3; the entries of its powers are exact in every dtype.
    """
    number = torch.arange(size, device=device)
    digits = (size.bit_length() - 1) // 2
    sign = torch.ones(size, size, device=device)
    for digit in range(digits):
        own = (number >> (2 * digit)) & 3
        sign = torch.where(own.unsqueeze(1) + own == 3, -sign, sign)
    return sign.to(dtype) * 0.5**digits


@lru_cache(maxsize=32)
def _kept_regular_hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same; it depends on no weight, so it may be kept."""
    with torch.inference_mode(False), torch.no_grad():
        return _regular_hadamard(size, device, dtype)


@lru_cache(maxsize=32)
def _kept_hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same; it depends on no weight, so it may be kept."""
    with torch.inference_mode(False), torch.no_grad():
        return _hadamard(size, device, dtype)
