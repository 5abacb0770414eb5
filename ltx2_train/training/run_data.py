"""The data of a run: its dataset, with the caches as its settings of sound have them heard."""

from __future__ import annotations

from ..caching.recipe import CacheRecipe
from ..config import RunConfig
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import DatasetPlan
from ..events import Events
from ..feed.loader import TrainingSet


def open_data(
    run: RunConfig,
    recipe: CacheRecipe,
    events: Events | None = None,
    dataset: DatasetConfig | None = None,
    plan: DatasetPlan | None = None,
) -> TrainingSet:
    """The samples of `run`, whose caches are held against `recipe`.

    `dataset` and `plan` spare reading and planning its dataset file again. Raises ConfigError, DataError, and
    CacheError that lists what is missing or stale and why.
    """
    dataset = dataset or DatasetConfig.read(run.need("data.config"), run.foreign)
    return TrainingSet.open(dataset, recipe, events, plan, run.audio)
