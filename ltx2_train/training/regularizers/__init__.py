"""Regularizers: terms and changes of a step that hold a LoRA to the base, to itself, or help it along. One class each.

base.py says what a regularizer is, table.py lists them, together.py is what a run keeps of them.
"""

from .base import Kit
from .together import Regularizers

__all__ = ["Kit", "Regularizers"]
