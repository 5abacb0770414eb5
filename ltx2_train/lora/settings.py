"""The settings of a LoRA, apart from what is done with them, so that a look at settings loads little."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..settings import Settings


class LoraSettings(Settings):
    """Size and place of the LoRA."""

    rank: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Rank: how much a LoRA can hold. 16 to 64 is usual; the file grows with it.",
        json_schema_extra={"community": "network_dim"},
    )
    alpha: float | None = Field(
        default=None,
        ge=0,
        le=65536,
        description="Scale of the LoRA: it works at alpha / rank. Not set, or 0: the rank, so a scale of 1.",
        json_schema_extra={"community": "network_alpha", "advanced": True},
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a LoRA layer's inputs that is dropped in training.",
        json_schema_extra={"community": "network_dropout", "advanced": True},
    )
    rank_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a LoRA layer's ranks that is dropped in training, others at each step.",
        json_schema_extra={"advanced": True},
    )
    module_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the LoRA layers that is dropped whole in training, others at each step.",
        json_schema_extra={"advanced": True},
    )
    rslora: bool = Field(
        default=False,
        description="Scale by alpha / sqrt(rank) instead of alpha / rank, so that a high rank learns as fast as a low "
        "one. With alpha not set the LoRA then works at sqrt(rank): lower the learning rate, or set alpha.",
        json_schema_extra={"advanced": True},
    )
    target: Literal["auto", "t2v", "v2v", "audio", "audio_ref_only_ic", "full"] = Field(
        default="auto",
        description="Layers to train: t2v = attention; v2v = attention and feed-forward; audio = the audio layers; "
        "audio_ref_only_ic = audio and its exchange with video; full = all but the attention gates. auto = t2v; "
        "audio where only sound is learned; v2v with a reference; audio_ref_only_ic with a reference sound.",
        json_schema_extra={"community": "lora_target_preset"},
    )
    include_patterns: list[str] = Field(
        default_factory=list,
        description="Regular expressions; each must match the whole dotted name of a layer. They replace the preset.",
        json_schema_extra={"community": "include_patterns", "advanced": True},
    )
    exclude_patterns: list[str] = Field(
        default_factory=list,
        description="Regular expressions of layers to leave out; what include_patterns name stays.",
        json_schema_extra={"community": "exclude_patterns", "advanced": True},
    )
    target_modules: list[str] = Field(
        default_factory=list,
        description='Ends of layer names, such as "attn1.to_q", as the official trainer lists them. They replace the '
        "preset.",
        json_schema_extra={"community": "target_modules", "advanced": True},
    )
    weights: Path | None = Field(
        default=None,
        description="A LoRA file to start from, of the same rank; one with a rank per layer is filled up to lora.rank.",
        json_schema_extra={"community": "network_weights", "advanced": True},
    )

    @property
    def effective_alpha(self) -> float:
        """What over the rank is the scale: alpha, the rank where it is not set; with rslora sqrt(rank) times that."""
        alpha = float(self.alpha or self.rank)
        return alpha * math.sqrt(self.rank) if self.rslora else alpha

    @property
    def drops(self) -> dict[str, float]:
        """The kinds of dropout that are on, by the names of their settings."""
        kinds = {
            "lora.dropout": self.dropout,
            "lora.rank_dropout": self.rank_dropout,
            "lora.module_dropout": self.module_dropout,
        }
        return {name: share for name, share in kinds.items() if share}
