"""The settings of full fine-tuning."""

from __future__ import annotations

from pydantic import Field

from ..settings import Settings

NEW = {"since": "0.2", "advanced": True, "counts_with": "train.what = full"}


class FullSettings(Settings):
    """Which weights train.what = "full" trains, and how."""

    include_patterns: list[str] = Field(
        default_factory=list,
        description="Regular expressions; each must match the whole dotted name of a weight, as "
        r"transformer_blocks\.4[0-7]\..* does. Those alone are trained; empty: all of the transformer.",
        json_schema_extra=NEW,
    )
    exclude_patterns: list[str] = Field(
        default_factory=list,
        description="Regular expressions of weights that stay as they are.",
        json_schema_extra=NEW,
    )
    master_weights: bool = Field(
        default=False,
        description="Keep each weight in float32 too, for the optimizer: 4 bytes more a number. Off: bf16 weights are "
        "rounded up or down by chance, so that steps smaller than their digits count on average.",
        json_schema_extra={**NEW, "counts_with": ["train.what = full", "model.precision = bf16"]},
    )
    release_gradients: bool = Field(
        default=False,
        description="Move each weight as soon as its gradient is there, and let go of the gradient: 2 bytes less a "
        "number. It needs train.clip_norm = 0 and train.accumulation = 1, since no gradient waits for the others.",
        json_schema_extra=NEW,
    )
    keep: int = Field(
        default=2,
        ge=1,
        description="How many of the newest checkpoints to keep, each as large as the base. One that the run was "
        "finished with stays.",
        json_schema_extra=NEW,
    )
