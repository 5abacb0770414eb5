"""A run that has been there before: what was changed since then is told by name.

Where it has taken all its steps nothing of that has an effect: the run's record of itself keeps what its steps used,
and only where the base and the dataset file lie is written anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..config import RunConfig, load_run
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import FOLDER_KEYS, FOLDER_LIST_KEYS, SOURCE_KEYS
from ..errors import TrainerError
from ..toml import parse_toml, read_toml

# where files lie: none of it changes what a step does, and other commands read it from the run folder
PLACES = (
    "run.folder",
    "run.if_exists",
    "run.export_folder",  # the finished LoRA is put there as well
    "model.checkpoint",
    "model.text_encoder",
    "model.text_projection",
    "model.video_vae",
    "model.audio_vae",
    "data.config",
    "data.manifest",
)
DATASET = "dataset.toml"
_LENGTH = ("train.steps", "train.epochs")  # that it takes no step more is what is told
_MEDIA = (*FOLDER_KEYS, *FOLDER_LIST_KEYS, *SOURCE_KEYS)


def finished_record(folder: Path, config: RunConfig, written: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The texts that belong into the finished run's `folder`, of those that `config` and `written` (by file name) would
    be, and the names of the settings that differ from the recorded ones. What cannot be read is written anew."""
    texts, names = {"run.toml": config.to_toml(), **written}, list[str]()
    with suppress(TrainerError):
        then = load_run(folder / "run.toml")
        changed = _differences(then.model_dump(mode="json"), config.model_dump(mode="json"))
        names += [name for name in changed if name not in (*PLACES, *_LENGTH)]
        texts["run.toml"] = _with_places(then, config).to_toml()
    with suppress(TrainerError):
        recorded = read_toml(folder / DATASET)
        given = texts.pop(DATASET)  # what is recorded stays
        changed = _differences(_dataset(recorded), _dataset(parse_toml(given, DATASET)))
        names += [name for name in changed if name.rpartition(".")[2].partition("[")[0] not in _MEDIA]
    return texts, names


def used_settings(folder: Path, config: RunConfig) -> RunConfig:
    """What the steps of the finished run in `folder` used, with the places and the memory of `config`: a LoRA that is
    written anew says what it was trained with. `config` itself where that cannot be read."""
    with suppress(TrainerError):
        then = _with_places(load_run(folder / "run.toml"), config)
        model = then.model.model_copy(update={"device": config.model.device})
        return then.model_copy(update={"run": config.run, "memory": config.memory, "model": model})
    return config


def _with_places(then: RunConfig, now: RunConfig) -> RunConfig:
    """`then` with the places of files as `now` has them."""
    for dotted in PLACES:
        group, key = dotted.split(".")
        moved = getattr(then, group).model_copy(update={key: getattr(getattr(now, group), key)})
        then = then.model_copy(update={group: moved})
    return then


def _dataset(table: dict[str, Any]) -> dict[str, Any]:
    return DatasetConfig.from_table(table, Path(), foreign=True).model_dump(mode="json", exclude={"general"})


def _differences(then: Any, now: Any, name: str = "") -> Iterator[str]:
    """The dotted names of the values that differ."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *then]):
            yield from _differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif _tables(then) and _tables(now) and len(then) == len(now):
        for index, pair in enumerate(zip(then, now, strict=True)):
            yield from _differences(*pair, f"{name}[{index}]")
    elif then != now:
        yield name


def _tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
