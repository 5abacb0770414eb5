"""Where nothing may be written: among media, which are trained on, and where a file lies in place of a folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .dataset_file import DatasetConfig
from .entry import FOLDER_LIST_KEYS, DatasetSettings

MEDIA_FOLDERS = (
    "image_directory",
    "video_directory",
    "audio_directory",
    "audio_files_directory",
    "reference_directory",
    "reference_audio_directory",
    "mask_directory",
    "audio_mask_directory",
)


def cache_folder_faults(entry: DatasetSettings) -> list[str]:
    """What is wrong with each folder of caches of a dataset in whose place a file lies."""
    folders = entry.cache_folders()
    if entry.cache_directory is None:
        folders = folders[1:]  # the first is that of the media, of which more is said elsewhere
    return [f"{key}: {folder} {why}" for key, folder in folders if (why := no_folder(folder))]


def require_cache_folders(config: DatasetConfig) -> None:
    """Raise ConfigError that names each of them."""
    lines = [f"{ref.name}.{fault}." for ref in config.refs for fault in cache_folder_faults(ref.entry)]
    if lines:
        raise ConfigError("\n".join([*lines[:-1], f"{lines[-1]} Name a folder for caches."]))


def no_folder(path: Path) -> str:
    """Why `path` cannot be, or become, a folder; empty where it can."""
    for place in (path, *path.parents):
        if place.is_dir():
            return ""
        if place.exists():
            return "is a file, not a folder" if place == path else f"cannot be made, since {place} is a file"
    return ""


def refuse_among_media(out: Path, config: DatasetConfig) -> None:
    """Raise ConfigError where files written to the folder `out` would be media of `config`."""
    place = out.resolve()
    for ref in config.refs:
        name, entry = ref.name, ref.entry
        places = [(key, getattr(entry, key)) for key in MEDIA_FOLDERS]
        places += [(key, folder) for key in FOLDER_LIST_KEYS for folder in getattr(entry, key)]
        for key, folder in () if entry.from_caches else places:
            if folder is None:
                continue
            media = folder.resolve()
            if place == media or (entry.recursive and place.is_relative_to(media)):
                raise ConfigError(
                    f"--out: {out} is {name}.{key}, whose files are trained on, so what is written there would be too. "
                    "Name another folder."
                )
