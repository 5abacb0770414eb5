"""What an `options` socket brings: settings of a group, from option nodes that are chained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..ltx2_train import DatasetSettings, RunConfig
from ..ltx2_train.errors import ConfigError
from . import handles
from .widgets import Form, merged


@dataclass(frozen=True)
class OptionGroup:
    """One option node: which tables of `kind` it shows ("" is all of it) but for `but`, and the titles of the nodes it
    goes into."""

    name: str
    into: tuple[str, ...]
    tables: tuple[str, ...]
    says: str
    kind: type[BaseModel] = RunConfig
    but: tuple[str, ...] = ()

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
    OptionGroup(
        "Optimizer", TRAINING, ("optimizer", "ema"), "The numbers of the optimizer, and a running mean of the LoRA."
    ),
    OptionGroup("Schedule", TRAINING, ("schedule",), "How the learning rate changes over the run."),
    OptionGroup(
        "Training",
        TRAINING,
        ("train", "data", "log", "wandb", "hub"),
        "Epochs, saves, what happens when numbers break, and logs elsewhere.",
    ),
    OptionGroup("Memory", TRAINING, ("memory",), "What is traded for memory, in detail."),
    OptionGroup(
        "Regularizers",
        TRAIN,
        ("regularizers",),
        "What the LoRA is held to, or helped by, besides the error on its clips. Each is off at weight 0.",
        but=("regularizers.self_flow",),
    ),
    OptionGroup(
        "Self Flow",
        TRAIN,
        ("regularizers.self_flow",),
        "A block learns from a deeper block of a teacher that sees less noise; off at weight 0.",
    ),
    OptionGroup(
        "Validation", TRAIN, ("validation",), "The loss on clips that are not trained on, and when it is measured."
    ),
    OptionGroup("Samples", TRAINING, ("sample",), "Samples during the run, in detail."),
)

FORMS: dict[str, Form] = {}
"""Node id -> the settings it shows; filled as the nodes are made."""


def socket() -> Any:
    """The input that takes option nodes."""
    return handles.Options.Input(
        "options", optional=True, tooltip="Further settings, from the Options nodes; several are chained."
    )


def given(options: handles.GivenOptions | None, title: str) -> dict[str, Any]:
    """The tables of settings that `options` bring to the node `title`. Raises ConfigError where a group of them belongs
    to another node."""
    if options is None:
        return {}
    for group in GROUPS:
        if group.title in options.groups and title not in group.into:
            raise ConfigError(f"{group.title} is connected to {title}, but goes into `options` of {group.into[0]}.")
    return merged(options.tables)


def chained(group: OptionGroup, before: handles.GivenOptions | None, tables: Mapping[str, Any]) -> handles.GivenOptions:
    """`before` with the settings of `group` behind. Raises ConfigError where the group is in the chain already."""
    if before is None:
        return handles.GivenOptions((group.title,), tables)
    if group.title in before.groups:
        raise ConfigError(f"{group.title} is in the chain twice. Set everything in one of them, and leave one out.")
    return handles.GivenOptions((*before.groups, group.title), merged(before.tables, tables))


def in_prompt(prompt: Mapping[str, Any], link: Any) -> dict[str, Any] | None:
    """The tables that the option nodes behind `link` of a prompt will give; None where a value is not known yet."""
    tables: dict[str, Any] = {}
    while isinstance(link, list):
        node = prompt.get(str(link[0]), {})
        form, values = FORMS.get(node.get("class_type", "")), dict(node.get("inputs", {}))
        link = values.pop("options", None)
        if form is None or any(isinstance(value, list) for value in values.values()):
            return None
        tables = merged(form.changed({**form.defaults(visible=True), **values}), tables)
    return tables
