"""How strongly samples are guided: from the settings and a prompt to what `denoise` is asked."""

from __future__ import annotations

from collections.abc import Sequence

from ..config import DrawSettings, SampleSettings
from ..errors import ConfigError
from ..families import FAMILIES
from .denoise import Guidance
from .prompts import Prompt


def require_stg_block(settings: SampleSettings, blocks: int) -> None:
    """Raise ConfigError where sample.stg_block, or one of sample.stg_blocks, is none of the model's."""
    name = "stg_block" if settings.stg_blocks is None else "stg_blocks"
    for block in [settings.stg_block] if settings.stg_blocks is None else settings.stg_blocks:
        if block is not None and block >= blocks:
            raise ConfigError(
                f"sample.{name} is {getattr(settings, name)}, but the blocks of this model are 0 to {blocks - 1}. "
                "Choose one of them, or leave it out: then the usual one is taken."
            )


def stg_blocks(settings: SampleSettings, version: str, blocks: int) -> Sequence[int]:
    """Which of `blocks` blocks spatio-temporal guidance skips. Raises ConfigError."""
    require_stg_block(settings, blocks)
    if settings.stg_blocks is not None:
        return settings.stg_blocks
    if settings.stg_block is not None:
        return [settings.stg_block]
    # a model of other depth (a tiny one) gets the block at the same height
    family = FAMILIES[version]
    usual = family.stg_block if blocks == family.blocks else round(family.stg_block / family.blocks * blocks)
    return [min(usual, blocks - 1)]


def guidance_of(prompt: Prompt, settings: DrawSettings, of_sound: bool = False) -> Guidance:
    """How strongly the picture of `prompt` is guided, or its sound; what is not set for the sound is as the picture."""
    if not of_sound:
        return Guidance(prompt.guidance, settings.stg, settings.modality_guidance, settings.rescale)
    stg, modality = settings.audio_stg, settings.audio_modality_guidance
    return Guidance(
        prompt.audio_guidance,
        settings.stg if stg is None else stg,
        settings.modality_guidance if modality is None else modality,
        settings.rescale,
    )
