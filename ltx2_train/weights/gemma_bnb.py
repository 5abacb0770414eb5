"""Gemma's linears in 8 or 4 bits by bitsandbytes, each quantized on the device as it arrives."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..optional import why_missing
from .gemma_settings import GemmaSettings
from .load import OnLinear


def bitsandbytes_linear(settings: GemmaSettings, dtype: torch.dtype) -> OnLinear | None:
    """What puts `settings.precision` in the place of a linear; None for "stored".

    Raises ConfigError where bitsandbytes is not installed.
    """
    if settings.precision == "stored":
        return None
    require_bitsandbytes(settings)
    import bitsandbytes

    library: Any = bitsandbytes  # its annotations lack much of what its layers and parameters take
    logging.getLogger("bitsandbytes.autograd._functions").addFilter(_not_each_call)

    def replace(path: str, linear: nn.Linear) -> nn.Module | None:
        shape, weight = (linear.in_features, linear.out_features), linear.weight.data
        if settings.precision == "8bit":
            with torch.device("meta"):
                eight = library.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, threshold=6.0)
            # by hand: moving the parameter quantizes on the CPU alone, on a card it would wait for the first use
            values, scales, _ = library.functional.int8_vectorwise_quant(weight.to(torch.float16))
            eight.weight = library.nn.Int8Params(
                values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=scales
            )
            return eight
        if linear.in_features % 32 or linear.out_features % 32:
            return None  # the kernels want whole blocks; no layer of the real Gemma is so small
        with torch.device("meta"):
            four = library.nn.Linear4bit(
                *shape,
                bias=False,
                compute_dtype=dtype,
                compress_statistics=settings.double_quant,
                quant_type=settings.precision,
            )
        # without `module`, which would make a circle that keeps the weights until the next garbage collection
        stored = library.nn.Params4bit(
            weight,
            requires_grad=False,
            compress_statistics=settings.double_quant,
            quant_type=settings.precision,
            blocksize=64 if linear.in_features % 64 == 0 else 32,  # its kernels want whole blocks in a row
        )
        four.weight = stored.to(weight.device)  # this is what quantizes
        return four

    return replace


def quantized_bytes(settings: GemmaSettings, out_features: int, in_features: int) -> int:
    """About what a linear takes as `settings.precision`, which is not "stored"."""
    if settings.precision == "8bit":
        return out_features * (in_features + 4)
    return int(out_features * in_features * (0.52 if settings.double_quant else 0.57))


def require_bitsandbytes(settings: GemmaSettings) -> None:
    """Raise ConfigError where `settings.precision` needs bitsandbytes and it cannot be used."""
    if settings.precision != "stored" and (why := why_missing("bitsandbytes")):
        raise ConfigError(
            f"gemma.precision = {settings.precision} needs the package bitsandbytes, which {why}. Install "
            'it with `pip install bitsandbytes`, or set gemma.precision to "stored": with gemma.placement = "layers" '
            "the whole text encoder runs on a small card."
        )


def _not_each_call(record: logging.LogRecord) -> bool:
    """Lets all pass but what 8 bits would say of every linear of every caption: that fp16 is used inside."""
    return "inputs will be cast" not in str(record.msg)
