"""Where every token lies in time and space: half-open intervals [start, end) per axis, always float32.

Video axes are time in seconds, height and width in pixels. The video VAE gives the first latent frame one pixel
frame and every later one eight, hence the clamp at zero: frame 0 spans [0, 1/fps), frame 1 [1/fps, 9/fps).
Audio has the time axis only; a latent step is four spectrogram hops of 10 ms, the first of them one hop.

Keyframe slots of LTX-2.5 are tokens behind those of a clip, a latent frame's worth for each of some picture frames that
lie evenly between its ends. They are made together with the clip and last one picture frame each, where a later latent
frame holds eight: fast motion gains by it.

Positions must never be rounded to bfloat16: that moves times by up to 10 ms and the rotary angles visibly.

Shape letters: B batch, T tokens, S tokens of slots, F/H/W latent frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..shapes import (
    AUDIO_HOP,
    AUDIO_HOPS_PER_LATENT,
    AUDIO_RATE,
    SPATIAL_FACTOR,
    TEMPORAL_FACTOR,
    AudioLatentShape,
    LatentShape,
)


def video_positions(shape: LatentShape, fps: float, device: torch.device | str | None = None) -> Tensor:
    """Intervals of the tokens of one clip, frames outermost: [1, 3, F*H*W, 2] in seconds, pixels, pixels."""
    time = _causal(torch.arange(shape.frames + 1, device=device), TEMPORAL_FACTOR) / fps
    rows = torch.arange(shape.height + 1, device=device, dtype=torch.float32) * SPATIAL_FACTOR
    columns = torch.arange(shape.width + 1, device=device, dtype=torch.float32) * SPATIAL_FACTOR
    grid = (shape.frames, shape.height, shape.width)
    axes = []
    for axis, edges in enumerate((time, rows, columns)):
        intervals = torch.stack((edges[:-1], edges[1:]), dim=-1)  # [n, 2]
        view = [1, 1, 1, 2]
        view[axis] = grid[axis]
        axes.append(intervals.view(view).expand(*grid, 2).reshape(-1, 2))
    return torch.stack(axes).unsqueeze(0)


def slot_places(count: int, frames: int) -> tuple[int, ...]:
    """The picture frames, from 0, of a clip of `frames` that have a slot: `count` of them, or as many as lie between
    its ends; none of an image."""
    count = max(0, min(count, frames - 2))
    # in torch, as the official pipelines: which way a half is rounded depends on it
    return tuple(torch.linspace(0, frames - 1, count + 2).round().long().tolist()[1:-1])


def slot_positions(
    places: Sequence[int], shape: LatentShape, fps: float, device: torch.device | str | None = None
) -> Tensor:
    """Intervals of the slots at `places` of a clip of `shape`: [1, 3, S, 2] in seconds, pixels, pixels."""
    frame = video_positions(replace(shape, frames=1), fps, device)
    slots = [frame.clone() for _ in places]
    for slot, place in zip(slots, places, strict=True):
        slot[:, 0] = torch.tensor([place / fps, (place + 1) / fps], device=frame.device)
    return torch.cat(slots, dim=2)


def audio_positions(shape: AudioLatentShape, device: torch.device | str | None = None) -> Tensor:
    """Intervals of the tokens of one sound: [1, 1, steps, 2] in seconds."""
    hops = _causal(torch.arange(shape.steps + 1, device=device), AUDIO_HOPS_PER_LATENT)
    edges = hops * AUDIO_HOP / AUDIO_RATE
    return torch.stack((edges[:-1], edges[1:]), dim=-1)[None, None]


def _causal(index: Tensor, factor: int) -> Tensor:
    # latent 0 holds one sample of the finer grid, so everything shifts by factor - 1 and starts at zero
    return (index.float() * factor + 1 - factor).clamp(min=0)
