"""What ComfyUI's own nodes pass along their wires, LoRAs and sounds, from and to the files that the core works with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import DataError
from ..ltx2_train.files import digest, write_tensors
from . import host


def lora_file(tensors: dict[str, Any]) -> Path:
    """The LoRA on the wire as a file, named by what is in it; made once."""
    sizes = [f"{name} {tuple(tensor.shape)} {tensor.float().sum().item()}" for name, tensor in sorted(tensors.items())]
    path = host.runs_folder() / "start_loras" / f"{digest(*sizes)}.safetensors"
    if not path.exists():
        write_tensors(path, tensors)
    return path


def read_lora(path: Path) -> dict[str, Any]:
    """A LoRA file as a table of CPU tensors."""
    from safetensors.torch import load_file

    # copies, since a tensor that is read in place keeps the file open, and Windows would refuse to write it again
    return {name: tensor.clone() for name, tensor in load_file(str(path)).items()}


def read_audio(path: Path) -> dict[str, Any] | None:
    """The sound of a sound or video file; None where it has none."""
    import torch

    try:
        sound = core.read_sound(path)
    except DataError:
        return None
    return {"waveform": torch.from_numpy(sound.samples)[None], "sample_rate": sound.rate}
