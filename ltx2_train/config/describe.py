"""The settings tree looked at from outside: every setting with its path, help, bounds and other names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..offload import settings as memory
from ..quant import settings as quant
from ..settings import limits, model_in
from ..weights import gemma_settings as gemma
from .groups import RunConfig, plain_toml


def walk_settings(kind: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its dotted path, groups opened up."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from walk_settings(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def groups() -> dict[str, set[str]]:
    """Group -> names of the settings, and of the groups, in it."""
    return {
        name: set(inner.model_fields) if (inner := model_in(field.annotation)) is not None else set()
        for name, field in RunConfig.model_fields.items()
    }


def describe_defaults() -> str:
    """The settings tree as a commented TOML file: help, bounds and default of each."""
    lines: list[str] = []
    group_seen, defaults = "", RunConfig()
    for dotted, field in walk_settings():
        group, key = dotted.rsplit(".", 1)
        if group != group_seen:
            lines += ["", f"[{group}]"]
            group_seen = group
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        limits = bounds_text(field)
        also = [name for name in community_names(field) if name != key]
        note = " ".join(
            part
            for part in (
                field.description or "",
                f"[{extra['unit']}]" if "unit" in extra else "",
                f"({limits})" if limits else "",
                f"Also: {', '.join(also)}." if also else "",
            )
            if part
        )
        lines.append(f"# {note}")
        lines.append(group_line(key, reduce(getattr, dotted.split("."), defaults)))
    return "\n".join(lines).strip() + "\n"


def community_names(field: FieldInfo) -> list[str]:
    """The flags of the community trainer that mean the setting."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    flags = extra.get("community") or []
    return [flags] if isinstance(flags, str) else [str(flag) for flag in flags] if isinstance(flags, list) else []


@cache
def aliases() -> dict[str, str]:
    """Flag name of the community trainer -> dotted path of our setting."""
    table: dict[str, str] = {}
    for dotted, field in walk_settings():
        for name in community_names(field):
            table.setdefault(name, dotted)
    # switches that no one field stands for; the group itself turns them into its own words
    for group, names in (
        ("quant", quant.QUANT_SWITCHES),
        ("memory", memory.ATTENTION_SWITCHES),
        ("gemma", gemma.GEMMA_SWITCHES),
    ):
        table.update({name: f"{group}.{name}" for name in names})
    return table


def bounds_text(field: FieldInfo) -> str:
    """The choices of a setting, or its limits; empty where it has none."""
    if get_args(field.annotation) and all(isinstance(choice, str) for choice in get_args(field.annotation)):
        return " | ".join(get_args(field.annotation))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(f"{signs[name]} {bound}" for name, bound in limits(field).items())


def group_line(key: str, default: Any) -> str:
    """`key = value` in TOML; a setting without a value stands there as a comment."""
    import tomli_w

    if default is None:
        return f"# {key} ="
    if isinstance(default, dict):
        return f"{key} = {_inline(default)}"
    if isinstance(default, list) and any(isinstance(one, dict) for one in default):
        items = (_inline(one) if isinstance(one, dict) else group_line("x", one)[len("x = ") :] for one in default)
        return f"{key} = [{', '.join(items)}]"
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json")
    return compact(tomli_w.dumps({key: plain_toml(default) if not isinstance(default, Path) else str(default)}).strip())


def _inline(table: dict[str, Any]) -> str:
    """A table on one line."""
    import tomli_w

    parts = []
    for name, value in plain_toml(table).items():
        key = tomli_w.dumps({name: 0}).removesuffix(" = 0\n")  # in quotes where it needs them
        parts.append(f"{key} = {group_line('x', value)[len('x = ') :]}")
    return f"{{ {', '.join(parts)} }}" if parts else "{}"


def compact(toml: str) -> str:
    """TOML with its short lists on one line each."""

    def one_line(found: re.Match[str]) -> str:
        items = [line.strip().rstrip(",") for line in found[1].strip().split("\n")]
        text = f"[{', '.join(items)}]"
        return text if len(text) <= 80 else found[0]

    return re.sub(r"\[\n((?:    [^\n\[\]{}]+,\n)+)\]", one_line, toml)
