"""One entry of a dataset file: every setting of `[[datasets]]`, most of which `[general]` may give as well."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from ..media.info import MediaKind
from .shared_settings import SharedSettings

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
FOLDER_LIST_KEYS = ("more_reference_directories", "more_reference_audio_directories")
REFERENCE_FOLDER = "reference"
IMPORTED_FOLDER = "ltx2_caches"
PRECOMPUTED = ".precomputed"  # in which the official trainer lays it, beside the media
REFERENCE_AUDIO_FOLDER = "reference_audio"


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
        json_schema_extra={"counts_with": ".from_a_list -- with a list of media", "advanced": True},
    )
    caption_column: str | None = Field(
        default=None,
        description="Name of the column with the captions. Default: caption; of data_root: prompts.txt.",
        json_schema_extra={"counts_with": ".from_a_list -- with a list of media", "advanced": True},
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
        json_schema_extra={"counts_with": ".kind = image | video -- for images and videos", "advanced": True},
    )
    more_reference_directories: tuple[Path, ...] = Field(
        default=(),
        description="Folders of a second, third ... reference of each medium. Each has a condition of its own, in this "
        "order.",
        json_schema_extra={"counts_with": ".kind = image | video -- for images and videos", "advanced": True},
    )
    reference_audio_directory: Path | None = Field(
        default=None,
        description="Folder of reference sounds, one for each video or sound of the same name.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "advanced": True,
        },
    )
    more_reference_audio_directories: tuple[Path, ...] = Field(
        default=(),
        description="Folders of a second, third ... reference sound of each medium. Each has a condition of its own, "
        "in this order.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "advanced": True,
        },
    )
    mask_directory: Path | None = Field(
        default=None,
        description="Folder of masks, images or videos of the same names: white is given, black is generated.",
        json_schema_extra={"counts_with": ".kind = image | video -- for images and videos", "advanced": True},
    )
    audio_mask_directory: Path | None = Field(
        default=None,
        description="Folder of masks for sound, of the same names: a sound file whose level is 1 where sound is given, "
        "or JSON with a list of [from, to] in seconds.",
        json_schema_extra={
            "counts_with": ".may_have_sound -- for recordings, and for videos whose audio_source is not none",
            "advanced": True,
        },
    )

    @field_validator("cache_files")
    @classmethod
    def _each_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if twice := [name for name, number in Counter(value or ()).items() if number > 1]:
            raise ValueError(f"names {twice[0]} twice; num_repeats repeats a dataset")
        return value

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

    @model_validator(mode="after")
    def _first_before_more(self) -> DatasetSettings:
        firsts = {"more_reference_directories": "reference_directory"}
        firsts["more_reference_audio_directories"] = "reference_audio_directory"
        for more, first in firsts.items():
            if getattr(self, more) and getattr(self, first) is None:
                raise ValueError(f"{more} names further folders, and {first} is not set. Name the first one there")
        folders, frames = self.more_reference_directories, self.more_reference_frames
        if folders and frames and len(folders) != len(frames):
            raise ValueError(
                f"more_reference_frames has {len(frames)} numbers, and more_reference_directories {len(folders)} "
                "folders. Give one number for each folder"
            )
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
    def from_a_list(self) -> bool:
        """Whether a file lists the media, with what belongs to each."""
        return self.source_key in (*LIST_KEYS, "data_root")

    @property
    def listed_sizes(self) -> bool:
        """Whether all media have one of the listed sizes."""
        return bool(self.resolution_buckets) and self.kind != "audio"

    @property
    def may_have_recordings(self) -> bool:
        """Whether there may be sounds without a picture."""
        return self.kind == "audio" or self.source_key == "dataset_file"

    @property
    def sound_inside(self) -> bool:
        """Whether sound may come from the media themselves."""
        return self.may_have_recordings or (self.kind == "video" and self.audio_source == "video")

    @property
    def may_have_sound(self) -> bool:
        """Whether there may be any sound."""
        return self.may_have_recordings or (self.kind == "video" and self.audio_source != "none")

    @property
    def may_have_references(self) -> bool:
        """Whether media may have references."""
        return self.kind != "audio" and (self.from_a_list or self.reference_directory is not None)

    @property
    def may_have_more_references(self) -> bool:
        """Whether media may have several references."""
        return self.kind != "audio" and (self.from_a_list or bool(self.more_reference_directories))

    @property
    def reference_directories(self) -> tuple[Path, ...]:
        """The folders of all references of a medium, in the order of their conditions."""
        first = self.reference_directory
        return () if first is None else (first, *self.more_reference_directories)

    @property
    def reference_audio_directories(self) -> tuple[Path, ...]:
        """The folders of all reference sounds of a medium, in the order of their conditions."""
        first = self.reference_audio_directory
        return () if first is None else (first, *self.more_reference_audio_directories)

    @property
    def may_have_voices(self) -> bool:
        """Whether media may have reference sounds."""
        return self.may_have_sound and (self.from_a_list or self.reference_audio_directory is not None)

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

    def reference_caches(self, number: int = 0) -> Path:
        """The folder of the cached references `number`, counted from 0."""
        return numbered_folder(self.reference_cache_directory or self.caches / REFERENCE_FOLDER, number)

    def reference_audio_caches(self, number: int = 0) -> Path:
        """The folder of the cached reference sounds `number`, counted from 0."""
        return numbered_folder(self.reference_audio_cache_directory or self.caches / REFERENCE_AUDIO_FOLDER, number)

    def cache_folders(self, needed: bool = True) -> list[tuple[str, Path]]:
        """The folders that its caches are written to, each with the setting that names it.

        Without `needed` also those of references that it does not have (any more).
        """
        folders = [("cache_directory", self.caches)]
        for key, first, count in (
            ("reference_cache_directory", self.reference_caches(), len(self.reference_directories)),
            ("reference_audio_cache_directory", self.reference_audio_caches(), len(self.reference_audio_directories)),
        ):
            wanted = [numbered_folder(first, number) for number in range(count)]
            folders += [(key, folder) for folder in (wanted if needed else {*wanted, *numbered_caches(first)})]
        return folders


def numbered_folder(folder: Path, number: int) -> Path:
    """The cache folder of references `number`, beside `folder` of the first ones: "reference", "reference_2" ..."""
    return folder if number == 0 else folder.with_name(f"{folder.name}_{number + 1}")


def numbered_caches(folder: Path) -> list[Path]:
    """Those of them that are there: `folder`, and behind it as many as follow without a gap."""
    found = [folder]
    while (more := numbered_folder(folder, len(found))).is_dir():
        found.append(more)
    return found


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

    def shares_folder(self, other: DatasetRef) -> bool:
        """Whether `other` takes media of another kind from the same folder, and as many of them may be left out: to
        people that is one dataset."""
        one, two = self.entry, other.entry
        if one.max_left_out != two.max_left_out:
            return False
        folders = one.source_key.endswith("_directory") and two.source_key.endswith("_directory")
        return folders and self.validation == other.validation and one.kind != two.kind and one.source == two.source

    @property
    def prefix(self) -> str:
        """What the keys of its samples begin with: "train/0"."""
        return f"{'validation' if self.validation else 'train'}/{self.index}"
