"""From a waveform to the log-mel spectrogram that the audio VAE reads.

    S = |STFT(x)|            1024-point periodic Hann, hop 160, centred, reflected at both ends, magnitude (not power)
    mel = log(max(S M, 1e-5))   M: 64 triangles, even on Slaney's scale from 0 to half the rate, each of area 1

N samples at 16 kHz give 1 + N // 160 rows, so 100 rows a second. The scale (linear below 1 kHz, logarithmic above) is
that of M. Slaney, "Auditory Toolbox", 1998. Nothing is kept between calls: the tables are small, and a table held as a
buffer would be lost when the module is built on the meta device, because no checkpoint stores it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import DataError
from ..optional import why_missing

FLOOR = 1e-5

_LINEAR_HZ = 200.0 / 3.0  # one mel below the knee
_KNEE_HZ = 1000.0
_KNEE_MEL = _KNEE_HZ / _LINEAR_HZ
_LOG_STEP = math.log(6.4) / 27.0  # 27 mels from 1 kHz to 6.4 kHz


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _LINEAR_HZ
    return _KNEE_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mels: Tensor) -> Tensor:
    return torch.where(mels < _KNEE_MEL, _LINEAR_HZ * mels, _KNEE_HZ * torch.exp(_LOG_STEP * (mels - _KNEE_MEL)))


def mel_filterbank(n_fft: int, bins: int, sample_rate: int) -> Tensor:
    """Triangular filters as a matrix [n_fft // 2 + 1, bins], float32."""
    frequencies = torch.linspace(0, sample_rate // 2, n_fft // 2 + 1)
    corners = _mel_to_hz(torch.linspace(0.0, _hz_to_mel(sample_rate / 2), bins + 2))
    width = corners[1:] - corners[:-1]
    distance = corners[None, :] - frequencies[:, None]  # [frequency, corner]
    rising = -distance[:, :-2] / width[:-1]
    falling = distance[:, 2:] / width[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0.0)
    return triangles * (2.0 / (corners[2:] - corners[:-2]))


def log_mel(waveform: Tensor, sample_rate: int, *, n_fft: int = 1024, hop: int = 160, bins: int = 64) -> Tensor:
    """Log-mel spectrogram of a waveform that already has the rate the model wants.

    waveform [B, C, N], N > n_fft / 2. Returns [B, C, 1 + N // hop, bins], float32.
    """
    samples = waveform.shape[-1]
    if samples <= n_fft // 2:
        raise DataError(
            f"The sound is too short: {samples} samples at {sample_rate} Hz were given, the audio VAE needs more than "
            f"{n_fft // 2} ({n_fft / 2 / sample_rate:.3f} s). Use a longer clip, or drop its sound."
        )
    batch, channels, _ = waveform.shape
    device = waveform.device
    spectrum = torch.stft(
        waveform.float().reshape(batch * channels, samples),
        n_fft,
        hop_length=hop,
        window=torch.hann_window(n_fft, device=device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    ).abs()  # [B*C, frequency, T]
    # The table is made on the CPU so that every device gets the same one.
    with torch.device("cpu"):
        table = mel_filterbank(n_fft, bins, sample_rate)
    mel = spectrum.transpose(1, 2) @ table.to(device)
    return mel.clamp(min=FLOOR).log().reshape(batch, channels, -1, bins)


def resample_waveform(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """The same sound at another rate, by torchaudio's windowed sinc; unchanged where the rates are equal."""
    if source_rate == target_rate:
        return waveform
    if why := why_missing("torchaudio.functional"):
        own = torch.__version__.partition("+")[0]
        raise DataError(
            f"The sound has {source_rate} Hz and the audio VAE wants {target_rate} Hz, but torchaudio, which resamples "
            f"it, {why}. Install the one that belongs to your torch, from where that came, and nothing else with it: "
            f"pip install torchaudio=={own} --no-deps"
        )
    from torchaudio.functional import resample as sinc_resample

    return sinc_resample(waveform.float(), source_rate, target_rate)


def waveform_to_mel(
    waveform: Tensor, source_rate: int, *, sample_rate: int = 16000, n_fft: int = 1024, hop: int = 160, bins: int = 64
) -> Tensor:
    """What the audio VAE encodes: resampled to `sample_rate`, mono put on both channels, log-mel.

    waveform [B, 1 or 2, N] in [-1, 1] at `source_rate` Hz. Returns [B, 2, T, bins], float32.
    """
    if waveform.ndim != 3 or waveform.shape[1] not in (1, 2):
        raise DataError(
            f"The sound has the shape {list(waveform.shape)}; expected [batch, channels, samples] with one or two "
            "channels. Mix surround sound down to stereo first."
        )
    waveform = resample_waveform(waveform, source_rate, sample_rate)
    mel = log_mel(waveform, sample_rate, n_fft=n_fft, hop=hop, bins=bins)
    return mel.expand(-1, 2, -1, -1).contiguous()
