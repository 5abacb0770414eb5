"""Settings of training with sound, noise levels of its own, and what a batch without sound may learn instead.

A batch of silent clips or images moves weights that the sound passes through too, and nothing tells it what to keep.
The silence regularizer gives such a batch the latents of silence to learn from. They must be latents that the audio
VAE made of silence: zeros are not, and a model trained on zeros learns a sound that no silence has.

A virtual shape stands in for the picture in audio-only training, where the shift of the noise levels still wants a
number of tokens: the frames of the sound's length, and a small square for the picture, so that length decides alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..settings import Reaction, Settings
from ..shapes import AUDIO_BINS, AUDIO_CHANNELS, SPATIAL_FACTOR, LatentShape, sampled_audio_steps


class AudioSettings(Settings):
    """How sound is trained and fed; used by the modes av and audio."""

    independent_timestep: bool = Field(
        default=False,
        description="Give the sound a noise level of its own, uniform in the range, instead of the picture's.",
        json_schema_extra={
            "counts_with": "model.mode = av",
            "community": "independent_audio_timestep",
            "advanced": True,
        },
    )
    silence_regularizer: bool = Field(
        default=False,
        description="Batches without sound train the audio side on silence instead of leaving it out (mode av).",
        json_schema_extra={
            "counts_with": "model.mode = av",
            "community": "audio_silence_regularizer",
            "advanced": True,
        },
    )
    silence_weight: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="Factor on the audio loss of such batches.",
        json_schema_extra={
            "off": 0,
            "counts_with": ".silence_regularizer",
            "community": "audio_silence_regularizer_weight",
            "advanced": True,
        },
    )
    supervision: Reaction = Field(
        default="off",
        description="What to do when too few batches carry sound (mode av): nothing, warn, or end the run.",
        json_schema_extra={"counts_with": "model.mode = av", "community": "audio_supervision_mode", "advanced": True},
    )
    supervision_warmup: int = Field(
        default=50,
        ge=0,
        description="Batches before the share of batches with sound is first looked at.",
        json_schema_extra={
            "counts_with": ".supervision = warn | error",
            "community": "audio_supervision_warmup_steps",
            "unit": "batches",
            "advanced": True,
        },
    )
    supervision_interval: int = Field(
        default=50,
        ge=1,
        description="Batches between two looks at it.",
        json_schema_extra={
            "counts_with": ".supervision = warn | error",
            "community": "audio_supervision_check_interval",
            "unit": "batches",
            "advanced": True,
        },
    )
    supervision_min_ratio: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Smallest share of batches with sound that is right.",
        json_schema_extra={
            "counts_with": ".supervision = warn | error",
            "community": "audio_supervision_min_ratio",
            "advanced": True,
        },
    )
    min_batches: int = Field(
        default=0,
        ge=0,
        description="Batches with sound in each step of train.accumulation batches, at least; 0 leaves it to chance.",
        json_schema_extra={
            "counts_with": "model.mode = av",
            "community": "min_audio_batches_per_accum",
            "unit": "batches",
            "advanced": True,
        },
    )
    batch_probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How often the next batch is one with sound while both kinds are left in the epoch. It moves them "
        "within the epoch only; num_repeats of a dataset changes how many there are.",
        json_schema_extra={"counts_with": "model.mode = av", "community": "audio_batch_probability", "advanced": True},
    )
    separate_buckets: bool | None = Field(
        default=None,
        description="Keep clips with and without sound in separate batches; counts for datasets that do not say.",
        json_schema_extra={"counts_with": "model.mode = av", "community": "separate_audio_buckets", "advanced": True},
    )
    bucket_strategy: Literal["pad", "truncate"] | None = Field(
        default=None,
        description="Sounds of one batch: pad = fill the shorter ones, outside the loss; truncate = cut all to one "
        "length. Counts for datasets that do not say.",
        json_schema_extra={
            "counts_with": "model.mode = av | audio",
            "community": "audio_bucket_strategy",
            "advanced": True,
        },
    )
    bucket_interval: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Sounds whose lengths differ by less go into one batch; counts for datasets that do not say.",
        json_schema_extra={
            "counts_with": "model.mode = av | audio",
            "community": "audio_bucket_interval",
            "unit": "s",
            "advanced": True,
        },
    )
    sequence_resolution: int | None = Field(
        default=None,
        ge=0,
        le=8192,
        description="Side of the picture that stands in for the missing one when the noise levels of mode audio are "
        "drawn; 0 takes the size of the dataset. Not set: as each dataset says.",
        json_schema_extra={
            "counts_with": [
                "model.mode = audio",
                "objective.by_length -- where levels follow the length, with objective.shift not set and "
                "objective.sampling = shifted_logit_normal",
            ],
            "community": "audio_only_sequence_resolution",
            "unit": "pixels",
            "advanced": True,
        },
    )

    @model_validator(mode="after")
    def _consistent(self) -> AudioSettings:
        if self.min_batches and self.batch_probability is not None:
            raise ValueError("min_batches and batch_probability are both set; each decides the order alone, keep one")
        if self.sequence_resolution is not None and 0 < self.sequence_resolution < SPATIAL_FACTOR:
            raise ValueError(f"sequence_resolution is {self.sequence_resolution}; use 0, or at least {SPATIAL_FACTOR}")
        return self


def virtual_shape(shape: LatentShape, sequence_resolution: int) -> LatentShape:
    """What a sound counts as where there is no picture: its frames, each a square of `sequence_resolution` pixels.

    0 keeps the size of `shape`.
    """
    if sequence_resolution == 0:
        return shape
    side = max(1, sequence_resolution // SPATIAL_FACTOR)
    return LatentShape(shape.frames, side, side)


def audio_steps(frames: int, fps: float) -> int:
    """Latent steps of the sound of a clip of `frames` pixel frames; at least one."""
    return sampled_audio_steps(frames / fps)


def silence_batch(silence: Tensor, batch: int, steps: int) -> Tensor:
    """Latents [B, 8, steps, 16] of silence, from `silence` [8, T, 16] that the audio VAE made of it.

    Cut to length, or drawn out by its last step: silence goes on as it ends.
    """
    assert silence.shape[0] == AUDIO_CHANNELS, silence.shape
    assert silence.shape[2] == AUDIO_BINS, silence.shape
    missing = steps - silence.shape[1]
    if missing > 0:
        silence = torch.cat([silence, silence[:, -1:].expand(-1, missing, -1)], dim=1)
    return silence[:, :steps].float().expand(batch, -1, -1, -1).contiguous()
