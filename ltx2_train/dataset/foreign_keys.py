"""Keys of a dataset file that are spelt otherwise here, or that belong to other models of the community trainer.

A file that is brought along loads: what has another name is renamed, what has no meaning for LTX-2 is left out with a
note, and what would change the data in a way that is not supported is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .entry import DatasetSettings, SharedSettings

# Old names of the community trainer, and its flags that mean a setting of the dataset.
RENAMED = {
    "flux_kontext_no_resize_control": "no_resize_control",
    "qwen_image_edit_no_resize_control": "no_resize_control",
    "qwen_image_edit_control_resolution": "control_resolution",
    "control_directory": "reference_directory",
    "flip_aug": "flip",
}
WITHOUT_EFFECT = {
    "fp_latent_window_size": "it belongs to FramePack",
    "fp_1f_clean_indices": "it belongs to FramePack",
    "fp_1f_target_index": "it belongs to FramePack",
    "fp_1f_no_post": "it belongs to FramePack",
    "no_resize_control": "references always take the size of their clip",
    "control_resolution": "references always take the size of their clip; reference_downscale makes them smaller",
}
REFUSED = {
    "multiple_target": "one medium with several targets is a feature of other models. Write each target as a medium of "
    "its own, with the same caption",
}


def translate(table: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """The table of a dataset file in the words of our settings, and a note for each key that changed or went.

    Raises ConfigError where a key is refused or two keys mean the same setting. Parts of a wrong type are left as they
    are for validation to name.
    """
    notes: list[str] = []
    out = dict(table)
    if isinstance(table.get("general"), Mapping):
        out["general"] = _entry(table["general"], "general", source, notes)
        _refuse_sources(out["general"], source)
    for key in ("datasets", "validation_datasets"):
        if isinstance(table.get(key), (list, tuple)):
            out[key] = [
                _entry(entry, f"{key}[{index}]", source, notes) if isinstance(entry, Mapping) else entry
                for index, entry in enumerate(table[key])
            ]
    return out, notes


def _entry(entry: Mapping[str, Any], where: str, source: str, notes: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    origin: dict[str, str] = {}
    flags = _flags()
    for key, value in entry.items():
        name = RENAMED.get(key, key)
        if name not in DatasetSettings.model_fields:
            name = flags.get(name, name)
        if name in REFUSED and value:
            raise ConfigError(f"{source}: {where}.{key}: {REFUSED[name]}.")
        if name in WITHOUT_EFFECT or name in REFUSED:
            notes.append(f"{where}.{key} has no effect: {WITHOUT_EFFECT.get(name, 'it belongs to other models')}.")
            continue
        if name in origin:
            raise ConfigError(f"{source}: {where}.{origin[name]} and {where}.{key} are the same setting; keep one.")
        if name != key:
            notes.append(f"{where}.{key} is read as {name}.")
        out[name], origin[name] = value, key
    return out


def _flags() -> dict[str, str]:
    """The community trainer's flags for settings of a dataset."""
    table = {}
    for name, field in DatasetSettings.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and isinstance(extra.get("community"), str):
            table[str(extra["community"])] = name
    return table


def _refuse_sources(general: Mapping[str, Any], source: str) -> None:
    for key in general:
        if key in DatasetSettings.model_fields and key not in SharedSettings.model_fields:
            raise ConfigError(f"{source}: general.{key}: this belongs to one dataset. Move it into [[datasets]].")
