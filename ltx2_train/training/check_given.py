"""Whether what conditions give can be given: found from settings, shapes and small files, before anything is loaded.

The file is long because settings, samples, caches and prompts are looked at for the same rows of conditions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..caching.cache_file import CacheFile
from ..caching.encode_mask import Masks, SoundMasks
from ..caching.encode_sound import ReferenceSound
from ..caching.kind import Job
from ..conditions.given import Target, is_given, tokens_of, why_not_given
from ..conditions.reference import downscale
from ..conditions.settings import (
    SWITCHES,
    AudioReference,
    Boundary,
    Condition,
    FirstFrame,
    Mask,
    Prefix,
    Reference,
    SpatialCrop,
)
from ..conditions.trained import Trained, reference_sounds_of, references_of
from ..config import RunConfig, TrainSettings
from ..dataset.companions import named_reference
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetSettings
from ..dataset.plan import DatasetPlan, Item
from ..errors import ConfigError
from ..events import Events
from ..feed.loader import Sample
from ..lora.file import load_lora_header
from ..sampling.prompts import Prompt
from ..shapes import AUDIO_LATENTS_PER_SECOND, SPATIAL_FACTOR, TEMPORAL_FACTOR, LatentShape

_NAMED = 5  # samples that a message names


def tell_start_references(config: RunConfig, trained: Trained, events: Events) -> None:
    """Warn where the LoRA that the run begins with learned from references which the run does not give, or which it
    gives otherwise; `trained` is how it gives them."""
    if config.lora.weights is None:
        return
    file = load_lora_header(config.lora.weights)
    before = Trained.read(file.metadata)
    if before is None:
        return
    given = [*references_of(config.video.conditions), *reference_sounds_of(config.audio.conditions)]
    if not given:
        events.message(
            f"{file.path.name}, of lora.weights, was trained with references, and this run gives none: it will learn "
            'to do without. To go on as before, give video.conditions a "reference" and the dataset its references.',
            "warning",
        )
        return
    names = {"reference_downscale": "downscale", "reference_temporal_scale": "temporal_scale"}
    shown = names if references_of(config.video.conditions) else {}
    for name, field in shown.items():
        if (then := getattr(before, field)) != (now := getattr(trained, field)):
            events.message(
                f"{file.path.name}, of lora.weights, was trained with {name} = {then}, and the dataset has {now}. Set "
                f"it to {then} to go on as before.",
                "warning",
            )


def check_streams(config: RunConfig) -> None:
    """What the settings alone show. Raises ConfigError."""
    config.require_own_folder()
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
        if sum(isinstance(one, Mask) for one in settings.conditions) > 1:
            raise ConfigError(
                f"{stream}.conditions: there are two conditions of type mask, and a clip has one mask. Keep one, with "
                "the probability that both together should have."
            )
    _require_alike(reference_sounds_of(config.audio.conditions))


def _require_alike(sounds: Sequence[AudioReference]) -> None:
    """Raise ConfigError where reference sounds differ in who attends to them or on which side of 0 they lie."""
    for switch in SWITCHES:
        said = {getattr(one, switch) for one in sounds}
        if len(said) > 1:
            raise ConfigError(
                f"audio.conditions: {switch} is true for one reference sound and false for another. All of a run are "
                "shown alike: give each the same."
            )


def check_supplied(config: RunConfig, dataset: DatasetConfig) -> None:
    """What the settings of the dataset show before one medium is looked at. Raises ConfigError that names the setting
    whose data a condition asks for."""
    _require_both(config, any(entry.kind != "audio" and entry.may_have_sound for entry in dataset.datasets))
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        for data in _data_of(stream, settings.conditions):
            if not any(data.may_come_with(entry) for entry in dataset.datasets):
                raise _none_has(stream, data)


def check_samples(config: RunConfig, samples: Sequence[Sample], events: Events, held_out: bool = False) -> None:
    """What the samples show, those that are trained on or those `held_out`. Raises ConfigError that names settings and
    samples; what some lack is a warning."""
    if not samples:  # no clips are held out
        return
    _refuse((sample.key, next(_problems(config, sample), None)) for sample in samples)
    if not held_out:
        _require_both(config, any(sample.kind != "audio" and sample.audio_steps for sample in samples))
        frames = [sample.shape.frames for sample in samples if sample.kind != "audio"]
        _require_moving(config, frames)
        _tell_idle_first_frame(config, samples, frames, events)
        _tell_rounded(config, max(sample.fps for sample in samples), events)
    _tell_black(config, samples, events)
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        for data in _data_of(stream, settings.conditions):
            _require_some(stream, data, samples, events, held_out)


def check_items(config: RunConfig, plan: DatasetPlan) -> None:
    """What the shapes of a plan show before anything of it is encoded. Raises ConfigError that names settings and
    files."""
    training = [item for item in plan.items if not item.validation]
    measured = [item for item in plan.items if item.validation] if config.validation.wanted else []
    measured = measured[: config.validation.clips or None]
    _refuse((item.key, next(problems_of_item(config, item), None)) for item in (*training, *measured))
    if plan.from_caches:  # of what has no media nothing is known yet
        return
    _require_both(config, any(item.kind != "audio" and item.sound is not None for item in training))
    _require_moving(config, [item.window.count for item in training if item.kind != "audio"])
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        heard = stream == "audio"
        for held_out, items in ((False, training), (True, measured)):
            concerned = [item for item in items if (item.sound is not None if heard else item.kind != "audio")]
            for data in _data_of(stream, settings.conditions) if concerned else ():
                if not any(data.of_item(item) for item in concerned):
                    raise _none_has(stream, data, held_out)


def check_made(config: RunConfig, jobs: Sequence[Job], failed: Collection[Path] = ()) -> None:
    """What masks and reference sounds show as soon as they are cached. Raises ConfigError that names files, or says
    that not one could be made. Of what is `failed` an older cache may still be there."""
    usable = [job for job in jobs if job.source not in failed and job.path.is_file()]

    def reason(job: Job) -> str:
        kind = job.kind
        if isinstance(kind, ReferenceSound):
            used = config.model.mode != "video" and config.audio.generated
            return _tells_nothing(config, kind.number, job.path) if used else ""
        if isinstance(kind, Masks):
            heard = isinstance(kind, SoundMasks)
            used = (config.audio if heard else config.video).generated
            item = job.item
            if not used:
                return ""
            if heard:
                return _gives_all(config, "audio", job.path, Target(0 if item.sound is None else item.sound.steps))
            return _gives_all(config, "video", job.path, Target.video(item.shape, item.fps))
        return ""

    _refuse((job.item.key, reason(job)) for job in usable)
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        for data in _data_of(stream, settings.conditions) if settings.generated else ():
            asked = [job for job in jobs if data.is_made_by(job)]
            if asked and not any(data.is_made_by(job) for job in usable):
                raise ConfigError(
                    f"{stream}.conditions asks for a {data.name}, and not one of the {len(asked)} files of "
                    f"{data.setting} can be used; {asked[0].source} is the first. What is wrong with each is said "
                    "above. Mend them, or take the condition out."
                )


def _refuse(found: Iterable[tuple[str, str | None]]) -> None:
    """Raise ConfigError where some of the samples, by their key, have a reason."""
    reasons = {key: reason for key, reason in found if reason}
    if reasons:
        key, reason = next(iter(reasons.items()))
        more = f" So {_are(len(reasons) - 1)}." if len(reasons) > 1 else ""
        raise ConfigError(f"{key}: {reason}.{more}")


def _require_both(config: RunConfig, some: bool) -> None:
    """Raise ConfigError where a stream is given whole and not one clip has it beside the other; `some`: one has."""
    for stream, settings, made in (("video", config.video, "sound"), ("audio", config.audio, "picture")):
        if not settings.generated and not some and not config.audio.silence_regularizer:
            raise ConfigError(
                f"{stream}.generated is false, so that the {made} of clips is learned beside the {stream} they have, "
                "and not one has both picture and sound. Add clips with sound, or set it to true."
            )


def _tell_rounded(config: RunConfig, fps: float, events: Events) -> None:
    """Say what becomes of a crop whose edges lie within latents, of a beginning or an end shorter than one, and of what
    is never given."""
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        for one in settings.conditions:
            if one.probability == 0:
                events.message(f"{stream}.conditions: the {one.type} has probability 0 and is never given.")
            if isinstance(one, Boundary) and one.seconds is not None:
                # of a picture the first latent is one frame, and each other eight
                frames = 1 if isinstance(one, Prefix) else TEMPORAL_FACTOR
                unit = 1 / AUDIO_LATENTS_PER_SECOND if stream == "audio" else frames / fps
                if one.seconds[0] < unit / 2:
                    events.message(
                        f"{stream}.conditions: the {one.type} of {one.seconds[0]:g} s is shorter than one latent, and "
                        f"one is given ({unit:.2f} s).",
                        "warning",
                    )
    firsts = [one.probability for one in config.video.conditions if isinstance(one, FirstFrame)]
    if len(firsts) > 1:
        together = 1 - math.prod(1 - chance for chance in firsts)
        said = " and ".join(f"{chance:g}" for chance in firsts)
        events.message(
            f"video.conditions: there are {len(firsts)} of type first_frame, with probability {said}; together they "
            f"give it with {together:.3g}. Keep one.",
            "warning",
        )
    for one in config.video.conditions:
        if isinstance(one, SpatialCrop) and any(edge % SPATIAL_FACTOR for edge in one.spatial_region):
            whole = [edge // SPATIAL_FACTOR * SPATIAL_FACTOR for edge in one.spatial_region]
            events.message(
                f"video.conditions: spatial_region {[*one.spatial_region]} has edges within latents of "
                f"{SPATIAL_FACTOR} pixels, and {whole} is given.",
                "warning",
            )


def _require_moving(config: RunConfig, frames: Collection[int]) -> None:
    """Raise ConfigError where a beginning or an end is given, and there are pictures alone, which have neither.

    `frames` are those of each sample that has a picture.
    """
    given = [one for one in config.video.conditions if isinstance(one, (Boundary, FirstFrame)) and one.probability]
    if given and config.video.generated and frames and max(frames) == 1:
        names = ", ".join(str(getattr(one, "type", "")) for one in given)
        raise ConfigError(
            f"video.conditions asks for {names}, and all samples are single pictures, which have neither beginning nor "
            "end. Train on clips, or take the condition out."
        )


def _tell_idle_first_frame(
    config: RunConfig, samples: Sequence[Sample], frames: Collection[int], events: Events
) -> None:
    """Warn where a probability of the first frame does not count: a condition says its own beside the short form, a
    dataset its own beside the condition, or, as recipes set it, single pictures alone are trained on."""
    own = [one.probability for one in config.video.conditions if isinstance(one, FirstFrame)]
    said, usual = config.train.first_frame_probability, TrainSettings().first_frame_probability
    if own and said not in (own[0], usual):
        events.message(
            f"train.first_frame_probability = {said:g} has no effect: the first_frame of video.conditions has a "
            f"probability of its own, {own[0]:g}.",
            "warning",
        )
    pictured = [sample for sample in samples if sample.kind != "audio"]
    of_datasets = {one.first_frame_probability for one in pictured if one.first_frame_probability is not None}
    if own and of_datasets - {own[0]}:
        whole = all(one.first_frame_probability is not None for one in pictured)
        events.message(
            f"The first_frame of video.conditions has probability {own[0]:g}, and {'every' if whole else 'a'} dataset "
            "says its own first_frame_probability, which counts for its clips: "
            f"{', '.join(f'{one:g}' for one in sorted(of_datasets))}"
            f"{', so that no first frame is ever given' if whole and of_datasets == {0} else ''}.",
            "warning",
        )
    asked = config.train.first_frame_probability or any(sample.first_frame_probability for sample in samples)
    if asked and config.model.mode != "audio" and frames and max(frames) == 1:
        events.message(
            "first_frame_probability has no effect: all samples are single pictures, of which nothing would be left.",
            "warning",
        )


def as_cached(config: RunConfig, samples: Sequence[Sample], trained: Trained) -> Trained:
    """`trained` with the factors that the caches of the references have, whatever the dataset file says.

    Raises ConfigError where they are of two kinds: whoever samples with the LoRA has one number for all.
    """
    if not references_of(config.video.conditions):
        return trained
    found: dict[tuple[int, int], str] = {}
    for sample in samples:
        for path in () if sample.kind == "audio" else filter(None, sample.reference_paths):
            factor = downscale(CacheFile(path).latent_shape(), sample.shape)
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
    pictured = [(one.key, one.mask_path) for one in samples if one.kind != "audio"]
    heard = [(one.key, one.audio_mask_path) for one in samples if one.audio_steps]
    for settings, masks, black, made, given in (
        (config.video, pictured, "are darker than one half all over", "the picture", "White is given."),
        (config.audio, heard, "of the sound are quiet or empty all over", "the sound", "Level 1, or a span, is given."),
    ):
        if not any(isinstance(one, Mask) for one in settings.conditions):
            continue
        keys = [key for key, path in masks if path is not None and not bool(CacheFile(path).mask().any())]
        if keys:
            more = " ..." if len(keys) > _NAMED else ""
            events.message(
                f"The masks of {len(keys)} samples {black} and give nothing, so all of {made} is made: "
                f"{', '.join(keys[:_NAMED])}{more}. {given}",
                "warning",
            )


def tell_ungiven(config: RunConfig, prompts: Sequence[Prompt], events: Events) -> None:
    """Warn where samples are not given what the LoRA is trained with, since they then show little of it, where the
    layers are those of an in-context LoRA and nothing is shown in training, and where a reference sound is to be hidden
    from a picture that is not there."""
    if config.model.mode == "audio" and any(
        one.hide_from_video for one in reference_sounds_of(config.audio.conditions)
    ):
        events.message(
            "audio.conditions: hide_from_video has no effect on what is learned: model.mode is audio, where there is "
            "no picture. Leave it out, or set model.mode to av.",
            "warning",
        )
    shows = [*references_of(config.video.conditions), *reference_sounds_of(config.audio.conditions)]
    if config.lora.target in ("v2v", "audio_ref_only_ic") and not shows:
        events.message(
            f"lora.target = {config.lora.target} names layers alone: no condition gives a reference, so a plain LoRA "
            'is trained. For an IC-LoRA add a condition of type = "reference".',
            "warning",
        )
    wanted: list[tuple[str, bool, str]] = []
    for stream, settings in (("video", config.video), ("audio", config.audio)):
        shown = [one for prompt in prompts for one in prompt.given if one.stream == stream]
        if count := sum(isinstance(one, (Reference, AudioReference)) for one in settings.conditions):
            option = "--v PATH" if stream == "video" else "--ra PATH"
            what = f"a reference ({option})" if count == 1 else f"{count} references ({' '.join([option] * count)})"
            most = max((_shown(prompt, stream) for prompt in prompts), default=0)
            wanted.append((what, most >= count, "one" if count == 1 else "as many"))
        if not settings.generated:
            kind = "video_to_audio" if stream == "video" else "audio_to_video"
            wanted.append((f"its {stream} (a condition {kind})", any(one.condition is None for one in shown), "one"))
    for what, there, so_much in wanted:
        if prompts and not there:
            events.message(
                f"The LoRA is trained with {what}, and no sample is given {so_much}, so "
                "samples show little of it. Name one in sample.prompts, or set sample.validation_clips.",
                "warning",
            )


def _shown(prompt: Prompt, stream: str) -> int:
    """How many references of `stream` a sample is given."""
    return sum(one.is_reference for one in prompt.given if one.stream == stream)


def _problems(config: RunConfig, sample: Sample) -> Iterator[str]:
    """Why the conditions cannot serve `sample`, as its caches are."""
    yield from _of_nothing(config, sample.kind, sample.audio_steps > 0)
    yield from _of_parts(config, sample.kind, sample.shape, sample.fps, sample.audio_steps)
    if sample.kind != "audio" and config.video.generated and config.model.mode != "audio":
        if sample.mask_path is not None and (
            reason := _gives_all(config, "video", sample.mask_path, Target.video(sample.shape, sample.fps))
        ):
            yield reason
    if sample.audio_steps and config.audio.generated and config.model.mode != "video":
        if sample.audio_mask_path is not None and (
            reason := _gives_all(config, "audio", sample.audio_mask_path, Target(sample.audio_steps))
        ):
            yield reason
        for number, voice in enumerate(sample.reference_audio_paths):
            if voice is not None and (reason := _tells_nothing(config, number, voice)):
                yield reason
    sizes = [None if path is None else CacheFile(path).latent_shape() for path in sample.reference_paths]
    yield from _of_references(config, sizes, sample.reference_temporal_scale, sample.shape)


def problems_of_item(config: RunConfig, item: Item) -> Iterator[str]:
    """Why the conditions cannot serve `item` of a plan, in words that follow its name; from its shape alone."""
    yield from _of_nothing(config, item.kind, item.sound is not None)
    yield from _of_parts(config, item.kind, item.shape, item.fps, 0 if item.sound is None else item.sound.steps)
    sizes = [reference.shape for reference in item.references]
    yield from _of_references(config, sizes, item.dataset.entry.reference_temporal_scale, item.shape)


def _of_nothing(config: RunConfig, kind: str, heard: bool) -> Iterator[str]:
    """Why nothing is left to learn of a sample, `heard` or not: one stream is given whole, and it has no other."""
    if not config.video.generated and not heard and not config.audio.silence_regularizer:
        yield (
            "it has no sound, and the picture is given whole (video.generated = false), so nothing of it would be "
            "learned. Take it out of the dataset"
        )
    if not config.audio.generated and kind == "audio":
        yield (
            "it has no picture, and the sound is given whole (audio.generated = false), so nothing of it would be "
            "learned. Take it out of the dataset"
        )


def _of_parts(config: RunConfig, kind: str, shape: LatentShape, fps: float, steps: int) -> Iterator[str]:
    """Why parts of a sample of `shape` and of `steps` of sound cannot be given."""
    if kind != "audio" and config.video.generated and config.model.mode != "audio":
        # among clips a picture has no part that could be too long
        parts = [one for one in config.video.conditions if kind == "video" or not isinstance(one, Boundary)]
        if reason := why_not_given(parts, Target.video(shape, fps)):
            yield f"it {reason}: see video.conditions"
    if steps and config.audio.generated and config.model.mode != "video":
        if reason := why_not_given(config.audio.conditions, Target(steps)):
            yield f"its sound {reason}: see audio.conditions"


def _of_references(
    config: RunConfig, sizes: Sequence[LatentShape | None], scale: int, shape: LatentShape
) -> Iterator[str]:
    """Why references of these `sizes` cannot be shown beside a sample of `shape`; None: there is none."""
    shown = [] if config.model.mode == "audio" else references_of(config.video.conditions)
    for number, (wanted, size) in enumerate(zip(shown, sizes, strict=False)):
        if size is None:
            continue
        what, asked = named_reference(number), wanted.temporal_scale_factor
        if asked not in (None, scale):
            yield (
                f"its {what} has reference_temporal_scale = {scale}, and video.conditions asks for a "
                f"temporal_scale_factor of {asked}. Set reference_temporal_scale = {asked} in the dataset file, and "
                "cache again what is cached, or take temporal_scale_factor out"
            )
        if downscale(size, shape) is None:
            yield (
                f"its {what} is {size.width}x{size.height} latents and the clip {shape.width}x"
                f"{shape.height}, which no whole number ties together. Choose a reference_downscale that "
                "divides width / 32 and height / 32 of the clip"
            )


def _gives_all(config: RunConfig, stream: str, path: Path, target: Target) -> str:
    """Why the mask of `target` cached at `path` will not do for the conditions of `stream`; "" where it will, or none
    asks for it."""
    settings = config.video if stream == "video" else config.audio
    if not any(isinstance(one, Mask) for one in settings.conditions):
        return ""
    mask = CacheFile(path).mask().flatten()
    if not bool(mask.all()):
        others = [one for one in settings.conditions if is_given(one) and not isinstance(one, Mask)]
        given = [tokens_of(one, target) for one in others if target.tokens == mask.numel()]
        if given and bool(torch.stack([mask, *given]).any(0).all()):
            names = ", ".join(str(getattr(one, "type", "")) for one in others)
            return (
                f"its mask and what else {stream}.conditions gives ({names}) may give all of it together, so nothing "
                "is left to make. Give less"
            )
        return ""
    if stream == "video":
        return "its mask is white all over, so nothing is left to make. Paint black what the model should make"
    return "the mask of its sound gives all of it, so nothing is left to make. Leave out what should be made"


def _tells_nothing(config: RunConfig, number: int, path: Path) -> str:
    """Why the reference sound `number`, cached at `path`, will not do; "" where it will, or no condition shows it."""
    if number >= len(reference_sounds_of(config.audio.conditions)) or not CacheFile(path).silent:
        return ""
    what = named_reference(number, "reference sound")
    return f"its {what} is silence, which tells nothing of a voice. Use another take, or take it out"


@dataclass(frozen=True)
class _Data:
    """What a condition takes of each sample: its name, the setting of the dataset that gives it, and where a sample
    and an item of a plan have it. Of references it is the one of this `number`, counted from 0."""

    name: str
    setting: str
    caches: str
    path: str
    item: str
    number: int | None = None

    def may_come_with(self, entry: DatasetSettings) -> bool:
        """Whether the dataset gives it: by a folder, or perhaps by a list or caches, which only a closer look tells."""
        if entry.from_caches or entry.source_key.endswith("_file"):
            return True
        if self.number:
            return len(getattr(entry, self.setting)) >= self.number
        return any(getattr(entry, key, None) is not None for key in (self.setting, self.caches))

    def is_made_by(self, job: Job) -> bool:
        """Whether `job` makes a cache of it; those of pictures beside clips say themselves when none is left."""
        kind = job.kind
        if isinstance(kind, ReferenceSound):
            return self.path == "reference_audio_paths" and kind.number == self.number
        if isinstance(kind, Masks):
            return self.path == ("audio_mask_path" if isinstance(kind, SoundMasks) else "mask_path")
        return False

    def of(self, sample: Sample) -> Path | None:
        """The cache of it that a sample has."""
        return self._numbered(getattr(sample, self.path))

    def of_item(self, item: Item) -> Any:
        """What an item of a plan has of it; None: nothing."""
        return self._numbered(getattr(item, self.item))

    def _numbered(self, value: Any) -> Any:
        if self.number is None:
            return value
        return value[self.number] if self.number < len(value) else None


_MASK = _Data("mask", "mask_directory", "", "mask_path", "mask")
_SOUND_MASK = _Data("mask", "audio_mask_directory", "", "audio_mask_path", "audio_mask")


def _data_of(stream: str, conditions: Sequence[Condition]) -> list[_Data]:
    """What `conditions` take of each sample beside its media."""
    found: list[_Data] = []
    if any(isinstance(one, Mask) for one in conditions):
        found.append(_SOUND_MASK if stream == "audio" else _MASK)
    for what, key, references in (
        ("reference", "reference", references_of(conditions)),
        ("reference sound", "reference_audio", reference_sounds_of(conditions)),
    ):
        for number in range(len(references)):
            setting = f"more_{key}_directories" if number else f"{key}_directory"
            name = named_reference(number, what)
            found.append(_Data(name, setting, f"{key}_cache_directory", f"{key}_paths", f"{key}s", number))
    return found


def _none_has(stream: str, data: _Data, held_out: bool = False) -> ConfigError:
    whose = "sample of validation_datasets" if held_out else "sample"
    where = "for those as well" if held_out else "in the dataset file"
    return ConfigError(
        f"{stream}.conditions asks for a {data.name}, and not one {whose} has any. Set {data.setting} {where}, or take "
        "the condition out."
    )


def _require_some(stream: str, data: _Data, samples: Sequence[Sample], events: Events, held_out: bool = False) -> None:
    concerned = [one for one in samples if (one.audio_steps if stream == "audio" else one.kind != "audio")]
    lacking = [one.key for one in concerned if data.of(one) is None]
    if samples and len(lacking) == len(concerned):
        raise _none_has(stream, data, held_out)
    if lacking:
        how = "are measured" if held_out else "train"
        named = ", ".join(lacking[:_NAMED]) + (" ..." if len(lacking) > _NAMED else "")
        events.message(
            f"{len(lacking)} of {len(concerned)} samples have no {data.name} and {how} without: {named}.", "warning"
        )


def _are(count: int) -> str:
    return "is one more sample" if count == 1 else f"are {count} more samples"
