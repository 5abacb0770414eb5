"""Writing a LoRA in the keys that ComfyUI loads."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..device import DTYPES
from ..files import write_tensors
from .dora import SCALE
from .file import PREFIX
from .inject import LoraSet
from .layer import LoRALinear
from .low_rank import factored, of_rank
from .metadata import describe_run


def save_lora(
    path: Path | str, lora_set: LoraSet, metadata: Mapping[str, Any], dtype: torch.dtype | str = torch.bfloat16
) -> None:
    """Write `lora_set` atomically, with alpha / rank multiplied into B, or into the first factor of other kinds.

    Where it began with LoftQ, the beginning is taken out again, so that the file fits the original weights; it then
    has twice the rank, and the metadata say so.

    `metadata` says what the LoRA is of; metadata.describe_run turns it into strings and leaves out every path.
    `dtype` is a torch dtype or "bf16", "fp16", "fp32". Raises RunError where the disk refuses the file.
    """
    dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
    tensors: dict[str, Tensor] = {}
    doubled = any(isinstance(layer, LoRALinear) and layer.initial is not None for layer in lora_set.layers.values())
    for module, layer in lora_set.layers.items():
        parts = layer.exported()
        if doubled:
            assert isinstance(layer, LoRALinear), type(layer)
            parts = dict(zip(parts, of_rank(*factored(*layer.change()), 2 * lora_set.rank), strict=True))
        for end, tensor in parts.items():
            # lengths of columns in few digits would change every weight by more than was learned
            tensors[f"{PREFIX}{module}.{end}"] = tensor.to("cpu", torch.float32 if end == SCALE else dtype).contiguous()
    rank = 2 * lora_set.rank if doubled else lora_set.rank
    settings = lora_set.settings
    about = {**metadata, **({} if settings.plain else {"algo": settings.algo}), "hash": tensors_hash(tensors)}
    strings = describe_run(about, rank, rank if doubled else lora_set.alpha, lora_set.branches())
    write_tensors(path, tensors, strings)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes of the tensors by name, which is what programs that list LoRAs know a file by."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
