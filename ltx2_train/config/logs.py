"""Where the numbers and the LoRAs of a run go besides its folder: TensorBoard, Weights & Biases, the hub."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from ..settings import Settings

NEW = {"since": "0.2", "advanced": True}
OF_WANDB = {**NEW, "counts_with": "log.report_to = wandb | all"}
OF_HUB = {**NEW, "counts_with": ".push"}


class LogSettings(Settings):
    """Logs besides metrics.jsonl, loss.png and report.html, which are there always."""

    report_to: Literal["none", "tensorboard", "wandb", "all"] = Field(
        default="none",
        description="Log the numbers of every step there too: TensorBoard, Weights & Biases, or both (all).",
        json_schema_extra={**NEW, "community": "log_with"},
    )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the trackers."""
        return {"none": (), "all": ("tensorboard", "wandb")}.get(self.report_to, (self.report_to,))


class WandbSettings(Settings):
    """The run at Weights & Biases, with log.report_to = "wandb". The key is WANDB_API_KEY, or that of `wandb login`."""

    project: str = Field(
        default="ltx2-train",
        min_length=1,
        max_length=128,
        description="Project at Weights & Biases.",
        json_schema_extra={**OF_WANDB, "community": "log_tracker_name"},
    )

    @field_validator("project")
    @classmethod
    def _a_project(cls, value: str) -> str:
        if bad := [sign for sign in "/\\#?%:" if sign in value]:
            raise ValueError(f"must not hold {' '.join(bad)}, which no project has in its name")
        return value

    entity: str = Field(
        default="", max_length=128, description="Team or user there; empty: your own.", json_schema_extra=OF_WANDB
    )
    run_name: str = Field(
        default="",
        max_length=128,
        description="Name of the run there; empty: run.name.",
        json_schema_extra={**OF_WANDB, "community": "wandb_run_name"},
    )
    tags: list[str] = Field(default_factory=list, description="Tags of the run there.", json_schema_extra=OF_WANDB)
    log_validation_videos: bool = Field(
        default=True, description="Upload samples too: films, pictures and sound.", json_schema_extra=OF_WANDB
    )


class HubSettings(Settings):
    """Every saved LoRA on the Hugging Face hub. The token is HF_TOKEN, or that of `hf auth login`."""

    push: bool = Field(
        default=False,
        description="Upload each saved LoRA to the Hugging Face hub, beside the training. What fails there is said, "
        "and the run goes on.",
        json_schema_extra={**NEW, "counts_with": "train.what = lora"},
    )
    repo: str = Field(
        default="",
        max_length=128,
        description='Repository there, "name" or "owner/name"; made if it is missing.',
        json_schema_extra=OF_HUB,
    )
    path: str = Field(
        default="",
        max_length=256,
        description="Folder in the repository; empty: its top.",
        json_schema_extra={**OF_HUB, "community": "huggingface_path_in_repo"},
    )

    @field_validator("repo")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if value and not re.fullmatch(r"([\w.-]+/)?[\w.-]+", value):
            raise ValueError("must be a name, or owner/name, of letters, digits, points, dashes and underscores")
        return value

    private: bool = Field(default=True, description="Make a new repository private.", json_schema_extra=OF_HUB)
