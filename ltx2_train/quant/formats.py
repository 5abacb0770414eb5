"""The ways a frozen weight can be stored, by name. A new one is a subclass of QuantLinear, added to CLASSES here.

Everything else follows from its `storage`: the choices of quant.format and their help, the plan, the probe, the report.
"""

from __future__ import annotations

from torch import nn

from ..registry import Registry
from .awq import AwqNf4
from .base import QuantLinear, QuantNumbers
from .fp8 import Fp8, Fp8Cast, Fp8Uz, KeptFp8
from .int8 import Int8, Int8Rotated, KeptConvrot
from .mxfp8 import KeptMxfp8
from .nf4 import Nf4
from .nvfp4 import KeptNvfp4
from .quanto import Int2, Int4

CLASSES = (Fp8, Fp8Cast, Fp8Uz, Int8, Int8Rotated, Nf4, Int4, Int2, KeptFp8, KeptMxfp8, KeptNvfp4, KeptConvrot, AwqNf4)

# what quant.format can ask for, and all the ways there are
FORMATS: Registry[type[QuantLinear]] = Registry("quant.format")
STORED: Registry[type[QuantLinear]] = Registry("way of storing a weight")


def add_format(kind: type[QuantLinear]) -> None:
    """Enter `kind` into the tables."""
    STORED.add(kind.storage.name, kind)
    if kind.storage.about:
        FORMATS.add(kind.storage.name, kind)


for _class in CLASSES:
    add_format(_class)


def planned_formats() -> list[str]:
    """The formats that quant.format = auto may choose, the closest to the original first."""
    planned = [kind.storage for kind in FORMATS.values() if kind.storage.planned]
    return [storage.name for storage in sorted(planned, key=lambda storage: -storage.snr_db)]


def quantize_linear(linear: nn.Linear, format: str, settings: QuantNumbers) -> QuantLinear:
    """`linear` stored in `format`, on its device; it computes in the dtype of `linear`.

    Raises ConfigError where the format is unknown, its library is missing, or it cannot hold this shape.
    """
    weight = linear.weight.detach()
    bias = None if linear.bias is None else linear.bias.detach()
    return FORMATS.get(format).quantize(weight, bias, settings, weight.dtype)
