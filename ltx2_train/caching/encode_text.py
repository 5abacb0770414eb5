"""Captions -> text caches, in the compact form (before the connectors) or the full one (after them)."""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..dataset.cache_names import COMPACT_SUFFIX, TextForm
from ..dataset.plan import DatasetPlan, Item
from ..device import DTYPES
from ..errors import CacheError, DataError
from ..events import Events
from ..shapes import Mode
from ..weights.fingerprint import same_weights
from ..weights.gemma import TOKEN_LIMIT
from .build import CacheReport, Encoder, Openers, begin_report, note_failure, with_model
from .cache_file import (
    ARCHITECTURE,
    CACHE_FORMAT,
    CacheFile,
    Fingerprints,
    difference,
    stale_weights,
)
from .due import Due
from .kind import Bench, CacheKind, CacheMade, CacheState, Job, header_bytes
from .locks import Claims
from .notes import damage
from .recipe import CacheRecipe
from .text_file import TEXT_KEYS, compact_tensors, full_tensors, has_sound, read_compact
from .work import Work

if TYPE_CHECKING:
    from ..models.plain_text import PlainText
    from ..models.text import TextConnectors, TextFeatures

Beside = Mapping[str, "Callable[[TextFeatures], None]"]  # other text -> what takes its features

CLAIM = "captions"  # what is claimed of a cache folder while its captions are made


class Text(CacheKind[Any]):
    """Of captions: those of a medium, for all its samples. What is made of them are tensors by their keys.

    Either form can be trained on; `form` is the one that is made.
    """

    name = "text"
    stage = "encode text"
    suffix = COMPACT_SUFFIX
    model = "text_encoder"
    exact = False

    def __init__(self, plan: DatasetPlan, recipe: CacheRecipe, form: TextForm | None = None) -> None:
        super().__init__(plan, recipe)
        self.form: TextForm = form or recipe.settings.text_form

    @property
    def other(self) -> Text:
        """The same in the form that is not made."""
        return Text(self.plan, self.recipe, "full" if self.form == "compact" else "compact")

    def of(self, item: Item) -> Job:
        made_from = {"text_form": self.form, "text_dtype": self.recipe.settings.text_dtype}
        return Job(self, item, item.source.path, item.source.text_path(self.form), made_from)

    def jobs(self) -> Iterator[Job]:
        each = {item.text_key: item for item in self.plan.items}.values()
        return map(self.of, (one for item in each for one in item.by_caption))

    def needless(self, job: Job) -> bool:
        """Whether the mode trains on no sample of the medium."""
        return job.item.text_key not in self._trained

    @functools.cached_property
    def _trained(self) -> set[tuple[Path, str]]:
        return {item.text_key for item in self.plan.items if item.serves(self.recipe.mode)}

    def either(self, item: Item) -> tuple[Job, CacheState]:
        """The text of `item` that training reads: a fresh one, else one that is there; rather of `form`."""
        first = [(job, job.kind.check(job)) for job in (self.of(item),)]
        if first[0][1].fresh:
            return first[0]
        both = [*first, *((job, job.kind.check(job)) for job in (self.other.of(item),))]
        return min(both, key=lambda one: (not one[1].fresh, one[1].missing))

    def stale(self, file: CacheFile, job: Job) -> str | None:
        if reason := useless_text(file, self.recipe.mode):
            return reason
        stored = said_caption(file)
        if stored and " ".join(stored.split()) != job.item.caption:
            return "the caption (or trigger word) changed"
        if job.item.source.others and file.metadata.get("captions") != _count(job):
            return "the number of its captions changed"
        if not file.fingerprinted:
            return None
        return stale_text_weights(file, self.recipe.text) or difference(file.record("settings"), job.made_from)

    def size(self, job: Job) -> int:
        """At most what the cache takes."""
        widths = self.recipe.text_widths
        size = sum(widths) * DTYPES[self.recipe.settings.text_dtype].itemsize  # of a token
        header = header_bytes(job.made_from) + 2 * len(json.dumps(job.item.caption))
        if self.form == "full":
            # after the connectors: always as long, in both streams, with a mask, and all of it twice
            return 2 * TOKEN_LIMIT * (size * (2 if len(widths) == 1 else 1) + 8) + header
        return most_tokens(job.item.caption) * size + header

    def weight(self, job: Job) -> float:
        return max(1, len(job.item.caption))

    def read(self, job: Job, model: Any) -> str:
        return job.item.caption

    def make(self, job: Job, was_read: Any, bench: Bench) -> CacheMade:
        """Write the tensors `was_read`."""
        return CacheMade(self.write(job, was_read))

    def metadata(self, job: Job, **more: str) -> dict[str, str]:
        return {
            "format_version": CACHE_FORMAT,
            "architecture": ARCHITECTURE,
            "caption": job.item.caption,
            "caption1": job.item.caption,  # where the community trainer looks for it
            **({"captions": _count(job)} if job.item.source.others else {}),
            "settings": json.dumps(job.made_from),
            "checkpoint": self.recipe.text.checkpoint,
            "encoder": self.recipe.text.encoder,
        }


def _count(job: Job) -> str:
    """How many captions the medium of `job` has."""
    return str(1 + len(job.item.source.others))


def said_caption(file: CacheFile) -> str:
    """The caption that a text cache says it holds; "" where it says none, as those of some other programs do."""
    return file.metadata.get("caption", file.metadata.get("caption1", ""))


def useless_text(file: CacheFile, mode: Mode) -> str | None:
    """Why there is no text in `file` that this mode can use, or None."""
    if not any(file.find(prefix) for prefix in TEXT_KEYS):
        return f"it holds no text, but {', '.join(file.keys) or 'nothing'}"
    if mode != "video" and not has_sound(file):
        return "it was made for video alone and holds no text for sound"
    return damage(file.path)


def stale_text_weights(file: CacheFile, weights: Fingerprints) -> str | None:
    """Why a text cache of ours is of another format or other weights, or None; those not known are not compared."""
    if reason := stale_weights(file):
        return reason
    if weights.checkpoint and not same_weights(file.metadata.get("checkpoint"), weights.checkpoint):
        return "it was made with the text weights of another checkpoint"
    if weights.encoder and not same_weights(file.metadata.get("encoder"), weights.encoder):
        return "it was made with another text encoder"
    return None


def most_tokens(caption: str) -> int:
    """At most how many tokens a caption has: one for two letters, and for every byte of anything else."""
    letters = sum(letter.isascii() and not letter.isdigit() for letter in caption)
    other = sum(len(letter.encode()) for letter in caption if not letter.isascii() or letter.isdigit())
    return min(TOKEN_LIMIT, letters // 2 + other + 4)


def encode_text(
    due: Due,
    openers: Openers,
    events: Events | None = None,
    device: torch.device | str = "cpu",
    beside: Beside | None = None,
) -> CacheReport:
    """Cache the captions that are `due`, each distinct one encoded once.

    Where the text encoder is opened for them, the texts of `beside` pass it as well; otherwise they do not.

    For the full form the text encoder first writes compact files, is closed, and the connectors turn those into full
    ones; so both are never in memory together, and a stop loses nothing.

    The captions of a cache folder are made by one process: a second text encoder in memory would cost more than it
    could save. Others wait for it.
    """
    events, started = events or Events(), time.monotonic()
    (kind,) = due.kinds
    assert isinstance(kind, Text), kind
    work = _Work(openers, events, device, begin_report(due, events), dict(beside or {}))
    report = work.report
    waiting: dict[Path, list[Job]] = {}
    for job in due.jobs:
        waiting.setdefault(job.path.parent, []).append(job)
    with Claims(events) as claims:
        while waiting:
            mine = [folder for folder in waiting if claims.take(folder / CLAIM)]
            todo = []
            for job in (job for folder in mine for job in waiting.pop(folder)):
                if due.made_since(job):
                    report.others += 1
                else:
                    todo.append(job)
            if kind.form == "compact":
                work.encode(todo, report)
            elif todo:
                work.make_full(kind, todo)
            for folder in mine:
                claims.free(folder / CLAIM)
            if not mine:
                folder = next(iter(waiting))
                claims.wait(folder / CLAIM, f"the captions in {folder}")
    report.seconds = time.monotonic() - started
    if kind.plan.items and not report.made + report.kept + report.others:
        raise DataError("Not one caption could be encoded.\n" + report.summary(), report.failed[0].path)
    return report


@dataclass
class _Work:
    """What making captions needs besides them. `beside` is empty once the text encoder has seen it."""

    openers: Openers
    events: Events
    device: torch.device | str
    report: CacheReport
    beside: dict[str, Callable[[TextFeatures], None]]

    def make_full(self, text: Text, todo: Sequence[Job]) -> None:
        compact = Text(text.plan, text.recipe, "compact")
        rough = [job for job in map(compact.of, (job.item for job in todo)) if not _reusable(job)]
        passing = [job.path for job in rough if not job.path.is_file()]
        scratch = CacheReport("text")
        self.encode(rough, scratch)
        self.report.failed += scratch.failed
        lost = {failure.path for failure in scratch.failed}
        self._connect([job for job in todo if job.source not in lost], compact)
        for path in passing:
            path.unlink(missing_ok=True)

    def encode(self, todo: Sequence[Job], report: CacheReport) -> None:
        """Write the compact caches of `todo`, and hand out what is beside."""
        if not todo:
            return
        events, beside, opener = self.events, self.beside, self.openers.text_encoder
        assert opener is not None, "captions need the text encoder"
        by_caption: dict[str, list[Job]] = {caption: [] for caption in beside}
        for job in todo:
            by_caption.setdefault(job.item.caption, []).append(job)
        progress = Work(events, "encode text", [max(1, len(caption)) for caption in by_caption])
        progress.begin()

        def work(encoder: Encoder) -> None:
            progress.begin()
            split = getattr(encoder, "groups", None)
            for group in split(list(by_caption)) if split else [[caption] for caption in by_caption]:
                events.check_stop()
                for caption, features in each_features(encoder, group, events):
                    jobs = by_caption[caption]
                    name = jobs[0].source.name if jobs else caption[:60]
                    self._write(jobs, features, report)
                    if caption in beside and not isinstance(features, DataError):
                        beside[caption](features)
                    progress.finished(max(1, len(caption)), name)

        with_model(opener, work, None)
        beside.clear()

    def _write(self, jobs: Sequence[Job], features: TextFeatures | DataError, report: CacheReport) -> None:
        for job in jobs:
            if isinstance(features, DataError):
                note_failure(report, job.source, str(features), self.events)
                continue
            dtype = DTYPES[job.kind.recipe.settings.text_dtype]
            self._save(job, compact_tensors(features, dtype), report)

    def _save(self, job: Job, tensors: dict[str, torch.Tensor], report: CacheReport) -> None:
        report.bytes += job.kind.make(job, tensors, Bench(None, self.device, self.events)).bytes
        report.made += 1

    def _connect(self, todo: Sequence[Job], compact: Text) -> None:
        """Write the full caches of `todo` from their compact ones."""
        if not todo:
            return
        events, opener = self.events, self.openers.connectors
        assert opener is not None, "the full form needs the connectors"
        events.stage("connect text", len(todo))
        dtype = DTYPES[compact.recipe.settings.text_dtype]

        def work(connectors: TextConnectors | PlainText) -> None:
            first = next(connectors.parameters())
            for done, job in enumerate(todo, 1):
                events.check_stop()
                try:
                    features = read_compact(CacheFile(compact.of(job.item).path))
                except CacheError as error:
                    note_failure(self.report, job.source, str(error), events)
                    continue
                with torch.no_grad():
                    video, audio = connectors([features.to(first.device, first.dtype)])
                self._save(job, full_tensors(video, audio, dtype), self.report)
                events.progress(done, len(todo), job.source.name)

        with_model(opener, work, self.device)


def _reusable(compact: Job) -> bool:
    """Whether a full cache can be made from a compact one that is there already."""
    return compact.kind.recipe.settings.skip_existing and compact.kind.check(compact).fresh


def _tell_unread(tokenizer: Any, texts: Sequence[str], events: Events) -> None:
    """Warn of texts that are longer than what a tokenizer keeps of them."""
    for text in texts:
        if unread := len(tokenizer.ids(text, limit=sys.maxsize)) - len(tokenizer.ids(text)):
            begins = f"The text {text.strip()[:40]!r}..."
            events.message(f"{begins} is too long: its last {unread} tokens are not read. Shorten it.", "warning")


def each_features(
    encoder: Encoder, group: Sequence[str], events: Events
) -> Iterator[tuple[str, TextFeatures | DataError]]:
    """The features of each caption of `group`, or why it has none; those that are too long to be read are told."""
    if (tokenizer := getattr(encoder, "tokenizer", None)) is not None:
        _tell_unread(tokenizer, group, events)
    each = getattr(encoder, "encode_each", None)
    if each is not None:
        yield from each(group, events)
        return
    for caption in group:
        try:
            yield caption, encoder.encode([caption])[0]
        except DataError as error:
            yield caption, error
