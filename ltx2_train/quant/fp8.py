"""Weights in 8-bit floating point.

    W = stored * scale       scale = absmax / largest value of the format, at least 1e-8

`fp8` is e4m3fn with a scale for each 64 values along the input, kept in the dtype of the source weight, or one for
each row where 64 does not divide the input. `fp8uz` is the same in e4m3fnuz, the fp8 of AMD's MI300. `fp8_cast` has no
scale: whatever lies below 2^-9 is lost. `KeptFp8` holds what official and ComfyUI files bring.

Formats: Micikevicius et al. 2022, arXiv:2209.05433.

Shape letters: O out, I in, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .base import QuantLinear, QuantNumbers, Storage, row_parts, scale_dtype
from .multiply import fp8_can, fp8_multiply, fp8_multiply_back

if TYPE_CHECKING:
    from typing_extensions import Self

BLOCK = 64
SMALLEST_SCALE = 1e-8


class Fp8(QuantLinear):
    """weight [O, I] e4m3fn; scale [O, I / 64, 1], or [O, 1, 1] where 64 does not divide I."""

    storage: ClassVar[Storage] = Storage(
        "fp8",
        bits=8,
        snr_db=32.0,
        about="8 bits, scaled in blocks of 64",
        planned=True,
        official="fp8-quanto",
        answers="fp8_cast",
    )
    stored_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float8_e4m3fn,)

    scale: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor | None,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        out, width = weight.shape
        assert weight.dtype in self.stored_dtypes, weight.dtype
        assert scale is None or (scale.dim() == 3 and scale.shape[0] in (1, out)), scale.shape
        assert scale is None or width % scale.shape[1] == 0, (width, scale.shape)
        super().__init__(width, out, {"weight": weight, "scale": scale}, bias, compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        stored, scale = _quantize(weight, cls.stored_dtypes[0])
        return cls(stored, scale, bias=bias, compute_dtype=compute_dtype)

    def stored_weight(self, dtype: torch.dtype) -> Tensor:
        if self.scale is None:
            return self.weight.to(dtype)
        done = None if self.unpacking is None else self.unpacking(scaled_values, self.weight, self.scale, dtype)
        return scaled_values(self.weight, self.scale, dtype) if done is None else done

    def can_multiply(self, tokens: int) -> bool:
        constant = self.scale is None or self.scale.shape[1] == 1
        return constant and fp8_can(self.weight, tokens)

    def multiply(self, x: Tensor) -> Tensor:
        return fp8_multiply(x, self.weight, _of_rows(self.scale))

    def multiply_back(self, grad: Tensor) -> Tensor:
        return fp8_multiply_back(grad, self.weight, _of_rows(self.scale))


def scaled_values(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [O, I] in fp8 times scale [O or 1, blocks, 1], in `dtype`; compiled it is one pass."""
    # the product is rounded once
    return (weight.to(dtype).view(weight.shape[0], scale.shape[1], -1).mul_(scale)).view(weight.shape)


class Fp8Uz(Fp8):
    """As `Fp8` in e4m3fnuz, whose largest value is 240."""

    storage: ClassVar[Storage] = Storage(
        "fp8uz", bits=8, snr_db=32.1, about="fp8 of AMD cards", official="fp8uz-quanto", answers="fp8_cast"
    )
    stored_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float8_e4m3fnuz,)
    byte_types: ClassVar[Mapping[str, str]] = {"weight": "float8_e4m3fnuz"}


class Fp8Cast(Fp8):
    """weight [O, I] e4m3fn without scale; values beyond 448 are cut off."""

    storage: ClassVar[Storage] = Storage("fp8_cast", bits=8, snr_db=31.5, about="8 bits without scales")
    stored_names: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(
        self, weight: Tensor, *, bias: Tensor | None = None, compute_dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__(weight, None, bias=bias, compute_dtype=compute_dtype)
        self.scale = None

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        most = torch.finfo(cls.stored_dtypes[0]).max
        stored = torch.empty(weight.shape, dtype=cls.stored_dtypes[0], device=weight.device)
        for part in row_parts(*weight.shape):
            stored[part] = weight[part].detach().clamp(-most, most).to(cls.stored_dtypes[0])
        return cls(stored, bias=bias, compute_dtype=compute_dtype)


class KeptFp8(Fp8):
    """An fp8 weight as a file brings it: e4m3fn or e5m2 [O, I]; scale None, one number, or one a row, in float32."""

    storage: ClassVar[Storage] = Storage("kept_fp8", bits=8, called="fp8", like="fp8_cast", answers="fp8_cast")
    stored_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float8_e4m3fn, torch.float8_e5m2)

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor | None,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if scale is not None:
            scale = scale.detach().to(torch.float32).reshape(-1, 1, 1)
        super().__init__(weight, scale, bias=bias, compute_dtype=compute_dtype)

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype) -> Self:
        raise NotImplementedError("a format of files; nothing is quantized into it")


def _quantize(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(stored [O, I], scale [O, blocks, 1]) of `weight` [O, I]."""
    out, width = weight.shape
    blocks = width // BLOCK if width % BLOCK == 0 else 1
    most = torch.finfo(dtype).max
    stored = torch.empty(out, width, dtype=dtype, device=weight.device)
    scale = torch.empty(out, blocks, 1, dtype=scale_dtype(weight.dtype), device=weight.device)
    # a tensor: a card divides by a plain number by way of its inverse, and its bytes would not be the CPU's
    divisor = torch.full((), most, device=weight.device)
    for part in row_parts(out, width):
        values = weight[part].detach().float().reshape(-1, blocks, width // blocks)
        scale[part] = values.abs().amax(-1, keepdim=True).div_(divisor).clamp_(min=SMALLEST_SCALE).to(scale.dtype)
        # divided by the scale that is kept, not by the one before rounding: nearest to what will be read back
        scaled = (values / scale[part].float()).clamp_(-most, most)
        stored[part] = scaled.reshape(-1, width).to(dtype)
    return stored, scale


def _of_rows(scale: Tensor | None) -> Tensor | None:
    """Scales [O or 1, 1, 1] as factors [O or 1] in float32."""
    return None if scale is None else scale.reshape(-1).float()
