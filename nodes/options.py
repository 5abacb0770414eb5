"""What an `options` socket brings: settings of a group, from option nodes that are chained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..ltx2_train import DatasetSettings, RunConfig
from ..ltx2_train.errors import ConfigError
from . import handles
from .fields import field_at
from .widgets import Form, merged


@dataclass(frozen=True)
class OptionGroup:
    """One option node: which tables of `kind` it shows ("" is all of it), and the titles of the nodes it goes into."""

    name: str
    into: tuple[str, ...]
    tables: tuple[str, ...]
    says: str
    kind: type[BaseModel] = RunConfig

    @property
    def title(self) -> str:
        return f"{self.name} Options"

    @property
    def node_id(self) -> str:
        return f"LTX2T_{self.name.replace(' ', '')}Options"


BASE, PREPARE, TRAIN = ("Load LTX-2 Base Model",), ("Prepare Dataset", "Dataset from File"), ("Train LoRA",)
TRAINING = (*TRAIN, "Train Slider")
CLIPS = ("Load Training Clips",)
GROUPS = (
    OptionGroup("Quantization", BASE, ("quant",), "How the base is stored in few bits, and how that is made exact."),
    OptionGroup("Text Encoder", BASE, ("gemma",), "How the text encoder is stored and run."),
    OptionGroup("Dataset", CLIPS, ("",), "How clips are cropped, varied, captioned and weighed.", DatasetSettings),
    OptionGroup("Caching", PREPARE, ("cache",), "How clips and captions are encoded, and what else is."),
    OptionGroup("LoRA", TRAINING, ("lora",), "Which linears get a LoRA, and how it begins."),
    OptionGroup(
        "Full Finetuning", TRAIN, ("full",), "Which weights are trained, where `what` of Training Options is full."
    ),
    OptionGroup("Objective", TRAINING, ("objective",), "Which noise levels are trained, and how often."),
    OptionGroup("Loss", TRAINING, ("loss",), "How the error is measured, and how picture and sound are balanced."),
    OptionGroup("Audio", TRAIN, ("audio",), "How sound is trained beside the picture."),
    OptionGroup("Schedule", TRAINING, ("schedule",), "How the learning rate changes over the run."),
    OptionGroup(
        "Training",
        TRAINING,
        ("train", "data", "log", "wandb", "hub"),
        "Epochs, saves, what happens when numbers break, and logs elsewhere.",
    ),
    OptionGroup("Memory", TRAINING, ("memory",), "What is traded for memory, in detail."),
    OptionGroup("Samples", TRAINING, ("sample",), "Samples during the run, in detail."),
)

GOES_INTO: dict[str, tuple[str, ...]] = {group.title: group.into for group in GROUPS}
"""Title of each node with an output `options` -> titles of the nodes that take it; those with a choice add theirs."""

SHARED: set[str] = set()
"""Settings of Options nodes that the nodes they go into show as well: there they count where they were touched."""

FORMS: dict[str, Form] = {}
"""Node id of an option node -> the settings it shows; filled as the nodes are made."""

READERS: dict[str, Callable[[Mapping[str, Any]], handles.GivenOptions]] = {}
"""Node id -> what it gives for the widgets in a prompt; filled as the nodes are made."""


def socket() -> Any:
    """The input that takes option nodes."""
    return handles.Options.Input(
        "options", optional=True, tooltip="Further settings, from the Options nodes; several are chained."
    )


def samples_socket() -> Any:
    """The input of a node that draws: Samples Recipe alone goes into it."""
    return handles.Options.Input("options", optional=True, tooltip="Samples Recipe: fast or faithful samples.")


def given(options: handles.GivenOptions | None, title: str, said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tables of settings that `options` bring to the node `title`.

    `said` are the tables of its own widgets. Raises ConfigError where a group of them belongs to another node, or
    a setting has another value on either side.
    """
    if options is None:
        return {}
    for group in options.groups:
        if title not in (into := GOES_INTO[group]):
            raise ConfigError(f"{group} is connected to {title}, but goes into `options` of {into[0]}.")
    refuse_twice(options, dict(_touched(said or {})), title)
    return merged(options.tables)


def refuse_twice(options: handles.GivenOptions, other: Mapping[str, Any], title: str) -> None:
    """Raise ConfigError where `other`, of the node `title`, sets what `options` set to something else."""
    chosen = dict(values_in(options.tables))
    for path, value in values_in(other):
        if path in chosen and chosen[path] != value:
            group = _sayers(options)[path]
            raise ConfigError(
                f"{path} is set twice: to {value} in {title}, and to {chosen[path]} by {group}. Give both the "
                f"same value, or take {group} off."
            )


def require_recipe_mode(options: handles.GivenOptions | None, mode: str) -> None:
    """Raise ConfigError where a recipe is for a base that is set to another mode."""
    for name, modes in (options.modes if options is not None else {}).items():
        if mode not in modes:
            raise ConfigError(
                f"{name} is for mode {' or '.join(modes)}, and the base is set to {mode}. Set `mode` of Load LTX-2 "
                f"Base Model to {modes[0]}, or choose another recipe."
            )


def chained(before: handles.GivenOptions | None, more: handles.GivenOptions) -> handles.GivenOptions:
    """`before` with what further nodes give. Raises ConfigError where one of them is in the chain already, or a
    setting is in it with another value."""
    if before is None:
        return more
    for group in more.groups:
        if group in before.groups:
            raise ConfigError(f"{group} is in the chain twice. Set everything in one of them, and leave one out.")
    refuse_twice(before, more.tables, " or ".join(more.groups))
    return handles.GivenOptions(
        (*before.groups, *more.groups),
        merged(before.tables, more.tables),
        {**before.modes, **more.modes},
        {**_sayers(before), **_sayers(more)},
    )


def in_prompt(prompt: Mapping[str, Any], link: Any) -> handles.GivenOptions | None:
    """What the option nodes behind `link` of a prompt will give; None where a value is not known yet.

    Raises ConfigError, as they would.
    """
    links, found = link, None
    while isinstance(links, list):
        node = prompt.get(str(links[0]), {})
        read, values = READERS.get(node.get("class_type", "")), dict(node.get("inputs", {}))
        links = values.pop("options", None)
        if read is None or any(isinstance(value, list) for value in values.values()):
            return None
        one = read(values)
        found = one if found is None else chained(one, found)
    return found or handles.GivenOptions((), {})


def _sayers(options: handles.GivenOptions) -> dict[str, str]:
    """Setting -> the node that says it."""
    return {path: options.by.get(path, options.groups[0]) for path, _ in values_in(options.tables)}


def _touched(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The leaves of `tables` but for those that an Options node may say as well and that hold their defaults."""
    for path, value in values_in(tables):
        if path not in SHARED or value != field_at(RunConfig, path).default:
            yield path, value


def values_in(tables: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of each setting in nested tables."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from values_in(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
