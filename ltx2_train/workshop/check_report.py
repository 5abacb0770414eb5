"""What a check found, and how a person or a program reads it: green, amber or red; file, reason, remedy.

Red: the file will not be trained on, or training will not start. Amber: it will be, but a person should look at it;
rules of thumb are never more than that. Green: nothing to say.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..shapes import VideoShape

if TYPE_CHECKING:
    from ..dataset.account import Account
    from ..dataset.as_read import CaptionsAsRead

FindingLevel = Literal["green", "amber", "red"]
LEVELS: tuple[FindingLevel, ...] = ("green", "amber", "red")
SHOWN_OF_A_RULE = 5
WHOLE = "datasets"  # stands for all of them
LISTED_LETTERS = 400  # of names in a line; all are in the JSON
_VARYING = re.compile(r"\S*[\d./]\S+|\d+")  # numbers, names of files and their paths


@dataclass(frozen=True)
class Finding:
    """One thing to look at. `path` is None where it is about a whole dataset; `rule` is a short fixed name."""

    level: FindingLevel
    rule: str
    dataset: str
    reason: str
    remedy: str = ""
    path: Path | None = None

    def text(self, several: bool = True) -> str:
        """A line; of `several` datasets one that is about a whole one begins with its name."""
        remedy = f" {self.remedy}" if self.remedy else ""
        end = "" if self.reason.endswith((".", "?")) else "."
        about = f"{self.path.name}: " if self.path else f"{self.dataset}: " if several else ""
        return f"{about}{self.reason}{end}{remedy}"

    @property
    def gist(self) -> tuple[str, ...]:
        """Equal for findings that say the same of different files, but for numbers and names."""
        own = "" if self.path is None else rf"(?<!\w){re.escape(self.path.stem)}(?!\w)"
        return self.rule, self.remedy, own and "file", _VARYING.sub("", re.sub(own, "", self.reason))

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "path": None if self.path is None else str(self.path)}


@dataclass(frozen=True)
class FileCheck:
    """What becomes of one file. `lost_frame` and `lost_clip` are the shares of picture and length not trained on."""

    path: Path
    dataset: str
    level: FindingLevel
    samples: int = 0
    sizes: tuple[VideoShape, ...] = ()  # of its samples
    lost_frame: float | None = None
    lost_clip: float | None = None
    caption: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "dataset": self.dataset,
            "level": self.level,
            "samples": self.samples,
            "sizes": [f"{size.width}x{size.height}x{size.frames}" for size in self.sizes],
            "lost_frame": _rounded(self.lost_frame),
            "lost_clip": _rounded(self.lost_clip),
        }


@dataclass(frozen=True)
class CheckReport:
    """All findings on a dataset file, worst first, and one entry for each file that was found."""

    source: str
    files: tuple[FileCheck, ...]
    findings: tuple[Finding, ...]
    seconds: float = 0.0
    captions: CaptionsAsRead | None = None  # of all that is trained on
    accounts: tuple[Account, ...] = ()  # of each folder and list that the datasets name

    @property
    def level(self) -> FindingLevel:
        return worst(self.findings)

    @property
    def ok(self) -> bool:
        """False where something is red."""
        return self.level != "red"

    def of(self, path: Path) -> list[Finding]:
        """The findings on one file."""
        return [finding for finding in self.findings if finding.path == path]

    def counts(self) -> dict[str, int]:
        """Files by level."""
        return {level: sum(file.level == level for file in self.files) for level in LEVELS}

    def text(self) -> str:
        """For a terminal or a node: the counts, what is lost, every finding (of those that say the same five, and the
        names of the others), and captions as they are read."""
        counts = self.counts()
        several = len({one.dataset for one in (*self.files, *self.findings)} - {WHOLE}) > 1
        whole = sum(finding.path is None for finding in self.findings)  # that colour the dataset, and no file
        lines = [
            f"{self.level.upper()}: {len(self.files)} files, {counts['green']} green, {counts['amber']} amber, "
            f"{counts['red']} red{f', {whole} on the whole' if whole else ''}, "
            f"{sum(file.samples for file in self.files)} samples ({self.seconds:.1f} s)"
        ]
        lines += [account.text(named=False) for account in self.accounts]
        if lost := _losses(self.files):
            lines.append(lost)
        for level in ("red", "amber"):
            alike: dict[tuple[str, ...], list[Finding]] = {}
            for finding in self.findings:
                if finding.level == level:
                    alike.setdefault(finding.gist, []).append(finding)
            for group in alike.values():
                begin = f"{level.upper():5}  {group[0].rule:16}"
                # of a whole dataset each says something else
                shown = SHOWN_OF_A_RULE if group[0].path is not None else len(group)
                lines += [f"{begin} {finding.text(several)}" for finding in group[:shown]]
                if more := [finding.path.name for finding in group[shown:] if finding.path]:
                    lines.append(f"{begin} and {len(more)} more: {listed(more)}")
        lines += [] if self.captions is None else [self.captions.text()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "level": self.level,
            "counts": self.counts(),
            "lost_frame": _rounded(mean_of([file.lost_frame for file in self.files])),
            "lost_clip": _rounded(mean_of([file.lost_clip for file in self.files])),
            "seconds": round(self.seconds, 3),
            "captions": None if self.captions is None else self.captions.to_json(),
            "accounts": [account.to_json() for account in self.accounts],
            "findings": [finding.to_json() for finding in self.findings],
            "files": [file.to_json() for file in self.files],
        }


def worst(findings: Sequence[Finding]) -> FindingLevel:
    """The highest level among `findings`; green where there is none."""
    return LEVELS[max((LEVELS.index(finding.level) for finding in findings), default=0)]


def listed(names: Sequence[str]) -> str:
    """Names in a line, as many as it takes, and how many more there are."""
    letters = 0
    for count, name in enumerate(names):
        letters += len(name) + 2
        if letters > LISTED_LETTERS and count:
            return f"{', '.join(names[:count])} and {len(names) - count} more"
    return ", ".join(names)


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _losses(files: Sequence[FileCheck]) -> str:
    parts = []
    for share, what in (("lost_frame", "of the picture"), ("lost_clip", "of the length")):
        known = [(getattr(file, share), file.path.name) for file in files if getattr(file, share) is not None]
        if known:
            most, name = max(known)
            mean = sum(value for value, _ in known) / len(known)
            parts.append(f"{mean:.0%} {what} on average, at most {most:.0%} ({name})")
    return f"Cut away: {'; '.join(parts)}" if parts else ""


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
