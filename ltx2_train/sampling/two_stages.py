"""Samples in two stages, as the pipelines of LTX-2 draw them: at half the size, twice as large, and refined.

    first stage     half of width and height, with the steps, noise levels and guidance of the sample
    between         latents as the VAE makes them -> latent upsampler -> normalised again
    second stage    from the noise level 0.909375 of the distilled schedule down, in three steps without guidance

The sound is that of the first stage, which is guided; the second stage hears it, noised as the picture is. First frames
are given in both. Source: `ti2vid_two_stages` of the official pipelines.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import SampleSettings
from ..errors import CheckpointError, ConfigError
from ..events import Events
from ..models.polled import polled
from ..models.video_vae import VideoVAE
from ..shapes import LatentShape
from ..weights.upsampler import load_upsampler, upsampler_sizes

HELD = 8  # tensors of the inner width that are there at once, at the larger size


@dataclass
class StepCount:
    """Counts the denoising steps of all samples of a call; `done` are those of the samples before."""

    events: Events
    total: int
    done: int = 0

    def on_step(self, step: int, steps: int) -> None:
        self.events.progress(self.done + step, self.total, f"denoising {step}/{steps}")
        self.events.check_stop()


def require_upsampler(settings: SampleSettings) -> None:
    """Raise ConfigError or CheckpointError where sample.upsampler is set and names no such file."""
    path = settings.upsampler
    if path is None:
        return
    if not path.is_file():
        why = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise ConfigError(f"sample.upsampler: {path} {why}. Correct the path, or leave it out.")
    try:
        upsampler_sizes(path)
    except CheckpointError as error:
        raise CheckpointError(f"sample.upsampler: {error}") from None


def upsampling_bytes(path: Path, shape: LatentShape) -> int:
    """What a card needs to enlarge latents to `shape`, the weights included."""
    weights, width = _sizes(path)
    return weights + HELD * 2 * width * shape.tokens


@functools.lru_cache(maxsize=8)
def _sizes(path: Path) -> tuple[int, int]:
    return upsampler_sizes(path)


@torch.no_grad()
def enlarged(
    path: Path,
    latents: Mapping[int, Tensor],
    vae: VideoVAE,
    dtype: torch.dtype,
    device: torch.device,
    events: Events,
) -> dict[int, Tensor]:
    """Normalised latents [128, F, 2 H, 2 W] on the CPU, of each of `latents` [128, F, H, W]; of `vae` the statistics
    alone are needed. Raises CheckpointError where the upsampler gives no numbers."""
    model = load_upsampler(path, dtype, device, events.check_stop)
    statistics, made = vae.per_channel_statistics, dict[int, Tensor]()
    for number, one in latents.items():
        raw = statistics.unnormalize(one[None].to(device))
        with polled(model, events.check_stop):
            made[number] = statistics.normalize(model(raw.to(dtype)))[0].cpu()
        if bool(torch.isfinite(one).all()) and not bool(torch.isfinite(made[number]).all()):
            raise CheckpointError(
                f"sample.upsampler: {path.name} gives numbers that are not finite. Fetch it again, or set "
                'cache.vae_dtype = "fp32".'
            )
    return made
