"""The settings of a LoRA, apart from what is done with them, so that a look at settings loads little."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..settings import Settings

OF_LORA = {"counts_with": "train.what = lora"}

Algo = Literal["lora", "lokr", "loha", "locon", "dora"]


def _size_or_no_limit(value: int) -> int:
    if value == 0:
        raise ValueError("0 is no size of a factor; -1 sets no limit")
    return value


class LoraModule(Settings):
    """What is other than in [lora] for the layers that a pattern names. What is not set is as there."""

    algo: Algo | None = Field(default=None, description="As lora.algo.")
    rank: int | None = Field(default=None, ge=1, le=1024, description="As lora.rank.")
    alpha: float | None = Field(default=None, ge=0, le=65536, description="As lora.alpha.")
    factor: Annotated[int, AfterValidator(_size_or_no_limit)] | None = Field(
        default=None, ge=-1, le=65536, description="As lora.factor."
    )


@dataclass(frozen=True)
class LayerSettings:
    """The kind and size of one layer. `scaled_alpha` over the rank is its scale."""

    algo: str
    rank: int
    scaled_alpha: float
    factor: int


class LoraSettings(Settings):
    """Size and place of the LoRA."""

    rank: int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Rank: how much a LoRA can hold. 16 to 64 is usual; the file grows with it.",
        json_schema_extra={**OF_LORA, "community": "network_dim"},
    )
    alpha: float | None = Field(
        default=None,
        ge=0,
        le=65536,
        description="Scale of the LoRA: it works at alpha / rank. Not set, or 0: the rank, so a scale of 1.",
        json_schema_extra={"off": 0, **OF_LORA, "community": "network_alpha", "advanced": True},
    )
    dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a LoRA layer's inputs that is dropped in training.",
        json_schema_extra={**OF_LORA, "community": "network_dropout", "advanced": True},
    )
    rank_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of a LoRA layer's ranks that is dropped in training, others at each step.",
        json_schema_extra={**OF_LORA, "advanced": True},
    )
    module_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the LoRA layers that is dropped whole in training, others at each step.",
        json_schema_extra={**OF_LORA, "advanced": True},
    )
    rslora: bool = Field(
        default=False,
        description="Scale by alpha / sqrt(rank) instead of alpha / rank, so that a high rank learns as fast as a low "
        "one. With alpha not set the LoRA then works at sqrt(rank): lower the learning rate, or set alpha.",
        json_schema_extra={**OF_LORA, "advanced": True},
    )
    target: Literal["auto", "t2v", "v2v", "audio", "audio_ref_only_ic", "full"] = Field(
        default="auto",
        description="Layers to train: t2v = attention; v2v = attention and feed-forward; audio = the audio layers; "
        "audio_ref_only_ic = audio and its exchange with video; full = all but the attention gates. auto = t2v; "
        "audio where only sound is learned; v2v with a reference; audio_ref_only_ic with a reference sound.",
        json_schema_extra={
            "counts_with": ["train.what = lora", "not .include_patterns", "not .target_modules"],
            "community": "lora_target_preset",
        },
    )
    include_patterns: list[str] = Field(
        default_factory=list,
        description="Regular expressions; each must match the whole dotted name of a layer. They replace the preset.",
        json_schema_extra={**OF_LORA, "community": "include_patterns", "advanced": True},
    )
    exclude_patterns: list[str] = Field(
        default_factory=list,
        description="Regular expressions of layers to leave out of the preset or of target_modules; what "
        "include_patterns name stays.",
        json_schema_extra={
            "counts_with": ["train.what = lora", "not .include_patterns or .target_modules"],
            "community": "exclude_patterns",
            "advanced": True,
        },
    )
    target_modules: list[str] = Field(
        default_factory=list,
        description='Ends of layer names, such as "attn1.to_q", as the official trainer lists them. They replace the '
        "preset.",
        json_schema_extra={**OF_LORA, "community": "target_modules", "advanced": True},
    )
    weights: Path | None = Field(
        default=None,
        description="A LoRA file to start from, of the same rank; one with a rank per layer is filled up to lora.rank.",
        json_schema_extra={**OF_LORA, "community": "network_weights", "advanced": True},
    )

    algo: Algo = Field(
        default="lora",
        description="Kind of change: lora = a low-rank product; dora = the same with the length of each input's "
        "weights learned apart; lokr = a Kronecker product; loha = two low-rank products multiplied number by number; "
        "locon = lora, since the model has no convolutions. docs/training.md says what each costs.",
        json_schema_extra={**OF_LORA, "since": "0.2", "advanced": True},
    )
    factor: Annotated[int, AfterValidator(_size_or_no_limit)] = Field(
        default=-1,
        ge=-1,
        le=65536,
        description="Of lokr: the size of the first factor, at most. A larger one makes the second factor and the file "
        "smaller. -1: as near to the root of the layer's size as it comes.",
        json_schema_extra={
            "counts_with": ["train.what = lora", ".algo = lokr or .modules"],
            "since": "0.2",
            "advanced": True,
        },
    )
    lokr_norm: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Of lokr: begin with noise as large as this share of the base's weights instead of with no change. "
        "It needs a whole second factor: a high rank. 1e-3 is usual; 0 is off.",
        json_schema_extra={
            "counts_with": ["train.what = lora", ".algo = lokr or .modules"],
            "since": "0.2",
            "advanced": True,
            "community": "init_lokr_norm",
        },
    )
    modules: dict[str, LoraModule] = Field(
        default_factory=dict,
        description='Layers with another algo, rank, alpha or factor, one "pattern = rank 8, alpha 4" a line; in a run '
        "file a table of tables. In a pattern * stands for any part of a name; the last that fits counts.",
        json_schema_extra={**OF_LORA, "since": "0.2", "advanced": True},
    )

    @property
    def effective_alpha(self) -> float:
        """What over the rank is the scale: alpha, the rank where it is not set; with rslora sqrt(rank) times that."""
        return self._scaled(self.alpha, self.rank)

    def layer(self, path: str) -> LayerSettings:
        """The kind and size of the layer at the dotted `path`."""
        algo, rank, alpha, factor = self.algo, self.rank, self.alpha, self.factor
        for pattern, module in self.modules.items():
            if fnmatchcase(path, pattern):
                algo, rank = module.algo or self.algo, module.rank or self.rank
                alpha = self.alpha if module.alpha is None else module.alpha
                factor = self.factor if module.factor is None else module.factor
        return LayerSettings(algo, rank, self._scaled(alpha, rank), factor)

    @property
    def plain(self) -> bool:
        """Whether every layer is a LoRA of the same rank."""
        return self.algo in ("lora", "locon") and not self.modules

    @property
    def has_halves(self) -> bool:
        """Whether every layer has A and B."""
        return all(algo in ("lora", "locon", "dora", None) for algo in self._algos)

    @property
    def has_factor(self) -> bool:
        """Whether a layer is a LoKr."""
        return "lokr" in self._algos

    @property
    def _algos(self) -> list[str | None]:
        return [self.algo, *(module.algo for module in self.modules.values())]

    def _scaled(self, alpha: float | None, rank: int) -> float:
        alpha = float(alpha or rank)
        return alpha * math.sqrt(rank) if self.rslora else alpha

    @property
    def drops(self) -> dict[str, float]:
        """The kinds of dropout that are on, by the names of their settings."""
        kinds = {
            "lora.dropout": self.dropout,
            "lora.rank_dropout": self.rank_dropout,
            "lora.module_dropout": self.module_dropout,
        }
        return {name: share for name, share in kinds.items() if share}
