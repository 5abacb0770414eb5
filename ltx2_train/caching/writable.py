"""Whether caches can be written, told before hours of work."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..dataset.dataset_file import DatasetConfig
from ..errors import RunError


def require_writable(config: DatasetConfig) -> None:
    """Make the cache folders of `config` and write a byte into each. Raises RunError that names setting and folder."""
    for ref in config.refs:
        for key, folder in [] if ref.entry.from_caches else ref.entry.cache_folders():
            _try_to_write(f"{ref.name}.{key}", key, folder)


def written_folders(config: DatasetConfig) -> list[Path]:
    """All folders that caches of media lie in, or have lain in."""
    media = [ref.entry for ref in config.refs if not ref.entry.from_caches]
    return sorted({folder for entry in media for _, folder in entry.cache_folders(needed=False)})


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
