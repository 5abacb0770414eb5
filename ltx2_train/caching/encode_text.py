"""Captions -> text caches, in the compact form (before the connectors) or the full one (after them)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from ..dataset.cache_names import TextForm
from ..dataset.plan import DatasetPlan, Source
from ..dataset.scan import Skipped
from ..errors import CacheError, DataError
from ..events import Events
from ..files import write_tensors
from . import cache_file as caches
from .build import CacheReport, note_failure, text_settings, with_model
from .cache_file import ARCHITECTURE, DTYPES, FORMAT_VERSION, CacheFile, Fingerprints
from .due import Due
from .locks import Claims
from .settings import CacheSettings
from .work import Work

if TYPE_CHECKING:
    from ..models.text import TextConnectors, TextFeatures

Beside = Mapping[str, "Callable[[TextFeatures], None]"]  # other text -> what takes its features

CLAIM = "captions"  # what is claimed of a cache folder while its captions are made


class Encoder(Protocol):
    """What `encode_text` needs of a text encoder.

    One that is better off with many captions at once has `groups` and `encode_each` as well, as LayeredTextEncoder.
    """

    def encode(self, captions: list[str]) -> Sequence[TextFeatures]: ...


def text_due(plan: DatasetPlan, fingerprints: Fingerprints, settings: CacheSettings) -> Due[Source]:
    """The captions whose caches are missing or no longer fit, in the form that `settings` ask for."""
    form = settings.text_form
    return Due.find(
        plan.sources,
        lambda source: source.text_path(form),
        lambda source, checked: _text_state(source, form, fingerprints, checked),
        settings,
    )


def encode_text(
    plan: DatasetPlan,
    open_encoder: Callable[[], Encoder],
    fingerprints: Fingerprints,
    settings: CacheSettings,
    events: Events | None = None,
    open_connectors: Callable[[], TextConnectors] | None = None,
    device: torch.device | str = "cpu",
    due: Due[Source] | None = None,
    beside: Beside | None = None,
) -> CacheReport:
    """Cache the captions of `plan`, each distinct one encoded once; `due` spares looking for them again.

    Where the text encoder is opened for them, the texts of `beside` pass it as well; otherwise they do not.

    The full form needs `open_connectors`. There the text encoder first writes compact files, is closed, and the
    connectors turn those into full ones; so both are never in memory together, and a stop loses nothing.

    The captions of a cache folder are made by one process: a second text encoder in memory would cost more than it
    could save. Others wait for it.
    """
    events, started = events or Events(), time.monotonic()
    form = settings.text_form
    assert form == "compact" or open_connectors is not None, "the full form needs the connectors"
    due = text_due(plan, fingerprints, settings) if due is None else due
    report = due.report("text", events)
    beside = dict(beside or {})
    waiting: dict[Path, list[Source]] = {}
    for source in due.jobs:
        waiting.setdefault(source.folder, []).append(source)
    with Claims(events) as claims:
        while waiting:
            mine = [folder for folder in waiting if claims.take(folder / CLAIM)]
            todo = []
            for source in (source for folder in mine for source in waiting.pop(folder)):
                if due.made_since(source):
                    report.others += 1
                else:
                    todo.append(source)
            if form == "compact":
                _encode_captions(todo, open_encoder, fingerprints, settings, events, report, beside)
            elif todo:
                assert open_connectors is not None
                _make_full(todo, open_encoder, open_connectors, fingerprints, settings, events, report, device, beside)
            for folder in mine:
                claims.free(folder / CLAIM)
            if not mine:
                folder = next(iter(waiting))
                claims.wait(folder / CLAIM, f"the captions in {folder}")
    report.seconds = time.monotonic() - started
    if plan.items and not report.made + report.kept + report.others:
        raise DataError("Not one caption could be encoded.\n" + report.summary(), report.failed[0].path)
    return report


def _make_full(
    todo: Sequence[Source],
    open_encoder: Callable[[], Encoder],
    open_connectors: Callable[[], TextConnectors],
    fingerprints: Fingerprints,
    settings: CacheSettings,
    events: Events,
    report: CacheReport,
    device: torch.device | str,
    beside: dict[str, Callable[[TextFeatures], None]],
) -> None:
    rough = [s for s in todo if any(_text_state(s, "compact", fingerprints, settings))]
    passing = [s.text_path("compact") for s in rough if not s.text_path("compact").is_file()]
    scratch = CacheReport("text")
    _encode_captions(rough, open_encoder, fingerprints, settings, events, scratch, beside)
    report.failed += scratch.failed
    lost = {failure.path for failure in scratch.failed}
    ready = [source for source in todo if source.path not in lost]
    _connect(ready, open_connectors, fingerprints, settings, events, report, device)
    for path in passing:
        path.unlink(missing_ok=True)


def _text_state(
    source: Source, form: TextForm, weights: Fingerprints, settings: CacheSettings
) -> tuple[bool, str | None]:
    path = source.text_path(form)
    if not path.is_file():
        return True, "missing"
    if not settings.skip_existing:
        return False, "skip_existing is off"
    try:
        return False, caches.stale_text(CacheFile(path), source.caption, text_settings(form, settings), weights)
    except CacheError:
        return False, "damaged"


def _encode_captions(
    todo: Sequence[Source],
    open_encoder: Callable[[], Encoder],
    weights: Fingerprints,
    settings: CacheSettings,
    events: Events,
    report: CacheReport,
    beside: dict[str, Callable[[TextFeatures], None]],
) -> None:
    """`beside` is empty afterwards, unless nothing was to do."""
    if not todo:
        return
    by_caption: dict[str, list[Source]] = {text: [] for text in beside}
    for source in todo:
        by_caption.setdefault(source.caption, []).append(source)
    progress = Work(events, "encode text", [max(1, len(caption)) for caption in by_caption])
    progress.begin()

    def work(encoder: Encoder) -> None:
        progress.begin()
        split = getattr(encoder, "groups", None)
        for group in split(list(by_caption)) if split else [[caption] for caption in by_caption]:
            events.check_stop()
            for caption, features in each_features(encoder, group, events):
                sources = by_caption[caption]
                name = sources[0].path.name if sources else caption[:60]
                if isinstance(features, DataError):
                    for source in sources:
                        note_failure(report, Skipped(source.path, str(features)), events)
                    progress.finished(max(1, len(caption)), name)
                    continue
                tensors = compact_tensors(features, DTYPES[settings.text_dtype])
                for source in sources:
                    report.bytes += _write_text(source, "compact", tensors, weights, settings)
                    report.made += 1
                if caption in beside:
                    beside[caption](features)
                progress.finished(max(1, len(caption)), name)

    with_model(open_encoder, work, None)
    beside.clear()


def each_features(
    encoder: Encoder, group: Sequence[str], events: Events
) -> Iterator[tuple[str, TextFeatures | DataError]]:
    """The features of each caption of `group`, or why it has none."""
    each = getattr(encoder, "encode_each", None)
    if each is not None:
        yield from each(group, events)
        return
    for caption in group:
        try:
            yield caption, encoder.encode([caption])[0]
        except DataError as error:
            yield caption, error


def _connect(
    todo: Sequence[Source],
    open_connectors: Callable[[], TextConnectors],
    weights: Fingerprints,
    settings: CacheSettings,
    events: Events,
    report: CacheReport,
    device: torch.device | str,
) -> None:
    if not todo:
        return
    events.stage("connect text", len(todo))
    dtype = DTYPES[settings.text_dtype]

    def work(connectors: TextConnectors) -> None:
        first = next(connectors.parameters())
        for done, source in enumerate(todo, 1):
            events.check_stop()
            try:
                features = read_compact(CacheFile(source.text_path("compact")))
            except CacheError as error:
                note_failure(report, Skipped(source.path, str(error)), events)
                continue
            with torch.no_grad():
                video, audio = connectors([features.to(first.device, first.dtype)])
            report.bytes += _write_text(source, "full", full_tensors(video, audio, dtype), weights, settings)
            report.made += 1
            events.progress(done, len(todo), source.path.name)

    with_model(open_connectors, work, device)


def full_tensors(video: torch.Tensor | None, audio: torch.Tensor | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a full text cache from contexts [1, N, D]; the connectors leave nothing to be masked."""
    token = caches.dtype_token(dtype)
    contexts = {f"video_prompt_embeds_{token}": video, f"audio_prompt_embeds_{token}": audio}
    tensors = {key: context[0].to(dtype) for key, context in contexts.items() if context is not None}
    length = next(iter(tensors.values())).shape[0]
    tensors["prompt_attention_mask"] = torch.ones(length, dtype=torch.int64)
    return tensors


def compact_tensors(features: TextFeatures, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a compact text cache; both streams share one where they are the same tensor."""
    token = caches.dtype_token(dtype)
    tensors = {f"video_features_{token}": features.video.to(dtype)}
    if features.audio is not features.video:
        tensors[f"audio_features_{token}"] = features.audio.to(dtype)
    return tensors


def read_compact(file: CacheFile) -> TextFeatures:
    """The features in a compact text cache, as stored."""
    from ..models.text import TextFeatures

    video_key, audio_key = file.find("video_features_"), file.find("audio_features_")
    if video_key is None:
        raise CacheError(f"{file.path} is not a compact text cache: it holds {', '.join(file.keys)}.", file.path)
    video = file.tensor(video_key)
    return TextFeatures(video, video if audio_key is None else file.tensor(audio_key))


def _write_text(
    source: Source,
    form: TextForm,
    tensors: dict[str, torch.Tensor],
    weights: Fingerprints,
    settings: CacheSettings,
) -> int:
    path = source.text_path(form)
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": ARCHITECTURE,
        "caption": source.caption,
        "caption1": source.caption,  # where the community trainer looks for it
        "settings": json.dumps(text_settings(form, settings)),
        "checkpoint": weights.checkpoint,
        "encoder": weights.encoder,
    }
    write_tensors(path, tensors, metadata)
    return path.stat().st_size
