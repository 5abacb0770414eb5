"""LoRA files as other programs write them, and what a file does to each weight."""

import torch
from safetensors.torch import save_file

from ltx2_train.events import Events
from ltx2_train.lora.source import LoraSource

BLOCK = "transformer_blocks.0"


def pair(rank, size=(12, 10), seed=0):
    generator = torch.Generator().manual_seed(seed)
    out, inputs = size
    return torch.randn(rank, inputs, generator=generator), torch.randn(out, rank, generator=generator)


def write_lora(
    path, layers, metadata=None, spell="diffusion_model.{}.lora_{}.weight", alphas=None, dtype=torch.float32
):
    """Write {layer: (A, B)} to `path`; returns the path."""
    tensors = {}
    for layer, (a, b) in layers.items():
        tensors[spell.format(layer, "A")] = a.to(dtype).contiguous()
        tensors[spell.format(layer, "B")] = b.to(dtype).contiguous()
    for layer, alpha in (alphas or {}).items():
        tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, path, metadata or {})
    return path


def changes(path):
    """Layer -> the weight change of the file at strength 1."""
    with LoraSource(path, "A test", Events()) as source:
        return {layer: torch.mm(*reversed(source.factors(layer))) for layer in source.layers}


def metadata(path):
    with LoraSource(path, "A test", Events()) as source:
        return source.metadata
