"""What a dataset file can give, and who uses it: data that is given and trains nothing is refused by name.

A plain LoRA would come out, and nobody would know. A feature that uses such data adds its condition to CONSUMERS, and
from then on the error is raised only where the settings do not ask for that feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..config import RunConfig
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetSettings
from ..dataset.items import Item
from ..errors import ConfigError
from ..feed.loader import TrainingSet

Uses = Callable[[RunConfig], bool]


@dataclass(frozen=True)
class SideData:
    """A kind of data beside the media. `settings` of a dataset name it, and `sample` is what a sample has of it."""

    settings: tuple[str, ...]
    sample: str
    mend: str


REFERENCES = SideData(
    ("reference_directory", "reference_cache_directory"),
    "reference_path",
    'No condition uses references: add [[video.conditions]] with type = "reference" to the run (IC-LoRA). '
    "Leave it out to train a plain LoRA.",
)
REFERENCE_SOUNDS = SideData(
    ("reference_audio_directory", "reference_audio_cache_directory"),
    "reference_audio_path",
    'No condition uses reference sounds: add [[audio.conditions]] with type = "reference" to the run. '
    "Leave it out to train a plain LoRA.",
)
MASKS = SideData(
    ("mask_directory",),
    "mask_path",
    'No condition uses masks: add [[video.conditions]] with type = "mask" to the run (inpainting). '
    "Leave it out to train a plain LoRA.",
)
SOUND_MASKS = SideData(
    ("audio_mask_directory",),
    "audio_mask_path",
    'No condition uses masks of sound: add [[audio.conditions]] with type = "mask" to the run. '
    "Leave it out to train a plain LoRA.",
)
VALIDATION = SideData(
    ("validation_datasets",),
    "",
    "Set validation.every to measure the loss on its clips, sample.validation_clips to draw samples of them on the "
    "way, or leave it out.",
)


def _draws_validation_clips(run: RunConfig) -> bool:
    return run.sample.wanted and run.sample.validation_clips > 0 and run.model.mode != "audio"


def _measures_validation(run: RunConfig) -> bool:
    return run.validation.wanted


def _has_condition(stream: str, kind: str) -> Uses:
    """Whether a condition of this type stands in the stream."""

    def uses(run: RunConfig) -> bool:
        settings = run.video if stream == "video" else run.audio
        return run.model.mode in (stream, "av") and any(one.type == kind for one in settings.conditions)

    return uses


CONSUMERS: dict[SideData, list[Uses]] = {
    REFERENCES: [_has_condition("video", "reference")],
    REFERENCE_SOUNDS: [_has_condition("audio", "reference")],
    MASKS: [_has_condition("video", "mask")],
    SOUND_MASKS: [_has_condition("audio", "mask")],
    VALIDATION: [_draws_validation_clips, _measures_validation],
}


def require_used(run: RunConfig, dataset: DatasetConfig) -> None:
    """Raise ConfigError that names each setting of `dataset` that gives what `run` does not use."""
    unused = _unused(run)
    lines = [
        f"{ref.name}.{setting}: {one.mend}"
        for ref in dataset.refs
        for one in unused
        for setting in one.settings
        if _has(ref.entry, setting)
    ]
    if dataset.validation_datasets and VALIDATION in unused:
        lines.append(f"{VALIDATION.settings[0]}: {VALIDATION.mend}")
    _refuse(lines)


def require_samples_used(run: RunConfig, data: TrainingSet) -> None:
    """The same for what comes with the samples: from a column of a list, or from caches that lie there."""
    _refuse(
        _of_some(one, [sample.key for sample in data.samples if getattr(sample, one.sample) is not None])
        for one in _unused(run)
        if one.sample
    )


def require_items_used(run: RunConfig, items: Sequence[Item]) -> None:
    """The same for what the rows of lists give, before it is encoded."""
    for_sound = (REFERENCE_SOUNDS, SOUND_MASKS)
    _refuse(
        _of_some(one, [item.key for item in items if getattr(item, one.sample.removesuffix("_path")) is not None])
        for one in _unused(run)
        if one.sample and run.model.mode != ("video" if one in for_sound else "audio")
    )


def _of_some(one: SideData, keys: Sequence[str]) -> str:
    """The line that names the samples `keys`, which have it; "" where none has."""
    more = f" and {len(keys) - 1} other samples" if len(keys) > 1 else ""
    return f"{one.sample.removesuffix('_path')} of {keys[0]}{more}: {one.mend}" if keys else ""


def _unused(run: RunConfig) -> list[SideData]:
    return [one for one, consumers in CONSUMERS.items() if not any(uses(run) for uses in consumers)]


def _has(entry: DatasetSettings, setting: str) -> bool:
    return getattr(entry, setting, None) is not None


def _refuse(lines: Iterable[str]) -> None:
    if lines := [line for line in lines if line]:
        raise ConfigError("The dataset gives what this run would not use:\n" + "\n".join(f"  {line}" for line in lines))
