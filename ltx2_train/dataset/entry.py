"""One entry of a dataset file: every setting of `[[datasets]]`, most of which `[general]` may give as well."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..media.buckets import parse_bucket
from ..shapes import SPATIAL_FACTOR
from .captions import REPLACEMENT, parse_replacement
from .condition_settings import ConditionSettings

SOURCE_KEYS = (
    "image_directory",
    "image_jsonl_file",
    "video_directory",
    "video_jsonl_file",
    "audio_directory",
    "audio_jsonl_file",
    "dataset_file",
    "data_root",
    "preprocessed_data_root",
)
LIST_KEYS = ("image_jsonl_file", "video_jsonl_file", "audio_jsonl_file", "dataset_file")
FOLDER_KEYS = (
    "cache_directory",
    "audio_files_directory",
    "reference_directory",
    "reference_cache_directory",
    "reference_audio_directory",
    "reference_audio_cache_directory",
    "mask_directory",
    "audio_mask_directory",
)
REFERENCE_FOLDER = "reference"
IMPORTED_FOLDER = "ltx2_caches"
REFERENCE_AUDIO_FOLDER = "reference_audio"
MediaKind = Literal["image", "video", "audio"]


class SharedSettings(ConditionSettings):
    """What `[general]` and every dataset may say."""

    caption_extension: str = Field(default=".txt", description="Ending of the caption file beside each medium.")
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
    num_repeats: int = Field(default=1, ge=1, description="How often each sample is seen in an epoch.")
    resolution: tuple[int, int] = Field(
        default=(960, 544),
        description="Width and height, or one number for a square. With buckets it is the area that counts.",
        json_schema_extra={"unit": "pixels"},
    )
    enable_bucket: bool = Field(
        default=False,
        description="Keep each medium's shape: choose among sizes of the same area instead of cropping to one.",
    )
    bucket_no_upscale: bool = Field(
        default=False, description="With buckets: media smaller than the resolution keep their own size."
    )
    resolution_buckets: tuple[str, ...] = Field(
        default=(),
        description='Sizes as "WIDTHxHEIGHTxFRAMES", for example ["768x512x49", "512x512x97"]: each clip takes the '
        "longest that it fills, then the nearest shape. They replace resolution, enable_bucket and target_frames.",
        json_schema_extra={"advanced": True},
    )
    cache_directory: Path | None = Field(
        default=None, description="Folder for cached latents and text; one for each dataset. Default: the media folder."
    )
    cache_only: bool = Field(
        default=False,
        description="Train on what lies in the cache folder, whether or not the media are still there.",
        json_schema_extra={"advanced": True},
    )
    recursive: bool = Field(default=False, description="Also take media from sub-folders.")
    max_left_out: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Largest share of the files of a dataset that may be left out: without a caption, too short, "
        "damaged. Beyond it nothing is encoded or trained.",
        json_schema_extra={"advanced": True},
    )
    target_frames: tuple[int, ...] = Field(
        default=(1,), description="Clip lengths to cut, each 8n+1.", json_schema_extra={"unit": "frames"}
    )
    frame_extraction: Literal["head", "chunk", "slide", "uniform", "full"] = Field(
        default="head",
        description="Which windows are cut: the start, all in a row, every frame_stride frames, frame_sample evenly "
        "spread ones, or the whole clip up to max_frames.",
    )
    frame_stride: int = Field(
        default=1, ge=1, description="Step of `slide`.", json_schema_extra={"unit": "frames", "advanced": True}
    )
    frame_sample: int = Field(
        default=1, ge=1, description="Number of windows of `uniform`.", json_schema_extra={"advanced": True}
    )
    max_frames: int = Field(
        default=129, ge=1, description="Longest window of `full`.", json_schema_extra={"unit": "frames"}
    )
    frame_interval: int = Field(
        default=1,
        ge=1,
        description="`full`: lengths are rounded down to a multiple of this (plus one), so that clips share lengths.",
        json_schema_extra={"unit": "frames", "advanced": True},
    )
    min_frames: int = Field(
        default=1,
        ge=1,
        description="Clips with fewer frames (at the target rate) are left out.",
        json_schema_extra={"unit": "frames", "advanced": True},
    )
    min_seconds: float | None = Field(
        default=None,
        ge=0,
        description="Shorter videos and recordings are left out. Default: no limit.",
        json_schema_extra={"unit": "s", "advanced": True},
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Longer videos, and recordings that are not cut, are left out. Default: no limit.",
        json_schema_extra={"unit": "s", "advanced": True},
    )
    pad_short: Literal["skip", "pad"] = Field(
        default="skip",
        description="A clip at most 8 frames too short for every target: left out, or its last frame repeated.",
        json_schema_extra={"advanced": True},
    )
    source_fps: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="Frame rate of the sources, where the files say a wrong one. Default: detected in each file.",
        json_schema_extra={"unit": "fps", "advanced": True},
    )
    target_fps: float = Field(
        default=25.0, gt=0, le=240, description="Frame rate of training.", json_schema_extra={"unit": "fps"}
    )
    first_frame_probability: float | None = Field(
        default=None, ge=0, le=1, description="How often the first frame is given clean; default: the run's setting."
    )
    video_loss_weight: float | None = Field(
        default=None, ge=0, description="Weight of the video loss for this dataset; default: the run's setting."
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


class DatasetSettings(SharedSettings):
    """One `[[datasets]]` entry: exactly one source of media, and what to do with it."""

    image_directory: Path | None = Field(default=None, description="Folder of images, each with its caption beside it.")
    image_jsonl_file: Path | None = Field(default=None, description="List of images: one {image_path, caption} a line.")
    video_directory: Path | None = Field(default=None, description="Folder of videos, each with its caption beside it.")
    video_jsonl_file: Path | None = Field(
        default=None,
        description="List of videos: one {video_path, caption} a line, and audio_path where sound is apart.",
    )
    audio_directory: Path | None = Field(default=None, description="Folder of sounds, each with its caption beside it.")
    audio_jsonl_file: Path | None = Field(default=None, description="List of sounds: one {audio_path, caption} a line.")
    dataset_file: Path | None = Field(
        default=None,
        description="List of media with named columns, as the official trainer's dataset.json: JSON, JSON lines or "
        "CSV. Columns: caption, video (or media_path, audio), and reference_video, reference_audio, video_mask, "
        "audio_mask where there are any.",
    )
    data_root: Path | None = Field(
        default=None,
        description="Folder with two text files, named by video_column and caption_column, that have the paths of the "
        "videos and their captions, one a line.",
        json_schema_extra={"advanced": True},
    )
    video_column: str | None = Field(
        default=None,
        description="Name of the column with the media. Default: video or media_path; of data_root: videos.txt.",
        json_schema_extra={"advanced": True},
    )
    caption_column: str | None = Field(
        default=None,
        description="Name of the column with the captions. Default: caption; of data_root: prompts.txt.",
        json_schema_extra={"advanced": True},
    )
    preprocessed_data_root: Path | None = Field(
        default=None,
        description="Folder that the official trainer has encoded (latents, conditions, ...); `ltx2-train cache "
        "import` reads it once into cache_directory.",
        json_schema_extra={"advanced": True},
    )
    cache_files: tuple[str, ...] | None = Field(
        default=None,
        description="With cache_only: names of the files with latents to train on. Default: all in the cache folder.",
        json_schema_extra={"advanced": True},
    )
    reference_directory: Path | None = Field(
        default=None,
        description="Folder of reference images or videos, one for each medium of the same name.",
        json_schema_extra={"advanced": True},
    )
    reference_audio_directory: Path | None = Field(
        default=None,
        description="Folder of reference sounds, one for each video or sound of the same name.",
        json_schema_extra={"advanced": True},
    )
    mask_directory: Path | None = Field(
        default=None,
        description="Folder of masks, images or videos of the same names: white is given, black is generated.",
        json_schema_extra={"advanced": True},
    )
    audio_mask_directory: Path | None = Field(
        default=None,
        description="Folder of masks for sound, of the same names: a sound file whose level is 1 where sound is given, "
        "or JSON with a list of [from, to] in seconds.",
        json_schema_extra={"advanced": True},
    )

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSettings:
        given = [key for key in SOURCE_KEYS if getattr(self, key) is not None]
        if self.cache_only and not given:
            return self
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "names no media"
            apart = {key.split("_")[0] for key in given} == {"video", "audio"}
            hint = '. For videos whose sound is in files of their own set audio_source = "audio_files"' if apart else ""
            raise ValueError(f"this dataset {what}; give exactly one of {', '.join(SOURCE_KEYS)}{hint}")
        return self

    @property
    def source_key(self) -> str:
        """The setting that names the media; of a dataset that has caches alone, that of their folder."""
        return next((key for key in SOURCE_KEYS if getattr(self, key) is not None), "cache_directory")

    @property
    def from_caches(self) -> bool:
        """Whether the dataset is what lies in its cache folder, and no medium is looked at."""
        return self.cache_only or self.preprocessed_data_root is not None

    @property
    def source(self) -> Path:
        """The folder or the JSONL file that the media come from."""
        return getattr(self, self.source_key)

    @property
    def kind(self) -> MediaKind:
        kind = self.source_key.split("_")[0]
        return "audio" if kind == "audio" else "image" if kind == "image" else "video"

    @property
    def noun(self) -> str:
        """What its media are called where a person reads it."""
        return "sound files" if self.kind == "audio" else f"{self.kind}s"

    @property
    def caches(self) -> Path:
        """The folder of the caches: `cache_directory`, or the media folder itself."""
        if self.cache_directory is None and self.preprocessed_data_root is not None:
            return self.source / IMPORTED_FOLDER
        return self.cache_directory if self.cache_directory is not None else self.source

    @property
    def reference_caches(self) -> Path:
        """The folder of the cached references."""
        return self.reference_cache_directory or self.caches / REFERENCE_FOLDER

    @property
    def reference_audio_caches(self) -> Path:
        """The folder of the cached reference sounds."""
        return self.reference_audio_cache_directory or self.caches / REFERENCE_AUDIO_FOLDER

    def cache_folders(self, needed: bool = True) -> dict[str, Path]:
        """The folders that its caches are written to, by the setting that names each.

        Without `needed` also those of references that it does not have (any more).
        """
        folders = {"cache_directory": self.caches}
        if self.reference_directory is not None or not needed:
            folders["reference_cache_directory"] = self.reference_caches
        if self.reference_audio_directory is not None or not needed:
            folders["reference_audio_cache_directory"] = self.reference_audio_caches
        return folders


@dataclass(frozen=True)
class DatasetRef:
    """A dataset of a file: its number among those of training or of validation, and what the file says of it."""

    validation: bool
    index: int
    entry: DatasetSettings = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """As it is written: "datasets[0]"."""
        return f"{'validation_datasets' if self.validation else 'datasets'}[{self.index}]"

    @property
    def prefix(self) -> str:
        """What the keys of its samples begin with: "train/0"."""
        return f"{'validation' if self.validation else 'train'}/{self.index}"
