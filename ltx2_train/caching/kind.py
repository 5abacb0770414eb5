"""A kind of cache: which files a plan needs of it, whether one is fresh, how large one will be, how it is made.

Building, status, the room on the disk and the check before training all ask the kind. A new kind is one class and its
line in the table of kinds.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch

from ..dataset.plan import DatasetPlan, Item
from ..dataset.sources import source_record
from ..errors import CacheError, OutOfMemory
from ..events import Events
from ..files import CLOSED, why_not_read
from ..shapes import MODES, Mode
from .cache_file import (
    ARCHITECTURE,
    CACHE_FORMAT,
    ENCODER_WEIGHTS,
    KEPT_AS,
    CacheFile,
    stale_made,
    without_mend,
    write_cache,
)
from .notes import FAILED, UNREADABLE, damage
from .recipe import CacheRecipe

HEADER = 480  # bytes of a cache that are neither tensor nor settings: source, checkpoint, names
LEFT_OUT = "is left out"
IN_ITS_PLACE = "a folder lies in its place; move it away"
R = TypeVar("R")
ModelName = Literal["video_vae", "audio_vae", "dino", "text_encoder"]


@dataclass(frozen=True)
class Job:
    """A cache to be made at `path` from the medium `source`, for `item`.

    `made_from` is all that changes it besides source and weights, by the names a user knows.
    """

    kind: CacheKind[Any]
    item: Item
    source: Path
    path: Path
    made_from: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class CacheState:
    """A cache as it is. `stale` says why it must be made again; None: it fits, or is missing.

    `file` is open where it can be read. `error` tells damage in full, where `stale` only says "damaged" or CLOSED, or
    what lies in the place of one that is missing.
    """

    missing: bool
    stale: str | None = None
    file: CacheFile | None = None
    error: str = ""

    @property
    def fresh(self) -> bool:
        return not self.missing and self.stale is None

    @property
    def problem(self) -> str | None:
        """Why it cannot be trained on; None where it can."""
        return self.error or ("missing" if self.missing else self.stale)


@dataclass(frozen=True)
class Bench:
    """What a cache is made with: the open model (None: none is needed), on which device, and who is told."""

    model: Any
    device: torch.device | str
    events: Events


@dataclass(frozen=True)
class CacheMade:
    """A cache that was written: its bytes, and what a user should know of its source, by topic."""

    bytes: int
    remarks: Mapping[str, str] = field(default_factory=dict)


class CacheKind(Generic[R]):
    """The caches of one kind that a plan needs. R is what `read` gives.

    name      in reports and status; kinds of one name are filled together, with one model
    stage     of their progress
    modes     of training that have a use for them
    model     what they are made with; None: no model
    part      of the weights, in the words of a reason
    reads_ahead   whether the first medium may be read while the model is loaded
    exact     whether `size` is right to a few per cent; else it is an upper bound
    advice    what to make smaller where the disk is full, besides the usual
    """

    name: ClassVar[str]
    stage: ClassVar[str]
    suffix: ClassVar[str]
    modes: ClassVar[frozenset[Mode]] = frozenset(MODES)
    model: ClassVar[ModelName | None] = None
    part: ClassVar[str] = ""
    reads_ahead: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    advice: ClassVar[str] = ""

    def __init__(self, plan: DatasetPlan, recipe: CacheRecipe) -> None:
        self.plan, self.recipe = plan, recipe

    @classmethod
    def each(cls, plan: DatasetPlan, recipe: CacheRecipe) -> list[CacheKind[Any]]:
        """The kinds of this class that `plan` has: one, unless an item may need several caches of it."""
        return [cls(plan, recipe)]

    # --- which, and whether it is fresh ------------------------------------------------------------------------------

    @property
    def weights(self) -> str:
        """The fingerprint of the weights that make them; "" where it is not known or there are none."""
        return ""

    @property
    def encoder(self) -> str:
        """The fingerprint of those of them that encode, whatever file they come from; "" where there is none such."""
        return ""

    @property
    def buildable(self) -> bool:
        """Whether the run has what they are made with."""
        return True

    def of(self, item: Item) -> Job | None:
        """The cache that `item` needs; None where it needs none."""
        raise NotImplementedError

    def jobs(self) -> Iterator[Job]:
        """All that the plan needs; several may name one file."""
        return (job for item in self.plan.items if (job := self.of(item)) is not None)

    def check(self, job: Job) -> CacheState:
        """The file of `job` against what it should be made from; reads its header alone."""
        if not job.path.is_file():
            return CacheState(missing=True, error=IN_ITS_PLACE if job.path.is_dir() else "")
        try:
            file = CacheFile(job.path)
            return CacheState(False, self.stale(file, job), file)
        except CacheError as error:
            return CacheState(False, CLOSED if why_not_read(job.path) else UNREADABLE, error=without_mend(error))

    def state(self, job: Job) -> CacheState:
        """As `check`, with the file beside it."""
        state, beside = self.check(job), self.beside(job)
        if state.fresh and beside is not None and not beside.is_file():
            return CacheState(False, f"{beside.name} is missing", state.file)
        return state

    def stale(self, file: CacheFile, job: Job) -> str | None:
        """Why `file` must be made again, or None. Raises CacheError where it is damaged."""
        if not file.fingerprinted:
            return damage(file.path) or self.foreign(file, job)
        return stale_made(file, job.source, job.made_from, self.part, self.weights, self.encoder)

    def foreign(self, file: CacheFile, job: Job) -> str | None:
        """Why a file of another program, which says nothing of its origin, will not do; None where it may."""
        return None

    def beside(self, job: Job) -> Path | None:
        """A second file that is made with that of `job`, and only has to be there."""
        return None

    def needless(self, job: Job) -> bool:
        """Whether nothing needs the cache after all, for its sample was given up."""
        return False

    # --- failures ----------------------------------------------------------------------------------------------------

    def failure_name(self, job: Job) -> str:
        """What a failure of `job` is remembered under."""
        return job.path.name

    def failure(self, job: Job) -> str | None:
        """Why the cache could not be made the last time, if its source is still the same."""
        return FAILED.get(job.item.source.folder, self.failure_name(job), job.source)

    def remember(self, job: Job, reason: str) -> None:
        """Note that the cache cannot be made from its source as it is now."""
        FAILED.put(job.item.source.folder, self.failure_name(job), reason, job.source)

    def consequence(self, job: Job) -> str:
        """What becomes of the source of a cache that cannot be made."""
        return LEFT_OUT

    def too_large(self, job: Job) -> OutOfMemory:
        """The error where the device is full; says what to make smaller."""
        raise NotImplementedError

    # --- making ------------------------------------------------------------------------------------------------------

    def size(self, job: Job) -> int:
        """Bytes on the disk."""
        raise NotImplementedError

    def weight(self, job: Job) -> float:
        """How much work it is, in any unit that the kinds of one name share."""
        raise NotImplementedError

    def read(self, job: Job, model: Any) -> R:
        """What the cache is made from, read in a thread. `model` is None until it is open. Raises DataError."""
        raise NotImplementedError

    def make(self, job: Job, was_read: R, bench: Bench) -> CacheMade:
        """Write the cache. Raises DataError."""
        raise NotImplementedError

    def notes(self, seen: Mapping[str, Mapping[Path, str]]) -> list[str]:
        """Sentences for the report on the remarks of all that were made: topic -> source -> text."""
        return []

    def verdict(self, jobs: Sequence[Job], lost: set[Path]) -> str | None:
        """Why nothing is left to train on, where of `jobs`, all of them, the files `lost` could not be made."""
        return None

    def metadata(self, job: Job, **more: str) -> dict[str, str]:
        """What is written into the file: what it was made from, and `more`."""
        metadata = {
            "format_version": CACHE_FORMAT,
            "architecture": ARCHITECTURE,
            **more,
            "source": json.dumps(source_record(job.source)),
            "settings": json.dumps(job.made_from),
        }
        if self.part:
            metadata["checkpoint"] = self.weights
        if self.encoder:
            metadata[ENCODER_WEIGHTS] = self.encoder
        return metadata

    def write(self, job: Job, tensors: Mapping[str, torch.Tensor], **more: str) -> int:
        """Write the file; returns its bytes."""
        write_cache(job.path, tensors, self.metadata(job, **more) | {KEPT_AS: job.path.name})
        return job.path.stat().st_size


def header_bytes(made_from: Mapping[str, Any], rest: int = HEADER) -> int:
    """Bytes of a cache besides its tensors."""
    return rest + len(json.dumps(json.dumps(made_from)))
