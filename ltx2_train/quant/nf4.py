"""Weights in 4 bits: NF4, the 16 quantiles of a normal distribution, one scale a block of neighbouring inputs.

    W = codebook[index] * scale        scale = absmax of the block, at least 1e-8, in the dtype of the source weight

Two indices share a byte: the even element sits in the high half. Rows are independent, since blocks never cross a row:
where the block size does not divide the inputs, the whole row is one block. There is no double quantization.

Layout and numbers are those of the community trainer's NF4 files. bitsandbytes packs in the same way, so its kernel
reads our bytes; it is used where a trial gives our numbers bit for bit. Its quantizer is not used: it divides by the
block's largest value before that is rounded to the dtype of the scales, so its choice is not the nearest to what is
read back.

Codebook: Dettmers et al. 2023, "QLoRA", arXiv:2305.14314, appendix E.

Shape letters: O out, I in.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..optional import why_missing
from .base import QuantLinear, QuantNumbers, Storage, row_parts, scale_dtype, scale_into
from .codes import kept_code, read_pairs, scaled_codes

if TYPE_CHECKING:
    from typing_extensions import Self

CODEBOOK = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
SMALLEST_SCALE = 1e-8


class Nf4(QuantLinear):
    """weight [O, I / 2] uint8; scale [O, blocks, 1]."""

    storage: ClassVar[Storage] = Storage("nf4", bits=4, snr_db=21.2, about="4 bits", planned=True, refinable=True)

    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        out, width = weight.shape[0], 2 * weight.shape[1]
        assert weight.dtype == torch.uint8, weight.dtype
        assert scale.shape == (out, scale.numel() // out, 1), scale.shape
        assert width % scale.shape[1] == 0, (width, scale.shape)
        super().__init__(width, out, {"weight": weight, "scale": scale}, bias, compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        stored, scale = quantize_nf4(weight, settings.block_size)
        return cls(stored, scale, bias=bias, compute_dtype=compute_dtype)

    @property
    def block_size(self) -> int:
        """Values that share a scale."""
        return self.in_features // self.scale.shape[1]

    def stored_weight(self, dtype: torch.dtype) -> Tensor:
        # a compiled graph fuses the lookup, and cannot hold the trial
        if not torch.compiler.is_compiling() and _library_agrees(self.weight.device.type, self.block_size, dtype):
            return _by_library(self.weight, self.scale, dtype)
        if self.unpacking is not None:
            code = kept_code(CODEBOOK, self.weight.device)
            values = self.unpacking(scaled_codes, self.weight, self.scale, code, dtype)
            if values is not None:
                return values
        return _by_lookup(self.weight, self.scale, dtype)


def quantize_nf4(weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """(packed [O, I / 2] uint8, scale [O, blocks, 1]) of `weight` [O, I]. Raises ConfigError where I is odd."""
    out, width = weight.shape
    if width % 2:
        raise ConfigError(
            f"nf4 packs two values into a byte, but a layer has {width} inputs, an odd number. "
            'Set quant.format to "int8" or "fp8".'
        )
    blocks = width // block if width % block == 0 else 1
    packed = torch.empty(out, width // 2, dtype=torch.uint8, device=weight.device)
    scale = torch.empty(out, blocks, 1, dtype=scale_dtype(weight.dtype), device=weight.device)
    code = torch.tensor(CODEBOOK, device=weight.device)
    middles = (code[1:] + code[:-1]) / 2
    for part in row_parts(out, width):
        values = weight[part].detach().float().reshape(-1, blocks, width // blocks)
        scale[part] = values.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST_SCALE).to(scale.dtype)
        index = torch.bucketize(values / scale[part].float(), middles, out_int32=True)
        pairs = index.reshape(-1, width // 2, 2)
        packed[part] = (pairs[..., 0] * 16 + pairs[..., 1]).to(torch.uint8)
    return packed, scale


def _by_lookup(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [O, I] of `packed` [O, I / 2] and `scale` [O, blocks, 1]: the float32 product, rounded to `dtype`."""
    out, width = packed.shape[0], 2 * packed.shape[1]
    blocks = scale.shape[1]
    weight = torch.empty(out, blocks, width // blocks, dtype=dtype, device=packed.device)
    for part in row_parts(out, width):
        scale_into(weight[part], read_pairs(packed[part], CODEBOOK).view(-1, *weight.shape[1:]), scale[part])
    return weight.view(out, width)


def _by_library(packed: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    shape = torch.Size((packed.shape[0], 2 * packed.shape[1]))
    state = QuantState(
        absmax=scale.reshape(-1).float(),
        shape=shape,
        dtype=dtype,
        blocksize=shape[1] // scale.shape[1],
        quant_type="nf4",
    )
    return dequantize_4bit(packed.reshape(-1, 1), state).view(shape)


def why_slow(layer: Nf4, device: str) -> str:
    """Why the kernel of bitsandbytes does not read weights as that of `layer` on devices of the type `device`, as the
    end of a sentence; empty where it does."""
    if _library_agrees(device, layer.block_size, layer.compute_dtype):
        return ""
    return why_missing("bitsandbytes.functional") or "reads other numbers here"


@lru_cache(maxsize=64)
def _library_agrees(device: str, block: int, dtype: torch.dtype) -> bool:
    """Whether bitsandbytes is there and reads a trial weight as we do, bit for bit, on this kind of device."""
    if device not in ("cpu", "cuda") or block not in (32, 64, 128, 256) or dtype.itemsize > 4:
        return False
    try:
        with torch.inference_mode(False), torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            packed = torch.randint(256, (8, 2 * block), dtype=torch.uint8, generator=generator).to(device)
            scale = torch.rand(8, 4, 1, generator=generator).bfloat16().to(device)
            return torch.equal(_by_library(packed, scale, dtype), _by_lookup(packed, scale, dtype))
    except Exception:  # absent, built without this device, or of another interface: our own code does the same
        return False
