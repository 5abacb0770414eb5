"""How samples are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from ..models.tiling import TileSettings
from ..settings import Settings
from ..shapes import floor_frames, floor_side

# What the sizes of a sample must be, by their settings; others are rounded down.
SIZES = {"width": "a multiple of 32", "height": "a multiple of 32", "frames": "8n+1"}


_TILES = {"spatial_tile": 512, "chunk_size": 32}  # of the decoder, where nobody sets another


class SampleSettings(Settings):
    """Samples drawn while training and by the sample command.

    What depends on the version of the model is None where nobody sets it; drawn.py has the values.
    """

    every: int = Field(
        default=250,
        ge=0,
        description="Steps between samples; 0 draws none while training.",
        json_schema_extra={"community": "sample_every_n_steps"},
    )
    every_epochs: int = Field(
        default=0,
        ge=0,
        description="Passes over the data between samples, besides `every`; 0 is off.",
        json_schema_extra={"community": "sample_every_n_epochs", "advanced": True},
    )
    at_start: bool = Field(
        default=True,
        description="Draw one before the first step, to compare with.",
        json_schema_extra={
            "off": False,
            "counts_with": ".wanted -- with sample.every or sample.every_epochs",
            "community": "sample_at_first",
            "advanced": True,
        },
    )
    prompts: Path | list[str | dict[str, Any]] | None = Field(
        default=None,
        description="Prompts: a text file with one a line, a JSON or TOML library, or a list. Not set: the first two "
        "captions of the dataset.",
        json_schema_extra={"community": "sample_prompts"},
    )
    validation_clips: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Clips of the dataset's validation_datasets to draw as well: caption, size and length of each.",
        json_schema_extra={
            "counts_with": [".wanted -- with sample.every or sample.every_epochs", "model.mode = video | av"],
            "advanced": True,
        },
    )
    validation_first_frame: bool = Field(
        default=True,
        description="Give each of them its first frame: image-to-video on clips never trained on.",
        json_schema_extra={"counts_with": ".validation_clips", "advanced": True},
    )
    negative_prompt: str | None = Field(
        default=None,
        description="What the sample should not show; used when guidance is above 1. Not set: nothing, or with LTX-2.5 "
        "and LTX-Video the text of their pipelines.",
        json_schema_extra={"advanced": True},
    )
    width: int = Field(
        default=768,
        ge=32,
        le=8192,
        description="Width; rounded down to a multiple of 32.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = video | av",
            "unit": "pixels",
            "community": "width",
        },
    )
    height: int = Field(
        default=512,
        ge=32,
        le=8192,
        description="Height; rounded down to a multiple of 32.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = video | av",
            "unit": "pixels",
            "community": "height",
        },
    )
    frames: int = Field(
        default=49,
        ge=1,
        le=1025,
        description="Frames; rounded down to 8n+1. 1 draws an image.",
        json_schema_extra={"community": "sample_num_frames"},
    )
    fps: float | None = Field(
        default=None,
        gt=0,
        le=240,
        description="Frames a second. Not set: 25, or 24 with LTX-2.5.",
        json_schema_extra={"advanced": True},
    )
    steps: int = Field(default=30, ge=1, le=1000, description="Denoising steps.")
    guidance: float | None = Field(
        default=None,
        ge=0,
        le=50,
        description="Classifier-free guidance; 1 switches it off. Not set: 4, or 3 with LTX-2.5 and LTX-Video.",
    )
    stg: float = Field(
        default=1.0,
        ge=0,
        le=20,
        description="Spatio-temporal guidance; 0 switches it off and saves a third of the time.",
        json_schema_extra={"advanced": True},
    )
    stg_block: int | None = Field(
        default=None,
        ge=0,
        description="Block whose self-attention is skipped for it; not set: 29 of LTX-2, 28 of LTX-2.3 and 2.5 and of "
        "LTX-Video 13B, 19 of its 2B.",
        json_schema_extra={"counts_with": ".stg or .audio_stg", "advanced": True},
    )
    rescale: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How far guided predictions are scaled back to the spread of the unguided one. Not set: 0, or 0.7 "
        "with LTX-2.5 and LTX-Video.",
        json_schema_extra={"advanced": True},
    )
    seed: int = Field(default=42, ge=0, le=2**63 - 1, description="Seed of the starting noise.")
    strength: float = Field(
        default=1.0,
        ge=-10,
        le=10,
        description="Strength of the LoRA.",
        json_schema_extra={"harmless": True, "counts_with": "train.what = lora", "advanced": True},
    )
    audio: Literal["merge", "separate", "off"] = Field(
        default="merge",
        description="Sound of samples in the modes av and audio: merge = inside the mp4; separate = in a file beside "
        "it; off = none.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = av | audio",
            "community": "sample_merge_audio",
            "advanced": True,
        },
    )
    audio_format: Literal["wav", "flac"] = Field(
        default="wav",
        description="File of a sound that is not inside an mp4: wav or flac, both 16 bits.",
        json_schema_extra={
            "harmless": True,
            "counts_with": ["model.mode = audio or .audio = separate", "model.mode = av | audio"],
            "advanced": True,
        },
    )
    include_reference: bool = Field(
        default=False,
        description="Show the reference of a sample (--v) to the left of it.",
        json_schema_extra={"community": "sample_include_reference", "advanced": True},
    )
    identity_guidance: float = Field(
        default=0.0,
        ge=0,
        le=50,
        description="Classifier-free guidance of the sound of samples with a reference sound (--ra); 0: as of others.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = av | audio",
            "community": "audio_ref_identity_guidance_scale",
            "advanced": True,
        },
    )
    image_crf: int | None = Field(
        default=None,
        ge=0,
        le=51,
        description="How strongly pictures that samples begin with are compressed by H.264 first, as the model's own "
        "pipelines do: its CRF. 0: not at all. Not set: 33, 18 with LTX-2.5, 29 with LTX-Video.",
        json_schema_extra={"off": 0, "harmless": True, "counts_with": "model.mode = video | av", "advanced": True},
    )
    spectrogram: bool = Field(
        default=True,
        description="In the modes av and audio: a picture of the sound beside it, loudness by time and pitch.",
        json_schema_extra={
            "counts_with": ["model.mode = av | audio", "model.mode = audio or .audio = merge | separate"],
            "advanced": True,
        },
    )
    shift_tokens: Literal["official", "latent"] = Field(
        default="official",
        description="Token count that shapes the schedule: official = as the official pipelines: always 4096, of "
        "LTX-Video the sample's own; latent = the sample's own, as ComfyUI's LTXVScheduler.",
        json_schema_extra={"counts_with": ".sigmas = shifted", "advanced": True},
    )
    stg_blocks: list[int] | None = Field(
        default=None,
        description="Blocks whose self-attention spatio-temporal guidance skips, where they are several; instead of "
        "stg_block.",
        json_schema_extra={"counts_with": ".stg or .audio_stg", "advanced": True, "since": "0.2"},
    )
    audio_guidance: float | None = Field(
        default=None,
        ge=0,
        le=50,
        description="Classifier-free guidance of the sound. Not set: as guidance, or 7 with LTX-2.5 where that is not "
        "set either. The pipelines of LTX-2 use 7.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = av | audio",
            "advanced": True,
            "since": "0.2",
        },
    )
    audio_stg: float | None = Field(
        default=None,
        ge=0,
        le=20,
        description="Spatio-temporal guidance of the sound; not set: as stg.",
        json_schema_extra={
            "off": 0,
            "harmless": True,
            "counts_with": "model.mode = av | audio",
            "advanced": True,
            "since": "0.2",
        },
    )
    modality_guidance: float | None = Field(
        default=None,
        ge=0,
        le=50,
        description="In mode av: guidance of the picture towards what the sound makes of it; 1 switches it off and "
        "saves a pass of the model. Not set: 1, or 3 with LTX-2.5. The pipelines of LTX-2 use 3.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = av",
            "off": 1,
            "advanced": True,
            "since": "0.2",
        },
    )
    audio_modality_guidance: float | None = Field(
        default=None,
        ge=0,
        le=50,
        description="In mode av: guidance of the sound towards what the picture makes of it; not set: as "
        "modality_guidance.",
        json_schema_extra={"harmless": True, "counts_with": "model.mode = av", "advanced": True, "since": "0.2"},
    )
    sigmas: Literal["shifted", "distilled"] = Field(
        default="shifted",
        description="Noise levels of the steps: shifted = the schedule of the dev model; distilled = the eight levels "
        "of the distilled model, which takes 8 steps and guidance 1.",
        json_schema_extra={"advanced": True, "since": "0.2"},
    )
    streams: Literal["all", "sound"] = Field(
        default="all",
        description="What is drawn: all = all that the model makes; sound = in mode av the sound alone, which costs a "
        "small part of the time and shows what a voice has come to.",
        json_schema_extra={
            "counts_with": ["model.mode = av | audio", ".audio = merge | separate"],
            "advanced": True,
            "since": "0.2",
        },
    )
    keyframe_slots: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="LTX-2.5: single frames that a sample is made together with; its file has the clip alone. Not set: "
        "as many as in training.",
        json_schema_extra={
            "off": 0,
            "counts_with": ["model.mode = video | av", ".streams = all"],
            "advanced": True,
            "since": "0.2",
        },
    )
    upsampler: Path | None = Field(
        default=None,
        description="File of the latent upsampler (spatial, x2): samples are drawn in two stages, at half their size "
        "and then, twice as large, in three steps of the distilled noise levels without guidance, as the model's "
        "pipelines do with a distilled model or LoRA. Not set: one stage.",
        json_schema_extra={
            "counts_with": ["model.mode = video | av", ".streams = all"],
            "advanced": True,
            "since": "0.2",
        },
    )
    tiles: TileSettings = Field(
        default=TileSettings(**_TILES),
        description="Tiles of the decoder, which bound its memory.",
        json_schema_extra={"advanced": True},
    )

    @field_validator("tiles", mode="before")
    @classmethod
    def _others_stay(cls, value: Any) -> Any:
        """A table that names one of them leaves the others as they are."""
        return {**_TILES, **value} if isinstance(value, Mapping) else value

    @field_serializer("tiles", when_used="json")
    def _off_is_said(self, tiles: TileSettings) -> dict[str, Any]:
        """What is off is 0, since what is not there has its default."""
        dumped = tiles.model_dump(mode="json")
        return {**dumped, **{name: dumped[name] or 0 for name in _TILES}}

    @property
    def guided_without_text(self) -> bool:
        """Whether samples are guided by what the model gives with a part of it left out."""
        modality = (self.modality_guidance, self.audio_modality_guidance)
        return bool(self.stg or self.audio_stg) or any(scale not in (None, 1) for scale in modality)

    @property
    def wanted(self) -> bool:
        """Whether anything is drawn while training."""
        return bool(self.every or self.every_epochs)

    @model_validator(mode="before")
    @classmethod
    def _round(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            values = dict(values)
            if isinstance(values.get("audio"), bool):  # the community trainer's switch
                values["audio"] = "merge" if values["audio"] else "separate"
            for key, floor in (("width", floor_side), ("height", floor_side), ("frames", floor_frames)):
                if isinstance(values.get(key), int) and values[key] >= (1 if key == "frames" else 32):
                    values[key] = floor(values[key])
        return values

    @model_validator(mode="after")
    def _blocks_once(self) -> SampleSettings:
        if self.stg_blocks is not None:
            if self.stg_block is not None:
                raise ValueError("stg_block and stg_blocks are both set; keep one of them")
            if not self.stg_blocks or min(self.stg_blocks) < 0:
                raise ValueError(f"stg_blocks is {self.stg_blocks}; name one block or more, counted from 0")
        return self
