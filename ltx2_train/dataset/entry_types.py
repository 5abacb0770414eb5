"""Values of a wrong type in a dataset file, told in its own words before anything else is looked at.

A file is written by hand: a number in quotes, one bracket too few, a list where one value belongs. What is meant by
each setting is read from its field, so that this needs no list of settings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from ..settings import inner_type
from .entry import DatasetSettings

LISTS = ("datasets", "validation_datasets")
# What may stand for a list: one number for a square or a single length, the official trainer's "960x544x49;...".
INSTEAD: dict[str, tuple[type, ...]] = {
    "resolution": (int, float),
    "target_frames": (int, float),
    "resolution_buckets": (str,),
    "caption_replace": (str, Mapping),
}
EXAMPLES = {
    "resolution": "[768, 512], or one number for a square",
    "target_frames": "[1, 25, 49]",
    "resolution_buckets": '["768x512x49"]',
    "caption_replace": '["automobile => car"]',
    "cache_files": '["a_00000-049_0768x0512_ltx2.safetensors"]',
}


def wrong_types(table: Mapping[str, Any]) -> list[str]:
    """A sentence for every value of a wrong type in the table of a dataset file, with its path."""
    return list(_of_file(table))


def _of_file(table: Mapping[str, Any]) -> Iterator[str]:
    for key in table:
        if key in DatasetSettings.model_fields:
            yield f"{key}: stands before any section. Put it below [general] or [[datasets]]."
    general = table.get("general")
    if general is not None and not isinstance(general, Mapping):
        yield "general: needs to be one section, [general] with one pair of brackets."
    elif general is not None:
        yield from _of_entry("general", general)
    for key in LISTS:
        entries = table.get(key)
        if isinstance(entries, Mapping):
            yield f"{key}: needs two pairs of brackets, [[{key}]], one such section for each dataset."
        elif entries is not None and not isinstance(entries, (list, tuple)):
            yield f"{key}: needs to be sections, [[{key}]], and not {_said(entries)}."
        for index, entry in enumerate(entries if isinstance(entries, (list, tuple)) else ()):
            if isinstance(entry, Mapping):
                yield from _of_entry(f"{key}[{index}]", entry)
            elif not isinstance(entry, DatasetSettings):
                yield f"{key}[{index}]: needs to be a section, [[{key}]], and not {_said(entry)}."


def _of_entry(where: str, entry: Mapping[str, Any]) -> Iterator[str]:
    for key, value in entry.items():
        field = DatasetSettings.model_fields.get(key)
        if field is not None and value is not None and (wanted := _wanted(key, field, value)):
            yield f"{where}.{key}: needs {wanted} (given: {_said(value)})"


def _wanted(key: str, field: FieldInfo, value: Any) -> str:
    """What `value` should be, or "" where it is that."""
    kind = inner_type(field.annotation)
    if isinstance(value, INSTEAD.get(key, ())) and not isinstance(value, bool):
        return ""
    if get_origin(kind) is tuple:
        inside = next(one for one in get_args(kind) if one is not ...)
        parts = list(value) if isinstance(value, (list, tuple)) else None
        right = parts is not None and all(not _not_one(inside, part) for part in parts)
        if key == "resolution" and parts is not None and len(parts) != 2:
            right = False
        return "" if right else f"a list, as {EXAMPLES.get(key, '[...]')}"
    return _not_one(kind, value)


def _not_one(kind: Any, value: Any) -> str:
    if get_origin(kind) is Literal:
        choices = " or ".join(f'"{choice}"' for choice in get_args(kind))
        return "" if isinstance(value, str) else f"one of {choices}"
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false, without quotes"
    if kind is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return "" if whole and not isinstance(value, bool) else "a whole number, without quotes"
    if kind is float:
        return "" if isinstance(value, (int, float)) and not isinstance(value, bool) else "a number, without quotes"
    if kind is Path:
        if not isinstance(value, (str, Path)):
            return "one path, in quotes"
        return ""
    return "" if kind is not str or isinstance(value, str) else "text, in quotes"


def _said(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
