"""Encoding and decoding clips that are too large for the device in one go.

Three ways to cut, which can be combined:

- `chunk_size` cuts time and carries what the layers remember from chunk to chunk; the result is that of the whole clip.
- `spatial_tile` cuts the picture into overlapping tiles of equal size, spread evenly. Where tiles overlap they are
  blended with weights that rise and fall linearly (a trapezoid along each axis), divided by the sum of weights.
- `temporal_tile` cuts time the same way. Each tile after the first begins one latent early and drops what came of it,
  since the VAE takes a tile's first latent for a single picture. Blended tiles only come near the whole clip's result.

Blending happens on the CPU in float32, so the device holds one tile at a time, and with chunks also the frames that
layers remember. Decoded frames come in order as soon as nothing can change them, so a writer need not hold the clip.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from ..errors import DataError
from ..settings import Settings
from ..shapes import SPATIAL_FACTOR, TEMPORAL_FACTOR, VideoShape
from .vae_layers import ClipMemory
from .video_vae import VideoVAE, check_pixels

log = logging.getLogger(__name__)

TileProgress = Callable[[int, int], None]
"""Called with the number of finished and of all pieces."""

# Widgets that cannot be left empty give 0 for "off".
Size = Annotated[int | None, BeforeValidator(lambda value: None if value == 0 else value)]


class TileSettings(Settings):
    """How the video VAE cuts clips to save memory; all off by default."""

    chunk_size: Size = Field(
        default=None,
        ge=TEMPORAL_FACTOR,
        description="Work through a clip this many frames at a time. Same result as the whole clip, less memory. "
        "Rounded down to a multiple of 8. Empty: 16 where a card encodes the caches, else the whole clip.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = video | av",
            "community": "vae_chunk_size",
            "unit": "frames",
        },
    )
    spatial_tile: Size = Field(
        default=None,
        ge=2 * SPATIAL_FACTOR,
        description="Cut the picture into tiles of this many pixels a side and blend them. Empty is off; 512 is usual.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = video | av",
            "community": "vae_spatial_tile_size",
            "unit": "pixels",
        },
    )
    spatial_overlap: int = Field(
        default=64,
        ge=0,
        description="How far neighbouring tiles of the picture overlap. More hides seams better and takes longer.",
        json_schema_extra={
            "counts_with": ["model.mode = video | av", ".spatial_tile"],
            "community": "vae_spatial_tile_overlap",
            "unit": "pixels",
            "advanced": True,
        },
    )
    temporal_tile: Size = Field(
        default=None,
        ge=2 * TEMPORAL_FACTOR,
        description="Cut the clip into tiles of this many frames and blend them. Empty is off; "
        "chunk_size saves memory too and has no seams.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = video | av",
            "community": "vae_temporal_tile_size",
            "unit": "frames",
            "advanced": True,
        },
    )
    temporal_overlap: int = Field(
        default=24,
        ge=0,
        description="How many frames neighbouring tiles in time share.",
        json_schema_extra={
            "counts_with": ["model.mode = video | av", ".temporal_tile"],
            "community": "vae_temporal_tile_overlap",
            "unit": "frames",
            "advanced": True,
        },
    )

    @model_validator(mode="after")
    def _fits(self) -> TileSettings:
        for axis, tile, overlap, step in (
            ("spatial", self.spatial_tile, self.spatial_overlap, SPATIAL_FACTOR),
            ("temporal", self.temporal_tile, self.temporal_overlap, TEMPORAL_FACTOR),
        ):
            if tile is None:
                continue
            if f"{axis}_overlap" not in self.model_fields_set and overlap >= tile:
                overlap = tile // 2 // step * step  # the default is for larger tiles
                object.__setattr__(self, f"{axis}_overlap", overlap)
            if tile % step:
                raise ValueError(f"{axis}_tile is {tile}; it must be a multiple of {step}")
            if overlap % step:
                raise ValueError(f"{axis}_overlap is {overlap}; it must be a multiple of {step}")
            if overlap >= tile:
                raise ValueError(f"{axis}_overlap is {overlap}; it must be smaller than {axis}_tile, which is {tile}")
        return self

    @property
    def chunk_latents(self) -> int | None:
        """`chunk_size` in latent frames."""
        return None if self.chunk_size is None else self.chunk_size // TEMPORAL_FACTOR


@dataclass(frozen=True)
class Span:
    """Latents `start` to `stop` along one axis; the first `rise` and last `fall` are shared with the neighbours."""

    start: int
    stop: int
    rise: int = 0
    fall: int = 0

    def weights(self, factor: int = 1) -> Tensor:
        """The trapezoid over the span, each latent standing for `factor` cells; always above 0."""
        weights = torch.ones((self.stop - self.start) * factor)
        rise, fall = self.rise * factor, self.fall * factor
        weights[:rise] *= (torch.arange(rise) + 0.5) / rise if rise else 1.0
        weights[len(weights) - fall :] *= ((torch.arange(fall) + 0.5) / fall).flip(0) if fall else 1.0
        return weights


def spans(length: int, tile: int | None, overlap: int) -> list[Span]:
    """Cover `length` latents with tiles of equal size, spread evenly, that overlap by at least `overlap`."""
    if tile is None or tile >= length:
        return [Span(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [index * (length - tile) // (count - 1) for index in range(count)]
    shared = [before + tile - after for before, after in zip(starts, starts[1:], strict=False)]
    return [
        Span(start, start + tile, rise, fall)
        for start, rise, fall in zip(starts, [0, *shared], [*shared, 0], strict=True)
    ]


@torch.no_grad()
def encode_tiled(vae: VideoVAE, pixels: Tensor, tiles: TileSettings, on_progress: TileProgress | None = None) -> Tensor:
    """Encode pixels [B,3,F,H,W] to normalised latents [B,C,f,h,w] in float32 on the CPU.

    `pixels` may stay on the CPU; only one tile of one chunk is moved to the VAE at a time. Raises DataError for a size
    that the VAE does not take.
    """
    check_pixels(pixels)
    batch, _, frames, height, width = pixels.shape
    size = VideoShape(frames, height, width).latent()
    times, rows, columns = _cut(size.frames, size.height, size.width, tiles)
    chunk = _usable_chunk(tiles, vae.config.encodes_in_pieces, "encode")
    total = sum(len(_pieces(max(span.start - 1, 0), span.stop, chunk)) for span in times) * len(rows) * len(columns)
    single = len(times) * len(rows) * len(columns) == 1

    done = 0
    blended = torch.zeros(batch, vae.config.latent_channels, size.frames, size.height, size.width)
    weights = torch.zeros(size.frames, size.height, size.width)
    for time in times:
        first = max(time.start - 1, 0)
        for row in rows:
            for column in columns:
                stream = ClipMemory()
                parts = []
                for start, stop in _pieces(first, time.stop, chunk):
                    piece = pixels[
                        :,
                        :,
                        _first_frame(start, first) : TEMPORAL_FACTOR * (stop - 1) + 1,
                        row.start * SPATIAL_FACTOR : row.stop * SPATIAL_FACTOR,
                        column.start * SPATIAL_FACTOR : column.stop * SPATIAL_FACTOR,
                    ]
                    stream.last = stop == time.stop
                    parts.append(vae.encode_piece(piece, stream).cpu())
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)
                latents = torch.cat(parts, dim=2)[:, :, time.start - first :]
                if single:
                    return latents
                weight = _outer(time.weights(), row.weights(), column.weights())
                where = (
                    slice(time.start, time.stop),
                    slice(row.start, row.stop),
                    slice(column.start, column.stop),
                )
                blended[(slice(None), slice(None), *where)] += latents * weight
                weights[where] += weight
    return blended / weights


@torch.no_grad()
def decode_frames(
    vae: VideoVAE,
    latents: Tensor,
    tiles: TileSettings,
    on_progress: TileProgress | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the frames of one clip, [n,H,W,3] uint8 on the CPU, in order and each once. `latents` is [1,C,f,h,w].

    Raises DataError where they come out as no numbers.
    """
    if latents.shape[0] != 1:
        raise DataError(f"Frames are decoded one clip at a time; {latents.shape[0]} were given.")
    for pixels in decode_pieces(vae, latents, tiles, on_progress, generator):
        if not bool(torch.isfinite(pixels).all()):
            dtype = str(latents.dtype).removeprefix("torch.")
            raise DataError(
                f"The decoded pictures are not finite (latents in {dtype}). Set cache.vae_dtype to bf16 or fp32, or "
                "lower the strength of the LoRA."
            )
        yield to_bytes(pixels)[0]


def to_bytes(pixels: Tensor) -> Tensor:
    """Pixels [B,3,F,H,W], about [-1,1], as [B,F,H,W,3] uint8."""
    return pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)


def decode_pieces(
    vae: VideoVAE,
    latents: Tensor,
    tiles: TileSettings,
    on_progress: TileProgress | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield finished frames [B,3,n,H,W], about [-1,1], in float32 on the CPU, blending the tiles in time."""
    vae.check_latents(latents)
    latents = vae.add_decode_noise(latents, generator)
    times, rows, columns = _cut(*latents.shape[2:], tiles=tiles)
    chunk = _usable_chunk(tiles, vae.config.decodes_in_pieces, "decode")
    plan = [_pieces(max(span.start - 1, 0), span.stop, chunk) for span in times]
    total = sum(map(len, plan)) * len(rows) * len(columns)
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    if len(times) == 1:
        yield from _blended_in_space(vae, latents, plan[0], (rows, columns), generator, one_more)
        return

    # Frames that a later tile still adds to: their weighted sum, the sum of weights, and the first one's number.
    pending: Tensor | None = None
    pending_weights = torch.zeros(0)
    origin = 0
    for number, (span, pieces) in enumerate(zip(times, plan, strict=True)):
        whole = torch.cat(list(_blended_in_space(vae, latents, pieces, (rows, columns), generator, one_more)), dim=2)
        # The first latent stands for one frame; of every other tile the frame of the extra latent is dropped.
        weights = span.weights(TEMPORAL_FACTOR)[TEMPORAL_FACTOR - 1 if number == 0 else 0 :]
        frames: Tensor = whole[:, :, 0 if number == 0 else 1 :] * weights.view(-1, 1, 1)
        start = _first_frame(span.start, 0)
        stop = start + len(weights)

        if pending is None:
            pending, pending_weights = frames, weights
        else:
            pending, pending_weights = _overlay(pending, pending_weights, frames, weights, start - origin)
        settled = stop if number + 1 == len(times) else _first_frame(times[number + 1].start, 0)
        ready = settled - origin
        yield pending[:, :, :ready] / pending_weights[:ready].view(-1, 1, 1)
        pending, pending_weights, origin = pending[:, :, ready:].clone(), pending_weights[ready:], settled


def _overlay(sums: Tensor, weights: Tensor, more: Tensor, more_weights: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Add `more` frames to `sums`, beginning at frame `offset`; both grow as needed."""
    extra = offset + len(more_weights) - len(weights)
    if extra > 0:
        shape = list(sums.shape)
        shape[2] = extra
        sums = torch.cat([sums, sums.new_zeros(shape)], dim=2)
        weights = torch.cat([weights, weights.new_zeros(extra)])
    sums[:, :, offset : offset + len(more_weights)] += more
    weights[offset : offset + len(more_weights)] += more_weights
    return sums, weights


def _blended_in_space(
    vae: VideoVAE,
    latents: Tensor,
    pieces: list[tuple[int, int]],
    grid: tuple[list[Span], list[Span]],
    generator: torch.Generator | None,
    one_more: Callable[[], None],
) -> Iterator[Tensor]:
    """Decode the latents of `pieces` and yield the whole picture's frames [B,3,n,H,W], float32 on the CPU.

    Each tile has its own stream and is done with a piece before the next tile begins it.
    """
    rows, columns = grid
    cells = [(row, column, ClipMemory()) for row in rows for column in columns]
    height, width = rows[-1].stop * SPATIAL_FACTOR, columns[-1].stop * SPATIAL_FACTOR
    limit = None if len(pieces) == 1 else max(stop - start for start, stop in pieces)

    def frames_of(cell: tuple[Span, Span, ClipMemory], start: int, stop: int) -> Iterator[Tensor]:
        row, column, stream = cell
        tile = latents[:, :, start:stop, row.start : row.stop, column.start : column.stop]
        for frames in vae.decode_pieces(tile, stream, stop == pieces[-1][1], limit, generator):
            if frames.shape[2]:
                yield frames.cpu()
        one_more()

    for start, stop in pieces:
        if len(cells) == 1:
            yield from (frames.float() for frames in frames_of(cells[0], start, stop))
            continue
        # All tiles look ahead equally far, so they have the same frames ready.
        ready = [list(frames_of(cell, start, stop)) for cell in cells]
        for together in zip(*ready, strict=True):
            blended = torch.zeros(*together[0].shape[:3], height, width)
            weights = torch.zeros(height, width)
            for (row, column, _), frames in zip(cells, together, strict=True):
                weight = _outer(row.weights(SPATIAL_FACTOR), column.weights(SPATIAL_FACTOR))
                where = tuple(slice(span.start * SPATIAL_FACTOR, span.stop * SPATIAL_FACTOR) for span in (row, column))
                blended[(..., *where)] += frames.float() * weight
                weights[where] += weight
            yield blended / weights


def _cut(frames: int, height: int, width: int, tiles: TileSettings) -> tuple[list[Span], list[Span], list[Span]]:
    """The spans along time, rows and columns, in latents."""
    side = None if tiles.spatial_tile is None else tiles.spatial_tile // SPATIAL_FACTOR
    time = None if tiles.temporal_tile is None else tiles.temporal_tile // TEMPORAL_FACTOR
    margin = tiles.spatial_overlap // SPATIAL_FACTOR
    return (
        spans(frames, time, tiles.temporal_overlap // TEMPORAL_FACTOR),
        spans(height, side, margin),
        spans(width, side, margin),
    )


def _pieces(start: int, stop: int, chunk: int | None) -> list[tuple[int, int]]:
    """Latents `start` to `stop` in pieces of at most `chunk`."""
    chunk = chunk or stop - start
    return [(first, min(first + chunk, stop)) for first in range(start, stop, chunk)]


def _first_frame(latent: int, origin: int) -> int:
    """The number of the first frame that `latent` stands for, in a tile whose first latent is `origin`.

    The tile's first latent stands for one frame, every other for 8.
    """
    return TEMPORAL_FACTOR * (latent - 1) + 1 if latent > origin else TEMPORAL_FACTOR * origin


def _usable_chunk(tiles: TileSettings, possible: bool, verb: str) -> int | None:
    if tiles.chunk_latents is not None and not possible:
        log.warning("This video VAE cannot %s in chunks; chunk_size is ignored.", verb)
        return None
    return tiles.chunk_latents


def _outer(*axes: Tensor) -> Tensor:
    """The product of one weight vector an axis."""
    product = axes[0]
    for axis in axes[1:]:
        product = product[..., None] * axis
    return product
