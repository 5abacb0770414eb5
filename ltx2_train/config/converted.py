"""What converters of values of other programs return, and how several of them read one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .lycoris import literal


class ValuePart(NamedTuple):
    """A part of a value that has a row of its own."""

    name: str
    value: Any


class ReadWith(NamedTuple):
    """Stands for a value that the converter of another name reads: what becomes of that name becomes of it."""

    name: str


Found = list["tuple[str, Any] | ValuePart | ReadWith"]
ValueConverter = Callable[[Any, str, Mapping[str, Any]], Found]


def pairs(value: Any, name: str, whole: Mapping[str, Any]) -> Found:
    """["a=1", "b=[2, 3]"], or a table, as parts `name.a` and `name.b`."""
    if isinstance(value, Mapping):
        return [ValuePart(f"{name}.{key}", inner) for key, inner in value.items()]
    parts: Found = []
    for text in [value] if isinstance(value, str) else value:
        key, sign, raw = str(text).partition("=")
        if not sign or not key.strip():
            raise ValueError(f"{text!r} is not of the form key=value")
        # "modules.<name>.<param>" and "init.<param>" stand under their first word
        parts.append(ValuePart(f"{name}.{key.strip().split('.')[0]}", literal(raw.strip())))
    return parts
