"""Timesteps to modulation: the sinusoid, the embedding network and the rows the blocks add their tables to.

A clip has one noise level, or two where some tokens are given clean; so the network runs once per distinct timestep
and tokens look their row up, instead of once per token. Shift, scale and gate values are float32 from the network's
last product on, whatever the weights are stored in: a scale near zero loses its digits when rounded beside a one.

Shape letters: B batch, T tokens, D width, R distinct timesteps, n rows a timestep.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .norms import RowIndex, wide

SINUSOID = 256


class Rows(NamedTuple):
    """Modulation rows [R, n, D]; `index` names each token's row, None means one row a sample (R = B)."""

    values: Tensor
    index: RowIndex | None

    def plus(self, table: Tensor) -> Rows:
        """The same with a block's table [n, D] added, in the dtype of these values, which is the wider one."""
        return Rows(self.values + table, self.index)


class TimestepEmbedder(nn.Module):
    """Sinusoid -> linear -> SiLU -> linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOID, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(x)))


class Embedding(nn.Module):
    """The level of names between an AdaLN and its embedder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(width)


class AdaLN(nn.Module):
    """Timesteps in 0..1000 to `count` rows of modulation."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.emb = Embedding(width)
        self.linear = nn.Linear(width, count * width)

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[R] -> rows [R, count, D] and the embedding [R, D] they are made from, both at least float32."""
        embedded = self.emb.timestep_embedder(sinusoid(timesteps).to(dtype))
        rows = self.linear(silu(embedded)).unflatten(1, (self.count, -1))
        return wide(rows), wide(embedded)


def sinusoid(timesteps: Tensor) -> Tensor:
    """[R] -> [R, 256]: cosines first, then sines, of timesteps * 10000^(-i/128), in float32."""
    half = SINUSOID // 2
    frequencies = torch.exp(torch.arange(half, device=timesteps.device) * (-math.log(10000.0) / half))
    angles = timesteps.float().unsqueeze(1) * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=1)


def distinct(timesteps: Tensor) -> tuple[Tensor, RowIndex | None]:
    """The distinct values [R] of timesteps [B, T] or [B, 1] and each token's index.

    Where a sample's tokens all share one the index is None and R = B. On a card this waits for its result; where tokens
    are given or not, `given_or_not` needs no look at the values.
    """
    if timesteps.shape[1] == 1 or timesteps.stride(1) == 0:
        return timesteps[:, 0], None
    if timesteps.device.type == "meta":  # has no values to compare: two, as where the first frame is given clean
        return timesteps.new_empty(2), RowIndex(torch.empty_like(timesteps, dtype=torch.long))
    values, index = torch.unique(timesteps, return_inverse=True)
    return values, RowIndex(index)


def given_or_not(sigma: Tensor, given: Tensor, lead: int | None) -> tuple[Tensor, RowIndex]:
    """Timesteps [1 + B], zero first, and each token's index; the `given` [B, T] are at 0 and the others at `sigma`.

    `lead` is how many tokens are given at the start of every sample, if no others are.
    """
    own = torch.arange(1, sigma.shape[0] + 1, device=given.device).unsqueeze(1)
    return torch.cat((sigma.new_zeros(1), sigma)), RowIndex(torch.where(given, 0, own), lead)


def of_two_levels(sigma: Tensor, second: Tensor, masked: Tensor, given: Tensor | None) -> tuple[Tensor, RowIndex]:
    """Timesteps [1 + 2 B], zero first, and each token's index: `second` [B] where `masked` [B, T], else `sigma` [B],
    and 0 where `given` [B, T]."""
    own = torch.arange(1, sigma.shape[0] + 1, device=masked.device).unsqueeze(1)
    index = torch.where(masked, own + sigma.shape[0], own)
    index = index if given is None else torch.where(given, 0, index)
    return torch.cat((sigma.new_zeros(1), sigma, second)), RowIndex(index)
