"""The dataset file: `[general]`, `[[datasets]]`, `[[validation_datasets]]`.

Keys and their meaning are those of the community trainer's dataset TOML, so its files can be brought along; whole
numbers are accepted wherever a float is meant. A value in a dataset wins over the one in `[general]`, which wins over
the default. Paths are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from ..errors import ConfigError, DataError
from ..files import parse_json
from ..media.buckets import parse_bucket
from ..paths import from_folder, is_record
from ..settings import Settings, parse, refusal_text
from ..shapes import SPATIAL_FACTOR
from ..text_files import read_text
from ..toml import read_toml
from .entry import (
    FOLDER_KEYS,
    FOLDER_LIST_KEYS,
    LIST_KEYS,
    PRECOMPUTED,
    SOURCE_KEYS,
    DatasetRef,
    DatasetSettings,
    SharedSettings,
)
from .entry_types import wrong_types
from .foreign_keys import translate
from .idle_entries import idle_entries, idle_of, settled
from .manifest import dataset_table, is_manifest
from .notes import DataNote
from .simpletuner import is_backends, read_backends

__all__ = ["DatasetConfig", "DatasetRef", "DatasetSettings", "SharedSettings"]


class DatasetConfig(Settings):
    """A whole dataset file. After validation each dataset holds its final values; `general` stays for the record.

    `notes` are sentences on keys that were read otherwise than written, or that have no effect ("idle").
    """

    _notes: tuple[DataNote, ...] = PrivateAttr(())

    general: SharedSettings = Field(default_factory=SharedSettings, description="Values for every dataset.")
    datasets: tuple[DatasetSettings, ...] = Field(default=(), description="What is trained on.")
    validation_datasets: tuple[DatasetSettings, ...] = Field(
        default=(), description="What the validation loss is measured on."
    )

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
        for ref in self.refs:
            name, dataset = ref.name, ref.entry
            if not dataset.from_caches:
                _check_size(name, dataset)
            if dataset.cache_directory is None and dataset.source_key in (*LIST_KEYS, "cache_directory"):
                why = "the media come from a list" if dataset.source_key in LIST_KEYS else "it has nothing else"
                raise ValueError(f"{name}.cache_directory: needs a folder, since {why}")
            if dataset.cache_files is not None and not dataset.from_caches:
                raise ValueError(f"{name}.cache_files: counts only with cache_only = true; set that, or leave it out")
        if shared := _shared_folder(self.refs):
            raise ValueError(shared)
        return self

    @property
    def notes(self) -> tuple[DataNote, ...]:
        return self._notes

    @property
    def refs(self) -> list[DatasetRef]:
        """All datasets, those for training first."""
        lists = ((False, self.datasets), (True, self.validation_datasets))
        return [DatasetRef(held, index, entry) for held, entries in lists for index, entry in enumerate(entries)]

    @classmethod
    def read(cls, path: Path | str, foreign: bool = False) -> DatasetConfig:
        """Read a TOML (or JSON) dataset file, or a manifest; paths in it are relative to its folder.

        One of another program, which is `foreign` or has names of its own, may carry settings without effect: they
        are noted. So is what stands in the record of a run.

        Raises DataError where the file is missing or not TOML, ConfigError where a setting is wrong.
        """
        path = Path(path)
        table, notes = load_table(path), list[DataNote]()
        if is_backends(table):
            found = read_backends(table, folder=path.absolute().parent)
            if found.problems:
                raise ConfigError(refusal_text(str(path), found.problems))
            table, notes = without_idle(found.table)
            notes = [*(DataNote("idle", note) for note in found.notes), *notes]
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: expected a table with [[datasets]], got {type(table).__name__}.")
        folder = path.absolute() if path.is_dir() else path.absolute().parent
        config = cls.from_table(table, folder, source=str(path), foreign=foreign or is_record(path))
        config._notes = (*notes, *config._notes)
        return config

    @classmethod
    def from_table(
        cls,
        table: dict[str, Any],
        folder: Path,
        source: str = "dataset",
        alike: bool = False,
        quiet: Collection[str] = (),
        foreign: bool = False,
    ) -> DatasetConfig:
        """Validate a table whose relative paths start at `folder`. Raises ConfigError that speaks of `source`.

        `alike` and `quiet`: see idle_entries; `foreign`: see read.
        """
        notes: list[DataNote] = []
        given = table
        if is_manifest(table):
            table, notes = dataset_table(table, source)
        table, more, problems = translate(table)
        if (foreign or more) and not problems:
            table, idle = without_idle(table)
            more += idle
        config = parse(cls, table, source, [*problems, *wrong_types(table)])
        shared = {name: getattr(config.general, name) for name in config.general.model_fields_set}
        unused, said = idle_entries(config.refs, shared, alike, quiet)
        if unused:
            raise ConfigError(refusal_text(source, unused))
        if not (foreign or is_manifest(given)):
            said += settled(config.refs, shared)
        config._notes = (*notes, *more, *said)
        parts = {
            key: tuple(_absolute(entry, folder) for entry in getattr(config, key))
            for key in ("datasets", "validation_datasets")
        }
        found = config.model_copy(update={"general": _absolute(config.general, folder), **parts})
        if shared_folder := _shared_folder(found.refs):
            raise ConfigError(refusal_text(source, [f"{shared_folder}."]))
        return found

    def to_toml(self) -> str:
        """The file's text with every value that counts spelt out in each dataset, and absolute paths."""
        import tomli_w

        table: dict[str, Any] = {"general": {}}
        for key in ("datasets", "validation_datasets"):
            entries = [
                entry.model_dump(mode="json", exclude_none=True, exclude=_unspoken(entry))
                for entry in getattr(self, key)
            ]
            if entries:
                table[key] = entries
        return tomli_w.dumps(table)


def without_idle(table: Mapping[str, Any]) -> tuple[dict[str, Any], list[DataNote]]:
    """The table of a dataset file in our words without settings that have no effect, and a note on each.

    For files of other programs, which carry settings of ways that they do not go. What is wrong otherwise stays.
    """
    out, notes = dict(table), list[DataNote]()
    try:
        config = DatasetConfig.model_validate(table)
    except ValidationError:
        return out, notes
    for ref in config.refs:
        key = ref.name.partition("[")[0]
        own = dict(out[key][ref.index])
        for one in idle_of(ref.entry):
            if own.pop(one.setting, None) is not None:
                notes.append(DataNote("idle", f"{ref.name}.{one.setting} has no effect: {one.reason}."))
        out[key] = [own if index == ref.index else entry for index, entry in enumerate(out[key])]
    return out, notes


def _unspoken(entry: DatasetSettings) -> set[str]:
    """The settings that a written dataset leaves out: those without effect, and one that means more when it is said."""
    left_open = {"audio_extension"} - entry.model_fields_set  # any ending does
    return {one.setting for one in idle_of(entry)} | left_open


def _shared_folder(refs: Sequence[DatasetRef]) -> str:
    """A sentence about two datasets whose caches lie in one folder, also by another spelling or a link; else ""."""
    owners: dict[str, str] = {}
    for ref in refs:
        for key, path in ref.entry.cache_folders():
            folder = os.path.realpath(path.expanduser())
            if folder in owners:
                owner = owners[folder]
                return f"{ref.name} and {owner} share the cache folder {path}. Give each dataset a {key} of its own"
            owners[folder] = ref.name
    return ""


def _check_size(name: str, dataset: DatasetSettings) -> None:
    """Raise ValueError where the one size of a dataset is none that the VAE, or a smaller reference, can have."""
    factor = SPATIAL_FACTOR * (dataset.reference_downscale if dataset.reference_directory is not None else 1)
    for text in dataset.resolution_buckets:
        if any(side % factor for side in parse_bucket(text)[:2]):
            raise ValueError(
                f"{name}.resolution_buckets: {text} has a side that is not a multiple of {factor} "
                f"(32 x reference_downscale {dataset.reference_downscale})"
            )
    if dataset.enable_bucket or not any(side % factor for side in dataset.resolution):
        return
    w, h = dataset.resolution
    near = [max(factor, round(side / factor) * factor) for side in (w, h)]
    smaller = f" (32 x reference_downscale {dataset.reference_downscale})" if factor != SPATIAL_FACTOR else ""
    raise ValueError(
        f"{name}.resolution: {w}x{h} is not a multiple of {factor}{smaller} in both directions. "
        f"Use [{near[0]}, {near[1]}], or set enable_bucket = true"
    )


def _absolute(settings: Any, folder: Path) -> Any:
    update = {}
    for key in (*FOLDER_KEYS, *SOURCE_KEYS):
        value = getattr(settings, key, None)
        if value is not None:
            update[key] = from_folder(folder, value)
    for key in FOLDER_LIST_KEYS:
        if places := getattr(settings, key, ()):
            update[key] = tuple(from_folder(folder, place) for place in places)
    # A copy must not count the paths of `general` as set in a dataset, hence only what was there is updated.
    return settings.model_copy(update=update) if update else settings


def load_table(path: Path) -> Any:
    """What a dataset file holds, as it is. Raises DataError where it cannot be read, ConfigError where it is broken."""
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() != ".json":
        if not path.exists():
            raise DataError(f"The dataset file {path} does not exist. Check the path.", path)
        return read_toml(path)
    try:
        return parse_json(read_text(path))
    except FileNotFoundError:
        raise DataError(f"The dataset file {path} does not exist. Check the path.", path) from None
    except UnicodeError as error:
        raise ConfigError(f"{path} {error}") from error
    except OSError as error:
        raise DataError(f"The dataset file {path} cannot be read: {error.strerror or error}.", path) from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}.") from error


def _folder(path: Path) -> dict[str, Any]:
    """A folder instead of a dataset file: what the official trainer has encoded."""
    if any((path / inner / name).is_dir() for inner in ("", PRECOMPUTED) for name in ("latents", "audio_latents")):
        return {"datasets": [{"preprocessed_data_root": "."}]}
    raise ConfigError(
        f"{path} is a folder, not a dataset file. `ltx2-train import {path}` writes one for a folder of media."
    )
