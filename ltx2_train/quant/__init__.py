"""How a frozen weight is stored and multiplied. `base` says what all formats share, `formats` lists them."""

from .base import QuantLinear
from .formats import FORMATS, quantize_linear
from .settings import QuantSettings

__all__ = ["FORMATS", "QuantLinear", "QuantSettings", "quantize_linear"]
