"""Which tokens of a target are given: they stay clean, have timestep 0, and do not count in the loss.

Training tosses a coin for each condition and sample; sampling and validation ask for the tokens of a condition as it
stands. Both get them from `tokens_of`.

Shape letters: T tokens of the target, F latent frames (or steps of sound), H, W rows and columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..shapes import AUDIO_LATENTS_PER_SECOND, SPATIAL_FACTOR, TEMPORAL_FACTOR, LatentShape
from .settings import AudioReference, Boundary, Condition, FirstFrame, Mask, Prefix, Reference, SpatialCrop, Suffix


@dataclass(frozen=True)
class Target:
    """The tokens of one stream: `frames` latent frames (of sound: steps) of `height` x `width` each.

    `fps` is that of the clip in pixels; None for sound.
    """

    frames: int
    height: int = 1
    width: int = 1
    fps: float | None = None

    @classmethod
    def video(cls, shape: LatentShape, fps: float) -> Target:
        """The target of latents of `shape`."""
        return cls(shape.frames, shape.height, shape.width, fps)

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def still(self) -> bool:
        """Whether it is a single picture, which has no beginning and no end."""
        return self.fps is not None and self.frames == 1

    def units(self, seconds: float) -> int:
        """How many latent frames (or steps) `seconds` fill, at least one: a picture's first latent is one frame."""
        if self.fps is None:
            return max(1, round(seconds * AUDIO_LATENTS_PER_SECOND))
        return max(1, 1 + round((seconds * self.fps - 1) / TEMPORAL_FACTOR))


def is_given(condition: Condition) -> bool:
    """Whether `condition` gives tokens of the target, and none in front of it."""
    return not isinstance(condition, (Reference, AudioReference))


def lengths(condition: Boundary, target: Target) -> tuple[int, int]:
    """The shortest and the longest part, in latent frames or steps, that `condition` may give of `target`."""
    if condition.temporal_boundary is not None:
        return condition.temporal_boundary
    assert condition.seconds is not None
    low, high = condition.seconds
    return target.units(low), target.units(high)


def tokens_of(condition: Condition, target: Target, mask: Tensor | None = None, length: int | None = None) -> Tensor:
    """The tokens that `condition` gives, bool [T] on the CPU.

    `mask` [F, H, W] or [T] is the sample's own, true where it is given; a sample without one is given nothing by the
    condition "mask". `length` is that of a prefix or suffix, its longest where None. Of a single picture neither first
    frame nor prefix nor suffix is given: nothing would be left to make.
    """
    frame = target.height * target.width
    given = torch.zeros(target.frames, target.height, target.width, dtype=torch.bool)
    if isinstance(condition, FirstFrame):
        given[: 1 if target.frames > 1 else 0] = True
    elif isinstance(condition, Boundary):
        count = 0 if target.still else min(lengths(condition, target)[1] if length is None else length, target.frames)
        part = slice(count) if isinstance(condition, Prefix) else slice(target.frames - count, None)
        given[part] = True
    elif isinstance(condition, SpatialCrop):
        rows, columns = crop_latents(condition.spatial_region)
        given[:, rows, columns] = True
    elif isinstance(condition, Mask) and mask is not None:
        assert mask.numel() == frame * target.frames, (tuple(mask.shape), target)
        given = mask.to(dtype=torch.bool, device="cpu").reshape(given.shape)
    else:
        assert isinstance(condition, Mask) or not is_given(condition), type(condition).__name__
    return given.flatten()


def crop_latents(region: Sequence[int]) -> tuple[slice, slice]:
    """Rows and columns of latents of [top, left, bottom, right] in pixels, all four rounded down."""
    top, left, bottom, right = (edge // SPATIAL_FACTOR for edge in region)
    return slice(top, bottom), slice(left, right)


def draw_given(
    conditions: Sequence[Condition], target: Target, masks: Sequence[Tensor | None], generator: torch.Generator
) -> Tensor:
    """The tokens that are given of each sample, bool [B, T] on the CPU; `masks` has one entry a sample.

    Every coin and length is drawn from `generator`, whatever falls, so that the numbers after them do not shift.
    """
    given = torch.zeros(len(masks), target.tokens, dtype=torch.bool)
    for condition in filter(is_given, conditions):
        coins = torch.rand(len(masks), generator=generator)
        places = torch.rand(len(masks), generator=generator)
        for row, mask in enumerate(masks):
            if float(coins[row]) < condition.probability:
                length = None
                if isinstance(condition, Boundary):
                    low, high = lengths(condition, target)
                    length = min(high, low + math.floor(float(places[row]) * (high - low + 1)))
                given[row] |= tokens_of(condition, target, mask, length)
    return given


def why_not_given(conditions: Sequence[Condition], target: Target) -> str | None:
    """Why `conditions` cannot serve `target`, in words that follow "it"; None where they can.

    Not looked at are masks, which every sample has of its own.
    """
    for condition in conditions:
        if isinstance(condition, Boundary) and (longest := lengths(condition, target)[1]) >= target.frames:
            return (
                f"has {target.frames} latent {'frames' if target.fps else 'steps'}, and a {_name(condition)} of up to "
                f"{longest} leaves nothing to make. Use a shorter {_name(condition)}, or longer clips"
            )
        if isinstance(condition, SpatialCrop) and (reason := _no_crop(condition, target)):
            return reason
    certain = [one for one in conditions if is_given(one) and not isinstance(one, Mask)]
    if certain and bool(torch.stack([tokens_of(one, target) for one in certain]).any(0).all()):
        return "is given whole by its conditions together, so nothing is left to make. Give less"
    return None


def _no_crop(condition: SpatialCrop, target: Target) -> str | None:
    top, left, bottom, right = condition.spatial_region
    height, width = target.height * SPATIAL_FACTOR, target.width * SPATIAL_FACTOR
    if bottom > height or right > width:
        return (
            f"is {width}x{height} as cached, and the crop [{top}, {left}, {bottom}, {right}] (top, left, bottom, "
            "right) leads out of it. Choose a region inside the picture"
        )
    rows, columns = crop_latents(condition.spatial_region)
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return (
            f"is made of latents of {SPATIAL_FACTOR} pixels, and the crop [{top}, {left}, {bottom}, {right}] holds "
            "none. Choose a larger region"
        )
    return None


def _name(condition: Condition) -> str:
    return "prefix" if isinstance(condition, Prefix) else "suffix" if isinstance(condition, Suffix) else "condition"
