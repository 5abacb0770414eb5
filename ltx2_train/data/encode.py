"""Filling the caches: clips through the video VAE (here), captions through the text encoder (encode_text).

What is fresh stays, what is missing or stale is made. A model is opened only if there is something to do, one at a
time, and is let go before the function returns. Each file is written as soon as it is ready, so a stop costs one item.
A file that cannot be used is named and left out; only where nothing is left is that an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import CacheError, DataError, OutOfMemory
from ..events import Events
from ..files import write_tensors
from ..models.tiling import TileSettings, encode_tiled
from ..shapes import LatentShape
from . import caches
from .augment import read_clip
from .building import (
    CacheReport,
    CacheSettings,
    latent_settings,
    note_failure,
    picture_reference_settings,
    record_failure,
    with_model,
)
from .caches import ARCHITECTURE, DTYPES, FORMAT_VERSION, CacheFile
from .encode_text import encode_text
from .entry import REFERENCE_FOLDER
from .listing import Skipped
from .plan import Item, Plan
from .reference import read_reference

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE

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

    def read(self, plan: Plan) -> np.ndarray:
        """The pixels as uint8 [F, H, W, 3]. Raises DataError."""
        entry = plan.settings_of(self.item)
        return read_reference(self.item, entry) if self.reference else read_clip(self.item, entry)


def latent_jobs(plan: Plan, settings: CacheSettings) -> list[LatentJob]:
    """All latents of pictures that `plan` needs: those of the clips, then those of their references."""
    pictured = [item for item in plan.items if item.kind != "audio"]
    jobs = [
        LatentJob(item, item.source.path, item.latent_path, item.shape, latent_settings(plan, item, settings))
        for item in pictured
    ]
    references = (reference_job(plan, item, settings) for item in pictured)
    return jobs + [job for job in references if job is not None]


def reference_job(plan: Plan, item: Item, settings: CacheSettings) -> LatentJob | None:
    """The latents of the reference of `item`; None where it has none."""
    wanted, path = item.reference, item.reference_path
    if wanted is None or path is None:
        return None
    made_from = picture_reference_settings(plan, item, settings)
    return LatentJob(item, wanted.path, path, wanted.shape, made_from, reference=True)


def encode_latents(
    plan: Plan,
    open_vae: Callable[[], VideoVAE],
    vae_fingerprint: str,
    settings: CacheSettings,
    events: Events | None = None,
    device: torch.device | str = "cpu",
) -> CacheReport:
    """Cache the latents of every item of `plan`, and of the references.

    `open_vae` gives the VAE in the precision of `settings.vae_dtype`; it is called only if something is to be made.
    Raises DataError where no item could be encoded, OutOfMemory with what to make smaller.
    """
    events = events or Events()
    report, started = CacheReport("latents"), time.monotonic()
    todo: list[LatentJob] = []
    jobs = latent_jobs(plan, settings)
    own = sum(not job.reference for job in jobs)
    for job in jobs:
        missing, reason = latents_state(job, vae_fingerprint, settings)
        if missing or reason:
            todo.append(job)
            report.stale += not missing
            if reason and not missing and settings.skip_existing:
                events.message(f"{job.path.name} is made again: {reason}")
        else:
            report.kept += 1
    kept, made = report.kept, 0
    if todo:
        events.stage("encode video", len(todo))

        def work(vae: VideoVAE) -> None:
            nonlocal made
            for done, (job, clip) in enumerate(_decoded_ahead(plan, todo, events), 1):
                try:
                    if isinstance(clip, DataError):
                        raise clip
                    report.bytes += _write_latents(job, clip, vae, vae_fingerprint, settings)
                    report.made += 1
                    made += not job.reference
                except DataError as error:
                    note_failure(report, Skipped(job.source, str(error)), events)
                    record_failure(job.item, str(error), failure_name(job), job.source)
                except torch.OutOfMemoryError as error:
                    raise _too_large(job, settings.tiles) from error
                events.progress(done, len(todo), job.path.name)

        with_model(open_vae, work, device)
    report.seconds = time.monotonic() - started
    if own and not made + kept:
        raise DataError("Not one clip could be encoded.\n" + report.summary(), report.failed[0].path)
    return report


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


def _decoded_ahead(
    plan: Plan, jobs: Sequence[LatentJob], events: Events
) -> Iterator[tuple[LatentJob, np.ndarray | DataError]]:
    """Clips in order; while one is being encoded the next is decoded, and no more."""

    def decode(job: LatentJob) -> np.ndarray | DataError:
        try:
            return job.read(plan)
        except DataError as error:
            return error

    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        coming: Future[np.ndarray | DataError] = pool.submit(decode, jobs[0])
        try:
            for index, job in enumerate(jobs):
                events.check_stop()
                clip = coming.result()
                if index + 1 < len(jobs):
                    coming = pool.submit(decode, jobs[index + 1])
                yield job, clip
                del clip
        finally:
            coming.cancel()


def to_pixels(clip: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [F, H, W, 3] to [1, 3, F, H, W] in [-1, 1]; rounded once, from float32."""
    frames, height, width, _ = clip.shape
    pixels = torch.empty((1, 3, frames, height, width), dtype=dtype)
    for index in range(frames):
        pixels[0, :, index] = torch.from_numpy(clip[index]).permute(2, 0, 1).float() / 127.5 - 1.0
    return pixels


def _write_latents(job: LatentJob, clip: np.ndarray, vae: VideoVAE, fingerprint: str, settings: CacheSettings) -> int:
    frames, height, width, _ = clip.shape
    pixels = to_pixels(clip, DTYPES[settings.vae_dtype])
    latents = encode_tiled(vae, pixels, settings.tiles)[0].to(DTYPES[settings.latents_dtype])
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
        "source": json.dumps(caches.source_record(job.source)),
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
