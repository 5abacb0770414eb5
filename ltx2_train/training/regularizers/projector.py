"""A small network beside the model that brings hidden states to what they are compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, silu

ACTIVATIONS = {"gelu": gelu, "silu": silu}


class Projector(nn.Module):
    """Two products with an activation between; weights in float32, products in the dtype of the input.

    The weights are drawn on the CPU, by `seed` alone.
    """

    def __init__(self, width: int, inner: int, out: int, activation: str, seed: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(inner, width))
        self.second = nn.Parameter(torch.empty(out, inner))
        generator = torch.Generator().manual_seed(seed)
        for weight in (self.first, self.second):
            nn.init.xavier_uniform_(weight, generator=generator)
        self._activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return linear(self._activation(linear(x, self.first.to(x.dtype))), self.second.to(x.dtype))
