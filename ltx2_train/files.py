"""Writing files so that nobody ever reads half of one.

Each write goes to a temporary name in the same folder, is flushed to the disk, and then takes the real name in one
step. A process killed at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import RunError

TEMPORARY_SUFFIX = ".part"


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it becomes `path`, on an error it is removed.

    Raises RunError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", suffix=TEMPORARY_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"Could not write {path}: {error.strerror or error}. "
            "Free some space or choose a folder that can be written."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as JSON atomically; NaN and infinities are refused, since other readers choke on them."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Tensors are made contiguous and moved to the CPU."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file(
                {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()},
                str(temporary),
                metadata=dict(metadata or {}),
            )
        except Exception as error:
            # safetensors wraps I/O failures in an exception of its own
            if isinstance(error, OSError) or "I/O" in str(error) or "os error" in str(error).lower():
                raise OSError(getattr(error, "errno", None), str(error)) from error
            raise


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that comes from outside.

    Raises ValueError for all that is not plain JSON: other bytes than UTF-8, NaN, Infinity and numbers as large, lists
    in lists without end. The library lets some of these through and fails on others in its own ways.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("lists or tables are nested too deep") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def digest(*parts: str | bytes, length: int = 16) -> str:
    """A short hexadecimal SHA-256 over `parts`, each preceded by its length so that no two lists collide."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:length]


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_folder(folder: Path) -> None:
    # A rename is on disk only once its folder is; Windows neither needs nor allows this.
    if os.name == "posix":
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
