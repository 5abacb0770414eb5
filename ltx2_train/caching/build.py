"""Filling the caches: what is fresh stays, what is missing or stale is made.

A model is opened only if there is something to do, one at a time, and is let go before the function returns. Each file
is written as soon as it is ready, so a stop costs one item. A file that cannot be used is named and left out, and
remembered beside the caches; only where nothing is left is that an error.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch

from ..dataset.notes import DataNote
from ..dataset.scan import Skipped
from ..dataset.sources import source_record
from ..device import is_full
from ..errors import DataError
from ..events import Events
from ..models.polled import polled
from .due import MADE_AGAIN, Due
from .kind import LEFT_OUT, Bench, Job
from .turns import Turns

if TYPE_CHECKING:
    from ..models.audio_vae import AudioVAE
    from ..models.plain_text import PlainText
    from ..models.text import TextConnectors, TextFeatures
    from ..models.video_vae import VideoVAE

ModelT = TypeVar("ModelT")


class Encoder(Protocol):
    """What encode_text needs of a text encoder.

    One that is better off with many captions at once has `groups` and `encode_each` as well, as LayeredTextEncoder.
    """

    def encode(self, captions: list[str]) -> Sequence[TextFeatures]: ...


@dataclass(frozen=True)
class Openers:
    """How the models of encoding are opened; each is called only where something is to be made with it.

    A VAE has the precision of the cache settings. None where the run makes nothing with it.
    """

    video_vae: Callable[[], VideoVAE] | None = None
    audio_vae: Callable[[], AudioVAE] | None = None
    dino: Callable[[], Any] | None = None
    text_encoder: Callable[[], Encoder] | None = None
    connectors: Callable[[], TextConnectors | PlainText] | None = None


@dataclass
class CacheReport:
    """What filling a kind of cache came to: "latents", "sound", "masks", "dino" or "text".

    `stale` of the `made` ones replaced an old file. `others` were made by another process in the meantime. `notes` are
    sentences on what was noticed and is no failure.
    """

    kind: str
    made: int = 0
    kept: int = 0
    stale: int = 0
    others: int = 0
    failed: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0
    bytes: int = 0
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """A line for people, and one for each file that failed."""
        mended = f" ({self.stale} were stale)" if self.stale else ""
        others = f", {self.others} made by another process" if self.others else ""
        lines = [
            f"{self.kind}: {self.made} made{mended}, {self.kept} kept{others}, {len(self.failed)} failed; "
            f"{self.bytes / 1e6:.1f} MB written in {self.seconds:.1f} s"
        ]
        lines += [f"  {failure.path.name}: {failure.reason}" for failure in self.failed]
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(lines)


def make_due(
    due: Due, openers: Openers, events: Events | None = None, device: torch.device | str = "cpu"
) -> CacheReport:
    """Make what is `due` of one name (text has a way of its own, encode_text). Raises DataError where nothing could be
    made that the datasets need, OutOfMemory with what to make smaller."""
    events, started = events or Events(), time.monotonic()
    first = due.kinds[0]
    due = due.needed()
    filling = _Filling(begin_report(due, events), events, device)
    report = filling.report
    with Turns(due, filling.read, first.stage, events) as turns:
        if turns.begin(first.reads_ahead):
            work = partial(filling.work, turns)
            opener = None if first.model is None else getattr(openers, first.model)
            if opener is None:
                assert first.model is None, f"{first.name} needs {first.model}"
                work(None)
            else:
                with_model(opener, work, device)
    report.others = turns.others
    report.notes += first.notes(filling.remarks)
    for note in report.notes:
        events.message(note, "warning")
    report.seconds = time.monotonic() - started
    if reason := first.verdict([*due.kept, *due.jobs], filling.lost):
        raise DataError(f"{reason}\n{report.summary()}", report.failed[0].path)
    return report


class _Filling:
    """Jobs of one name on their way into files. `lost` are the caches that could not be made; `remarks` is what was
    noticed, by its topic and then by the medium."""

    def __init__(self, report: CacheReport, events: Events, device: torch.device | str) -> None:
        self.report, self.events, self.device = report, events, device
        self.lost: set[Path] = set()
        self.remarks: dict[str, dict[Path, str]] = {}
        self._bench = Bench(None, device, events)

    def read(self, job: Job) -> Any:
        """What `job` is made from. Called in another thread."""
        try:
            was_read = job.kind.read(job, self._bench.model)
        except MemoryError as error:
            raise job.kind.too_large(job) from error
        with contextlib.suppress(OSError):
            source_record(job.source)  # hashes the file in this thread; it is known when the cache is written
        return was_read

    def work(self, turns: Turns[Any], model: Any) -> None:
        """Take all turns with `model`."""
        self._bench = Bench(model, self.device, self.events)
        network = model if isinstance(model, torch.nn.Module) else None
        try:
            with polled(network, self.events.check_stop):  # a clip takes seconds, minutes without a card
                turns.each(self._make)
        finally:
            self._bench = Bench(None, self.device, self.events)  # whoever opened the model lets it go

    def _make(self, job: Job, was_read: Any) -> None:
        """Write the cache of `job`, or note why there is none."""
        try:
            if isinstance(was_read, DataError):
                raise was_read
            made = job.kind.make(job, was_read, self._bench)
            self.report.bytes += made.bytes
            self.report.made += 1
            for topic, text in made.remarks.items():
                self.remarks.setdefault(topic, {})[job.source] = text
        except DataError as error:
            self.lost.add(job.path)
            note_failure(self.report, job.source, str(error), self.events, job.kind.consequence(job))
            job.kind.remember(job, str(error))
        except (RuntimeError, MemoryError) as error:
            if not is_full(error):
                raise
            raise job.kind.too_large(job) from error


def begin_report(due: Due, events: Events) -> CacheReport:
    """The report to be filled in; says what is made again and why."""
    for path, reason in due.replaced.items():
        if reason != MADE_AGAIN:  # which the user asked for
            events.message(f"{path.name} is made again: {reason}")
    return CacheReport(due.kinds[0].name, kept=len(due.kept), stale=len(due.replaced))


def with_model(opener: Callable[[], ModelT], work: Callable[[ModelT], None], device: torch.device | str | None) -> None:
    """Open a model, move it to `device` unless None, `work` with it, and let it go, however that ends."""
    model = opener()
    try:
        if device is not None and isinstance(model, torch.nn.Module):
            model.to(device)
        work(model)
    finally:
        close = getattr(model, "close", None)
        if close is not None:
            close()
        del model
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


def note_failure(report: CacheReport, path: Path, reason: str, events: Events, consequence: str = LEFT_OUT) -> None:
    """Add to the report, and say, that `path` could not be used, and what comes of that."""
    failure = Skipped(path, reason if consequence == LEFT_OUT else f"{consequence}: {reason}")
    if failure not in report.failed:
        report.failed.append(failure)
        events.message(DataNote("left out", f"{path.name} {consequence}: {reason}"), "warning")
