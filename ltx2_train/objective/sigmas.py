"""Which noise level a training sample gets.

sigma runs from 0 (data) to 1 (noise). With n target tokens, shift(n) is the line through (1024, 0.95) and
(4096, 2.05), and z = shift + std * normal:

    legacy      sigma = sigmoid(z)
    stretched   y = (sigmoid(z) - sigmoid(z_low)) / (sigmoid(z_high) - sigmoid(z_low)), where z_low and z_high are the
                0.5 % and 99.9 % points of z; y below eps is mirrored at eps, what leaves [0, 1] is clamped; a share of
                the samples is drawn from U(eps, 1) instead, so that low noise keeps being seen at high shifts
    uniform     sigma = U(0, 1)

Last, sigma is squeezed into [min_timestep, max_timestep] / 1000 by an affine map (no rejection).

LTX-Video and LTX-2.0 were trained with the first form, LTX-2.3 with the second. The line is extended beyond its two
points, as the model's own trainer does; only audio-only training clamps it. The stretched form is computed from the
upper tail, 1 - sigmoid(z) = sigmoid(-z), in float64: the usual form divides zero by zero in float32 at some 90 000
tokens.

Logit-normal sampling: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ..families import FAMILIES
from ..settings import Settings

BASE_TOKENS, BASE_SHIFT = 1024, 0.95
HIGH_TOKENS, HIGH_SHIFT = 4096, 2.05

# Quantiles of the standard normal at 0.5 % and 99.9 %.
LOW_POINT, HIGH_POINT = -2.5758, 3.0902

# At a shift of 80 the upper tail is e^-80: float64 still resolves it, and no float32 result changes any more.
SHIFT_LIMIT = 80.0

# The largest float32 below 1: pure noise up to rounding, while 1 - sigma stays positive.
SIGMA_LIMIT = 1.0 - 2.0**-24


class SigmaSettings(Settings):
    """How noise levels are drawn."""

    sampling: Literal["shifted_logit_normal", "uniform"] = Field(
        default="shifted_logit_normal",
        description="Distribution of the noise levels: shifted_logit_normal follows the length of the clip, uniform "
        "draws all levels alike.",
        json_schema_extra={"community": "timestep_sampling", "advanced": True},
    )
    mode: Literal["auto", "legacy", "stretched"] = Field(
        default="auto",
        description="Form of the shifted logit-normal: auto = legacy for LTX-2.0 and LTX-Video, stretched for LTX-2.3 "
        "and 2.5.",
        json_schema_extra={
            "counts_with": ".sampling = shifted_logit_normal",
            "community": "shifted_logit_mode",
            "advanced": True,
        },
    )
    shift: float | None = Field(
        default=None,
        ge=-20,
        le=20,
        description="Shift of the logit-normal. Not set: computed from the number of latent tokens. Lower trains more "
        "on fine detail, higher more on composition and motion.",
        json_schema_extra={
            "counts_with": [".sampling = shifted_logit_normal", ".uniform_prob != 1 or .mode = legacy"],
            "community": "shifted_logit_shift",
            "advanced": True,
        },
    )
    std: float = Field(
        default=1.0,
        ge=0.01,
        le=10,
        description="Spread of the logit-normal.",
        json_schema_extra={
            "counts_with": [".sampling = shifted_logit_normal", ".uniform_prob != 1 or .mode = legacy"],
            "community": "logit_std",
            "advanced": True,
        },
    )
    eps: float = Field(
        default=1e-3,
        ge=0,
        le=0.499,
        description="Stretched form: levels below this are mirrored to above it; also the lowest uniform level.",
        json_schema_extra={
            "counts_with": [".sampling = shifted_logit_normal", ".mode = auto | stretched"],
            "community": "shifted_logit_eps",
            "advanced": True,
        },
    )
    uniform_prob: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Stretched form: share of samples that get a uniform level instead.",
        json_schema_extra={
            "counts_with": [".sampling = shifted_logit_normal", ".mode = auto | stretched"],
            "community": "shifted_logit_uniform_prob",
            "advanced": True,
        },
    )
    min_timestep: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Lowest noise level, of 1000; all levels are squeezed into the range.",
        json_schema_extra={"community": "min_timestep", "advanced": True},
    )
    max_timestep: float = Field(
        default=1000.0,
        ge=0,
        le=1000,
        description="Highest noise level, of 1000.",
        json_schema_extra={"community": "max_timestep", "advanced": True},
    )

    buckets: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="Draw the levels from this many equally likely slices in turn, so that every part of the range is "
        "seen equally often; 0 draws them independently.",
        json_schema_extra={"community": "num_timestep_buckets", "advanced": True},
    )

    @property
    def by_length(self) -> bool:
        """Whether the levels follow the length of a clip."""
        return self.sampling != "uniform" and self.shift is None

    @field_validator("sampling", mode="before")
    @classmethod
    def _sigma_means_shifted(cls, value: object) -> object:
        # The community trainer's default, "sigma", runs its shifted logit-normal.
        return "shifted_logit_normal" if value == "sigma" else value

    @model_validator(mode="after")
    def _range_is_ordered(self) -> SigmaSettings:
        if self.max_timestep == 0:
            raise ValueError("max_timestep is 0, so no clip is ever noised and nothing can be learned; 1000 is usual")
        if self.min_timestep > self.max_timestep:
            raise ValueError(
                f"min_timestep ({self.min_timestep:g}) is above max_timestep ({self.max_timestep:g}); swap them or "
                "lower min_timestep"
            )
        return self


def shift_for(tokens: int, clamp: bool = False) -> float:
    """The shift of a clip of `tokens` latent tokens; `clamp` keeps it between the two anchors (audio-only)."""
    slope = (HIGH_SHIFT - BASE_SHIFT) / (HIGH_TOKENS - BASE_TOKENS)
    shift = BASE_SHIFT + (tokens - BASE_TOKENS) * slope
    return min(max(shift, BASE_SHIFT), HIGH_SHIFT) if clamp else shift


def resolve_mode(mode: str, version: str | None) -> Literal["legacy", "stretched"]:
    """The form to use for a checkpoint of `version`; "auto" is its family's, and stretched where that is not known."""
    if mode == "auto":
        return FAMILIES[version].sigma_form if version in FAMILIES else "stretched"
    return "legacy" if mode == "legacy" else "stretched"


def sample_sigmas(
    settings: SigmaSettings,
    batch: int,
    tokens: int | Sequence[int],
    version: str | None,
    generator: torch.Generator,
    audio_only: bool = False,
    turn: int = 0,
) -> Tensor:
    """Draw one noise level per sample: fp32 [B] on the CPU, each in [min_timestep, max_timestep] / 1000 and below 1.

    `tokens` counts the video tokens of one sample, without references and without audio; in audio-only training it is
    the virtual count, one a sample where their lengths differ. `generator` is a CPU generator; it advances by the same
    amount whatever the settings are, so that runs that differ in them see the same data and noise. `turn` counts the
    batches before this one; with settings.buckets it decides which slices of the range are next.
    """
    normal = torch.randn(batch, generator=generator, dtype=torch.float64)
    uniform = torch.rand(batch, generator=generator, dtype=torch.float64)
    coin = torch.rand(batch, generator=generator, dtype=torch.float64)
    if settings.buckets:
        uniform = _in_slices(uniform, settings.buckets, turn)
        normal = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))

    if settings.sampling == "uniform":
        sigma = uniform
    else:
        counts = [tokens] if isinstance(tokens, int) else list(tokens)
        assert len(counts) in (1, batch), (counts, batch)
        shifts = [shift_for(count, audio_only) if settings.shift is None else settings.shift for count in counts]
        shift = torch.tensor(shifts, dtype=torch.float64).clamp(-SHIFT_LIMIT, SHIFT_LIMIT)  # [1] or [B]
        if resolve_mode(settings.mode, version) == "legacy":
            sigma = torch.sigmoid(shift + settings.std * normal)
        else:
            sigma = _stretched(normal, shift, settings.std, settings.eps)
            sigma = torch.where(coin < settings.uniform_prob, settings.eps + (1 - settings.eps) * uniform, sigma)

    return _squeeze(sigma, settings)


def _in_slices(uniform: Tensor, count: int, turn: int) -> Tensor:
    """`uniform` [B] moved into slices of width 1 / count; each slice has its turn once in `count` samples, shuffled."""
    places = []
    for index in range(turn * len(uniform), (turn + 1) * len(uniform)):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(index // count))
        places.append(int(order[index % count]))
    return (torch.tensor(places, dtype=torch.float64) + uniform) / count


def sample_audio_sigmas(settings: SigmaSettings, batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels of sound that has its own: uniform over the range, without a shift; fp32 [B] on the CPU."""
    return _squeeze(torch.rand(batch, generator=generator, dtype=torch.float64), settings)


def _squeeze(sigma: Tensor, settings: SigmaSettings) -> Tensor:
    low, high = settings.min_timestep / 1000, settings.max_timestep / 1000
    return (low + sigma * (high - low)).clamp(0.0, SIGMA_LIMIT).to(torch.float32)


def _stretched(normal: Tensor, shift: Tensor, std: float, eps: float) -> Tensor:
    # Tails 1 - sigmoid: large ones first, so that all three differences below are of like-sized numbers.
    tail = torch.sigmoid(-(shift + std * normal))
    tail_low, tail_high = torch.sigmoid(-(shift + std * LOW_POINT)), torch.sigmoid(-(shift + std * HIGH_POINT))
    y = (tail_low - tail) / (tail_low - tail_high)
    return torch.where(y < eps, 2 * eps - y, y).clamp(0.0, 1.0)
