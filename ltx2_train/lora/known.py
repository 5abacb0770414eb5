"""The layers that an LTX-2 transformer has, for tools that have no checkpoint at hand.

Some programs write underscores for the dots of a layer's name, and only the names themselves say which underscore was
a dot. One block stands for all of them, whatever its number; both versions are taken together.
"""

from __future__ import annotations

import functools
import re

import torch
from torch import nn

from ..models.text import TextConnectors
from ..models.transformer import LTXTransformer, TransformerConfig
from .names import flat_names
from .targets import linear_size

_NUMBER = re.compile(r"((?:^|[._])transformer_(?:1d_)?blocks[._])(\d+)(?=[._])")
_CONNECTORS = {"connector_num_layers": 1, "connector_num_attention_heads": 2, "connector_attention_head_dim": 8}


def known_layer(name: str) -> str | None:
    """The dotted name of the layer that a LoRA calls `name`, with dots or with underscores; None if there is none."""
    numbers = [found[2] for found in _NUMBER.finditer(name)]
    found = _layers().get(_NUMBER.sub(r"\g<1>0", name))
    if found is None:
        return None
    return _NUMBER.sub(rf"\g<1>{numbers[0]}", found) if numbers else found


@functools.cache
def _layers() -> dict[str, str]:
    """Every spelling of a layer of block 0, and of those outside of the blocks -> its dotted name."""
    names: list[str] = []
    with torch.device("meta"):
        for newer in (False, True):
            config = TransformerConfig(
                num_layers=1,
                cross_attention_adaln=newer,
                apply_gated_attention=newer,
                caption_proj_before_connector=newer,
            )
            names += _linears(LTXTransformer(config, "av"))
            names += _linears(TextConnectors({**_CONNECTORS, "connector_apply_gated_attention": newer}, "av"))
    names += [f"text_embedding_projection.{part}aggregate_embed" for part in ("", "video_", "audio_")]
    return {spelled: name for name in names for spelled in (name, *flat_names(name))}


def _linears(model: nn.Module) -> list[str]:
    return [path for path, module in model.named_modules() if linear_size(module) is not None]
