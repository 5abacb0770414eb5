"""Paths of an imported file, which are seen from its folder, as another folder sees them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..dataset.entry import FOLDER_KEYS, FOLDER_LIST_KEYS, SOURCE_KEYS
from ..dataset.foreign_keys import LISTS
from ..dataset.layouts import LIST_NAME
from ..paths import from_folder, path_fault

DATASET_NAME = "dataset.toml"
OUR_OWN = (LIST_NAME, "cache")  # what is written beside the dataset file


def rebased(table: Mapping[str, Any], folder: Path, top: Path) -> dict[str, Any]:
    """The paths of a dataset table as seen from `top`: those of `folder`, or of `top` where they lie there alone."""

    def seen(value: str) -> str:
        if path_fault(value) or Path(value).is_absolute():
            return value
        here = from_folder(folder, value)
        return str(here if here.exists() or not from_folder(top, value).exists() else from_folder(top, value))

    return _with_paths(table, seen)


def moved_paths(table: Mapping[str, Any], folder: Path, out: Path) -> dict[str, Any]:
    """The paths of a dataset table, which are seen from `folder`, as seen from `out`."""
    return _with_paths(table, lambda value: relative(value, folder, out))


def _with_paths(table: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    def entry(values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: change(str(value))
            if key in (*FOLDER_KEYS, *SOURCE_KEYS) and value
            else [change(str(one)) for one in value]
            if key in FOLDER_LIST_KEYS and isinstance(value, (list, tuple))
            else value
            for key, value in values.items()
            if value is not None
        }

    parts: dict[str, Any] = {"general": entry(table.get("general") or {})}
    for key in LISTS:
        if table.get(key):
            parts[key] = [entry(one) if isinstance(one, Mapping) else one for one in table[key]]
    return parts


def relative(value: str, folder: Path, out: Path) -> str:
    """A path seen from `folder` as `out` sees it; one that was absolute stays so where it lies elsewhere."""
    if path_fault(value) or value in OUR_OWN:
        return value
    path = from_folder(folder, value)
    try:
        inside = path.is_relative_to(folder)
        return Path(os.path.relpath(path, out.absolute())).as_posix() if inside else str(path)
    except ValueError:  # another drive
        return str(path)
