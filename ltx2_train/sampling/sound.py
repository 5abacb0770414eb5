"""The sound of a sample: its length in latents, and its way from latents to a waveform.

A clip of F frames at f frames a second has round(25 F / f) latent steps, as in the official pipelines. S steps decode
to 4 S - 3 rows of 10 ms, so the waveform ends up to 40 ms before the picture or after it; it is filled with silence,
or cut, to the picture's length. Both models are small and run in float32: the vocoder's error is audible in bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import TrainerError
from ..events import Events
from ..models.audio_vae import AudioVAE
from ..models.vocoder import ExtendedVocoder, Vocoder
from ..shapes import AudioLatentShape, VideoShape, sampled_audio_steps
from ..weights.load import load_audio_vae, load_vocoder


class SoundParts:
    """Loads the models of sound, when they are needed, from `checkpoint` onto `device`; each raises Stopped."""

    def __init__(self, checkpoint: Path, device: torch.device, events: Events) -> None:
        self._checkpoint, self._device, self._poll = checkpoint, device, events.check_stop

    def open_encoder(self, dtype: torch.dtype) -> AudioVAE:
        return load_audio_vae(self._checkpoint, True, False, dtype, self._device, self._poll)

    def open_decoder(self) -> AudioVAE:
        return load_audio_vae(self._checkpoint, False, True, torch.float32, self._device, self._poll)

    def open_vocoder(self) -> Vocoder | ExtendedVocoder:
        return load_vocoder(self._checkpoint, torch.float32, self._device, self._poll)


def sound_shape(clip: VideoShape) -> AudioLatentShape:
    """The latents of a sound as long as `clip`."""
    return AudioLatentShape(sampled_audio_steps(clip.seconds))


@torch.no_grad()
def decode_mel(vae: AudioVAE, latents: Tensor) -> Tensor:
    """Normalised latents [8, T, 16] -> mel [2, 4 T - 3, 64] on the CPU. Raises TrainerError."""
    if not bool(torch.isfinite(latents).all()):
        raise TrainerError("the latents of the sound are not finite; the LoRA or the settings have diverged")
    return vae.decode(latents[None].to(_device(vae)))[0].float().cpu()


@torch.no_grad()
def decode_wave(vocoder: Vocoder | ExtendedVocoder, mel: Tensor, seconds: float) -> Tensor:
    """mel [2, rows, 64] -> waveform [2, N] in [-1, 1] on the CPU, `seconds` long. Raises TrainerError."""
    wave = vocoder(mel[None].to(_device(vocoder)))[0].float().cpu()
    if not bool(torch.isfinite(wave).all()):
        raise TrainerError("the decoded sound is not finite; the LoRA or the settings have diverged")
    return fit(wave.clamp(-1, 1), round(seconds * vocoder.sample_rate))


def fit(wave: Tensor, samples: int) -> Tensor:
    """[C, N] -> [C, samples]: cut at the end, or filled with silence."""
    return functional.pad(wave[:, :samples], (0, max(0, samples - wave.shape[1])))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
