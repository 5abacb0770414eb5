"""A trained checkpoint: the file of the base with the trained weights in it, all else copied as it is.

It has the names, shapes, dtypes and the metadata of the base, so whatever loads the one loads the other. One tensor is
in memory at a time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import atomic
from ..lora.metadata import shortened, without_paths
from ..weights import keys
from ..weights.reader import TensorFile
from ..weights.writer import TensorEntry, TensorWriter, require_space
from .parts import Gathered

ABOUT = "ltx2_train"  # of the metadata: what the run says of itself, as JSON


def save_checkpoint(base: Path, path: Path, weights: Mapping[str, Tensor | Gathered], about: Mapping[str, Any]) -> None:
    """Write the file `base` with `weights` (by their names in the transformer) in it to `path`, atomically.

    `about` says what it is of; no path gets in. Raises CheckpointError where the base has been taken away or is
    another, or a weight is not finite, and RunError where the disk refuses the file.
    """
    with TensorFile(base) as file:
        names = {in_file(name, file): weight for name, weight in weights.items()}
        for name, weight in names.items():
            if name not in file or file.tensors[name].shape != tuple(weight.shape):
                raise CheckpointError(
                    f"{base} is not the file that the run began with: {name} is missing or has another size. Put the "
                    "base back where it was; the state of the run is not lost."
                )
        entries = {name: TensorEntry(info.dtype, info.shape) for name, info in file.tensors.items()}
        require_space(path, sum(entry.nbytes for entry in entries.values()))
        with atomic(path) as temporary, TensorWriter(temporary, entries, file.metadata | described(about)) as writer:
            for name in sorted(file.tensors, key=lambda name: file.tensors[name].offset):
                weight = names.get(name)
                if weight is None:
                    writer.write_bytes(name, file.pieces(name))
                    continue
                weight = weight.detach()
                if not bool(torch.isfinite(weight).all()):
                    raise CheckpointError(
                        f"{name} has numbers that are not finite. Go on from an earlier state with a lower "
                        "train.learning_rate."
                    )
                writer.write(name, weight.to(file.tensors[name].torch_dtype))


def described(about: Mapping[str, Any]) -> dict[str, str]:
    """The entries that a checkpoint has beside those of its base."""
    text = json.dumps(shortened(without_paths(about)), ensure_ascii=False, sort_keys=True)
    return {ABOUT: text, "step": str(about["step"])}


def maker_of(path: Path) -> tuple[Any, ...] | None:
    """The name of the run that made the checkpoint `path`, and when that began; None where the file does not say it."""
    with TensorFile(path) as file, contextlib.suppress(KeyError, TypeError, ValueError):
        about = json.loads(file.metadata[ABOUT])
        return about["name"], about.get("started")
    return None


def verify_checkpoint(path: Path, base: Path) -> None:
    """Raise CheckpointError where `path` has not exactly the tensors of `base`, by its header."""
    with TensorFile(path) as made, TensorFile(base) as file:
        if made.tensors.keys() != file.tensors.keys():
            raise CheckpointError(f"{path.name} has not the tensors of {base.name}.")
        for name, info in file.tensors.items():
            if (made.tensors[name].dtype, made.tensors[name].shape) != (info.dtype, info.shape):
                raise CheckpointError(f"{path.name}: {name} is not stored as in {base.name}.")


def in_file(name: str, file: TensorFile) -> str:
    """The name that a weight of the transformer has in its file."""
    return f"{keys.transformer_prefix(file.tensors) or ''}{name}"
