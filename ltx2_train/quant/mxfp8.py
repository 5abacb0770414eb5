"""MXFP8 weights as ComfyUI's files bring them; they are read, never written.

    W = e4m3fn * 2 ^ (block exponent - 127)

32 neighbouring inputs share an exponent of one byte (E8M0). The exponents lie in tiles, see tiles.py. Rows and inputs
may be padded to multiples of 32.

Format: OCP Microscaling Formats (MX) Specification 1.0.

Shape letters: O out, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .base import QuantLinear, QuantNumbers, Storage, exact_dtype, row_parts, scale_into
from .tiles import tiled_size, untiled

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK = 32
_MANTISSA = 23  # bits of a float32 below its exponent


class KeptMxfp8(QuantLinear):
    """weight [O, I] e4m3fn; exponent in tiles, uint8 or the type that torch has for it.

    `shape` is (O, I) without padding, where the file pads.
    """

    storage: ClassVar[Storage] = Storage("kept_mxfp8", bits=8, called="mxfp8", like="fp8", answers="fp8_cast")
    stored_names: ClassVar[tuple[str, ...]] = ("weight", "exponent")

    exponent: Tensor

    def __init__(
        self,
        weight: Tensor,
        exponent: Tensor,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
        shape: tuple[int, int] | None = None,
    ) -> None:
        rows, width = weight.shape
        out, inputs = (rows, width) if shape is None else shape
        assert weight.dtype == torch.float8_e4m3fn, weight.dtype
        assert exponent.element_size() == 1, exponent.dtype
        assert width % BLOCK == 0, width
        assert exponent.numel() == tiled_size(rows, width // BLOCK), (weight.shape, exponent.shape)
        assert out <= rows, (out, rows)
        assert inputs <= width, (inputs, width)
        stored = {"weight": weight, "exponent": exponent.view(torch.uint8)}
        super().__init__(inputs, out, stored, bias, compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        raise NotImplementedError("a format of files; nothing is quantized into it")

    def stored_weight(self, dtype: torch.dtype) -> Tensor:
        if self.unpacking is not None:
            sizes = self.out_features, self.in_features
            weight = self.unpacking(_values, self.weight, self.exponent, *sizes, dtype)
            if weight is not None:
                return weight
        rows, width = self.weight.shape
        scales = _scales(self.exponent, rows, width // BLOCK)
        weight = torch.empty(self.out_features, width // BLOCK, BLOCK, dtype=dtype, device=self.weight.device)
        for part in row_parts(self.out_features, width):
            stored = self.weight[: self.out_features][part]
            values = stored.to(exact_dtype(weight)).view(-1, width // BLOCK, BLOCK)
            scale_into(weight[part], values, scales[part][: len(stored)])
        return weight.view(self.out_features, width)[:, : self.in_features].contiguous()


def _scales(exponent: Tensor, rows: int, blocks: int) -> Tensor:
    """[rows, blocks, 1] in float32 of exponents in tiles."""
    # the byte is a float32's exponent; 0, which stands for 2^-127, becomes 0: its block holds zeros
    return (untiled(exponent, rows, blocks).to(torch.int32) << _MANTISSA).view(torch.float32).unsqueeze(-1)


def _values(weight: Tensor, exponent: Tensor, out: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """The weight [out, inputs] of what `KeptMxfp8` holds; compiled it is one pass."""
    rows, width = weight.shape
    scales = _scales(exponent, rows, width // BLOCK)
    values = weight.float().view(rows, width // BLOCK, BLOCK) * scales
    return values.view(rows, width).to(dtype)[:out, :inputs].contiguous()
