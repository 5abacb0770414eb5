"""Reads a safetensors file one tensor at a time, straight into the memory of the new tensor.

A safetensors file is an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets, and
`__metadata__`, a table of strings), then the data. Opening a file reads the header only, so looking at a 40 GB file
takes milliseconds.

No memory map: pages of a mapped file count as resident memory of the process, so a loaded model would show up twice
until the system takes them back, and on Windows a mapped file cannot be replaced. `seek` and `readinto` fill the new
tensor directly; the peak is the model and one tensor.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..errors import CheckpointError
from ..files import parse_json
from ..threads import heed

# bits of one element
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip
TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16", "I32": "int32",
    "U32": "uint32", "F32": "float32", "I64": "int64", "U64": "uint64", "F64": "float64", "C64": "complex64",
}  # fmt: skip

ENDING = ".safetensors"

_LONGEST_HEADER = 100_000_000  # the format's own limit
_LARGE = 1 << 14  # bytes of a header that is remembered; a cache has a smaller one
_PIECE = 1 << 26  # bytes that are read at once: a slow disk takes a second for them


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: `dtype` in the file's own words ("BF16", "F8_E4M3"), its shape and size in bytes."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int  # from the start of the file

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Raises CheckpointError for a format this torch cannot hold, such as 4-bit floats."""
        dtype = getattr(torch, TORCH_NAMES.get(self.dtype, ""), None)
        if dtype is None:
            raise CheckpointError(
                f"Tensors of type {self.dtype} cannot be read by torch {torch.__version__}. "
                "Use the bf16 or fp8 version of this file."
            )
        return dtype


class TensorFile:
    """A safetensors file. `metadata` holds its strings, `config` the parsed JSON of metadata["config"] or None.

    Raises CheckpointError where the file is missing, damaged, still downloading, or something else than safetensors.
    `wanted` is what the error asks for in place of something else. Use it in a `with` block or call `close()`; the
    handle opens with the first read. Threads may share a reader.
    """

    def __init__(self, path: Path | str, wanted: str = "checkpoint of LTX-2 or LTX-2.3") -> None:
        self.path = Path(path)
        self.bytes_read = 0  # of tensor data so far
        self._handle: Any = None
        self._lock = threading.Lock()
        header, self.size = _read_header(self.path, wanted)
        try:
            metadata, tensors = (_known if len(header) >= _LARGE else _parse)(header, self.size)
        except _Unreadable as error:
            raise _damaged(self.path, self.size, str(error)) from None
        except _UnknownType as error:
            raise CheckpointError(
                f"{self.name} stores {error}, a type this program does not know. Use the bf16 or fp8 version."
            ) from None
        self.metadata: dict[str, str] = dict(metadata)
        self.tensors: dict[str, TensorInfo] = dict(tensors)
        self.config: dict[str, Any] | None = _parse_config(self.metadata.get("config"))

    @property
    def name(self) -> str:
        """Its file name, for messages."""
        return self.path.name

    def read(self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor `name`, on `device`, in `dtype` (None: as stored)."""
        info = self._info(name)
        tensor = torch.empty(info.shape, dtype=info.torch_dtype)
        if info.nbytes:
            # numpy knows neither bf16 nor fp8; bytes are bytes
            raw = tensor.reshape(-1).view(torch.uint8).numpy().data
            self._fill(name, info.offset, raw)
        tensor = tensor.to(device)
        return tensor if dtype is None else tensor.to(dtype)

    def read_bytes(self, name: str, start: int = 0, count: int | None = None) -> bytes:
        """At most `count` raw bytes of tensor `name`, from byte `start` of it."""
        info = self._info(name)
        start = min(start, info.nbytes)
        count = info.nbytes - start if count is None else min(count, info.nbytes - start)
        buffer = bytearray(count)
        self._fill(name, info.offset + start, memoryview(buffer))
        return bytes(buffer)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The raw bytes of tensor `name`, some at a time."""
        return (self.read_bytes(name, start, _PIECE) for start in range(0, self._info(name).nbytes, _PIECE))

    def close(self) -> None:
        """Let go of the file; a later read opens it again."""
        with self._lock:
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.path.name} has no tensor named {name}.")
        return info

    def _fill(self, name: str, offset: int, target: memoryview) -> None:
        with self._lock:
            try:
                if self._handle is None:
                    self._handle = open(self.path, "rb", buffering=0)
                self._handle.seek(offset)
                done = 0
                while done < len(target):
                    heed()
                    count = self._handle.readinto(target[done : done + _PIECE])
                    if not count:
                        raise CheckpointError(
                            f"{self.path} ended while {name} was read: it changed since it was opened. "
                            "Wait until the download or copy has finished, then try again.",
                            f"it ended while {name} was read",
                        )
                    done += count
            except OSError as error:
                raise CheckpointError(f"Could not read {name} from {self.path}: {error.strerror or error}.") from error
            self.bytes_read += len(target)


class _Unreadable(Exception):
    """What is wrong with a header, for the error that names the file."""


class _UnknownType(Exception):
    """Which tensor is stored as what."""


def _read_header(path: Path, wanted: str) -> tuple[bytes, int]:
    """The header, not parsed yet, and the size of the file."""
    if path.is_fifo() or path.is_socket():  # which would be waited for
        raise CheckpointError(f"{path} is not a file. Choose a .safetensors {wanted}.", "it is not a file")
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8:
                raise _damaged(path, size, "a safetensors file has more")
            if not 2 <= length <= _LONGEST_HEADER:
                # only now: the first bytes of a sound file are a number and may look like anything
                _refuse_other_formats(path, start, size)
                raise CheckpointError(
                    f"{path} is not a safetensors file: its first bytes are {start!r}. Choose a .safetensors {wanted}.",
                    f"it does not begin as a safetensors file, but with {start!r}",
                )
            if 8 + length > size:
                raise _damaged(path, size, f"its header alone needs {_human(8 + length)}")
            return file.read(length), size
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder; a single .safetensors file is expected.") from None
    except OSError as error:
        # Windows says "permission denied" for a folder
        reason = "it is a folder" if path.is_dir() else (error.strerror or str(error))
        raise CheckpointError(f"Could not open {path}: {reason}. Check the path.", reason) from None


def _refuse_other_formats(path: Path, start: bytes, size: int) -> None:
    if start[:4] == b"GGUF":
        raise CheckpointError(
            f"{path.name} is a GGUF file, which packs weights for inference and is not read here. Use the bf16 or fp8 "
            ".safetensors file of the same model; quant.format makes a base small in memory, gemma.precision a text "
            "encoder."
        )
    if start[:4] == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise CheckpointError(
            f"{path.name} is a pickle file (.ckpt, .pt, .bin). Loading one can run foreign code, so it is not read. "
            "Use the .safetensors version."
        )
    if start[:8] == b"version " and size < 1024:
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer of {size} bytes, not the weights. Download the file itself "
            "(git lfs pull, or the download button)."
        )
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path.name} is a web page, not weights: the download was answered with an error or a login page. "
            "Download it again."
        )


def _parse(text: bytes, size: int) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """The metadata and the tensors of the header `text` of a file of `size` bytes. Raises _Unreadable."""
    try:
        header = parse_json(text)
    except ValueError as error:
        raise _Unreadable(f"its header is not readable ({_short(error)})") from None
    if not isinstance(header, dict):
        raise _Unreadable("its header is not a table of tensors")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise _Unreadable("its metadata is not a table")
    return {str(key): str(value) for key, value in metadata.items()}, _parse_tensors(header, 8 + len(text), size)


# A run opens its checkpoint a dozen times, and a header of thousands of tensors takes a while. What is known of one is
# told by all of its bytes, so that nothing is said of a file that has changed.
_known = lru_cache(maxsize=4)(_parse)


def _parse_tensors(header: Mapping[str, Any], data_start: int, size: int) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        try:
            dtype = str(entry["dtype"])
            shape = tuple(int(length) for length in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise _Unreadable(f"the entry of {name} is not readable") from None
        if dtype not in BITS:
            raise _UnknownType(f"{name} as {dtype}")
        if any(length < 0 for length in shape) or not 0 <= begin <= end:
            raise _Unreadable(f"the entry of {name} is out of range")
        if (math.prod(shape) * BITS[dtype] + 7) // 8 != end - begin:
            raise _Unreadable(f"{name} says {dtype} {list(shape)} but has {end - begin} bytes")
        tensors[name] = TensorInfo(dtype, shape, end - begin, data_start + begin)
    reached, last = data_start, ""
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset < reached:
            raise _Unreadable(f"{name} overlaps {last}")
        if info.offset > reached:  # as the format's own library does, which every other program reads with
            raise _Unreadable(f"{_human(info.offset - reached)} before {name} belong to no tensor")
        reached, last = info.offset + info.nbytes, name
    if reached > size:
        raise _Unreadable(f"its header promises {_human(reached)}")
    if reached < size:
        raise _Unreadable(f"the last {_human(size - reached)} belong to no tensor")
    return tensors


def _parse_config(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        config = parse_json(text)
    except ValueError:
        return None
    return config if isinstance(config, dict) else None


def _damaged(path: Path, size: int, reason: str) -> CheckpointError:
    found = f"it has {_human(size)}, but {reason}"
    return CheckpointError(
        f"{path} is damaged or still downloading: {found}. Wait for the download to finish, or download it again.",
        found,
    )


def _short(error: Exception) -> str:
    """The reason without the bytes that it may quote."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return str(error)[:120]


def _human(count: int) -> str:
    return f"{count:,} bytes" if count < 10_000_000 else f"{count / 1e9:.2f} GB ({count:,} bytes)"
