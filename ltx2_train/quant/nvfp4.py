"""NVFP4 weights as ComfyUI's files bring them; they are read, never written.

    W = e2m1 * block scale * scale

Two e2m1 numbers share a byte, the even element in the high half; 16 neighbouring inputs share a block scale in e4m3fn;
one float32 number scales the whole weight. The block scales lie in tiles, see tiles.py. Rows and inputs may be padded
to multiples of 16.

Shape letters: O out, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .base import QuantLinear, QuantNumbers, Storage, exact_dtype, row_parts, scale_into
from .codes import kept_code, read_pairs, scaled_codes
from .tiles import tiled_size, untiled

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK = 16
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


class KeptNvfp4(QuantLinear):
    """weight [O, I / 2] uint8; block_scale e4m3fn in tiles; scale one float32.

    `shape` is (O, I) without padding, where the file pads.
    """

    storage: ClassVar[Storage] = Storage("kept_nvfp4", bits=4, called="nvfp4", like="nf4")
    stored_names: ClassVar[tuple[str, ...]] = ("weight", "block_scale", "scale")

    block_scale: Tensor
    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        block_scale: Tensor,
        scale: Tensor,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
        shape: tuple[int, int] | None = None,
    ) -> None:
        rows, width = weight.shape[0], 2 * weight.shape[1]
        out, inputs = (rows, width) if shape is None else shape
        assert weight.dtype == torch.uint8, weight.dtype
        assert block_scale.dtype == torch.float8_e4m3fn, block_scale.dtype
        assert width % BLOCK == 0, width
        assert block_scale.numel() == tiled_size(rows, width // BLOCK), (weight.shape, block_scale.shape)
        assert scale.numel() == 1, scale.shape
        assert out <= rows, (out, rows)
        assert inputs <= width, (inputs, width)
        stored = {"weight": weight, "block_scale": block_scale, "scale": scale.detach().float().reshape(1)}
        super().__init__(inputs, out, stored, bias, compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        raise NotImplementedError("a format of files; nothing is quantized into it")

    def stored_weight(self, dtype: torch.dtype) -> Tensor:
        stored = self.weight, self.block_scale, self.scale
        if self.unpacking is not None:
            code = kept_code(_E2M1, self.weight.device)
            weight = self.unpacking(_values, *stored, code, self.out_features, self.in_features, dtype)
            if weight is not None:
                return weight
        rows, width = self.weight.shape[0], 2 * self.weight.shape[1]
        scales = untiled(self.block_scale, rows, width // BLOCK).float().mul_(self.scale).unsqueeze(-1)
        weight = torch.empty(self.out_features, width // BLOCK, BLOCK, dtype=dtype, device=self.weight.device)
        for part in row_parts(self.out_features, width):
            codes = self.weight[: self.out_features][part]
            values = read_pairs(codes, _E2M1, exact_dtype(weight)).view(-1, width // BLOCK, BLOCK)
            scale_into(weight[part], values, scales[part][: len(codes)])
        return weight.view(self.out_features, width)[:, : self.in_features].contiguous()


def _values(
    weight: Tensor, block_scale: Tensor, scale: Tensor, code: Tensor, out: int, inputs: int, dtype: torch.dtype
) -> Tensor:
    """The weight [out, inputs] of what `KeptNvfp4` holds, `code` [16] in float32; compiled it is one pass."""
    scales = untiled(block_scale, weight.shape[0], 2 * weight.shape[1] // BLOCK).float() * scale
    return scaled_codes(weight, scales.unsqueeze(-1), code, dtype)[:out, :inputs].contiguous()
