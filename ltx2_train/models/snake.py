"""The periodic activation of BigVGAN-v2, kept free of aliasing.

    snake(x) = x + sin(a x)^2 / (b + 1e-9)        a = exp(alpha), b = exp(beta), one pair a channel

The square of a sine doubles frequencies, so the activation runs at twice the rate: up x2, snake, down x2, each through
a 12-tap Kaiser-windowed sinc. Both filters are stored in the checkpoint; what is computed here stands in for them in a
model that was not loaded. S. Lee et al., "BigVGAN", ICLR 2023, arXiv 2206.04658.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATIO = 2
TAPS = 12
EPSILON = 1e-9


def kaiser_sinc() -> Tensor:
    """The half-band low-pass of both steps, [1, 1, 12], sum 1: cut-off 1/4, transition half-width 0.3 of the rate."""
    cutoff = 0.5 / RATIO
    half_width = 0.6 / RATIO
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * half_width + 7.95  # dB, by Kaiser's rule: 51
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    time = torch.arange(-TAPS // 2, TAPS // 2) + 0.5
    taps = 2 * cutoff * window * torch.sinc(2 * cutoff * time)
    return (taps / taps.sum()).view(1, 1, TAPS)


class _Filter(nn.Module):
    """A fixed filter, under the name that checkpoints give it."""

    filter: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filter", kaiser_sinc())


class Upsample2(_Filter):
    """[B, C, N] -> [B, C, 2 N]."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        pad = TAPS // RATIO - 1
        x = F.pad(x, (pad, pad), mode="replicate")
        x = RATIO * F.conv_transpose1d(x, self.filter.to(x).expand(channels, -1, -1), stride=RATIO, groups=channels)
        cut = pad * RATIO + (TAPS - RATIO) // 2
        return x[..., cut:-cut]


class LowPass(_Filter):
    """Low-pass and every second sample: [B, C, 2 N] -> [B, C, N]."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        x = F.pad(x, (TAPS // 2 - 1, TAPS // 2), mode="replicate")
        return F.conv1d(x, self.filter.to(x).expand(channels, -1, -1), stride=RATIO, groups=channels)


class Downsample2(nn.Module):
    """The name the checkpoint gives to the low-pass."""

    def __init__(self) -> None:
        super().__init__()
        self.lowpass = LowPass()

    def forward(self, x: Tensor) -> Tensor:
        return self.lowpass(x)


class SnakeBeta(nn.Module):
    """x + sin(a x)^2 / b, with the logarithms of a and b learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.alpha.exp()[:, None]
        height = 1.0 / (self.beta.exp()[:, None] + EPSILON)
        return x + height * torch.sin(x * frequency).square()


class AntiAliasedSnake(nn.Module):
    """SnakeBeta at twice the rate; the length does not change."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)
        self.upsample = Upsample2()
        self.downsample = Downsample2()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))
