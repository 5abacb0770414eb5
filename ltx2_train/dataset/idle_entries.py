"""Settings of datasets that would change nothing: refused where one dataset says them, noted where all share them.

What a setting counts with stands in its field (see idle.py). `[general]` is for all datasets, so a value there has to
be of use to one of them; where it is of none that is a note, since such files are kept for many folders. A folder with
data is never passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ..idle import Idle, idle
from .entry import FOLDER_KEYS, FOLDER_LIST_KEYS, LIST_KEYS, SOURCE_KEYS, DatasetRef, DatasetSettings
from .notes import DataNote

_DATA = {*FOLDER_KEYS, *FOLDER_LIST_KEYS, *LIST_KEYS, *SOURCE_KEYS}

# what counts where caches alone are read: where they lie, how they are fed, and what is compared with them
_WITH_CACHES = _DATA | {
    "cache_only", "cache_files", "cache_directory", "reference_cache_directory", "reference_audio_cache_directory",
    "batch_size", "num_repeats", "max_left_out", "separate_audio_buckets", "audio_bucket_strategy",
    "audio_bucket_interval", "audio_only_sequence_resolution", "target_fps", "first_frame_probability",
    "video_loss_weight", "audio_loss_weight", "reference_temporal_scale", "reference_audio_max_seconds",
    "trigger_word",
}  # fmt: skip

# what says how batches are made; clips that are measured come one by one, each once
_OF_BATCHES = ("batch_size", "num_repeats", "separate_audio_buckets")


def idle_entries(
    refs: Sequence[DatasetRef], shared: Mapping[str, Any], alike: bool = False, quiet: Collection[str] = ()
) -> tuple[list[str], list[DataNote]]:
    """(what is wrong, notes): a sentence for each setting of the datasets without effect.

    `shared` is what [general] says. With `alike` the datasets are those of one form, so that a value is of use where
    one of them uses it. `quiet` names what nobody asked for.
    """
    idle = {ref.name: {one.setting: one for one in idle_of(ref.entry)} for ref in refs if not ref.entry.from_caches}
    problems: list[str] = []
    general: dict[str, list[Idle]] = {}
    for ref in refs:
        for name, one in idle.get(ref.name, {}).items():
            if name in quiet:
                continue
            if alike or (name in shared and shared[name] == one.value):
                general.setdefault(name, []).append(one)
            else:
                problems.append(f"{ref.name}.{one}")
    notes = []
    for name, ones in general.items():
        if len(ones) == len(idle):
            where = name if alike else f"general.{name}"
            told = where + str(ones[0]).removeprefix(name)
            if alike or name in _DATA:
                problems.append(told)
            else:
                notes.append(DataNote("idle", told))
    return problems, notes if alike else [*notes, *_of_measured(refs, shared)]


def _of_measured(refs: Sequence[DatasetRef], shared: Mapping[str, Any]) -> Iterator[DataNote]:
    """A sentence for each validation dataset that says how its batches are made; many of these files are copies."""
    fields = DatasetSettings.model_fields
    for ref in (ref for ref in refs if ref.validation):
        own = {name: getattr(ref.entry, name) for name in _OF_BATCHES if name in ref.entry.model_fields_set}
        names = [name for name, value in own.items() if value != fields[name].default and shared.get(name) != value]
        if names:
            have = "has" if len(names) == 1 else "have"
            words = f"{', '.join(names)} {have} no effect, since clips are measured one by one, each once."
            yield DataNote("idle", f"{ref.name}: {words}")


def settled(refs: Sequence[DatasetRef], shared: Mapping[str, Any]) -> list[DataNote]:
    """A sentence for each dataset that is read from its caches alone and has settings by which these were made.

    `shared` is what [general] says, which may be meant for others.
    """
    others = any(not ref.entry.from_caches for ref in refs)
    notes = []
    for ref in refs:
        names = [
            name
            for name in ref.entry.model_fields_set - _WITH_CACHES
            if not (others and name in shared and shared[name] == getattr(ref.entry, name))
        ]
        if ref.entry.cache_only and ref.entry.cache_directory is not None:  # else it says where the caches lie
            names += [key for key in SOURCE_KEYS if getattr(ref.entry, key) is not None]
        if ref.entry.from_caches and names:
            names.sort(key=list(DatasetSettings.model_fields).index)
            counts = "counts" if len(names) == 1 else "count"
            where = f"{', '.join(names)} {counts} where they are made, not here."
            notes.append(DataNote("idle", f"{ref.name} is read from its caches alone: {where}"))
    return notes


def idle_of(entry: DatasetSettings) -> list[Idle]:
    """The settings of a dataset without effect; of one that is read from caches none, since they made it."""
    return [] if entry.from_caches else idle(entry)
