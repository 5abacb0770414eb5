"""The manifest: which caches make a dataset, so that it trains, and moves to another machine, without its media.

    format           "ltx2_train_dataset_manifest"      version   1
    dataset_config   name of the file it was made from
    datasets, validation_datasets
                     tables as in a dataset file, with cache_only, cache_directory and cache_files (the latents);
                     folders are relative to the manifest

So a manifest is a dataset file in JSON whose media are left out. What weights the caches were made with is written in
the caches themselves, and compared as always.

The community trainer's manifest is read too: format "musubi_tuner_dataset_manifest", and for each dataset its
`dataset_type` and `params`, which are the keys of its dataset file with the media set to null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .entry import FOLDER_KEYS, FOLDER_LIST_KEYS, SOURCE_KEYS, DatasetSettings
from .entry_types import LISTS
from .notes import DataNote

MANIFEST_NAME = "dataset_manifest.json"
FORMAT = "ltx2_train_dataset_manifest"
MANIFEST_VERSION = 1
COMMUNITY_FORMAT = "musubi_tuner_dataset_manifest"
# What only matters where media are read; the caches are what came of it.
OF_MEDIA = frozenset(
    (
        *SOURCE_KEYS, *FOLDER_LIST_KEYS, *(key for key in FOLDER_KEYS if not key.endswith("cache_directory")),
        "video_column", "caption_column", "cache_only", "cache_files",
    )
)  # fmt: skip


def is_manifest(table: Mapping[str, Any]) -> bool:
    """Whether a parsed file is a manifest, of whichever kind."""
    return isinstance(table.get("format"), str) and ("datasets" in table or "version" in table)


def dataset_table(table: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[DataNote]]:
    """The dataset file that a manifest stands for, and notes on what of it was left out. Raises ConfigError."""
    if table["format"] not in (FORMAT, COMMUNITY_FORMAT):
        raise ConfigError(f"{source}: a manifest of format {table['format']!r} is not known; expected {FORMAT!r}.")
    if table.get("version") != MANIFEST_VERSION:
        raise ConfigError(
            f"{source}: it is a manifest of version {table.get('version')!r}, this program reads {MANIFEST_VERSION}. "
            "Write it again with `ltx2-train cache build RUN.toml`."
        )
    if table["format"] == FORMAT:
        return {key: table[key] for key in LISTS if key in table}, []
    if table.get("architecture") != "ltx2":
        raise ConfigError(f"{source}: its caches are for {table.get('architecture')!r}, not for ltx2. Choose another.")
    notes: list[DataNote] = []
    out: dict[str, Any] = {}
    for key in LISTS:
        entries = table.get(key) or []
        out[key] = [_community(entry, f"{key}[{index}]", source, notes) for index, entry in enumerate(entries)]
    return out, notes


def _community(entry: Any, where: str, source: str, notes: list[DataNote]) -> dict[str, Any]:
    params = entry.get("params") if isinstance(entry, Mapping) else None
    if not isinstance(params, Mapping):
        raise ConfigError(f"{source}: {where} has no params. Write the manifest again.")
    known = DatasetSettings.model_fields
    kept = {key: value for key, value in params.items() if value is not None and key in known and key not in OF_MEDIA}
    ignored = sorted(key for key, value in params.items() if value not in (None, False) and key not in known)
    if ignored:
        have = "has" if len(ignored) == 1 else "have"
        notes.append(DataNote("idle", f"{where}: {', '.join(ignored)} of the manifest {have} no effect."))
    return {**kept, "cache_only": True}
