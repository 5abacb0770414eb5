"""Rotary position embedding over several axes.

    angle[t, k, axis] = (2 * middle(t, axis) / max_pos[axis] - 1) * theta^(k/(K-1)) * pi/2,   K = width // (2 * axes)

The angles of one token are laid out frequency-major, axis-minor, and padded in front with zeros (no rotation) to
width/2; so the pad falls into the first head and every head has frequencies of its own. "split" rotates the first half
of a head against its second half, "interleaved" even against odd features; the angles are the same.

Frequencies are computed in float64 and rounded once to float32, as the weights were trained; the angles, sines and
cosines are float32. RoPE: Su et al. 2021, arXiv:2104.09864.

Shape letters: B batch, T tokens, P places, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


class Rope(NamedTuple):
    """Cosines and sines [B, T, H, K/2] in float32, and how the features are paired.

    With `places` [B, T, axes] they are [P, H, K/2] instead, a row for each place on an axis, and those of a token are
    the sums of the rows that it names. A clip of many tokens has few of them.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool
    places: Tensor | None = None

    def part(self, tokens: slice) -> Rope:
        """The rows of some tokens."""
        if self.places is not None:
            return self._replace(places=self.places[:, tokens])
        return Rope(self.cos[:, tokens], self.sin[:, tokens], self.interleaved)

    def at(self, tokens: Tensor) -> Rope:
        """The rows of the tokens [B, N] of each sample that are named."""

        def chosen(values: Tensor) -> Tensor:
            places = tokens.view(*tokens.shape, *(1 for _ in values.shape[2:])).expand(-1, -1, *values.shape[2:])
            return values.expand(tokens.shape[0], *(-1 for _ in values.shape[1:])).gather(1, places)

        if self.places is not None:
            return self._replace(places=chosen(self.places))
        return Rope(chosen(self.cos), chosen(self.sin), self.interleaved)

    def spread(self) -> Rope:
        """The same without `places`."""
        if self.places is None:
            return self
        places = self.places
        cos, sin = (
            embedding_bag(places.flatten(0, 1), table.flatten(1), mode="sum").view(*places.shape[:2], *table.shape[1:])
            for table in (self.cos, self.sin)
        )
        return Rope(cos, sin, self.interleaved)


def rope_table(
    positions: Tensor,
    width: int,
    heads: int,
    max_pos: Sequence[float],
    theta: float = 10000.0,
    interleaved: bool = False,
    double: bool = True,
    by_place: bool = False,
) -> Rope:
    """The rotations of `positions` [B, axes, T, 2] for `heads` heads that together are `width` wide.

    `by_place`: with `places`, which is less where many tokens share one on each axis; the same to the bit.
    """
    if positions.shape[0] > 1 and positions.stride(0) == 0:
        positions = positions[:1]  # one table serves a batch of equal clips
    axes = positions.shape[1]
    assert axes == len(max_pos), (axes, max_pos)
    middle = positions.float().mean(dim=-1)  # [B, axes, T]
    fraction = torch.stack([middle[:, axis] / max_pos[axis] for axis in range(axes)], dim=-1)  # [B, T, axes]
    frequencies = _frequencies(width // (2 * axes), theta, double, positions.device)
    if by_place:
        return _of_places(fraction, frequencies, width // 2, heads, interleaved)
    angles = ((fraction * 2 - 1).unsqueeze(-2) * frequencies.unsqueeze(-1)).flatten(2)  # [B, T, K*axes]
    angles = torch.nn.functional.pad(angles, (width // 2 - angles.shape[-1], 0))
    angles = angles.unflatten(2, (heads, width // (2 * heads)))
    return Rope(angles.cos(), angles.sin(), interleaved)


def rotate_heads(x: Tensor, rope: Rope, out: Tensor | None = None, backward: bool = False) -> Tensor:
    """Rotate `x` [B, T, H, K] into `out`; `backward` rotates the other way, which is the gradient.

    `out` must not overlap `x`. Not differentiable by autograd: callers are autograd functions themselves.
    """
    rope, sign = rope.spread(), -1 if backward else 1
    cos, sin = rope.cos, rope.sin
    out = torch.empty_like(x) if out is None else out
    (a, b), (ra, rb) = _halves(x, rope.interleaved), _halves(out, rope.interleaved)
    torch.mul(a, cos, out=ra).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=rb).addcmul_(a, sin, value=sign)
    return out


def _of_places(fraction: Tensor, frequencies: Tensor, half: int, heads: int, interleaved: bool) -> Rope:
    axes = fraction.shape[2]
    pad = half - axes * len(frequencies)
    cosines, sines, places, first = [], [], [], 0
    for axis, values in enumerate(fraction.unbind(2)):
        own, index = _distinct(values)
        angles = (own * 2 - 1).unsqueeze(1) * frequencies
        for table, part, unturned in ((cosines, angles.cos(), 1.0), (sines, angles.sin(), 0.0)):
            rows = part.new_zeros(len(own), half)
            rows[:, pad + axis :: axes] = part
            rows[:, :pad] = 0.0 if axis else unturned  # in the rows of one axis, since rows are added up
            table.append(rows)
        places.append(index + first)
        first += len(own)
    cos, sin = (torch.cat(table).unflatten(1, (heads, -1)) for table in (cosines, sines))
    return Rope(cos, sin, interleaved, torch.stack(places, dim=2))


def _distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct `values`, and which of them each is."""
    if values.is_meta:  # has no values to compare: one, since a clip has few
        return values.new_empty(1), torch.empty_like(values, dtype=torch.long)
    return torch.unique(values, return_inverse=True)


def _halves(x: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    if interleaved:
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


@lru_cache(maxsize=16)
def _frequencies(count: int, theta: float, double: bool, device: torch.device) -> Tensor:
    # computed on the CPU, so that they have the same digits everywhere; kept, since a card waits for such a copy
    dtype = torch.float64 if double else torch.float32
    exponents = torch.linspace(0.0, 1.0, count, dtype=dtype) if count > 1 else torch.zeros(count, dtype=dtype)
    return (torch.pow(torch.tensor(theta, dtype=dtype), exponents) * (math.pi / 2)).float().to(device)
