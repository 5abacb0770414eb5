"""The settings that `[general]` of a dataset file may give for all its datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ..media.buckets import parse_bucket
from ..shapes import SPATIAL_FACTOR
from .captions import NOT_TEXT, REPLACEMENT, parse_replacement
from .condition_settings import ConditionSettings

OF_FOLDERS = ".source_key = image_directory | video_directory | audio_directory -- with a folder of media"
MOST_REPEATS = 100_000
_OWN_LENGTHS = "not .listed_sizes -- without resolution_buckets, which say sizes and lengths"


class SharedSettings(ConditionSettings):
    """What `[general]` and every dataset may say."""

    caption_extension: str = Field(
        default=".txt",
        description="Ending of the caption file beside each medium.",
        json_schema_extra={"counts_with": OF_FOLDERS},
    )
    caption_lines: bool = Field(
        default=False,
        description="Each line of a caption file is a caption of its own, and one of them is drawn whenever the medium "
        "is trained on. Off: the file is one caption.",
        json_schema_extra={
            "counts_with": OF_FOLDERS,
            "since": "0.2",
            "advanced": True,
        },
    )
    trigger_word: str = Field(default="", description="Word put before each caption that does not contain it.")
    caption_prefix: str = Field(
        default="",
        description="Text put before each caption that does not begin with it.",
        json_schema_extra={"advanced": True},
    )
    caption_replace: tuple[str, ...] = Field(
        default=(),
        description='Words to change in captions, as "find => replace", for example ["automobile => car"]. The files '
        "stay as they are.",
        json_schema_extra={"advanced": True},
    )
    batch_size: int = Field(default=1, ge=1, description="Samples in one batch; all of one size.")
    num_repeats: int = Field(default=1, ge=1, le=MOST_REPEATS, description="How often each sample is seen in an epoch.")
    resolution: tuple[int, int] = Field(
        default=(960, 544),
        description="Width and height, or one number for a square. With buckets it is the area that counts.",
        json_schema_extra={
            "counts_with": _OWN_LENGTHS,
            "unit": "pixels",
        },
    )
    enable_bucket: bool = Field(
        default=False,
        description="Keep each medium's shape: choose among sizes of the same area instead of cropping to one.",
        json_schema_extra={
            "counts_with": [
                ".kind = image | video -- for images and videos",
                _OWN_LENGTHS,
            ]
        },
    )
    bucket_no_upscale: bool = Field(
        default=False,
        description="With buckets: media smaller than the resolution keep their own size.",
        json_schema_extra={
            "counts_with": [
                ".enable_bucket",
                _OWN_LENGTHS,
            ]
        },
    )
    resolution_buckets: tuple[str, ...] = Field(
        default=(),
        description='Sizes as "WIDTHxHEIGHTxFRAMES", for example ["768x512x49", "512x512x97"]: each clip takes the '
        "longest that it fills, then the nearest shape. They replace resolution, enable_bucket and target_frames.",
        json_schema_extra={"counts_with": ".kind = image | video -- for images and videos", "advanced": True},
    )
    cache_directory: Path | None = Field(
        default=None, description="Folder for cached latents and text; one for each dataset. Default: the media folder."
    )
    cache_only: bool = Field(
        default=False,
        description="Train on what lies in the cache folder, whether or not the media are still there.",
        json_schema_extra={"advanced": True},
    )
    recursive: bool = Field(
        default=False,
        description="Also take media from sub-folders.",
        json_schema_extra={"counts_with": OF_FOLDERS},
    )
    max_left_out: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of the files of a dataset that may be left out: without a caption, too short, "
        "damaged. Beyond it nothing is encoded or trained.",
        json_schema_extra={"advanced": True},
    )
    target_frames: tuple[int, ...] = Field(
        default=(1,),
        description="Clip lengths to cut, each 8n+1.",
        json_schema_extra={
            "counts_with": [
                ".kind = video -- for videos",
                _OWN_LENGTHS,
                ".frame_extraction != full",
            ],
            "unit": "frames",
        },
    )
    frame_extraction: Literal["head", "chunk", "slide", "uniform", "full"] = Field(
        default="head",
        description="Which windows are cut: the start, all in a row, every frame_stride frames, frame_sample evenly "
        "spread ones, or the whole clip up to max_frames.",
        json_schema_extra={
            "counts_with": [
                ".kind = video -- for videos",
                ".frame_extraction != full or not .listed_sizes -- without resolution_buckets where it is full",
            ]
        },
    )
    frame_stride: int = Field(
        default=1,
        ge=1,
        description="Step of `slide`.",
        json_schema_extra={
            "counts_with": [".kind = video -- for videos", ".frame_extraction = slide"],
            "unit": "frames",
            "advanced": True,
        },
    )
    frame_sample: int = Field(
        default=1,
        ge=1,
        description="Number of windows of `uniform`.",
        json_schema_extra={
            "counts_with": [".kind = video -- for videos", ".frame_extraction = uniform"],
            "advanced": True,
        },
    )
    max_frames: int = Field(
        default=129,
        ge=1,
        description="Longest window of `full`.",
        json_schema_extra={
            "counts_with": [".kind = video -- for videos", ".frame_extraction = full", _OWN_LENGTHS],
            "unit": "frames",
        },
    )
    frame_interval: int = Field(
        default=1,
        ge=1,
        description="`full`: lengths are rounded down to a multiple of this (plus one), so that clips share lengths.",
        json_schema_extra={
            "counts_with": [".kind = video -- for videos", ".frame_extraction = full", _OWN_LENGTHS],
            "unit": "frames",
            "advanced": True,
        },
    )
    min_frames: int = Field(
        default=1,
        ge=1,
        description="Clips with fewer frames (at the target rate) are left out.",
        json_schema_extra={"counts_with": ".kind = video -- for videos", "unit": "frames", "advanced": True},
    )
    min_seconds: float | None = Field(
        default=None,
        ge=0,
        description="Shorter videos and recordings are left out. Default: no limit.",
        json_schema_extra={
            "off": 0,
            "counts_with": [".kind = video | audio -- for videos and recordings", "not .speech_segments"],
            "unit": "s",
            "advanced": True,
        },
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Longer videos, and recordings that are not cut, are left out. Default: no limit.",
        json_schema_extra={
            "counts_with": [".kind = video | audio -- for videos and recordings", "not .speech_segments"],
            "unit": "s",
            "advanced": True,
        },
    )
    pad_short: Literal["skip", "pad"] = Field(
        default="skip",
        description="A clip at most 8 frames too short for every target: left out, or its last frame repeated.",
        json_schema_extra={
            "counts_with": [".kind = video -- for videos", ".frame_extraction != full", _OWN_LENGTHS],
            "advanced": True,
        },
    )
    source_fps: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Frame rate of the sources, where the files say a wrong one. Default: detected in each file.",
        json_schema_extra={"counts_with": ".kind = video -- for videos", "unit": "fps", "advanced": True},
    )
    target_fps: float = Field(
        default=25.0,
        gt=0,
        le=240,
        description="Frame rate of training.",
        json_schema_extra={"counts_with": ".kind = image | video -- for images and videos", "unit": "fps"},
    )
    first_frame_probability: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How often the first frame is given clean; default: the run's setting.",
        json_schema_extra={"off": 0, "counts_with": ".kind = video -- for videos"},
    )
    video_loss_weight: float | None = Field(
        default=None,
        ge=0,
        description="Weight of the video loss for this dataset; default: the run's setting.",
        json_schema_extra={"off": 0, "counts_with": ".kind = image | video -- for images and videos"},
    )

    @field_validator("caption_extension", "audio_extension")
    @classmethod
    def _with_dot(cls, value: str) -> str:
        value = value.strip()
        if not value:
            raise ValueError("must name an ending such as '.txt' or '.wav'")
        if any(sign in value for sign in "/\\:\0") or not value.strip("."):
            raise ValueError("must be an ending such as '.txt' or '.wav', and no path")
        return value if value.startswith(".") else "." + value

    @field_validator("trigger_word", "caption_prefix", "caption_replace", mode="before")
    @classmethod
    def _no_controls(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
        for found in (NOT_TEXT.search(text) for text in given if isinstance(text, str)):
            if found:
                raise ValueError(f"holds a control character ({found[0]!r}), which no caption has. Take it out")
        return value

    @field_validator("caption_replace", mode="before")
    @classmethod
    def _replacement_list(cls, value: Any) -> Any:
        if isinstance(value, dict):  # { automobile = "car" }
            return [f"{find} {REPLACEMENT} {put}" for find, put in value.items()]
        return [value] if isinstance(value, str) else value

    @field_validator("caption_replace")
    @classmethod
    def _replacements(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f" {REPLACEMENT} ".join(parse_replacement(text)).rstrip() for text in value)

    @field_validator("resolution_buckets", mode="before")
    @classmethod
    def _bucket_list(cls, value: Any) -> Any:
        # the official trainer's form is one string, "960x544x49;512x512x81"
        return [part for part in value.split(";") if part.strip()] if isinstance(value, str) else value

    @field_validator("resolution_buckets")
    @classmethod
    def _bucket_sizes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("x".join(str(number) for number in parse_bucket(text)) for text in value)

    @field_validator("resolution", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("resolution")
    @classmethod
    def _large_enough(cls, value: tuple[int, int]) -> tuple[int, int]:
        if min(value) < SPATIAL_FACTOR or max(value) > 8192:
            raise ValueError(f"width and height must be between {SPATIAL_FACTOR} and 8192 pixels")
        return value

    @field_validator("target_frames", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("target_frames")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("needs at least one number of frames, each at least 1 (8n+1: 1, 9, 17, 25, ...)")
        return value
