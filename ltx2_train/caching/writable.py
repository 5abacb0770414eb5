"""Whether caches can be written, told before hours of work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..dataset.dataset_file import DatasetConfig
from ..errors import RunError


def require_writable(config: DatasetConfig) -> None:
    """Make the cache folders of `config` and write a byte into each. Raises RunError that names setting and folder."""
    for name, entry in config.named():
        if entry.from_caches:
            continue
        folders = {"cache_directory": entry.caches}
        if entry.reference_directory is not None:
            folders["reference_cache_directory"] = entry.reference_caches
        if entry.reference_audio_directory is not None:
            folders["reference_audio_cache_directory"] = entry.reference_audio_caches
        for key, folder in folders.items():
            _try_to_write(f"{name}.{key}", key, folder)


def _try_to_write(where: str, key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=".ltx2_", suffix=".part", dir=folder)
        os.close(handle)
        os.unlink(path)
    except OSError as error:
        raise RunError(
            f"{where}: the cache folder {folder} cannot be written: {error.strerror or error}. "
            f"Set {key} to a folder that can."
        ) from error
