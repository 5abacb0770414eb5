"""Whether a run can train on a dataset: what its file shows, then what it comes to, before one medium is encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..config import RunConfig
from ..dataset.dataset_file import DatasetConfig
from ..dataset.notes import DataNote
from ..dataset.plan import DatasetPlan, Item
from ..errors import DataError, TrainerError
from ..feed.sample_check import NOTHING_TO_SEE
from .check_given import check_items, check_streams, check_supplied, problems_of_item
from .checks import dataset_triggers
from .effect import require_learning
from .held_out import require_media_apart, require_validation
from .regularizers.checks import check_items_of
from .unused import require_items_used, require_used
from .watch import nothing_heard


def require_dataset(run: RunConfig, dataset: DatasetConfig) -> None:
    """Raise ConfigError where `run` could not train on `dataset`, or not on all that it gives, as its settings show."""
    check_streams(run)
    require_used(run, dataset)
    check_supplied(run, dataset)
    require_learning(run, dataset)
    require_validation(run, dataset)


def require_plan(run: RunConfig, plan: DatasetPlan) -> None:
    """Raise TrainerError for what the media of the plan of a dataset show of the same."""
    for check in _checks(run, plan):
        check()


def require_media_of_mode(run: RunConfig, plan: DatasetPlan) -> None:
    """Raise DataError where `run` trains sound and nothing of `plan` has any, or pictures and all of it is sound."""
    if plan.from_caches:  # of what is in caches alone the plan says nothing
        return
    if run.model.mode == "video":
        if plan.items and all(item.kind == "audio" for item in plan.items):
            raise DataError(NOTHING_TO_SEE)
    elif plan.items and all(item.sound is None for item in plan.items):
        raise nothing_heard(len(plan.items), run.model.mode)


def idle_in_mode(run: RunConfig, plan: DatasetPlan) -> DataNote | None:
    """What is to be said of media in `plan` that the mode of `run` does not train on; None where there are none."""
    mode = run.model.mode
    idle = [item for item in plan.items if not item.serves(mode)]
    names = list(dict.fromkeys(item.source.path.name for item in idle))
    if not idle or len(idle) == len(plan.items):
        return None
    lacking = "picture" if mode == "video" else "sound"
    return DataNote("settings", f"{len(names)} files have no {lacking} and are not used in mode {mode}", names=names)


def _checks(run: RunConfig, plan: DatasetPlan) -> tuple[Callable[[], None], ...]:
    return (
        lambda: require_items_used(run, plan.items),
        lambda: require_media_apart(run, plan),
        lambda: check_items(run, plan),
        lambda: check_items_of(run, plan, dataset_triggers(plan.config)),
    )


class RunProblems:
    """Why `run` could not train on the file `dataset`, for those who look through it. Raises ConfigError where it could
    on none, as the settings of both show."""

    def __init__(self, run: RunConfig, dataset: Path) -> None:
        require_dataset(run, DatasetConfig.read(dataset, run.foreign))
        self.run = run

    def of_item(self, item: Item) -> Iterator[str]:
        """What keeps it from training on `item`, in words that follow its name."""
        yield from problems_of_item(self.run, item)

    @property
    def hears(self) -> bool:
        """Whether it trains on sound."""
        return self.run.model.mode != "video"

    def idle(self, plan: DatasetPlan) -> DataNote | None:
        """What of `plan` it does not train on, and says so."""
        return idle_in_mode(self.run, plan)

    def of_plan(self, plan: DatasetPlan) -> Iterator[str]:
        """What keeps it from training on all of `plan`, of which each item could be trained on."""
        for check in (*_checks(self.run, plan), lambda: require_media_of_mode(self.run, plan)):
            try:
                check()
            except TrainerError as error:
                yield str(error)
