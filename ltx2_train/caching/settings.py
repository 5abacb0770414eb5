"""The settings of the caches, which a look at all settings reads without loading what makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ..models.tiling import TileSettings
from ..settings import Dtype, Settings


class DinoSettings(Settings):
    """DINOv2 features of the training clips, cached ahead for a regularizer that compares with them."""

    model: Path | None = Field(
        default=None,
        description="Folder of a DINOv2 model in the format of Hugging Face (nothing is downloaded). Set: `cache "
        "build` stores features of every frame of the training clips beside their latents, about 2 MB a frame for the "
        "base model. Not set: none are made.",
        json_schema_extra={"counts_with": "model.mode = video | av", "community": "dino_model", "advanced": True},
    )
    size: int = Field(
        default=518,
        ge=14,
        le=2044,
        description="Side of the square that frames are resized to; a multiple of the model's patch, which is 14. "
        "Smaller is faster and takes less disk.",
        json_schema_extra={"counts_with": ".model", "unit": "pixels", "advanced": True},
    )
    batch: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Frames that pass the model together. Lower it where the device runs out of memory.",
        json_schema_extra={"counts_with": ".model", "community": "dino_batch_size", "unit": "frames", "advanced": True},
    )


class CacheSettings(Settings):
    """What is stored in the caches, and how it is computed."""

    vae_dtype: Dtype = Field(
        default="bf16",
        description="Precision the video VAE computes in.",
        json_schema_extra={"harmless": True, "counts_with": "model.mode = video | av", "community": "vae_dtype"},
    )
    latents_dtype: Dtype = Field(
        default="bf16",
        description="Precision latents are stored in.",
        json_schema_extra={"harmless": True, "counts_with": "model.mode = video | av", "advanced": True},
    )
    audio_vae_dtype: Dtype = Field(
        default="fp32",
        description="Precision the audio VAE computes in.",
        json_schema_extra={"harmless": True, "counts_with": "model.mode = av | audio", "advanced": True},
    )
    audio_latents_dtype: Dtype = Field(
        default="fp16",
        description="Precision the latents of sound are stored in.",
        json_schema_extra={
            "harmless": True,
            "counts_with": "model.mode = av | audio",
            "community": "ltx2_audio_dtype",
            "advanced": True,
        },
    )
    text_form: Literal["compact", "full"] = Field(
        default="compact",
        description="Store captions before the text connectors, without padding (a few MB at most; the connectors run "
        "in training), or after them as the community trainer does (25 to 32 MB).",
        json_schema_extra={"advanced": True},
    )
    text_dtype: Dtype = Field(
        default="bf16", description="Precision text is stored in.", json_schema_extra={"advanced": True}
    )
    skip_existing: bool = Field(
        default=True,
        description="Keep caches that still fit their source, settings and checkpoint. Off: make all again.",
        json_schema_extra={"community": "skip_existing", "advanced": True},
    )
    manifest: Path | None = Field(
        default=None,
        description="Where the manifest is written, from which the caches train without their media. Default: "
        "dataset_manifest.json in the first cache folder.",
        json_schema_extra={"community": "save_dataset_manifest", "advanced": True},
    )
    preservation_prompts: tuple[str, ...] = Field(
        default=(),
        description='Prompts that training compares with besides the captions, encoded ahead like sample prompts: "" '
        'is the blank prompt, "woman" the class of a subject.',
        json_schema_extra={
            "harmless": True,
            "counts_with": "regularizers.reads_prompts -- in training with regularizers.blank or regularizers.dop",
            "may_be_blank": True,
            "advanced": True,
        },
    )
    keyframe_slots: int = Field(
        default=0,
        ge=0,
        le=64,
        description="LTX-2.5: single frames of each clip, evenly spaced between its ends, that are encoded by "
        "themselves too, and that training makes together with the clip. They relax how much the VAE squeezes time, "
        "where motion is fast; each costs the tokens of one latent frame. A clip that is too short for so many has "
        "fewer, an image none.",
        json_schema_extra={
            "counts_with": ["model.mode = video | av", "video.generated"],
            "advanced": True,
            "since": "0.2",
        },
    )
    tiles: TileSettings = Field(default_factory=TileSettings)
    dino: DinoSettings = Field(default_factory=DinoSettings)
