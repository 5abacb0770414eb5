"""The settings of the training loop itself."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from ..settings import Dtype, Settings

OF_LORA = {"counts_with": "train.what = lora"}


class TrainSettings(Settings):
    """The length of the run, its step, and what it leaves behind."""

    steps: int = Field(
        default=2000,
        ge=1,
        le=10_000_000,
        description="Optimizer steps.",
        json_schema_extra={"community": "max_train_steps"},
    )
    epochs: int | None = Field(
        default=None,
        ge=1,
        description="Passes over the data, instead of steps.",
        json_schema_extra={"community": "max_train_epochs", "advanced": True},
    )
    learning_rate: float = Field(
        default=1e-4,
        gt=0,
        le=1,
        description="Learning rate at the top of the schedule.",
        json_schema_extra={"community": "learning_rate"},
    )
    audio_learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Learning rate of the audio layers of the LoRA; not set: as the others.",
        json_schema_extra={"counts_with": "model.mode = av | audio", "community": "audio_lr", "advanced": True},
    )
    lr_args: dict[str, float] = Field(
        default_factory=dict,
        description='Learning rates by pattern, one "pattern = rate" a line; in a run file a table, or a list of '
        '"pattern=rate". A pattern is a regular expression that is searched in the name of the layer; the first that '
        "is found counts, before audio_learning_rate.",
        json_schema_extra={"community": "lr_args", "advanced": True},
    )
    loraplus_ratio: float | None = Field(
        default=None,
        ge=0.01,
        le=1000,
        description="LoRA+: how many times faster the B half of each layer learns than the A half; 16 is usual.",
        json_schema_extra={**OF_LORA, "community": "loraplus_lr_ratio", "advanced": True},
    )
    changed_rate: Literal["take", "keep"] = Field(
        default="take",
        description="What a learning rate that was changed since the run began does when the run goes on: take = it "
        "counts from here on, and a message says so; keep = the rate that the run began with stays.",
        json_schema_extra={"advanced": True},
    )
    accumulation: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Batches whose gradients are averaged into one step.",
        json_schema_extra={"community": "gradient_accumulation_steps", "advanced": True},
    )
    clip_norm: float = Field(
        default=1.0,
        ge=0,
        description="Largest norm of the gradient; 0 switches clipping off.",
        json_schema_extra={"community": "max_grad_norm", "advanced": True},
    )
    seed: int = Field(
        default=42,
        ge=0,
        le=2**63 - 1,
        description="Seed of noise, timesteps, data order and LoRA weights.",
        json_schema_extra={"community": "seed"},
    )
    first_frame_probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of clips whose first frame is given instead of learned, so that the LoRA also works "
        "for image-to-video.",
        json_schema_extra={
            "off": 0,
            "counts_with": ["model.mode = video | av", "video.generated"],
            "community": "ltx2_first_frame_conditioning_p",
        },
    )
    caption_dropout: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of samples that are trained without their caption, which keeps guidance working.",
        json_schema_extra={"community": "caption_dropout_rate"},
    )
    caption_dropout_with: Literal["empty", "zeros"] = Field(
        default="empty",
        description="What stands in for a dropped caption: empty = the encoded empty prompt, which samplers use as "
        "the negative one; zeros = no text at all, as the community trainer.",
        json_schema_extra={
            "counts_with": ".caption_dropout",
            "community": "caption_dropout_technique",
            "advanced": True,
        },
    )
    norms_every: int = Field(
        default=50,
        ge=0,
        description="Steps between measurements of how far each part of the LoRA has moved; 0 measures never.",
        json_schema_extra={"off": 0, **OF_LORA, "advanced": True},
    )
    save_every: int = Field(
        default=250,
        ge=0,
        description="Steps between saved LoRAs and states; 0 saves at the end only.",
        json_schema_extra={"community": ["save_every_n_steps"]},
    )
    save_every_epochs: int = Field(
        default=0,
        ge=0,
        description="Passes over the data between saves, besides save_every; 0 is off.",
        json_schema_extra={"community": "save_every_n_epochs", "advanced": True},
    )
    keep_states: int = Field(
        default=4,
        ge=1,
        description="How many of the newest states to keep; keep_loras says how many LoRAs.",
        json_schema_extra={"community": "save_last_n_steps_state", "advanced": True},
    )
    keep_loras: int = Field(
        default=0,
        ge=0,
        description="How many of the newest LoRAs to keep; 0 keeps all. One that the run was finished with stays, and "
        "so do the copies in run.export_folder.",
        json_schema_extra={**OF_LORA, "community": "save_last_n_steps", "advanced": True},
    )
    state: Literal["full", "minimal", "off"] = Field(
        default="full",
        description="What a saved state holds: full = everything, for a resume equal to an unbroken run; minimal = "
        "LoRA and place, the optimizer starts afresh; off = only a stop or the end saves.",
        json_schema_extra={"advanced": True},
    )
    save_precision: Dtype = Field(
        default="bf16",
        description="Number format of the saved LoRA files.",
        json_schema_extra={**OF_LORA, "community": "save_precision", "advanced": True},
    )
    on_nan: Literal["skip", "stop"] = Field(
        default="skip",
        description="What a loss or gradient that is not finite does: the batch is named and left out, or the run "
        "saves and stops. Five in a row always stop.",
        json_schema_extra={"advanced": True},
    )
    comment: str = Field(
        default="",
        max_length=2000,
        description="A note kept in the LoRA's metadata.",
        json_schema_extra={"community": "training_comment", "advanced": True},
    )
    prove_references: bool = Field(
        default=True,
        description="At the start and at the end, where references or a whole stream are given: measure the loss with "
        "them and with those of other clips, which shows whether the LoRA uses them.",
        json_schema_extra={
            "counts_with": "lends -- where references or a whole stream are given",
            "advanced": True,
        },
    )
    processes: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="Processes that train together, one a card; each takes train.accumulation batches of a step. From "
        "a terminal only; accelerate launch says the number by itself.",
        json_schema_extra={"advanced": True, "since": "0.3"},
    )

    @property
    def batches_a_step(self) -> int:
        """Batches whose gradients are averaged into one step, over all processes."""
        return self.accumulation * self.processes

    what: Literal["lora", "full"] = Field(
        default="lora",
        description="What is trained: a LoRA beside the frozen base, or full = the weights of the transformer "
        "themselves, which become a checkpoint as large as the base; [full] chooses which.",
        json_schema_extra={"since": "0.2", "advanced": True},
    )

    @field_validator("lr_args", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if isinstance(value, (list, tuple)):
            table = {}
            for item in value:
                pattern, sign, rate = str(item).rpartition("=")
                if not sign or not pattern.strip():
                    raise ValueError(f'{item!r} is not of the form "pattern=rate"')
                table[pattern.strip()] = rate.strip()
            return table
        return value

    @field_validator("lr_args")
    @classmethod
    def _usable(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern, rate in value.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
            if not 0 < rate <= 1:
                raise ValueError(f"{pattern!r}: a learning rate is above 0 and at most 1, not {rate:g}")
        return value
