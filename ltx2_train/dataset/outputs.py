"""Where nothing may be written: what lies in a folder of media is trained on, be it a sample or a preview."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .dataset_file import DatasetConfig
from .entry import FOLDER_LIST_KEYS

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
