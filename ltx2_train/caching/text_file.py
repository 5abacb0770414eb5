"""The tensors of text caches, ours and the community trainer's: before the connectors, after them, or both in one file.

Where finished text is there it is what counts: features beside it have all their padding (the community trainer's
`--cache_before_connector` writes both).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import CacheError
from .cache_file import MEND, CacheFile, dtype_token

if TYPE_CHECKING:
    from ..models.text import TextFeatures

VIDEO, AUDIO, JOINED = "video_prompt_embeds_", "audio_prompt_embeds_", "text_"  # finished
VIDEO_FEATURES, AUDIO_FEATURES = "video_features_", "audio_features_"
TEXT_KEYS = (VIDEO_FEATURES, VIDEO, JOINED)
MASK_KEYS = ("prompt_attention_mask", "text_mask")
# Width of the video part of text whose streams were stored as one: LTX-2 3840 (| 3840), LTX-2.3 4096 (| 2048).
JOINED_WIDTHS = {3840: 3840, 7680: 3840, 4096: 4096, 6144: 4096}


@dataclass(frozen=True)
class FullText:
    """Text after the connectors: [N, D] a stream, and [N] of 1 (attend) and 0."""

    video_context: torch.Tensor
    audio_context: torch.Tensor | None
    mask: torch.Tensor


def has_sound(file: CacheFile) -> bool:
    """Whether the text in `file` was made for sound as well, as a model with sound needs it."""
    if file.find(VIDEO) is not None:
        return file.find(AUDIO) is not None
    joined = file.find(JOINED)
    return joined is None or file.shape(joined)[-1] > JOINED_WIDTHS.get(file.shape(joined)[-1], 0)


def load_text(path: Path) -> TextFeatures | FullText:
    """Read a text cache of either form, ours or the community trainer's. Raises CacheError where it is neither."""
    file = CacheFile(path)
    video_key, audio_key, joined = file.find(VIDEO), file.find(AUDIO), file.find(JOINED)
    if video_key is not None:
        video, audio = file.tensor(video_key), None if audio_key is None else file.tensor(audio_key)
    elif joined is not None:
        video, audio = _split(path, file.tensor(joined))
    elif file.find(VIDEO_FEATURES) is not None:
        return read_compact(file)
    else:
        raise CacheError(f"{path} holds no text: {', '.join(file.keys) or 'it is empty'}. {MEND}", path)
    mask = next((file.tensor(key).reshape(-1) for key in MASK_KEYS if key in file.keys), None)
    return FullText(video, audio, torch.ones(video.shape[0], dtype=torch.int64) if mask is None else mask)


def read_compact(file: CacheFile) -> TextFeatures:
    """The features in a compact text cache, without the padding that another program may have stored."""
    from ..models.text import TextFeatures

    video_key, audio_key = file.find(VIDEO_FEATURES), file.find(AUDIO_FEATURES)
    if video_key is None:
        raise CacheError(f"{file.path} is not a compact text cache: it holds {', '.join(file.keys)}.", file.path)
    video = file.tensor(video_key)
    audio = video if audio_key is None else file.tensor(audio_key)
    mask = next((file.tensor(key).reshape(-1).bool() for key in MASK_KEYS if key in file.keys), None)
    if mask is not None and len(mask) == len(video) and not bool(mask.all()):
        shared = audio is video
        video = video[mask]
        audio = video if shared else audio[mask]
    return TextFeatures(video, audio)


def full_tensors(video: torch.Tensor | None, audio: torch.Tensor | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a full text cache from contexts [1, N, D]; the connectors leave nothing to be masked.

    All of it stands there twice, as in the community trainer's files: each stream, and both side by side.
    """
    token = dtype_token(dtype)
    streams = {VIDEO: video, AUDIO: audio}
    tensors = {f"{key}{token}": context[0].to(dtype) for key, context in streams.items() if context is not None}
    joined = torch.cat(list(tensors.values()), dim=-1)
    mask = torch.ones(joined.shape[0], dtype=torch.int64)
    return {**tensors, f"{JOINED}{token}": joined, **{key: mask.clone() for key in MASK_KEYS}}


def compact_tensors(features: TextFeatures, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a compact text cache; both streams share one where they are the same tensor."""
    token = dtype_token(dtype)
    tensors = {f"{VIDEO_FEATURES}{token}": features.video.to(dtype)}
    if features.audio is not features.video:
        tensors[f"{AUDIO_FEATURES}{token}"] = features.audio.to(dtype)
    return tensors


def _split(path: Path, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The streams of `text_*`, where older files have both side by side: [N, video | audio]."""
    width = JOINED_WIDTHS.get(joined.shape[-1])
    if width is None:
        raise CacheError(f"{path}: text of width {joined.shape[-1]} is of no known model. {MEND}", path)
    return joined[..., :width], joined[..., width:] if joined.shape[-1] > width else None
