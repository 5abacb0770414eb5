"""What ComfyUI's own nodes pass along their wires, LoRAs and sounds, from and to the files that the core works with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import DataError
from ..ltx2_train.files import digest, write_tensors
from . import host


class WireLora(dict[str, Any]):
    """A table of CPU tensors, as the nodes of ComfyUI pass a LoRA on, that knows the metadata of its file.

    The metadata may hold its scale and say what base it is for.
    """

    def __init__(self, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)


class FileLora(WireLora):
    """A LoRA file on the wire whose tensors are read when they are asked for, so that ten of them cost nothing."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.path = path
        with safe_open(str(path), "pt") as file:
            super().__init__(dict.fromkeys(file.keys()), file.metadata() or {})

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise KeyError(name)
        return next(iter(self._read([name])))[1]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def items(self) -> Any:
        return self._read(list(self))

    def values(self) -> Any:
        return [tensor for _, tensor in self._read(list(self))]

    def _read(self, names: list[str]) -> list[tuple[str, Any]]:
        from safetensors import safe_open

        with safe_open(str(self.path), "pt") as file:
            # copies, as in read_wire_lora
            return [(name, file.get_tensor(name).clone()) for name in names]


def lora_file(tensors: Mapping[str, Any]) -> Path:
    """The LoRA on the wire as a file: its own, or one that is named by what is in it and made once."""
    if isinstance(tensors, FileLora):
        return tensors.path
    metadata = tensors.metadata if isinstance(tensors, WireLora) else {}
    parts = [f"{name} {tuple(tensor.shape)} {tensor.float().sum().item()}" for name, tensor in sorted(tensors.items())]
    parts += [f"{name}={text}" for name, text in sorted(metadata.items())]
    path = host.runs_folder() / "start_loras" / f"{digest(*parts)}.safetensors"
    if not path.exists():
        write_tensors(path, tensors, metadata)
    return path


def read_wire_lora(path: Path) -> WireLora:
    """A LoRA file as a table of CPU tensors."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        # copies, since a tensor that is read in place keeps the file open, and Windows would refuse to write it again
        return WireLora({name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {})


def read_audio(path: Path) -> dict[str, Any] | None:
    """The sound of a sound or video file; None where it has none."""
    import torch

    try:
        sound = core.read_sound(path)
    except DataError:
        return None
    return {"waveform": torch.from_numpy(sound.samples)[None], "sample_rate": sound.rate}
