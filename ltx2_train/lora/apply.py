"""Put a LoRA file round the linears of a model, to draw samples with it: whatever layers, ranks and alphas it has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .file import LoraFile
from .fit import fitting, linear_sizes
from .inject import place
from .layer import LoRALinear


@dataclass(frozen=True)
class AppliedLora:
    """The layers of a LoRA file round the linears of a model, and the names of those that have no place in it."""

    layers: dict[str, LoRALinear]
    left_out: list[str]

    def set_strength(self, strength: float) -> None:
        """Scale all layers; 0 gives exactly the model without the LoRA."""
        for layer in self.layers.values():
            layer.strength = float(strength)

    def remove(self, model: nn.Module) -> None:
        """Put the original linears back into `model`."""
        for name, layer in self.layers.items():
            place(model, name, layer.base)


def apply_file(model: nn.Module, file: LoraFile) -> AppliedLora:
    """Wrap every linear that `file` has a layer for.

    Raises ConfigError where nothing fits or a size differs, with what the file holds. What has no place in the model,
    such as sound in video mode, is left out and named in the result.
    """
    entries, left_out = fitting(file, linear_sizes(model))
    layers: dict[str, LoRALinear] = {}
    for name, entry in entries.items():
        layer = LoRALinear(model.get_submodule(name), entry.rank, entry.scale * entry.rank)
        with torch.no_grad():
            layer.lora_A.copy_(entry.down)
            layer.lora_B.copy_(entry.up)
        place(model, name, layer)
        layers[name] = layer
    return AppliedLora(layers, left_out)
