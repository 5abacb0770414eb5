"""Writes a safetensors file one tensor at a time, so that a 40 GB file needs the memory of its largest tensor.

The header stands before the data, so names, types and shapes are given first; the tensors may then come in any order.
Programs that map the file want each tensor to begin at a multiple of its element size, and the format allows no gaps.
So tensors whose length is a multiple of 8 bytes keep their order, and the few others follow, large elements first.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from ..errors import RunError
from .reader import BITS, TORCH_NAMES

_NAMES = {getattr(torch, name): kind for kind, name in TORCH_NAMES.items() if hasattr(torch, name)}
_MARGIN = 64 << 20  # bytes that are left free on the disk, for a smaller file as many as it has
PIECE = 1 << 26  # bytes that are written without asking whether to stop
_ON_DISK = 1 << 26  # bytes after which the disk is waited for, so that the last wait is short


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file to come: `dtype` in the file's own words ("BF16") and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorEntry:
        return cls(_NAMES[tensor.dtype], tuple(tensor.shape))

    @property
    def nbytes(self) -> int:
        return (math.prod(self.shape) * BITS[self.dtype] + 7) // 8


class TensorWriter:
    """A safetensors file that is being filled at `path`: `entries` by name, then `write` or `write_bytes` for each.

    Use it in a `with` block. On a clean exit every tensor must have been written. `poll` is called before each piece of
    a tensor; what it raises ends the writing. Without it nothing does.
    """

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, TensorEntry],
        metadata: Mapping[str, str],
        poll: Callable[[], None] | None = None,
    ) -> None:
        ordered = sorted(entries, key=lambda name: _order(entries[name]))
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        begin, self._starts = 0, {}
        for name in ordered:
            entry = entries[name]
            header[name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [begin, begin + entry.nbytes],
            }
            self._starts[name] = begin
            begin += entry.nbytes
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self.entries = dict(entries)
        self.size = 8 + len(text) + begin
        self._left = set(entries)
        self._poll, self._waiting = poll, 0
        self._data = 8 + len(text)
        self._file = open(path, "wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self.size)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Put `tensor`, of any device, in its place."""
        found, expected = TensorEntry.of(tensor), self.entries[name]
        assert found == expected, f"{name} was announced as {expected} and is {found}"
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
        self.write_bytes(name, (data[start : start + PIECE] for start in range(0, len(data), PIECE)))

    def write_bytes(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Put the raw bytes of a tensor, in pieces, in its place."""
        self._left.remove(name)
        self._file.seek(self._data + self._starts[name])
        count = 0
        for piece in pieces:
            self._file.write(piece)
            count += len(piece)
            self._heed(len(piece))
        assert count == self.entries[name].nbytes, (name, count, self.entries[name])

    def close(self) -> None:
        self._file.close()

    def _heed(self, nbytes: int) -> None:
        """So many bytes more are written: whoever may end this is asked, and never waits long for the disk."""
        if self._poll is None:
            return
        self._poll()
        self._waiting += nbytes
        if self._waiting >= _ON_DISK:
            self._waiting = 0
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()
        assert kind is not None or not self._left, f"never written: {sorted(self._left)[:3]}"


def require_space(path: Path, needed: int) -> None:
    """Raise RunError unless `needed` bytes fit on the disk of `path`."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise RunError(f"{path.name} cannot be written: {folder} is read-only. Write to another folder.")
    free, margin = shutil.disk_usage(folder).free, min(_MARGIN, needed)
    if free < needed + margin:
        raise RunError(
            f"{path.name} needs {needed / 1e6:.0f} MB, and {margin / 1e6:.0f} MB are left free, but the disk of "
            f"{path.parent} has {free / 1e6:.0f} MB free. Free some space or write to another disk."
        )


def _order(entry: TensorEntry) -> tuple[bool, int]:
    odd = entry.nbytes % 8 != 0
    return odd, -BITS[entry.dtype] if odd else 0
