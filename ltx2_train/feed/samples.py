"""What training reads: a sample with the paths of its caches, and its text in either form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..caching import cache_file as caches
from ..caching.cache_file import CacheFile
from ..caching.encode_text import read_compact
from ..dataset.dataset_file import DatasetSettings
from ..errors import CacheError
from ..objective.audio import AudioSettings
from ..shapes import LatentShape

if TYPE_CHECKING:
    from ..models.text import TextFeatures

# Width of the video part of text whose streams were stored as one: LTX-2 3840 (| 3840), LTX-2.3 4096 (| 2048).
JOINED_WIDTHS = {3840: 3840, 7680: 3840, 4096: 4096, 6144: 4096}


@dataclass(frozen=True)
class SoundBuckets:
    """How sounds of several lengths become batches; one of these for each dataset. `interval` is in seconds."""

    strategy: Literal["pad", "truncate"] = "pad"
    interval: float = 2.0
    separate: bool = False

    @classmethod
    def of(cls, entry: DatasetSettings, run: AudioSettings) -> SoundBuckets:
        """What the dataset says, else what the run says, else the default; as flags count in the community trainer."""

        def chosen(key: str, flag: Any) -> Any:
            return getattr(entry, key) if flag is None or key in entry.model_fields_set else flag

        return cls(
            chosen("audio_bucket_strategy", run.bucket_strategy),
            chosen("audio_bucket_interval", run.bucket_interval),
            chosen("separate_audio_buckets", run.separate_buckets),
        )


@dataclass(frozen=True)
class Sample:
    """One cached clip and its caption. `dataset` counts within its list, of training or of validation, so nothing is
    looked up by it; `buckets` is what it says of batches of sound. The optional values override the run's.

    `kind` is what is trained of it: "audio" has no picture, be it a recording or, in mode audio, the sound of a clip;
    its `shape` then is that of an imagined video, which the noise levels follow. `audio_steps` counts the latents of
    its sound, 0 for none. References and masks are None where a sample has none, or the mode no use for them.
    """

    key: str
    shape: LatentShape
    fps: float
    caption: str
    latent_path: Path
    text_path: Path
    dataset: int = 0
    repeats: int = 1
    buckets: SoundBuckets = SoundBuckets()
    first_frame_probability: float | None = None
    video_loss_weight: float | None = None
    kind: Literal["video", "image", "audio"] = "video"
    audio_path: Path | None = None
    audio_steps: int = 0
    audio_loss_weight: float | None = None
    reference_path: Path | None = None
    reference_audio_path: Path | None = None
    mask_path: Path | None = None
    audio_mask_path: Path | None = None


@dataclass(frozen=True)
class FullText:
    """Text after the connectors: [N, D] a stream, and [N] of 1 (attend) and 0."""

    video_context: torch.Tensor
    audio_context: torch.Tensor | None
    mask: torch.Tensor


def load_text(path: Path) -> TextFeatures | FullText:
    """Read a text cache of either form, ours or the community trainer's. Raises CacheError where it is neither."""
    file = CacheFile(path)
    if file.find("video_features_") is not None:
        return read_compact(file)
    video_key, audio_key = file.find("video_prompt_embeds_"), file.find("audio_prompt_embeds_")
    joined = file.find("text_") if video_key is None else None
    if joined is not None:
        video, audio = _split(path, file.tensor(joined))
    elif video_key is not None:
        video = file.tensor(video_key)
        audio = None if audio_key is None else file.tensor(audio_key)
    else:
        raise CacheError(f"{path} holds no text: {', '.join(file.keys) or 'it is empty'}. {caches.MEND}", path)
    for name in ("prompt_attention_mask", "text_mask"):
        if name in file.keys:
            return FullText(video, audio, file.tensor(name).reshape(-1))
    return FullText(video, audio, torch.ones(video.shape[0], dtype=torch.int64))


def _split(path: Path, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The streams of `text_*`, where older files have both side by side: [N, video | audio]."""
    width = JOINED_WIDTHS.get(joined.shape[-1])
    if width is None:
        raise CacheError(f"{path}: text of width {joined.shape[-1]} is of no known model. {caches.MEND}", path)
    return joined[..., :width], joined[..., width:] if joined.shape[-1] > width else None
