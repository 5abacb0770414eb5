"""What lies in a media folder besides media: strays, captions without a medium, links that lead nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from ..dataset.companions import folders_beside
from ..dataset.dataset_file import DatasetRef, DatasetSettings
from ..dataset.items import Item
from ..dataset.layouts import BESIDE_MEDIA, OF_THE_SYSTEM, is_list
from ..dataset.not_taken import named_places, unreached
from ..dataset.scan import MEDIA_SUFFIXES, unread_kind
from ..files import CLOSED, below
from ..media.names import name_key, readable, shown_path, why_unreadable
from .check_report import Finding


def folder_findings(dataset: str, entry: DatasetSettings, others: Sequence[DatasetSettings]) -> list[Finding]:
    """Findings on the folder of `entry`; `others` are all entries, some of which may read the same folder."""
    folder = entry.source
    if not folder.is_dir():
        return []
    kinds = {other.kind for other in others if _same(other.source, folder)}
    if entry.audio_source == "audio_files":
        kinds.add("audio")
    used = set().union(*(MEDIA_SUFFIXES[kind] for kind in kinds))
    findings: list[Finding] = []
    named = named_places(others)
    media: set[str] = set()
    captions: list[Path] = []
    strays: list[tuple[Path, str, str]] = []
    for path, problem in below(folder, entry.recursive):
        ending = path.suffix.lower()
        if not readable(path.name):
            if ending not in MEDIA_SUFFIXES[entry.kind]:  # of media the plan says it
                reason, remedy = why_unreadable(path.name)
                strays.append((shown_path(path), reason, f"{remedy[0].upper()}{remedy[1:]}."))
        elif problem.startswith(CLOSED):
            continue  # the plan says it
        elif problem:
            remedy = "Remove the link, or let it point at a file."
            findings.append(Finding("red" if ending in used else "amber", "link", dataset, problem, remedy, path))
        elif path.is_dir():
            if entry.recursive and path.is_symlink():
                remedy = "Name its folder in a [[datasets]] of its own."
                reason = "is a link to a folder, which is not followed"
                findings.append(Finding("amber", "sub-folder", dataset, reason, remedy, path))
            if not entry.recursive:
                findings += _sub_folder(dataset, entry, path, named)
        elif ending in used:
            media.add(name_key(str(path.with_suffix(""))))
        elif path.name.lower().endswith(entry.caption_extension.lower()):
            captions.append(path)
        elif unread := unread_kind(path):
            kind, what, mend = unread
            media.add(name_key(str(path.with_suffix(""))))
            if entry.kind != kind:  # of those the plan says it
                strays.append((path, f"is {what}", f"{mend[0].upper()}{mend[1:]}, for {kind}_directory."))
        elif is_list(path) and path.absolute() not in named:
            remedy = "Name it in a [[datasets]] of its own to use it (docs/dataset_file.md), or move it elsewhere."
            strays.append((path, "is a list of media by its name, and a folder does not read it", remedy))
        elif ending not in BESIDE_MEDIA and path.name.lower() not in OF_THE_SYSTEM:
            kind = next((kind for kind, endings in MEDIA_SUFFIXES.items() if ending in endings), None)
            if kind:
                media.add(name_key(str(path.with_suffix(""))))  # whose caption is no stray
                article = "an" if kind != "video" else "a"
                strays.append((path, f"{article} {kind} is not used here", f"Name the folder as {kind}_directory too."))
            else:
                strays.append((path, "is not a medium", "Move it elsewhere."))
    for path in captions:
        if name_key(str(path)[: -len(entry.caption_extension)]) not in media:
            strays.append((path, "is a caption without its medium", "Rename one of the two, or remove it."))
    findings += [
        Finding("amber", "other-file", dataset, reason, remedy, path) for path, reason, remedy in sorted(strays)
    ]
    return findings


def pair_findings(part: DatasetRef, items: Sequence[Item], all_targets: Mapping[Path, Sequence[Path]]) -> list[Finding]:
    """Targets without a reference or mask, and references without a target.

    `items` are those of the dataset; `all_targets` are those of every dataset, by the folder of references: several
    datasets may share one.
    """
    findings: list[Finding] = []
    for key, role, folder, endings in folders_beside(part.entry):
        rule = role.split()[0]
        if not folder.is_dir():
            findings.append(Finding("red", rule, part.name, f"{key} {folder} is not a folder", "Correct the path."))
            continue
        files = [path for path, problem in below(folder, True) if not problem and path.suffix.lower() in endings]
        there = {name_key(path.stem) for path in files}
        wanted = {name_key(path.stem) for path in all_targets.get(folder, ())}
        heard = "sound" in role
        for path in dict.fromkeys(item.source.path for item in items if item.sound is not None or not heard):
            if key != "audio_files_directory" and name_key(path.stem) not in there:
                reason = f"no file of its name in {key} ({folder.name})"
                findings.append(Finding("amber", rule, part.name, reason, f"Add its {role}, or remove it.", path))
        for path in sorted(files):
            if folder != part.entry.source and name_key(path.stem) not in wanted:
                reason = f"is a {role} without a target"
                findings.append(Finding("amber", rule, part.name, reason, "Add the target of its name.", path))
    return findings


def _sub_folder(dataset: str, entry: DatasetSettings, folder: Path, named: Collection[Path]) -> Iterator[Finding]:
    """What a sub-folder holds, at any depth, that is not used; `named` are what the datasets name."""
    if folder.absolute() in named:
        return
    counts = Counter(kind for _, kind, reached in unreached(entry.source, [entry], named, folder) if not reached)
    if count := counts[entry.kind]:
        reason = f"its {count} {entry.noun} are not used"
        yield Finding("amber", "sub-folder", dataset, reason, "Set recursive = true to use them.", folder)
    elif counts:
        held = " and ".join(f"{count} of {kind}" for kind, count in counts.items())
        remedy = (
            "Name it in a [[datasets]] of its own, or as what it is for (mask_directory ...), or move it elsewhere."
        )
        yield Finding("amber", "sub-folder", dataset, f"its media ({held}) are not used", remedy, folder)


def _same(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute()
