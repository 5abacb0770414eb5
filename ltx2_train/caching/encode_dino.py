"""DINOv2 features of the frames of training clips (see dino), a few frames on the device at a time.

Clips for validation have none: they are compared with nothing. A mirrored copy has its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..dataset.augment import read_clip
from ..dataset.plan import DatasetPlan, Item
from ..errors import DataError, OutOfMemory
from ..events import Events
from .cache_file import CacheFile, sizes_text
from .dino import DINO_KEY, DINO_SUFFIX, dino_path, dino_shape
from .dino_model import DinoModel
from .encode import Latents
from .kind import Bench, CacheKind, CacheMade, Job, header_bytes
from .notes import damage
from .recipe import CacheRecipe

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as DINOv2 was trained
DEVIATION = (0.229, 0.224, 0.225)
_OF_VAE = ("vae_dtype", "latents_dtype", "spatial_tile", "temporal_tile", "latents")


class DinoFeatures(CacheKind[np.ndarray]):
    """What is read are pixels, uint8 [F, H, W, 3]. Without a model none are made, and what is there stays."""

    name = "dino"
    stage = "encode DINOv2 features"
    suffix = DINO_SUFFIX
    modes = frozenset(("video", "av"))
    model = "dino"
    part = "DINOv2 model"
    advice = "a smaller cache.dino.size"

    def __init__(self, plan: DatasetPlan, recipe: CacheRecipe) -> None:
        super().__init__(plan, recipe)
        self.latents = Latents(plan, recipe)

    @property
    def weights(self) -> str:
        return "" if self.recipe.dino is None else self.recipe.dino.fingerprint

    @property
    def buildable(self) -> bool:
        return self.recipe.dino is not None

    def of(self, item: Item) -> Job | None:
        if item.validation or item.kind == "audio":
            return None
        made_from = {key: value for key, value in self.latents.made_from(item).items() if key not in _OF_VAE}
        made_from["dino_size"] = self.recipe.settings.dino.size
        return Job(self, item, item.source.path, dino_path(item.latent_path), made_from)

    def jobs(self) -> Iterator[Job]:
        return (job for job in super().jobs() if self.recipe.dino is not None or job.path.is_file())

    def needless(self, job: Job) -> bool:
        # what has no latents, because it cannot be decoded, is not trained on either
        latents = self.latents.of(job.item)
        return latents is not None and self.latents.failure(latents) is not None

    def stale(self, file: CacheFile, job: Job) -> str | None:
        dino_shape(file)
        if self.recipe.dino is None:
            return damage(file.path) or self.foreign(file, job)
        return super().stale(file, job)

    def foreign(self, file: CacheFile, job: Job) -> str | None:
        stored, model = dino_shape(file), self.recipe.dino
        frames = job.item.window.count
        needed = (frames, *stored[1:]) if model is None else model.shape(frames)
        return None if stored == needed else f"its features are {sizes_text(stored)}, {sizes_text(needed)} are needed"

    def size(self, job: Job) -> int:
        assert self.recipe.dino is not None, job.path
        return self.recipe.dino.nbytes(job.item.window.count) + header_bytes(job.made_from)

    def weight(self, job: Job) -> float:
        return job.item.window.count

    def read(self, job: Job, model: Any) -> np.ndarray:
        return read_clip(job.item, self.plan.settings_of(job.item))

    def make(self, job: Job, was_read: np.ndarray, bench: Bench) -> CacheMade:
        model, batch = self.recipe.dino, self.recipe.settings.dino.batch
        assert model is not None, job.path
        features = dino_features(bench.model, was_read, model, batch, bench.events)
        frames, patches, width = features.shape
        said = {"dino_model": model.folder.name, "dino_dim": str(width)}
        said |= {"num_frames": str(frames), "num_patches": str(patches)}
        return CacheMade(self.write(job, {DINO_KEY: features}, **said))

    def too_large(self, job: Job) -> OutOfMemory:
        settings = self.recipe.settings.dino
        return OutOfMemory(
            f"The device ran out of memory while DINOv2 worked on {job.source.name} ({settings.batch} frames of "
            f"{settings.size}x{settings.size} together). Lower cache.dino.batch or cache.dino.size. Finished items "
            "are kept."
        )


@torch.no_grad()
def dino_features(
    network: Any, clip: np.ndarray, model: DinoModel, batch: int, events: Events | None = None
) -> torch.Tensor:
    """[T, P, D] in float16 on the CPU, of uint8 [T, H, W, 3]. Raises DataError where they are not finite."""
    weight = next(network.parameters())
    features = torch.empty(model.shape(len(clip)), dtype=torch.float16)
    for start in range(0, len(clip), batch):
        if events is not None:
            events.check_stop()
        pixels = to_square(torch.from_numpy(clip[start : start + batch]).to(weight.device), model.size)
        tokens = network(pixel_values=pixels.to(weight.dtype)).last_hidden_state
        features[start : start + len(pixels)] = tokens[:, 1 + model.folder.registers :]
    if not bool(torch.isfinite(features).all()):
        raise DataError(
            f"{model.folder.path.name} gave features that are not finite. The model may be damaged; download it again."
        )
    return features


def to_square(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [N, H, W, 3] to [N, 3, size, size] in float32, normalised as DINOv2 expects."""
    pixels = frames.permute(0, 3, 1, 2).float() / 255.0
    pixels = functional.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    mean, deviation = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation
