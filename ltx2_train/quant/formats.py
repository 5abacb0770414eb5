"""The storage formats of the frozen base, by the names of `quant.format`.

A new one is a subclass of QuantLinear with a `quantize`, added to FORMATS, and its name in the literal of
QuantSettings.format. Raises ConfigError for names that are unknown.
"""

from __future__ import annotations

from torch import nn

from ..registry import Registry
from .base import QuantLinear
from .fp8 import Fp8, Fp8Cast, Fp8Uz
from .int8 import Int8, Int8Rotated
from .nf4 import Nf4
from .quanto import Int2, Int4
from .settings import QuantSettings

FORMATS: Registry[type[QuantLinear]] = Registry("quant.format")
for _format in (Fp8, Fp8Cast, Fp8Uz, Int8, Int8Rotated, Nf4, Int4, Int2):
    FORMATS.add(_format.format, _format)


def quantize_linear(linear: nn.Linear, format: str, settings: QuantSettings) -> QuantLinear:
    """`linear` stored in `format`, on its device; it computes in the dtype of `linear`.

    Raises ConfigError where the format is unknown, its library is missing, or it cannot hold this shape.
    """
    weight = linear.weight.detach()
    bias = None if linear.bias is None else linear.bias.detach()
    return FORMATS.get(format).quantize(weight, bias, settings, weight.dtype)
