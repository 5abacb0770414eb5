"""A text encoder on disk, one file or a folder of several: where its tensors lie and how they are stored."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError
from ..files import parse_json
from .keys import QUANTIZATION_MARK
from .reader import TensorFile, TensorInfo
from .stored import KEPT_FP8, StoredLinears, declared_layers, find_stored, read_marks

if TYPE_CHECKING:
    from typing_extensions import Self

SPIECE = "spiece_model"  # the tensor in a single file whose bytes are a sentencepiece model
_PART = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")


@dataclass(frozen=True)
class EncoderFiles:
    """An opened text encoder; only headers have been read. Close it, or use it in a `with` block."""

    path: Path
    files: tuple[TensorFile, ...]
    tensors: Mapping[str, tuple[TensorFile, str]]  # the text tower's name -> where it lies
    stored: StoredLinears  # which layers are quantized, by the text tower's names

    @property
    def name(self) -> str:
        """Its file or folder name, for messages."""
        return self.path.name

    def info(self, name: str) -> TensorInfo:
        file, stored = self.tensors[name]
        return file.tensors[stored]

    def read(self, name: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> torch.Tensor:
        file, stored = self.tensors[name]
        return file.read(stored, device, dtype)

    def read_bytes(self, name: str, start: int = 0, count: int | None = None) -> bytes:
        file, stored = self.tensors[name]
        return file.read_bytes(stored, start, count)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def packed(self, name: str) -> bool:
        """Whether the tensor belongs to a layer that is stored quantized."""
        return name.rpartition(".")[0] in self.stored.kinds

    @property
    def nbytes(self) -> int:
        """Bytes of the text tower as stored."""
        return sum(self.info(name).nbytes for name in self.tensors)

    def close(self) -> None:
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def folder_config(path: Path, kinds: Collection[str], needed: str, usable: str) -> Mapping[str, Any]:
    """config.json of the folder at `path`. Raises CheckpointError where its model_type is none of `kinds`; `needed` and
    `usable` say what will do."""
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"The text encoder folder {path} has no config.json. Choose the folder that holds config.json and "
            "the .safetensors files of the model, or a single .safetensors file."
        )
    try:
        config = parse_json(file.read_bytes())
        kind = str(config.get("model_type", ""))
        dict(config.get("text_config", config))
    except (ValueError, AttributeError, TypeError):
        raise CheckpointError(f"{file} is not readable. Download it again.") from None
    if kind not in kinds:
        raise CheckpointError(
            f"The text encoder folder {path} holds a model of type {kind or 'unknown'!r}; {needed}. {usable}"
        )
    return config


def folder_tensors(path: Path, usable: str) -> tuple[tuple[TensorFile, ...], dict[str, TensorFile]]:
    """The files of the folder, and the one that holds each tensor: the index decides, where there is one."""
    index = path / "model.safetensors.index.json"
    places = _index(index) if index.is_file() else None
    names = sorted(set(places.values())) if places is not None else _shards(path, usable)
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"The text encoder folder {path} is incomplete: {', '.join(missing)} of {len(names)} files missing. "
            "Finish the download."
        )
    files = {name: TensorFile(path / name) for name in names}
    if places is not None:
        absent = next((tensor for tensor, name in places.items() if tensor not in files[name]), None)
        if absent is not None:
            raise CheckpointError(
                f"The index of the text encoder folder {path} says that {absent} lies in {places[absent]}, but it does "
                "not: index and files are of different downloads. Download the folder again."
            )
        return tuple(files.values()), {tensor: files[name] for tensor, name in places.items()}
    everything: dict[str, TensorFile] = {}
    for file in files.values():
        for tensor in file.tensors:
            if tensor in everything:
                raise CheckpointError(
                    f"The text encoder folder {path} holds {tensor} twice, in {everything[tensor].name} and in "
                    f"{file.name}, and no model.safetensors.index.json that says which counts. Keep the files of one "
                    "model in a folder."
                )
            everything[tensor] = file
    return tuple(files.values()), everything


def _index(index: Path) -> dict[str, str]:
    """tensor -> file name. Raises CheckpointError where the index cannot be read."""
    try:
        table = parse_json(index.read_bytes())["weight_map"]
        if all(isinstance(name, str) for name in table.values()):
            return dict(table)
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise CheckpointError(f"{index} is not readable. Download it again.")


def _shards(path: Path, usable: str) -> list[str]:
    """The names of the weight files; of a model in numbered parts those that should be there."""
    found = sorted(file.name for file in path.glob("*.safetensors"))
    if not found:
        raise CheckpointError(f"The text encoder folder {path} has no .safetensors files. {usable}")
    names = set(found)
    for name in found:
        if match := _PART.fullmatch(name):
            start, number, total = match.groups()
            width = len(number)
            names |= {f"{start}-{part:0{width}d}-of-{total}.safetensors" for part in range(1, int(total) + 1)}
    return sorted(names)


def stored_layers(
    path: Path,
    prefix: str,
    infos: Mapping[str, TensorInfo],
    everything: Mapping[str, TensorFile],
    usable: str,
    embedding: str,
) -> StoredLinears:
    """How the text tower stores its layers, of which `embedding` is read row by row. Raises CheckpointError where one
    cannot be read.

    Marks and tables of layers use the names of their file; a mark for the whole file may stand outside of the tower.
    """
    marks: dict[str, object] = {}
    for file in {file.path: file for file in everything.values()}.values():
        found = declared_layers(file.metadata) | read_marks(file, file.tensors, sample=True)
        marks |= {layer.removeprefix(prefix): entry for layer, entry in found.items()}
    seen = dict(infos)
    for name, file in everything.items():
        if name.rpartition(".")[2] == QUANTIZATION_MARK:
            seen[QUANTIZATION_MARK] = file.tensors[name]
    stored = find_stored(seen, {}, marks)
    text = stored.complaint(usable=usable)
    kind = stored.kinds.get(embedding, KEPT_FP8)
    if not text and kind != KEPT_FP8:
        text = f"{kind.removeprefix('kept_')} ({embedding}), of which no single row can be read. {usable}"
    if text:
        raise CheckpointError(f"The text encoder {path.name} is stored as {text}")
    return stored
