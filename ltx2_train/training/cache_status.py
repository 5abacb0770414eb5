"""The state of a run's caches against its checkpoint, text encoder and dataset."""

from __future__ import annotations

from ..caching.encode_dino import DinoModel
from ..caching.status import CacheStatus, cache_status
from ..config import RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import plan_dataset
from ..events import Events, shielded
from ..weights.fingerprint import part_fingerprint
from .checks import text_fingerprints


def status_of(run: RunConfig, events: Events | None = None) -> CacheStatus:
    """Compare every cache that `run` needs; reads headers only. Raises TrainerError."""
    events = shielded(events)
    base, mode = BaseFiles.find(run, events), run.model.mode
    plan = plan_dataset(DatasetConfig.read(run.need("data.config")), events)
    return cache_status(
        plan,
        run.cache,
        mode,
        part_fingerprint(base.checkpoint, "video_vae") if mode != "audio" else "",
        part_fingerprint(base.checkpoint, "audio_vae") if mode != "video" else "",
        text_fingerprints(base.encoder, base.projection, run.gemma),
        DinoModel.find(run.cache.dino),
    )
