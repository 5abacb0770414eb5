"""The files of a run's base, found good from headers alone: what checks, caching and sampling all begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..caching.cache_file import Fingerprints
from ..caching.dino_model import DinoModel
from ..caching.recipe import Recipe, text_widths
from ..events import Events
from ..weights.fingerprint import part_fingerprint
from ..weights.info import CheckpointInfo
from ..weights.probe import require_trainable
from ..weights.text_encoder import check_text_encoder, text_fingerprint
from .groups import RunConfig


@dataclass(frozen=True)
class BaseFiles:
    """`projection` has the text projection and the connectors, most often the checkpoint itself."""

    checkpoint: Path
    encoder: Path
    projection: Path
    info: CheckpointInfo
    version: str

    @classmethod
    def find(cls, run: RunConfig, events: Events) -> BaseFiles:
        """Check the files that `run` names against each other. Raises ConfigError and CheckpointError in seconds."""
        checkpoint, encoder = run.need("model.checkpoint"), run.need("model.text_encoder")
        other = None if run.model.text_projection is None else run.need("model.text_projection")
        info = require_trainable(
            checkpoint, run.model.version, run.model.version_check, events, text_elsewhere=other is not None
        )
        check_text_encoder(encoder, other or checkpoint)
        assert info.version is not None, "a checkpoint that can be trained on has a version"
        version = info.version if run.model.version == "auto" else run.model.version
        return cls(checkpoint, encoder, other or checkpoint, info, version)

    def recipe(self, run: RunConfig, dino: bool = True) -> Recipe:
        """What the caches of `run` are made with. Raises ConfigError where, with `dino`, its model will not do."""
        mode = run.model.mode
        return Recipe(
            run.cache,
            mode,
            part_fingerprint(self.checkpoint, "video_vae") if mode != "audio" else "",
            part_fingerprint(self.checkpoint, "audio_vae") if mode != "video" else "",
            Fingerprints(
                part_fingerprint(self.projection, "text"), text_fingerprint(self.encoder, self.projection, run.gemma)
            ),
            DinoModel.find(run.cache.dino) if dino and mode != "audio" else None,
            text_widths(self.projection),
        )
