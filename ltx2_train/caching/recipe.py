"""What the caches of a run are made with: its settings and mode, and the weights that compute them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..shapes import Mode
from ..weights.reader import TensorFile
from ..weights.t5 import is_t5, open_t5
from .cache_file import Fingerprints
from .settings import CacheSettings

if TYPE_CHECKING:
    from .dino_model import DinoModel


@dataclass(frozen=True)
class CacheRecipe:
    """`video_vae`, `audio_vae` and `text` are fingerprints of weights; an empty one is not known and not compared.

    `video_encoder` is that of the video VAE's encoder alone, which is the same for its file of any version.

    `dino` is None where no DINOv2 model is set. `text_widths` are those of the checkpoint's text features, which only
    the size of text caches depends on.
    """

    settings: CacheSettings = field(default_factory=CacheSettings)
    mode: Mode = "video"
    video_vae: str = ""
    audio_vae: str = ""
    text: Fingerprints = field(default_factory=Fingerprints)
    dino: DinoModel | None = None
    text_widths: tuple[int, ...] = ()
    video_encoder: str = ""


def text_widths(projection: Path, encoder: Path | None = None) -> tuple[int, ...]:
    """The widths of a checkpoint's text features: of both streams, or the one they share (2.0). Where nothing projects
    them, that of the text encoder's states. Reads headers."""
    if encoder is not None and is_t5(encoder):
        with open_t5(encoder) as files:
            return (files.config.hidden,)
    ends = ("video_aggregate_embed.weight", "audio_aggregate_embed.weight", ".aggregate_embed.weight")
    with TensorFile(projection) as file:
        return tuple(info.shape[0] for name, info in file.tensors.items() if f".{name}".endswith(ends))
