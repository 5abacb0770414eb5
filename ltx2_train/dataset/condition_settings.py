"""The settings of what goes with a clip - references and masks - and of small changes made when it is cached."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from ..shapes import floor_frames
from .sound_settings import SoundSettings

MOST_FRAMES = 1025


class ConditionSettings(SoundSettings):
    """What `[general]` and every dataset may say about references, masks and changes of the picture."""

    reference_cache_directory: Path | None = Field(
        default=None,
        description="Folder for cached references. Default: `reference` in the cache folder.",
        json_schema_extra={
            "counts_with": ".may_have_references -- with reference_directory, or references of a list",
            "advanced": True,
        },
    )
    reference_frames: int = Field(
        default=1,
        ge=0,
        le=MOST_FRAMES,
        description="Frames of each reference, 8n+1: an image is repeated, a video begins where the clip's window does "
        "if it is as long as the clip, else at its own start. 0: as many as the clip has.",
        json_schema_extra={
            "counts_with": ".may_have_references -- with reference_directory, or references of a list",
            "community": "reference_frames",
            "unit": "frames",
            "advanced": True,
        },
    )
    more_reference_frames: tuple[int, ...] = Field(
        default=(),
        description="Frames of the second, third ... reference, one number for each, counted as reference_frames. "
        "Not set: as reference_frames.",
        json_schema_extra={
            "counts_with": ".may_have_more_references -- with more_reference_directories, or several references in a "
            "list",
            "unit": "frames",
            "advanced": True,
        },
    )
    reference_downscale: int = Field(
        default=1,
        ge=1,
        le=16,
        description="How many times smaller than the clip references are cached, in width and height.",
        json_schema_extra={
            "counts_with": ".may_have_references -- with reference_directory, or references of a list",
            "community": "reference_downscale",
            "advanced": True,
        },
    )
    reference_temporal_scale: int = Field(
        default=1,
        ge=1,
        le=16,
        description="How many times fewer frames a second references are cached with than the clip has: of a video the "
        "first frame and then every so many.",
        json_schema_extra={
            "counts_with": ".may_have_references -- with reference_directory, or references of a list",
            "advanced": True,
        },
    )
    flip: bool = Field(
        default=False,
        description="Also train on a mirrored copy of each picture. Not for text, faces or left and right.",
        json_schema_extra={"counts_with": ".kind = image | video -- for images and videos"},
    )
    color_jitter: float = Field(
        default=0.0,
        ge=0,
        le=0.3,
        description="Change brightness, contrast and saturation of each medium by up to this share; which way, its "
        "name decides.",
        json_schema_extra={"counts_with": ".kind = image | video -- for images and videos", "advanced": True},
    )
    crop: Literal["center", "motion"] = Field(
        default="center",
        description="What is kept where a picture does not fit its size: its middle, or the place that moves most.",
        json_schema_extra={"counts_with": ".kind = video -- for videos", "advanced": True},
    )

    @field_validator("reference_frames")
    @classmethod
    def _whole_latents(cls, value: int) -> int:
        if value and floor_frames(value) != value:
            raise ValueError(f"must be 8n+1 (1, 9, 17, 25 ...) or 0; {floor_frames(value)} is the next below")
        return value

    @field_validator("more_reference_frames")
    @classmethod
    def _all_whole_latents(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for one in value:
            if not 0 <= one <= MOST_FRAMES or one and floor_frames(one) != one:
                raise ValueError(f"each must be 8n+1 (1, 9, 17 ... {MOST_FRAMES}) or 0, and one is {one}")
        return value

    def frames_of(self, number: int) -> int:
        """How many frames the reference `number` (from 0) has; 0: as many as the clip."""
        more = self.more_reference_frames
        return more[number - 1] if 0 < number <= len(more) else self.reference_frames
