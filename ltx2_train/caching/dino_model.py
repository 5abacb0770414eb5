"""The DINOv2 model that features are made with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..weights.dinov2 import Dinov2Folder, dinov2_fingerprint, inspect_dinov2, load_dinov2
from .dino import MODEL_SETTING
from .settings import DinoSettings


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
