"""One micro-batch: noise it, ask for the velocity, measure the error.

    x_sigma = (1 - sigma) x0 + sigma noise        target v = noise - x0        loss = |model(x_sigma, sigma) - v|

(rectified flow, arXiv 2209.03003, in the form of arXiv 2403.03206). Per sample, a coin may give the first latent frame:
its tokens stay clean, have timestep 0 and do not count in the loss. The result is not reduced: one value a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import RunConfig
from ..data.batches import Batch
from ..models.patchify import video_tokens
from ..models.positions import video_positions
from ..models.transformer import LTXTransformer, Modality
from ..objective.flow import (
    add_noise,
    draw_first_frame,
    element_loss,
    first_frame_tokens,
    masked_mean,
    token_sigmas,
    velocity,
)
from ..objective.sigmas import sample_sigmas
from ..shapes import LatentShape


@dataclass(frozen=True)
class StepTerms:
    """What one micro-batch says: `loss` [B] carries the gradient, the rest is for the record."""

    loss: Tensor
    video: Tensor
    sigma: Tensor


def training_step(
    model: LTXTransformer,
    batch: Batch,
    context: Tensor,
    run: RunConfig,
    version: str,
    generator: torch.Generator,
) -> StepTerms:
    """Forward pass and loss of `batch` with text `context` [B, S, D]; random numbers come from `generator` (CPU)."""
    device, dtype = context.device, context.dtype
    shape = LatentShape(*batch.latents.shape[2:])
    count = batch.latents.shape[0]
    clean = video_tokens(batch.latents.to(device=device, dtype=torch.float32))  # [B, T, C]
    noise = video_tokens(torch.randn(batch.latents.shape, generator=generator).to(device))
    sigma = sample_sigmas(run.objective, count, shape.tokens, version, generator).to(device)
    default = run.train.first_frame_probability
    chances = [default if s.first_frame_probability is None else s.first_frame_probability for s in batch.samples]
    given = first_frame_tokens(shape, draw_first_frame(chances, generator)).to(device)  # [B, T]
    noisy = torch.where(given[..., None], clean, add_noise(clean, noise, sigma))
    timesteps = token_sigmas(sigma, given) if bool(given.any()) else None
    video = Modality(
        latent=noisy.to(dtype),
        sigma=sigma,
        timesteps=timesteps,
        positions=video_positions(shape, batch.fps, device),
        context=context,
    )
    predicted = model(video, None).video
    errors = element_loss(predicted, velocity(clean, noise), run.loss)
    losses = masked_mean(errors, None if timesteps is None else ~given)  # [B]
    weights = [run.loss.video_weight if s.video_loss_weight is None else s.video_loss_weight for s in batch.samples]
    return StepTerms(losses * torch.tensor(weights, device=device), losses.detach(), sigma.detach())
