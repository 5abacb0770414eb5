"""The entries of one or several dataset handles as one dataset, each with its size and with caches of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..ltx2_train import DatasetConfig
from ..ltx2_train.files import digest
from . import handles, host

SOURCES = ("video_directory", "image_directory", "audio_directory")
SIZELESS = ("batch_size", "max_left_out")  # what of a shape concerns recordings too
PAIRED = ("reference_directory", "reference_frames", "reference_downscale")
BESIDE = ("reference_audio_directory", "mask_directory", "audio_mask_directory")
MORE = ("more_reference_directories", "more_reference_frames", "more_reference_audio_directories")


# widgets that always say something, and that `sizes` replaces
REPLACED = ("resolution", "target_frames", "enable_bucket")


def dataset_folder(clips: handles.ClipFolder, name: str = "") -> Path:
    """The folder that keeps the caches of `clips`: called `name`, or after the folder of the media.

    Raises ConfigError where the name leads out of the folder of the datasets.
    """
    host.place_inside(host.runs_folder() / "datasets", name.strip())
    source = digest(str(clips.folder.resolve()), length=8)
    called = plain(name) or f"{plain(clips.title) or 'clips'}-{source}"
    return host.place_inside(host.runs_folder() / "datasets", called)


def dataset_config(
    parts: Sequence[handles.ClipFolder],
    shape: Mapping[str, Any],
    folder: Path,
    node: str,
    held_out: handles.ClipFolder | None = None,
) -> DatasetConfig:
    """All entries of `parts` with the settings `shape`, their caches below `folder`; those of `held_out` are not
    trained on. Raises ConfigError that speaks of `node`."""
    lists: dict[str, list[dict[str, Any]]] = {"datasets": []}
    taken: set[str] = set()
    everything: list[handles.ClipFolder] = [*parts] if held_out is None else [*parts, held_out]
    for index, part in enumerate(everything):
        into = lists["datasets"] if index < len(parts) else lists.setdefault("validation_datasets", [])
        for entry in part.entries:
            caches = name = _cache_name(entry, parts[0].folder, second=index > 0)
            number = 1
            while name in taken:  # the same media twice, with other captions or shares
                number += 1
                name = f"{caches}_{number}"
            taken.add(name)
            sized = {key: shape[key] for key in SIZELESS if key in shape} if "audio_directory" in entry else shape
            into.append({**entry, **sized, "cache_directory": str(folder / name)})
    return DatasetConfig.from_table(lists, folder, node, alike=True, quiet=REPLACED)


def media_folder(entry: Mapping[str, Any]) -> Path:
    """The folder whose media an entry is about."""
    return Path(next(entry[key] for key in SOURCES if key in entry))


def media_kind(entry: Mapping[str, Any]) -> str:
    """ "video", "image" or "audio"."""
    return next(key for key in SOURCES if key in entry).removesuffix("_directory")


def _cache_name(entry: Mapping[str, Any], first: Path, second: bool) -> str:
    """The name says kind and rate; media of another folder than the first, and pairs, are told apart by a mark."""
    source = media_folder(entry)
    if "audio_directory" in entry:
        name = "sounds"
    else:
        name = f"{'videos' if 'video_directory' in entry else 'images'}_{float(entry['target_fps']):g}fps"
    if second or source != first:
        name += f"_{digest(str(source.resolve()), length=8)}"
    if "reference_directory" in entry:
        scale = entry.get("reference_temporal_scale", 1)
        marks = [str(entry.get(key)) for key in PAIRED] + ([str(scale)] if scale != 1 else [])
        name += f"_pairs_{digest(*marks, length=8)}"
    if any(key in entry for key in BESIDE):
        name += f"_with_{digest(*(str(entry.get(key)) for key in BESIDE), length=8)}"
    if any(key in entry for key in MORE):
        name += f"_and_{digest(*(str(entry.get(key)) for key in MORE), length=8)}"
    return name


def plain(name: str) -> str:
    """`name` as a folder can be called on every system."""
    return "".join(ch if ch.isalnum() or ch in "-_ ." else "_" for ch in name).strip(" .")
