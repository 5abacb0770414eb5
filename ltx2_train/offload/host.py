"""RAM that weights and activations wait in, locked (pinned) where that was asked for.

Memory is registered with the driver rather than taken from PyTorch's pinned allocator, which rounds every request up
to a power of two: a block of 772 MB would take 1 GB.
"""

from __future__ import annotations

import contextlib
import weakref

import numpy as np
import torch
from torch import Tensor, nn

from .packing import BlockLayout, block_layout

PAGE = 4096


class HostMemory:
    """`nbytes` of RAM as a flat uint8 tensor, `bytes`. `pinned` says whether it is locked; `note` why it is not."""

    def __init__(self, nbytes: int, pinned: bool = False) -> None:
        self.pinned, self.note = False, None
        with torch.inference_mode(False):
            memory = torch.empty(nbytes + 2 * PAGE if pinned else nbytes, dtype=torch.uint8)
        self.bytes = memory
        if pinned and nbytes:
            # the locked range has its pages for itself
            start = -memory.data_ptr() % PAGE
            self.bytes = memory[start : start + nbytes]
            reason = _lock(self.bytes.data_ptr(), -(-nbytes // PAGE) * PAGE)
            if reason is None:
                self.pinned = True
                # it holds the memory, which must not go back to the system while it is locked
                self._unlock = weakref.finalize(self, _unlock, self.bytes.data_ptr(), memory)
                self._unlock.atexit = False
            else:
                self.note = (
                    f"The system did not lock {nbytes / 1e9:.2f} GB of RAM for memory.pinned ({reason}); copies from "
                    "ordinary RAM are slower. Set memory.pinned to false, or swap fewer blocks."
                )

    def unlock(self) -> None:
        """Make it ordinary RAM; nothing may be copying from it. What it holds stays."""
        if self.pinned:
            self.pinned = False
            self._unlock()


class HostBuffers:
    """A source of blocks that are kept in RAM, one flat buffer each; the tensors of the blocks live in it.

    With `pinned` it is locked, up to `most` bytes of it; the rest is ordinary. `notes` are sentences for the user.
    """

    def __init__(self, pinned: bool = False, most: float = float("inf")) -> None:
        self.notes: list[str] = []
        self._pinned, self._most = pinned, most
        self._memory: dict[int, HostMemory] = {}
        self._layouts: dict[int, BlockLayout] = {}
        self._homes: dict[int, list[Tensor]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._layouts

    def add(self, number: int, block: nn.Module) -> None:
        """Move the frozen tensors of `block` here."""
        layout = block_layout(block)
        memory = HostMemory(layout.size, self._pinned and self.locked_bytes + layout.size <= self._most)
        if memory.note is not None:
            self.notes.append(memory.note)
            self._pinned = False  # one refusal is enough
        layout.pack(memory.bytes)
        self._memory[number], self._layouts[number] = memory, layout
        self._homes[number] = layout.views(memory.bytes)

    @property
    def locked_bytes(self) -> int:
        """Of all blocks together."""
        return sum(memory.bytes.numel() for memory in self._memory.values() if memory.pinned)

    def layout(self, number: int) -> BlockLayout:
        """Where the tensors of a block stand in its bytes."""
        return self._layouts[number]

    def home(self, number: int) -> list[Tensor]:
        """What the tensors of a block are while it is not on the device."""
        return self._homes[number]

    def size(self, number: int) -> int:
        """Bytes of a block."""
        return self._layouts[number].size

    def direct(self, number: int) -> Tensor | None:
        """Locked memory that a device can copy a block from by itself, where there is such."""
        memory = self._memory[number]
        return memory.bytes if memory.pinned else None

    def read_into(self, number: int, target: Tensor, offset: int = 0) -> None:
        """Fill `target`, a uint8 tensor in RAM, with the bytes of a block from `offset` on."""
        # not Tensor.copy_: it would give the thread that copies a team of OpenMP threads of its own, and with more
        # threads than cores libgomp lets every parallel region of the whole process sleep instead of spin
        np.copyto(target.numpy(), self._memory[number].bytes[offset : offset + target.numel()].numpy())

    def close(self) -> None:
        """Unlock. The blocks keep their memory."""
        for memory in self._memory.values():
            memory.unlock()


def _lock(pointer: int, length: int) -> str | None:
    """None, or why not."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    try:
        runtime = torch.cuda.cudart()
        assert runtime is not None
        code = int(runtime.cudaHostRegister(pointer, length, 0))
    except (RuntimeError, AttributeError) as error:
        return str(error).splitlines()[0]
    if code == 0:
        return None
    # the driver remembers the refusal and would report it at the next launch of a kernel, so launch one
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    return f"CUDA error {code}"


def _unlock(pointer: int, memory: Tensor) -> None:
    runtime = torch.cuda.cudart()
    assert runtime is not None
    runtime.cudaHostUnregister(pointer)
