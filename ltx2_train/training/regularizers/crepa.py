"""CREPA: what a block holds of a frame is to tell of the frames beside it, which keeps a clip steady over time.

    1 - sum_d w_d cos(P h_f, y_{f + d}) / sum_d w_d,      w_d = exp(-|d| / tau),  |d| <= neighbors,  mean over f

h is the student's block, P a projector that is trained beside the LoRA. In mode backbone y is a deeper block of the
same pass, both as means over a frame, without a gradient through y. In mode dino y are DINOv2 features, compared token
by token: the square of patches of each frame is brought to the grid of the latents in both directions, and a latent of
8 frames is compared with the one in its middle.

Divided by the sum of the weights, it does not depend on the length of a clip. arXiv:2506.09229.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...caching.cache_file import CacheFile
from ...caching.dino import dino_path, dino_shape, read_dino
from ...models.transformer import Output
from ...objective.alignment import places, with_neighbors
from ...objective.regularizers import CrepaSettings
from ...shapes import TEMPORAL_FACTOR, LatentShape
from ..ready import Group
from .base import Cost, CostSizes, Kit, Regularizer, Value, View, course
from .projector import Projector

DINO_WIDTH = 1536  # of the largest DINOv2, where a plan does not know it


class Crepa(Regularizer):
    """Frames are aligned with the frames beside them."""

    name = "crepa"

    def __init__(self, settings: CrepaSettings, kit: Kit) -> None:
        super().__init__(settings, kit)
        width = kit.model.config.video.width
        out = width
        if settings.mode == "dino":
            first = next(sample for sample in kit.data.samples if sample.kind != "audio")
            out = dino_shape(CacheFile(dino_path(first.latent_path)))[2]
        self.projector = self.trained = Projector(width, width, out, "gelu", kit.run.train.seed).to(kit.device)
        self._student = f"video.{settings.student_block}"
        self._teacher = f"video.{settings.teacher_block}"

    @classmethod
    def cost(cls, settings: CrepaSettings, sizes: CostSizes) -> Cost:
        held = sizes.batch * sizes.tokens * sizes.width
        if settings.mode == "backbone":
            # both blocks are held until the loss, and the gradient to the student's
            return Cost(bytes=3 * held * sizes.itemsize, trained=2 * sizes.width**2)
        compared = sizes.batch * sizes.tokens * DINO_WIDTH
        return Cost(
            bytes=4 * held * sizes.itemsize + (sizes.itemsize + 5 * 4) * compared,
            trained=sizes.width**2 + sizes.width * DINO_WIDTH,
        )

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        if self.settings.mode == "backbone" or group.video is None:
            return {}
        opened = self.kit.data.opened
        found = [_features(dino_path(one.latent_path), one.shape, opened) for one in group.samples]
        return {"features": torch.stack(found)}

    def keeps(self, view: View) -> tuple[str, ...]:
        if view.group.video is None:
            return ()
        return (self._student, self._teacher) if self.settings.mode == "backbone" else (self._student,)

    def terms(self, view: View, out: Output) -> dict[str, Value]:
        video, settings = view.group.video, self.settings
        if video is None:
            return {}
        tokens, frames = video.clean.shape[1], view.group.samples[0].shape.frames
        clip = slice(-tokens, -video.slots or None)  # without references and keyframe slots
        student = out.hidden[self._student][:, clip]
        if settings.mode == "backbone":
            student = self.projector(places(student, frames, mean=True).to(student.dtype)).float()
            teacher = places(out.hidden[self._teacher][:, clip].detach(), frames, mean=True)
        else:
            student = places(self.projector(student), frames, mean=False)
            teacher = view.drawn(self.name)["features"].float()
        agreement = with_neighbors(student, teacher, settings.tau, settings.neighbors, cosine=settings.normalize)
        end = settings.decay_steps or self.kit.total
        weight = settings.weight * course(settings.schedule, settings.warmup_steps, end, view.step)
        return {self.name: Value(1.0 - agreement if settings.normalize else -agreement, weight)}


def _features(path: Path, shape: LatentShape, opened: Callable[[Path], CacheFile] = CacheFile) -> Tensor:
    """[F, H W, D] in float16: the features of the frame in the middle of each latent, on the grid of the latents."""
    total = dino_shape(opened(path))[0]
    middle = [0, *(TEMPORAL_FACTOR * frame - TEMPORAL_FACTOR // 2 for frame in range(1, shape.frames))]
    found = read_dino(path, [min(frame, total - 1) for frame in middle], opened)
    side = math.isqrt(found.shape[1])
    grid = found.transpose(1, 2).unflatten(2, (side, side))
    grid = interpolate(grid, (shape.height, shape.width), mode="bilinear", align_corners=False, antialias=True)
    return grid.flatten(2).transpose(1, 2).contiguous().half()
