"""Keys of a dataset file that are spelt otherwise here, or that belong elsewhere, by foreign/dataset_keys.toml.

A file that is brought along loads: what has another name is renamed, what has no meaning for LTX-2 is left out with a
note, what would change the data in a way that is not supported is refused with the reason. kohya's `subsets` become
datasets of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ..foreign import row_of
from .entry import SOURCE_KEYS, DatasetSettings, SharedSettings
from .entry_types import LISTS
from .notes import DataNote

# the sections of a run file; a test holds them together
RUN_SECTIONS = (
    "run", "model", "data", "cache", "lora", "objective", "loss", "video", "audio", "optimizer", "schedule", "train",
    "quant", "memory", "gemma", "sample", "validation", "ema", "slider", "log", "wandb", "hub", "full",
    "regularizers",
)  # fmt: skip


def in_form(table: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """The parts of a dataset file that have the form of one; a sentence in `problems` on each other."""
    parts: dict[str, Any] = {}
    for key, value in table.items():
        if key in RUN_SECTIONS:  # which translate names
            parts[key] = value
        elif key == "general" and not isinstance(value, Mapping):
            problems.append(f"general: needs a section, [general] (given: {value!r})")
        elif key in LISTS and not (isinstance(value, list) and all(isinstance(one, Mapping) for one in value)):
            problems.append(f"{key}: needs a list of sections, [[{key}]] for each")
        elif key != "general" and key not in LISTS:
            problems.append(f"{key}: is no part of a dataset file, which has general, {' and '.join(LISTS)}")
        else:
            parts[key] = value
    return parts


def translate(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[DataNote], list[str]]:
    """The table of a dataset file in the words of our settings, notes on keys that changed or went, and what is wrong.

    Parts of a wrong type are left as they are for validation to name.
    """
    notes: list[DataNote] = []
    problems: list[str] = []
    out = dict(table)
    for key in table:
        if key in RUN_SECTIONS:
            problems.append(f"{key}: belongs to the run file, which names this one as data.config.")
            del out[key]
    if isinstance(table.get("general"), Mapping):
        out["general"] = _entry(table["general"], "general", notes, problems)
        for key in [key for key in out["general"] if key in DatasetSettings.model_fields]:
            if key not in SharedSettings.model_fields:
                problems.append(f"general.{key}: this belongs to one dataset. Move it into [[datasets]].")
                del out["general"][key]
    for key in LISTS:
        if isinstance(table.get(key), (list, tuple)):
            whole = [one for entry in table[key] for one in _without_subsets(entry, notes, problems)]
            out[key] = [
                _entry(entry, f"{key}[{index}]", notes, problems) if isinstance(entry, Mapping) else entry
                for index, entry in enumerate(whole)
            ]
    return out, notes, problems


def _without_subsets(entry: Any, notes: list[DataNote], problems: list[str]) -> list[Any]:
    """kohya's datasets hold subsets, each a folder with settings of its own."""
    subsets = entry.get("subsets") if isinstance(entry, Mapping) else None
    if not isinstance(subsets, (list, tuple)) or not subsets or not all(isinstance(one, Mapping) for one in subsets):
        return [entry]
    shared = {key: value for key, value in entry.items() if key != "subsets"}
    sources = {*SOURCE_KEYS, "image_dir"}
    if (own := sources & {*shared}) and all(sources & {*one} for one in subsets):
        problems.append(
            f"{', '.join(sorted(own))}: a dataset has it and subsets with media of their own, which would stand in its "
            "place. Give each folder a [[datasets]] of its own."
        )
    notes.append(DataNote("settings", f"{len(subsets)} [[datasets.subsets]] are read as datasets."))
    return [{**shared, **one} for one in subsets]


def _entry(entry: Mapping[str, Any], where: str, notes: list[DataNote], problems: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for key, value in entry.items():
        name = _flags().get(key, key) if key not in DatasetSettings.model_fields else key
        row = None if name in DatasetSettings.model_fields else row_of("dataset_keys", name)
        if row is not None and row.dataset:
            name = row.dataset
        elif row is not None:
            if row.run:
                problems.append(f"{where}.{key}: belongs to the run file, where it is {row.run}.")
            elif row.no_effect:
                notes.append(DataNote("idle", f"{where}.{key} has no effect: {row.no_effect}."))
            elif row.unused(value):
                notes.append(DataNote("idle", f"{where}.{key} has no effect: it is off."))
            else:
                problems.append(f"{where}.{key}: is not read: {row.instead}.")
            continue
        elif key not in DatasetSettings.model_fields and name not in DatasetSettings.model_fields and _of_a_run(key):
            problems.append(f"{where}.{key}: belongs to the run file.")
            continue
        if name in origin:
            problems.append(f"{where}.{origin[name]} and {where}.{key} are the same setting; keep one.")
            continue
        if name != key:
            notes.append(DataNote("settings", f"{where}.{key} is read as {name}."))
        out[name], origin[name] = value, key
    return out


def _of_a_run(name: str) -> bool:
    return name in RUN_SECTIONS or row_of("community", name) is not None


@cache
def _flags() -> dict[str, str]:
    """The community trainer's flags for settings of a dataset."""
    table = {}
    for name, field in DatasetSettings.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and isinstance(extra.get("community"), str):
            table[str(extra["community"])] = name
    return table
