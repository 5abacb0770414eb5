"""Training Recipe and Samples Recipe: numbers to begin with, in view below a choice, and used as they stand there.

They go into `options`. A number that is also changed in the node they go into is refused by name, so what is seen in
either place and was touched is what counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..ltx2_train import SAMPLE_RECIPES, TRAINING_RECIPES, Beginning, RunConfig
from . import handles
from .choices import ChoiceNode, Choices, enter
from .host import io
from .widgets import Form, Setting

_STEPS = {"train.learning_rate": 1e-7, "sample.guidance": 0.1, "sample.audio_guidance": 0.1}
_NAMES = {"sample.every": "sample_every"}


def _form(recipe: Beginning) -> Form:
    """The numbers of a recipe as widgets."""
    shown = [
        Setting(path, _NAMES.get(path, ""), default=value, step=_STEPS.get(path))
        for path, value in recipe.settings.items()
    ]
    return Form(RunConfig, shown)


def _choices(recipes: Mapping[str, Beginning], tooltip: str) -> Choices:
    return Choices("recipe", tooltip, {name: [_form(recipe)] for name, recipe in recipes.items()})


class RecipeNode(ChoiceNode):
    """What both nodes have in common: each recipe says which modes of the base it is for."""

    RECIPES: ClassVar[Mapping[str, Beginning]] = {}

    @classmethod
    def read(cls, chosen: Mapping[str, Any] | None, rest: Mapping[str, Any]) -> handles.GivenOptions:
        name = cls.CHOICES.chosen(chosen)
        modes = {f"{cls.TITLE} {name}": cls.RECIPES[name].modes}
        return handles.GivenOptions((cls.TITLE,), super().read(chosen, rest).tables, modes)


class TrainingRecipe(RecipeNode):
    ID = "LTX2T_TrainingRecipe"
    TITLE = "Training Recipe"
    ABOUT = (
        "Steps, rank, rate and what else to begin with, for what is to be learned. The numbers below the choice are "
        "those that are used; change them as you like. Goes into `options` of Train LoRA."
    )
    CHOICES = _choices(
        TRAINING_RECIPES,
        "What is to be learned: a character, style, motion, voice (base in mode audio), talking character "
        "(mode av), IC-LoRA (with Conditions Recipe), or to go on from a first frame. The page of help tells of each.",
    )
    ALIASES: ClassVar = ["recipe", "preset", "character", "style", "motion", "voice", "talking", "ic-lora", "i2v"]
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
    CHOICES = _choices(
        SAMPLE_RECIPES,
        "fast = eight steps without guidance, for a distilled base or with the distilled LoRA in `more_loras`; "
        "faithful = all guidance of the model's own pipelines, four passes of the model a step.",
    )
    ALIASES: ClassVar = ["recipe", "preset", "sample", "fast", "distilled", "faithful", "guidance"]
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
    enter(_node, _into)
