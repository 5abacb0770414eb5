"""Blocks that wait in a file, for machines whose RAM does not hold them.

Either in a scratch file that is filled while the model is loaded (`PackedFile`), or where they are in the checkpoint
(`CheckpointFile`), when the modules keep the bytes as they are there. In RAM the tensors of a block are stand-ins that
have shape and dtype only.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from ..errors import RunError
from .packing import Layout, bytes_of, layout_of


class PackedFile:
    """A source of blocks in a scratch file in `folder`, gone with `close` or with the process, however that ends.

    Raises RunError where the folder cannot be written or the disk is full; the block that was to be added is whole
    then.
    """

    def __init__(self, folder: Path | str) -> None:
        self.notes: list[str] = []
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(buffering=0, dir=self._folder)
        except OSError as error:
            raise self._refused(error) from error
        self._lock = threading.Lock()
        self._end = 0
        self._starts: dict[int, int] = {}
        self._layouts: dict[int, Layout] = {}
        self._homes: dict[int, list[Tensor]] = {}

    @classmethod
    def write(cls, folder: Path | str, blocks: Mapping[int, nn.Module]) -> PackedFile:
        """A file of `blocks` by number; their RAM is free afterwards."""
        file = cls(folder)
        try:
            for number, block in blocks.items():
                file.add(number, block)
        except BaseException:
            file.close()
            raise
        return file

    def __contains__(self, number: int) -> bool:
        return number in self._layouts

    def add(self, number: int, block: nn.Module) -> None:
        """Write the frozen tensors of `block` and free them."""
        assert number not in self, number
        layout = layout_of(block)
        try:
            with self._lock:
                for piece in layout.pieces:
                    self._file.seek(self._end + piece.start)
                    _write(self._file, bytes_of(piece.tensors[0]).cpu())
                self._file.truncate(self._end + layout.size)
        except OSError as error:
            raise self._refused(error) from error
        self._starts[number], self._layouts[number] = self._end, layout
        self._end += layout.size
        self._homes[number] = layout.hollow()
        layout.point(self._homes[number])

    def layout(self, number: int) -> Layout:
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
        with self._lock:
            _read(self._file, self._starts[number] + offset, target, f"the scratch file in {self._folder}")

    def __enter__(self) -> PackedFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file. The blocks cannot be used any more."""
        self._file.close()

    def _refused(self, error: OSError) -> RunError:
        return RunError(
            f"Could not write swapped blocks to {self._folder}: {error.strerror or error}. Free some space there, "
            "choose another folder, or set memory.swap_from to ram."
        )


class CheckpointFile:
    """A source of blocks that are read from the checkpoint at `path` each time.

    Raises RunError where the file cannot be read.
    """

    def __init__(self, path: Path | str) -> None:
        self.notes: list[str] = []
        self._path = Path(path)
        try:
            self._file = open(self._path, "rb", buffering=0)
        except OSError as error:
            raise RunError(f"Could not read {self._path}: {error.strerror or error}.") from error
        self._lock = threading.Lock()
        self._parts: dict[int, list[tuple[int, int, int | Tensor]]] = {}
        self._layouts: dict[int, Layout] = {}
        self._homes: dict[int, list[Tensor]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._layouts

    def place(self, number: int, block: nn.Module, offsets: Mapping[str, int]) -> None:
        """Take `block`, whose frozen tensors stand in the file as they are, contiguous, from byte `offsets[name]` on.

        Names are those inside the block. These tensors may be on the meta device. What has no offset was made while
        loading and is kept in RAM; it must be loaded.
        """
        assert number not in self, number
        _materialize(block, frozenset(offsets))
        here: dict[int, int] = {}
        for named in (block.named_parameters, block.named_buffers):
            here.update((id(t), offsets[name]) for name, t in named(remove_duplicate=False) if name in offsets)
        layout = layout_of(block)
        parts: list[tuple[int, int, int | Tensor]] = []
        for piece in layout.pieces:
            first = piece.tensors[0]
            where = next((here[id(t)] for t in piece.tensors if id(t) in here), None)
            assert where is None or first.is_contiguous(), "what is read from the file must be laid out as it is there"
            parts.append((piece.start, piece.nbytes, bytes_of(first).cpu().clone() if where is None else where))
        self._parts[number], self._layouts[number] = parts, layout
        self._homes[number] = layout.hollow()
        layout.point(self._homes[number])

    def add(self, number: int, block: nn.Module) -> None:
        """Keep a block of which the file has nothing in RAM."""
        self.place(number, block, {})

    def layout(self, number: int) -> Layout:
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
        for start, nbytes, where in self._parts[number]:
            first, last = max(start, offset), min(start + nbytes, end)
            if first >= last:
                continue
            part = target[first - offset : last - offset]
            if isinstance(where, Tensor):
                part.copy_(where[first - start : last - start])
            else:
                with self._lock:
                    _read(self._file, where + first - start, part, str(self._path))

    def __enter__(self) -> CheckpointFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The blocks cannot be used any more."""
        self._file.close()


def _materialize(block: nn.Module, names: frozenset[str]) -> None:
    """Put stand-ins in the place of meta tensors, whose `.data` cannot be changed. A shared one stays shared."""
    made: dict[int, Tensor] = {}
    for path, module in block.named_modules():
        for tensors in (module._parameters, module._buffers):
            for leaf, tensor in tensors.items():
                if tensor is None or not tensor.is_meta or (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
                    continue
                name = f"{path}.{leaf}" if path else leaf
                assert name in names or id(tensor) in made, f"{name} is not loaded, and the file does not have it"
                if id(tensor) not in made:
                    value = torch.empty(tensor.shape, dtype=tensor.dtype)  # untouched, so it takes no RAM
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(value, requires_grad=False) if is_parameter else value
                tensors[leaf] = made[id(tensor)]


def _write(file: BinaryIO, data: Tensor) -> None:
    view = memoryview(data.numpy())
    while view:
        view = view[file.write(view) :]


def _read(file: BinaryIO, position: int, target: Tensor, name: str) -> None:
    view = memoryview(target.numpy())
    try:
        file.seek(position)
        while view:
            count = file.readinto(view)
            if not count:
                raise RunError(f"{name} ends {len(view)} bytes too early; it was changed while the run read from it.")
            view = view[count:]
    except (OSError, ValueError) as error:
        raise RunError(f"Could not read swapped blocks from {name}: {error}.") from error
