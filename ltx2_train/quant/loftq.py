"""LoftQ: a quantized weight and a low-rank term that together are nearer to the original than the first alone.

    W ~ Q + B A        in turn: B A = the best rank-r fit of W - Q, then Q = quantize(W - B A)

It ends with a quantization, so the base is quantize(W - B A) for exactly the A and B that are returned: they can be
stored alone, and the base made again from the original checkpoint. (The published order ends with the fit; for the same
number of fits it is 0.04 dB worse on N(0, 1).)

The fit is a randomized SVD: subspace iteration from a start that depends on nothing but the shape. The rest of a
quantized weight is nearly white noise, whose spectrum falls slowly, hence the generous oversampling.

LoftQ: Li et al. 2023, arXiv:2310.08659. Randomized SVD: Halko, Martinsson and Tropp 2011, arXiv:0909.4061.

Shape letters: O out, I in, r rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import QuantLinear

_OVERSAMPLING = 32
_POWER_ITERATIONS = 4


def loftq(
    weight: Tensor,
    quantize: Callable[[Tensor], QuantLinear],
    rank: int,
    iterations: int,
    poll: Callable[[], None] | None = None,
) -> tuple[QuantLinear, Tensor, Tensor]:
    """(quantized module, A [r, I], B [O, r]) with `weight` [O, I] ~ module.dequantize() + B A; A and B in float32.

    `quantize` gets a weight in the dtype of `weight`. A LoRA that multiplies B A by alpha / rank must begin with B
    divided by that factor. `iterations` counts the fits. `poll` as in `low_rank`.
    """
    assert rank > 0, rank
    assert iterations > 0, iterations
    whole = weight.detach().float()
    module = quantize(weight.detach())
    for _ in range(iterations):
        b, a = low_rank(whole - module.dequantize(torch.float32), rank, poll)
        module = quantize(torch.addmm(whole, b, a, alpha=-1).to(weight.dtype))
    return module, a, b


def low_rank(matrix: Tensor, rank: int, poll: Callable[[], None] | None = None) -> tuple[Tensor, Tensor]:
    """(B [O, r], A [r, I]) with B A near the best approximation of that rank; both carry half of the strength.

    Beyond the smaller side of `matrix` further rows and columns are zero. `poll` is called before each pass over it.
    """
    out, width = matrix.shape
    size = min(rank + _OVERSAMPLING, out, width)
    generator = torch.Generator().manual_seed(0)  # its own, so that nothing else's random numbers are touched
    start = torch.randn(width, size, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix @ start)[0]  # [O, size]
    for _ in range(_POWER_ITERATIONS):
        if poll is not None:
            poll()
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.t() @ basis)[0])[0]
    left, values, right = torch.linalg.svd(basis.t() @ matrix, full_matrices=False)
    kept = min(rank, size)
    half = values[:kept].sqrt()
    b, a = matrix.new_zeros(out, rank), matrix.new_zeros(rank, width)
    b[:, :kept] = (basis @ left[:, :kept]) * half
    a[:kept] = half.unsqueeze(1) * right[:kept]
    return b, a
