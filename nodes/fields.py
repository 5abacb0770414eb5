"""Fields of the settings: the one at a dotted path, and those below a group."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def field_at(kind: type[BaseModel], path: str) -> FieldInfo:
    """The field at a dotted path, with the default that it has there."""
    *groups, last = path.split(".")
    defaults: object = None
    for group in groups:
        field = _here(kind, group, defaults)
        inner, defaults = field.annotation, field.default
        assert isinstance(inner, type), f"{path}: {group} is not a group"
        assert issubclass(inner, BaseModel), f"{path}: {group} is not a group"
        kind = inner
    return _here(kind, last, defaults)


def _here(kind: type[BaseModel], name: str, defaults: object) -> FieldInfo:
    """The field `name` of `kind`, whose default the group that holds it may set (`defaults`, its own)."""
    field = kind.model_fields[name]
    if not isinstance(defaults, kind) or getattr(defaults, name) == field.get_default(call_default_factory=True):
        return field
    field = copy(field)
    field.default = getattr(defaults, name)
    return field


def leaves(kind: type[BaseModel], before: str = "", defaults: object = None) -> Iterator[tuple[str, FieldInfo]]:
    """Dotted path and field of every setting of `kind`, in order."""
    for name in kind.model_fields:
        field = _here(kind, name, defaults)
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{before}{name}.", field.default)
        else:
            yield before + name, field


def settings_below(kind: type[BaseModel], *tables: str) -> list[tuple[str, FieldInfo]]:
    """Path and field of the settings in `tables` of `kind` ("" is all of it): the oldest first, since workflows store
    values by position."""
    found = [one for one in leaves(kind) if any(not table or one[0].startswith(f"{table}.") for table in tables)]
    return sorted(found, key=lambda one: [int(part) for part in str(marks_of(one[1]).get("since", "0.1")).split(".")])


def is_advanced(field: FieldInfo) -> bool:
    """Whether the setting is none for a first look."""
    return bool(marks_of(field).get("advanced"))


def marks_of(field: FieldInfo) -> dict[str, Any]:
    """What the setting says of itself besides its bounds and its help: "unit", "since", "advanced"."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
