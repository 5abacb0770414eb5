"""Whether a run comes to anything: a loss that moves something, and lengths that fit into it.

A loss whose weights are all 0 ends with the LoRA that it began with. A warm-up longer than the run, or a batch larger
than the dataset, is another run than the one that was described.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..config import RunConfig, SampleSettings, TrainSettings
from ..dataset.dataset_file import DatasetConfig
from ..dataset.sound_settings import SoundSettings
from ..errors import ConfigError
from ..events import Events
from ..families import FAMILIES
from ..feed.batches import BatchOrder
from ..feed.loader import Sample
from ..idle import shown_value
from ..objective.audio_balance import sample_weights
from ..objective.sigmas import SigmaSettings, resolve_mode
from .fit import MemoryPlan
from .regularizers.table import REGULARIZERS

_NAMED = 3
_PICTURED = (
    "crop",
    "flip",
    "color_jitter",
    "video_loss_weight",
    "first_frame_probability",
)  # what of a dataset is of its pictures alone


def require_learning(config: RunConfig, dataset: DatasetConfig) -> None:
    """Raise ConfigError where the settings keep every clip out of the loss, whatever the dataset comes to."""
    entries = dataset.datasets
    for name, ones in (("datasets", entries), ("validation_datasets", dataset.validation_datasets)):
        if config.model.mode == "audio" and ones and not any(one.may_have_sound for one in ones):
            raise ConfigError(
                f"model.mode is audio, and no media of the [[{name}]] can have sound: images have none, and nor have "
                "videos whose audio_source is none. Set audio_source to video or audio_files, add recordings, or set "
                "model.mode to video."
            )
    if not any(
        _learns(config, one.video_loss_weight, one.audio_loss_weight, one.kind != "audio", one.may_have_sound)
        for one in entries
    ):
        _refuse(config, any(one.video_loss_weight == 0 or one.audio_loss_weight == 0 for one in entries))
    held = dataset.validation_datasets if config.validation.wanted else ()
    plain = config.model_copy(update={"regularizers": type(config.regularizers)()})  # they are not measured
    if held and not any(
        _learns(plain, one.video_loss_weight, one.audio_loss_weight, one.kind != "audio", one.may_have_sound)
        for one in held
    ):
        raise ConfigError(
            f"The validation loss would always be 0: {' and '.join(_weights(config, own=True))} are 0 for every clip "
            "of the [[validation_datasets]]. Raise one of them (1 is usual), or set validation.every and "
            "validation.every_epochs to 0."
        )


def require_taught(config: RunConfig, samples: Sequence[Sample], events: Events) -> None:
    """The same with what each of the samples has. Warns of those that teach nothing where others do."""
    idle = [
        sample.key
        for sample in samples
        if not _learns(
            config, sample.video_loss_weight, sample.audio_loss_weight, sample.kind != "audio", sample.audio_steps > 0
        )
    ]
    if len(idle) == len(samples):
        own = any(sample.video_loss_weight == 0 or sample.audio_loss_weight == 0 for sample in samples)
        _refuse(config, own)
    if idle:
        more = f" and {len(idle) - _NAMED} more" if len(idle) > _NAMED else ""
        events.message(
            f"{len(idle)} of {len(samples)} samples teach nothing, since what they have counts 0 in the loss: "
            f"{', '.join(idle[:_NAMED])}{more}. Their steps are lost. Take them out of the dataset, or raise "
            f"{' or '.join(_weights(config, own=True))}.",
            "warning",
        )


def _learns(config: RunConfig, video: float | None, audio: float | None, pictured: bool, heard: bool) -> bool:
    """Whether a clip has a part in the loss. `video` and `audio` are the weights that its dataset gives it."""
    mode, sound = config.model.mode, config.audio
    if any(REGULARIZERS.get(name).teaches() for name in config.regularizers.wanted):
        return True
    if pictured and mode != "audio" and config.video.generated:
        if (config.loss.video_weight if video is None else video) > 0:
            return True
    filled = not heard and mode == "av" and sound.silence_regularizer and sound.silence_weight > 0
    weight = config.loss.audio_weight if audio is None else audio
    return mode != "video" and sound.generated and weight > 0 and (heard or filled)


def _refuse(config: RunConfig, own: bool) -> None:
    names = _weights(config, own)
    raise ConfigError(
        f"Nothing would be learned: {' and '.join(names)} {'is' if len(names) == 1 else 'are'} 0 for every clip, and "
        "no regularizer has a weight that trains something. Raise one of them (1 is usual)."
    )


def _weights(config: RunConfig, own: bool) -> list[str]:
    """The settings that say how much a clip counts; `own`: those of datasets too."""
    streams = [
        name
        for name, settings in (("video", config.video), ("audio", config.audio))
        if config.model.mode in (name, "av") and settings.generated
    ]
    names = [f"loss.{name}_weight" for name in streams]
    return names + [f"{name}_loss_weight of the datasets" for name in streams if own]


def tell_batches(order: BatchOrder, names: Sequence[str], events: Events) -> None:
    """Warn of each dataset whose batches are all smaller than its batch_size. `names` are those of the datasets."""
    for number, (size, largest, shapes) in order.fullness().items():
        if largest < size:
            why = (
                "it has no more samples (num_repeats counted)"
                if shapes == 1
                else f"its samples have {shapes} different sizes, lengths or frame rates, which are never mixed"
            )
            events.message(
                f"{names[number]}.batch_size is {size}, but no batch of it has more than {largest}: {why}. A step "
                "sees fewer clips than that; lower batch_size, or raise num_repeats or train.accumulation.",
                "warning",
            )


def tell_sounds(config: RunConfig, order: BatchOrder, events: Events) -> None:
    """Warn of what is asked for where sound is missing, or of its order, and finds nothing to do in these batches."""
    if config.model.mode != "av":
        return
    sound, share, balance = config.audio, order.share_of_sound(), config.loss.balance
    if balance.mode == "inv_freq" and share == 1 == balance.start:
        weights = sample_weights(config.loss.audio_weight, [sample.audio_loss_weight for sample in order.samples])
        if all(not weight or balance.min <= weight <= balance.max for weight in weights):
            events.message("loss.balance.mode = inv_freq has nothing to do: every batch carries sound.", "warning")
    if sound.silence_regularizer and all(sample.audio_steps for sample in order.samples):
        events.message("audio.silence_regularizer has nothing to do: every clip has sound.", "warning")
    orders = {"batch_probability": sound.batch_probability, "min_batches": sound.min_batches or None}
    for name, value in orders.items():
        if value is not None and share in (0, 1):
            carry = "every batch carries" if share else "no batch carries"
            events.message(
                f"audio.{name} = {value:g} has no effect: {carry} sound, so there is nothing to choose between.",
                "warning",
            )


def tell_grouping(config: RunConfig, dataset: DatasetConfig, samples: Sequence[Sample], events: Events) -> None:
    """Warn of settings of how sounds are grouped into batches, of the run and of datasets, that sort no sample here."""
    if config.model.mode == "video":
        return
    alone = {sample.dataset for sample in samples if sample.kind == "audio"}
    heard = {(sample.dataset, sample.audio_steps > 0) for sample in samples if sample.kind != "audio"}
    mixed = {number for number, has in heard if (number, not has) in heard}
    of_alone = "it counts for sounds without a picture, and there is none", alone
    rows = [
        ("bucket_strategy", "audio_bucket_strategy", *of_alone),
        ("bucket_interval", "audio_bucket_interval", *of_alone),
        ("separate_buckets", "separate_audio_buckets", "it parts clips with sound from those without, and no dataset "
            "has both", mixed),
    ]  # fmt: skip
    for name, own, why, used in rows:
        value = getattr(config.audio, name)
        given: dict[Any, list[int]] = {}  # by value, the datasets that say it themselves
        for number, entry in enumerate(dataset.datasets):
            if own in entry.model_fields_set and getattr(entry, own) != type(entry).model_fields[own].default:
                given.setdefault(getattr(entry, own), []).append(number)
        asked = [(f"audio.{name}", value, used)] if value else []
        asked += [
            (f"{', '.join(f'datasets[{one}]' for one in numbers)}: {own}", said, used.intersection(numbers))
            for said, numbers in given.items()
        ]
        for setting, said, by in asked:
            if not by:
                events.message(f"{setting} = {shown_value(said)} has no effect: {why}.", "warning")


def tell_overridden(config: RunConfig, dataset: DatasetConfig, samples: Sequence[Sample], events: Events) -> None:
    """Warn of settings of the run in whose place every sample has a value of its dataset, and the other way round."""
    train, loss, audio, mode = config.train, config.loss, config.audio, config.model.mode
    pictured = [sample for sample in samples if sample.kind != "audio"]
    heard = [sample for sample in samples if sample.audio_steps]
    alone = [sample for sample in samples if sample.kind == "audio"]
    plain = RunConfig()
    rows: list[tuple[str, Any, Any, str, list[Any]]] = [
        ("loss.video_weight", loss.video_weight, plain.loss.video_weight, "video_loss_weight",
            [one.video_loss_weight for one in pictured]),
        ("loss.audio_weight", loss.audio_weight, plain.loss.audio_weight, "audio_loss_weight",
            [one.audio_loss_weight for one in heard]),
        ("train.first_frame_probability", train.first_frame_probability, plain.train.first_frame_probability,
            "first_frame_probability", [one.first_frame_probability for one in pictured]),
        ("audio.bucket_strategy", audio.bucket_strategy, None, "audio_bucket_strategy",
            [one.buckets.strategy for one in alone]),
        ("audio.bucket_interval", audio.bucket_interval, None, "audio_bucket_interval",
            [one.buckets.interval for one in alone]),
        ("audio.separate_buckets", audio.separate_buckets, None, "separate_audio_buckets",
            [one.buckets.separate for one in samples]),
    ]  # fmt: skip
    for name, value, usual, own, values in rows:
        if value != usual and values and all(one not in (None, value) for one in values):
            events.message(
                f"{name} = {shown_value(value)} has no effect: every dataset says its own {own}, which counts.",
                "warning",
            )
    key, wide = "audio_only_sequence_resolution", audio.sequence_resolution
    for number, entry in enumerate(dataset.datasets if mode == "audio" and wide is not None else ()):
        if key in entry.model_fields_set and getattr(entry, key) != wide:
            events.message(
                f"datasets[{number}].{key} = {getattr(entry, key)} has no effect: audio.sequence_resolution = {wide} "
                "counts for all datasets.",
                "warning",
            )


def tell_other_stream(config: RunConfig, dataset: DatasetConfig, events: Events) -> None:
    """Warn of settings of datasets for the stream that is not trained; their file may be for several runs."""
    mode, named = config.model.mode, dict[tuple[str, ...], list[str]]()
    fields = SoundSettings.model_fields if mode == "video" else _PICTURED if mode == "audio" else ()
    for ref in dataset.refs:
        given = [name for name in fields if name in ref.entry.model_fields_set]
        defaults = type(ref.entry).model_fields
        if names := tuple(name for name in given if getattr(ref.entry, name) != defaults[name].default):
            named.setdefault(names, []).append(ref.name)
    for names, refs in named.items():
        has = "has" if len(names) == 1 else "have"
        stream = "sound" if mode == "video" else "picture"
        events.message(
            f"{', '.join(refs)}: {', '.join(names)} {has} no effect: model.mode = {mode} trains no {stream}.",
            "warning",
        )


def tell_levels(config: RunConfig, version: str, events: Events) -> None:
    """Warn of settings of the noise levels that draw none in a run on a model of `version`."""
    settings, plain = config.objective, SigmaSettings()
    form = resolve_mode(settings.mode, version)

    def changed(*names: str) -> str:
        return ", ".join(f"objective.{name}" for name in names if getattr(settings, name) != getattr(plain, name))

    if settings.min_timestep == settings.max_timestep:
        if names := changed("sampling", "mode", "shift", "std", "eps", "uniform_prob", "buckets"):
            events.message(
                f"{names}: no effect, since objective.min_timestep and max_timestep are both "
                f"{settings.min_timestep:g}, so that every sample gets this one level.",
                "warning",
            )
    elif settings.sampling != "uniform" and settings.mode == "auto" and form == "legacy":
        if names := changed("eps", "uniform_prob"):
            events.message(
                f"{names}: no effect, since they are of the stretched form, and objective.mode = auto is legacy for "
                f"{FAMILIES[version].name}. Leave them out, or set objective.mode to stretched.",
                "warning",
            )


def tell_unplanned(config: RunConfig, plan: MemoryPlan, events: Events) -> None:
    """Say which settings of quantization and of memory were set for what `plan` does not do."""
    quant = plan.quant_settings(config.quant)
    if plan.format == "kept":  # nothing is quantized anew
        quant = quant.model_copy(update={"format": "none"})
    planned = config.model_copy(update={"quant": quant, "memory": plan.memory_settings(config.memory)})
    told = {one.setting for one in config.without_effect}
    for one in planned.without_effect:
        group, key = one.setting.split(".")[:2]
        if (
            group in ("quant", "memory")
            and one.setting not in told
            and getattr(getattr(config, group), key) == one.value
        ):
            value = shown_value(one.value)
            events.message(f"{one.setting} = {value} has no effect in this plan: it counts only {one.words}.")


def tell_lengths(config: RunConfig, total: int, events: Events, batches: int = 1) -> None:
    """Warn of what is counted in steps, or in passes over the data of so many `batches`, and does not come to its end,
    or to pass, in a run of `total` steps."""
    for text in (*_too_long(config, total), *_passes_too_many(config, total * config.train.batches_a_step / batches)):
        events.message(f"{text}, and the run has {total} step{'s' if total > 1 else ''}.", "warning")


def _too_long(config: RunConfig, total: int) -> Iterable[str]:
    schedule, validation, sample = config.schedule, config.validation, config.sample
    if schedule.name != "constant" and schedule.warmup >= max(2, total):
        yield (
            f"schedule.warmup is {schedule.warmup:g} steps, so the learning rate rises until the end and never stays "
            "at train.learning_rate"
        )
    if schedule.name == "step" and schedule.step_size >= max(1, total):
        yield f"schedule.step_size is {schedule.step_size:g} steps, so the learning rate never falls"
    sound = config.audio
    first = sound.supervision_interval * max(1, -(-sound.supervision_warmup // sound.supervision_interval))
    if config.model.mode == "av" and sound.supervision != "off" and first > total * config.train.batches_a_step:
        yield (
            f"audio.supervision first looks after {first} batches (audio.supervision_warmup, supervision_interval), "
            "so it never does"
        )
    own = config.optimizer.args.get("warmup_steps")
    if isinstance(own, int) and own >= total:
        yield f"optimizer.args: warmup_steps is {own}, so the optimizer warms up until the end"
    for name in ("crepa", "self_flow", "rollout"):
        settings = getattr(config.regularizers, name)
        if settings.weight and settings.warmup_steps >= total:
            yield f"regularizers.{name}.warmup_steps is {settings.warmup_steps}, so it never counts in full"
    if sample.every > total and sample.every != SampleSettings().every and not sample.every_epochs:
        when = "before the first step and " if sample.at_start else ""
        yield f"sample.every is {sample.every}, so samples are drawn {when}at the end alone"
    if config.train.norms_every > total and config.train.norms_every != TrainSettings().norms_every:
        yield f"train.norms_every is {config.train.norms_every}, so norms are never measured"
    if validation.every > total and not validation.every_epochs:
        when = "before the first step and " if validation.at_start else ""
        yield f"validation.every is {validation.every}, so the loss is measured {when}at the end alone"
    train = config.train
    if train.save_every > total and train.save_every != TrainSettings().save_every and not train.save_every_epochs:
        yield f"train.save_every is {train.save_every}, so nothing is saved before the end"
    if train.keep_loras and not (train.save_every or train.save_every_epochs) and train.what == "lora":
        yield (
            f"train.keep_loras is {train.keep_loras} and train.save_every 0, so the LoRA of the end alone is saved, "
            "and there is none to be taken away"
        )


def _passes_too_many(config: RunConfig, passes: float) -> Iterable[str]:
    """What waits for more passes over the data than the run has."""
    for name, count in (
        ("train.save_every_epochs", config.train.save_every_epochs),
        ("sample.every_epochs", config.sample.every_epochs),
        ("validation.every_epochs", config.validation.every_epochs),
    ):
        if count > passes:
            yield f"{name} is {count}, which it does not come to in {passes:.3g} passes over the data"
