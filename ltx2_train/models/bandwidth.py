"""What the 2.3 vocoder needs besides its two generators to turn 16 kHz into 48 kHz.

    wave 16 kHz --causal STFT, mel, log--> generator --> what is above 8 kHz, at 48 kHz
              \\--windowed-sinc x3-------------------------+--> sum

The STFT is a convolution with tables that the checkpoint stores (cosines, then sines, times the window), because
training used their bfloat16 values; what is computed here stands in for them in a model that was not loaded. It is
causal: all padding comes first. The sinc is the one torchaudio resamples with (6 zero crossings, roll-off 0.99, Hann).
It is not stored, so it is computed when used: as a buffer it would be lost in a model built on the meta device.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mel import FLOOR, mel_filterbank

ZERO_CROSSINGS = 6
ROLLOFF = 0.99


def stft_basis(n_fft: int) -> Tensor:
    """Hann-windowed cosines, then minus sines, of every frequency: [n_fft + 2, 1, n_fft]."""
    frequency = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
    time = torch.arange(n_fft, dtype=torch.float64)
    phase = 2 * math.pi / n_fft * frequency[:, None] * time
    basis = torch.cat([phase.cos(), -phase.sin()]) * torch.hann_window(n_fft, dtype=torch.float64)
    return basis[:, None].float()


class CausalSTFT(nn.Module):
    """Magnitudes of a waveform: [B, N] -> [B, n_fft / 2 + 1, N / hop], for N a multiple of hop."""

    forward_basis: Tensor

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.hop = hop
        self.register_buffer("forward_basis", stft_basis(n_fft))
        # Stored in the checkpoint and used by nobody.
        self.register_buffer("inverse_basis", torch.zeros(n_fft + 2, 1, n_fft))

    def forward(self, waveform: Tensor) -> Tensor:
        padded = F.pad(waveform[:, None], (max(0, self.n_fft - self.hop), 0))
        real, imaginary = F.conv1d(padded, self.forward_basis.to(padded), stride=self.hop).chunk(2, dim=1)
        return torch.sqrt(real.square() + imaginary.square())


class CausalMel(nn.Module):
    """Log-mel spectrogram of each channel: [B, C, N] -> [B, C, N / hop, bins]."""

    mel_basis: Tensor

    def __init__(self, n_fft: int, hop: int, bins: int, sample_rate: int) -> None:
        super().__init__()
        self.stft_fn = CausalSTFT(n_fft, hop)
        self.register_buffer("mel_basis", mel_filterbank(n_fft, bins, sample_rate).T.contiguous())

    def forward(self, waveform: Tensor) -> Tensor:
        magnitudes = self.stft_fn(waveform.flatten(0, 1))
        mel = self.mel_basis.to(magnitudes) @ magnitudes  # [B*C, bins, T]
        return mel.clamp(min=FLOOR).log().unflatten(0, waveform.shape[:2]).transpose(2, 3)


def sinc_upsample(waveform: Tensor, ratio: int) -> Tensor:
    """The same sound at `ratio` times the rate: [B, C, N] -> [B, C, ratio * N]."""
    width = math.ceil(ZERO_CROSSINGS / ROLLOFF)
    taps = 2 * width * ratio + 1
    with torch.device("cpu"):
        time = (torch.arange(taps) / ratio - width) * ROLLOFF
        window = torch.cos(time.clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS) * math.pi / ZERO_CROSSINGS / 2).square()
        kernel = torch.sinc(time) * window * ROLLOFF / ratio
    channels = waveform.shape[1]
    kernel = kernel.to(waveform).expand(channels, 1, -1)
    padded = F.pad(waveform, (width, width), mode="replicate")
    raised = ratio * F.conv_transpose1d(padded, kernel, stride=ratio, groups=channels)
    return raised[..., 2 * width * ratio : ratio - taps]
