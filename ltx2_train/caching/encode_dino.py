"""Frames of the training clips -> DINOv2 features (see dino), a few frames on the device at a time.

Clips for validation have none: they are compared with nothing. A mirrored copy has its own.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..dataset.augment import read_clip
from ..dataset.plan import DatasetPlan, Item
from ..dataset.scan import Skipped
from ..dataset.sources import source_record
from ..errors import CacheError, ConfigError, DataError, OutOfMemory
from ..events import Events
from ..files import write_tensors
from ..weights.dinov2 import Dinov2Folder, dinov2_fingerprint, inspect_dinov2, load_dinov2
from . import cache_file as caches
from .build import (
    CacheReport,
    failed_before,
    latent_settings,
    note_failure,
    record_failure,
    with_model,
)
from .cache_file import ARCHITECTURE, FORMAT_VERSION, CacheFile
from .dino import DINO_KEY, MODEL_SETTING, DinoSettings, dino_path, dino_shape
from .due import Due
from .settings import CacheSettings
from .turns import Turns

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as DINOv2 was trained
DEVIATION = (0.229, 0.224, 0.225)
_OF_VAE = ("vae_dtype", "latents_dtype", "spatial_tile", "temporal_tile", "latents")


@dataclass(frozen=True)
class DinoModel:
    """The model that features are made with, known by its files alone; `open` loads it."""

    folder: Dinov2Folder
    fingerprint: str
    size: int

    @classmethod
    def find(cls, settings: DinoSettings) -> DinoModel | None:
        """None where none is set. Raises ConfigError where the folder or the size will not do."""
        if settings.model is None:
            return None
        folder, size = inspect_dinov2(settings.model, MODEL_SETTING), settings.size
        if size % folder.patch:
            low = size // folder.patch * folder.patch
            near = [str(one) for one in (low, low + folder.patch) if one]
            raise ConfigError(
                f"cache.dino.size is {size}, which is not a multiple of the patch of {folder.path.name}, "
                f"{folder.patch} pixels. Set it to {' or '.join(near)}."
            )
        return cls(folder, dinov2_fingerprint(folder), size)

    def shape(self, frames: int) -> tuple[int, int, int]:
        """(T, P, D) of the features of `frames` frames."""
        return frames, self.folder.patches(self.size), self.folder.width

    def nbytes(self, frames: int) -> int:
        """Of the features of `frames` frames as they are stored."""
        return 2 * math.prod(self.shape(frames))

    def open(self, device: torch.device | str) -> Any:
        return load_dinov2(self.folder, device, MODEL_SETTING)


@dataclass(frozen=True)
class DinoJob:
    """Features to be made of `item`. `made_from` is all that changes them besides the source and the model."""

    item: Item
    path: Path
    made_from: dict[str, Any]

    @property
    def frames(self) -> int:
        return self.item.window.count


def dino_jobs(plan: DatasetPlan, settings: CacheSettings) -> Iterator[DinoJob]:
    """The features that `plan` needs where a model is set."""
    for item in plan.items:
        if item.validation or item.kind == "audio":
            continue
        made = {key: value for key, value in latent_settings(plan, item, settings).items() if key not in _OF_VAE}
        yield DinoJob(item, dino_path(item.latent_path), {**made, "dino_size": settings.dino.size})


def dino_state(job: DinoJob, model: DinoModel | None, settings: CacheSettings) -> tuple[bool, str | None]:
    """Whether the file is missing, and why it must be made again (None: it is fresh).

    A file of another program must have the right shape. Without a model only the number of frames is compared.
    """
    if not job.path.is_file():
        return True, "missing"
    if not settings.skip_existing:
        return False, "skip_existing is off"
    try:
        file = CacheFile(job.path)
        found = dino_shape(file)
    except CacheError:
        return False, "damaged"
    if model is not None and file.fingerprinted:
        return False, caches.stale_made(file, job.item.source.path, job.made_from, "DINOv2 model", model.fingerprint)
    wanted = (job.frames, *found[1:]) if model is None else model.shape(job.frames)
    if found == wanted:
        return False, None
    return False, f"its features are {_by(found)}, {_by(wanted)} are needed"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def dino_due(plan: DatasetPlan, model: DinoModel, settings: CacheSettings) -> Due[DinoJob]:
    """The features that are missing or no longer fit."""
    return Due.find(
        dino_jobs(plan, settings),
        lambda job: job.path,
        lambda job, checked: dino_state(job, model, checked),
        settings,
    )


def encode_dino(
    plan: DatasetPlan,
    model: DinoModel,
    settings: CacheSettings,
    events: Events | None = None,
    device: torch.device | str = "cpu",
    open_model: Callable[[], Any] | None = None,
    due: Due[DinoJob] | None = None,
) -> CacheReport:
    """Cache the features of every training clip of `plan`; one that cannot be read is named and left out.

    The model is loaded only if something is to be made (by `open_model` where given); `due` spares looking for that
    again. Raises OutOfMemory with what to make smaller.
    """
    events, started = events or Events(), time.monotonic()
    due = dino_due(plan, model, settings) if due is None else due
    # what has no latents, because it cannot be decoded, is not trained on either
    due = replace(due, jobs=[job for job in due.jobs if not failed_before(job.item)])
    report = due.report("dino", events)

    def read(job: DinoJob) -> np.ndarray:
        clip = read_clip(job.item, plan.settings_of(job.item))
        with contextlib.suppress(OSError):
            source_record(job.item.source.path)  # hashed in this thread; it is known when the cache is written
        return clip

    def work(network: Any) -> None:
        def make(job: DinoJob, clip: np.ndarray | DataError) -> None:
            try:
                if isinstance(clip, DataError):
                    raise clip
                features = dino_features(network, clip, model, settings.dino.batch, events)
                report.bytes += _write(job, features, model)
                report.made += 1
            except DataError as error:
                note_failure(report, Skipped(job.item.source.path, str(error)), events)
                record_failure(job.item, str(error), job.path.name)
            except torch.OutOfMemoryError as error:
                raise OutOfMemory(
                    f"The device ran out of memory while DINOv2 worked on {job.item.source.path.name} "
                    f"({settings.dino.batch} frames of {model.size}x{model.size} together). Lower "
                    "cache.dino.batch or cache.dino.size. Finished items are kept."
                ) from error

        turns.each(make)

    with Turns(due, read, lambda job: job.frames, "encode DINOv2 features", events) as turns:
        if turns.begin():
            with_model(open_model or (lambda: _open(model, events, device)), work, device)
    report.others = turns.others
    report.seconds = time.monotonic() - started
    return report


def _open(model: DinoModel, events: Events, device: torch.device | str) -> Any:
    events.make_room(model.folder.nbytes, device)
    return model.open(device)


@torch.no_grad()
def dino_features(
    network: Any, clip: np.ndarray, model: DinoModel, batch: int, events: Events | None = None
) -> torch.Tensor:
    """[T, P, D] in float16 on the CPU, of uint8 [T, H, W, 3]. Raises DataError where they are not finite."""
    weight = next(network.parameters())
    found = torch.empty(model.shape(len(clip)), dtype=torch.float16)
    for start in range(0, len(clip), batch):
        if events is not None:
            events.check_stop()
        pixels = to_square(torch.from_numpy(clip[start : start + batch]).to(weight.device), model.size)
        tokens = network(pixel_values=pixels.to(weight.dtype)).last_hidden_state
        found[start : start + len(pixels)] = tokens[:, 1 + model.folder.registers :]
    if not bool(torch.isfinite(found).all()):
        raise DataError(
            f"{model.folder.path.name} gave features that are not finite. The model may be damaged; download it again."
        )
    return found


def to_square(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N, H, W, 3] to [N, 3, size, size] in float32, normalised as DINOv2 expects."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255.0
    pixels = functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    mean, deviation = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def _write(job: DinoJob, features: torch.Tensor, model: DinoModel) -> int:
    frames, patches, width = features.shape
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": ARCHITECTURE,
        "dino_model": model.folder.name,
        "dino_dim": str(width),
        "num_frames": str(frames),
        "num_patches": str(patches),
        "source": json.dumps(source_record(job.item.source.path)),
        "settings": json.dumps(job.made_from),
        "checkpoint": model.fingerprint,
    }
    write_tensors(job.path, {DINO_KEY: features}, metadata)
    return job.path.stat().st_size
