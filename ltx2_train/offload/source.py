"""Blocks that wait in a file, for machines whose RAM does not hold them.

What the checkpoint has byte for byte is read from there each time. What it has not, since it was quantized while
loading or is kept in another precision, goes to a scratch file. In RAM the tensors of a block are stand-ins that have
shape and dtype only.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import RunError
from .packing import BlockLayout, block_layout, bytes_of

Ranges = Callable[[int], Sequence[tuple[int, int]]]  # block -> (first byte, bytes) of its tensors in the checkpoint

_HEAD = 4096  # compared first, so that most wrong candidates cost little
_PART = 64 << 20


class FileBlocks:
    """A source of blocks in files: `checkpoint`, where its `ranges` hold a tensor, else a scratch file in `folder`.

    The scratch file is made when it is first needed, and gone with `close` or with the process, however that ends.
    `scratch_bytes` is its size. Raises RunError where a file cannot be read, the checkpoint was changed meanwhile, the
    folder cannot be written or the disk is full; the block that was to be added is whole then.
    """

    def __init__(self, folder: Path | str, checkpoint: Path | str | None = None, ranges: Ranges | None = None) -> None:
        self.notes: list[str] = []
        self.scratch_bytes = 0
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._scratch: FileIO | None = None
        self._checkpoint = None if checkpoint is None else _Checkpoint(Path(checkpoint))
        self._ranges = ranges or (lambda number: ())
        self._parts: dict[int, list[tuple[int, int, bool, int]]] = {}  # in the block, bytes, in scratch, in the file
        self._layouts: dict[int, BlockLayout] = {}
        self._homes: dict[int, list[Tensor]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._layouts

    def add(self, number: int, block: nn.Module) -> None:
        """Find the frozen tensors of `block` in the checkpoint or write them, and free them."""
        assert number not in self, number
        layout = block_layout(block)
        ranges = self._ranges(number) if self._checkpoint is not None else ()
        end, parts = self.scratch_bytes, []
        for piece in layout.pieces:
            data = bytes_of(piece.tensors[0]).cpu()
            place = next((first for first, count in ranges if count == piece.nbytes and self._same(first, data)), None)
            if place is None:
                parts.append((piece.start, piece.nbytes, True, end))
                self._write(end, data)
                end += piece.nbytes
            else:
                parts.append((piece.start, piece.nbytes, False, place))
        self.scratch_bytes = end
        self._parts[number], self._layouts[number] = parts, layout
        self._homes[number] = layout.hollow()
        layout.point(self._homes[number])

    def layout(self, number: int) -> BlockLayout:
        """Where the tensors of a block stand in its bytes."""
        return self._layouts[number]

    def home(self, number: int) -> list[Tensor]:
        """What the tensors of a block are while it is not on the device: stand-ins."""
        return self._homes[number]

    def size(self, number: int) -> int:
        """Bytes of a block."""
        return self._layouts[number].size

    def direct(self, number: int) -> None:
        """No memory holds a block."""

    def read_into(self, number: int, target: Tensor, offset: int = 0) -> None:
        """Fill `target`, a uint8 tensor in RAM, with the bytes of a block from `offset` on."""
        end = offset + target.numel()
        for start, count, scratch, place in self._parts[number]:
            first, last = max(start, offset), min(start + count, end)
            if first >= last:
                continue
            part = target[first - offset : last - offset]
            with self._lock:
                if scratch:
                    assert self._scratch is not None
                    _read(self._scratch, place + first - start, part, f"the scratch file in {self._folder}")
                else:
                    assert self._checkpoint is not None
                    self._checkpoint.read(place + first - start, part)

    def __enter__(self) -> FileBlocks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the checkpoint and remove the scratch file. The blocks cannot be used any more."""
        with self._lock:
            if self._scratch is not None:
                self._scratch.close()
            if self._checkpoint is not None:
                self._checkpoint.file.close()

    def _same(self, place: int, data: Tensor) -> bool:
        """Whether the checkpoint has `data` from byte `place` on."""
        assert self._checkpoint is not None
        start, step = 0, _HEAD
        while start < data.numel():
            part = data[start : start + step]
            found = torch.empty_like(part)
            with self._lock:
                self._checkpoint.read(place + start, found)
            if not torch.equal(found, part):
                return False
            start, step = start + part.numel(), _PART
        return True

    def _write(self, place: int, data: Tensor) -> None:
        try:
            with self._lock:
                if self._scratch is None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._scratch = tempfile.TemporaryFile(buffering=0, dir=self._folder)
                self._scratch.seek(place)
                view = data.numpy().data
                while view:
                    view = view[self._scratch.write(view) :]
        except OSError as error:
            raise RunError(
                f"Could not write swapped blocks to {self._folder}: {error.strerror or error}. Free some space there, "
                "choose another folder, or set memory.swap_from to ram."
            ) from error


class _Checkpoint:
    """The open checkpoint; refuses to read on when the file is written to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.file = open(path, "rb", buffering=0)
            self._time = os.fstat(self.file.fileno()).st_mtime_ns
        except OSError as error:
            raise RunError(f"Could not read {path}: {error.strerror or error}.") from error

    def read(self, position: int, target: Tensor) -> None:
        if not self.file.closed and os.fstat(self.file.fileno()).st_mtime_ns != self._time:
            raise RunError(
                f"{self._path} was written to while the run read its blocks from it. Leave the file alone during a "
                "run, or set memory.swap_from to ram."
            )
        _read(self.file, position, target, str(self._path))


def _read(file: FileIO, position: int, target: Tensor, name: str) -> None:
    view = target.numpy().data
    try:
        file.seek(position)
        while view:
            count = file.readinto(view)
            if not count:
                raise RunError(f"{name} ends {len(view)} bytes too early; it was changed while the run read from it.")
            view = view[count:]
    except (OSError, ValueError) as error:
        raise RunError(f"Could not read swapped blocks from {name}: {error}.") from error
