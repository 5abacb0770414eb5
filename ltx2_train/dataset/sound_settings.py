"""The settings of sound in a dataset: where it comes from, how lengths are grouped, segments, references.

The keys named audio_* are the community trainer's: partly keys of its dataset file, partly flags of its cache command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..settings import Settings
from ..shapes import SPATIAL_FACTOR


class SoundSettings(Settings):
    """What `[general]` and every dataset may say about sound; nothing of it matters when video alone is trained."""

    audio_source: Literal["video", "audio_files", "none"] = Field(
        default="video",
        description="Where the sound of videos comes from: the clip itself, a sound file of the same name, or nowhere.",
        json_schema_extra={"counts_with": ".kind = video -- for videos", "community": "ltx2_audio_source"},
    )
    audio_files_directory: Path | None = Field(
        default=None,
        description="With audio_source = audio_files: folder of the sound files. Default: beside each video.",
        json_schema_extra={
            "counts_with": [".kind = video -- for videos", ".audio_source = audio_files"],
            "community": "ltx2_audio_dir",
            "advanced": True,
        },
    )
    audio_extension: str = Field(
        default=".wav",
        description="With audio_source = audio_files: ending of the sound files. Unless set, other endings of sound "
        "files are looked for as well.",
        json_schema_extra={
            "counts_with": [".kind = video -- for videos", ".audio_source = audio_files"],
            "community": "ltx2_audio_ext",
            "advanced": True,
        },
    )
    audio_track: int | None = Field(
        default=None,
        ge=1,
        description="Which sound track of clips and recordings is used, counted from 1. Default: the one that the file "
        "prefers; two tracks of one channel each are joined as left and right.",
        json_schema_extra={
            "counts_with": ".sound_inside -- for recordings, and for videos whose audio_source is video",
            "advanced": True,
        },
    )
    audio_normalize: bool = Field(
        default=False,
        description="Bring each sound to a peak of -7 dB before it is encoded.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "unit": "dB",
        },
    )
    audio_loss_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the audio loss for this dataset; default: the run's setting.",
        json_schema_extra={
            "off": 0,
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
        },
    )
    separate_audio_buckets: bool = Field(
        default=False,
        description="Never mix clips with sound and silent ones in a batch.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "community": "separate_audio_buckets",
        },
    )
    audio_bucket_strategy: Literal["pad", "truncate"] = Field(
        default="pad",
        description="How sounds of several lengths become one batch: padded to the nearest bucket, with the padding "
        "left out of the loss, or cut to the bucket below.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "community": "audio_bucket_strategy",
        },
    )
    audio_bucket_interval: float = Field(
        default=2.0,
        gt=0,
        le=3600,
        description="Step between the lengths of sound buckets.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "community": "audio_bucket_interval",
            "unit": "s",
        },
    )
    audio_only_target_fps: float = Field(
        default=25.0,
        gt=0,
        le=240,
        description="Frame rate of the imagined video beside a sound without one; its size decides the sigma shift.",
        json_schema_extra={
            "counts_with": ".may_have_recordings -- for recordings",
            "community": "audio_only_target_fps",
            "unit": "fps",
            "advanced": True,
        },
    )
    audio_only_sequence_resolution: int = Field(
        default=64,
        ge=0,
        le=8192,
        description="Width and height of that imagined video; 0 takes audio_only_target_resolution.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "community": "audio_only_sequence_resolution",
            "unit": "pixels",
            "advanced": True,
        },
    )
    audio_only_target_resolution: int | None = Field(
        default=None,
        ge=SPATIAL_FACTOR,
        le=8192,
        description="Width and height of the imagined video where audio_only_sequence_resolution is 0. Default: "
        "resolution.",
        json_schema_extra={
            "counts_with": [".may_have_recordings -- for recordings", ".audio_only_sequence_resolution = 0"],
            "community": "audio_only_target_resolution",
            "unit": "pixels",
            "advanced": True,
        },
    )
    audio_video_latent_channels: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="Channels of the empty picture that is stored beside a sound, for other trainers. Default: 128, as "
        "LTX-2 has.",
        json_schema_extra={
            "counts_with": ".may_have_recordings -- for recordings",
            "community": "audio_video_latent_channels",
            "advanced": True,
        },
    )
    audio_video_latent_dtype: Literal["bf16", "fp16", "fp32", "bfloat16", "float16", "float32"] | None = Field(
        default=None,
        description="Precision of that empty picture. Default: that of the sound, cache.audio_latents_dtype.",
        json_schema_extra={
            "counts_with": ".may_have_recordings -- for recordings",
            "community": "audio_video_latent_dtype",
            "advanced": True,
        },
    )
    speech_segments: bool = Field(
        default=False,
        description="Cut recordings at their pauses into spoken segments; each becomes a sample.",
        json_schema_extra={"counts_with": ".may_have_recordings -- for recordings"},
    )
    speech_min_seconds: float = Field(
        default=2.0,
        gt=0,
        description="Shortest spoken segment.",
        json_schema_extra={
            "counts_with": [".may_have_recordings -- for recordings", ".speech_segments"],
            "unit": "s",
            "advanced": True,
        },
    )
    speech_max_seconds: float = Field(
        default=12.0,
        gt=0,
        description="Longest spoken segment.",
        json_schema_extra={
            "counts_with": [".may_have_recordings -- for recordings", ".speech_segments"],
            "unit": "s",
            "advanced": True,
        },
    )
    speech_pause_seconds: float = Field(
        default=0.3,
        gt=0,
        le=10,
        description="Quiet that counts as a pause between segments.",
        json_schema_extra={
            "counts_with": [".may_have_recordings -- for recordings", ".speech_segments"],
            "unit": "s",
            "advanced": True,
        },
    )
    reference_audio_cache_directory: Path | None = Field(
        default=None,
        description="Folder for cached reference sounds. Default: reference_audio in the cache folder.",
        json_schema_extra={
            "counts_with": ".may_have_voices -- with reference_audio_directory, or reference sounds of a list",
            "advanced": True,
        },
    )
    reference_audio_max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Longest reference sound; what is longer is cut. Default: all of it.",
        json_schema_extra={
            "counts_with": ".may_have_voices -- with reference_audio_directory, or reference sounds of a list",
            "unit": "s",
            "advanced": True,
        },
    )

    @field_validator("audio_only_sequence_resolution")
    @classmethod
    def _zero_or_a_latent(cls, value: int) -> int:
        if 0 < value < SPATIAL_FACTOR:
            raise ValueError(f"must be 0 or at least {SPATIAL_FACTOR}")
        return value

    @model_validator(mode="after")
    def _lengths_of_speech(self) -> SoundSettings:
        if self.speech_max_seconds < self.speech_min_seconds:
            raise ValueError(
                f"speech_max_seconds ({self.speech_max_seconds:g}) is below speech_min_seconds "
                f"({self.speech_min_seconds:g}); make it larger"
            )
        return self
