"""Pictures out of latents: what decoding them takes, and frames beside those of a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..media.images import fit_image
from ..models.tiling import TileSettings
from ..shapes import VideoShape

DECODER_BYTES = 0.82e9  # of the weights of the published decoder in 16 bits
DECODED_BYTES = 180  # on the card for each pixel of a frame of a tile, at the widest layer
KERNEL_BYTES = 0.7e9  # that the library of convolutions takes to work in


def decode_bytes(tiles: TileSettings, shape: VideoShape) -> float:
    """What the decoder of the video VAE needs on a card for one tile of a clip of `shape`, its weights included."""
    side = tiles.spatial_tile
    height, width = (length if side is None else min(length, side) for length in (shape.height, shape.width))
    frames = min(size for size in (shape.frames, tiles.chunk_size, tiles.temporal_tile) if size is not None)
    return DECODER_BYTES + KERNEL_BYTES + DECODED_BYTES * height * width * frames


def side_by_side(
    reference: Sequence[np.ndarray], frames: Iterable[np.ndarray], spacing: int, shape: VideoShape
) -> Iterator[np.ndarray]:
    """`frames` [H, W', 3] of a sample of `shape`, each with the frame of the reference of its time, as large as the
    sample, to the left of it.

    The reference has `spacing` times fewer frames a second; one of another length is spread over the whole.
    """
    last = len(reference) - 1
    for index, frame in enumerate(frames):
        if spacing > 1:
            place = min(last, 1 + (index - 1) // spacing if index else 0)
        else:
            place = index if last + 1 >= shape.frames else round(index * last / max(1, shape.frames - 1))
        shown = fit_image(reference[place], (shape.width, shape.height))
        yield np.concatenate((shown, frame), axis=1)


def single_frames(chunks: Iterable[Any]) -> Iterator[Any]:
    """Frames [H, W, 3] as numpy arrays out of blocks [n, H, W, 3]."""
    for chunk in chunks:
        for frame in chunk:
            yield frame.numpy() if isinstance(frame, Tensor) else frame
