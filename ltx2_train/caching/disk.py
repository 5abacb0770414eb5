"""What is to be cached, and the room on the disk it takes, known before any model is loaded.

Latents, sound and masks are reckoned from their shapes and are right to a few per cent. Of text only the length of the
captions is known; the number of its tokens is estimated upwards: a token for every two letters, and for every byte of
anything else (digits are tokens of their own), 1024 at most.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset.plan import DatasetPlan, Source
from ..errors import RunError
from ..events import Events
from ..shapes import AUDIO_BINS, AUDIO_CHANNELS, AUDIO_LATENTS_PER_SECOND, VIDEO_CHANNELS, Mode
from ..weights.gemma import TOKEN_LIMIT
from ..weights.reader import TensorFile
from .build import text_settings
from .cache_file import DTYPES, Fingerprints
from .due import Due
from .encode import LatentJob, latents_due
from .encode_dino import DinoJob, DinoModel, dino_due
from .encode_mask import MaskJob, masks_due
from .encode_sound import SoundJob, sound_due, sound_seconds
from .encode_text import text_due
from .settings import CacheSettings

HEADER, MASK_HEADER = 430, 290  # bytes of a cache that are neither tensor nor settings: source, checkpoint, names
EXACT = 1.1  # what replaces a file of about its own size needs no room, though the estimate be a little higher
VIRTUAL = 1150  # the file of latents beside a recording, in which there is one zero


@dataclass(frozen=True)
class CacheNeed:
    """The caches to be made, None where the mode has none, and their sizes in bytes."""

    latents: Due[LatentJob] | None
    sound: Due[SoundJob] | None
    masks: Due[Any] | None
    text: Due[Source]
    sizes: dict[Path, int]
    text_sizes: dict[Path, int]  # at most
    dino: Due[DinoJob] | None = None

    @classmethod
    def of(
        cls,
        plan: DatasetPlan,
        settings: CacheSettings,
        mode: Mode,
        vae_fingerprint: str,
        audio_fingerprint: str,
        weights: Fingerprints,
        widths: list[int],
        dino_model: DinoModel | None = None,
    ) -> CacheNeed:
        """Look at all caches of `plan`; `widths` are those of the text features of the checkpoint (`text_widths`)."""
        dino = None if dino_model is None else dino_due(plan, dino_model, settings)
        latents = latents_due(plan, vae_fingerprint, settings) if mode != "audio" else None
        sound = sound_due(plan, audio_fingerprint, settings) if mode != "video" else None
        masks = masks_due(plan, settings) if any(item.mask or item.audio_mask for item in plan.items) else None
        text = text_due(plan, weights, settings)
        sizes: dict[Path, int] = {}
        for job in latents.jobs if latents is not None else ():
            shape = job.shape
            values = shape.tokens * VIDEO_CHANNELS * DTYPES[settings.latents_dtype].itemsize
            sizes[job.path] = values + _header(job.made_from)
        for job in sound.jobs if sound is not None else ():
            steps = max(1, round(sound_seconds(plan, job) * AUDIO_LATENTS_PER_SECOND))
            values = steps * AUDIO_CHANNELS * AUDIO_BINS * DTYPES[settings.audio_latents_dtype].itemsize
            virtual = VIRTUAL if job.item.kind == "audio" and not job.reference else 0
            sizes[job.path] = values + _header(job.made_from) + virtual
        for job in masks.jobs if masks is not None else ():
            sizes[job.path] = _mask_cells(job) + _header(job.made_from, MASK_HEADER)
        for job in dino.jobs if dino is not None and dino_model is not None else ():
            sizes[job.path] = dino_model.nbytes(job.frames) + _header(job.made_from)
        size = sum(widths) * DTYPES[settings.text_dtype].itemsize
        texts = {
            source.text_path(settings.text_form): _text_bytes(source, settings, size, len(widths))
            for source in text.jobs
        }
        return cls(latents, sound, masks, text, sizes, texts, dino)

    def require_room(self, events: Events) -> None:
        """Say how much is to be made, and of what size. Raises RunError where a disk has not enough room for it."""
        count = len(self.sizes) + len(self.text_sizes)
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
                    + (", or a smaller cache.dino.size" if self.dino is not None and self.dino.jobs else "")
                    + ". Nothing was written."
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
        kinds = (
            ("latents", self.latents), ("sound", self.sound), ("masks", self.masks), ("dino", self.dino),
            ("text", self.text),
        )  # fmt: skip
        counts = ", ".join(f"{len(due.jobs)} {kind}" for kind, due in kinds if due is not None and due.jobs)
        sure, text = sum(self.sizes.values()), sum(self.text_sizes.values())
        size = f"about {_said(sure + text)}" if sure else f"at most {_said(text)}"
        size += f" (of it text at most {_said(text)})" if sure and text else ""
        frees = {folder: found for folder, *_ in self._disks() if (found := _free(folder)) is not None}
        where = (f" on the disk of {folder}" if len(frees) > 1 else "" for folder in frees)
        free = "".join(f"; {_said(one)} free{place}" for one, place in zip(frees.values(), where, strict=True))
        return f"caches to make: {len(self.sizes) + len(self.text_sizes)} ({counts}), {size}{free}"

    def _disks(self) -> Iterator[tuple[Path, int, int, int]]:
        """Of each disk a folder on it, the bytes it surely and at most needs beyond what is replaced, and the files."""
        surely: Counter[int] = Counter()
        at_most: Counter[int] = Counter()
        number: Counter[int] = Counter()
        folders: dict[int, Path] = {}
        for sizes, known in ((self.sizes, True), (self.text_sizes, False)):
            for path, size in sizes.items():
                disk, folder = _disk(path.parent)
                folders.setdefault(disk, folder)
                more = max(0, size - round(EXACT * _size(path)))
                surely[disk] += more if known else 0
                at_most[disk] += more
                number[disk] += 1
        for disk, folder in folders.items():
            yield folder, surely[disk], at_most[disk], number[disk]


def text_widths(projection: Path) -> list[int]:
    """The widths of a checkpoint's text features: of both streams, or the one they share (2.0). Reads the header."""
    ends = ("video_aggregate_embed.weight", "audio_aggregate_embed.weight", ".aggregate_embed.weight")
    with TensorFile(projection) as file:
        return [info.shape[0] for name, info in file.tensors.items() if f".{name}".endswith(ends)]


def _text_bytes(source: Source, settings: CacheSettings, size: int, streams: int) -> int:
    """At most what the cache of a caption takes; `size` bytes a token."""
    header = _header(text_settings(settings.text_form, settings)) + 2 * len(json.dumps(source.caption))
    if settings.text_form == "full":
        # after the connectors: always as long, in both streams, and a mask
        return TOKEN_LIMIT * (size * (2 if streams == 1 else 1) + 8) + header
    letters = sum(letter.isascii() and not letter.isdigit() for letter in source.caption)
    other = sum(len(letter.encode()) for letter in source.caption if not letter.isascii() or letter.isdigit())
    return min(TOKEN_LIMIT, letters // 2 + other + 4) * size + header


def _mask_cells(job: MaskJob) -> int:
    if job.sound:
        return job.item.sound.steps if job.item.sound is not None else 0
    return job.item.shape.tokens


def _header(made_from: dict[str, Any], rest: int = HEADER) -> int:
    return rest + len(json.dumps(json.dumps(made_from)))


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
    return f"{count / 1e9:.1f} GB" if count >= 5e7 else f"{max(count, 0) / 1e6:.1f} MB"
