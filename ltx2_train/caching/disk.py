"""The room on the disk that caches to be made will take, known before any model is loaded.

Latents, sound and masks are reckoned from their shapes and are right to a few per cent. Of text only the length of the
captions is known; the number of its tokens is estimated upwards.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..dataset.plan import DatasetPlan
from ..errors import RunError
from ..events import Events
from .due import Due
from .kind import IN_ITS_PLACE
from .kinds import caches_due
from .notes import is_damage
from .recipe import CacheRecipe

EXACT = 1.1  # what replaces a file of about its own size needs no room, though the estimate be a little higher


@dataclass(frozen=True)
class CacheNeed:
    """The caches to be made by the name of their kind, and their sizes in bytes."""

    dues: dict[str, Due]
    sizes: dict[Path, int]
    upper_sizes: dict[Path, int]  # of those that are only known to be at most as large

    @classmethod
    def of(cls, plan: DatasetPlan, recipe: CacheRecipe) -> CacheNeed:
        """Look at all caches of `plan`."""
        dues = caches_due(plan, recipe)
        jobs = [job for due in dues.values() for job in due.jobs]
        return cls(
            dues,
            {job.path: job.kind.size(job) for job in jobs if job.kind.exact},
            {job.path: job.kind.size(job) for job in jobs if not job.kind.exact},
        )

    @property
    def damaged(self) -> bool:
        """Whether a file that is made again is damaged, by its header or by a note of whoever read it."""
        return any(is_damage(path, why) for due in self.dues.values() for path, why in due.replaced.items())

    def require_place(self) -> None:
        """Raise RunError where a folder lies in the place of a cache that is to be made."""
        for path in (*self.sizes, *self.upper_sizes):
            if path.is_dir():
                raise RunError(f"The cache {path} cannot be written: {IN_ITS_PLACE}.")

    def require_room(self, events: Events) -> None:
        """Say how much is to be made, and of what size. Raises RunError where a disk has not enough room for it."""
        count = len(self.sizes) + len(self.upper_sizes)
        if not count:
            return
        for folder, surely, at_most, number in self._disks():
            free = _free(folder)
            if free is None:
                continue
            if surely > free:
                raise RunError(
                    f"The disk of {folder} has {_said(free)} free, and the {number} caches to be made there need about "
                    f"{_said(surely)}. Free some space, set cache_directory to another disk, or choose a smaller "
                    "resolution, fewer target_frames or fewer clips"
                    f"{self._advice()}. Nothing was encoded."
                )
            if at_most > free:
                events.message(
                    f"The disk of {folder} has {_said(free)} free; with long captions the caches may need up to "
                    f"{_said(at_most)}.",
                    "warning",
                )
        events.message(self.text_line())

    def text_line(self) -> str:
        """A sentence: how many caches of which kinds, about how large, and how much is free."""
        counts = ", ".join(f"{len(due.jobs)} {name}" for name, due in self.dues.items() if due.jobs)
        sure, text = sum(self.sizes.values()), sum(self.upper_sizes.values())
        size = f"about {_said(sure + text)}" if sure else f"at most {_said(text)}"
        size += f" (of it text at most {_said(text)})" if sure and text else ""
        frees = {folder: free for folder, *_ in self._disks() if (free := _free(folder)) is not None}
        where = (f" on the disk of {folder}" if len(frees) > 1 else "" for folder in frees)
        free = "".join(f"; {_said(one)} free{place}" for one, place in zip(frees.values(), where, strict=True))
        return f"caches to make: {len(self.sizes) + len(self.upper_sizes)} ({counts}), {size}{free}"

    def _advice(self) -> str:
        advice = dict.fromkeys(job.kind.advice for due in self.dues.values() for job in due.jobs)
        return "".join(f", or {text}" for text in advice if text)

    def _disks(self) -> Iterator[tuple[Path, int, int, int]]:
        """Of each disk a folder on it, the bytes it surely and at most needs beyond what is replaced, and the files."""
        surely: Counter[int] = Counter()
        at_most: Counter[int] = Counter()
        number: Counter[int] = Counter()
        folders: dict[int, Path] = {}
        for sizes, known in ((self.sizes, True), (self.upper_sizes, False)):
            for path, size in sizes.items():
                disk, folder = _disk(path.parent)
                folders.setdefault(disk, folder)
                more = max(0, size - round(EXACT * _size(path)))
                surely[disk] += more if known else 0
                at_most[disk] += more
                number[disk] += 1
        for disk, folder in folders.items():
            yield folder, surely[disk], at_most[disk], number[disk]


def _disk(folder: Path) -> tuple[int, Path]:
    """The number of the disk that `folder` lies or will lie on, and the part of its path that is there."""
    while True:
        try:
            return os.stat(folder).st_dev, folder
        except OSError:
            if folder.parent == folder:
                return -1, folder
            folder = folder.parent


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _said(count: int) -> str:
    if count >= 5e7:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 5e4 else f"{max(count, 0) / 1e3:.1f} kB"
