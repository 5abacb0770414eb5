"""SimpleTuner's list of data backends (multidatabackend.json), read as a dataset file.

Its rows are in foreign/simpletuner_data.toml. Sizes are sides of a square of the same area, as `resolution` with
buckets; `repeats` counts what comes on top of the first pass; videos of a dataset bring their sound unless
`audio.auto_split` is false. Sub-folders of a dataset belong to it. What SimpleTuner takes where a key is missing is
taken too, with a note: captions by lines, five seconds of a video, square cuts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..foreign import later_words, row_of
from ..media.names import is_dir
from ..paths import from_folder

KINDS = {"image": "image_directory", "video": "video_directory", "audio": "audio_directory"}
_NAMES = {"batch_size": "train_batch_size"}  # our word -> SimpleTuner's
_CACHES = ("text_embeds", "image_embeds", "conditioning_image_embeds")
# what is read where the kind of the dataset is known, besides the rows that say all
_READ = {
    "instance_data_dir", "cache_dir_vae", "repeats", "resolution", "train_batch_size", "instance_prompt",
    "prepend_instance_prompt", "crop", "crop_aspect", "s2v_datasets", "disable_multiline_split",
}  # fmt: skip
_OF_RECORDINGS = ("min_duration_seconds", "max_duration_seconds", "duration_interval")
_SECONDS = 5  # of a video whose num_frames is not given
_EVALUATION = "put its folder into [[validation_datasets]] of the dataset file that import writes"
_WHOLE_NUMBERS = {
    "repeats", "train_batch_size", "video.num_frames", "video.min_frames", "video.max_frames", "video.frame_interval",
}  # fmt: skip
_OTHER_NUMBERS = {
    "resolution", "video.frame_rate", "audio.duration_interval", "audio.min_duration_seconds",
    "audio.max_duration_seconds",
}  # fmt: skip
_SWITCHES = {
    "disabled", "disable", "crop", "prepend_instance_prompt", "only_instance_prompt", "audio.auto_split",
    "audio.audio_only",
}  # fmt: skip


@dataclass
class Backends:
    """What came of a list: the table of a dataset file, notes, what cannot be taken over, and the mode to train in."""

    table: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    mode: str = "video"


def is_backends(table: Any) -> bool:
    """Whether a parsed JSON file is such a list."""
    return isinstance(table, list) and any(isinstance(row, Mapping) and "instance_data_dir" in row for row in table)


def read_backends(rows: Sequence[Any], shared: Mapping[str, Any] | None = None, folder: Path | None = None) -> Backends:
    """The list as a dataset file; paths in it are made absolute where `folder`, or one above it, has what they name.

    `shared` are settings of a dataset that config.json gives for backends that say nothing.
    """
    backends = Backends()
    before = {_NAMES.get(key, key): value for key, value in (shared or {}).items()}
    entries: list[dict[str, Any]] = []
    sounds = {
        str(row.get("id")): row for row in rows if isinstance(row, Mapping) and row.get("dataset_type") == "audio"
    }
    linked: set[str] = set()
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            backends.problems.append(f"entry {index + 1} is not an object")
            continue
        row = _with_numbers(row)
        name = str(row.get("id") or f"entry {index + 1}")
        if wrong := _wrong_types(row):
            backends.problems += [f"{name}: {one}" for one in wrong]
            continue
        kind = str(row.get("dataset_type") or "image")
        if row.get("disabled") or row.get("disable"):
            backends.notes.append(f"{name} is disabled and left out.")
        elif kind in _CACHES:
            backends.notes.append(f"{name} has no effect: captions are cached beside the clips they belong to.")
        elif kind == "eval":
            backends.problems.append(f"{name}: dataset_type eval is not taken over: {_EVALUATION}.")
        elif kind not in KINDS:
            backends.problems.append(
                f"{name}: dataset_type {kind} is not there yet: {later_words('reference_datasets')}."
            )
        elif "instance_data_dir" not in row:
            backends.problems.append(f"{name}: needs instance_data_dir; data on other machines are not read.")
        else:
            try:
                entry = _entry(name, kind, {**before, **row}, backends)
            except (ValueError, TypeError, AttributeError) as error:
                backends.problems.append(f"{name}: a value is of a wrong type: {error}.")
                continue
            named = _names(row.get("s2v_datasets"))
            if len(named) > 1:
                backends.problems.append(f"{name}: s2v_datasets names {len(named)} datasets; videos have one sound.")
            for other in named[:1]:
                if sound := sounds.get(other, {}).get("instance_data_dir"):
                    entry |= {"audio_source": "audio_files", "audio_files_directory": sound}
                    linked.add(other)
                else:
                    backends.problems.append(f"{name}: s2v_datasets names {other}, which is no dataset of sounds here.")
            entries.append({"__id": name, "__kind": kind, **entry})
    entries = [entry for entry in entries if entry["__id"] not in linked]  # the sound of another dataset
    kinds = {entry["__kind"] for entry in entries}
    if kinds == {"audio"}:
        backends.mode = "audio"
    elif any(entry["__kind"] == "video" and entry.get("audio_source") != "none" for entry in entries):
        backends.mode = "av"
    plain = [{key: value for key, value in entry.items() if not key.startswith("__")} for entry in entries]
    _place(folder, plain)
    backends.table = {"datasets": plain}
    return backends


def _with_numbers(row: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """`row` with numbers for texts that are numbers, as config.json may have them too."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            value = _with_numbers(value, f"{key}.")
        elif isinstance(value, str) and f"{group}{key}" in _WHOLE_NUMBERS | _OTHER_NUMBERS:
            with contextlib.suppress(ValueError):
                number = float(value)
                value = int(number) if number.is_integer() else number
        out[key] = value
    return out


def _wrong_types(row: Mapping[str, Any]) -> list[str]:
    """A sentence on each value of a backend that is of another type than its key has."""
    wrong: list[str] = []
    flat = dict(row)
    for group in ("video", "audio"):
        part = row.get(group)
        if isinstance(part, Mapping):
            flat.update({f"{group}.{key}": value for key, value in part.items()})
        elif part is not None:
            wrong.append(f'{group} needs an object, as {{"..": ..}} (given: {part!r})')
    for key, value in flat.items():
        if value is None:
            continue
        if key in _WHOLE_NUMBERS | _OTHER_NUMBERS:
            whole = key in _WHOLE_NUMBERS
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or (whole and value != int(value)):
                wrong.append(f"{key} needs a {'whole ' if whole else ''}number, without quotes (given: {value!r})")
        elif key in _SWITCHES and not isinstance(value, bool) and value not in (0, 1):
            wrong.append(f"{key} needs true or false, without quotes (given: {value!r})")
    return wrong


def _place(folder: Path | None, entries: Sequence[dict[str, Any]]) -> None:
    """Make the paths of `entries` absolute, where the folder that they are seen from is found."""
    top = _top(folder, entries)
    if top is not None:
        for entry in entries:
            for key in [key for key in entry if key.endswith("_directory")]:
                entry[key] = str(from_folder(top, str(entry[key])))


def _top(folder: Path | None, entries: Sequence[Mapping[str, Any]]) -> Path | None:
    """The folder that SimpleTuner was started from: the first one above that has the media of a dataset."""
    media = [str(entry[key]) for entry in entries for key in KINDS.values() if key in entry]
    for one in (folder, *folder.parents[:4]) if folder is not None else ():
        if any(is_dir(from_folder(one, name)) for name in media):
            return one
    return None


def _entry(name: str, kind: str, row: Mapping[str, Any], found: Backends) -> dict[str, Any]:
    entry: dict[str, Any] = {KINDS[kind]: row["instance_data_dir"], "recursive": True}
    _say_rest(name, row, found)
    of_kind = {"image": (), "video": ("video", "audio"), "audio": ("audio",)}[kind]
    idle = [group for group in ("video", "audio") if row.get(group) and group not in of_kind]
    idle += [
        key
        for key, other in (
            ("instance_prompt", "prepend_instance_prompt"),
            ("prepend_instance_prompt", "instance_prompt"),
        )
        if row.get(key) and not row.get(other)
    ]
    found.notes += [f"{name}: {key} has no effect there either, in a dataset like this." for key in idle]
    if not row.get("disable_multiline_split"):
        entry["caption_lines"] = True
        _say(found, name, "disable_multiline_split", "each line of a caption file is a caption of its own")
    if not row.get("caption_strategy"):
        _say(
            found,
            name,
            "caption_strategy",
            "there it is filename unless config.json says textfile; here captions are .txt files beside the media",
        )
    if row.get("cache_dir_vae"):
        entry["cache_directory"] = row["cache_dir_vae"]
    if row.get("train_batch_size") not in (None, 1):
        entry["batch_size"] = row["train_batch_size"]
    if row.get("repeats"):
        entry["num_repeats"] = int(row["repeats"]) + 1
    if row.get("instance_prompt") and row.get("prepend_instance_prompt"):
        entry["caption_prefix"] = row["instance_prompt"]
    if kind == "audio":
        _sound(row.get("audio") or {}, entry)
        return entry
    side = row.get("resolution")
    if isinstance(side, (int, float)) and not isinstance(side, bool):
        entry["resolution"] = round(side)
        entry["enable_bucket"] = not (row.get("crop") and row.get("crop_aspect", "square") == "square")
        if not entry["enable_bucket"]:
            entry["resolution"] = max(32, round(side / 32) * 32)
            if "crop_aspect" not in row:
                _say(found, name, "crop_aspect", "media are cut to squares")
    if row.get("crop") and "crop_style" not in row:
        _say(found, name, "crop_style", "there it is random; here the middle is kept")
    if kind == "video":
        _video(name, row.get("video") or {}, entry, found)
        _sound_of_video(name, row.get("audio"), entry, found)
    return entry


def _say(found: Backends, name: str, key: str, words: str) -> None:
    """A note of what a key that is not given means."""
    found.notes.append(f"{name}: {key} is not given: {words}.")


def _sound_of_video(name: str, sound: Any, entry: dict[str, Any], found: Backends) -> None:
    if sound is None:
        _say(
            found,
            name,
            "audio",
            "the sound of the videos is trained, as by older versions of SimpleTuner; newer ones train the picture "
            'alone: for that say model.mode = "video" in the run file',
        )
        return
    if not isinstance(sound, Mapping):
        raise TypeError("audio has to be an object")
    if sound.get("auto_split") is False:
        entry["audio_source"] = "none"
    elif sound.get("audio_only"):
        entry["audio_directory"] = entry.pop("video_directory")
    idle = [key for key in _OF_RECORDINGS if sound.get(key)]
    if idle and "video_directory" in entry:
        names = ", ".join(f"audio.{key}" for key in idle)
        found.notes.append(f"{name}: {names}: without effect here: the sound of a video is cut with its pictures.")


def _video(name: str, video: Mapping[str, Any], entry: dict[str, Any], found: Backends) -> None:
    rate = float(video.get("frame_rate") or 25)
    by_length = video.get("bucket_strategy") == "resolution_frames"
    if video.get("num_frames"):
        entry["target_frames"] = [video["num_frames"]]
    elif not by_length:
        frames = round(_SECONDS * rate - 1) // 8 * 8 + 1  # what the VAE can take of it
        entry["target_frames"] = [frames]
        _say(found, name, "video.num_frames", f"{frames} frames, {_SECONDS} seconds, are trained of each clip")
    if video.get("min_frames"):
        entry["min_frames"] = video["min_frames"]
    if video.get("max_frames"):  # there it is a limit on the file, here on the window
        entry["max_seconds"] = video["max_frames"] / rate
    if video.get("frame_rate"):
        entry["target_fps"] = video["frame_rate"]
    if by_length:
        entry |= {"frame_extraction": "full", "frame_interval": video.get("frame_interval") or 1}
        if video.get("num_frames"):
            entry["max_frames"] = video["num_frames"]
            del entry["target_frames"]


def _sound(audio: Mapping[str, Any], entry: dict[str, Any]) -> None:
    entry["audio_bucket_strategy"] = "truncate"  # it never pads
    entry["audio_bucket_interval"] = audio.get("duration_interval") or 3.0
    for theirs, ours in (("min_duration_seconds", "min_seconds"), ("max_duration_seconds", "max_seconds")):
        if audio.get(theirs):
            entry[ours] = audio[theirs]


def _say_rest(name: str, row: Mapping[str, Any], backends: Backends) -> None:
    """A note, or a problem, for each key that is not taken over as it is."""
    flat = dict(row)
    for group in ("video", "audio"):
        for key, value in (row.get(group) or {}).items() if isinstance(row.get(group), Mapping) else ():
            flat[f"{group}.{key}"] = value
    for key, value in flat.items():
        known = row_of("simpletuner_data", key)
        if known is None:
            backends.problems.append(f"{name}: {key} is not known.")
        elif known.dataset or known.by or key in _READ or known.unused(value):
            if key == "video.frame_interval" and flat.get("video.bucket_strategy") != "resolution_frames":
                backends.notes.append(f"{name}: {key} has no effect: it counts with bucket_strategy resolution_frames.")
        elif known.later or (known.values and value not in known.values and str(value) not in known.values):
            backends.problems.append(f"{name}: {key} is not there yet: {later_words(known.later or known.otherwise)}.")
        elif key not in ("id", "type"):
            backends.notes.append(f"{name}: {key} has no effect: {known.no_effect}.")


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value or []]
