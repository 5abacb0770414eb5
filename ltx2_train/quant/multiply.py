"""Products in 8 bits: x W^T and g W with the stored weight as it is and the other factor quantized on the fly.

Each token (a row of x or of g) gets a scale of its own, so a strong token costs the others nothing. The row scales of
the weight multiply the result of x W^T; for g W they belong to the summed index, so they go into g before it is
quantized.

int8: torch._int_mm, exact sums in int32. fp8: torch._scaled_mm with unit scales and the true ones multiplied in
afterwards, which runs on every card with fp8 units (compute capability 8.9 and up). On cards both take their second
factor only column by column (_int_mm from CUDA 13 on), so for g W the weight is copied in the other order, one byte a
value.

Shape letters: N tokens, I in, O out.
"""

from __future__ import annotations

import torch
from torch import Tensor

_E4M3 = torch.float8_e4m3fn
# below this a token counts as zero; far above where the division would overflow
_SMALLEST = 1e-30


def int8_can(weight: Tensor, tokens: int) -> bool:
    """Whether torch._int_mm takes `weight` [O, I] and `tokens` rows on this device, forward and back."""
    if weight.device.type == "cpu":
        return tokens > 0
    return weight.device.type == "cuda" and tokens > 16 and all(size % 8 == 0 for size in weight.shape)


def int8_multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [N, I] times weight [O, I] int8 with scale [O, 1]: [N, O] in the dtype of x."""
    short, size = _int8(x)
    product = torch._int_mm(short, weight.t())  # pyright: ignore[reportPrivateImportUsage]  # torch has no public name for it
    return _times(product, size, x.dtype).mul_(scale.reshape(1, -1))


def int8_multiply_back(grad: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """grad [N, O] times weight [O, I] int8 with scale [O, 1]: [N, I] in the dtype of grad."""
    short, size = _int8(grad * scale.reshape(1, -1))
    product = torch._int_mm(short, _by_columns(weight))  # pyright: ignore[reportPrivateImportUsage]  # torch has no public name for it
    return _times(product, size, grad.dtype)


def fp8_can(weight: Tensor, tokens: int) -> bool:
    """Whether torch._scaled_mm takes `weight` [O, I] and `tokens` rows on this device, forward and back."""
    if weight.dtype != _E4M3 or tokens == 0 or any(size % 16 for size in weight.shape):
        return False
    if weight.device.type == "cpu":
        return True
    if weight.device.type != "cuda" or torch.version.hip is not None or tokens <= 16:
        return False
    return torch.cuda.get_device_capability(weight.device) >= (8, 9)


def fp8_multiply(x: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """x [N, I] times weight [O, I] e4m3fn whose rows are worth `scale` ([O], [1], or None for one)."""
    short, size = _fp8(x)
    y = _times(_fp8_product(short, weight.t(), x.dtype), size, x.dtype)
    return y if scale is None else y.mul_(scale)


def fp8_multiply_back(grad: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    """grad [N, O] times weight [O, I], `scale` as in `fp8_multiply`."""
    short, size = _fp8(grad if scale is None else grad * scale)
    return _times(_fp8_product(short, _by_columns(weight), grad.dtype), size, grad.dtype)


def _by_columns(weight: Tensor) -> Tensor:
    """`weight` [O, I] with its columns one after the other in memory."""
    return weight.t().contiguous().t()


def _fp8_product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    one = torch.ones((), device=left.device)
    # float16 would overflow before the scales come in
    out = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]  # torch has no public name for it
    return multiply(left, right, scale_a=one, scale_b=one, out_dtype=out)


def _times(product: Tensor, size: Tensor, dtype: torch.dtype) -> Tensor:
    """product [N, K] times size [N, 1], multiplied in float32 and written in `dtype` without a copy in between."""
    return torch.mul(product, size, out=torch.empty(product.shape, dtype=dtype, device=product.device))


def _int8(values: Tensor) -> tuple[Tensor, Tensor]:
    """(q [N, K] int8, size [N, 1] float32) with values about q * size."""
    size = values.abs().amax(-1, keepdim=True).float().div_(127).clamp_(min=_SMALLEST)
    return (values / size).round_().to(torch.int8), size


def _fp8(values: Tensor) -> tuple[Tensor, Tensor]:
    """(q [N, K] e4m3fn, size [N, 1] float32) with values about q * size."""
    most = torch.finfo(_E4M3).max
    size = values.abs().amax(-1, keepdim=True).float().div_(most).clamp_(min=_SMALLEST)
    return (values / size).clamp_(-most, most).to(_E4M3), size
