"""Settings of the regularizers: what a run is held to, or helped by, besides the error on its clips.

Each is off at weight 0, and a run without any is the run that it was before they existed. What they do stands with
their classes in training/regularizers/.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from ..settings import Settings
from .self_flow import Course, SelfFlowSettings


class BlankSettings(Settings):
    """Preservation of what the base makes without a prompt, which guidance compares with."""

    weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of the error against the base at the empty prompt; 0 is off, 0.5 to 1 is usual. Costs a "
        "step more and a forward pass.",
    )


class DopSettings(Settings):
    """Differential output preservation: without its trigger, the LoRA is to do nothing."""

    weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of the error against the base at a prompt without the trigger; 0 is off, 0.5 to 1 is usual."
        " Costs a step more and a forward pass.",
    )
    captions: Literal["class", "replace"] = Field(
        default="class",
        description="Which prompt: class = class_prompt for all clips; replace = the caption of the clip with "
        "class_prompt in place of the trigger.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    class_prompt: str = Field(
        default="",
        description="What the subject is in general, without the trigger: a woman, a cat. Empty: nothing.",
        json_schema_extra={"counts_with": ".weight"},
    )
    trigger: str = Field(
        default="",
        description="The trigger that replace looks for; empty: the trigger_word of the dataset.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )


class PriorDivergenceSettings(Settings):
    """A push away from the base at the captions of the clips, for LoRAs that stay too weak."""

    weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of the push; 0 is off, 0.05 to 0.1 is usual. Costs a forward pass a step.",
    )
    margin: float = Field(
        default=0.02,
        gt=0,
        le=10,
        description="Distance from the base at which the push ends: the squared difference of both predictions as a "
        "share of the square of the base's.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )


class AudioDopSettings(Settings):
    """Preservation of the base's sound on clips that have none, in mode av."""

    weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of the error of the sound against the base on clips without sound; 0 is off, 0.3 to 1 is "
        "usual. Costs a step more and a forward pass where a batch has such clips.",
    )


class CrepaSettings(Settings):
    """Cross-frame representation alignment: what a block holds of a frame is to tell of the frames beside it."""

    weight: float = Field(
        default=0.0, ge=0, le=1000, description="Weight of the alignment; 0 is off, 0.05 to 0.5 is usual."
    )
    mode: Literal["backbone", "dino"] = Field(
        default="backbone",
        description="What is aligned to: backbone = a deeper block of the same model; dino = DINOv2 features, which "
        "cache.dino makes.",
        json_schema_extra={"counts_with": ".weight"},
    )
    student_block: int = Field(
        default=16,
        ge=0,
        le=511,
        description="Block that is aligned, counted from 0.",
        json_schema_extra={"counts_with": ".weight"},
    )
    teacher_block: int = Field(
        default=32,
        ge=0,
        le=511,
        description="Deeper block that is aligned to, in mode backbone; counted from 0.",
        json_schema_extra={"counts_with": [".weight", ".mode = backbone"]},
    )
    tau: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="How far neighbours count: a frame d frames away counts exp(-d / tau).",
        json_schema_extra={"counts_with": [".weight", ".neighbors"], "unit": "latent frames", "advanced": True},
    )
    neighbors: int = Field(
        default=2,
        ge=0,
        le=64,
        description="Neighbours on each side that a frame is aligned to, besides its own.",
        json_schema_extra={"counts_with": ".weight", "unit": "latent frames", "advanced": True},
    )
    normalize: bool = Field(
        default=True,
        description="Compare directions (cosine); off compares by the mean product of the values.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    schedule: Course = Field(
        default="constant",
        description="Course of the weight: constant, or down to 0 in a line or along a cosine.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="Steps over which the weight rises from 0 first.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    decay_steps: int = Field(
        default=0,
        ge=0,
        description="Step at which linear and cosine reach 0; 0: the last step of the run.",
        json_schema_extra={"counts_with": [".weight", ".schedule = linear | cosine"], "advanced": True},
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Learning rate of the projector, which is trained beside the LoRA and left out of its file; not "
        "set: train.learning_rate.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )


class RouteShare(NamedTuple):
    """Blocks `first` to `last` see this share of the tokens of the picture."""

    first: int
    last: int
    keep: float


def parse_route(text: str) -> RouteShare:
    """The route that "2:-3:0.5" says. Raises ValueError."""
    match = re.fullmatch(r"\s*(-?\d+)\s*:\s*(-?\d+)\s*:\s*(0?\.\d+|0|1(?:\.0*)?)\s*", text)
    if match is None or not 0 < float(match[3]) < 1:
        raise ValueError(f'{text!r} is not of the form "first:last:keep", as "2:-3:0.5"; keep is above 0 and below 1')
    return RouteShare(int(match[1]), int(match[2]), float(match[3]))


class TreadSettings(Settings):
    """TREAD: some tokens of the picture go around the blocks in the middle, which saves time and memory."""

    weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the steps in which tokens are routed: 0 is off, 1 is every step.",
    )
    routes: list[str] = Field(
        default=["2:-3:0.5"],
        min_length=1,
        description='Routes, each "first:last:keep": from which block to which, both included and negative ones '
        "counted from the end, and the share of the tokens that go through. The last block must be free.",
        json_schema_extra={"counts_with": ".weight"},
    )

    @field_validator("routes", mode="before")
    @classmethod
    def _other_forms(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("routes")
    @classmethod
    def _readable(cls, value: list[str]) -> list[str]:
        for text in value:
            parse_route(text)
        return value

    def parsed(self) -> list[RouteShare]:
        """The routes as they are written, with negative blocks."""
        return [parse_route(text) for text in self.routes]


class RolloutSettings(Settings):
    """Scheduled sampling: the model is shown what it made itself on the way from a higher noise level."""

    weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Chance of a clip to be shown its own prediction: 0 is off, 1 is always.",
    )
    steps: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Denoising steps from the higher level, at most; a number of 1 to this is drawn. Each costs a "
        "forward pass.",
        json_schema_extra={"counts_with": ".weight"},
    )
    step_size: float = Field(
        default=0.04,
        gt=0,
        le=1,
        description="Noise level that a denoising step goes down by, of 1.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="Steps over which the chance rises from 0 first.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )


class RegularizerSettings(Settings):
    """What a run is held to, or helped by, besides the error on its clips. All are off at weight 0."""

    blank: BlankSettings = Field(default_factory=BlankSettings)
    dop: DopSettings = Field(default_factory=DopSettings)
    prior_divergence: PriorDivergenceSettings = Field(default_factory=PriorDivergenceSettings)
    audio_dop: AudioDopSettings = Field(default_factory=AudioDopSettings)
    crepa: CrepaSettings = Field(default_factory=CrepaSettings)
    self_flow: SelfFlowSettings = Field(default_factory=SelfFlowSettings)
    tread: TreadSettings = Field(default_factory=TreadSettings)
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)

    @property
    def wanted(self) -> list[str]:
        """The names of those that are on, in their order."""
        return [name for name, settings in self if settings.weight]

    @property
    def reads_prompts(self) -> bool:
        """Whether one that is on compares at prompts besides those of the clips."""
        return bool(self.blank.weight or self.dop.weight)
