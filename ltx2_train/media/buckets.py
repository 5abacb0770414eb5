"""Which size a picture is trained at.

A bucket is a width x height, both multiples of 32, of about the area of the configured resolution. A picture goes to
the bucket whose aspect ratio is nearest to its own, is scaled until it covers the bucket, and is cropped around its
centre. Caching and training ask the same selector, so what was cached is what is batched.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from ..shapes import SPATIAL_FACTOR, floor_frames

MIDDLE = (0.5, 0.5)


@functools.lru_cache(maxsize=64)
def bucket_sizes(width: int, height: int, factor: int = 1) -> list[tuple[int, int]]:
    """All buckets (width, height) of the area of `width` x `height`, sorted.

    Widths run in steps of 32 from half the side of the square of that area to that side; each is paired with the
    tallest height that keeps the area, and added turned by 90 degrees as well. `factor` makes the steps larger, so that
    references that many times smaller have whole latents too.
    """
    area, step = width * height, SPATIAL_FACTOR * factor
    side = math.isqrt(area)
    smallest = max(step, side // 2 // step * step)
    sizes: set[tuple[int, int]] = set()
    for short in range(smallest, side + step, step):
        long = area // short // step * step
        if long > 0:
            sizes.update({(short, long), (long, short)})
    return sorted(sizes)


@dataclass(frozen=True)
class ExplicitBuckets:
    """Sizes that the dataset lists as (width, height, frames), in place of resolution, buckets and target_frames."""

    sizes: tuple[tuple[int, int, int], ...]

    def choose(self, width: int, height: int, frames: int) -> tuple[int, int, int] | None:
        """The size for a medium of `frames` frames: the longest that it fills, then the nearest shape; None: too short.

        An image (1 frame) takes a size of one frame where one is listed, else the nearest shape of all.
        """
        usable = [size for size in self.sizes if size[2] <= frames]
        if not usable and frames == 1:
            usable = [(wide, high, 1) for wide, high, _ in self.sizes]
        longest = max((size[2] for size in usable), default=0)
        fitting = [size for size in usable if size[2] == longest]
        return min(fitting, key=lambda size: abs(size[0] / size[1] - width / height), default=None)


def parse_bucket(text: str) -> tuple[int, int, int]:
    """A size written as "768x512x49": (width, height, frames). Raises ValueError with what is wrong."""
    parts = text.lower().replace(" ", "").split("x")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not of the form WIDTHxHEIGHTxFRAMES, for example 768x512x49")
    width, height, frames = (int(part) for part in parts)
    if not width or not height or width % SPATIAL_FACTOR or height % SPATIAL_FACTOR:
        raise ValueError(f"{text!r}: width and height must be multiples of {SPATIAL_FACTOR}")
    if frames < 1 or floor_frames(frames) != frames:
        raise ValueError(
            f"{text!r}: frames must be 8n+1 (1, 9, 17, 25 ...), {floor_frames(max(frames, 1))} is the next below"
        )
    return width, height, frames


@dataclass(frozen=True)
class BucketSelector:
    """Chooses the size of a picture. `resolution` is (width, height); with `enabled` off it is everybody's size."""

    resolution: tuple[int, int]
    enabled: bool = False
    no_upscale: bool = False
    factor: int = 1  # sides are multiples of 32 times this

    def choose(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) that a picture of `width` x `height` pixels is trained at."""
        if not self.enabled:
            return self.resolution
        if self.no_upscale and width * height <= self.resolution[0] * self.resolution[1]:
            step = SPATIAL_FACTOR * self.factor
            return max(step, width // step * step), max(step, height // step * step)
        aspect = width / height
        return min(bucket_sizes(*self.resolution, self.factor), key=lambda size: abs(size[0] / size[1] - aspect))


def cover(
    width: int, height: int, target: tuple[int, int], centre: tuple[float, float] = MIDDLE
) -> tuple[int, int, int, int]:
    """How to make `width` x `height` cover `target`: scaled width and height, then left and top of the crop.

    `centre` is the place that the crop has in its middle, as shares of width and height, as far as the edges allow.
    """
    scale = max(target[0] / width, target[1] / height)
    scaled_w = max(target[0], round(width * scale))
    scaled_h = max(target[1], round(height * scale))
    if centre == MIDDLE:
        return scaled_w, scaled_h, (scaled_w - target[0]) // 2, (scaled_h - target[1]) // 2
    left = round(centre[0] * scaled_w - target[0] / 2)
    top = round(centre[1] * scaled_h - target[1] / 2)
    return scaled_w, scaled_h, min(max(0, left), scaled_w - target[0]), min(max(0, top), scaled_h - target[1])
