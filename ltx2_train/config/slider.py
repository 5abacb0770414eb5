"""The settings of a slider: a LoRA that is turned up for one quality and down for its opposite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from ..errors import ConfigError
from ..paths import from_folder
from ..settings import Settings, parse
from ..toml import read_toml

# what the community trainer's slider file calls a setting
_THEIR_NAMES = {
    "guidance_strength": "guidance",
    "sample_slider_range": "strengths",
    "pos_cache_dir": "positive_caches",
    "neg_cache_dir": "negative_caches",
    "text_cache_dir": "text_caches",
}
_HIGHEST_STRENGTH = 100
_PATHS = ("positive_caches", "negative_caches", "text_caches")


class SliderTarget(Settings):
    """A direction: what is more of it, and what is less."""

    positive: str = Field(min_length=1, description="Prompt of what strength 1 shows more of.")
    negative: str = Field(default="", description="Prompt of what strength -1 shows more of.")
    target_class: str = Field(
        default="",
        description="Prompt that the slider is trained for, such as a portrait; empty: for everything.",
    )
    weight: float = Field(default=1.0, gt=0, le=1000, description="Factor on the loss of this target.")


class SliderSettings(Settings):
    """A slider, trained by `ltx2-train slider`: from pairs of prompts, or from pairs of cached pictures."""

    mode: Literal["text", "reference"] = Field(
        default="text",
        description="text = from pairs of prompts, no data; reference = from pairs of cached latents, named alike.",
        json_schema_extra={
            "harmless": True,
            "counts_with": ".wanted -- with slider.targets, slider.config or pairs of caches",
            "community": "slider.mode",
        },
    )
    targets: list[SliderTarget] = Field(
        default_factory=list,
        description="Mode text: the directions, tables with positive, negative, target_class and weight.",
        json_schema_extra={
            "counts_with": ".mode = text or .config",
            "community": [
                "slider.targets",
                "slider.targets.positive",
                "slider.targets.negative",
                "slider.targets.target_class",
                "slider.targets.weight",
            ],
        },
    )
    guidance: float = Field(
        default=1.0,
        gt=0,
        le=20,
        description="Mode text: how far a target is pushed along its direction. 2 to 3 is strong, and may not settle.",
        json_schema_extra={
            "counts_with": [
                ".mode = text or .config",
                ".wanted -- with slider.targets, slider.config or pairs of caches",
            ],
            "community": ["guidance_strength", "slider.guidance_strength"],
        },
    )
    strengths: list[float] = Field(
        default=[-2.0, -1.0, 0.0, 1.0, 2.0],
        min_length=1,
        description="Strengths at which samples are drawn, beside each other.",
        json_schema_extra={
            "counts_with": ".wanted -- with slider.targets, slider.config or pairs of caches",
            "community": ["sample_slider_range", "slider.sample_slider_range"],
        },
    )
    frames: int = Field(
        default=1,
        ge=1,
        le=257,
        description="Mode text: latent frames that are trained on; 1 is a picture, each more is 8 frames of video.",
        json_schema_extra={
            "counts_with": [
                ".mode = text or .config",
                ".wanted -- with slider.targets, slider.config or pairs of caches",
            ],
            "community": "latent_frames",
        },
    )
    width: int = Field(
        default=768,
        ge=32,
        le=8192,
        multiple_of=32,
        description="Mode text: width that is trained at.",
        json_schema_extra={
            "counts_with": [
                ".mode = text or .config",
                ".wanted -- with slider.targets, slider.config or pairs of caches",
            ],
            "community": "latent_width",
            "unit": "pixels",
        },
    )
    height: int = Field(
        default=512,
        ge=32,
        le=8192,
        multiple_of=32,
        description="Mode text: height that is trained at.",
        json_schema_extra={
            "counts_with": [
                ".mode = text or .config",
                ".wanted -- with slider.targets, slider.config or pairs of caches",
            ],
            "community": "latent_height",
            "unit": "pixels",
        },
    )
    positive_caches: Path | None = Field(
        default=None,
        description="Mode reference: folder with the latents of what strength 1 shows, as `cache build` makes them.",
        json_schema_extra={"counts_with": ".mode = reference or .config", "community": "slider.pos_cache_dir"},
    )
    negative_caches: Path | None = Field(
        default=None,
        description="Mode reference: folder with the latents of what strength -1 shows, under the same names.",
        json_schema_extra={"counts_with": ".mode = reference or .config", "community": "slider.neg_cache_dir"},
    )
    text_caches: Path | None = Field(
        default=None,
        description="Mode reference: folder with the captions; that of the positive latents if not set.",
        json_schema_extra={"counts_with": ".mode = reference or .config", "community": "slider.text_cache_dir"},
    )
    config: Path | None = Field(
        default=None,
        description="A slider file of the community trainer; what is changed here beside it counts more.",
        json_schema_extra={"community": "slider_config"},
    )

    @field_validator("strengths", mode="before")
    @classmethod
    def _as_a_flag(cls, value: Any) -> Any:
        """The flag of the community trainer is one text with commas."""
        return [float(part) for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("strengths")
    @classmethod
    def _drawable(cls, value: list[float]) -> list[float]:
        """Strengths at which a LoRA can be worn, each once."""
        for strength in value:
            if not abs(strength) <= _HIGHEST_STRENGTH:
                raise ValueError(
                    f"a strength is {strength:g}; expected numbers from -{_HIGHEST_STRENGTH} to {_HIGHEST_STRENGTH}"
                )
        if twice := [strength for number, strength in enumerate(value) if strength in value[:number]]:
            raise ValueError(f"{twice[0]:g} is named twice; name each strength once")
        return value

    @property
    def wanted(self) -> bool:
        """Whether a slider is described at all."""
        return bool(self.targets) or any(
            path is not None for path in (self.config, self.positive_caches, self.negative_caches)
        )

    def texts(self) -> list[str]:
        """The prompts that mode text needs, each once."""
        found = (text for one in self.targets for text in (one.target_class, one.positive, one.negative))
        return list(dict.fromkeys(found)) if self.mode == "text" else []

    def whole(self) -> SliderSettings:
        """The same with what its `config` says. Raises ConfigError where that cannot be read."""
        if self.config is None:
            return self
        table = {_THEIR_NAMES.get(key, key): value for key, value in read_toml(self.config).items()}
        if "config" in table:
            raise ConfigError(f"{self.config}: config belongs into the run file, not into the slider file.")
        folder = self.config.absolute().parent
        table |= {key: from_folder(folder, table[key]) for key in _PATHS if isinstance(table.get(key), str)}
        default = SliderSettings()
        own = {name: value for name, value in self if name != "config" and value != getattr(default, name)}
        return parse(SliderSettings, {**table, **own}, self.config.name)
