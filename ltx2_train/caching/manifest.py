"""Writing the manifest of what a dataset has in its caches; dataset/manifest.py says what it holds, and reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..dataset.entry import DatasetSettings
from ..dataset.manifest import FORMAT, LISTS, MANIFEST_VERSION, OF_MEDIA
from ..dataset.plan import DatasetPlan, Item
from ..files import write_json


def write_manifest(plan: DatasetPlan, path: Path, name: str = "") -> Path:
    """Write to `path` the manifest of what `plan` has in its caches; returns `path`.

    Files that are not there, because they could not be encoded, are left out of it.
    """
    table: dict[str, Any] = {"format": FORMAT, "version": MANIFEST_VERSION, "dataset_config": name}
    for ref in plan.config.refs:
        items = [item for item in plan.items if item.dataset == ref]
        files = sorted({item.latent_path.name for item in items if _is_there(item)})
        row = _row(ref.entry, None if ref.entry.from_caches else files, path.parent)
        table.setdefault(LISTS[ref.validation], []).append(row)
    write_json(path, table)
    return path


def _is_there(item: Item) -> bool:
    """Whether anything of `item` was cached: in mode audio that is its sound alone."""
    return item.latent_path.is_file() or (item.audio_path is not None and item.audio_path.is_file())


def _row(entry: DatasetSettings, files: list[str] | None, folder: Path) -> dict[str, Any]:
    # The resolution may be any where sizes were listed, and is of no use any more.
    values = entry.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    row = {key: value for key, value in values.items() if key not in OF_MEDIA}
    row |= {"cache_only": True, "cache_directory": _relative(entry.caches, folder)}
    chosen = entry.cache_files if files is None else files
    if chosen is not None:
        row["cache_files"] = list(chosen)
    if entry.reference_directory is not None or entry.reference_cache_directory is not None:
        row["reference_cache_directory"] = _relative(entry.reference_caches(), folder)
    if entry.reference_audio_directory is not None or entry.reference_audio_cache_directory is not None:
        row["reference_audio_cache_directory"] = _relative(entry.reference_audio_caches(), folder)
    return row


def _relative(path: Path, folder: Path) -> str:
    """`path` seen from `folder`, with slashes; as it is where they lie on different drives."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:
        return path.absolute().as_posix()
