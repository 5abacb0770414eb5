"""Video Conditions, Audio Conditions and Conditions Recipe: what a run is given beside the text, one node for each.

They are chained by their socket and end in Train LoRA. The choices and their numbers are read off the core's classes of
conditions, so that a new one appears by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from ..ltx2_train import RECIPES, condition_kinds
from ..ltx2_train.errors import TrainerError
from ..ltx2_train.settings import Settings, parse
from . import handles, host, words
from .choices import Choices, handed_over
from .host import io
from .widgets import Form, Setting

WHOLE = "whole"
# numbers that are shown otherwise than their field says
_SIDES = (("top", 0), ("left", 0), ("bottom", 256), ("right", 256))
_SHOWN = {
    "spatial_region": [
        Setting("spatial_region", name, default=start, item=item, step=32, extra={"min": 0, "max": 8192})
        for item, (name, start) in enumerate(_SIDES)
    ],
}
_SAID_ELSEWHERE = {"type", "temporal_scale_factor"}  # the choice; reference_temporal_scale of Load Training Pairs
# where a number without a default of its own begins
_STARTS: dict[tuple[str, str], dict[str, Any]] = {
    **{("video", name): {"temporal_boundary": (2, 4)} for name in ("prefix", "suffix")},
    **{("audio", name): {"seconds": (0.5, 1.0)} for name in ("prefix", "suffix")},
}


def form_of(kind: type[Settings], starts: Mapping[str, Any] | None = None, prefix: str = "") -> Form:
    """The numbers of a kind of condition. `starts` are what they begin with, where that is not their default; `prefix`
    goes before `probability`, which every condition has."""
    settings: list[Setting] = []
    for field in kind.model_fields:
        name = f"{prefix}{field}" if field == "probability" else field
        if field not in _SAID_ELSEWHERE:
            settings += _SHOWN.get(field, [Setting(field, name, default=(starts or {}).get(field))])
    return Form(kind, settings)


class ConditionChoices(Choices):
    """What one dynamic widget offers: for each choice the conditions that it stands for, with their numbers."""

    def __init__(self, widget: str, tooltip: str) -> None:
        self.conditions: dict[str, list[tuple[str, type[Settings], Form]]] = {}  # choice -> stream, kind, form of each
        self.whole: dict[str, str] = {}  # choice -> the stream that is given as a whole
        super().__init__(widget, tooltip, {})

    def add(self, name: str, stream: str, forms: Iterable[tuple[type[Settings], Form]]) -> None:
        """Offer `name`, with conditions of `stream`."""
        found = self.conditions.setdefault(name, [])
        found += [(stream, kind, form) for kind, form in forms]
        self.forms = {**self.forms, name: [form for _, _, form in found]}

    def add_whole(self, name: str, stream: str) -> None:
        """Offer `name`, which gives all of `stream`."""
        self.add(name, stream, [])
        self.whole[name] = stream

    def streams(self, values: Mapping[str, Any] | None, node: str) -> dict[str, Any]:
        """The groups `video` and `audio` that a choice and its numbers come to. Raises ConfigError that speaks of
        `node`."""
        name = self.chosen(values)
        tables: dict[str, Any] = {}
        for stream, kind, form in self.conditions[name]:
            condition = {"type": kind.model_fields["type"].default, **form.tables(values or {})}
            parse(kind, condition, node)
            tables.setdefault(stream, {}).setdefault("conditions", []).append(condition)
        if name in self.whole:
            tables[self.whole[name]] = {"generated": False}
        return tables


_KINDS = {"video": condition_kinds("video"), "audio": condition_kinds("audio")}


def _of_stream(stream: str, tooltip: str) -> ConditionChoices:
    """One condition of a stream, or the whole of it."""
    choices = ConditionChoices("condition", tooltip)
    for name, kind in _KINDS[stream].items():
        choices.add(name, stream, [(kind, form_of(kind, _STARTS.get((stream, name))))])
    choices.add_whole(WHOLE, stream)
    return choices


def _of_recipes() -> ConditionChoices:
    """All conditions of a task at once."""
    choices = ConditionChoices(
        "recipe", f"The task. {'; '.join(f'{name} = {one.about}' for name, one in RECIPES.items())}."
    )
    for name, recipe in RECIPES.items():
        for stream, conditions in (("video", recipe.video), ("audio", recipe.audio)):
            for one in conditions:
                kind = _KINDS[stream][one["type"]]
                choices.add(name, stream, [(kind, form_of(kind, one, f"{one['type']}_"))])
        if recipe.given is not None:
            choices.add_whole(name, recipe.given)
    return choices


VIDEO = _of_stream(
    "video",
    "What of the picture is given. first_frame = image to video; prefix, suffix = the beginning or the end; "
    "spatial_crop = a rectangle; mask = what the masks of Load Training Pairs leave white; reference = a picture or "
    "clip in front (IC-LoRA); whole = all of it, so that only the sound is learned.",
)
AUDIO = _of_stream(
    "audio",
    "What of the sound is given. prefix, suffix = the beginning or the end; mask = what the masks of Load Training "
    "Pairs say; reference = a sound in front, such as a voice to copy; whole = all of it, so that only the picture is "
    "learned.",
)
RECIPE = _of_recipes()


class ConditionsNode(io.ComfyNode):
    """What the three nodes have in common: one choice, joined to the conditions that come in."""

    ID: ClassVar[str] = ""
    TITLE: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""
    ALIASES: ClassVar[list[str]] = []
    CHOICES: ClassVar[ConditionChoices]

    @classmethod
    def schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.ID,
            display_name=cls.TITLE,
            category="LTX-2 training",
            description=cls.ABOUT,
            search_aliases=["condition", "given", "lora", "train", *cls.ALIASES],
            inputs=[
                cls.CHOICES.input(),
                handles.Conditions.Input(
                    "conditions", optional=True, tooltip="More conditions; all of them hold, each with its own coin."
                ),
            ],
            outputs=[
                handles.Conditions.Output(
                    "conditions", display_name="conditions", tooltip="For Train LoRA, or another node of conditions."
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def made(cls, chosen: Mapping[str, Any] | None, before: handles.GivenSettings | None) -> handles.GivenSettings:
        """The conditions `before` and what is chosen. Raises ConfigError."""
        tables = cls.CHOICES.streams(chosen, cls.TITLE)
        return handles.GivenSettings(joined_conditions({} if before is None else before.tables, tables))

    @classmethod
    def finished(cls, chosen: Mapping[str, Any] | None, conditions: handles.GivenSettings | None) -> io.NodeOutput:
        with host.training_job(cls.TITLE):
            given = cls.made(chosen, conditions)
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", given.describe())
            return io.NodeOutput(given)


class VideoConditions(ConditionsNode):
    ID = "LTX2T_VideoConditions"
    TITLE = "Video Conditions"
    ABOUT = (
        "Says what the picture is given while it is learned: a first frame, the beginning or the end, a rectangle, "
        "what a mask says, a reference, or all of it. Chain several."
    )
    ALIASES: ClassVar = ["video", "ic-lora", "in-context", "reference", "i2v", "inpaint", "outpaint", "extend", "foley"]
    CHOICES = VIDEO

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    def execute(cls, condition: dict[str, Any], conditions: handles.GivenSettings | None = None) -> io.NodeOutput:
        return cls.finished(condition, conditions)


class AudioConditions(ConditionsNode):
    ID = "LTX2T_AudioConditions"
    TITLE = "Audio Conditions"
    ABOUT = (
        "Says what the sound is given while it is learned: the beginning or the end, what a mask says, a reference "
        "such as a voice to copy, or all of it. Chain several."
    )
    ALIASES: ClassVar = ["audio", "sound", "voice", "reference", "ic-lora", "extend", "lip-sync", "a2v"]
    CHOICES = AUDIO

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    def execute(cls, condition: dict[str, Any], conditions: handles.GivenSettings | None = None) -> io.NodeOutput:
        return cls.finished(condition, conditions)


class ConditionsRecipe(ConditionsNode):
    ID = "LTX2T_ConditionsRecipe"
    TITLE = "Conditions Recipe"
    ABOUT = (
        "Chooses a task beside a plain LoRA, with the conditions that it needs and their numbers: IC-LoRA from pairs, "
        "image to video, extend, inpaint, voice reference, lip-sync, foley."
    )
    ALIASES: ClassVar = ["recipe", "ic-lora", "reference", "i2v", "voice", "lip-sync", "foley", "inpaint", "extend"]
    CHOICES = RECIPE

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    def execute(cls, recipe: dict[str, Any], conditions: handles.GivenSettings | None = None) -> io.NodeOutput:
        return cls.finished(recipe, conditions)


NODES = {node.ID: node for node in (VideoConditions, AudioConditions, ConditionsRecipe)}


def joined_conditions(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The groups `video` and `audio` of both; lists of conditions go on."""
    out = {stream: dict(table) for stream, table in before.items()}
    for stream, table in more.items():
        group = out.setdefault(stream, {})
        for key, value in table.items():
            group[key] = [*group.get(key, ()), *value] if key == "conditions" else value
    return out


def foretold(prompt: Mapping[str, Any], link: Any) -> handles.GivenSettings | None:
    """What the conditions at the end of `link` will be, from the widgets in the prompt; None where a value or a node is
    not known before it has run. Raises TrainerError, as that node would."""
    source = prompt.get(str(link[0]), {})
    node = NODES.get(source.get("class_type", ""))
    given = dict(source.get("inputs", {}))
    before = given.pop("conditions", None)
    if node is None or any(isinstance(value, list) for value in given.values()):
        return None
    earlier = None
    if before is not None and (earlier := foretold(prompt, before)) is None:
        return None
    chosen = handed_over(node.CHOICES.widget, given)[node.CHOICES.widget]
    with words.speaking_as(node.TITLE):
        try:
            return node.made(chosen, earlier)
        except TrainerError as error:
            raise type(error)(f"{node.TITLE}: {words.in_widget_words(str(error))}") from None
