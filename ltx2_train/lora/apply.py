"""Put a LoRA file round the linears of a model, to draw samples with it: whatever layers, ranks and alphas it has."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .adapter import Adapter
from .file import LoraFile
from .fit import fitting, linear_sizes
from .inject import place_module
from .layer import LoRALinear
from .others import OtherEntry, layer_of
from .targets import block_of


@dataclass(frozen=True)
class AppliedLora:
    """The layers of a LoRA file round the linears of a model, and the names of those that have no place in it."""

    layers: dict[str, Adapter]
    left_out: list[str]

    def set_strength(self, strength: float) -> None:
        """Scale all layers; 0 gives exactly the model without the LoRA."""
        for layer in self.layers.values():
            layer.strength = float(strength)

    def remove(self, model: nn.Module) -> None:
        """Put the original linears back into `model`."""
        for name, layer in self.layers.items():
            place_module(model, name, layer.base)


def apply_file(
    model: nn.Module,
    file: LoraFile,
    with_block: Callable[[int], AbstractContextManager[Any]] = lambda block: nullcontext(),
) -> AppliedLora:
    """Wrap every linear that `file` has a layer for. `with_block(n)` is a context in which the
    weights of block n are there.

    Raises ConfigError where nothing fits or a size differs, with what the file holds. What has no place in the model,
    such as sound in video mode, is left out and named in the result.
    """
    entries, left_out = fitting(file, linear_sizes(model))
    layers: dict[str, Adapter] = {}
    for name, entry in entries.items():
        base = model.get_submodule(name)
        if isinstance(entry, OtherEntry):
            with with_block(int(block_of(name) or 0)):
                layer: Adapter = layer_of(base, entry)
        else:
            layer = plain = LoRALinear(base, entry.rank, entry.scale * entry.rank)
            with torch.no_grad():
                plain.lora_A.copy_(entry.down)
                plain.lora_B.copy_(entry.up)
        place_module(model, name, layer)
        layers[name] = layer
    return AppliedLora(layers, left_out)
