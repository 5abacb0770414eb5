"""Put a LoRA file round the linears of a model, to draw samples with it: whatever layers, ranks and alphas it has."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..errors import ConfigError
from .file import LoraFile
from .inject import place
from .layer import LoRALinear
from .targets import is_linear


@dataclass(frozen=True)
class AppliedLora:
    """The layers of a LoRA file round the linears of a model."""

    layers: dict[str, LoRALinear]

    def set_strength(self, strength: float) -> None:
        """Scale all layers; 0 gives exactly the model without the LoRA."""
        for layer in self.layers.values():
            layer.strength = float(strength)


def apply_file(model: nn.Module, file: LoraFile) -> AppliedLora:
    """Wrap every linear that `file` has a layer for.

    Layers of a branch the model was built without (audio, in video mode) are left out. Raises ConfigError where
    nothing fits, with what the file holds.
    """
    names = [name for name, module in model.named_modules() if is_linear(module)]
    found, _ = file.match(names)
    if not found:
        raise ConfigError(
            f"{file.path.name} has no layer that this model has: it holds {file.describe()}. "
            "It was made for another model, or for a branch that is not loaded."
        )
    layers: dict[str, LoRALinear] = {}
    for name, entry in found.items():
        base = model.get_submodule(name)
        if (entry.up.shape[0], entry.down.shape[1]) != (base.out_features, base.in_features):
            raise ConfigError(
                f"{file.path.name} is for another model: {name} is {entry.up.shape[0]}x{entry.down.shape[1]} there, "
                f"{base.out_features}x{base.in_features} here."
            )
        layer = LoRALinear(base, entry.rank, entry.scale * entry.rank)
        with torch.no_grad():
            layer.lora_A.copy_(entry.down)
            layer.lora_B.copy_(entry.up)
        place(model, name, layer)
        layers[name] = layer
    return AppliedLora(layers)
