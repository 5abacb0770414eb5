"""The frozen tensors of a block as one run of bytes, so that a block travels in one copy.

A `BlockLayout` says where each tensor stands in the run and gives the views of a flat buffer that has it. The tensor
objects of the modules stay what they are; only their `.data` is pointed at one buffer or another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALIGNMENT = 256  # what a fresh allocation on a card is aligned to


@dataclass(frozen=True)
class Piece:
    """One tensor in the run, and all tensor objects that share it."""

    tensors: tuple[Tensor, ...]
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    start: int
    nbytes: int

    def view(self, flat: Tensor) -> Tensor:
        """The tensor in `flat`, a uint8 buffer with the layout of the block."""
        data = flat[self.start : self.start + self.nbytes].view(self.dtype)
        return data.as_strided(self.shape, self.stride)


@dataclass(frozen=True)
class BlockLayout:
    """Where the frozen tensors of one block stand; `size` in bytes."""

    pieces: tuple[Piece, ...]
    size: int

    def views(self, flat: Tensor) -> list[Tensor]:
        """One tensor a piece, all in `flat`."""
        return [piece.view(flat) for piece in self.pieces]

    def point(self, data: Sequence[Tensor]) -> None:
        """Let the tensors of the block have `data`, one tensor a piece."""
        for piece, value in zip(self.pieces, data, strict=True):
            for tensor in piece.tensors:
                tensor.data = value

    def pack(self, flat: Tensor) -> None:
        """Copy the block into `flat` and let it live there. Each tensor's old memory is free before the next one."""
        for piece in self.pieces:
            flat[piece.start : piece.start + piece.nbytes].copy_(bytes_of(piece.tensors[0]))
            view = piece.view(flat)
            for tensor in piece.tensors:
                tensor.data = view

    def hollow(self) -> list[Tensor]:
        """Stand-ins with shape and dtype and (almost) no memory; floats among them are NaN."""
        return [hollow(piece.shape, piece.dtype) for piece in self.pieces]


def block_layout(block: nn.Module) -> BlockLayout:
    """The layout of the frozen parameters and the buffers of `block`, those that share memory once."""
    found: dict[object, list[Tensor]] = {}
    for tensor in frozen(block):
        assert type(tensor) in (Tensor, nn.Parameter), f"a {type(tensor).__name__} cannot be packed as plain bytes"
        found.setdefault(_key(tensor), []).append(tensor)
    pieces, start = [], 0
    for tensors in found.values():
        first = tensors[0]
        stride = first.stride() if _dense(first) else torch.empty(first.shape, device="meta").stride()
        nbytes = first.numel() * first.element_size()
        pieces.append(Piece(tuple(tensors), first.dtype, first.shape, tuple(stride), start, nbytes))
        start += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return BlockLayout(tuple(pieces), start)


def frozen(block: nn.Module) -> Iterator[Tensor]:
    """The tensors of `block` that no optimizer changes: frozen parameters, then buffers."""
    yield from (parameter for parameter in block.parameters() if not parameter.requires_grad)
    yield from block.buffers()


def hollow(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of one element's memory, all bits set, that claims to be of `shape`."""
    size = torch.empty((), dtype=dtype).element_size()
    return torch.full((size,), 0xFF, dtype=torch.uint8).view(dtype)[0].expand(tuple(shape))


def bytes_of(tensor: Tensor) -> Tensor:
    """The memory of `tensor` as uint8 [nbytes], copied first where it has gaps."""
    tensor = tensor.detach()
    tensor = tensor if _dense(tensor) else tensor.contiguous()
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _dense(tensor: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in whatever order."""
    order = sorted(range(tensor.dim()), key=lambda i: -tensor.stride(i))
    return tensor.permute(order).is_contiguous()


def _key(tensor: Tensor) -> object:
    if tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
