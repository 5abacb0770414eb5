"""Which caches are to be made, found once from the headers of what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from ..events import Events
from .build import CacheReport
from .settings import CacheSettings

J = TypeVar("J")
State = tuple[bool, "str | None"]  # whether the cache is missing, and why it must be made again (None: it is fresh)


@dataclass
class Due(Generic[J]):
    """The caches of one kind: `jobs` are to be made, `kept` are fresh, of the first `replaced` have an old file.

    `place` gives the file of a job, `state` compares it with what it should be made from.
    """

    place: Callable[[J], Path]
    state: Callable[[J, CacheSettings], State]
    settings: CacheSettings
    jobs: list[J] = field(default_factory=list)
    kept: list[J] = field(default_factory=list)
    replaced: dict[Path, str] = field(default_factory=dict)
    _seen: dict[Path, tuple[int, ...] | None] = field(default_factory=dict)

    @classmethod
    def find(
        cls,
        jobs: Iterable[J],
        place: Callable[[J], Path],
        state: Callable[[J, CacheSettings], State],
        settings: CacheSettings,
    ) -> Due[J]:
        """Look at the file of each of `jobs`. A file that several of them name is made for the first."""
        due = cls(place, state, settings)
        for job in jobs:
            path = place(job)
            if path in due._seen:
                due.kept.append(job)
                continue
            seen = _stamp(path)
            missing, reason = state(job, settings)
            if missing or reason:
                due.jobs.append(job)
                due._seen[path] = seen
                if not missing:
                    due.replaced[path] = reason or ""
            else:
                due.kept.append(job)
        return due

    def report(self, kind: str, events: Events) -> CacheReport:
        """The report to be filled in; says what is made again and why."""
        if self.settings.skip_existing:
            for path, reason in self.replaced.items():
                events.message(f"{path.name} is made again: {reason}")
        return CacheReport(kind, kept=len(self.kept), stale=len(self.replaced))

    def made_since(self, job: J) -> bool:
        """Whether another process has made the cache of `job` since this one looked."""
        path = self.place(job)
        now = _stamp(path)
        if now is None or now == self._seen.get(path):
            return False
        missing, reason = self.state(job, self.settings.model_copy(update={"skip_existing": True}))
        return not missing and not reason


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that replaced it; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
