"""The models of the LTX line as data: what each does in its own way, by its version.

Whatever differs between them stands here, or in a small class that a field here chooses. Nothing else asks for a
version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .shapes import MODES, Mode

SigmaForm = Literal["legacy", "stretched"]  # see objective/sigmas.py
TextKind = Literal["Gemma 3", "Gemma 4", "T5"]


@dataclass(frozen=True)
class Family:
    """One model.

    `checkpoint` is the published file to train on. `vae`: families with the same one have the same video VAE.
    `needed` are the parts without which its checkpoint is only a part, `apart` those that may lie in a file of their
    own: part -> the setting that names it, and the published file. `split`: it is published in several files.
    `schedule_tokens`: how many tokens the official pipelines shape the schedule for; None is as many as are drawn.
    `stg_block` is the block, of `blocks`, whose self-attention they skip. `caption_tokens` bounds a caption.
    `decoder_padding` is that of a video VAE whose header names none. `keyframe_slots`: single frames can be made beside
    a clip. `two_stages`: samples can be refined in the second stage that is built here. `rescales_velocities`: guided
    velocities are scaled back, where the later models scale x0.
    """

    version: str
    name: str
    checkpoint: str
    vae: str
    sigma_form: SigmaForm = "stretched"
    modes: tuple[Mode, ...] = MODES
    text_encoder: TextKind = "Gemma 3"
    connectors: bool = True
    needed: tuple[str, ...] = ("transformer", "connectors", "text_projection", "video_vae_encoder")
    apart: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    split: bool = False
    blocks: int = 48
    stg_block: int = 28
    schedule_tokens: int | None = 4096
    caption_tokens: int = 1024
    decoder_padding: Literal["reflect", "zeros"] = "reflect"
    trains_distilled: bool = True
    keyframe_slots: bool = False
    two_stages: bool = True
    rescales_velocities: bool = False
    base_word: str = "ltx2_v1"  # ss_base_model_version of its LoRAs
    repository: str = "LTX-2"  # Lightricks' on GitHub

    @property
    def slug(self) -> str:
        """Its name for metadata."""
        return self.name.lower().replace(" ", "-")


_VIDEO_VAE = "model.video_vae"
_APART_25 = {
    "text_projection": ("model.text_encoder", "gemma4-12b-with-proj-ltx-2.5-bf16.safetensors"),
    "video_vae_encoder": (_VIDEO_VAE, "ltx-2.5-video-vae-conv-bf16.safetensors"),
    "audio_vae": ("model.audio_vae", "ltx-2.5-audio-vae-bf16.safetensors"),
}


def _ltx_video(version: str, size: str, checkpoint: str, blocks: int, stg_block: int) -> Family:
    return Family(
        version,
        f"LTX-Video {size}",
        checkpoint,
        "ltxv",
        "legacy",
        modes=("video",),
        text_encoder="T5",
        connectors=False,
        needed=("transformer", "video_vae_encoder"),
        apart={"video_vae_encoder": (_VIDEO_VAE, checkpoint)},
        blocks=blocks,
        stg_block=stg_block,
        schedule_tokens=None,
        caption_tokens=256,
        decoder_padding="zeros",
        trains_distilled=False,
        two_stages=False,
        rescales_velocities=True,
        base_word="ltxv",
        repository="LTX-Video",
    )


FAMILIES: dict[str, Family] = {
    family.version: family
    for family in (
        _ltx_video("ltxv-2b", "2B", "ltxv-2b-0.9.6-dev-04-25.safetensors", 28, 19),
        _ltx_video("ltxv-13b", "13B", "ltxv-13b-0.9.7-dev.safetensors", 48, 28),
        Family("2.0", "LTX-2.0", "ltx-2-19b-dev.safetensors", "2.0", "legacy", stg_block=29),
        Family("2.3", "LTX-2.3", "ltx-2.3-22b-dev.safetensors", "2.3"),
        Family(
            "2.5",
            "LTX-2.5",
            "ltx-2.5-22b-dev-transformer-bf16.safetensors",
            "2.5",
            text_encoder="Gemma 4",
            apart=_APART_25,
            split=True,
            keyframe_slots=True,
        ),
    )
}
VERSIONS = tuple(FAMILIES)  # oldest first


UNSIZED = "LTX-Video"  # said of a LoRA where its size is not known


def name_of(version: str) -> str:
    """What the model of `version` is called in a sentence."""
    if version in FAMILIES:
        return FAMILIES[version].name
    return version if version == UNSIZED else f"LTX-{version}"
