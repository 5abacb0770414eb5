"""Masks -> caches at the resolution of latents: 1 is given to the model, 0 is generated.

A latent is given where the mask is white over more than half of the pixels and frames it stands for: 32 x 32 pixels of
the first frame alone, then of eight frames. The mask of a sound is given for each latent step of 1/25 s, from a sound
file by its mean level, from JSON ([[from, to], ...] in seconds of the medium) by the share that is covered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dataset.augment import GREY, crop_centre, same_shape
from ..dataset.dataset_file import DatasetSettings
from ..dataset.items import DatasetPlan, Item
from ..dataset.reference import frames_beside, probe_companion
from ..dataset.scan import SHOWN_AT_MOST, Skipped
from ..dataset.sources import source_record
from ..errors import CacheError, DataError
from ..events import Events
from ..files import parse_json, write_tensors
from ..media.buckets import cover
from ..media.info import MediaInfo
from ..media.sound import read_sound
from ..media.video import read_frames
from ..shapes import SPATIAL_FACTOR, TEMPORAL_FACTOR
from . import cache_file as caches
from .build import CacheReport, audio_mask_settings, mask_settings, note_failure, record_failure
from .cache_file import ARCHITECTURE, FORMAT_VERSION, MASK_KEY, CacheFile
from .due import Due
from .settings import CacheSettings
from .turns import Turns

THRESHOLD = 0.5


@dataclass(frozen=True)
class MaskJob:
    item: Item
    source: Path
    path: Path
    made_from: dict[str, Any]
    sound: bool


def masks_due(plan: DatasetPlan, settings: CacheSettings) -> Due[MaskJob]:
    """The masks that are missing or no longer fit."""
    return Due.find(mask_jobs(plan), lambda job: job.path, mask_state, settings)


def encode_masks(
    plan: DatasetPlan, settings: CacheSettings, events: Events | None = None, due: Due[MaskJob] | None = None
) -> CacheReport:
    """Cache the masks of every item of `plan` that has one; a mask that cannot be used leaves its item out.

    `due` spares looking for them again.
    """
    events, started = events or Events(), time.monotonic()
    due = masks_due(plan, settings) if due is None else due
    report = due.report("masks", events)
    other_sizes: dict[str, str] = {}

    def read(job: MaskJob) -> tuple[torch.Tensor, str]:
        if job.sound:
            return sound_mask(job.source, job.item), ""
        return picture_mask(job.source, job.item, plan.settings_of(job.item))

    def make(job: MaskJob, mask: tuple[torch.Tensor, str] | DataError) -> None:
        if isinstance(mask, DataError):
            note_failure(report, Skipped(job.source, str(mask)), events)
            record_failure(job.item, str(mask), job.path.name, job.source)
            return
        report.bytes += _write(job, mask[0])
        report.made += 1
        if mask[1]:
            other_sizes[job.source.name] = mask[1]

    with Turns(due, read, _cells, "encode masks", events) as turns:
        if turns.begin():
            turns.each(make)
    report.others = turns.others
    if other_sizes:
        shown = "; ".join(f"{name} {note}" for name, note in list(other_sizes.items())[:SHOWN_AT_MOST])
        report.notes.append(f"{len(other_sizes)} masks have another size than their clips and were resized: {shown}")
    report.seconds = time.monotonic() - started
    return report


def _cells(job: MaskJob) -> float:
    """How much is read for a mask: latents of pictures, steps of sound."""
    if job.sound:
        return float(job.item.sound.steps if job.item.sound is not None else 1)
    return float(job.item.shape.tokens)


def mask_jobs(plan: DatasetPlan) -> Iterator[MaskJob]:
    """What is to be made of masks; a mirrored copy shares the mask of its sound."""
    for item in plan.items:
        if item.mask is not None and item.mask_path is not None:
            yield MaskJob(item, item.mask, item.mask_path, mask_settings(plan, item), sound=False)
        if item.audio_mask is not None and item.audio_mask_path is not None and not item.flipped:
            yield MaskJob(item, item.audio_mask, item.audio_mask_path, audio_mask_settings(plan, item), sound=True)


def mask_state(job: MaskJob, settings: CacheSettings) -> tuple[bool, str | None]:
    """Whether the cache is missing, and why it must be made again (None: it is fresh)."""
    if not job.path.is_file():
        return True, "missing"
    if not settings.skip_existing:
        return False, "skip_existing is off"
    try:
        return False, caches.stale_made(CacheFile(job.path), job.source, job.made_from)
    except CacheError:
        return False, "damaged"


def picture_mask(path: Path, item: Item, entry: DatasetSettings) -> tuple[torch.Tensor, str]:
    """uint8 [F, H, W] in latents, and what a user should know of its size ("": nothing). Raises DataError."""
    media, own = probe_companion(path, entry), item.source.media
    picks, centre = frames_beside(item, media, entry, item.window.count), crop_centre(item, entry)
    note = ""
    if (media.width, media.height) != (own.width, own.height):
        note = f"is {media.width}x{media.height}, not {own.width}x{own.height}"
    shape = item.shape
    mask = torch.empty(shape.frames, shape.height, shape.width, dtype=torch.uint8)
    for row in range(shape.frames):
        first = max(0, (row - 1) * TEMPORAL_FACTOR + 1)
        grey = _grey(media, picks[first : row * TEMPORAL_FACTOR + 1], item, centre)
        cells = grey.reshape(len(grey), shape.height, SPATIAL_FACTOR, shape.width, SPATIAL_FACTOR)
        mask[row] = torch.from_numpy(cells.mean(axis=(0, 2, 4)) > THRESHOLD)
    return mask, note


def _grey(media: MediaInfo, picks: list[int], item: Item, centre: tuple[float, float]) -> np.ndarray:
    """float32 [F, H, W] from 0 to 1, scaled and cropped as the clip is."""
    from PIL import Image

    own, size = item.source.media, (item.width, item.height)
    if same_shape(media, own.width, own.height):
        clip = read_frames(media, picks, size, centre)
    else:
        # a mask of another shape is stretched over the whole picture first
        scaled_w, scaled_h, left, top = cover(own.width, own.height, size, centre)
        pictures = [Image.fromarray(picture) for picture in read_frames(media, picks)]
        box = (left, top, left + size[0], top + size[1])
        resized = [picture.resize((scaled_w, scaled_h), Image.Resampling.BILINEAR).crop(box) for picture in pictures]
        clip = np.stack([np.asarray(picture) for picture in resized])
    grey = clip.astype(np.float32) @ GREY / 255.0
    return grey[:, :, ::-1] if item.flipped else grey


def sound_mask(path: Path, item: Item) -> torch.Tensor:
    """uint8 [T] in latent steps of the sound of `item`. Raises DataError."""
    sound = item.sound
    assert sound is not None, item.key
    steps = sound.steps
    start = sound.start - item.source.media.times[0] if sound.of_clip else sound.start
    if path.suffix.lower() == ".json":
        edges = start + np.arange(steps + 1) * (sound.seconds / steps)
        covered = np.zeros(steps)
        for begin, end in _spans(path):
            covered += np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin), 0, None)
        return torch.from_numpy(covered > THRESHOLD * sound.seconds / steps).to(torch.uint8)
    heard = read_sound(path, max(0.0, start), sound.seconds)
    level = np.abs(heard.samples).mean(axis=0)
    parts = np.array_split(level, steps)
    return torch.tensor([bool(len(part)) and float(part.mean()) > THRESHOLD for part in parts]).to(torch.uint8)


def _spans(path: Path) -> list[tuple[float, float]]:
    try:
        spans = parse_json(path.read_text(encoding="utf-8-sig"))
        found = [(float(begin), float(end)) for begin, end in spans]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", path) from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected [[from, to], ...] in seconds, for example [[0, 1.5]].", path) from error
    if any(end <= begin for begin, end in found):
        raise DataError(f"{path}: every [from, to] must end after it begins.", path)
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(found):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def _write(job: MaskJob, mask: torch.Tensor) -> int:
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": ARCHITECTURE,
        "source": json.dumps(source_record(job.source)),
        "settings": json.dumps(job.made_from),
    }
    write_tensors(job.path, {MASK_KEY: mask}, metadata)
    return job.path.stat().st_size
