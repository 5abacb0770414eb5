"""Optimizer, Regularizers and Validation Options: a choice with its own numbers below, made from the settings.

A new optimizer, regularizer or setting of them appears by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from ..ltx2_train import RunConfig, optimizer_numbers
from ..ltx2_train.errors import ConfigError
from . import handles, options
from .choices import ChoiceNode, Choices, enter
from .fields import is_advanced, settings_below
from .host import io
from .widgets import SHOWN, Form, Setting, merged

CATEGORY = "LTX-2 training/options"
IN_VIEW = 8  # settings below a choice that are not folded away
BY_CLASS = "by class"
NUMBERS = {number for used in optimizer_numbers().values() for number in used}  # those that some optimizer uses
BELOW = [path for path, _ in settings_below(RunConfig, "optimizer") if path != "optimizer.name"]
_CLASS = Setting(
    "optimizer.name",
    "class_name",
    default="",
    text=True,
    extra={
        "placeholder": "torch.optim.RAdam",
        "tooltip": "Dotted name of any class of optimizers in a package that is installed. What of the numbers below "
        "it does not have is refused by name where it is changed.",
    },
)


def _optimizers() -> dict[str, list[Form]]:
    """Each optimizer -> the numbers that it uses."""
    forms = {name: [Form(RunConfig, _numbers(used))] for name, used in optimizer_numbers().items()}
    return {**forms, BY_CLASS: [Form(RunConfig, [_CLASS, *_numbers(NUMBERS)])]}


def _numbers(used: Collection[str]) -> list[Setting]:
    return [Setting(path) for path in BELOW if path.removeprefix("optimizer.") in used]


class OptimizerOptions(ChoiceNode):
    ID = "LTX2T_OptimizerOptions"
    TITLE = "Optimizer Options"
    CATEGORY = CATEGORY
    ABOUT = (
        "Which optimizer, with the numbers that it uses below, and a running mean of the LoRA. Goes into `options` of "
        "Train LoRA or Train Slider, in place of their `optimizer` and `weight_decay`."
    )
    ALIASES: ClassVar = ["optimizer", "adamw", "prodigy", "muon", "came", "adafactor", "schedule free", "ema"]
    CHOICES = Choices(
        "optimizer",
        "auto = adamw; adamw8bit on a card that has not the room for it, where bitsandbytes is there. by class = any "
        "class by its dotted name. The learning rate stays that of Train LoRA.",
        _optimizers(),
        setting="optimizer.name",
    )
    REST = Form(
        RunConfig,
        [
            *(Setting(path) for path in BELOW if path.removeprefix("optimizer.") not in NUMBERS),
            *(Setting(path, path.replace(".", "_")) for path, _ in settings_below(RunConfig, "ema")),
        ],
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    def read(cls, chosen: Mapping[str, Any] | None, rest: Mapping[str, Any]) -> handles.GivenOptions:
        name = cls.CHOICES.chosen(chosen)
        made = super().read(chosen, rest)
        if name != BY_CLASS:
            return handles.GivenOptions(made.groups, merged({"optimizer": {"name": name}}, made.tables))
        if "." not in made.tables["optimizer"]["name"]:
            raise ConfigError(
                f"class_name: {made.tables['optimizer']['name']!r} is no dotted name of a class, such as "
                f"torch.optim.RAdam. Write one, or choose another `{cls.CHOICES.widget}`."
            )
        return made

    @classmethod
    @REST.fill
    def execute(
        cls, optimizer: dict[str, Any] | None = None, options: handles.GivenOptions | None = None, **settings: Any
    ) -> io.NodeOutput:
        return cls.finished(optimizer, options, settings)


# Weights to begin with, from docs/training.md, which names what is usual.
STARTS = {
    "blank": 0.5,
    "dop": 0.5,
    "prior_divergence": 0.1,
    "audio_dop": 0.5,
    "crepa": 0.1,
    "self_flow": 0.1,
    "tread": 0.5,
    "rollout": 0.2,
}


def _regularizers() -> dict[str, list[Form]]:
    """Each regularizer -> its settings, the weight first.

    Their names begin with its own, since the page translates a widget by its name, whatever is chosen.
    """
    forms = {}
    for name in RunConfig.model_fields["regularizers"].annotation.model_fields:  # type: ignore[union-attr]
        below = settings_below(RunConfig, f"regularizers.{name}")
        few = len(below) <= IN_VIEW
        shown, folded = [], []
        for path, field in below:
            start = STARTS.get(name) if path == f"regularizers.{name}.weight" else None
            (shown if few or not is_advanced(field) else folded).append(
                Setting(path, path.removeprefix("regularizers.").replace(".", "_"), default=start, one_line=True)
            )
        forms[name] = [Form(RunConfig, shown, folded)]
    return forms


class RegularizersOptions(ChoiceNode):
    ID = "LTX2T_RegularizersOptions"
    TITLE = "Regularizers Options"
    CATEGORY = CATEGORY
    ABOUT = (
        "One thing that the LoRA is held to, or helped by, besides the error on its clips, with its numbers below. "
        "Chain a node for each. Goes into `options` of Train LoRA."
    )
    ALIASES: ClassVar = ["regularizer", "preservation", "dop", "crepa", "self flow", "tread", "scheduled sampling"]
    CHOICES = Choices(
        "regularizer",
        "blank = the base at the empty prompt is kept; dop = the base without the trigger; prior_divergence = a push "
        "away from the base; audio_dop = the base's sound on silent clips; crepa, self_flow = a block learns from "
        "a deeper one; tread = fewer tokens in the middle; rollout = scheduled sampling. The page of help tells more.",
        _regularizers(),
    )

    @classmethod
    def groups(cls) -> Iterable[str]:
        return [f"{cls.TITLE} {name}" for name in cls.CHOICES.forms]

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    def read(cls, chosen: Mapping[str, Any] | None, rest: Mapping[str, Any]) -> handles.GivenOptions:
        name = cls.CHOICES.chosen(chosen)
        return handles.GivenOptions((f"{cls.TITLE} {name}",), super().read(chosen, rest).tables)

    @classmethod
    def execute(
        cls, regularizer: dict[str, Any] | None = None, options: handles.GivenOptions | None = None
    ) -> io.NodeOutput:
        return cls.finished(regularizer, options)


_STEPS = Setting("validation.every", default=250, extra={"min": 1, "tooltip": "Steps between measurements."})
_EPOCHS = Setting(
    "validation.every_epochs", default=1, extra={"min": 1, "tooltip": "Passes over the data between measurements."}
)
_WHEN = {"every n steps": [_STEPS], "every n epochs": [_EPOCHS], "steps and epochs": [_STEPS, _EPOCHS]}


class ValidationOptions(ChoiceNode):
    ID = "LTX2T_ValidationOptions"
    TITLE = "Validation Options"
    CATEGORY = CATEGORY
    ABOUT = (
        "The loss on clips that are not trained on, `validation` of Prepare Dataset, and when it is measured. Goes "
        "into `options` of Train LoRA."
    )
    ALIASES: ClassVar = ["validation", "val loss", "overfitting"]
    CHOICES = Choices(
        "when",
        "When the loss is measured; an epoch is a pass over the data. Bypass the node to measure nothing.",
        {name: [Form(RunConfig, shown)] for name, shown in _WHEN.items()},
    )
    REST = Form(
        RunConfig,
        [
            Setting(path)
            for path, _ in settings_below(RunConfig, "validation")
            if path not in (_STEPS.path, _EPOCHS.path)
        ],
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    @REST.fill
    def execute(
        cls, when: dict[str, Any] | None = None, options: handles.GivenOptions | None = None, **settings: Any
    ) -> io.NodeOutput:
        return cls.finished(when, options, settings)


CHOICE_NODES: dict[type[ChoiceNode], tuple[str, ...]] = {
    OptimizerOptions: options.TRAINING,
    RegularizersOptions: options.TRAIN,
    ValidationOptions: options.TRAIN,
}
for _node, _into in CHOICE_NODES.items():
    options.SHARED.update(_node.CHOICES.paths & SHOWN)
    _node.CHOICES.shown_by(_node.TITLE)
    for _setting in _node.REST.settings:
        _setting.shown_by(_node.TITLE)
    enter(_node, _into)
