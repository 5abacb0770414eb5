"""Latents of single frames of clips, which keyframe slots are trained on.

{same base as the latents}_ltx2_keyframes.safetensors
    latents_{K}x{H}x{W}_{dtype}         [128, K, H, W]: K picture frames, each encoded as an image by itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dataset.augment import read_clip
from ..dataset.cache_names import LATENT_SUFFIX
from ..dataset.plan import Item
from ..models.positions import slot_places
from ..models.video_vae import VideoVAE
from ..shapes import LatentShape
from .cache_file import DTYPES, latent_key
from .encode import Latents, encode_clip, require_numbers
from .kind import Bench, CacheMade, Job

KEYFRAMES_SUFFIX = "_ltx2_keyframes.safetensors"


def keyframes_path(latent_path: Path) -> Path:
    """Where the keyframes of the clip with these latents belong."""
    return latent_path.with_name(latent_path.name.removesuffix(LATENT_SUFFIX) + KEYFRAMES_SUFFIX)


class Keyframes(Latents):
    """Of the frames at the places of keyframe slots. What is read are the pixels of these, uint8 [K, H, W, 3]."""

    suffix = KEYFRAMES_SUFFIX

    def places(self, item: Item) -> tuple[int, ...]:
        """The frames of `item` that have a slot."""
        return slot_places(self.recipe.settings.keyframe_slots, item.shape.video().frames)

    def of(self, item: Item) -> Job | None:
        if item.kind != "video" or not self.places(item):
            return None
        return Job(self, item, item.source.path, keyframes_path(item.latent_path), self.made_from(item))

    def made_from(self, item: Item) -> dict[str, Any]:
        return super().made_from(item) | {"keyframes": list(self.places(item))}

    def shape(self, item: Item) -> LatentShape:
        return replace(item.shape, frames=len(self.places(item)))

    def weight(self, job: Job) -> float:
        shape = self.shape(job.item)
        return shape.frames * job.item.width * job.item.height

    def read(self, job: Job, model: VideoVAE | None) -> np.ndarray:
        return read_clip(job.item, self.plan.settings_of(job.item))[list(self.places(job.item))]

    def make(self, job: Job, was_read: np.ndarray, bench: Bench) -> CacheMade:
        settings, shape = self.recipe.settings, self.shape(job.item)
        alone = [encode_clip(frame[None], bench.model, settings, bench.device)[0] for frame in was_read]
        latents = torch.cat(alone, dim=1).to(DTYPES[settings.latents_dtype])
        require_numbers(latents, job.source, settings)
        return CacheMade(self.write(job, {latent_key(shape, latents.dtype): latents}))

    def needless(self, job: Job) -> bool:
        # what has no latents, because it cannot be decoded, is not trained on either
        latents = Latents(self.plan, self.recipe)
        own = latents.of(job.item)
        return own is not None and latents.failure(own) is not None

    def verdict(self, jobs: Sequence[Job], lost: set[Path]) -> str | None:
        return None
