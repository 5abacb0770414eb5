"""Rows of numbers that a user writes into a widget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..ltx2_train.errors import ConfigError

N = TypeVar("N", int, float)


def numbers_of(text: str, widget: str, kind: Callable[[str], N]) -> list[N]:
    """The numbers in `text`, with commas, semicolons or spaces between. Raises ConfigError where one is none."""
    numbers = []
    for word in text.replace(";", " ").replace(",", " ").split():
        try:
            numbers.append(kind(word))
        except ValueError:
            wanted = "whole numbers" if kind is int else "numbers"
            raise ConfigError(f"{widget}: {word!r} is not one of them. Write {wanted} with commas between.") from None
    return numbers
