"""What lies in a media folder besides media: strays, captions without a medium, links that lead nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..dataset.companions import folders_beside
from ..dataset.dataset_file import DatasetRef, DatasetSettings
from ..dataset.idle_beside import IN_SUB_FOLDER, OTHER_CASE, OTHER_ENDING, OTHER_KIND, IdleFile
from ..dataset.items import Item
from ..dataset.not_taken import A_LIST, ALONE, LONE_CAPTION, RENAME, SOUND_ALONE, named_places, strays, unreached
from ..dataset.scan import MEDIA_SUFFIXES, unread_kind
from ..files import CLOSED, below
from ..media.names import readable, shown_path, why_unreadable
from .check_report import Finding

REMEDIES = {
    A_LIST: "Name it in a [[datasets]] of its own to use it (docs/dataset_file.md), or move it elsewhere.",
    ALONE: "Rename one of the two, or remove it.",
}


def folder_findings(dataset: str, entry: DatasetSettings, others: Sequence[DatasetSettings]) -> list[Finding]:
    """Findings on the folder of `entry`; `others` are all entries, some of which may read the same folder."""
    folder = entry.source
    if not folder.is_dir():
        return []
    alike = [other for other in others if _same(other.source, folder)]
    used = set().union(*(MEDIA_SUFFIXES[other.kind] for other in alike))
    named = named_places(others)
    findings: list[Finding] = []
    for path, problem in below(folder, entry.recursive):
        if problem.startswith(CLOSED) or not readable(path.name):
            continue  # the plan says it
        if problem:
            level = "red" if path.suffix.lower() in used else "amber"
            findings.append(
                Finding(level, "link", dataset, problem, "Remove the link, or let it point at a file.", path)
            )
        elif path.is_dir() and entry.recursive and path.is_symlink():
            remedy = "Name its folder in a [[datasets]] of its own."
            reason = "is a link to a folder, which is not followed"
            findings.append(Finding("amber", "sub-folder", dataset, reason, remedy, path))
        elif path.is_dir() and not entry.recursive:
            findings += _sub_folder(dataset, entry, path, named)
    told = [(path, reason.partition("; ")[0], _remedy(path, reason)) for path, reason in strays(folder, alike, named)]
    for path, kind, reached in unreached(folder, alike, named):
        if kind == SOUND_ALONE:
            reason, _, remedy = RENAME.partition("; ")
            told.append((path, reason, f"{remedy[0].upper()}{remedy[1:]}."))
        elif reached:
            article = "an" if kind != "video" else "a"
            told.append((path, f"{article} {kind} is not used here", f"Name the folder as {kind}_directory too."))
    findings += [
        Finding("amber", "other-file", dataset, reason, remedy, shown_path(path))
        for path, reason, remedy in sorted(told)
    ]
    return findings


def _remedy(path: Path, reason: str) -> str:
    """What to do with a file that is not used, for `reason`."""
    if not readable(path.name):
        mend = why_unreadable(path.name)[1]
    elif unread := unread_kind(path):
        mend = f"{unread[2]}, for {unread[0]}_directory"
    elif mend := reason.partition("; ")[2]:
        pass
    else:
        return REMEDIES.get(reason, "Move it elsewhere.")
    return f"{mend[0].upper()}{mend[1:]}."


def pair_findings(part: DatasetRef, items: Sequence[Item]) -> list[Finding]:
    """Targets among `items`, those of the dataset, without a reference or mask."""
    findings: list[Finding] = []
    for key, role, folder, _ in folders_beside(part.entry):
        rule = role.split()[0]
        if not folder.is_dir():
            findings.append(Finding("red", rule, part.name, f"{key} {folder} is not a folder", "Correct the path."))
            continue
        lacking = dict.fromkeys(item.source.path for item in items if _lacks(item, key, folder))
        reason = f"no file of its name in {key} ({folder.name})"
        findings += [
            Finding("amber", rule, part.name, reason, f"Add its {role}, or remove it.", path) for path in lacking
        ]
    return findings


def _lacks(item: Item, key: str, folder: Path) -> bool:
    """Whether `item` has nothing of what its dataset names `folder` for; of references and sounds the plan says it."""
    if key == "mask_directory":
        return item.kind != "audio" and item.mask is None
    if key == "audio_mask_directory":
        return item.sound is not None and item.audio_mask is None
    if "reference_audio" not in key or item.sound is None:
        return False
    number = item.dataset.entry.reference_audio_directories.index(folder)
    return number >= len(item.reference_audios) or item.reference_audios[number] is None


def idle_finding(file: IdleFile) -> Finding:
    """The finding on a file beside media that goes with none of them."""
    rule, reason, remedy = file.role.split()[0], f"is a {file.role} without a target", "Add the target of its name."
    if file.reason == OTHER_KIND:
        rule, reason, remedy = (
            "other-file",
            f"is in a folder of {file.role}s, and of no kind that is read there",
            "Move it elsewhere.",
        )
    elif file.reason == OTHER_ENDING:
        ending = file.ref.entry.audio_extension
        rule, reason = "other-file", f'is a sound, and audio_extension = "{ending}" names another ending'
        remedy = "Leave audio_extension out to use every kind, or move the file elsewhere."
    elif file.reason == IN_SUB_FOLDER:
        reason = f"is a {file.role} in a sub-folder that is not that of the medium of its name"
        remedy = "Move it up, or into the sub-folder that its medium has."
    elif file.reason == OTHER_CASE:
        reason = f"is a {file.role} beside another one, which has the very name of the medium"
        remedy = "Keep one of the two."
    return Finding("amber", rule, file.ref.name, reason, remedy, file.path)


def _sub_folder(dataset: str, entry: DatasetSettings, folder: Path, named: Collection[Path]) -> Iterator[Finding]:
    """What a sub-folder holds, at any depth, that is not used; `named` are what the datasets name."""
    if folder.absolute() in named:
        return
    counts = Counter(kind for _, kind, reached in unreached(entry.source, [entry], named, folder) if not reached)
    if count := counts[entry.kind]:
        reason = f"its {count} {entry.noun} are not used"
        linked = "Name its folder in a [[datasets]] of its own, since links are not followed."
        remedy = linked if folder.is_symlink() else "Set recursive = true to use them."
        yield Finding("amber", "sub-folder", dataset, reason, remedy, folder)
    elif counts:
        held = " and ".join(f"{count} of {kind}" for kind, count in counts.items() if kind != LONE_CAPTION)
        held = (
            f"its media ({held}) are"
            if held
            else f"its captions ({counts[LONE_CAPTION]}), without media of their names, are"
        )
        remedy = (
            "Name it in a [[datasets]] of its own, or as what it is for (mask_directory ...), or move it elsewhere."
        )
        yield Finding("amber", "sub-folder", dataset, f"{held} not used", remedy, folder)


def _same(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute()
