"""Which caches are to be made, found once from the headers of what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .kind import CacheKind, CacheState, Job

MADE_AGAIN = "skip_existing is off"


@dataclass
class Due:
    """The caches of `kinds`: `jobs` are to be made, `kept` are fresh, of the first `replaced` have an old file."""

    kinds: Sequence[CacheKind[Any]]
    jobs: list[Job] = field(default_factory=list)
    kept: list[Job] = field(default_factory=list)
    replaced: dict[Path, str] = field(default_factory=dict)
    _seen: dict[Path, tuple[int, ...] | None] = field(default_factory=dict)

    @classmethod
    def find(cls, kinds: Sequence[CacheKind[Any]], skip_existing: bool = True) -> Due:
        """Look at the files of `kinds`, which are filled together. A file that several jobs name is made for the first.

        Without `skip_existing` all are to be made.
        """
        due = cls(kinds)
        for job in (job for kind in kinds for job in kind.jobs()):
            if job.path in due._seen:
                due.kept.append(job)
                continue
            seen = _stamp(job.path)
            state = job.kind.state(job) if skip_existing else _to_replace(job)
            if not state.fresh:
                due.jobs.append(job)
                due._seen[job.path] = seen
                if state.stale is not None:
                    due.replaced[job.path] = state.stale
            else:
                due.kept.append(job)
        return due

    def needed(self) -> Due:
        """Without the jobs that nothing needs any more."""
        return replace(self, jobs=[job for job in self.jobs if not job.kind.needless(job)])

    def made_since(self, job: Job) -> bool:
        """Whether another process has made the cache of `job` since this one looked."""
        now = _stamp(job.path)
        return now is not None and now != self._seen.get(job.path) and job.kind.state(job).fresh


def _to_replace(job: Job) -> CacheState:
    """Of a cache that is made again, whatever it is like."""
    there = job.path.is_file()
    return CacheState(not there, MADE_AGAIN if there else None)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What tells a file from the one that replaced it; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
