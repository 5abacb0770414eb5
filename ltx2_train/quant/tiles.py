"""The order in which tensor cores want the scales of blocks of neighbouring inputs.

Scales [rows, blocks] lie in tiles of 128 rows by 4 blocks one after another, and inside a tile row 32 j + i, block k at
16 i + 4 j + k. Both sizes are padded to whole tiles.

Layout: cuBLAS documentation, "1D block scaling factors layout".
"""

from __future__ import annotations

from torch import Tensor

_ROWS, _BLOCKS = 128, 4


def tiled_size(rows: int, blocks: int) -> int:
    """How many scales there are with the padding."""
    return -(-rows // _ROWS) * _ROWS * -(-blocks // _BLOCKS) * _BLOCKS


def untiled(tiled: Tensor, rows: int, blocks: int) -> Tensor:
    """Block scales in tiles, of any shape, as [rows, blocks]."""
    down, across = -(-rows // _ROWS), -(-blocks // _BLOCKS)
    tiles = tiled.reshape(down, across, 32, 4, _BLOCKS)  # tile row, tile column, i, j, k
    flat = tiles.permute(0, 3, 2, 1, 4).reshape(down * _ROWS, across * _BLOCKS)
    return flat[:rows, :blocks]
