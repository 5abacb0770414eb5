"""A LoRA that begins as the low-rank part which the quantized base lacks (LoftQ).

    base = Q,  W ~ Q + B0 A0,  alpha / rank * B A = B0 A0 at the start

The layers are matched by their dotted paths. B is divided by alpha / rank, so that any alpha begins alike. What was
learned is the change since then; `LoRALinear.change` takes B0 A0 out of what is saved, so that the file fits the
original weights, and of what norms and strength mean.

Li et al. 2023, "LoftQ", arXiv:2310.08659.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import ConfigError
from ..weights.load import blueprint
from ..weights.loftq import Loftq
from ..weights.quantize import eligible
from ..weights.reader import TensorFile
from .inject import LoraSet, chosen_layers
from .layer import LoRALinear
from .settings import LoraSettings


def loftq_for(checkpoint: Path | str, mode: str, settings: LoraSettings) -> Loftq:
    """Which quantized linears of `checkpoint` get a LoRA, found from its header.

    Raises ConfigError where the LoRA is of another kind, or starts from a file: what that file holds belongs to the
    original weights.
    """
    if not settings.plain:
        raise ConfigError(
            "quant.loftq begins with a plain LoRA of one rank, and lora.algo or lora.modules ask for another kind. "
            "Switch quant.loftq off, or set lora.algo to lora and leave lora.modules out."
        )
    if settings.weights is not None:
        raise ConfigError(
            "quant.loftq begins with a LoRA of its own, and lora.weights names another. Switch quant.loftq off, or "
            "leave lora.weights out."
        )
    with TensorFile(checkpoint) as file:
        model = blueprint(file, mode)
    chosen = chosen_layers(model, settings)
    return Loftq(settings.rank, [path for path in chosen if eligible(path)])


def apply_loftq(loras: LoraSet, loftq: Loftq) -> None:
    """Let every layer that `loftq` has a part for begin with it.

    Call it after `inject` and before a saved state is laid over the set.
    """
    missing = sorted(set(loftq.initial) - set(loras.layers))
    assert not missing, f"LoftQ layers without a LoRA: {missing[:3]}"
    with torch.no_grad():
        for path, (a, b) in loftq.initial.items():
            layer = loras.layers[path]
            assert isinstance(layer, LoRALinear), type(layer)
            used = a.any(dim=1).to(
                layer.lora_A.device
            )  # rows beyond the layer's own size can only learn if they are not zero
            layer.lora_A.copy_(torch.where(used[:, None], a.to(layer.lora_A), layer.lora_A))
            layer.lora_B.copy_(b.float() / loras.scale)
            layer.initial = (a, b)
