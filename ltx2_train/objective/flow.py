"""Rectified flow: what the model is shown, what it should answer, and how the answer is judged.

    x_sigma = (1 - sigma) * x0 + sigma * noise        velocity = d x / d sigma = noise - x0

Everything here is float32: the noise level that mixes and the one the model is told are the same number, and a loss
is never rounded to the model's format. Losses stay unreduced until the mask is applied, per sample, so that a short
clip counts as much as a long one.

Clean tokens (the given first frame of image-to-video training) get noise level 0 and take no part in the loss.

Liu et al. 2022, "Flow Straight and Fast"; Lipman et al. 2022, "Flow Matching for Generative Modeling".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..settings import Settings
from ..shapes import LatentShape
from .audio_balance import BalanceSettings


class LossSettings(Settings):
    """How the prediction is compared with its target."""

    type: Literal["mse", "mae", "huber"] = Field(
        default="mse",
        description="mse = squared error; mae = absolute error, less moved by outliers; huber = squared near zero, "
        "absolute beyond huber_delta.",
        json_schema_extra={"community": "loss_type", "advanced": True},
    )
    huber_delta: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="Error at which huber goes from squared to absolute.",
        json_schema_extra={"counts_with": ".type = huber", "community": "huber_delta", "advanced": True},
    )
    video_weight: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Weight of the video loss.",
        json_schema_extra={
            "off": 0,
            "counts_with": ["model.mode = video | av", "video.generated"],
            "community": "video_loss_weight",
            "advanced": True,
        },
    )
    audio_weight: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Weight of the audio loss; lower it where sound is learned at the cost of the picture.",
        json_schema_extra={
            "off": 0,
            "counts_with": ["model.mode = av | audio", "audio.generated"],
            "community": "audio_loss_weight",
            "advanced": True,
        },
    )
    balance: BalanceSettings = Field(default_factory=BalanceSettings)

    @field_validator("type", mode="before")
    @classmethod
    def _other_names(cls, value: object) -> object:
        return {"l1": "mae", "l2": "mse", "smooth_l1": "huber"}.get(value, value) if isinstance(value, str) else value


def add_noise(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Mix data [B, ...] and noise of the same shape at `sigma` [B] or [B, T]; fp32."""
    sigma = _spread(sigma, x0)
    return (1 - sigma) * x0.float() + sigma * noise.float()


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """The target of the model: noise - data, fp32."""
    return noise.float() - x0.float()


def element_loss(prediction: Tensor, target: Tensor, settings: LossSettings) -> Tensor:
    """The loss of each element, fp32, in the shape of the inputs.

    huber is 0.5 d^2 / delta inside delta and |d| - 0.5 delta outside, so it joins smoothly and has slope 1 outside.
    """
    difference = prediction.float() - target.float()
    if settings.type == "mse":
        return difference.square()
    size = difference.abs()
    if settings.type == "mae":
        return size
    delta = settings.huber_delta
    return torch.where(size < delta, 0.5 * difference.square() / delta, size - 0.5 * delta)


def masked_mean(loss: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of `loss` [B, T, C] per sample over the tokens where `mask` [B, T] is nonzero (None: all); fp32 [B].

    A sample without any such token gives zero, with zero gradient: it has nothing to learn from.
    """
    loss = loss.float()
    if mask is None:
        return loss.flatten(1).mean(dim=1)
    keep = mask.to(device=loss.device, dtype=torch.bool)
    # where, not a product: zero times an inf that nobody reads would be nan
    per_token = torch.where(keep, loss.mean(dim=2), 0.0)
    return per_token.sum(dim=1) / keep.sum(dim=1).clamp(min=1)


def draw_first_frame(chances: Sequence[float], generator: torch.Generator) -> Tensor:
    """One coin a sample with its own chance, bool [B] on the CPU: is this sample given its first frame?

    The coins are drawn whatever the chances are, so that they do not shift the numbers that come after.
    """
    return torch.rand(len(chances), generator=generator) < torch.tensor(chances)


def first_frame_tokens(shape: LatentShape, given: Tensor) -> Tensor:
    """The clean tokens, bool [B, T]: those of the first latent frame of the samples that `given` [B] names.

    A clip of one latent frame keeps all its tokens noisy: with none left to learn from it would be a lost sample.
    """
    first = torch.zeros(shape.tokens, dtype=torch.bool, device=given.device)
    if shape.frames > 1:
        first[: shape.height * shape.width] = True
    return given.bool()[:, None] & first


def _spread(sigma: Tensor, like: Tensor) -> Tensor:
    sigma = sigma.to(device=like.device, dtype=torch.float32)
    return sigma.reshape(*sigma.shape, *([1] * (like.ndim - sigma.ndim)))
