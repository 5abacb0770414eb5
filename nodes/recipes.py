"""Training Recipe and Samples Recipe: numbers to begin with, in view below a choice, and used as they stand there.

They go into `options`. A number that is also changed in the node they go into is refused by name, so what is seen in
either place and was touched is what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..ltx2_train import SAMPLE_RECIPES, TRAINING_RECIPES, Beginning, RunConfig
from ..ltx2_train.errors import ConfigError
from . import handles, host, options
from .host import io
from .widgets import Form, Setting

WIDGET = "recipe"
_STEPS = {"train.learning_rate": 1e-7, "sample.guidance": 0.1, "sample.audio_guidance": 0.1}
_NAMES = {"sample.every": "sample_every"}


def _form(recipe: Beginning) -> Form:
    """The numbers of a recipe as widgets."""
    shown = [
        Setting(path, _NAMES.get(path, ""), default=value, step=_STEPS.get(path))
        for path, value in recipe.settings.items()
    ]
    return Form(RunConfig, shown)


class RecipeNode(io.ComfyNode):
    """What both nodes have in common: one choice, joined to the options that come in."""

    ID: ClassVar[str] = ""
    TITLE: ClassVar[str] = ""
    ABOUT: ClassVar[str] = ""
    CHOICE: ClassVar[str] = ""
    ALIASES: ClassVar[list[str]] = []
    RECIPES: ClassVar[Mapping[str, Beginning]] = {}

    @classmethod
    def schema(cls) -> io.Schema:
        choices = [io.DynamicCombo.Option(name, _form(recipe).visible_inputs()) for name, recipe in cls.RECIPES.items()]
        return io.Schema(
            node_id=cls.ID,
            display_name=cls.TITLE,
            category="LTX-2 training",
            description=cls.ABOUT,
            search_aliases=["recipe", "preset", "settings", "lora", "train", "ltx", *cls.ALIASES],
            inputs=[
                io.DynamicCombo.Input(WIDGET, options=choices, tooltip=cls.CHOICE),
                handles.Options.Input(
                    "options", optional=True, tooltip="Options nodes, or another recipe, to bring all over one wire."
                ),
            ],
            outputs=[handles.Options.Output("options", display_name="options")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def read(cls, chosen: Mapping[str, Any]) -> handles.GivenOptions:
        """What the choice and its numbers give. Raises ConfigError."""
        name = str(chosen.get(WIDGET))
        if name not in cls.RECIPES:
            raise ConfigError(f"{WIDGET}: {name!r} is none of {', '.join(cls.RECIPES)}.")
        recipe = cls.RECIPES[name]
        form = _form(recipe)
        if missing := [setting.id for setting in form.settings if setting.id not in chosen]:
            raise ConfigError(f"{WIDGET}: {name} needs {', '.join(missing)}.")
        return handles.GivenOptions((cls.TITLE,), form.tables(chosen), {f"{cls.TITLE} {name}": recipe.modes})

    @classmethod
    def of_prompt(cls, values: Mapping[str, Any]) -> handles.GivenOptions:
        """The same from the widgets of a prompt."""
        return cls.read({name.rpartition(".")[2]: value for name, value in values.items()})

    @classmethod
    def finished(cls, chosen: Mapping[str, Any] | None, before: handles.GivenOptions | None) -> io.NodeOutput:
        with host.training_job(cls.TITLE):
            made = cls.read(chosen or {})
            told = [f"{name} {value}" for table in made.tables.values() for name, value in table.items()]
            host.ComfyEvents(cls.hidden.unique_id).finish("finished", ", ".join(told))
            return io.NodeOutput(options.chained(before, made))


class TrainingRecipe(RecipeNode):
    ID = "LTX2T_TrainingRecipe"
    TITLE = "Training Recipe"
    ABOUT = (
        "Steps, rank, rate and what else to begin with, for what is to be learned. The numbers below the choice are "
        "those that are used; change them as you like. Goes into `options` of Train LoRA."
    )
    CHOICE = (
        "What is to be learned: a character, style, motion, voice (base in mode audio), talking character "
        "(mode av), IC-LoRA (with Conditions Recipe), or to go on from a first frame. The page of help tells of each."
    )
    ALIASES: ClassVar = ["character", "style", "motion", "voice", "talking", "ic-lora", "i2v"]
    RECIPES = TRAINING_RECIPES

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    def execute(cls, recipe: dict[str, Any], options: handles.GivenOptions | None = None) -> io.NodeOutput:
        return cls.finished(recipe, options)


class SamplesRecipe(RecipeNode):
    ID = "LTX2T_SamplesRecipe"
    TITLE = "Samples Recipe"
    ABOUT = (
        "How samples are drawn, as a whole: fast, or faithful to the model's own pipelines. The numbers below the "
        "choice are those that are used. Goes into `options` of Train LoRA, Sample LoRA and Compare Checkpoints."
    )
    CHOICE = (
        "fast = eight steps without guidance, for a distilled base or with the distilled LoRA in `more_loras`; "
        "faithful = all guidance of the model's own pipelines, four passes of the model a step."
    )
    ALIASES: ClassVar = ["sample", "fast", "distilled", "faithful", "guidance"]
    RECIPES = SAMPLE_RECIPES

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema()

    @classmethod
    def execute(cls, recipe: dict[str, Any], options: handles.GivenOptions | None = None) -> io.NodeOutput:
        return cls.finished(recipe, options)


_NODES: dict[type[RecipeNode], tuple[str, ...]] = {
    TrainingRecipe: ("Train LoRA",),
    SamplesRecipe: ("Train LoRA", "Sample LoRA", "Compare Checkpoints"),
}
for _node, _into in _NODES.items():
    options.GOES_INTO[_node.TITLE] = _into
    options.READERS[_node.ID] = _node.of_prompt
