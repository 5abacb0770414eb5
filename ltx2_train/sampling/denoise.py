"""From noise to latents: Euler steps of the flow, with guidance and an optional first frame; video, sound or both.

The model predicts the velocity v = noise - x0 at x = (1 - sigma) x0 + sigma noise, so x0 = x - sigma v per token. All
guidance happens on x0, in float32, for each modality by itself:

    x0 = c + (guidance - 1)(c - u) + stg (c - p)        c prompt, u negative prompt, p self-attention of a block skipped

(classifier-free guidance: arXiv 2207.12598; spatio-temporal guidance: arXiv 2411.18664), then scaled back towards the
spread of c where `rescale` is above 0 (arXiv 2305.08891). A given first frame keeps its clean tokens at timestep 0.
Picture and sound walk down one schedule together, since they were trained to see each other at like noise levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.patchify import audio_grid, audio_tokens, video_grid, video_tokens
from ..models.positions import audio_positions, video_positions
from ..models.transformer import LTXTransformer, Modality, SkipLayers
from ..shapes import AudioLatentShape, LatentShape


class Pair(NamedTuple):
    """Something of each modality: noise, latents or text context. None where the modality is not drawn."""

    video: Tensor | None = None
    audio: Tensor | None = None


@dataclass(frozen=True)
class Guidance:
    """Strengths of the three corrections; 1, 0 and 0 switch them off and save their forward passes."""

    cfg: float = 1.0
    stg: float = 0.0
    stg_block: int = 0
    rescale: float = 0.0


def guide(cond: Tensor, uncond: Tensor | None, perturbed: Tensor | None, guidance: Guidance) -> Tensor:
    """The guided x0 from predictions of one shape [B, T, C], float32."""
    guided = cond
    if uncond is not None:
        guided = guided + (guidance.cfg - 1) * (cond - uncond)
    if perturbed is not None:
        guided = guided + guidance.stg * (cond - perturbed)
    if guidance.rescale > 0 and guided is not cond:
        axes = tuple(range(1, cond.ndim))
        factor = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True).clamp_min(1e-8)
        guided = guided * (guidance.rescale * factor + 1 - guidance.rescale)
    return guided


@dataclass(frozen=True)
class _Tokens:
    """One modality on its way down: noisy tokens x [B, T, C] and, where some are given, which and what they are."""

    x: Tensor
    positions: Tensor
    mask: Tensor | None = None  # [B, T, 1], 1 where tokens are drawn
    clean: Tensor | None = None

    def modality(self, sigma: Tensor, context: Tensor | None) -> Modality:
        assert context is not None, "what is drawn needs its text"
        return Modality(
            latent=self.x.to(context.dtype), sigma=sigma, timesteps=self.timesteps(sigma), positions=self.positions,
            context=context,
        )  # fmt: skip

    def timesteps(self, sigma: Tensor) -> Tensor | None:
        """[B, T]; None where all tokens are at `sigma` [B]."""
        return None if self.mask is None else self.mask[..., 0] * sigma[:, None]

    def denoised(self, velocity: Tensor | None, sigma: Tensor) -> Tensor:
        assert velocity is not None, "what is drawn comes out of the model"
        timesteps = self.timesteps(sigma)
        return self.x - (sigma[:, None] if timesteps is None else timesteps)[..., None] * velocity.float()

    def step(self, x0: Tensor, level: float, following: float) -> _Tokens:
        if self.mask is not None and self.clean is not None:
            x0 = x0 * self.mask + self.clean * (1 - self.mask)
        x = self.x + (following - level) * (self.x - x0) / level
        return _Tokens(x, self.positions, self.mask, self.clean)


@torch.no_grad()
def denoise(
    model: LTXTransformer,
    noise: Pair,
    sigmas: Tensor,
    context: Pair,
    *,
    fps: float,
    negative: Pair | None = None,
    guidance: Guidance = Guidance(),
    first_frame: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Pair:
    """Latents drawn from `noise` of the same shapes along `sigmas`: [B, 128, F, H, W] and [B, 8, T, 16], float32.

    `context`, `negative`: text contexts [B, S, D] of every modality in `noise`; `negative` is needed where
    guidance.cfg is not 1. `first_frame`: normalised latents [B, 128, 1, H, W] that frame 0 must show.
    `on_step(done, total)` is called after each step and may raise to end the sampling.
    """
    assert any(part is not None for part in noise), "nothing to draw"
    first = next(part for part in noise if part is not None)
    drawn = [
        None if noise.video is None else _video(noise.video, fps, first_frame),
        None if noise.audio is None else _audio(noise.audio),
    ]
    skipped = frozenset([guidance.stg_block])
    total = len(sigmas) - 1
    for index in range(total):
        level, following = float(sigmas[index]), float(sigmas[index + 1])
        sigma = torch.full((first.shape[0],), level, device=first.device)
        cond = _predict(model, drawn, sigma, context)
        uncond = perturbed = (None, None)
        if negative is not None and guidance.cfg != 1:
            uncond = _predict(model, drawn, sigma, negative)
        if guidance.stg > 0:
            perturbed = _predict(model, drawn, sigma, context, SkipLayers(video_self=skipped, audio_self=skipped))
        drawn = [
            None if tokens is None or c is None else tokens.step(guide(c, u, p, guidance), level, following)
            for tokens, c, u, p in zip(drawn, cond, uncond, perturbed, strict=True)
        ]
        if on_step is not None:
            on_step(index + 1, total)
    video, audio = drawn
    return Pair(
        None if video is None or noise.video is None else video_grid(video.x, LatentShape(*noise.video.shape[2:])),
        None if audio is None or noise.audio is None else audio_grid(audio.x, _audio_shape(noise.audio)),
    )


def _predict(
    model: LTXTransformer,
    drawn: Sequence[_Tokens | None],
    sigma: Tensor,
    context: Pair,
    skip: SkipLayers | None = None,
) -> tuple[Tensor | None, ...]:
    """The model's x0 of each modality."""
    given = [
        None if tokens is None else tokens.modality(sigma, text) for tokens, text in zip(drawn, context, strict=True)
    ]
    output = model(*given, skip=skip)
    velocities = (None if given[0] is None else output.video, None if given[1] is None else output.audio)
    return tuple(
        None if tokens is None else tokens.denoised(velocity, sigma)
        for tokens, velocity in zip(drawn, velocities, strict=True)
    )


def _video(noise: Tensor, fps: float, first_frame: Tensor | None) -> _Tokens:
    shape = LatentShape(*noise.shape[2:])
    x, positions = video_tokens(noise.float()), video_positions(shape, fps, noise.device)
    if first_frame is None:
        return _Tokens(x, positions)
    per_frame = shape.height * shape.width
    mask = torch.ones(x.shape[0], x.shape[1], 1, device=x.device)
    mask[:, :per_frame] = 0
    clean = torch.zeros_like(x)
    clean[:, :per_frame] = video_tokens(first_frame.to(device=x.device, dtype=torch.float32))
    return _Tokens(torch.where(mask > 0, x, clean), positions, mask, clean)


def _audio(noise: Tensor) -> _Tokens:
    return _Tokens(audio_tokens(noise.float()), audio_positions(_audio_shape(noise), noise.device))


def _audio_shape(latents: Tensor) -> AudioLatentShape:
    return AudioLatentShape(latents.shape[2], latents.shape[1], latents.shape[3])
