"""The settings of the validation loss."""

from __future__ import annotations

from pydantic import Field

from ..settings import Settings


class ValidationSettings(Settings):
    """The loss on clips that are not trained on: the [[validation_datasets]] of the dataset file."""

    every: int = Field(
        default=0,
        ge=0,
        description="Steps between measurements; 0 is off.",
        json_schema_extra={"community": "validate_every_n_steps"},
    )
    every_epochs: int = Field(
        default=0,
        ge=0,
        description="Passes over the data between measurements, besides `every`; 0 is off.",
        json_schema_extra={"community": "validate_every_n_epochs", "advanced": True},
    )
    at_start: bool = Field(
        default=True,
        description="Measure once before the first step, to compare with.",
        json_schema_extra={
            "counts_with": ".wanted -- with validation.every or validation.every_epochs",
            "advanced": True,
        },
    )
    levels: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Noise levels at which each clip is measured: the middles of so many equal parts of the range. "
        "Each is a forward pass.",
        json_schema_extra={
            "counts_with": ".wanted -- with validation.every or validation.every_epochs",
            "advanced": True,
        },
    )
    clips: int = Field(
        default=0,
        ge=0,
        description="How many of the clips to measure, from the first; 0 is all.",
        json_schema_extra={
            "counts_with": ".wanted -- with validation.every or validation.every_epochs",
            "advanced": True,
        },
    )

    @property
    def wanted(self) -> bool:
        """Whether anything is measured."""
        return bool(self.every or self.every_epochs)
