"""The settings tree looked at from outside: every setting with its path, help, bounds and other names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..offload import settings as memory
from ..quant import settings as quant
from ..weights import gemma_settings as gemma
from .groups import RunConfig, plain_toml


def walk(kind: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its dotted path, groups opened up."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from walk(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def describe_defaults() -> str:
    """The settings tree as a commented TOML file: help, bounds and default of each."""
    lines: list[str] = []
    group_seen, defaults = "", RunConfig()
    for dotted, field in walk():
        group, key = dotted.rsplit(".", 1)
        if group != group_seen:
            lines += ["", f"[{group}]"]
            group_seen = group
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        bounds = _bounds(field)
        flag = extra.get("community")
        names = [flag] if isinstance(flag, str) else list(flag or [])
        also = [name for name in names if name != key]
        note = " ".join(
            part
            for part in (
                field.description or "",
                f"[{extra['unit']}]" if "unit" in extra else "",
                f"({bounds})" if bounds else "",
                f"Also: {', '.join(also)}." if also else "",
            )
            if part
        )
        lines.append(f"# {note}")
        lines.append(_toml_line(key, reduce(getattr, dotted.split("."), defaults)))
    return "\n".join(lines).strip() + "\n"


def aliases() -> dict[str, str]:
    """Flag name of the community trainer -> dotted path of our setting."""
    table: dict[str, str] = {}
    for dotted, field in walk():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        flag = extra.get("community")
        for name in [flag] if isinstance(flag, str) else list(flag or []):
            table.setdefault(str(name), dotted)
    # switches that no one field stands for; the group itself turns them into its own words
    for group, names in (
        ("quant", quant.COMMUNITY_SWITCHES),
        ("memory", memory.ATTENTION_SWITCHES),
        ("gemma", gemma.COMMUNITY_SWITCHES),
    ):
        table.update({name: f"{group}.{name}" for name in names})
    return table


def _bounds(field: FieldInfo) -> str:
    if get_args(field.annotation) and all(isinstance(choice, str) for choice in get_args(field.annotation)):
        return " | ".join(get_args(field.annotation))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    parts = []
    for limit in field.metadata:
        for name, sign in signs.items():
            if (bound := getattr(limit, name, None)) is not None:
                parts.append(f"{sign} {bound}")
    return ", ".join(parts)


def _toml_line(key: str, default: Any) -> str:
    import tomli_w

    if default is None:
        return f"# {key} ="
    if default == {}:
        return f"{key} = {{}}"
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json")
    return tomli_w.dumps({key: plain_toml(default) if not isinstance(default, Path) else str(default)}).strip()
