"""How well hidden states agree: tokens with tokens, frames with the frames beside them, changes with changes.

All are means of cosines c in -1..1, weighted so that their sum does not grow with the length of a clip or the number of
its tokens. Inputs are [B, F, P, D]: frames, places in a frame (row by row), width; a mean over places has P = 1.

CREPA: arXiv:2506.09229. Self-Flow: arXiv:2603.06507.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize


def places(hidden: Tensor, frames: int, mean: bool) -> Tensor:
    """Tokens [B, F P, D] in float32 as [B, F, P, D], or [B, F, 1, D] where their mean is asked for."""
    hidden = hidden.unflatten(1, (frames, -1))
    return hidden.mean(dim=2, keepdim=True, dtype=torch.float32) if mean else hidden.float()


def products(a: Tensor, b: Tensor, cosine: bool = True) -> Tensor:
    """The cosine of the last dimension of `a` and `b`; without `cosine` the mean of their product."""
    if not cosine:
        return (a * b).mean(dim=-1)
    return (normalize(a, dim=-1) * normalize(b, dim=-1)).sum(dim=-1)


def with_neighbors(
    student: Tensor,
    teacher: Tensor,
    tau: float,
    neighbors: int,
    own: bool = True,
    cosine: bool = True,
    weights: Tensor | None = None,
    matching: Matching | None = None,
) -> Tensor:
    """[B]: the mean agreement of frame f of `student` with the frames f - K .. f + K of `teacher`, d frames away
    counting exp(-d / tau); `own` includes its own.

    `weights` [B, F, P] say how much each place of the student counts. Where there is no neighbour, a frame is not
    counted; zero for a clip of one frame without `own`.
    """
    frames = student.shape[1]
    total = student.new_zeros(student.shape[0])
    norm = student.new_zeros(student.shape[0])
    if weights is None:
        weights = student.new_ones(student.shape[:3])
    compare = matching or Matching()
    for distance in range(-min(neighbors, frames - 1), min(neighbors, frames - 1) + 1):
        if distance == 0 and not own:
            continue
        mine = slice(max(0, -distance), frames - max(0, distance))
        its = slice(max(0, distance), frames + min(0, distance))
        agreement = compare(student[:, mine], teacher[:, its], cosine)
        counted = weights[:, mine] * math.exp(-abs(distance) / tau)
        total = total + (agreement * counted).sum(dim=(1, 2))
        norm = norm + counted.sum(dim=(1, 2))
    return total / norm.clamp(min=1e-12)


def of_changes(student: Tensor, teacher: Tensor, tau: float, steps: int, strength: float = 0.0) -> Tensor:
    """[B]: the mean agreement of what changes over 1 .. `steps` frames, over k frames counting exp(-(k - 1) / tau).

    With `strength`, a change of the mean size in the teacher counts 1 + strength, a larger one more.
    """
    total = norm = student.new_zeros(student.shape[0])
    for step in range(1, min(steps, student.shape[1] - 1) + 1):
        ours, its = student[:, step:] - student[:, :-step], teacher[:, step:] - teacher[:, :-step]
        counted = motion_weights(its.norm(dim=-1), strength) * math.exp(-(step - 1) / tau)
        total = total + (products(ours, its) * counted).sum(dim=(1, 2))
        norm = norm + counted.sum(dim=(1, 2))
    return total / norm.clamp(min=1e-12)


def motion_of(teacher: Tensor) -> Tensor:
    """[B, F, P]: how much changes at each place until the next frame; the last frame has what the one before has."""
    if teacher.shape[1] == 1:
        return teacher.new_zeros(teacher.shape[:3])
    change = (teacher[:, 1:] - teacher[:, :-1]).norm(dim=-1)
    return torch.cat((change, change[:, -1:]), dim=1)


def motion_weights(motion: Tensor, strength: float) -> Tensor:
    """[B, F, P]: 1 + strength * motion / its mean over the sample."""
    mean = motion.mean(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return 1.0 + strength * motion / mean


class Matching:
    """How a place finds its match: at the same place, or within `radius` of it on a grid of `width` places a row.

    With "hard" the best one counts; with "soft" all of them, by softmax(c / temperature).
    """

    def __init__(self, radius: int = 0, width: int = 1, mode: str = "hard", temperature: float = 0.1) -> None:
        self.radius, self.width, self.mode, self.temperature = radius, width, mode, temperature

    def __call__(self, student: Tensor, teacher: Tensor, cosine: bool = True) -> Tensor:
        """[B, F, P] of two [B, F, P, D]."""
        if not self.radius or student.shape[2] == 1:
            return products(student, teacher, cosine)
        grid = (student.shape[2] // self.width, self.width)
        ours, its = normalize(student, dim=-1).unflatten(2, grid), normalize(teacher, dim=-1).unflatten(2, grid)
        found = torch.stack(list(self._shifted(ours, its)), dim=-1)  # [B, F, H, W, shifts]
        if self.mode == "soft":
            share = torch.softmax(found / self.temperature, dim=-1)
            return (share * found.masked_fill(found.isinf(), 0.0)).sum(dim=-1).flatten(2)
        return found.max(dim=-1).values.flatten(2)

    def _shifted(self, ours: Tensor, its: Tensor) -> Iterator[Tensor]:
        """The cosines with the teacher moved by each shift; where it has no such place, minus infinity."""
        height, width = ours.shape[2:4]
        for dy in range(-self.radius, self.radius + 1):
            for dx in range(-self.radius, self.radius + 1):
                if abs(dy) >= height or abs(dx) >= width:
                    continue
                rows, columns = _overlap(height, dy), _overlap(width, dx)
                its_rows, its_columns = _overlap(height, -dy), _overlap(width, -dx)
                whole = ours.new_full(ours.shape[:4], -torch.inf)
                part = (ours[:, :, rows, columns] * its[:, :, its_rows, its_columns]).sum(dim=-1)
                whole[:, :, rows, columns] = part
                yield whole


def _overlap(length: int, shift: int) -> slice:
    """The places p for which p + shift is one, too."""
    return slice(max(0, -shift), length - max(0, shift))
