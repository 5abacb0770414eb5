"""The state of a run's caches against its checkpoint, text encoder and dataset."""

from __future__ import annotations

from ..caching.status import CacheStatus, cache_status, verify_caches
from ..config import RunConfig
from ..config.base_files import BaseFiles
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import plan_dataset
from ..events import Events, shielded


def status_of_caches(run: RunConfig, events: Events | None = None, verify: bool = False) -> CacheStatus:
    """Compare every cache that `run` needs; reads headers only, with `verify` all of each file. Raises TrainerError."""
    events = shielded(events)
    recipe = BaseFiles.find(run, events).recipe(run)
    plan = plan_dataset(DatasetConfig.read(run.need("data.config"), run.foreign), events)
    if verify:
        verify_caches(plan, recipe, events)
    return cache_status(plan, recipe)
