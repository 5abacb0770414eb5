"""Whether a file of weights looks like a download that did not end: of full size from the start, and zero where nothing
has come yet. Its header is whole, so that nothing else tells."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..errors import CheckpointError
from .reader import TensorFile

_LARGE = 65_536  # bytes; smaller weights may well be zero
_LOOKS = 64
_BYTES = 1024


def unfinished(path: Path) -> str:
    """A sentence about the safetensors file at `path`, or those of a folder, where large weights are zero; else ""."""
    zero, count = [], 0
    folder = path / "text_encoder" if (path / "text_encoder").is_dir() else path  # of a whole pipeline
    for one in sorted(folder.glob("*.safetensors")) if folder.is_dir() else (path,):
        with contextlib.suppress(CheckpointError), TensorFile(one) as file:  # what cannot be read is told elsewhere
            large = [n for n, info in file.tensors.items() if n.endswith(".weight") and info.nbytes >= _LARGE]
            large.sort(key=lambda name, file=file: file.tensors[name].offset)
            looked = large[:: max(1, len(large) // _LOOKS)] + large[-1:]
            count += len(looked)
            zero += [
                f"{one.name}, {name}"
                for name in dict.fromkeys(looked)
                if not file.read_bytes(name, file.tensors[name].nbytes // 2, _BYTES).strip(b"\0")
            ]
    if not zero:
        return ""
    return (
        f"{path.name}: {len(zero)} of {count} large weights are zero where they were looked at, first {zero[0]}. "
        "A download that did not end looks so. Compare size and hash with those at its source."
    )
