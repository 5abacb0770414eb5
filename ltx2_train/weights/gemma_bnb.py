"""Gemma's linears in 8 or 4 bits by bitsandbytes, each quantized on the device as it arrives."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from ..errors import ConfigError
from .gemma_settings import GemmaSettings
from .load import OnLinear


def bitsandbytes_linear(settings: GemmaSettings, dtype: torch.dtype) -> OnLinear | None:
    """What puts `settings.precision` in the place of a linear; None for "stored".

    Raises ConfigError where bitsandbytes is not installed.
    """
    if settings.precision == "stored":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"gemma.precision = {settings.precision} needs the package bitsandbytes, which is not installed. Install "
            'it with `pip install bitsandbytes`, or set gemma.precision to "stored": with gemma.placement = "layers" '
            "the whole text encoder runs on a small card."
        )
    import bitsandbytes

    def replace(path: str, linear: nn.Linear) -> nn.Module | None:
        if settings.precision != "8bit" and (linear.in_features % 32 or linear.out_features % 32):
            return None  # the kernels want whole blocks; no layer of the real Gemma is so small
        shape, weight = (linear.in_features, linear.out_features), linear.weight.data
        with torch.device("meta"):
            if settings.precision == "8bit":
                made = bitsandbytes.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0)
            else:
                made = bitsandbytes.nn.Linear4bit(
                    *shape,
                    bias=False,
                    compute_dtype=dtype,
                    compress_statistics=settings.double_quant,
                    quant_type=settings.precision,
                )
        if settings.precision == "8bit":
            stored = bitsandbytes.nn.Int8Params(weight.to(torch.float16), requires_grad=False, has_fp16_weights=False)
        else:
            stored = bitsandbytes.nn.Params4bit(
                weight,
                requires_grad=False,
                compress_statistics=settings.double_quant,
                quant_type=settings.precision,
                blocksize=64 if linear.in_features % 64 == 0 else 32,  # its kernels want whole blocks in a row
                module=made,
            )
        made.weight = stored.to(weight.device)  # this is what quantizes
        return made

    return replace
