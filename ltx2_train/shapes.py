"""Sizes of clips and latents as named types, and the two roundings every part must agree on.

The video VAE maps F x H x W pixels to (F-1)/8+1 x H/32 x W/32 latents of 128 channels; so F is 8n+1 and H, W are
multiples of 32. The audio VAE gives 25 latents of 8 channels x 16 bins a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Mode = Literal["video", "av", "audio"]  # which streams a run trains
MODES: tuple[Mode, ...] = get_args(Mode)
StreamName = Literal["video", "audio"]

TEMPORAL_FACTOR = 8
SPATIAL_FACTOR = 32
VIDEO_CHANNELS = 128
AUDIO_CHANNELS = 8
AUDIO_BINS = 16
AUDIO_RATE, AUDIO_HOP, AUDIO_HOPS_PER_LATENT = 16000, 160, 4
AUDIO_LATENTS_PER_SECOND = 25.0


def sampled_audio_steps(seconds: float) -> int:
    """Latents that sampling makes for so many seconds of sound, as the official pipelines do; at least one."""
    return max(1, round(seconds * AUDIO_LATENTS_PER_SECOND))


def encoded_audio_steps(seconds: float) -> int:
    """Latents that the audio VAE makes of so many seconds of sound.

    The spectrogram has a row every 160 samples at 16 kHz and one at the very end; four of them, or what is left, become
    a latent. So there is often one more than sampling makes.
    """
    rows = 1 + round(seconds * AUDIO_RATE) // AUDIO_HOP
    return -(-rows // AUDIO_HOPS_PER_LATENT)


def floor_frames(frames: int) -> int:
    """The largest 8n+1 that is not above `frames`; 0 where there is none."""
    return (frames - 1) // TEMPORAL_FACTOR * TEMPORAL_FACTOR + 1 if frames > 0 else 0


def floor_side(pixels: int) -> int:
    """The largest multiple of 32 that is not above `pixels`."""
    return pixels // SPATIAL_FACTOR * SPATIAL_FACTOR


@dataclass(frozen=True)
class VideoShape:
    """A clip in pixels. `frames` is 8n+1, `height` and `width` are multiples of 32, `fps` frames a second."""

    frames: int
    height: int
    width: int
    fps: float = 25.0

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def latent(self) -> LatentShape:
        return LatentShape(
            (self.frames - 1) // TEMPORAL_FACTOR + 1, self.height // SPATIAL_FACTOR, self.width // SPATIAL_FACTOR
        )


@dataclass(frozen=True)
class LatentShape:
    """A clip in latents: [channels, frames, height, width]; one token each."""

    frames: int
    height: int
    width: int
    channels: int = VIDEO_CHANNELS

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def frame_tokens(self) -> int:
        """Of one latent frame."""
        return self.height * self.width

    def video(self, fps: float = 25.0) -> VideoShape:
        return VideoShape(
            (self.frames - 1) * TEMPORAL_FACTOR + 1, self.height * SPATIAL_FACTOR, self.width * SPATIAL_FACTOR, fps
        )


@dataclass(frozen=True)
class AudioLatentShape:
    """A sound in latents: [channels, steps, bins]; one token a step."""

    steps: int
    channels: int = AUDIO_CHANNELS
    bins: int = AUDIO_BINS

    @property
    def tokens(self) -> int:
        return self.steps

    @property
    def seconds(self) -> float:
        return self.steps / AUDIO_LATENTS_PER_SECOND
