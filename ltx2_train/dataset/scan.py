"""Finding media and their captions, and saying plainly what was found where nothing can be used."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import DataError
from ..files import CLOSED, below
from ..media.images import IMAGE_SUFFIXES, UNREAD_PICTURES
from ..media.names import cache_stem, is_dir, is_file, name_key, readable, shown_path, why_no_file, why_unreadable
from ..media.sound_media import AUDIO_SUFFIXES, UNREAD_SOUNDS
from ..media.video import UNREAD_VIDEOS, VIDEO_SUFFIXES
from ..paths import is_run_folder
from .cache_names import CAPTION, FLIPPED
from .captions import (
    JSON_KEYS,
    NOT_TEXT,
    UNREAD_KEY,
    distinct_captions,
    in_other_letters,
    parse_replacement,
    read_captions,
    rewrite,
    says_something,
)
from .companions import folders_beside
from .dataset_file import DatasetSettings
from .entry import LIST_KEYS
from .layouts import explain_layout
from .lists import MediaFile, Skipped, read_list
from .notes import SHOWN_AT_MOST, DataNote
from .odd_captions import odd_form

__all__ = ["MEDIA_SUFFIXES", "MediaFile", "Skipped", "NothingLeft", "find_media", "unread_kind", "with_captions"]

ARCHIVES = (".zip", ".7z", ".rar", ".tar", ".tgz", ".gz")
NOT_FOLLOWED = "is a link to a folder, which is not followed; name its folder in a [[datasets]] of its own"
OF_A_RUN = "is the folder of a run, and what it drew is not trained on"
_MARKED = re.compile(rf"(?:{FLIPPED}|{CAPTION}\d+)$")  # names that belong to caches of other media
MEDIA_SUFFIXES = {"image": IMAGE_SUFFIXES, "video": VIDEO_SUFFIXES, "audio": AUDIO_SUFFIXES}
# By kind of dataset: endings that are named and not read, what such a file is, and what to do with it.
_UNREAD = {
    "image": (UNREAD_PICTURES, "a {} picture, a kind that is not read", "save it as PNG or JPEG"),
    "video": (UNREAD_VIDEOS, "a {} video, a kind that is not read", "save it as MP4 at its frame rate"),
    "audio": (UNREAD_SOUNDS, "{}, which is not read", "save it as WAV or FLAC"),
}


def find_media(
    name: str, entry: DatasetSettings, notes: list[DataNote] | None = None
) -> tuple[list[MediaFile], list[Skipped]]:
    """All media of a dataset in a fixed order; what is not used of a list or folder goes to `notes`.

    Of two in a folder that would share their cache files the first is kept. Lists gather media from many folders, which
    may well all be called alike there; those behind the first have their folder in the names of their caches.
    """
    listed = entry.source_key in LIST_KEYS or entry.source_key == "data_root"
    owners: dict[str, Path] = {}
    candidates, skipped = [], []
    notes = [] if notes is None else notes
    listing = read_list(name, entry, notes) if listed else _in_folder(name, entry, notes)
    for candidate in listing:
        if isinstance(candidate, Skipped):
            skipped.append(candidate)
            continue
        if mark := _MARKED.search(candidate.stem):
            what = "mirrored copy" if mark[0] == FLIPPED else "further caption"
            skipped.append(Skipped(candidate.path, f"its name ends in {mark[0]}, as the caches of a {what}; rename it"))
            continue
        if listed and owners.get(name_key(candidate.stem), candidate.path) != candidate.path:
            candidate.stem = _told_apart(candidate, owners)
        owner = owners.setdefault(name_key(candidate.stem), candidate.path)
        if owner is candidate.path:
            candidates.append(candidate)
        elif owner == candidate.path:
            reason = "is listed twice, and the first row counts; num_repeats repeats a dataset"
            skipped.append(Skipped(candidate.path, reason))
        else:
            reason = f"its name without the ending is that of {owner.name}, so both would share one cache; rename one"
            skipped.append(Skipped(candidate.path, reason))
    return candidates, skipped


def _told_apart(candidate: MediaFile, owners: Mapping[str, Path]) -> str:
    """A stem for a medium of a list whose own one another medium has: with as many of its folders as it takes."""
    path = candidate.path
    folders = [part for part in path.parent.parts if part not in (path.anchor, "..", ".")]
    for depth in range(1, len(folders) + 1):
        stem = cache_stem("__".join([*folders[-depth:], path.stem]))
        if owners.get(name_key(stem), path) == path:
            return stem
    return cache_stem("__".join([*folders, path.name]))


def _in_folder(name: str, entry: DatasetSettings, notes: list[DataNote]) -> Iterator[MediaFile | Skipped]:
    folder = entry.source
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        mend = "Unpack it, and name the folder" if folder.suffix.lower() in ARCHIVES else "Check the path"
        raise DataError(f"{name}.{entry.source_key}: {folder} {what}. {mend}.", folder)
    found = dict(below(folder, entry.recursive))
    runs = [path for path in found if entry.recursive and is_dir(path) and is_run_folder(path)]
    notes += [DataNote("settings", f"{path} {OF_A_RUN}", name) for path in runs]
    apart = {*runs, *(beside for _, _, beside, _ in folders_beside(entry) if folder in beside.parents)}
    found = {path: problem for path, problem in found.items() if apart.isdisjoint(path.parents)}
    if reason := found.get(folder):
        raise DataError(f"{name}.{entry.source_key}: {folder} {reason}.", folder)
    listed = sorted(found)
    closed = [
        Skipped(path, reason)
        for path, reason in found.items()
        if reason.startswith(CLOSED) and path.name != "lost+found"  # of a disk's root, which is of the system
    ]
    links = [path for path in listed if entry.recursive and path.is_symlink() and is_dir(path)]
    notes += [DataNote("link", f"{path} {NOT_FOLLOWED}", name) for path in links]
    media = [path for path in listed if path.suffix.lower() in MEDIA_SUFFIXES[entry.kind]]
    unread = [*closed, *_unread(listed, entry.kind)]
    if not unread and not any(path.is_file() for path in media):
        raise DataError(_empty_folder(name, entry, listed), folder)
    yield from unread
    captions: dict[tuple[Path, str], list[Path]] = {}
    for path in listed:
        if path.suffix.casefold() == entry.caption_extension.casefold():
            captions.setdefault((path.parent, name_key(path.name)), []).append(path)
    for path in media:
        if not readable(path.name):
            yield Skipped(shown_path(path), "; ".join(why_unreadable(path.name)))
        elif reason := why_no_file(path):
            yield Skipped(path, reason)
        else:
            # A folder becomes part of the cache name, so that equal names in two folders do not meet.
            stem = "__".join(path.relative_to(folder).with_suffix("").parts)
            wanted = path.with_suffix(entry.caption_extension)
            near = [one for one in captions.get((path.parent, name_key(wanted.name)), ()) if is_file(one)]
            beside = [one for one in near if one.stem == path.stem] or near or [wanted]
            if len(beside) > 1:
                names = " and ".join(one.name for one in beside)
                yield Skipped(path, f"two files could be its caption: {names}; keep one of them")
            else:
                yield MediaFile(path, cache_stem(stem), caption_path=beside[0])


def unread_kind(path: Path) -> tuple[str, str, str] | None:
    """Of a medium of a kind that is not read: "image", "video" or "audio", what it is, and what to do with it."""
    for kind, (endings, words, mend) in _UNREAD.items():
        if name := endings.get(path.suffix.lower()):
            return kind, words.format(name), mend
    return None


def _unread(listed: Sequence[Path], kind: str) -> list[Skipped]:
    """Media of `kind` in a form that is not read, unless they lie there in one that is as well."""
    read = {name_key(str(path.with_suffix(""))) for path in listed if path.suffix.lower() in MEDIA_SUFFIXES[kind]}
    return [
        Skipped(path, f"is {found[1]}; {found[2]}")
        for path in listed
        if (found := unread_kind(path)) and found[0] == kind and name_key(str(path.with_suffix(""))) not in read
    ]


def _empty_folder(name: str, entry: DatasetSettings, listed: Sequence[Path]) -> str:
    folder = entry.source
    endings = Counter(path.suffix.lower() or "without ending" for path in listed if path.is_file())
    there = ", ".join(f"{number} {ending}" for ending, number in endings.most_common(6)) or "nothing"
    empty = f"{name}.{entry.source_key}: no {entry.noun} in {folder}. It holds {there}."
    for other, suffixes in MEDIA_SUFFIXES.items():
        if other != entry.kind and any(ending in suffixes for ending in endings):
            return f"{empty} For these use {other}_directory."
    if layout := explain_layout(folder):
        return f"{empty} {layout}"
    if not entry.recursive:
        suffixes = MEDIA_SUFFIXES[entry.kind]
        for sub in sorted(path for path in listed if path.is_dir()):
            if any(path.suffix.lower() in suffixes for path, _ in below(sub, False)):
                return (
                    f"{empty} There are {entry.noun} in its sub-folder {sub.name}; name that, or set recursive = true."
                )
    return f"{empty} Put {entry.noun} there, each with its caption ({entry.caption_extension}), or name another folder."


def with_captions(
    name: str, entry: DatasetSettings, candidates: list[MediaFile], skipped: list[Skipped], warnings: list[DataNote]
) -> list[MediaFile]:
    ready = []
    used: set[str] = set()
    odd: dict[str, list[str]] = {}  # what is to be said of captions -> whose
    for candidate in candidates:
        beside = candidate.caption_path
        if beside is not None:
            if reason := why_no_file(beside):
                skipped.append(Skipped(candidate.path, f"no caption: {beside.name} {reason}"))
                continue
            try:
                unused: set[str] = set()
                captions, warning = read_captions(beside, entry.caption_lines, unused)
                candidate.unused = frozenset(unused)
                candidate.caption, *more = captions
                candidate.more_captions = tuple(more)
            except DataError as error:
                skipped.append(Skipped(candidate.path, str(error)))
                continue
            if warning:
                warnings.append(DataNote("file", warning))
        if not candidate.caption or not says_something(candidate.caption):
            where = (
                beside.name if beside is not None else f'the column "{entry.caption_column or "caption"}" of the list'
            )
            skipped.append(Skipped(candidate.path, f"empty caption: write what is to be seen or heard into {where}"))
            continue
        if found := NOT_TEXT.search(" ".join((candidate.caption, *candidate.more_captions))):
            skipped.append(
                Skipped(candidate.path, f"its caption holds a control character ({found[0]!r}); take it out")
            )
            continue
        forms = {
            f"the caption {form}" for one in (candidate.caption, *candidate.more_captions) if (form := odd_form(one))
        }
        for text in sorted(candidate.unused | forms):
            odd.setdefault(text, []).append(candidate.path.name if beside is None else beside.name)
        captions = [
            rewrite(caption, entry.caption_replace, entry.caption_prefix, entry.trigger_word, used)
            for caption in (candidate.caption, *candidate.more_captions)
        ]
        captions = [caption for caption in distinct_captions(captions) if says_something(caption)]
        if not captions:
            skipped.append(Skipped(candidate.path, "empty caption: caption_replace takes all of it away; narrow it"))
            continue
        candidate.caption, *more = captions
        candidate.more_captions = tuple(more)
        ready.append(candidate)
    if candidates:
        warnings += [DataNote("settings", text, name) for text in _of_rules(entry.caption_replace, used, ready)]
    keys = {text.removeprefix(UNREAD_KEY): odd.pop(text) for text in list(odd) if text.startswith(UNREAD_KEY)}
    if keys:
        names = list(dict.fromkeys(one for whose in keys.values() for one in whose))
        first = sorted(keys, key=lambda key: ("caption" not in key.lower() and key not in JSON_KEYS, key))
        told = f"{_all_of(names)}: beside the caption these are not read: {_all_of([repr(key) for key in first])}."
        warnings.append(DataNote("settings", told, name))
    warnings += [DataNote("caption", f"{_all_of(whose)}: {text}.", name) for text, whose in odd.items()]
    return ready


def _all_of(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_AT_MOST} more" if len(names) > SHOWN_AT_MOST else ""
    return ", ".join(names[:SHOWN_AT_MOST]) + more


def _of_capitals(rules: Sequence[str], ready: Sequence[MediaFile]) -> Iterator[str]:
    """A sentence on each rule that leaves its words in captions where their capitals are others."""
    for rule in rules:
        kept = {
            one.path.name: found
            for one in ready
            if (found := in_other_letters(" ".join((one.caption or "", *one.more_captions)), rule))
        }
        if kept:
            seen = repr(next(iter(kept.values())))
            names = _all_of(list(kept))
            yield f"caption_replace: {rule!r} leaves {seen} in {len(kept)} captions, as case counts: {names}."


def _of_rules(rules: Sequence[str], used: Collection[str], ready: Sequence[MediaFile]) -> Iterator[str]:
    """Sentences on rules that are not among those `used`, leave words for their capitals in the captions that are
    `ready`, or change what an earlier one has put in."""
    yield from _of_capitals(rules, ready)
    for rule in rules:
        if rule not in used:
            yield f"caption_replace: {rule!r} finds nothing in any caption; case counts, and words are found whole."
    for number, rule in enumerate(rules):
        for earlier in rules[:number]:
            put = parse_replacement(earlier)[1]
            if put and rewrite(put, [rule]) != put:
                yield (
                    f"caption_replace: {rule!r} changes what {earlier!r} has put in, since each rule goes over "
                    "what the ones before have left. Give them in another order if that is not meant."
                )


class NothingLeft(DataError):
    """Of the `count` media of a dataset, all of which are `skipped`, none can be used."""

    def __init__(self, name: str, entry: DatasetSettings, count: int, skipped: list[Skipped]) -> None:
        super().__init__(_nothing_left(name, entry, count, skipped), entry.source)
        self.skipped = skipped


def _nothing_left(name: str, entry: DatasetSettings, count: int, skipped: list[Skipped]) -> str:
    reasons = Counter(skip.reason.split(":")[0] for skip in skipped)
    if count and set(reasons) == {"no caption"} and entry.source_key.endswith("_directory"):
        if layout := explain_layout(entry.source):
            return f"{name}.{entry.source_key}: {count} {entry.noun}, but not one caption of their names. {layout}"
        return (
            f"There is not one caption for the {count} {entry.noun} in {entry.source.name}. "
            f"Each needs a text file of the same name ending in {entry.caption_extension}, "
            f"for example {skipped[0].path.with_suffix(entry.caption_extension).name}; "
            f"or set caption_extension to the ending yours have. ({name}.{entry.source_key}: {entry.source})"
        )
    shown = "\n".join(f"  {skip.path.name}: {skip.reason}" for skip in skipped[:SHOWN_AT_MOST])
    more = f"\n  and {len(skipped) - SHOWN_AT_MOST} more" if len(skipped) > SHOWN_AT_MOST else ""
    where = f"({name}.{entry.source_key}: {entry.source})"  # last, since a page shows the first lines alone
    return f"None of the {count} {entry.noun} in {entry.source.name} can be used.\n{shown}{more}\n{where}"
