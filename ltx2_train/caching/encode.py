"""Filling the caches: clips through the video VAE (here), captions through the text encoder (encode_text).

What is fresh stays, what is missing or stale is made. A model is opened only if there is something to do, one at a
time, and is let go before the function returns. Each file is written as soon as it is ready, so a stop costs one item.
A file that cannot be used is named and left out; only where nothing is left is that an error.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..dataset.augment import read_clip
from ..dataset.entry import REFERENCE_FOLDER
from ..dataset.plan import DatasetPlan, Item
from ..dataset.reference import read_reference
from ..dataset.scan import Skipped
from ..dataset.sources import source_record
from ..errors import CacheError, DataError, OutOfMemory
from ..events import Events
from ..files import write_tensors
from ..models.tiling import TileSettings, encode_tiled
from ..shapes import LatentShape
from . import cache_file as caches
from .build import (
    CacheReport,
    latent_settings,
    note_failure,
    picture_reference_settings,
    record_failure,
    with_model,
)
from .cache_file import ARCHITECTURE, DTYPES, FORMAT_VERSION, CacheFile
from .due import Due
from .encode_text import encode_text
from .settings import CacheSettings
from .turns import Turns

if TYPE_CHECKING:
    from ..models.video_vae import Stream, VideoVAE

__all__ = ["CacheReport", "CacheSettings", "encode_latents", "encode_text", "to_pixels"]


@dataclass(frozen=True)
class LatentJob:
    """Latents to be made: of the item's own clip, or of its reference."""

    item: Item
    source: Path
    path: Path
    shape: LatentShape
    made_from: dict[str, Any]
    reference: bool = False

    def read(self, plan: DatasetPlan) -> np.ndarray:
        """The pixels as uint8 [F, H, W, 3]. Raises DataError."""
        entry = plan.settings_of(self.item)
        return read_reference(self.item, entry) if self.reference else read_clip(self.item, entry)


def latent_jobs(plan: DatasetPlan, settings: CacheSettings) -> list[LatentJob]:
    """All latents of pictures that `plan` needs: those of the clips, then those of their references."""
    pictured = [item for item in plan.items if item.kind != "audio"]
    jobs = [
        LatentJob(item, item.source.path, item.latent_path, item.shape, latent_settings(plan, item, settings))
        for item in pictured
    ]
    references = (reference_job(plan, item, settings) for item in pictured)
    return jobs + [job for job in references if job is not None]


def reference_job(plan: DatasetPlan, item: Item, settings: CacheSettings) -> LatentJob | None:
    """The latents of the reference of `item`; None where it has none."""
    wanted, path = item.reference, item.reference_path
    if wanted is None or path is None:
        return None
    made_from = picture_reference_settings(plan, item, settings)
    return LatentJob(item, wanted.path, path, wanted.shape, made_from, reference=True)


def latents_due(plan: DatasetPlan, fingerprint: str, settings: CacheSettings) -> Due[LatentJob]:
    """The latents that are missing or no longer fit."""
    return Due.find(
        latent_jobs(plan, settings),
        lambda job: job.path,
        lambda job, checked: latents_state(job, fingerprint, checked),
        settings,
    )


def encode_latents(
    plan: DatasetPlan,
    open_vae: Callable[[], VideoVAE],
    vae_fingerprint: str,
    settings: CacheSettings,
    events: Events | None = None,
    device: torch.device | str = "cpu",
    due: Due[LatentJob] | None = None,
) -> CacheReport:
    """Cache the latents of every item of `plan`, and of the references; `due` spares looking for them again.

    `open_vae` gives the VAE in the precision of `settings.vae_dtype`; it is called only if something is to be made.
    Raises DataError where no item could be encoded, OutOfMemory with what to make smaller.
    """
    events, started = events or Events(), time.monotonic()
    due = latents_due(plan, vae_fingerprint, settings) if due is None else due
    report = due.report("latents", events)
    lost: set[Path] = set()

    def read(job: LatentJob) -> np.ndarray:
        clip = job.read(plan)
        with contextlib.suppress(OSError):
            source_record(job.source)  # hashes the file in this thread; it is known when the cache is written
        return clip

    def work(vae: VideoVAE) -> None:
        def make(job: LatentJob, clip: np.ndarray | DataError) -> None:
            try:
                if isinstance(clip, DataError):
                    raise clip
                report.bytes += _write_latents(job, clip, vae, vae_fingerprint, settings, device)
                report.made += 1
            except DataError as error:
                lost.add(job.path)
                note_failure(report, Skipped(job.source, str(error)), events)
                record_failure(job.item, str(error), failure_name(job), job.source)
            except torch.OutOfMemoryError as error:
                raise _too_large(job, settings.tiles) from error

        turns.each(make)

    with Turns(due, read, _pixels, "encode video", events) as turns:
        if turns.begin():
            with_model(open_vae, work, device)
    report.others = turns.others
    report.seconds = time.monotonic() - started
    own = [job for job in (*due.kept, *due.jobs) if not job.reference]
    if own and all(job.path in lost for job in own):
        raise DataError("Not one clip could be encoded.\n" + report.summary(), report.failed[0].path)
    return report


def _pixels(job: LatentJob) -> float:
    video = job.shape.video()
    return video.frames * video.width * video.height


def failure_name(job: LatentJob) -> str:
    """What the failure of `job` is remembered under; a reference has the name of its clip's latents."""
    return f"{REFERENCE_FOLDER}/{job.path.name}" if job.reference else job.path.name


def latents_state(job: LatentJob, fingerprint: str, settings: CacheSettings) -> tuple[bool, str | None]:
    """Whether the cache is missing, and why it must be made again (None: it is fresh)."""
    if not job.path.is_file():
        return True, "missing"
    if not settings.skip_existing:
        return False, "skip_existing is off"
    try:
        file = CacheFile(job.path)
        file.latent_shape()
    except CacheError:
        return False, "damaged"
    return False, caches.stale_latents(file, job.source, job.made_from, fingerprint)


def as_bytes(clip: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] seen as [1, 3, F, H, W]; nothing is copied."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2)[None]


def to_pixels(clip: np.ndarray | torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [F, H, W, 3], or as `as_bytes` has it, to [1, 3, F, H, W] in [-1, 1]; rounded once, from float32."""
    levels = as_bytes(clip) if isinstance(clip, np.ndarray) else clip
    pixels = torch.empty(levels.shape, dtype=dtype, device=levels.device)
    for index in range(levels.shape[2]):
        # turned while they are bytes, of which fewer have to be moved
        pixels[:, :, index] = levels[:, :, index].contiguous().float().div_(127.5).sub_(1.0)
    return pixels


class _FromBytes:
    """A VAE for `encode_tiled` that is given bytes and makes pixels of them a piece at a time, on its own device.

    On a card that takes no time; on the processor it would take as long as decoding half a clip, and more memory.
    """

    def __init__(self, vae: VideoVAE, dtype: torch.dtype, device: torch.device | str) -> None:
        self.config = vae.config
        self._vae, self._dtype, self._device = vae, dtype, device

    def encode_piece(self, piece: torch.Tensor, stream: Stream) -> torch.Tensor:
        return self._vae.encode_piece(to_pixels(piece.to(self._device), self._dtype), stream)


def _write_latents(
    job: LatentJob,
    clip: np.ndarray,
    vae: VideoVAE,
    fingerprint: str,
    settings: CacheSettings,
    device: torch.device | str = "cpu",
) -> int:
    frames, height, width, _ = clip.shape
    takes_bytes: Any = _FromBytes(vae, DTYPES[settings.vae_dtype], device)
    latents = encode_tiled(takes_bytes, as_bytes(clip), settings.tiles)[0].to(DTYPES[settings.latents_dtype])
    if not bool(torch.isfinite(latents).all()):
        raise DataError(
            f"{job.source}: the VAE gave numbers that are not finite in {settings.vae_dtype}. "
            'Set cache.vae_dtype = "fp32".',
            job.source,
        )
    shape = job.shape
    assert tuple(latents.shape[1:]) == (shape.frames, shape.height, shape.width), latents.shape
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": ARCHITECTURE,
        "frame_count": str(frames),
        "width": str(width),
        "height": str(height),
        "fps": repr(job.item.fps),
        "source": json.dumps(source_record(job.source)),
        "settings": json.dumps(job.made_from),
        "checkpoint": fingerprint,
    }
    write_tensors(job.path, {caches.latent_key(shape, latents.dtype): latents}, metadata)
    return job.path.stat().st_size


def _too_large(job: LatentJob, tiles: TileSettings) -> OutOfMemory:
    video = job.shape.video()
    what = f"{video.width}x{video.height}, {video.frames} frames"
    if tiles.chunk_size is None:
        advice = "Set cache.tiles.chunk_size = 16"
    elif tiles.spatial_tile is None:
        advice = "Set cache.tiles.spatial_tile = 512"
    else:
        advice = "Make cache.tiles.spatial_tile or cache.tiles.chunk_size smaller"
    smaller = "reference_frames" if job.reference else "target_frames"
    return OutOfMemory(
        f"The device ran out of memory while the VAE encoded {job.source.name} ({what}). "
        f"{advice}, or lower resolution or {smaller} in the dataset. Finished items are kept."
    )
