"""The layers of the video VAE, each able to work on a clip piece by piece.

A whole clip is only the case of one piece that is both the first and the last, so there is one code path. What a
layer needs of earlier frames it keeps in a `ClipMemory`; the pieces then give the same numbers as the whole clip:

- a convolution of 3 frames keeps the 2 frames before the next piece. The first piece begins with copies of its first
  frame; a non-causal convolution looks one frame ahead, so it answers one frame late until the last piece, which ends
  with a copy of its last frame.
- a residual sum waits for the late branch: the early branch is queued.
- drawn noise is drawn once a clip.

Legend: B batch, C channels, F frames, Y and X rows and columns of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KERNEL = 3
NORM_EPS = 1e-8
SHORTCUT_NORM_EPS = 1e-6
SINUSOID_WIDTH = 256
SINUSOID_PERIOD = 10000.0

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


class ClipMemory:
    """What the layers remember between consecutive pieces of one clip; a fresh one suits a whole clip.

    `last` is True while the piece at hand ends the clip.
    """

    def __init__(self) -> None:
        self.last = True
        self._kept: dict[tuple[nn.Module, str], Any] = {}

    def get(self, layer: nn.Module, name: str) -> Any:
        return self._kept.get((layer, name))

    def put(self, layer: nn.Module, name: str, value: Any) -> None:
        self._kept[layer, name] = value

    def once(self, layer: nn.Module, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gave when `layer` first asked for `name` in this clip."""
        if (layer, name) not in self._kept:
            self._kept[layer, name] = make()
        return self._kept[layer, name]

    def in_step(self, layer: nn.Module, early: Tensor, late: Tensor) -> Tensor:
        """The frames of `early` that belong to those of `late`, the output of a branch that may answer later."""
        queued = self.get(layer, "queue")
        if queued is not None and queued.shape[2]:
            early = torch.cat([queued, early], dim=2)
        ready = late.shape[2]
        if not self.last:
            # A copy, since a view would keep the whole piece alive.
            self.put(layer, "queue", early[:, :, ready:].clone())
        return early[:, :, :ready]


class Conv3d(nn.Module):
    """A 3x3x3 convolution that pads time with copies of the outer frames. [B,C,F,Y,X] -> [B,C',F',Y',X']."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        padding_mode: PaddingMode,
        causal: bool,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv3d(
            channels, out_channels, KERNEL, stride=stride, padding=(0, 1, 1), padding_mode=padding_mode
        )

    def forward(self, x: Tensor, stream: ClipMemory) -> Tensor:
        past = stream.get(self, "past")
        parts = [x]
        if past is not None:
            parts.insert(0, past)
        elif x.shape[2]:
            parts.insert(0, x[:, :, :1].expand(-1, -1, KERNEL - 1 if self.causal else KERNEL // 2, -1, -1))
        if stream.last and not self.causal:
            newest = x if x.shape[2] else past
            assert newest is not None
            parts.append(newest[:, :, -1:].expand(-1, -1, KERNEL // 2, -1, -1))
        x = torch.cat(parts, dim=2)

        if not stream.last and x.shape[2]:
            stream.put(self, "past", x[:, :, -(KERNEL - self.conv.stride[0]) :].clone())
        if x.shape[2] < KERNEL:
            _, down_y, down_x = self.conv.stride
            return x.new_empty(x.shape[0], self.conv.out_channels, 0, x.shape[3] // down_y, x.shape[4] // down_x)
        return self.conv(x)


class TimeEmbedding(nn.Module):
    """A sinusoid of the time step and a two-layer perceptron. [B] -> [B,width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.timestep_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(SINUSOID_WIDTH, width), "linear_2": nn.Linear(width, width)}
        )

    def forward(self, timestep: Tensor) -> Tensor:
        half = SINUSOID_WIDTH // 2
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        angles = timestep.float()[:, None] * torch.exp(-math.log(SINUSOID_PERIOD) / half * steps)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        first, second = self.timestep_embedder["linear_1"], self.timestep_embedder["linear_2"]
        weight = first.weight
        assert isinstance(weight, Tensor)
        return second(F.silu(first(waves.to(weight.dtype))))


class ResBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, added to the input; optionally modulated by a time step."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        padding_mode: PaddingMode,
        causal: bool,
        conditioned: bool = False,
        inject_noise: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = Conv3d(channels, out_channels, padding_mode, causal)
        self.conv2 = Conv3d(out_channels, out_channels, padding_mode, causal)
        self.norm3, self.conv_shortcut = nn.Identity(), nn.Identity()
        if channels != out_channels:
            self.norm3 = nn.GroupNorm(1, channels, eps=SHORTCUT_NORM_EPS)
            self.conv_shortcut = nn.Conv3d(channels, out_channels, 1)
        if conditioned:
            self.scale_shift_table = nn.Parameter(torch.zeros(4, channels))
        if inject_noise:
            self.per_channel_scale1 = nn.Parameter(torch.zeros(channels, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.zeros(channels, 1, 1))
        self.conditioned = conditioned
        self.inject_noise = inject_noise

    def forward(
        self, x: Tensor, stream: ClipMemory, embedding: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        shift1 = scale1 = shift2 = scale2 = None
        if self.conditioned:
            assert embedding is not None
            shift1, scale1, shift2, scale2 = modulation(self.scale_shift_table, embedding)

        h = self.conv1(F.silu(modulate(pixel_norm(x), shift1, scale1)), stream)
        if self.inject_noise:
            h = h + self._noise("1", self.per_channel_scale1, h, stream, generator)
        h = self.conv2(F.silu(modulate(pixel_norm(h), shift2, scale2)), stream)
        if self.inject_noise:
            h = h + self._noise("2", self.per_channel_scale2, h, stream, generator)
        return self.conv_shortcut(self.norm3(stream.in_step(self, x, h))) + h

    def _noise(
        self, name: str, scale: Tensor, like: Tensor, stream: ClipMemory, generator: torch.Generator | None
    ) -> Tensor:
        """One plane of noise [1,C,1,Y,X], the same for all samples and frames of the clip."""
        plane = stream.once(self, f"noise{name}", lambda: draw(like.shape[-2:], generator).to(like))
        return (plane * scale)[None, :, None]


class ResStage(nn.Module):
    """Residual blocks of one width that share a time embedding; the `res_x` entry of a block list."""

    def __init__(
        self,
        channels: int,
        layers: int,
        padding_mode: PaddingMode,
        causal: bool,
        conditioned: bool = False,
        inject_noise: bool = False,
    ) -> None:
        super().__init__()
        if conditioned:
            self.time_embedder = TimeEmbedding(4 * channels)
        self.conditioned = conditioned
        self.res_blocks = nn.ModuleList(
            ResBlock(channels, channels, padding_mode, causal, conditioned, inject_noise) for _ in range(layers)
        )

    def forward(
        self, x: Tensor, stream: ClipMemory, timestep: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        embedding = self.time_embedder(timestep) if self.conditioned else None
        for block in self.res_blocks:
            x = block(x, stream, embedding, generator)
        return x


class Downsample(nn.Module):
    """Space-to-depth of a convolution plus the grouped mean of space-to-depth of the input (`compress_*_res`)."""

    def __init__(
        self, channels: int, out_channels: int, stride: tuple[int, int, int], padding_mode: PaddingMode
    ) -> None:
        super().__init__()
        self.stride = stride
        self.groups = (out_channels, channels * math.prod(stride) // out_channels)
        self.conv = Conv3d(channels, out_channels // math.prod(stride), padding_mode, causal=True)

    def forward(self, x: Tensor, stream: ClipMemory) -> Tensor:
        if self.stride[0] == 2 and stream.get(self, "begun") is None:
            # The clip's single first frame makes a pair with itself.
            x = torch.cat([x[:, :, :1], x], dim=2)
        stream.put(self, "begun", True)
        skip = space_to_depth(x, self.stride)
        skip = skip.unflatten(1, self.groups).mean(dim=2)
        return space_to_depth(self.conv(x, stream), self.stride) + skip


class Upsample(nn.Module):
    """Depth-to-space of a convolution, optionally plus that of the repeated input (decoder's `compress_*`)."""

    def __init__(
        self,
        channels: int,
        stride: tuple[int, int, int],
        multiplier: int,
        residual: bool,
        padding_mode: PaddingMode,
        causal: bool,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.residual = residual
        self.repeats = math.prod(stride) // multiplier
        self.conv = Conv3d(channels, math.prod(stride) * channels // multiplier, padding_mode, causal)

    def forward(self, x: Tensor, stream: ClipMemory) -> Tensor:
        h = self.conv(x, stream)
        skip = stream.in_step(self, x, h) if self.residual else None
        h = depth_to_space(h, self.stride)
        if skip is not None:
            h = h + depth_to_space(skip, self.stride).repeat(1, self.repeats, 1, 1, 1)
        if self.stride[0] == 2 and h.shape[2] and stream.get(self, "begun") is None:
            # Undoes the pair that the first frame made with itself in the encoder.
            h = h[:, :, 1:]
            stream.put(self, "begun", True)
        return h


def pixel_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over channels."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + NORM_EPS)


def modulation(table: Tensor, embedding: Tensor) -> tuple[Tensor, ...]:
    """Rows of `table` [n,C] plus `embedding` [B,n*C], each as [B,C,1,1,1]."""
    rows = table.to(embedding) + embedding.unflatten(1, table.shape)
    return rows[..., None, None, None].unbind(dim=1)


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    """x * (1 + scale) + shift, or x where there is nothing to apply."""
    return x if shift is None or scale is None else x * (1 + scale) + shift


def draw(shape: tuple[int, ...] | torch.Size, generator: torch.Generator | None) -> Tensor:
    """Normal noise in float32, from a fixed seed where no generator is given, so that a decode can be repeated."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return torch.randn(shape, generator=generator, device=generator.device)


def space_to_depth(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """[B,C,F,Y,X] -> [B,C*f*y*x,F/f,Y/y,X/x]; the channel index counts (C, f, y, x)."""
    f, y, x_ = stride
    b, c, frames, rows, columns = x.shape
    x = x.reshape(b, c, frames // f, f, rows // y, y, columns // x_, x_).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(b, c * f * y * x_, frames // f, rows // y, columns // x_)


def depth_to_space(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The inverse of `space_to_depth`."""
    f, y, x_ = stride
    b, c, frames, rows, columns = x.shape
    c //= f * y * x_
    x = x.reshape(b, c, f, y, x_, frames, rows, columns).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, c, frames * f, rows * y, columns * x_)


def to_patches(pixels: Tensor, size: int) -> Tensor:
    """[B,3,F,H,W] -> [B,3*size*size,F,H/size,W/size]; the channel index counts (colour, column, row)."""
    b, c, frames, height, width = pixels.shape
    x = pixels.reshape(b, c, frames, height // size, size, width // size, size).permute(0, 1, 6, 4, 2, 3, 5)
    return x.reshape(b, c * size * size, frames, height // size, width // size)


def from_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of `to_patches`."""
    b, c, frames, rows, columns = x.shape
    c //= size * size
    x = x.reshape(b, c, size, size, frames, rows, columns).permute(0, 1, 4, 5, 3, 6, 2)
    return x.reshape(b, c, frames, rows * size, columns * size)
