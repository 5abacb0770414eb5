"""Tokens that go around some blocks (TREAD): the others are all that these blocks see of the picture.

    x'  = x at the kept tokens        through blocks first..last        x = x with x' in the places it came from

What is dropped keeps the value it had before the route, and its gradient goes around as well. Rotations and modulation
are those of the kept tokens' own places.

Krause et al. 2025, arXiv:2501.04765. Shape letters: B batch, T tokens, K kept tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .adaln import Rows
from .blocks import Stream
from .norms import RowIndex


@dataclass(frozen=True)
class TokenRoute:
    """Blocks `first` to `last`, both included, see the tokens `kept` [B, K] of the picture, in ascending order."""

    first: int
    last: int
    kept: Tensor


def check_routes(routes: Sequence[TokenRoute], blocks: int) -> None:
    """Routes must not overlap, and must leave the last block to all tokens."""
    covered = [number for route in routes for number in range(route.first, route.last + 1)]
    assert len(covered) == len(set(covered)), "routes overlap"
    assert all(0 <= route.first <= route.last < blocks - 1 for route in routes), "a route leaves the blocks"


def kept_of(x: Tensor, kept: Tensor) -> Tensor:
    """[B, K, D] of x [B, T, D]."""
    return x.gather(1, kept[..., None].expand(-1, -1, x.shape[2]))


def put_back(x: Tensor, kept: Tensor, around: Tensor) -> Tensor:
    """`around` [B, T, D] with x [B, K, D] in its places."""
    return around.scatter(1, kept[..., None].expand(-1, -1, x.shape[2]), x)


def stream_of(stream: Stream, kept: Tensor) -> Stream:
    """What is constant over the blocks, for the kept tokens. Tokens at the start that are told apart must be kept."""
    return replace(
        stream,
        ada=_rows(stream.ada, kept),
        attention_mask=_mask(stream.attention_mask, kept),
        rope=stream.rope.at(kept),
        cross=None if stream.cross is None else _rows(stream.cross, kept),
        cross_gate=None if stream.cross_gate is None else _rows(stream.cross_gate, kept),
        cross_rope=None if stream.cross_rope is None else stream.cross_rope.at(kept),
    )


def _rows(rows: Rows, kept: Tensor) -> Rows:
    if rows.index is None:
        return rows
    return Rows(rows.values, RowIndex(rows.index.rows.expand(kept.shape[0], -1).gather(1, kept)))


def _mask(mask: Tensor | None, kept: Tensor) -> Tensor | None:
    """Of [B, 1, T or 1, T]: the columns of the kept tokens, and their rows where each token has its own."""
    if mask is None:
        return None
    if mask.shape[2] > 1:
        mask = mask.gather(2, kept[:, None, :, None].expand(-1, -1, -1, mask.shape[3]))
    return mask.gather(3, kept[:, None, None, :].expand(-1, -1, mask.shape[2], -1))


def draw_kept(tokens: int, front: int, share: float, count: int, generator: torch.Generator) -> Tensor:
    """Tokens [count, K] that stay, drawn for each sample: the first `front` of `tokens`, and `share` of the rest."""
    rest = tokens - front
    number = max(1, round(share * rest))
    order = torch.rand(count, rest, generator=generator).argsort(dim=1)[:, :number].sort(dim=1).values + front
    return torch.cat((torch.arange(front).expand(count, -1), order), dim=1)
