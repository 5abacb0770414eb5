"""The clips that are held out of the training: which they are, and that they really are.

Needed before anything is loaded; what is measured on them is in validation.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..caching.cache_file import CacheFile
from ..config import RunConfig
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import DatasetPlan
from ..dataset.sources import copies
from ..errors import ConfigError
from ..events import Events
from ..feed.loader import Sample, TrainingSet


def require_validation(config: RunConfig, dataset: DatasetConfig) -> None:
    """Raise ConfigError where a validation loss, or samples of such clips, are asked for and there are none."""
    if config.sample.validation_clips and not dataset.validation_datasets:
        raise ConfigError(
            f"sample.validation_clips is {config.sample.validation_clips}, and the dataset file has no "
            "[[validation_datasets]] to draw. Add some, or set sample.validation_clips to 0."
        )
    if config.validation.wanted and not dataset.validation_datasets:
        name = "validation.every" if config.validation.every else "validation.every_epochs"
        raise ConfigError(
            f"{name} is set, and the dataset file has no [[validation_datasets]] to measure on. Add some, with clips "
            f"that are in none of the [[datasets]], or set {name} to 0."
        )


def _no_use(config: RunConfig) -> ConfigError:
    name = "validation.every" if config.validation.every else "validation.every_epochs"
    return ConfigError(
        f"{name} is set, and the [[validation_datasets]] hold no clip that model.mode = {config.model.mode} can use. "
        f"Add some, or set {name} to 0."
    )


def validation_clips(config: RunConfig, data: TrainingSet) -> tuple[Sample, ...]:
    """The clips that are measured, none where no loss is asked for."""
    if not config.validation.wanted:
        return ()
    return data.validation[: config.validation.clips or None]


def tell_fewer(config: RunConfig, count: int, events: Events) -> None:
    """Say where more clips are asked for than the `count` that are held out."""
    asked = {
        "validation.clips": config.validation.wanted and config.validation.clips,
        "sample.validation_clips": config.sample.wanted
        and config.model.mode != "audio"
        and config.sample.validation_clips,
    }
    for name, number in asked.items():
        if number > count:
            events.message(f"{name} is {number}, and the [[validation_datasets]] hold {count}: all of them are taken.")


def require_apart(config: RunConfig, data: TrainingSet) -> None:
    """Raise ConfigError that names clips which are both trained on and measured, found by what their caches say."""
    clips = validation_clips(config, data)
    if config.validation.wanted and not clips:
        raise _no_use(config)
    if not clips:
        return
    if both := _trained_as_well(clips, data):
        clip, other = next(iter(both.items()))
        more = f" So are {len(both) - 1} more." if len(both) > 1 else ""
        raise ConfigError(
            f"{clip} of the validation is made from the same file as {other}, which is trained on, so what was learned "
            f"by heart would look well.{more} Take it out of [[validation_datasets]] or of [[datasets]]."
        )


def tell_drawn_apart(config: RunConfig, data: TrainingSet, events: Events) -> None:
    """Say where clips of the validation that samples are drawn of are trained on as well, by what their caches say."""
    count = config.sample.validation_clips if config.sample.wanted and not config.validation.wanted else 0
    if both := _trained_as_well(data.validation[:count], data):
        clip, other = next(iter(both.items()))
        more = f", and so are {len(both) - 1} more" if len(both) > 1 else ""
        events.message(
            f"{clip} of the validation is made from the same file as {other}, which is trained on{more}: their samples "
            "show what was learned by heart.",
            "warning",
        )


def _trained_as_well(clips: Sequence[Sample], data: TrainingSet) -> dict[str, str]:
    """Of `clips` those whose medium is trained on: their keys, and those of the samples that are."""
    if not clips:
        return {}
    trained = {source: sample.key for sample in reversed(data.samples) if (source := _source(sample))}
    return {clip.key: trained[source] for clip in clips if (source := _source(clip)) in trained}


def require_media_apart(config: RunConfig, plan: DatasetPlan) -> None:
    """Raise ConfigError that names media which would be both trained on and measured, or says that none of those to be
    measured has what the mode trains, before they are encoded. What datasets of caches alone hold is not known yet."""
    if not config.validation.wanted:
        return
    trained, held = ([item for item in plan.items if item.dataset.validation == one] for one in (False, True))
    if held and not plan.from_caches and not any(item.serves(config.model.mode) for item in held):
        raise _no_use(config)
    measured = dict.fromkeys(item.source.media.path for item in held[: config.validation.clips or None])
    known = dict.fromkeys(item.source.media.path for item in trained)
    of = copies([*known, *measured])
    both = {path: of.get(path, path) for path in measured if of.get(path, path) in known}
    if both:
        path, other = next(iter(both.items()))
        what = f"is {other.name}" if path == other else f"is the same file as {other.parent.name}/{other.name}"
        more = f" So are {len(both) - 1} more." if len(both) > 1 else ""
        raise ConfigError(
            f"{path.parent.name}/{path.name} of [[validation_datasets]] {what}, which is trained on, so what was "
            f"learned by heart would look well.{more} Take it out of [[validation_datasets]] or of [[datasets]]."
        )


def _source(sample: Sample) -> str:
    """The content hash of the medium that a sample was made from; "" where another program's cache does not say."""
    path = sample.audio_path if sample.kind == "audio" and sample.audio_path is not None else sample.latent_path
    return CacheFile(path).origin
