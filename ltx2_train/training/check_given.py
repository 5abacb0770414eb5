"""Whether what conditions give can be given: found from settings, shapes and small files, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..caching.cache_file import CacheFile
from ..conditions.given import Target, is_given, why_not_given
from ..conditions.reference import downscale
from ..conditions.settings import AudioReference, Condition, Mask, Reference
from ..conditions.trained import Trained, reference_of, reference_sound_of
from ..config import RunConfig
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetSettings
from ..errors import ConfigError
from ..events import Events
from ..feed.loader import Sample
from ..sampling.prompts import Prompt

_NAMED = 5  # samples that a message names
# what to do instead of a second condition of one kind: each sample has one file of it
_INSTEAD = {
    Mask: "keep one, with the probability that both together should have",
    Reference: "keep one. A clip has one reference; several subjects are frames of one reference: reference_frames of "
    "the dataset, 1 + 8 (N - 1) for N of them",
    AudioReference: "keep one. A clip has one reference sound; put one reference sound after another in one file",
}


def check_streams(config: RunConfig) -> None:
    """What the settings alone show. Raises ConfigError."""
    mode = config.model.mode
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        if mode not in (stream, "av") and (settings.conditions or not settings.generated):
            key = "conditions" if settings.conditions else "generated"
            raise ConfigError(
                f"{stream}.{key} is set, but model.mode is {mode}, which has no {stream}. Set model.mode to av, or "
                f"take {stream}.{key} out."
            )
        if not settings.generated and mode != "av":
            raise ConfigError(
                f"{stream}.generated is false, but model.mode is {mode}, so nothing would be left to learn. A given "
                "stream needs the other beside it: set model.mode to av."
            )
    if not (config.video.generated or config.audio.generated):
        raise ConfigError(
            "video.generated and audio.generated are both false, so nothing would be learned. Set one of them to true."
        )
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        for one in settings.conditions:
            if isinstance(one, (Reference, AudioReference, Mask)) and one.probability == 0:
                raise ConfigError(
                    f"{stream}.conditions: the condition of type {one.type} has probability 0, so what it needs would "
                    "be cached and never used. Raise its probability, or take it out."
                )
        parts = [one.type for one in settings.conditions if is_given(one)]
        if parts and not settings.generated:
            raise ConfigError(
                f"{stream}.generated is false, so the whole {stream} is given, and {stream}.conditions of type "
                f"{', '.join(parts)} would change nothing. Take them out, or set {stream}.generated to true."
            )
        for kind in (type(one) for one in settings.conditions):
            if sum(type(one) is kind for one in settings.conditions) > 1 and kind in (Reference, AudioReference, Mask):
                name = next(one.type for one in settings.conditions if type(one) is kind)
                raise ConfigError(f"{stream}.conditions: there are two conditions of type {name}; {_INSTEAD[kind]}.")


def check_supplied(config: RunConfig, dataset: DatasetConfig) -> None:
    """What the settings of the dataset show before one medium is looked at. Raises ConfigError that names the setting
    whose data a condition asks for."""
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        for condition in settings.conditions:
            data = _data_of(stream, condition)
            if data is not None and not any(data.may_come_with(entry) for entry in dataset.datasets):
                raise _none_has(stream, data)


def check_samples(config: RunConfig, samples: Sequence[Sample], events: Events) -> None:
    """What the samples show. Raises ConfigError that names settings and samples; what some lack is a warning."""
    if not samples:  # no clips are held out
        return
    reasons = {sample.key: reason for sample in samples if (reason := next(_problems(config, sample), None))}
    if reasons:
        key, reason = next(iter(reasons.items()))
        more = f" So {_are(len(reasons) - 1)}." if len(reasons) > 1 else ""
        raise ConfigError(f"{key}: {reason}.{more}")
    _tell_black(config, samples, events)
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        for condition in settings.conditions:
            _require_some(stream, condition, samples, events)


def as_cached(config: RunConfig, samples: Sequence[Sample], trained: Trained) -> Trained:
    """`trained` with the factors that the caches of the references have, whatever the dataset file says.

    Raises ConfigError where they are of two kinds: whoever samples with the LoRA has one number for all.
    """
    if reference_of(config.video.conditions) is None:
        return trained
    found: dict[tuple[int, int], str] = {}
    for sample in samples:
        if sample.reference_path is not None and sample.kind != "audio":
            factor = downscale(CacheFile(sample.reference_path).latent_shape(), sample.shape)
            found.setdefault((factor or 1, sample.reference_temporal_scale), sample.key)
    if len(found) > 1:
        (one, other), (first, second) = list(found)[:2], list(found.values())[:2]
        raise ConfigError(
            f"References are of two kinds: that of {first} is {one[0]} times smaller than its clip with {one[1]} times "
            f"fewer frames a second, that of {second} {other[0]} and {other[1]}. A LoRA is sampled with one kind. Give "
            "all datasets the same reference_downscale and reference_temporal_scale, and cache again."
        )
    for factor, scale in found:
        trained = replace(trained, downscale=factor, temporal_scale=scale)
    return trained


def _tell_black(config: RunConfig, samples: Sequence[Sample], events: Events) -> None:
    """Warn of masks that give nothing at all: such clips train as if they had none."""
    if not any(isinstance(one, Mask) for one in config.video.conditions):
        return
    masked = [one for one in samples if one.mask_path is not None and one.kind != "audio"]
    black = [one.key for one in masked if one.mask_path and not bool(CacheFile(one.mask_path).mask().any())]
    if black:
        more = " ..." if len(black) > _NAMED else ""
        events.message(
            f"The masks of {len(black)} samples are black all over and give nothing, so all of the picture is made: "
            f"{', '.join(black[:_NAMED])}{more}. White is given.",
            "warning",
        )


def tell_ungiven(config: RunConfig, prompts: Sequence[Prompt], events: Events) -> None:
    """Warn where samples are not given what the LoRA is trained with, since they then show little of it, and where
    the layers are those of an in-context LoRA and nothing is shown in training."""
    shows = reference_of(config.video.conditions) or reference_sound_of(config.audio.conditions)
    if config.lora.target in ("v2v", "audio_ref_only_ic") and shows is None:
        events.message(
            f"lora.target = {config.lora.target} names layers alone: no condition gives a reference, so a plain LoRA "
            'is trained. For an IC-LoRA add a condition of type = "reference".',
            "warning",
        )
    wanted: list[tuple[str, bool, str]] = []
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        shown = [one for prompt in prompts for one in prompt.given if one.stream == stream]
        if any(isinstance(one, (Reference, AudioReference)) for one in settings.conditions):
            option = "--v" if stream == "video" else "--ra"
            wanted.append((f"a reference ({option} PATH)", any(one.is_reference for one in shown), stream))
        if not settings.generated:
            kind = "video_to_audio" if stream == "video" else "audio_to_video"
            wanted.append((f"its {stream} (a condition {kind})", any(one.condition is None for one in shown), stream))
    for what, there, _ in wanted:
        if prompts and not there:
            events.message(
                f"The LoRA is trained with {what}, and no sample is given one, so samples show little of it. Name one "
                "in sample.prompts, or set sample.validation_clips.",
                "warning",
            )


def _problems(config: RunConfig, sample: Sample) -> Iterator[str]:
    if sample.kind == "video" and config.video.generated and config.model.mode != "audio":
        target = Target.video(sample.shape, sample.fps)
        if reason := why_not_given(config.video.conditions, target):
            yield f"it {reason}"
        if any(isinstance(one, Mask) for one in config.video.conditions) and sample.mask_path is not None:
            if bool(CacheFile(sample.mask_path).mask().all()):
                yield "its mask is white all over, so nothing is left to make. Paint black what the model should make"
    if sample.audio_steps and config.audio.generated and config.model.mode != "video":
        if reason := why_not_given(config.audio.conditions, Target(sample.audio_steps)):
            yield f"its sound {reason}"
        masked = any(isinstance(one, Mask) for one in config.audio.conditions)
        if masked and sample.audio_mask_path is not None and bool(CacheFile(sample.audio_mask_path).mask().all()):
            yield "the mask of its sound gives all of it, so nothing is left to make. Leave out what should be made"
        voice = sample.reference_audio_path if reference_sound_of(config.audio.conditions) is not None else None
        if voice is not None and CacheFile(voice).silent:
            yield "its reference sound is silence, which tells nothing of a voice. Use another take, or take it out"
    wanted = reference_of(config.video.conditions)
    if wanted is not None and sample.reference_path is not None and config.model.mode != "audio":
        scale, asked = sample.reference_temporal_scale, wanted.temporal_scale_factor
        if asked not in (None, scale):
            yield (
                f"its reference is cached with reference_temporal_scale = {scale}, and video.conditions asks for a "
                f"temporal_scale_factor of {asked}. Set reference_temporal_scale = {asked} in the dataset file and "
                "cache again, or take temporal_scale_factor out"
            )
        size = CacheFile(sample.reference_path).latent_shape()
        if downscale(size, sample.shape) is None:
            yield (
                f"its reference is {size.width}x{size.height} latents and the clip {sample.shape.width}x"
                f"{sample.shape.height}, which no whole number ties together. Choose a reference_downscale that "
                "divides width / 32 and height / 32 of the clip"
            )


@dataclass(frozen=True)
class _Data:
    """What a condition takes of each sample: its name, the setting of the dataset that gives it, and where a sample
    has it."""

    name: str
    setting: str
    caches: str
    path: str

    def may_come_with(self, entry: DatasetSettings) -> bool:
        """Whether the dataset gives it: by a folder, or perhaps by a list or caches, which only a closer look tells."""
        listed = entry.from_caches or entry.source_key.endswith("_file")
        return listed or any(getattr(entry, key, None) is not None for key in (self.setting, self.caches))


_MASK = _Data("mask", "mask_directory", "", "mask_path")
_SOUND_MASK = _Data("mask", "audio_mask_directory", "", "audio_mask_path")
_REFERENCE = _Data("reference", "reference_directory", "reference_cache_directory", "reference_path")
_REFERENCE_SOUND = _Data(
    "reference sound", "reference_audio_directory", "reference_audio_cache_directory", "reference_audio_path"
)


def _data_of(stream: str, condition: Condition) -> _Data | None:
    """What `condition` takes of each sample beside its media; None where it takes nothing."""
    if isinstance(condition, Mask):
        return _SOUND_MASK if stream == "audio" else _MASK
    if isinstance(condition, Reference):
        return _REFERENCE
    return _REFERENCE_SOUND if isinstance(condition, AudioReference) else None


def _none_has(stream: str, data: _Data) -> ConfigError:
    return ConfigError(
        f"{stream}.conditions asks for a {data.name}, and not one sample has any. Set {data.setting} in the dataset "
        "file, or take the condition out."
    )


def _require_some(stream: str, condition: Condition, samples: Sequence[Sample], events: Events) -> None:
    data = _data_of(stream, condition)
    if data is None:
        return
    concerned = [one for one in samples if (one.audio_steps if stream == "audio" else one.kind != "audio")]
    lacking = [one.key for one in concerned if getattr(one, data.path) is None]
    if samples and len(lacking) == len(concerned):
        raise _none_has(stream, data)
    if lacking:
        named = ", ".join(lacking[:_NAMED]) + (" ..." if len(lacking) > _NAMED else "")
        events.message(
            f"{len(lacking)} of {len(concerned)} samples have no {data.name} and train without: {named}.", "warning"
        )


def _are(count: int) -> str:
    return "is one more sample" if count == 1 else f"are {count} more samples"
