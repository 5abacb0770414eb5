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
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import CacheError, DataError, OutOfMemory
from ..events import Events
from ..files import write_tensors
from ..models.tiling import TileSettings, encode_tiled
from . import caches
from .building import CacheReport, CacheSettings, latent_settings, note_failure, record_failure, with_model
from .caches import ARCHITECTURE, DTYPES, FORMAT_VERSION, CacheFile
from .encode_text import encode_text
from .listing import Skipped
from .media import read_frames
from .plan import Item, Plan

if TYPE_CHECKING:
    from ..models.video_vae import VideoVAE

__all__ = ["CacheReport", "CacheSettings", "encode_latents", "encode_text", "to_pixels"]


def encode_latents(
    plan: Plan,
    open_vae: Callable[[], VideoVAE],
    vae_fingerprint: str,
    settings: CacheSettings,
    events: Events | None = None,
    device: torch.device | str = "cpu",
) -> CacheReport:
    """Cache the latents of every item of `plan`.

    `open_vae` gives the VAE in the precision of `settings.vae_dtype`; it is called only if something is to be made.
    Raises DataError where no item could be encoded, OutOfMemory with what to make smaller.
    """
    events = events or Events()
    report, started = CacheReport("latents"), time.monotonic()
    todo: list[Item] = []
    pictured = [item for item in plan.items if item.kind != "audio"]
    for item in pictured:
        missing, reason = _latents_state(plan, item, vae_fingerprint, settings)
        if missing or reason:
            todo.append(item)
            report.stale += not missing
            if reason and not missing and settings.skip_existing:
                events.message(f"{item.latent_path.name} is made again: {reason}")
        else:
            report.kept += 1
    if todo:
        events.stage("encode video", len(todo))

        def work(vae: VideoVAE) -> None:
            for done, (item, clip) in enumerate(_decoded_ahead(todo, events), 1):
                try:
                    if isinstance(clip, DataError):
                        raise clip
                    report.bytes += _write_latents(plan, item, clip, vae, vae_fingerprint, settings)
                    report.made += 1
                except DataError as error:
                    note_failure(report, Skipped(item.source.path, str(error)), events)
                    record_failure(item, str(error))
                except torch.OutOfMemoryError as error:
                    raise _too_large(item, settings.tiles) from error
                events.progress(done, len(todo), item.latent_path.name)

        with_model(open_vae, work, device)
    report.seconds = time.monotonic() - started
    if pictured and not report.made + report.kept:
        raise DataError("Not one clip could be encoded.\n" + report.summary(), report.failed[0].path)
    return report


def _latents_state(plan: Plan, item: Item, fingerprint: str, settings: CacheSettings) -> tuple[bool, str | None]:
    """Whether the cache is missing, and why it must be made again (None: it is fresh)."""
    if not item.latent_path.is_file():
        return True, "missing"
    if not settings.skip_existing:
        return False, "skip_existing is off"
    try:
        file = CacheFile(item.latent_path)
        file.latent_shape()
    except CacheError:
        return False, "damaged"
    wanted = latent_settings(plan, item, settings)
    return False, caches.stale_latents(file, item.source.path, wanted, fingerprint)


def _decoded_ahead(items: Sequence[Item], events: Events) -> Iterator[tuple[Item, np.ndarray | DataError]]:
    """Clips in order; while one is being encoded the next is decoded, and no more."""

    def decode(item: Item) -> np.ndarray | DataError:
        try:
            return read_frames(item.source.media, item.picks, (item.width, item.height))
        except DataError as error:
            return error

    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        coming: Future[np.ndarray | DataError] = pool.submit(decode, items[0])
        try:
            for index, item in enumerate(items):
                events.check_stop()
                clip = coming.result()
                if index + 1 < len(items):
                    coming = pool.submit(decode, items[index + 1])
                yield item, clip
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


def _write_latents(
    plan: Plan, item: Item, clip: np.ndarray, vae: VideoVAE, fingerprint: str, settings: CacheSettings
) -> int:
    pixels = to_pixels(clip, DTYPES[settings.vae_dtype])
    latents = encode_tiled(vae, pixels, settings.tiles)[0].to(DTYPES[settings.latents_dtype])
    if not bool(torch.isfinite(latents).all()):
        raise DataError(
            f"{item.source.path}: the VAE gave numbers that are not finite in {settings.vae_dtype}. "
            'Set cache.vae_dtype = "fp32".',
            item.source.path,
        )
    assert tuple(latents.shape[1:]) == (item.shape.frames, item.shape.height, item.shape.width), latents.shape
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": ARCHITECTURE,
        "frame_count": str(item.window.count),
        "width": str(item.width),
        "height": str(item.height),
        "fps": repr(item.fps),
        "source": json.dumps(caches.source_record(item.source.path)),
        "settings": json.dumps(latent_settings(plan, item, settings)),
        "checkpoint": fingerprint,
    }
    write_tensors(item.latent_path, {caches.latent_key(item.shape, latents.dtype): latents}, metadata)
    return item.latent_path.stat().st_size


def _too_large(item: Item, tiles: TileSettings) -> OutOfMemory:
    what = f"{item.width}x{item.height}, {item.window.count} frames"
    if tiles.chunk_size is None:
        advice = "Set cache.tiles.chunk_size = 16"
    elif tiles.spatial_tile is None:
        advice = "Set cache.tiles.spatial_tile = 512"
    else:
        advice = "Make cache.tiles.spatial_tile or cache.tiles.chunk_size smaller"
    return OutOfMemory(
        f"The device ran out of memory while the VAE encoded {item.source.path.name} ({what}). "
        f"{advice}, or lower resolution or target_frames in the dataset. Finished items are kept."
    )
