"""The state of a run's caches against its checkpoint, text encoder and dataset."""

from __future__ import annotations

from ..caching.status import CacheStatus, cache_status
from ..config import RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import plan_dataset
from ..events import Events, shielded


def status_of_caches(run: RunConfig, events: Events | None = None) -> CacheStatus:
    """Compare every cache that `run` needs; reads headers only. Raises TrainerError."""
    events = shielded(events)
    recipe = BaseFiles.find(run, events).recipe(run)
    return cache_status(plan_dataset(DatasetConfig.read(run.need("data.config")), events), recipe)
