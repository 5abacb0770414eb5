"""What the weights of a transformer take, stored in one format or another: found where tensors have sizes only.

The plan of a run and the room for drawing samples both ask here, so they cannot disagree.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import torch
from torch import nn

from .config import RunConfig
from .device import DTYPES
from .full.choose import chosen_weights
from .lora.inject import inject
from .models.transformer import LTXTransformer, TransformerConfig
from .quant.formats import FORMATS, STORED
from .weights.keys import BLOCKS
from .weights.quantize import quantized_paths
from .weights.reader import TensorFile
from .weights.stored import find_stored


def stored_as(file: TensorFile) -> str:
    """The format that takes as much room as what `file` has its blocks in; "" where they are not quantized."""
    kinds = Counter(find_stored(file.tensors, file.metadata).in_blocks().values())
    storage = STORED.get(kinds.most_common(1)[0][0]).storage if kinds else None
    return "" if storage is None else storage.like or storage.name


def meta_model(
    config: TransformerConfig,
    run: RunConfig,
    format: str,
    blocks: int,
    device: str = "meta",
    source: torch.dtype = torch.bfloat16,
) -> tuple[LTXTransformer, int]:
    """The model with `blocks` blocks in the dtype of the run, its linears stored in `format`, and the LoRA in place, or
    the weights that are trained themselves wanting gradients.

    `source` is the dtype of the file, which scales of quantized weights follow; that of the published ones at first.
    Returns it with the number of values that are trained.
    """
    dtype = DTYPES[run.model.precision]
    with torch.device(device):
        model = LTXTransformer(replace(config, num_layers=blocks), run.model.mode)
    model.to(dtype).requires_grad_(False)
    if format != "none":
        _quantize_blocks(model, format, run, source)
    if run.train.what == "full":
        return model, _want_gradients(model, config.num_layers, run)
    loras = inject(model, run.settled_lora, torch.Generator().manual_seed(0))
    return model, sum(parameter.numel() for parameter in loras.parameters())


def _want_gradients(model: LTXTransformer, total: int, run: RunConfig) -> int:
    """Mark what is trained of a model that stands for one of `total` blocks: a weight of a block where it is trained in
    any of them. Returns how many numbers that are."""
    chosen = {_in_block(name, 0) for name in chosen_weights(names_of(model, total), run.full)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_in_block(name, 0) in chosen)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def names_of(model: LTXTransformer, total: int) -> list[str]:
    """The names of the weights of a model of `total` blocks like the first of `model`."""
    first = f"{BLOCKS}.0."
    outside, block = [], []
    for name, _ in model.named_parameters():
        if name.startswith(first):
            block.append(name)
        elif not name.startswith(f"{BLOCKS}."):
            outside.append(name)
    return [*outside, *(_in_block(name, number) for number in range(total) for name in block)]


def _in_block(name: str, number: int) -> str:
    """`name`, where it is of a block, as that of block `number`."""
    if not name.startswith(f"{BLOCKS}."):
        return name
    return f"{BLOCKS}.{number}.{name.split('.', 2)[2]}"


def _quantize_blocks(model: LTXTransformer, format: str, run: RunConfig, source: torch.dtype) -> None:
    """Store the linears that a quantized base has so in `format`, as if a file had them in `source`."""
    on_meta: dict[tuple[torch.Size, bool], nn.Module] = {}  # those of one size are alike there
    for path in quantized_paths(model):
        parent, _, leaf = path.rpartition(".")
        linear = model.get_submodule(path)
        assert isinstance(linear, nn.Linear), path
        weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        key = (weight.shape, bias is not None)
        if key in on_meta:
            stored = copy.deepcopy(on_meta[key])
        else:
            stored = FORMATS.get(format).quantize(weight.to(source), bias, run.quant, weight.dtype)
            if weight.is_meta:
                on_meta[key] = stored
        setattr(model.get_submodule(parent), leaf, stored)


def frozen_bytes(model: LTXTransformer) -> tuple[int, int]:
    """Bytes of the base of `model` inside of its blocks, and outside of them."""
    inside = sum(_frozen(block) for block in model.transformer_blocks)
    return inside, _frozen(model) - inside


def _frozen(module: nn.Module) -> int:
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.nbytes for tensor in tensors if not tensor.requires_grad)
