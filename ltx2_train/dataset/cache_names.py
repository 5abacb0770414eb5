"""The names of cache files, those of the community trainer: what a sample of the plan is called on disk.

What is in them, and which keys they have, is told in caching/cache_file.py.
"""

from __future__ import annotations

import re
from typing import Literal

LATENT_SUFFIX = "_ltx2.safetensors"
AUDIO_SUFFIX = "_ltx2_audio.safetensors"
MASK_SUFFIX = "_ltx2_mask.safetensors"
AUDIO_MASK_SUFFIX = "_ltx2_audio_mask.safetensors"
TEXT_SUFFIX = "_ltx2_te.safetensors"
COMPACT_SUFFIX = "_ltx2_te_compact.safetensors"
TextForm = Literal["compact", "full"]
FLIPPED = "~flip"  # behind the stem in the names of mirrored copies
CAPTION = "~caption"  # with a number, in those of the captions behind the first
# what stands behind the stem of a medium: a mirrored copy, a window, a size; the number of a caption
_BEHIND = re.compile(
    rf"(?:_\d{{5,}}-\d{{3,}})?(?:{FLIPPED})?(?:_\d{{5,}}-\d{{3,}})?"  # some name pictures after their time
    rf"(?:_\d{{4,}}x\d{{4,}}_ltx2(?!_te)|(?:{CAPTION}\d+)?_ltx2_te)\w*\.safetensors$"
)


def medium_of(name: str) -> str:
    """The stem of the medium that the cache called `name` is of; "" where it is no such name."""
    found = _BEHIND.search(name)
    return name[: found.start()] if found else ""


def video_cache_name(stem: str, start: int, count: int, width: int, height: int) -> str:
    """The file of `count` frames from `start`; `width` x `height` is the bucket."""
    return f"{stem}_{start:05d}-{count:03d}_{width:04d}x{height:04d}{LATENT_SUFFIX}"


def image_cache_name(stem: str, width: int, height: int) -> str:
    """The file of an image; `width` x `height` is its own size, not the bucket's."""
    return f"{stem}_{width:04d}x{height:04d}{LATENT_SUFFIX}"


def audio_cache_name(latent_name: str) -> str:
    """The file of the sound that belongs to the latents in `latent_name`."""
    return latent_name.removesuffix(LATENT_SUFFIX) + AUDIO_SUFFIX


def mask_cache_name(latent_name: str) -> str:
    """The file of the mask that belongs to the latents in `latent_name`."""
    return latent_name.removesuffix(LATENT_SUFFIX) + MASK_SUFFIX


def audio_mask_cache_name(latent_name: str) -> str:
    """The file of the mask for the sound that belongs to the latents in `latent_name`."""
    return latent_name.removesuffix(LATENT_SUFFIX) + AUDIO_MASK_SUFFIX


def text_cache_name(stem: str, form: TextForm, number: int = 0) -> str:
    """The file of a caption in the given form; `number` counts the captions of one medium."""
    return stem + (f"{CAPTION}{number + 1}" if number else "") + (COMPACT_SUFFIX if form == "compact" else TEXT_SUFFIX)
