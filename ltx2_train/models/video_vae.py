"""The video VAE: pixels [B,3,F,H,W] in [-1,1] to normalised latents [B,128,(F-1)/8+1,H/32,W/32] and back.

The encoder is causal in time, so one frame encodes like the first frame of a clip. The mean of the posterior is the
latent; nothing is sampled. Latents are normalised by statistics stored with the weights. Module and tensor names are
those of the published files after their `vae.` prefix, so that a file loads strictly.

Both halves can work on a clip piece by piece with the numbers of the whole clip: see `vae_layers`; `tiling` does it.
They stay in one long file, since the decoder is read beside the encoder that it mirrors.

Paper: LTX-Video, arXiv 2501.00103.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError, DataError
from ..shapes import SPATIAL_FACTOR, TEMPORAL_FACTOR, VIDEO_CHANNELS
from .vae_layers import (
    ClipMemory,
    Conv3d,
    Downsample,
    PaddingMode,
    ResBlock,
    ResStage,
    TimeEmbedding,
    Upsample,
    draw,
    from_patches,
    modulate,
    modulation,
    pixel_norm,
    to_patches,
)

# kind -> (frames, rows, columns) by which the block shrinks (encoder) or grows (decoder) the grid
ENCODER_STRIDES = {
    "res_x": (1, 1, 1),
    "res_x_y": (1, 1, 1),
    "compress_time": (2, 1, 1),
    "compress_space": (1, 2, 2),
    "compress_all": (2, 2, 2),
    "compress_all_x_y": (2, 2, 2),
    "compress_time_res": (2, 1, 1),
    "compress_space_res": (1, 2, 2),
    "compress_all_res": (2, 2, 2),
}
DECODER_STRIDES = {
    "res_x": (1, 1, 1),
    "res_x_y": (1, 1, 1),
    "compress_time": (2, 1, 1),
    "compress_space": (1, 2, 2),
    "compress_all": (2, 2, 2),
}
EXTRA_CHANNELS = {"per_channel": None, "uniform": 1, "constant": 1, "none": 0}
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)

# A conditioned decoder was trained to clean latents that carry this share of noise, at this time step.
DECODE_NOISE = 0.025
DECODE_TIMESTEP = 0.05
TIMESTEP_SCALE = 1000.0
# The decoder's first layer is this many times its base channels wide, whatever the block list says.
DECODER_WIDENING = 8


@dataclass(frozen=True)
class BlockEntry:
    """One entry of a block list; `multiplier` is how much wider (encoder) or narrower (decoder) it makes the grid."""

    kind: str
    layers: int = 1
    multiplier: int = 1
    residual: bool = False
    inject_noise: bool = False


@dataclass(frozen=True)
class VideoVAEConfig:
    """What the tensors alone do not tell. Blocks are in the order of the file; the decoder builds them reversed."""

    encoder_blocks: tuple[BlockEntry, ...]
    decoder_blocks: tuple[BlockEntry, ...]
    latent_channels: int = VIDEO_CHANNELS
    patch_size: int = 4
    decoder_base_channels: int = 128
    encoder_padding: PaddingMode = "zeros"
    decoder_padding: PaddingMode = "reflect"
    log_variance: str = "uniform"
    causal_decoder: bool = False
    timestep_conditioning: bool = False

    @classmethod
    def from_checkpoint(
        cls, section: Mapping[str, Any], keys: Collection[str] = (), unnamed_padding: PaddingMode = "reflect"
    ) -> VideoVAEConfig:
        """Read `config.vae` of a checkpoint. `keys` are the file's tensor names, with or without `vae.` in front.

        Where `keys` are given, they decide on time step conditioning, since headers are known to be wrong about it.
        `unnamed_padding` is that of a decoder whose header names none: of LTX-2 "reflect", of LTX-Video "zeros".
        Raises CheckpointError for a block kind or an option this VAE does not have.
        """
        nested = isinstance(section.get("encoder"), Mapping)  # beside a diffusion decoder, which is not ours
        if nested:
            own = dict(section["encoder"])
            section = own | {"encoder_blocks": own.get("blocks"), "latent_channels": own.pop("out_channels", None)}
            section = {key: value for key, value in section.items() if key != "out_channels" and value is not None}
        for name, wanted in (("dims", 3), ("norm_layer", "pixel_norm"), ("in_channels", 3), ("out_channels", 3)):
            _supported(name, section.get(name, wanted), (wanted,))
        if keys:
            conditioned = any(
                "decoder.timestep_scale_multiplier" in key or "decoder.last_time_embedder." in key for key in keys
            )
        else:
            conditioned = bool(section.get("timestep_conditioning", False))
        padding = section.get("spatial_padding_mode")
        config = cls(
            encoder_blocks=_blocks(section, "encoder_blocks", ENCODER_STRIDES),
            decoder_blocks=() if nested else _blocks(section, "decoder_blocks", DECODER_STRIDES),
            latent_channels=int(section.get("latent_channels", VIDEO_CHANNELS)),
            patch_size=int(section.get("patch_size", 4)),
            decoder_base_channels=int(section.get("decoder_base_channels", 128)),
            encoder_padding=_supported("spatial_padding_mode", padding or "zeros", PADDING_MODES),
            decoder_padding=_supported("spatial_padding_mode", padding or unnamed_padding, PADDING_MODES),
            log_variance=_supported("latent_log_var", section.get("latent_log_var", "uniform"), EXTRA_CHANNELS),
            causal_decoder=bool(section.get("causal_decoder", False)),
            timestep_conditioning=conditioned,
        )
        halves = [("encoder", config.encoder_blocks, ENCODER_STRIDES)]
        if not nested:
            halves.append(("decoder", config.decoder_blocks, DECODER_STRIDES))
        for half, blocks, strides in halves:
            frames, rows, _ = (math.prod(strides[block.kind][axis] for block in blocks) for axis in range(3))
            if (frames, rows * config.patch_size) != (TEMPORAL_FACTOR, SPATIAL_FACTOR):
                raise CheckpointError(
                    f"The video VAE's {half} scales time by {frames} and space by {rows * config.patch_size}; "
                    f"LTX-2 scales them by {TEMPORAL_FACTOR} and {SPATIAL_FACTOR}. "
                    "Choose an LTX-2 or LTX-2.3 checkpoint."
                )
        return config

    @property
    def encodes_in_pieces(self) -> bool:
        """Whether the encoder looks at no later frame. A `res_x_y` block takes statistics over the whole clip."""
        return all(block.kind != "res_x_y" for block in self.encoder_blocks)

    @property
    def decodes_in_pieces(self) -> bool:
        return all(block.kind != "res_x_y" for block in self.decoder_blocks)


class VideoEncoder(nn.Module):
    """Pixels [B,3,F,H,W] to means [B,C,f,h,w], not yet normalised."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        mode = config.encoder_padding
        width = config.latent_channels
        self.patch_size = config.patch_size
        self.latent_channels = config.latent_channels
        self.conv_in = Conv3d(3 * config.patch_size**2, width, mode, causal=True)
        self.down_blocks = nn.ModuleList()
        for index, block in enumerate(config.encoder_blocks):
            out = width * block.multiplier
            self.down_blocks.append(_encoder_block(block, index, width, out, mode))
            width = out
        extra = EXTRA_CHANNELS[config.log_variance]
        out = config.latent_channels * 2 if extra is None else config.latent_channels + extra
        self.conv_out = Conv3d(width, out, mode, causal=True)

    def forward(self, pixels: Tensor, stream: ClipMemory | None = None) -> Tensor:
        stream = stream or ClipMemory()
        x = self.conv_in(to_patches(pixels, self.patch_size), stream)
        for block in self.down_blocks:
            x = block(x, stream)
        x = self.conv_out(F.silu(pixel_norm(x)), stream)
        return x[:, : self.latent_channels]


class VideoDecoder(nn.Module):
    """Latents [B,C,f,h,w] in the VAE's own scale to pixels [B,3,F,H,W]."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        mode, causal, conditioned = config.decoder_padding, config.causal_decoder, config.timestep_conditioning
        width = config.decoder_base_channels * DECODER_WIDENING
        self.patch_size = config.patch_size
        self.conditioned = conditioned
        self.conv_in = Conv3d(config.latent_channels, width, mode, causal)
        self.up_blocks = nn.ModuleList()
        for block in reversed(config.decoder_blocks):
            out = width // block.multiplier
            if block.kind == "res_x":
                layer = ResStage(width, block.layers, mode, causal, conditioned, block.inject_noise)
            elif block.kind == "res_x_y":
                layer = ResBlock(width, out, mode, causal)
            else:
                layer = Upsample(width, DECODER_STRIDES[block.kind], block.multiplier, block.residual, mode, causal)
            self.up_blocks.append(layer)
            width = out
        self.conv_out = Conv3d(width, 3 * config.patch_size**2, mode, causal)
        if conditioned:
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(TIMESTEP_SCALE))
            self.last_time_embedder = TimeEmbedding(2 * width)
            self.last_scale_shift_table = nn.Parameter(torch.zeros(2, width))

    def forward(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat(list(self.pieces(latents, ClipMemory(), True, None, generator)), dim=2)

    def pieces(
        self,
        latents: Tensor,
        stream: ClipMemory,
        last: bool,
        limit: int | None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield the frames that are ready after the next latents of a clip; `last` says that none follow.

        No layer is given more frames at once than `limit` latents stand for. Without that the last piece would push
        everything the early layers held back through the widest grids in one go.
        """
        timestep = None
        if self.conditioned:
            timestep = self.timestep_scale_multiplier.float() * DECODE_TIMESTEP
            timestep = timestep.to(latents.device).expand(latents.shape[0])

        def run(start: int, x: Tensor, last: bool, limit: int | None) -> Iterator[Tensor]:
            stream.last = last
            for index in range(start, len(self.up_blocks)):
                block = self.up_blocks[index]
                x = block(x, stream, timestep, generator) if isinstance(block, ResStage) else block(x, stream)
                if limit is not None and isinstance(block, Upsample):
                    limit *= block.stride[0]
                    parts = x.split(limit, dim=2) if x.shape[2] else (x,)
                    del x
                    for number, part in enumerate(parts, start=1):
                        yield from run(index + 1, part, last and number == len(parts), limit)
                    return
            # A generator that waits keeps its variables: let that be the pixels, not the widest grid.
            x = self._head(x, timestep, stream)
            yield x

        stream.last = last
        yield from run(0, self.conv_in(latents, stream), last, limit)

    def _head(self, x: Tensor, timestep: Tensor | None, stream: ClipMemory) -> Tensor:
        x = pixel_norm(x)
        if timestep is not None:
            shift, scale = modulation(self.last_scale_shift_table, self.last_time_embedder(timestep))
            x = modulate(x, shift, scale)
        x = self.conv_out(F.silu(x), stream)
        return from_patches(x, self.patch_size)


class LatentStatistics(nn.Module):
    """Mean and deviation of each latent channel over the VAE's training data."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The published names have hyphens, so no attribute can stand for them.
        self.register_buffer("mean-of-means", torch.zeros(channels))
        self.register_buffer("std-of-means", torch.ones(channels))

    def normalize(self, x: Tensor) -> Tensor:
        mean, deviation = self._columns(x.device)
        return (x.float() - mean) / deviation

    def unnormalize(self, x: Tensor) -> Tensor:
        mean, deviation = self._columns(x.device)
        return x.float() * deviation + mean

    def _columns(self, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, deviation = (self.get_buffer(name).to(device).float() for name in ("mean-of-means", "std-of-means"))
        return mean.view(1, -1, 1, 1, 1), deviation.view(1, -1, 1, 1, 1)


class VideoVAE(nn.Module):
    """Encoder, decoder and statistics; a half that is not asked for is not built."""

    def __init__(self, config: VideoVAEConfig, encoder: bool = True, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = VideoEncoder(config) if encoder else None
        self.decoder = VideoDecoder(config) if decoder else None
        self.per_channel_statistics = LatentStatistics(config.latent_channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B,3,F,H,W] in [-1,1] to normalised latents [B,C,f,h,w] in float32, on the device of the weights.

        Raises DataError where F is not 8n+1 or H, W are not multiples of 32; nothing is cropped.
        """
        check_pixels(pixels)
        return self.encode_piece(pixels, ClipMemory())

    def decode(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised latents [B,C,f,h,w] to pixels [B,3,F,H,W], about [-1,1], in the dtype of the weights.

        `generator` draws the noise of decoders that want some; without one the same noise is drawn each time.
        """
        self.check_latents(latents)
        latents = self.add_decode_noise(latents, generator)
        return torch.cat(list(self.decode_pieces(latents, ClipMemory(), generator=generator)), dim=2)

    def encode_piece(self, pixels: Tensor, stream: ClipMemory) -> Tensor:
        """Latents of the next frames of a clip: 8n+1 frames first, then 8n each, with one `stream` for all."""
        assert self.encoder is not None, "the VAE was built without its encoder"
        weight = self.encoder.conv_in.conv.weight
        return self.per_channel_statistics.normalize(self.encoder(pixels.to(weight), stream))

    def decode_pieces(
        self,
        latents: Tensor,
        stream: ClipMemory,
        last: bool = True,
        limit: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield pixels of a clip as they become ready after its next `latents`; `last` says that none follow.

        The decoder looks ahead, so early pieces may yield no frames. `latents` have been through `add_decode_noise`.
        `limit` bounds the memory: no layer is given more frames at once than that many latents stand for.
        """
        assert self.decoder is not None, "the VAE was built without its decoder"
        weight = self.decoder.conv_in.conv.weight
        x = self.per_channel_statistics.unnormalize(latents.to(weight.device)).to(weight)
        yield from self.decoder.pieces(x, stream, last, limit, generator)

    def add_decode_noise(self, latents: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The little noise that a time step conditioned decoder expects; other decoders' latents are left alone."""
        if not self.config.timestep_conditioning:
            return latents
        return DECODE_NOISE * draw(latents.shape, generator).to(latents.device) + (1.0 - DECODE_NOISE) * latents.float()

    def check_latents(self, latents: Tensor) -> None:
        """Raise DataError where `latents` cannot be decoded."""
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape:
            raise DataError(
                f"Video latents have shape {tuple(latents.shape)}; expected [batch, {channels}, frames, height, width]."
            )
        if self.config.decoder_padding == "reflect" and min(latents.shape[3:]) < 2:
            height, width = (side * SPATIAL_FACTOR for side in latents.shape[3:])
            raise DataError(
                f"This video VAE cannot decode {width} x {height} pixels: it mirrors the picture at its edges, "
                f"which takes at least {2 * SPATIAL_FACTOR} pixels a side. Choose a larger width and height."
            )


def check_pixels(pixels: Tensor) -> None:
    """Raise DataError where the size of `pixels` is not one the encoder can take."""
    if pixels.ndim != 5 or pixels.shape[1] != 3:
        raise DataError(f"Pixels have shape {tuple(pixels.shape)}; expected [batch, 3, frames, height, width].")
    frames, height, width = pixels.shape[2:]
    if frames < 1 or frames % TEMPORAL_FACTOR != 1:
        raise DataError(
            f"A clip of {frames} frames cannot be encoded; the number of frames is a multiple of "
            f"{TEMPORAL_FACTOR} plus 1 (1, 9, 17, ...)."
        )
    if height < 1 or width < 1 or height % SPATIAL_FACTOR or width % SPATIAL_FACTOR:
        raise DataError(
            f"A picture of {width} x {height} pixels cannot be encoded; "
            f"width and height are multiples of {SPATIAL_FACTOR}."
        )


def _encoder_block(block: BlockEntry, index: int, width: int, out: int, mode: PaddingMode) -> nn.Module:
    stride = ENCODER_STRIDES[block.kind]
    if block.kind == "res_x":
        return ResStage(width, block.layers, mode, causal=True)
    if block.kind == "res_x_y":
        return ResBlock(width, out, mode, causal=True)
    if not block.kind.endswith("_res"):
        return Conv3d(width, out, mode, causal=True, stride=stride)
    cells = math.prod(stride)
    if out % cells or width * cells % out:
        raise CheckpointError(
            f"Block {index} ({block.kind}) of the video VAE's encoder turns {width} into {out} channels, which cannot "
            f"be split over {cells} cells. The checkpoint's config.vae does not fit an LTX-2 VAE."
        )
    return Downsample(width, out, stride, mode)


def _blocks(section: Mapping[str, Any], name: str, known: Mapping[str, Any]) -> tuple[BlockEntry, ...]:
    entries = section.get(name)
    if not entries:
        raise CheckpointError(
            f"The checkpoint's config.vae has no {name}, so the video VAE cannot be built. "
            "Choose a checkpoint whose header still carries the original configuration."
        )
    return tuple(_block(index, entry, name, known) for index, entry in enumerate(entries))


def _block(index: int, entry: Iterable[Any], name: str, known: Mapping[str, Any]) -> BlockEntry:
    try:
        kind, options = entry
    except (TypeError, ValueError):
        raise CheckpointError(
            f"config.vae.{name}[{index}] is {entry!r}; expected a pair of kind and options."
        ) from None
    if kind not in known:
        raise CheckpointError(
            f"config.vae.{name}[{index}] is of the unknown kind {kind!r}; known: {', '.join(known)}. "
            "Choose an LTX-2 or LTX-2.3 checkpoint."
        )
    options = {"num_layers": options} if isinstance(options, int) else options
    widens = kind.endswith(("_res", "_x_y"))
    changes_width = widens or (name == "decoder_blocks" and kind.startswith("compress"))
    noisy = bool(options.get("inject_noise", False)) and kind == "res_x"
    return BlockEntry(
        kind=kind,
        layers=int(options.get("num_layers", 1)),
        multiplier=int(options.get("multiplier", 2 if widens else 1)) if changes_width else 1,
        residual=bool(options.get("residual", False)) and kind == "compress_all",
        inject_noise=noisy and name == "decoder_blocks",
    )


def _supported(name: str, value: Any, known: Collection[Any]) -> Any:
    if value not in known:
        raise CheckpointError(
            f"config.vae.{name} is {value!r}; supported: {', '.join(map(str, known))}. "
            "Choose an LTX-2 or LTX-2.3 checkpoint."
        )
    return value
