"""Which run it is: what must agree for a saved state to make sense.

The record of a run holds every field, resolved: no `auto`, and None where a setting has no effect. It is compared as a
whole, so a setting that was put back to its default is a difference like any other. Settings that are no part of it
(number of steps, samples, how often to save, rates and numbers of the optimizer) may change between two presses.

A record carries a version. A field that is new gets a new version and an entry in FORMER: what it was, in fact, before
it was recorded; or in UNTOLD, where nobody can know. Version 1 was another matter: it left out what stood at its
default and kept some settings as a checksum. Such a record is compared with what version 1 would have said of the run
as it is now.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..config import RunConfig
from ..config.slider import SliderSettings
from ..errors import RunError
from ..feed.loader import TrainingSet
from ..files import digest
from ..objective.regularizers import RegularizerSettings
from ..weights.fingerprint import same_weights
from .state import list_states, read_tree

VERSION = 6
# version -> the fields that it brought, as runs of the version before had them
FORMER: dict[int, dict[str, Any]] = {
    3: {"lora.algo": "lora", "lora.factor": None, "lora.modules": {}, "regularizers": "train nothing"},
    4: {"train.what": "lora", "full.master_weights": None},
    5: {"cache.keyframe_slots": 0},
}
# version -> fields that it brought, of which records of the version before tell nothing: they are not compared
UNTOLD: dict[int, tuple[str, ...]] = {4: ("lora.lokr_norm",), 6: ("slider",)}
_TELLS_SLIDER = 6  # from this version on a record tells whether the run is a slider
_CHECKPOINT = "model.checkpoint"
_OF_DATA = ("dataset", "batches of sound")  # fields that are known once the dataset has been read


def _setting(name: str) -> Any:
    """A field of the identity under the name that people know it by, which is its key in the record too."""
    return field(metadata={"setting": name})


@dataclass(frozen=True)
class Identity:
    """What a state was trained with. `checkpoint` is "file name (fingerprint)", and the fingerprint alone counts.

    `dataset`, `sound_batches` and `layers` are a count or a checksum of many things. Fields of sound are None in mode
    video.
    """

    checkpoint: str = _setting(_CHECKPOINT)
    mode: str = _setting("model.mode")
    precision: str = _setting("model.precision")
    dataset: str = _setting("dataset")
    sound_batches: str | None = _setting("batches of sound")
    independent_timestep: bool | None = _setting("audio.independent_timestep")
    balance: str | None = _setting("loss.balance.mode")
    layers: str = _setting("lora layers")
    rank: int = _setting("lora.rank")
    alpha: float = _setting("lora.alpha")
    algo: str = _setting("lora.algo")
    factor: int | None = _setting("lora.factor")
    modules: dict[str, Any] = _setting("lora.modules")
    what: str = _setting("train.what")
    master_weights: bool | None = _setting("full.master_weights")
    lokr_norm: float | None = _setting("lora.lokr_norm")
    accumulation: int = _setting("train.accumulation")
    seed: int = _setting("train.seed")
    keyframe_slots: int = _setting("cache.keyframe_slots")
    optimizer: str = _setting("optimizer.name")
    optimizer_args: dict[str, Any] = _setting("optimizer.args")
    schedule: str = _setting("schedule.name")
    audio_rate: bool = _setting("train.audio_learning_rate")
    rate_patterns: list[str] = _setting("train.lr_args")
    loraplus: bool = _setting("train.loraplus_ratio")
    block_size: int = _setting("quant.block_size")
    loftq: str = _setting("quant.loftq")
    awq: str = _setting("quant.awq")
    regularizers: str = _setting("regularizers")
    slider: dict[str, Any] | None = _setting("slider")

    @classmethod
    def of(
        cls, config: RunConfig, base: Mapping[str, str], data: TrainingSet | None, layers: Sequence[str]
    ) -> Identity:
        """The identity of the run that `config` describes, its optimizer chosen; `layers` get a LoRA.

        Without `data`, what depends on it is left open.
        """
        assert config.optimizer.name != "auto"
        quant, train, heard = config.quant, config.train, config.model.mode != "video"
        return cls(
            checkpoint=f"{base['file']} ({base['fingerprint'][:8]}{base['fingerprint'][16:24]})",
            mode=config.model.mode,
            precision=config.model.precision,
            dataset="" if data is None else _dataset(data, heard),
            sound_batches=_sound_batches(config, data) if heard and data is not None else None,
            independent_timestep=config.audio.independent_timestep if heard else None,
            balance=config.loss.balance.mode if heard else None,
            layers=f"{len(layers)} ({digest(*layers)[:8]})",
            rank=config.lora.rank,
            alpha=config.lora.effective_alpha,
            algo="lora" if config.lora.algo == "locon" else config.lora.algo,
            factor=config.lora.factor if config.lora.has_factor else None,
            modules={pattern: module.model_dump(exclude_none=True) for pattern, module in config.lora.modules.items()},
            what=train.what,
            master_weights=config.full.master_weights if train.what == "full" else None,
            lokr_norm=config.lora.lokr_norm if config.lora.has_factor else None,
            accumulation=train.batches_a_step,
            seed=train.seed,
            keyframe_slots=config.cache.keyframe_slots,
            optimizer=config.optimizer.name,
            optimizer_args=config.optimizer.args,
            schedule=config.schedule.name,
            audio_rate=train.audio_learning_rate is not None,
            rate_patterns=list(train.lr_args),
            loraplus=train.loraplus_ratio not in (None, 1),
            block_size=quant.block_size,
            loftq=f"on (loftq_iters {quant.loftq_iters})" if quant.loftq else "off",
            awq=f"on (awq_alpha {quant.awq_alpha:g}, awq_batches {quant.awq_batches})" if quant.awq else "off",
            regularizers=_beside(config.regularizers),
            slider=_slider(config.slider) if config.slider.wanted else None,
        )

    def record(self) -> dict[str, Any]:
        """As it stands in the manifest of a run folder: JSON by the names of the settings, and the version."""
        values = {one.metadata["setting"]: getattr(self, one.name) for one in fields(self)}
        return {"version": VERSION, **json.loads(json.dumps(values, default=str))}


def recorded_optimizer(before: Mapping[str, Any], states: Path) -> str | None:
    """The optimizer that the run of the record `before` began with; None where that cannot be told.

    Version 1 recorded `auto` as such, so its newest state must say what came of it.
    """
    name = before.get("optimizer.name")
    if name != "auto":
        return name
    for _, path in reversed(list_states(states)):
        try:
            moments = read_tree(path)["optimizer"]["state"]
        except (RunError, TypeError, KeyError):  # damaged, or a state without an optimizer
            continue
        for moment in moments.values():
            return "adamw" if "exp_avg" in moment else "adamw8bit"
    return None


def require_same(
    path: Path, before: Mapping[str, Any], now: Identity, config: RunConfig, data: TrainingSet | None
) -> None:
    """Raise RunError that names each difference between the record `before` of the run folder `path` and `now`.

    Without `data`, what depends on it is not compared.
    """
    version = before.get("version", 1)
    if version > VERSION:
        raise RunError(
            f"The run folder {path} was made by a newer version of this program. Update it to continue the run, or "
            "choose another run.name."
        )
    if version >= _TELLS_SLIDER and (before.get("slider") is None) != (now.slider is None):
        kinds = {True: "a LoRA's", False: "a slider's"}
        was, is_now = (kinds[one is None] for one in (before.get("slider"), now.slider))
        raise RunError(
            f"The run in {path} is {was}, not {is_now}. Choose another run.name, or set run.if_exists to 'new'."
        )
    if version == 1:
        began_with = recorded_optimizer(before, path / "states") or now.optimizer
        changed = changes(_as_version_1(before, began_with), _version_1(now, config))
    else:
        changed = changes(before, now.record())
    if data is None:
        changed = [line for line in changed if not line.startswith(tuple(f"{name}: " for name in _OF_DATA))]
    if any(line.startswith("slider.") for line in changed):
        changed = [line for line in changed if not line.startswith("dataset: ")]  # a slider's data are its settings
    elif now.slider is not None:
        changed = [_untold_slider(line) if line.startswith("dataset: ") else line for line in changed]
    if changed:
        a_step = f" batches a step; here train.accumulation {config.train.accumulation} x {config.train.processes}"
        of_step = "train.accumulation: "
        lines = "\n".join(f"  {line}{a_step * line.startswith(of_step)}" for line in changed)
        raise RunError(
            f"The run folder {path} belongs to a run with other settings:\n{lines}\n"
            "Put them back to continue it, choose another run.name, or set run.if_exists to 'new'."
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each field of two records that differs, or that one of them lacks: "lora.rank: was 4, now 8"."""
    for version, fields_of_it in FORMER.items():
        if before.get("version", VERSION) < version:
            before = {**fields_of_it, **before}
    for version, untold in UNTOLD.items():
        if before.get("version", VERSION) < version:
            before = {**{name: now[name] for name in untold if name in now}, **before}
    slider, slider_now = before.get("slider"), now.get("slider")
    if isinstance(slider, dict) and isinstance(slider_now, dict):
        before, now = _spread(before, slider), _spread(now, slider_now)
    names = [name for name in dict.fromkeys([*now, *before]) if name != "version"]
    return [
        f"{name}: was {_words(before, name)}, now {_words(now, name)}"
        for name in names
        if name not in before or name not in now or not _equal(name, before[name], now[name])
    ]


def _spread(record: Mapping[str, Any], slider: Mapping[str, Any]) -> dict[str, Any]:
    """`record` with the settings of its `slider` as fields of their own."""
    fields_of_it = {f"slider.{name}": value for name, value in slider.items()}
    return {name: value for name, value in record.items() if name != "slider"} | fields_of_it


def _equal(name: str, one: Any, other: Any) -> bool:
    """Whether a field of two records is the same: of the checkpoint its fingerprint, since it may be renamed."""
    if name == _CHECKPOINT and isinstance(one, str) and isinstance(other, str):
        return same_weights(*(value.rpartition("(")[2].rstrip(")") for value in (one, other)))
    return one == other


def _words(record: Mapping[str, Any], name: str) -> str:
    if name not in record:
        return "not recorded"
    value = record[name]
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "on", False: "off"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _beside(settings: RegularizerSettings) -> str:
    """What regularizers train beside the LoRA, which a state holds; their weights may change."""
    crepa, flow, trained = settings.crepa, settings.self_flow, []
    if crepa.weight:
        teacher = f"{crepa.teacher_block}" if crepa.mode == "backbone" else "dino"
        trained.append(f"crepa of block {crepa.student_block} to {teacher}")
    if flow.weight:
        student = flow.student_block if flow.student_ratio is None else flow.student_ratio
        teacher = flow.teacher_block if flow.teacher_ratio is None else flow.teacher_ratio
        trained.append(f"self_flow of block {student} to {teacher} ({flow.teacher}, width {flow.projector_width})")
    return ", ".join(trained) or "train nothing"


def _slider(settings: SliderSettings) -> dict[str, Any]:
    """What a slider learns, by the names of its settings. Pairs of latents are told by the dataset."""
    if settings.mode == "reference":
        return {"mode": settings.mode}
    targets = [one.model_dump() for one in settings.targets]
    sizes = {"frames": settings.frames, "width": settings.width, "height": settings.height}
    return {"mode": settings.mode, "targets": targets, "guidance": settings.guidance, **sizes}


def _untold_slider(line: str) -> str:
    """The `line` on other data of a slider whose record is too old to tell which setting it is."""
    return (
        f"slider.targets, guidance, frames, width or height, or the pairs of latents: {line.removeprefix('dataset: ')}"
    )


def _dataset(data: TrainingSet, heard: bool) -> str:
    samples = [f"{sample.key} {sample.shape} {sample.repeats} {sample.fps:g}" for sample in data.samples]
    if heard:
        samples = [f"{text} {sample.audio_steps}" for text, sample in zip(samples, data.samples, strict=True)]
    return f"{len(samples)} clips ({digest(*samples, str(data.batch_sizes))[:8]})"


def _sound_batches(config: RunConfig, data: TrainingSet) -> str:
    audio = config.audio
    return digest(str(data.buckets), str(audio.min_batches), str(audio.batch_probability))[:8]


def _version_1(now: Identity, config: RunConfig) -> dict[str, Any]:
    """What version 1 would record of the run as it is now; None for what it left out."""
    quant, train, lora = config.quant, config.train, config.lora
    nf4 = (quant.block_size, quant.loftq, quant.loftq_iters, quant.awq, quant.awq_alpha, quant.awq_batches)
    rates = (train.audio_learning_rate, train.lr_args, train.loraplus_ratio)
    targets = [lora.target]
    for names in (lora.include_patterns, lora.exclude_patterns, lora.target_modules):
        targets += ["-", *names]
    return {
        _CHECKPOINT: now.checkpoint,
        "model.mode": now.mode,
        "model.precision": now.precision,
        "dataset": now.dataset,
        "lora.rank": str(now.rank),
        "lora.alpha": f"{now.alpha:g}",
        "lora.algo": None if config.lora.plain else now.algo,
        "lora targets": digest(*targets)[:8],
        "train.accumulation": str(now.accumulation),
        "train.seed": str(now.seed),
        "optimizer.name": now.optimizer,
        "schedule.name": now.schedule,
        "audio.independent_timestep": None if now.independent_timestep is None else str(now.independent_timestep),
        "loss.balance.mode": now.balance,
        "batches of sound": now.sound_batches,
        "quant: nf4": digest(str(nf4))[:8] if quant.loftq or quant.awq or quant.block_size != 32 else None,
        "train: rates of parts": digest(str(rates))[:8] if any(rates) else None,
    }


def _as_version_1(before: Mapping[str, Any], optimizer: str) -> dict[str, Any]:
    """A record of version 1 with all its fields, `optimizer` in place of `auto`. The learning rate has left the
    identity since then."""
    left_out = ("audio.independent_timestep", "loss.balance.mode", "batches of sound", "quant: nf4", "lora.algo")
    record = {**dict.fromkeys((*left_out, "train: rates of parts")), **before}
    record.pop("train.learning_rate", None)
    if record.get("optimizer.name") == "auto":
        record["optimizer.name"] = optimizer
    return record
