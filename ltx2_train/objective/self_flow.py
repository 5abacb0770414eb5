"""Settings of Self-Flow, as the guide of the community trainer lists its parameters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ..settings import Settings

Course = Literal["constant", "linear", "cosine"]  # of a weight, over a run


class SelfFlowSettings(Settings):
    """Self-Flow: tokens of two noise levels, and a block that learns to say what a deeper block of a teacher says."""

    weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of the alignment of tokens; 0 switches all of Self-Flow off, 0.1 is usual. Mode video "
        "alone. Costs a forward pass a step, up to the teacher's block.",
    )
    teacher: Literal["base", "ema", "partial_ema"] = Field(
        default="base",
        description="Who teaches: base = the model without the LoRA; ema = the model with a running mean of the LoRA; "
        "partial_ema = the mean in the teacher's block alone.",
        json_schema_extra={"counts_with": ".weight"},
    )
    student_block: int = Field(
        default=16,
        ge=0,
        le=511,
        description="Block that learns, counted from 0.",
        json_schema_extra={"counts_with": [".weight", "not .by_ratio -- without regularizers.self_flow.student_ratio"]},
    )
    teacher_block: int = Field(
        default=32,
        ge=0,
        le=511,
        description="Block that teaches, counted from 0; above the student's.",
        json_schema_extra={"counts_with": [".weight", "not .teacher_ratio"]},
    )
    student_ratio: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="The student's block as a share of the depth, rounded down; counts before student_block.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    teacher_ratio: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The teacher's block as a share of the depth, rounded up; counts before teacher_block.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    student_range: int = Field(
        default=0,
        ge=0,
        le=64,
        description="The student's block is drawn anew each step from as many blocks to both sides of it.",
        json_schema_extra={"counts_with": ".weight", "unit": "blocks", "advanced": True},
    )
    mask_ratio: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Share of the tokens that get the second noise level.",
        json_schema_extra={"counts_with": [".weight", ".dual_timestep"], "advanced": True},
    )
    mask_frames: bool = Field(
        default=False,
        description="Give the second noise level to whole latent frames instead of single tokens.",
        json_schema_extra={"counts_with": [".weight", ".dual_timestep", ".mask_ratio"], "advanced": True},
    )
    masked_only: bool = Field(
        default=False,
        description="Align only the tokens with the second noise level.",
        json_schema_extra={"counts_with": [".weight", ".dual_timestep", ".mask_ratio"], "advanced": True},
    )
    dual_timestep: bool = Field(
        default=True,
        description="Use a second noise level at all. The teacher sees every token at the lower of both.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    tokenwise_timestep: bool = Field(
        default=True,
        description="Tell the model the noise level of each token; off tells it the mean of the clip.",
        json_schema_extra={"counts_with": [".weight", ".dual_timestep", ".mask_ratio"], "advanced": True},
    )
    loss_type: Literal["negative_cosine", "one_minus_cosine"] = Field(
        default="negative_cosine",
        description="How alignment is counted: from 0 down to -1, or from 1 down to 0. Both train the same.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    max_loss: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Self-Flow's weighted share of the loss is scaled down to this where it is larger; 0: never.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    temporal: Literal["off", "frame", "delta", "hybrid"] = Field(
        default="off",
        description="What is aligned over time besides: frame = a frame to the frames beside it; delta = what changes "
        "from frame to frame; hybrid = both.",
        json_schema_extra={"counts_with": ".weight"},
    )
    temporal_weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of frame; 0.1 is usual.",
        json_schema_extra={"counts_with": ".weight"},
    )
    delta_weight: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="Weight of delta; 0.05 is usual.",
        json_schema_extra={"counts_with": ".weight"},
    )
    temporal_tau: float = Field(
        default=1.0,
        gt=0,
        le=1000,
        description="How far neighbours count: a frame d frames away counts exp(-d / temporal_tau).",
        json_schema_extra={"counts_with": [".weight", ".temporal != off"], "unit": "latent frames", "advanced": True},
    )
    neighbors: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Neighbours on each side that a frame is aligned to.",
        json_schema_extra={
            "counts_with": [".weight", ".temporal = frame | hybrid"],
            "unit": "latent frames",
            "advanced": True,
        },
    )
    granularity: Literal["frame", "patch"] = Field(
        default="frame",
        description="What frame and delta compare: frame = the mean of a latent frame; patch = each of its tokens.",
        json_schema_extra={"counts_with": [".weight", ".temporal != off"], "advanced": True},
    )
    patch_radius: int = Field(
        default=0,
        ge=0,
        le=16,
        description="With granularity patch: how far from its own place a token finds its match in a neighbour.",
        json_schema_extra={
            "counts_with": [".weight", ".granularity = patch", ".temporal = frame | hybrid"],
            "unit": "tokens",
            "advanced": True,
        },
    )
    patch_match: Literal["hard", "soft"] = Field(
        default="hard",
        description="With patch_radius: hard = the best match counts; soft = all, the better ones more.",
        json_schema_extra={"counts_with": [".weight", ".patch_radius"], "advanced": True},
    )
    patch_temperature: float = Field(
        default=0.1,
        gt=0,
        le=100,
        description="With patch_match soft: how much more the better matches count; lower is more.",
        json_schema_extra={"counts_with": [".weight", ".patch_radius", ".patch_match = soft"], "advanced": True},
    )
    delta_steps: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Changes over 1 to so many frames are compared.",
        json_schema_extra={
            "counts_with": [".weight", ".temporal = delta | hybrid"],
            "unit": "latent frames",
            "advanced": True,
        },
    )
    motion_weighting: Literal["none", "teacher_delta"] = Field(
        default="none",
        description="teacher_delta: where the teacher sees more motion counts more.",
        json_schema_extra={"counts_with": [".weight", ".temporal != off", ".motion_strength"], "advanced": True},
    )
    motion_strength: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="How much more: a place with the mean motion counts 1 + this.",
        json_schema_extra={"counts_with": [".weight", ".temporal != off"], "advanced": True},
    )
    schedule: Course = Field(
        default="constant",
        description="Course of the three weights: constant, or down to 0 in a line or along a cosine.",
        json_schema_extra={"counts_with": [".weight", ".decay_steps"], "advanced": True},
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="Steps over which the weights rise from 0 first.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    decay_steps: int = Field(
        default=0,
        ge=0,
        description="Step at which linear and cosine reach 0; 0: they stay.",
        json_schema_extra={"counts_with": [".weight", ".schedule = linear | cosine"], "advanced": True},
    )
    momentum: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="Share of the teacher's mean that stays at an update (ema, partial_ema).",
        json_schema_extra={"counts_with": [".weight", ".teacher = ema | partial_ema"], "advanced": True},
    )
    update_every: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Steps between updates of the teacher's mean.",
        json_schema_extra={"counts_with": [".weight", ".teacher = ema | partial_ema"], "advanced": True},
    )
    projector_width: int = Field(
        default=1,
        ge=1,
        le=8,
        description="Inner width of the projector, in widths of the model.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    projector_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Learning rate of the projector, which is trained beside the LoRA and left out of its file; not "
        "set: train.learning_rate.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    offload_features: bool = Field(
        default=False,
        description="Keep what the teacher says in RAM until it is compared.",
        json_schema_extra={"counts_with": ".weight", "advanced": True},
    )
    offload_teacher: bool = Field(
        default=False,
        description="Keep the teacher's mean in RAM (ema, partial_ema).",
        json_schema_extra={"counts_with": [".weight", ".teacher = ema | partial_ema"], "advanced": True},
    )

    @property
    def by_ratio(self) -> bool:
        """Whether the student's block is a share of the depth, of which 0 is one."""
        return self.student_ratio is not None

    @model_validator(mode="after")
    def _nothing_idle(self) -> SelfFlowSettings:
        used = {"frame": ["temporal_weight"], "delta": ["delta_weight"], "off": []}
        used["hybrid"] = [*used["frame"], *used["delta"]]
        for name in ("temporal_weight", "delta_weight"):
            weight: Any = getattr(self, name)
            if weight and name not in used[self.temporal]:
                raise ValueError(
                    f"{name} is {weight:g}, and temporal = {self.temporal} does not use it; set one of both"
                )
            if weight and not self.weight:
                raise ValueError(f"{name} is {weight:g}, and weight = 0 switches all of Self-Flow off; raise weight")
        if self.weight and self.temporal != "off" and not any(getattr(self, name) for name in used[self.temporal]):
            names = used[self.temporal]
            are = "is" if len(names) == 1 else "are"
            raise ValueError(f"temporal = {self.temporal} does nothing while {' and '.join(names)} {are} 0")
        if self.motion_strength and self.motion_weighting == "none":
            raise ValueError("motion_strength does nothing while motion_weighting is none")
        return self
