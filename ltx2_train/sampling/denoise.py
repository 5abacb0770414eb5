"""From noise to latents: Euler steps of the flow, with guidance and an optional first frame.

The model predicts the velocity v = noise - x0 at x = (1 - sigma) x0 + sigma noise, so x0 = x - sigma v per token. All
guidance happens on x0, in float32:

    x0 = c + (guidance - 1)(c - u) + stg (c - p)        c prompt, u negative prompt, p self-attention of a block skipped

(classifier-free guidance: arXiv 2207.12598; spatio-temporal guidance: arXiv 2411.18664), then scaled back towards the
spread of c where `rescale` is above 0 (arXiv 2305.08891). A given first frame keeps its clean tokens at timestep 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.patchify import video_grid, video_tokens
from ..models.positions import video_positions
from ..models.transformer import LTXTransformer, Modality, SkipLayers
from ..shapes import LatentShape


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


@torch.no_grad()
def denoise(
    model: LTXTransformer,
    noise: Tensor,
    sigmas: Tensor,
    context: Tensor,
    *,
    fps: float,
    negative: Tensor | None = None,
    guidance: Guidance = Guidance(),
    first_frame: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Latents [B, 128, F, H, W], float32, drawn from `noise` of the same shape along `sigmas`.

    `context`, `negative`: text contexts [B, S, D]; `negative` is needed where guidance.cfg is not 1. `first_frame`:
    normalised latents [B, 128, 1, H, W] that frame 0 must show. `on_step(done, total)` is called after each step and
    may raise to end the sampling.
    """
    shape = LatentShape(*noise.shape[2:])
    device, dtype = noise.device, context.dtype
    positions = video_positions(shape, fps, device)
    x = video_tokens(noise.float())
    mask = torch.ones(x.shape[0], x.shape[1], 1, device=device)
    clean = torch.zeros_like(x)
    if first_frame is not None:
        per_frame = shape.height * shape.width
        mask[:, :per_frame] = 0
        clean[:, :per_frame] = video_tokens(first_frame.to(device=device, dtype=torch.float32))
        x = torch.where(mask > 0, x, clean)
    total = len(sigmas) - 1
    for index in range(total):
        sigma, following = float(sigmas[index]), float(sigmas[index + 1])
        level = torch.full((x.shape[0],), sigma, device=device)
        timesteps = None if first_frame is None else mask[..., 0] * sigma

        def predict(text: Tensor, skip: SkipLayers | None = None, level=level, timesteps=timesteps, x=x) -> Tensor:
            video = Modality(latent=x.to(dtype), sigma=level, timesteps=timesteps, positions=positions, context=text)
            velocity = model(video, None, skip=skip).video.float()
            return x - (level[:, None] if timesteps is None else timesteps)[..., None] * velocity

        cond = predict(context)
        uncond = predict(negative) if negative is not None and guidance.cfg != 1 else None
        perturbed = None
        if guidance.stg > 0:
            perturbed = predict(context, SkipLayers(video_self=frozenset([guidance.stg_block])))
        x0 = guide(cond, uncond, perturbed, guidance)
        x0 = x0 * mask + clean * (1 - mask)
        x = x + (following - sigma) * (x - x0) / sigma
        if on_step is not None:
            on_step(index + 1, total)
    return video_grid(x, shape)
