"""What a dataset file can give, and who uses it: data that is given and trains nothing is refused by name.

A plain LoRA would come out, and nobody would know. A feature that uses such data adds its condition to CONSUMERS, and
from then on the error is raised only where the settings do not ask for that feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..config import RunConfig
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetSettings
from ..dataset.items import Item
from ..errors import ConfigError
from ..feed.loader import Sample, TrainingSet
from ..shapes import Mode

Uses = Callable[[RunConfig], bool]


@dataclass(frozen=True)
class SideData:
    """A kind of data beside the media. `settings` of a dataset name it; `sample` and `item` say where a sample and an
    item of the plan have it."""

    settings: tuple[str, ...]
    sample: str
    item: str
    mend: str
    stream: Literal["", "video", "audio"] = ""  # that uses it

    def mend_in(self, mode: Mode) -> str:
        """What to do about it in `mode`, which may not have its stream at all."""
        if self.stream in ("", mode) or mode == "av":
            return self.mend
        lacking = "picture" if self.stream == "video" else "sound"
        return f"Mode {mode} makes no {lacking}, so nothing uses it. Leave it out, or set another model.mode."


REFERENCES = SideData(
    ("reference_directory", "reference_cache_directory"),
    "reference_paths",
    "references",
    'No condition uses references: add [[video.conditions]] with type = "reference" to the run (IC-LoRA). '
    "Leave it out to train a plain LoRA.",
    "video",
)
REFERENCE_SOUNDS = SideData(
    ("reference_audio_directory", "reference_audio_cache_directory"),
    "reference_audio_paths",
    "reference_audios",
    'No condition uses reference sounds: add [[audio.conditions]] with type = "reference" to the run. '
    "Leave it out to train a plain LoRA.",
    "audio",
)
MASKS = SideData(
    ("mask_directory",),
    "mask_path",
    "mask",
    'No condition uses masks: add [[video.conditions]] with type = "mask" to the run (inpainting). '
    "Leave it out to train a plain LoRA.",
    "video",
)
SOUND_MASKS = SideData(
    ("audio_mask_directory",),
    "audio_mask_path",
    "audio_mask",
    'No condition uses masks of sound: add [[audio.conditions]] with type = "mask" to the run. '
    "Leave it out to train a plain LoRA.",
    "audio",
)
# what a sample may have several of, each with a condition of its own: the stream, and the setting for all but the first
SEVERAL = (
    (REFERENCES, "video", "more_reference_directories"),
    (REFERENCE_SOUNDS, "audio", "more_reference_audio_directories"),
)
VALIDATION_DATA = SideData(
    ("validation_datasets",),
    "",
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
    VALIDATION_DATA: [_draws_validation_clips, _measures_validation],
}


def require_used(run: RunConfig, dataset: DatasetConfig) -> None:
    """Raise ConfigError that names each setting of `dataset` that gives what `run` does not use."""
    unused = _unused(run)
    lines = [
        f"{ref.name}.{setting}: {one.mend_in(run.model.mode)}"
        for ref in dataset.refs
        for one in unused
        for setting in one.settings
        if _has(ref.entry, setting)
    ]
    if dataset.validation_datasets and VALIDATION_DATA in unused:
        lines.append(f"{VALIDATION_DATA.settings[0]}: {VALIDATION_DATA.mend}")
    for one, stream, setting in SEVERAL:
        asked = 0 if one in unused else _asked(run, stream)
        lines += [
            f"{ref.name}.{setting}: {folder} is used by no condition: {_one_more(stream, asked)}"
            for ref in dataset.refs
            for folder in (getattr(ref.entry, setting)[asked - 1 :] if asked else ())
        ]
    _refuse(lines)


def require_samples_used(run: RunConfig, data: TrainingSet) -> None:
    """The same for what comes with the samples: from a column of a list, or from caches that lie there."""
    unused = _unused(run)
    lines = [
        _of_some(run, one, [sample.key for sample in data.samples if getattr(sample, one.sample)])
        for one in unused
        if one.sample
    ]
    counts = {one: {sample.key: len(getattr(sample, one.sample)) for sample in data.samples} for one, _, _ in SEVERAL}
    _refuse([*lines, *_too_many(run, unused, counts)])
    _require_clips(run, data.samples)


def require_items_used(run: RunConfig, items: Sequence[Item]) -> None:
    """The same for what the rows of lists give, before it is encoded."""
    unused = _unused(run)
    lines = [_of_some(run, one, [item.key for item in items if getattr(item, one.item)]) for one in unused if one.item]
    counts = {one: {item.key: len(getattr(item, one.item)) for item in items} for one, _, _ in SEVERAL}
    _refuse([*lines, *_too_many(run, unused, counts)])
    _require_clips(run, items)


def _require_clips(run: RunConfig, found: Sequence[Item] | Sequence[Sample]) -> None:
    """Raise ConfigError where keyframe slots are asked for and nothing that was `found` can have any."""
    if run.cache.keyframe_slots and found and all(one.kind != "video" for one in found):
        raise ConfigError(
            f"cache.keyframe_slots is {run.cache.keyframe_slots}, and the dataset holds no clip, which alone has "
            "frames between its ends. Set it to 0."
        )


def _too_many(run: RunConfig, unused: Sequence[SideData], counts: Mapping[SideData, Mapping[str, int]]) -> list[str]:
    """A line where samples have more references than conditions show; `counts` says how many each has."""
    lines = []
    for one, stream, _ in SEVERAL:
        asked = _asked(run, stream)
        keys = [key for key, count in counts[one].items() if count > asked]
        if asked and one not in unused and keys:
            most = max(counts[one].values())
            found = f"{keys[0]}{_more(keys)}: {most} {one.item.replace('_audios', ' sounds')}"
            lines.append(f"{found}, of which {most - asked} would not be used: {_one_more(stream, asked)}")
    return lines


def _asked(run: RunConfig, stream: str) -> int:
    """How many conditions of the stream show references."""
    settings = run.video if stream == "video" else run.audio
    return sum(one.type == "reference" for one in settings.conditions)


def _one_more(stream: str, asked: int) -> str:
    number = f"{asked} condition{'s' if asked > 1 else ''}"
    return (
        f'the run has {number} of type "reference" in {stream}.conditions, and each shows one. Add another '
        f"[[{stream}.conditions]], or take it out."
    )


def _of_some(run: RunConfig, one: SideData, keys: Sequence[str]) -> str:
    """The line that names the samples `keys`, which have it; "" where none has."""
    return f"{one.item.removesuffix('s')} of {keys[0]}{_more(keys)}: {one.mend_in(run.model.mode)}" if keys else ""


def _more(keys: Sequence[str]) -> str:
    return f" and {len(keys) - 1} other samples" if len(keys) > 1 else ""


def _unused(run: RunConfig) -> list[SideData]:
    return [one for one, consumers in CONSUMERS.items() if not any(uses(run) for uses in consumers)]


def _has(entry: DatasetSettings, setting: str) -> bool:
    return getattr(entry, setting, None) is not None


def _refuse(lines: Iterable[str]) -> None:
    if lines := [line for line in lines if line]:
        raise ConfigError("The dataset gives what this run would not use:\n" + "\n".join(f"  {line}" for line in lines))
