"""Folders laid out for other programs: what they mean, and the dataset file that says the same.

10_fox/, 5_cat/             kohya's scripts: the number of repeats, then a name
NAME_start, NAME_end, NAME_audio, NAME.txt    fal's trainer: what is given, what comes of it, its sound, its caption
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import below, is_hidden
from ..media.images import IMAGE_SUFFIXES
from ..media.names import is_dir, is_file
from ..media.sound_media import AUDIO_SUFFIXES
from ..media.video import VIDEO_SUFFIXES
from .cache_names import medium_of
from .captions import read_captions
from .shared_settings import MOST_REPEATS

_REPEATS = re.compile(r"(\d+)_(.+)")
_PART = re.compile(r"(?P<root>.+)_(?P<part>start|end|audio)", re.IGNORECASE)
_KINDS = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
_PICTURES = VIDEO_SUFFIXES | IMAGE_SUFFIXES
_MEDIA = _PICTURES | AUDIO_SUFFIXES
_COLUMNS = {"start": "control_path", "audio": "audio_path"}  # of a pair, and what a list calls them
_CAPTION = ".txt"
_SHOWN_AT_MOST = 5
LIST_NAME = "pairs.jsonl"
# what lies beside media and is none: caches, lists and settings, and what the system writes
BESIDE_MEDIA = frozenset((".safetensors", ".toml", ".json", ".jsonl", ".csv", ".npz"))
LISTS = frozenset((".jsonl", ".csv"))
LIST_NAMES = frozenset(f"{name}.json" for name in ("dataset", "metadata", "captions", "labels", "train", "val"))
_OF_THE_SYSTEM = frozenset(("thumbs.db", "desktop.ini"))
_OURS = re.compile(r"(?:ltx2_\w+|dataset_manifest|cut|speech)\.json")  # of caches, and of what was cut


@dataclass
class FolderLayout:
    """A dataset file for a folder: its table, and the text of a list that goes beside it, if any.

    `left` are sentences on what of the folder it does not take.
    """

    words: str
    table: dict[str, Any]
    rows: list[dict[str, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def list_text(self) -> str:
        """The list, one object a line."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def folder_layout(folder: Path) -> FolderLayout | None:
    """What the layout of `folder` comes to, or None where it holds no media. Paths in it are absolute.

    Raises OSError where it cannot be opened, DataError where a caption of a pair is no text.
    """
    repeated = {sub: int(found[1]) for sub in _folders(folder) if (found := _REPEATS.fullmatch(sub.name))}
    taken = {sub: entries for sub, repeats in repeated.items() if repeats and (entries := _entries(sub))}
    if taken:
        entries = [{**entry, "num_repeats": repeated[sub]} for sub, of_sub in taken.items() for entry in of_sub]
        words = f"{len(taken)} sub-folders as kohya's scripts want them, with their repeats in the name"
        return FolderLayout(words, {"datasets": entries}, left=list(_left_of_repeated(folder, repeated)))
    rows, left = _pairs(_files(folder))
    if rows:
        words = f"{len(rows)} pairs as fal's trainer wants them: NAME_start is what is given, NAME_end what comes of it"
        table = {"datasets": [{"video_jsonl_file": LIST_NAME, "cache_directory": "cache"}]}
        return FolderLayout(words, table, rows, [*left, *_left_folders(_folders(folder), "is not looked into")])
    if entries := _entries(folder):
        kinds = " and ".join(f"{kind}s" for kind in _KINDS if any(f"{kind}_directory" in one for one in entries))
        if own := _REPEATS.fullmatch(folder.absolute().name):
            entries = [{**entry, "num_repeats": max(1, int(own[1]))} for entry in entries]
        left = [*_left_files(folder), *_left_folders(_folders(folder), "is not looked into; recursive = true takes it")]
        return FolderLayout(f"a folder of {kinds}", {"datasets": entries}, left=left)
    return None


def explain_layout(folder: Path) -> str:
    """A sentence on a layout that is another program's; empty where it is none."""
    try:
        layout = folder_layout(folder)
    except (OSError, DataError):  # no folder, or one that cannot be opened
        return ""
    of_sub_folders = (
        layout is not None and "num_repeats" in layout.table["datasets"][0] and not _REPEATS.fullmatch(folder.name)
    )
    if layout is None or not (of_sub_folders or layout.rows):
        return ""
    return f"It holds {layout.words}. `ltx2-train import {folder}` writes a dataset file for them."


def repeats_in_names(folder: Path, media: Iterable[Path]) -> dict[Path, int]:
    """Folder -> the number in front of its name that kohya's scripts take for repeats, of those that hold `media`.

    Looked at is the folder nearest to each medium, up to `folder`, or its own one where it lies elsewhere.
    """
    found: dict[Path, int] = {}
    for path in media:
        for at in path.parents:
            if (number := _REPEATS.fullmatch(at.name)) and int(number[1]) <= MOST_REPEATS:
                found[at] = int(number[1])
                break
            if not at.is_relative_to(folder) or at == folder:
                break
    return found


def is_list(path: Path) -> bool:
    """Whether a file beside media is a list of media by its name, which a folder of media does not read."""
    return path.suffix.lower() in LISTS or path.name.lower() in LIST_NAMES


def is_ours(path: Path) -> bool:
    """Whether a file is a cache or a record of this program."""
    return bool(_OURS.fullmatch(path.name.lower()) or medium_of(path.name))


def is_of_the_system(path: Path) -> bool:
    """Whether a file is one that an operating system writes into folders."""
    return path.name.lower() in _OF_THE_SYSTEM


def is_laid(path: Path) -> bool:
    """Whether a person may have laid a file beside media: it is neither this program's nor the system's."""
    return not (is_ours(path) or is_of_the_system(path))


def _entries(folder: Path) -> list[dict[str, Any]]:
    """A dataset for the videos of a folder and one for its images, or one for its sounds where it has nothing else."""
    held = _held(folder)
    entries: list[dict[str, Any]] = [{f"{kind}_directory": str(folder.absolute())} for kind in held]
    if (ending := _caption_ending(folder)) != _CAPTION:
        entries = [{**entry, "caption_extension": ending} for entry in entries]
    for entry in entries[1:]:  # the first has its caches beside the media
        entry["cache_directory"] = str((folder / "image_caches").absolute())
    return entries


def _caption_ending(folder: Path) -> str:
    """That of the captions in `folder`: kohya's scripts look for .caption where they are told nothing, and some
    programs write .json."""
    media = {path.stem for path in _files(folder) if path.suffix.lower() in _MEDIA}
    endings = {path.suffix.lower() for path in _files(folder) if path.stem in media}
    return next((one for one in (_CAPTION, ".caption", ".json") if one in endings), _CAPTION)


def _held(folder: Path) -> list[str]:
    endings = {path.suffix.lower() for path in _files(folder)}
    there = [kind for kind, suffixes in _KINDS.items() if endings & suffixes]
    return [kind for kind in there if kind != "audio"] or there


def _left_of_repeated(folder: Path, repeated: Mapping[Path, int]) -> Iterator[str]:
    """What kohya's scripts do not take either, and what of their sub-folders is no medium of a dataset."""
    none = [sub for sub, repeats in repeated.items() if not repeats]
    yield from _left_folders(none, "has 0 repeats in its name")
    others = [sub for sub in _folders(folder) if sub not in repeated]
    yield from _left_folders(others, "has no number of repeats in front of its name, as 10_name has")
    loose = [path for path in _files(folder) if not is_beside_media(path)]
    yield from _named(loose, "lies beside the sub-folders, not in one")
    for sub in (sub for sub, repeats in repeated.items() if repeats):
        if _held(sub) and not any(path.suffix.lower() == _caption_ending(sub) for path in _files(sub)):
            yield f"{sub.name}: it holds no captions, and those scripts take its name for one; write them"
        yield from _left_files(sub, f"{sub.name}/")
        yield from _left_folders(_folders(sub), "is not looked into; recursive = true takes it", f"{sub.name}/")


def _left_files(folder: Path, where: str = "") -> Iterator[str]:
    """The files of `folder` that no dataset of `_entries` takes and that are no captions."""
    taken = {_caption_ending(folder), *(ending for kind in _held(folder) for ending in _KINDS[kind])}
    others = [path for path in _files(folder) if path.suffix.lower() not in taken and not is_beside_media(path)]
    sounds = [path for path in others if path.suffix.lower() in AUDIO_SUFFIXES]
    pictures = {path.stem for path in _files(folder) if path.suffix.lower() in _PICTURES}
    strange = [path for path in sounds if path.stem not in pictures]
    yield from _named(
        strange,
        "is a sound that no picture has the name of. Give it the name of its clip (of NAME_audio the pair lacks its "
        'NAME_end) and set audio_source = "audio_files", or name its folder as audio_directory of a dataset',
        where,
    )
    yield from _named(
        [path for path in sounds if path not in strange],
        'is a sound beside pictures. audio_source = "audio_files" takes it as the sound of the clip of its name, '
        "audio_directory as a recording of its own",
        where,
    )
    lists = [path for path in others if is_list(path)]
    yield from _named(
        lists, "is a list of media by its name, which no folder reads; name it in a dataset instead", where
    )
    unread = [path for path in others if path not in sounds and path not in lists]
    yield from _named(unread, "is of a kind that is not read", where)


def _left_folders(folders: Sequence[Path], why: str, where: str = "") -> Iterator[str]:
    links = [folder for folder in folders if folder.is_symlink()]
    yield from _named(
        links, "is a link to a folder, and links are not followed; name it as a dataset of its own", where
    )
    folders = [folder for folder in folders if folder not in links]
    found = {folder: {path.suffix.lower() for path, _ in below(folder, True)} for folder in folders}
    yield from _named([folder for folder, endings in found.items() if endings & _MEDIA], why, where)
    texts = [folder for folder, endings in found.items() if not endings & _MEDIA and endings & {_CAPTION, ".caption"}]
    yield from _named(texts, "holds texts, and captions are looked for beside their media", where)


def _named(paths: Collection[Path], why: str, where: str = "") -> Iterator[str]:
    """A sentence that names `paths`, each of which `why` tells of; none where there are none."""
    if paths:
        names = [f"{where}{path.name}" for path in paths][:_SHOWN_AT_MOST]
        more = f" and {len(paths) - len(names)} more" if len(paths) > len(names) else ""
        yield f"{', '.join(names)}{more}: {why}"


def is_beside_media(path: Path) -> bool:
    """Whether a file is one that goes with media: a caption, which is looked for by name, a cache or settings."""
    if is_list(path):
        return False
    return path.suffix.lower() in {_CAPTION, *BESIDE_MEDIA} or is_of_the_system(path)


def _pairs(files: Sequence[Path]) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a list, and sentences on the files that belong to none."""
    groups: dict[str, dict[str, Path]] = {}
    for path in files:
        found = _PART.fullmatch(path.stem)
        if found and path.suffix.lower() in (AUDIO_SUFFIXES if found["part"].lower() == "audio" else _PICTURES):
            groups.setdefault(found["root"], {}).setdefault(found["part"].lower(), path)
    pairs = {root: parts for root, parts in sorted(groups.items()) if "end" in parts and len(parts) > 1}
    captions = {path.stem: path for path in files if path.suffix.lower() == _CAPTION}
    rows: list[dict[str, str]] = []
    warnings: list[str] = []
    used: set[Path] = set()
    for root, parts in pairs.items():
        beside = captions.get(root) or captions.get(parts["end"].stem)
        used |= {*parts.values(), *([beside] if beside else [])}
        (caption, *_), warning = read_captions(beside) if beside else ([""], None)
        warnings += [warning] if warning else []
        row = {"video_path": str(parts["end"].absolute()), "caption": caption}
        row |= {key: str(parts[part].absolute()) for part, key in _COLUMNS.items() if part in parts}
        rows.append(row)
    rest = [
        path for path in files if path not in used and (path.suffix.lower() == _CAPTION or not is_beside_media(path))
    ]
    alone = [path for path in rest if path.suffix.lower() in _MEDIA]
    left = [
        *warnings,
        *_named([path for path in alone if _PART.fullmatch(path.stem)], "has no partner of its name, or a double"),
        *_named([path for path in alone if not _PART.fullmatch(path.stem)], "is no part of a pair"),
        *_named([path for path in rest if path not in alone], "belongs to no pair"),
    ]
    return rows, left


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_file(path) and not is_hidden(path, folder))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_dir(path) and not is_hidden(path, folder))
