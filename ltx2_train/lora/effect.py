"""Whether a LoRA does anything at all: numbers that are finite, and a layer whose factors and scale are not zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..events import Events
from ..weights.reader import TensorFile
from .file import NOT_FINITE, LoraFile, computed_in, read_lora


def why_idle(path: Path | str, events: Events | None = None) -> str:
    """Why a LoRA does nothing, such as "every B is zero"; "" where it does something. All of it is read, a matrix at a
    time.

    Raises CheckpointError where a number of it is NaN or infinite, Stopped when the user stopped.
    """
    path, broken, zeros = Path(path), list[str](), set[str]()
    events = events or Events()
    with TensorFile(path) as file:
        for name, info in file.tensors.items():
            events.check_stop()
            if info.torch_dtype.is_floating_point:
                tensor = file.read(name, dtype=computed_in(info.torch_dtype))
                if not bool(torch.isfinite(tensor).all()):
                    broken.append(name)
                if not bool(tensor.any()):
                    zeros.add(name)
    if broken:
        others = f" (so do {len(broken) - 1} others)" if len(broken) > 1 else ""
        raise CheckpointError(
            f"{path.name} cannot be used: {broken[0]} {NOT_FINITE}{others}. Its training went wrong, or the file is "
            "damaged. Choose one of an earlier step, or fetch it again."
        )
    about = read_lora(path, weights=False)
    if any(key not in zeros for key in about.strange_keys):
        return ""
    return _idle_layers(
        [(_scale(about, name), any(key in zeros for key in _factors_of(about, name))) for name in about.layers]
    )


def does_nothing(file: LoraFile) -> str:
    """Why the layers of a file whose weights have been read change nothing; "" where one does, or there is none."""
    zeros = {
        name: not _is_dora(file, name) and any(not bool(part.any()) for part in entry.tensors)
        for name, entry in file.layers.items()
    }
    return _idle_layers([(_scale(file, name), zero) for name, zero in zeros.items()])


def _idle_layers(layers: Sequence[tuple[float, bool]]) -> str:
    """Why layers, each with its scale and whether one of its factors is zero, change nothing; "" where one does."""
    if not layers or any(scale and not zero for scale, zero in layers):
        return ""
    if not any(scale for scale, _ in layers):
        return "its alpha is 0"
    return "every B is zero" if all(zero for _, zero in layers) else "in every layer alpha is 0 or a factor is zero"


def _is_dora(file: LoraFile, layer: str) -> bool:
    """Whether `layer` has lengths besides, which change the weights by themselves."""
    return layer in file.others and file.others[layer].algo == "dora"


def _scale(file: LoraFile, layer: str) -> float:
    return 1.0 if _is_dora(file, layer) else file.layers[layer].scale


def _factors_of(file: LoraFile, layer: str) -> list[str]:
    """Keys of what is multiplied in `layer`."""
    if _is_dora(file, layer):
        return []
    if layer in file.others:
        return [key for key in file.others[layer].keys if not key.endswith(".alpha")]
    return [file.keys[layer]["down"], file.keys[layer]["up"]]
