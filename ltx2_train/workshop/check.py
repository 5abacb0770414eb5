"""Looking through a dataset before it costs hours: what cannot be used, what deserves a look, what will be cut away.

The plan says what the trainer uses and leaves out; beside it, a thread pool decodes a frame and some sound of every
file. No model is loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ..caching.recipe import CacheRecipe
from ..dataset.account import Account, accounts, in_groups
from ..dataset.dataset_file import DatasetConfig, DatasetRef, DatasetSettings
from ..dataset.idle_beside import idle_beside
from ..dataset.items import TooManyLeftOut
from ..dataset.not_taken import named_places
from ..dataset.notes import OF_FILES, DataNote
from ..dataset.outputs import cache_folder_faults
from ..dataset.plan import DatasetPlan, Item, plan_dataset, used_beside
from ..dataset.scan import MEDIA_SUFFIXES, MediaFile, NothingLeft, Skipped, find_media, unread_kind
from ..errors import ConfigError, DataError
from ..events import Events, Passing, shielded
from ..feed.captions_in_use import captions_in_use
from ..shapes import VideoShape
from ..threads import Threads
from .check_files import FileFacts, examine, file_findings, left_out_finding, lost_clip, lost_frame
from .check_folder import folder_findings, idle_finding, pair_findings
from .check_report import LEVELS, WHOLE, CheckReport, FileCheck, Finding, listed, worst
from .check_rules import dataset_findings, duplicate_findings, size_finding, validation_findings
from .choices import GOALS

__all__ = ["CheckReport", "FileCheck", "Finding", "check_dataset"]

_CONDITION, NOTHING_LEFT = "condition", "nothing-left"

# rules about what is heard of clips, which a run of pictures alone does not train on
OF_CLIP_SOUND = ("sound-gone", "silent", "mix", "short-sound", "clipped", "no-sound", "speaker")


class Problems(Protocol):
    """Why a run could not train on what is looked through."""

    @property
    def hears(self) -> bool:
        """Whether the run trains on sound."""
        ...

    def idle(self, plan: DatasetPlan) -> DataNote | None:
        """What it does not train on, though it could be given; or None."""
        ...

    def of_item(self, item: Item) -> Iterable[str]:
        """Sentences that follow the name of the item."""
        ...

    def of_plan(self, plan: DatasetPlan) -> Iterable[str]:
        """Sentences on all of it, of which each item could be trained on."""
        ...


@dataclass
class _Part:
    """One dataset on its way through the check."""

    ref: DatasetRef
    found: list[MediaFile] = field(default_factory=list)
    facts: list[FileFacts] = field(default_factory=list)
    plan: DatasetPlan | None = None
    skipped: Sequence[Skipped] = ()  # of which nothing can be used, and so no plan
    findings: list[Finding] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def entry(self) -> DatasetSettings:
        return self.ref.entry


def check_dataset(
    source: Path | str | DatasetConfig,
    goal: str | None = None,
    events: Events | None = None,
    problems: Problems | None = None,
) -> CheckReport:
    """Check a dataset file, or settings that were read already.

    `goal` (character, style, motion, voice, edit) decides how many files are enough; `problems` says why a run could
    not train on it. Raises ConfigError or DataError only where the file itself
    cannot be read; everything else is a finding.
    """
    if goal is not None and goal not in GOALS:
        raise ConfigError(f"goal: {goal!r} is not known. Use one of {', '.join(GOALS)}.")
    events, started = shielded(events), time.monotonic()
    config = source if isinstance(source, DatasetConfig) else DatasetConfig.read(source)
    entries = [ref.entry for ref in config.refs]
    for note in config.notes:
        events.message(note)
    parts = [_Part(ref) for ref in config.refs]
    for part in parts:
        _check_part(part, config, entries, goal, events)
        if problems is not None:
            part.findings += _unfit(part, problems)
            if not problems.hears:
                part.findings = [one for one in part.findings if one.rule not in OF_CLIP_SOUND]
    _pair_up(parts)
    _tell_once(parts)
    _count_left_out(parts)
    told_of = _accounts(parts)
    of_all = [] if problems is None else _unfit_together(parts, problems)
    training = [part for part in parts if not part.ref.validation]
    everything = [(part.name, fact) for part in training for fact in part.facts]
    findings = [*of_all, *(finding for part in parts for finding in part.findings)]
    findings += [Finding("amber", "settings", WHOLE, note.rstrip(".")) for note in config.notes if note.kind == "idle"]
    findings += duplicate_findings(everything, events)
    held_out = [(part.name, fact) for part in parts if part.ref.validation for fact in part.facts]
    findings += validation_findings(held_out, {fact.path for _, fact in everything})
    voices = bool(training) and all(part.entry.kind == "audio" for part in training)
    counted = [fact for _, fact in everything]
    count = sum(len(fact.items) if fact.items[0].kind == "audio" else 1 for fact in counted)
    findings += size_finding(WHOLE, count, goal, voices)
    in_use = captions_in_use(config, _items(parts), CacheRecipe())
    findings += [Finding("amber", "caption", WHOLE, text.rstrip(".")) for text in in_use.told]
    findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    files = [file for part in parts for file in _files(part, findings)]
    name = "settings" if isinstance(source, DatasetConfig) else str(source)
    return CheckReport(name, tuple(files), tuple(findings), time.monotonic() - started, in_use.read, told_of)


def _check_part(
    part: _Part, config: DatasetConfig, entries: Sequence[DatasetSettings], goal: str | None, events: Events
) -> None:
    name, entry = part.name, part.entry
    if faults := cache_folder_faults(entry):
        part.findings += [Finding("red", "settings", name, fault, "Name a folder for caches.") for fault in faults]
        return
    if entry.from_caches:
        reason = "is read from its caches alone, which are not looked into here"
        part.findings.append(Finding("amber", "settings", name, reason, "See `ltx2-train cache status`."))
        return
    if entry.source_key.endswith("_directory"):
        part.findings += folder_findings(name, entry, entries)
    links = {finding.path for finding in part.findings if finding.rule == "link"}
    strange: list[Skipped] = []
    try:
        part.found, strange = find_media(name, entry)
        plan = plan_dataset(config, Passing(events, ("stage", "progress")), only=part.ref)  # the rest is in the report
    except DataError as error:
        part.skipped = error.skipped if isinstance(error, NothingLeft) else ()
        general = str(error).splitlines()[0].removeprefix(f"{name}: ").removeprefix(f"{name}.").rstrip(".")
        part.findings.append(Finding("red", NOTHING_LEFT, name, general))
        left_out = part.skipped or strange
        part.findings += [left_out_finding(name, skip.path, skip.reason) for skip in left_out if skip.path not in links]
        return
    part.plan = plan
    trained = {item.source.path for item in plan.items}  # though a second row of theirs may be left out
    for skip in plan.skipped:
        if skip.path not in links:
            finding = left_out_finding(name, skip.path, skip.reason)
            part.findings.append(replace(finding, level="amber") if skip.path in trained else finding)
    for note in plan.warnings:
        if note.dataset == name and note.kind not in OF_FILES:
            part.findings.append(Finding("amber", "settings", name, _told_whole(note)))
    part.facts = _examined(plan.items, part.found, f"look into {name}", events)
    for fact in part.facts:
        part.findings += file_findings(name, fact, entry)
    part.findings += dataset_findings(name, entry, part.facts, goal)


def _told_whole(note: DataNote) -> str:
    return f"{note.words}: {listed(note.names)}" if note.names else note.words.rstrip(".")


def _tell_once(parts: Sequence[_Part]) -> None:
    """Take back what is said of a file or folder that another dataset uses, or that was said for another dataset."""
    used = {candidate.path.absolute() for part in parts for candidate in part.found}
    used |= {path.absolute() for path in used_beside(_items(parts))}
    used |= {folder for path in used for folder in path.parents}
    told: set[tuple[str, str, Path]] = set()
    for part in parts:
        kept: list[Finding] = []
        for finding in part.findings:
            if finding.rule in ("other-file", "sub-folder") and finding.path is not None:
                key = finding.rule, finding.reason, finding.path
                if key in told or finding.path.absolute() in used:
                    continue
                told.add(key)
            kept.append(finding)
        part.findings = kept


def _accounts(parts: Sequence[_Part]) -> tuple[Account, ...]:
    """What becomes of each file and row that the datasets name; what nothing is said of yet becomes a finding."""
    found = {part.ref: part.found for part in parts if not part.entry.from_caches}
    left_out = {part.ref: part.skipped if part.plan is None else part.plan.skipped for part in parts}
    told = {finding.path for part in parts for finding in part.findings if finding.path is not None}
    of_all = tuple(accounts(found, _items(parts), left_out, told))
    for account in of_all:
        if account.untold:
            reason = f"{len(account.untold)} files of {account.place} are unused besides: {in_groups(account.untold)}"
            parts[0].findings.append(Finding("amber", "other-file", WHOLE, reason, "Move them elsewhere."))
    return of_all


def _items(parts: Sequence[_Part]) -> list[Item]:
    return [item for part in parts if part.plan is not None for item in part.plan.items]


def _count_left_out(parts: Sequence[_Part]) -> None:
    """Say where more is left out than may be, and take back that nothing of a kind can be used where its folder has
    other kinds: as a run does, which has all of them before it."""
    planned = [part for part in parts if part.plan is not None]
    for part in parts:
        if part.skipped and any(other.ref.shares_folder(part.ref) for other in planned):
            part.findings = [finding for finding in part.findings if finding.rule != NOTHING_LEFT]
    if not planned:
        return
    plans = [part.plan for part in planned if part.plan is not None]
    left_out = {part.ref: part.skipped for part in parts if part.skipped}
    left_out |= {ref: skipped for plan in plans for ref, skipped in plan.left_out.items()}
    together = replace(plans[0], items=tuple(item for plan in plans for item in plan.items), left_out=left_out)
    try:
        together.require_enough()
    except TooManyLeftOut as error:
        part = next(part for part in parts if part.ref == error.ref)
        part.findings.append(Finding("red", "left-out", error.name, error.words, error.remedy))


def _unfit_together(parts: Sequence[_Part], problems: Problems) -> list[Finding]:
    """Why the run that is asked about could not train on all of it, where that lies in no single file."""
    plans = [part.plan for part in parts if part.plan is not None]
    lost = any(part.plan is None and not part.entry.from_caches for part in parts)
    if not plans or lost or any(finding.rule == _CONDITION for part in parts for finding in part.findings):
        return []  # what is wrong is said already
    plan = replace(plans[0], items=tuple(_items(parts)))
    found = [Finding("red", _CONDITION, WHOLE, reason) for reason in problems.of_plan(plan)]
    idle = problems.idle(plan)
    if idle is not None:
        found.append(Finding("amber", "mode", WHOLE, _told_whole(idle)))
    return found


def _unfit(part: _Part, problems: Problems) -> list[Finding]:
    """Why the run that is asked about could not train on files of a dataset, once a file and reason."""
    found = []
    for fact in part.facts:
        for reason in dict.fromkeys(reason for item in fact.items for reason in problems.of_item(item)):
            found.append(Finding("red", _CONDITION, part.name, reason, path=fact.path))
    return found


def _pair_up(parts: Sequence[_Part]) -> None:
    """Add what is to be said of targets and the files beside them, once all targets are known."""
    for part in parts:
        part.findings += pair_findings(part.ref, () if part.plan is None else part.plan.items)
    found = {part.ref: part.found for part in parts if not part.entry.from_caches}
    used = used_beside(_items(parts))
    told: set[tuple[str, Path]] = set()  # a file may be unused as several things
    for file in idle_beside(found, used, named_places([ref.entry for ref in found])):
        finding = idle_finding(file)
        if (finding.rule, file.path) not in told:
            told.add((finding.rule, file.path))
            next(part for part in parts if part.ref == file.ref).findings.append(finding)


def _examined(items: Sequence[Item], found: Sequence[MediaFile], stage: str, events: Events) -> list[FileFacts]:
    captions = {candidate.path: candidate.caption_path for candidate in found}
    groups: dict[Path, list[Item]] = {}
    for item in items:
        groups.setdefault(item.source.path, []).append(item)
    events.stage(stage, len(groups))
    facts = []
    with Threads(min(8, os.cpu_count() or 1), "check", events) as threads:
        work = threads.map(lambda group: examine(group, captions.get(group[0].source.path)), groups.values())
        for done, fact in enumerate(work, 1):
            facts.append(fact)
            events.progress(done, len(groups), fact.path.name)
    return facts


def _files(part: _Part, findings: Sequence[Finding]) -> list[FileCheck]:
    about: dict[Path, list[Finding]] = {}
    for finding in findings:
        if finding.path is not None and finding.dataset == part.name:
            about.setdefault(finding.path, []).append(finding)
    facts = {fact.path: fact for fact in part.facts}
    beside = [path for path, these in about.items() if _counts(path, these)]
    paths = dict.fromkeys([candidate.path for candidate in part.found] + beside)
    files = []
    for path in paths:
        level = worst(about.get(path, ()))
        fact = facts.get(path)
        if fact is None:
            files.append(FileCheck(path, part.name, level))
            continue
        item = fact.items[0]
        sizes = dict.fromkeys(VideoShape(one.window.count, one.height, one.width, one.fps) for one in fact.items)
        picture = None if item.kind == "audio" else lost_frame(item)
        files.append(
            FileCheck(
                path,
                part.name,
                level,
                len(fact.items),
                tuple(sizes),
                picture,
                lost_clip(fact.items),
                item.caption,
            )
        )
    return files


def _counts(path: Path, findings: Sequence[Finding]) -> bool:
    """Whether a file that is not used is one of the dataset's media: one of a kind that is not read is, where it is
    looked for."""
    if any(path.suffix.lower() in endings for endings in MEDIA_SUFFIXES.values()):
        return True
    return unread_kind(path) is not None and worst(findings) == "red"
