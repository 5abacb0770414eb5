"""The dataset file: `[general]`, `[[datasets]]`, `[[validation_datasets]]`.

Keys and their meaning are those of the community trainer's dataset TOML, so its files can be brought along; whole
numbers are accepted wherever a float is meant. A value in a dataset wins over the one in `[general]`, which wins over
the default. Paths are relative to the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..errors import ConfigError, DataError
from ..settings import Settings, parse
from ..shapes import SPATIAL_FACTOR
from .buckets import parse_bucket
from .sound_settings import SoundSettings

SOURCE_KEYS = (
    "image_directory",
    "image_jsonl_file",
    "video_directory",
    "video_jsonl_file",
    "audio_directory",
    "audio_jsonl_file",
)
FOLDER_KEYS = (
    "cache_directory",
    "audio_files_directory",
    "reference_audio_directory",
    "reference_audio_cache_directory",
)
REFERENCE_AUDIO_FOLDER = "reference_audio"
MediaKind = Literal["image", "video", "audio"]


class SharedSettings(SoundSettings):
    """What `[general]` and every dataset may say."""

    caption_extension: str = Field(".txt", description="Ending of the caption file beside each medium.")
    trigger_word: str = Field("", description="Word put before each caption that does not contain it.")
    batch_size: int = Field(1, ge=1, description="Samples in one batch; all of one size.")
    num_repeats: int = Field(1, ge=1, description="How often each sample is seen in an epoch.")
    resolution: tuple[int, int] = Field(
        (960, 544),
        description="Width and height, or one number for a square. With buckets it is the area that counts.",
        json_schema_extra={"unit": "pixels"},
    )
    enable_bucket: bool = Field(
        False, description="Keep each medium's shape: choose among sizes of the same area instead of cropping to one."
    )
    bucket_no_upscale: bool = Field(
        False, description="With buckets: media smaller than the resolution keep their own size."
    )
    resolution_buckets: tuple[str, ...] = Field(
        (),
        description='Sizes as "WIDTHxHEIGHTxFRAMES", for example ["768x512x49", "512x512x97"]: each clip takes the '
        "longest that it fills, then the nearest shape. They replace resolution, enable_bucket and target_frames.",
        json_schema_extra={"advanced": True},
    )
    cache_directory: Path | None = Field(
        None, description="Folder for cached latents and text; one for each dataset. Default: the media folder."
    )
    recursive: bool = Field(False, description="Also take media from sub-folders.")
    target_frames: tuple[int, ...] = Field(
        (1,), description="Clip lengths to cut, each 8n+1.", json_schema_extra={"unit": "frames"}
    )
    frame_extraction: Literal["head", "chunk", "slide", "uniform", "full"] = Field(
        "head",
        description="Which windows are cut: the start, all in a row, every frame_stride frames, frame_sample evenly "
        "spread ones, or the whole clip up to max_frames.",
    )
    frame_stride: int = Field(
        1, ge=1, description="Step of `slide`.", json_schema_extra={"unit": "frames", "advanced": True}
    )
    frame_sample: int = Field(
        1, ge=1, description="Number of windows of `uniform`.", json_schema_extra={"advanced": True}
    )
    max_frames: int = Field(129, ge=1, description="Longest window of `full`.", json_schema_extra={"unit": "frames"})
    frame_interval: int = Field(
        1,
        ge=1,
        description="`full`: lengths are rounded down to a multiple of this (plus one), so that clips share lengths.",
        json_schema_extra={"unit": "frames", "advanced": True},
    )
    min_frames: int = Field(
        1,
        ge=1,
        description="Clips with fewer frames (at the target rate) are left out.",
        json_schema_extra={"unit": "frames", "advanced": True},
    )
    min_seconds: float | None = Field(
        None,
        ge=0,
        description="Shorter videos and recordings are left out. Default: no limit.",
        json_schema_extra={"unit": "s", "advanced": True},
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="Longer videos, and recordings that are not cut, are left out. Default: no limit.",
        json_schema_extra={"unit": "s", "advanced": True},
    )
    pad_short: Literal["skip", "pad"] = Field(
        "skip",
        description="A clip at most 8 frames too short for every target: left out, or its last frame repeated.",
        json_schema_extra={"advanced": True},
    )
    source_fps: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Frame rate of the sources, where the files say a wrong one. Default: detected in each file.",
        json_schema_extra={"unit": "fps", "advanced": True},
    )
    target_fps: float = Field(
        25.0, gt=0, le=240, description="Frame rate of training.", json_schema_extra={"unit": "fps"}
    )
    first_frame_probability: float | None = Field(
        None, ge=0, le=1, description="How often the first frame is given clean; default: the run's setting."
    )
    video_loss_weight: float | None = Field(
        None, ge=0, description="Weight of the video loss for this dataset; default: the run's setting."
    )

    @field_validator("caption_extension", "audio_extension")
    @classmethod
    def _with_dot(cls, value: str) -> str:
        value = value.strip()
        if not value:
            raise ValueError("must name an ending such as '.txt' or '.wav'")
        return value if value.startswith(".") else "." + value

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

    image_directory: Path | None = Field(None, description="Folder of images, each with its caption beside it.")
    image_jsonl_file: Path | None = Field(None, description="List of images: one {image_path, caption} a line.")
    video_directory: Path | None = Field(None, description="Folder of videos, each with its caption beside it.")
    video_jsonl_file: Path | None = Field(
        None, description="List of videos: one {video_path, caption} a line, and audio_path where sound is apart."
    )
    audio_directory: Path | None = Field(None, description="Folder of sounds, each with its caption beside it.")
    audio_jsonl_file: Path | None = Field(None, description="List of sounds: one {audio_path, caption} a line.")
    reference_audio_directory: Path | None = Field(
        None,
        description="Folder of reference sounds, one for each video or sound of the same name.",
        json_schema_extra={"advanced": True},
    )

    @model_validator(mode="after")
    def _one_source(self) -> DatasetSettings:
        given = [key for key in SOURCE_KEYS if getattr(self, key) is not None]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "names no media"
            apart = {key.split("_")[0] for key in given} == {"video", "audio"}
            hint = '. For videos whose sound is in files of their own set audio_source = "audio_files"' if apart else ""
            raise ValueError(f"this dataset {what}; give exactly one of {', '.join(SOURCE_KEYS)}{hint}")
        return self

    @property
    def source_key(self) -> str:
        return next(key for key in SOURCE_KEYS if getattr(self, key) is not None)

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
        return self.cache_directory if self.cache_directory is not None else self.source

    @property
    def reference_audio_caches(self) -> Path:
        """The folder of the cached reference sounds."""
        return self.reference_audio_cache_directory or self.caches / REFERENCE_AUDIO_FOLDER


class DatasetConfig(Settings):
    """A whole dataset file. After validation each dataset holds its final values; `general` stays for the record."""

    general: SharedSettings = Field(default_factory=SharedSettings, description="Values for every dataset.")
    datasets: tuple[DatasetSettings, ...] = Field((), description="What is trained on.")
    validation_datasets: tuple[DatasetSettings, ...] = Field((), description="What the validation loss is measured on.")

    @field_validator("datasets", "validation_datasets")
    @classmethod
    def _precedence(cls, value: tuple[DatasetSettings, ...], info: ValidationInfo) -> tuple[DatasetSettings, ...]:
        general = info.data.get("general")
        if general is None:
            return value
        merged = []
        for dataset in value:
            inherited = general.model_fields_set - dataset.model_fields_set
            merged.append(dataset.model_copy(update={key: getattr(general, key) for key in inherited}))
        return tuple(merged)

    @model_validator(mode="after")
    def _together(self) -> DatasetConfig:
        if not self.datasets:
            raise ValueError("no [[datasets]]: name at least one folder or list of media to train on")
        owners: dict[Path, str] = {}
        for name, dataset in self.named():
            if not dataset.enable_bucket and any(side % SPATIAL_FACTOR for side in dataset.resolution):
                w, h = dataset.resolution
                near = [max(SPATIAL_FACTOR, round(side / SPATIAL_FACTOR) * SPATIAL_FACTOR) for side in (w, h)]
                raise ValueError(
                    f"{name}.resolution: {w}x{h} is not a multiple of {SPATIAL_FACTOR} in both directions. "
                    f"Use [{near[0]}, {near[1]}], or set enable_bucket = true"
                )
            if dataset.cache_directory is None and dataset.source_key.endswith("jsonl_file"):
                raise ValueError(f"{name}.cache_directory: needs a folder, since the media come from a list")
            folders = {"cache_directory": dataset.caches}
            if dataset.reference_audio_directory is not None:
                folders["reference_audio_cache_directory"] = dataset.reference_audio_caches
            for key, path in folders.items():
                folder = path.expanduser().absolute()
                if folder in owners:
                    raise ValueError(
                        f"{name} and {owners[folder]} share the cache folder {path}. "
                        f"Give each dataset a {key} of its own"
                    )
                owners[folder] = name
        return self

    def named(self) -> list[tuple[str, DatasetSettings]]:
        """All datasets with their dotted names, those for training first."""
        return [(f"datasets[{i}]", entry) for i, entry in enumerate(self.datasets)] + [
            (f"validation_datasets[{i}]", entry) for i, entry in enumerate(self.validation_datasets)
        ]

    @classmethod
    def read(cls, path: Path | str) -> DatasetConfig:
        """Read a TOML (or JSON) dataset file; paths in it are relative to its folder.

        Raises DataError where the file is missing or not TOML, ConfigError where a setting is wrong.
        """
        path = Path(path)
        return cls.from_table(_load(path), path.absolute().parent, source=str(path))

    @classmethod
    def from_table(cls, table: dict[str, Any], folder: Path, source: str = "dataset") -> DatasetConfig:
        """Validate a table whose relative paths start at `folder`. Raises ConfigError that speaks of `source`."""
        config = parse(cls, table, source)
        parts = {
            key: tuple(_absolute(entry, folder) for entry in getattr(config, key))
            for key in ("datasets", "validation_datasets")
        }
        return config.model_copy(update={"general": _absolute(config.general, folder), **parts})

    def to_toml(self) -> str:
        """The file's text with every value spelt out in each dataset, and absolute paths."""
        import tomli_w

        table: dict[str, Any] = {"general": {}}
        for key in ("datasets", "validation_datasets"):
            entries = [entry.model_dump(mode="json", exclude_none=True) for entry in getattr(self, key)]
            if entries:
                table[key] = entries
        return tomli_w.dumps(table)


def _absolute(settings: Any, folder: Path) -> Any:
    update = {}
    for key in (*FOLDER_KEYS, *SOURCE_KEYS):
        value = getattr(settings, key, None)
        if value is not None:
            update[key] = folder / value.expanduser()
    # A copy must not count the paths of `general` as set in a dataset, hence only what was there is updated.
    return settings.model_copy(update=update) if update else settings


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"The dataset file {path} does not exist. Check the path.", path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The dataset file {path} cannot be read: {error}.", path) from error
    try:
        if path.suffix.lower() == ".json":
            table = json.loads(text)
        elif sys.version_info >= (3, 11):
            import tomllib

            table = tomllib.loads(text)
        else:
            import tomli

            table = tomli.loads(text)
    except ValueError as error:
        hint = r" In TOML a backslash needs 'single quotes': 'C:\clips'." if "\\" in text else ""
        raise ConfigError(f"{path}: not valid {path.suffix.lstrip('.').upper() or 'TOML'}: {error}.{hint}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected a table with [[datasets]], got {type(table).__name__}.")
    return table
