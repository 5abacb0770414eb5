"""A LoRA that travels along a wire as a table of tensors, as the file that the core works with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..ltx2_train.files import digest, write_tensors
from . import host


def lora_file(tensors: dict[str, Any]) -> Path:
    """The LoRA on the wire as a file, named by what is in it; made once."""
    sizes = [f"{name} {tuple(tensor.shape)} {tensor.float().sum().item()}" for name, tensor in sorted(tensors.items())]
    path = host.runs_folder() / "start_loras" / f"{digest(*sizes)}.safetensors"
    if not path.exists():
        write_tensors(path, tensors)
    return path
