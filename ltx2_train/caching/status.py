"""What lies in the cache folders of a plan: present, missing, stale with the reason, failed, and what nobody uses.

Headers alone are read, unless the files are verified first. Orphans are files with the endings of caches that no sample
of the plan would read; media and anything else in the folders are never looked at.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset.cache_names import TEXT_SUFFIX
from ..dataset.notes import SHOWN_AT_MOST
from ..dataset.plan import DatasetPlan
from ..dataset.sources import content_change, content_hash
from ..errors import CacheError, RunError
from ..events import Events
from ..weights.reader import ENDING
from .cache_file import MEND, CacheFile
from .due import Due
from .encode import Latents
from .encode_text import Text
from .kind import IN_ITS_PLACE, CacheKind
from .kinds import CACHE_KINDS, needed_kinds
from .notes import note_damage
from .recipe import CacheRecipe
from .writable import written_folders

_NAMES = {**{kind.suffix: kind.name for kind in CACHE_KINDS}, TEXT_SUFFIX: Text.name}
SUFFIXES = tuple(_NAMES)
STATES = ("present", "missing", "stale", "failed", "orphaned")


@dataclass(frozen=True)
class CacheRow:
    """One file: its kind (latents, sound, masks, dino, text; prompts: of samples), one of STATES, why, and its size,
    0 where it is not there."""

    path: Path
    kind: str
    state: str
    why: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class CacheStatus:
    """All files of a dataset's cache folders."""

    rows: tuple[CacheRow, ...]

    def of(self, state: str) -> list[CacheRow]:
        """The files in one of STATES."""
        return [row for row in self.rows if row.state == state]

    @property
    def complete(self) -> bool:
        """Whether training could start."""
        return not self.of("missing") and not self.of("stale")

    def to_json(self) -> dict[str, Any]:
        """Counts and bytes by state, and a row for every file that is not simply present."""
        rows = [row for row in self.rows if row.state != "present"]
        return {
            "complete": self.complete,
            "states": {s: {"files": len(self.of(s)), "bytes": sum(r.bytes for r in self.of(s))} for s in STATES},
            "files": [
                {"path": str(row.path), "kind": row.kind, "state": row.state, "why": row.why, "bytes": row.bytes}
                for row in rows
            ],
        }

    def text(self) -> str:
        """A line for each state that occurs, and some of the files."""
        lines = []
        for state in STATES:
            rows = self.of(state)
            if not rows:
                continue
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(row.kind for row in rows).items())
            size = sum(row.bytes for row in rows)
            lines.append(f"{state:9}{len(rows):6} files{f', {size / 1e6:.1f} MB' if size else ''} ({kinds})")
            if state == "present":
                continue
            lines += [f"  {row.path.name}{f': {row.why}' if row.why else ''}" for row in rows[:SHOWN_AT_MOST]]
            lines += [f"  and {len(rows) - SHOWN_AT_MOST} more"] if len(rows) > SHOWN_AT_MOST else []
        if not self.complete:
            lines.append(MEND)
        return "\n".join(lines) or "There are no caches, and none are needed."


def cache_status(plan: DatasetPlan, recipe: CacheRecipe) -> CacheStatus:
    """The state of every cache that `plan` needs in the mode of `recipe`, then the orphans."""
    rows: dict[Path, CacheRow] = {}
    for kind in needed_kinds(plan, recipe):
        for row in _rows(kind):
            rows.setdefault(row.path, row)
    text = Text(plan, recipe)
    other_form = {text.other.of(item).path for item in plan.items}
    orphans = [path for path in _files(plan) if path not in rows and path not in other_form]
    unused = [CacheRow(path, kind_name(path), "orphaned", "no sample uses it", path.stat().st_size) for path in orphans]
    return CacheStatus((*rows.values(), *unused))


def verify_caches(plan: DatasetPlan, recipe: CacheRecipe, events: Events) -> None:
    """Read all of every cache that `plan` needs, and of the media that they were made from.

    What is damaged, or was made from other bytes, is noted beside it, and stale from then on.
    """
    content_hash.cache_clear()  # it trusts in size and time
    jobs = {job.path: job for kind in needed_kinds(plan, recipe) for job in kind.jobs() if job.path.is_file()}
    events.stage("verify caches", len(jobs))
    for done, job in enumerate(sorted(jobs.values(), key=lambda job: job.source), 1):  # each medium is read once
        events.check_stop()
        with contextlib.suppress(CacheError):  # it is in the notes, or its header says it each time
            file = CacheFile(job.path)
            file.verify()
            if file.fingerprinted and (changed := content_change(file.record("source"), job.source)):
                note_damage(job.path, changed)
        events.progress(done, len(jobs), job.path.name)


def verify_kept(dues: Iterable[Due], events: Events) -> bool:
    """Read all of every cache that is kept; whether any of them is damaged, which is noted and makes it stale."""
    paths = sorted({job.path for due in dues for job in due.kept if job.path not in due.replaced})
    events.message(f"A cache is damaged, so all of the {len(paths)} that are kept are read.")
    events.stage("verify caches", len(paths))
    damaged = False
    for done, path in enumerate(paths, 1):
        events.check_stop()
        try:
            CacheFile(path).verify()
        except CacheError:
            damaged = True
        events.progress(done, len(paths), path.name)
    return damaged


def _rows(kind: CacheKind[Any]) -> Iterator[CacheRow]:
    for job in kind.jobs():
        if isinstance(kind, Text):
            job, state = kind.either(job.item)
        else:
            state = kind.state(job)
        if state.missing and kind.needless(job):
            continue
        failure = kind.failure(job) if state.missing else None
        yield _row(job.path, kind.name, state.missing, state.stale, failure)
        beside = kind.beside(job)
        if beside is not None:
            yield _row(beside, Latents.name, not beside.is_file(), None, failure)


def missing_row(path: Path, name: str, failure: str | None = None) -> CacheRow:
    """Of a cache that is not there: why it could not be made the last time, or what lies in its place."""
    if path.is_dir():
        return CacheRow(path, name, "missing", IN_ITS_PLACE)
    return CacheRow(path, name, "failed" if failure else "missing", failure or "")


def _row(path: Path, name: str, missing: bool, stale: str | None, failure: str | None) -> CacheRow:
    if missing:
        return missing_row(path, name, failure)
    return CacheRow(path, name, "stale" if stale else "present", stale or "", path.stat().st_size)


def _files(plan: DatasetPlan) -> list[Path]:
    """All caches in the folders of the datasets that have media."""
    files = (path for folder in written_folders(plan.config) if folder.is_dir() for path in sorted(folder.iterdir()))
    return [path for path in files if path.name.endswith(SUFFIXES) and path.is_file()]


def kind_name(path: Path) -> str:
    """The name of the kind that a file in a cache folder is of, by its ending; that of latents where it has none."""
    longest = max((suffix for suffix in _NAMES if path.name.endswith(suffix)), key=len, default="")
    return _NAMES.get(longest, Latents.name)


def remove_caches(rows: list[CacheRow]) -> int:
    """Delete the files of `rows`; returns the bytes that became free. A file that is gone already is passed over.

    Raises RunError where one cannot be deleted.
    """
    freed = 0
    for done, row in enumerate(rows):
        assert row.path.name.endswith(ENDING), row.path
        try:
            row.path.unlink()
            freed += row.bytes
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunError(
                f"{row.path} could not be deleted: {error.strerror or error}. {done} of {len(rows)} files were deleted "
                "before it."
            ) from error
    return freed
