"""NF4 after a scaling of the inputs: where activations are strong, the weights lose less (AWQ).

    s = (mean |x| of each input, divided by the mean over the inputs) ^ alpha         y = (x / s) (W s)^T + b

W s is what is quantized. Larger s makes the rounding step of NF4's block small beside that input's weights, at the
cost of the others in the block; the division by s at run time makes up for it. alpha = 0 is plain NF4, bit for bit.

Lin et al. 2023, "AWQ", arXiv:2306.00978.

Shape letters: O out, I in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .base import QuantLinear, QuantNumbers, Storage
from .nf4 import Nf4, quantize_nf4

if TYPE_CHECKING:
    from typing_extensions import Self

LEAST = 1e-5  # of a normalised activation, so that no input is given up


def channel_scales(activation: Tensor, alpha: float) -> Tensor:
    """s [I] in float32 for mean |x| [I]; all ones where nothing was measured."""
    activation = activation.float()
    mean = activation.mean()
    if not mean > 0:
        return torch.ones_like(activation)
    return (activation / mean).clamp(min=LEAST).pow(alpha)


class AwqNf4(Nf4):
    """As `Nf4` for W s; `inverse` [I] float32 is 1 / s."""

    storage: ClassVar[Storage] = Storage("nf4_awq", bits=4, snr_db=21.2, like="nf4")
    stored_names: ClassVar[tuple[str, ...]] = ("weight", "scale", "inverse")

    inverse: Tensor

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        inverse: Tensor,
        *,
        bias: Tensor | None = None,
        compute_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        out, width = weight.shape[0], 2 * weight.shape[1]
        assert inverse.shape == (width,), inverse.shape
        stored = {"weight": weight, "scale": scale, "inverse": inverse.float()}
        QuantLinear.__init__(self, width, out, stored, bias, compute_dtype)

    @classmethod
    def quantize_scaled(
        cls, weight: Tensor, bias: Tensor | None, settings: QuantNumbers, compute_dtype: torch.dtype, scales: Tensor
    ) -> Self:
        """`weight` [O, I] with s = `scales` [I]."""
        packed, block = quantize_nf4((weight.detach() * scales).to(weight.dtype), settings.block_size)
        return cls(packed, block, 1 / scales, bias=bias, compute_dtype=compute_dtype)

    def turn(self, x: Tensor) -> Tensor:
        return x * self.inverse.to(x.dtype)

    def turn_back(self, x: Tensor) -> Tensor:
        # what gradients and the weight itself need is the transpose, and a diagonal is its own
        return x * self.inverse.to(x.dtype)
