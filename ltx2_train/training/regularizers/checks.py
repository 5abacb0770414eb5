"""What must be right of the regularizers before anything is loaded; each is refused by the names of its settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ...caching.cache_file import CacheFile, difference, stale_weights
from ...caching.dino import dino_path, dino_shape
from ...caching.dino_model import DinoModel
from ...caching.notes import damage
from ...config import RunConfig
from ...dataset.plan import DatasetPlan
from ...errors import CacheError, ConfigError
from ...events import Events
from ...feed.loader import Sample, TrainingSet
from ...objective.regularizers import RegularizerSettings
from ...offload.blocks import spread
from ..contexts import EMPTY_PROMPT
from .preserve import dop_texts
from .self_flow import blocks_of
from .tread import covered, resolved

MODES = {  # those that one cannot work in are left out
    "audio_dop": ("av",),
    "crepa": ("video", "av"),
    "self_flow": ("video",),
    "tread": ("video", "av"),
}
_NAMED = 3


def check_regularized(config: RunConfig) -> None:
    """Raise ConfigError for regularizers that the mode cannot serve, or that do not go together. Needs no file."""
    settings, mode = config.regularizers, config.model.mode
    on = settings.wanted
    for name in on:
        modes = MODES.get(name)
        if modes is not None and mode not in modes:
            weight = getattr(settings, name).weight
            raise ConfigError(
                f"regularizers.{name}.weight is {weight:g}, and model.mode is {mode}: it works in "
                f"{' and '.join(modes)} alone. Set its weight to 0, or choose another mode."
            )
        if name in ("crepa", "tread") and not config.video.generated:
            raise ConfigError(f"regularizers.{name} is about the picture that is generated; video.generated is off.")
    if "audio_dop" in on and config.audio.silence_regularizer:
        raise ConfigError(
            "regularizers.audio_dop and audio.silence_regularizer both make sound for clips that have none. Keep one."
        )
    if "audio_dop" in on and not config.audio.generated:
        raise ConfigError("regularizers.audio_dop keeps the sound that is generated, and audio.generated is off.")
    if "dop" in on and settings.dop.captions == "class" and settings.dop.trigger:
        raise ConfigError(
            "regularizers.dop.trigger is for captions = replace; with captions = class nothing looks for it. Set "
            "regularizers.dop.captions to replace, or leave the trigger out."
        )
    if "rollout" in on and "self_flow" in on and settings.self_flow.dual_timestep:
        raise ConfigError(
            "regularizers.rollout and regularizers.self_flow.dual_timestep both decide what the model is shown. Set "
            "one of the two weights to 0, or dual_timestep to false."
        )


def check_blocks(config: RunConfig, total: int, layers: Sequence[str]) -> None:
    """Raise ConfigError where regularizers name blocks that a model of `total` blocks does not have, or that do not go
    together. `layers` get a LoRA."""
    settings = config.regularizers
    crepa, flow = settings.crepa, settings.self_flow
    if crepa.weight:
        teacher = crepa.teacher_block if crepa.mode == "backbone" else None
        _check_pair("crepa", crepa.student_block, teacher, total, layers)
        _check_off_route(config, total, "crepa.student_block", [crepa.student_block])
        if teacher is not None:
            _check_off_route(config, total, "crepa.teacher_block", [teacher])
    if flow.weight:
        student, teacher = blocks_of(flow, total)
        around = flow.student_range
        students = range(student - around, student + around + 1)
        if around and (students[0] < 0 or students[-1] >= teacher):
            raise ConfigError(
                f"regularizers.self_flow.student_range is {around}: block {student} and so many to both sides must lie "
                f"between 0 and the teacher's block {teacher}. Lower it."
            )
        _check_pair("self_flow", student, teacher, total, layers)
        _check_off_route(config, total, "self_flow.student_block", students)
        if flow.teacher == "partial_ema" and not any(_block(layer) == teacher for layer in layers):
            raise ConfigError(
                f"regularizers.self_flow.teacher is partial_ema, and no layer of block {teacher}, the teacher's, gets "
                "a LoRA, so there is nothing to take a mean of. Choose another block, or ema."
            )
    if settings.tread.weight:
        _check_routes(config, total)


def check_streamed(config: RunConfig, streamed: Sequence[int], total: int) -> None:
    """Raise ConfigError where tokens are led around blocks that are streamed."""
    if not config.regularizers.tread.weight or not streamed:
        return
    both = sorted(set(covered(resolved(config.regularizers.tread, total))) & set(streamed))
    if both:
        named = ", ".join(map(str, both[:_NAMED])) + (f" and {len(both) - _NAMED} more" if len(both) > _NAMED else "")
        raise ConfigError(
            f"regularizers.tread.routes cover blocks that are streamed from RAM ({named} of {total}), where the copy "
            "takes the time and not the arithmetic. Free the card by quant.format or smaller clips so that "
            "memory.blocks_to_swap can be 0, lead the routes through other blocks, or set "
            "regularizers.tread.weight to 0."
        )


def check_samples_of(config: RunConfig, data: TrainingSet, events: Events) -> None:
    """Raise where the clips lack what a regularizer needs; say where one finds nothing to do."""
    settings, samples = config.regularizers, data.samples
    if settings.audio_dop.weight and all(sample.audio_steps for sample in samples):
        events.message(
            "regularizers.audio_dop has nothing to do: every clip has sound. It costs nothing then.", "warning"
        )
    pictures = [sample for sample in samples if sample.kind != "audio"]
    _check_pictured(settings, bool(pictures))
    if settings.crepa.weight and settings.crepa.mode == "dino":
        _check_features(config, data, pictures)


def check_items_of(config: RunConfig, plan: DatasetPlan, triggers: Sequence[str]) -> None:
    """Raise ConfigError for what the media and captions of a plan show of the same, before one of them is encoded."""
    if plan.from_caches:  # of what has no media nothing is known yet
        return
    settings, items = config.regularizers, [item for item in plan.items if not item.validation]
    regularizer_texts(settings, [one.caption for item in items for one in item.source.each], triggers)
    pictures = [item for item in items if item.kind != "audio"]
    _check_pictured(settings, bool(pictures))
    if settings.crepa.weight and settings.crepa.mode == "dino" and config.cache.dino.model is None:
        lacking = [item.key for item in pictures if not dino_path(item.latent_path).is_file()]
        if lacking:
            raise ConfigError(
                f"regularizers.crepa.mode is dino, and {len(lacking)} of {len(pictures)} clips have no DINOv2 features "
                f"({', '.join(lacking[:_NAMED])}), nor would they get any, since cache.dino.model is not set. Set "
                "cache.dino.model to the folder of a DINOv2 model, or regularizers.crepa.mode to backbone."
            )


def _check_pictured(settings: RegularizerSettings, pictured: bool) -> None:
    """Raise ConfigError for regularizers of pictures where no clip has one."""
    for name in [name for name in ("crepa", "self_flow", "tread") if getattr(settings, name).weight and not pictured]:
        raise ConfigError(f"regularizers.{name} is about pictures, and no clip has one. Set its weight to 0.")


def regularizer_texts(settings: RegularizerSettings, captions: Iterable[str], triggers: Sequence[str]) -> list[str]:
    """The prompts that regularizers read, each once. Raises ConfigError where there can be none."""
    texts = [EMPTY_PROMPT] if settings.blank.weight else []
    return list(dict.fromkeys([*texts, *dop_texts(settings.dop, captions, triggers)]))


def _check_pair(name: str, student: int, teacher: int | None, total: int, layers: Sequence[str]) -> None:
    for kind, block in (("student", student), ("teacher", teacher)):
        if block is not None and not 0 <= block < total:
            raise ConfigError(
                f"regularizers.{name}.{kind}_block is {block}, and the model has the blocks 0 to {total - 1}."
            )
    if teacher is not None and teacher <= student:
        raise ConfigError(
            f"regularizers.{name}: the teacher's block ({teacher}) must lie above the student's ({student}). Raise "
            "teacher_block or lower student_block."
        )
    if not any(0 <= _block(layer) <= student for layer in layers):
        raise ConfigError(
            f"regularizers.{name}: no layer of the blocks 0 to {student} gets a LoRA, so aligning block {student} "
            "would train nothing. Choose a higher student_block, or other layers (lora.target)."
        )


def _check_off_route(config: RunConfig, total: int, name: str, blocks: Iterable[int]) -> None:
    tread = config.regularizers.tread
    inside = set(covered(resolved(tread, total))) & set(blocks) if tread.weight else set()
    if inside:
        raise ConfigError(
            f"regularizers.{name}: block {min(inside)} lies in a route of regularizers.tread, where not all tokens "
            "are. Move the block or the route."
        )


def _check_routes(config: RunConfig, total: int) -> None:
    tread, memory = config.regularizers.tread, config.memory
    for text, route in zip(tread.routes, resolved(tread, total), strict=True):
        if not 0 <= route.first <= route.last:
            raise ConfigError(
                f'regularizers.tread.routes: "{text}" leads from block {route.first} to block {route.last} of {total}. '
                "Name the first and the last block of the route in this order."
            )
        if route.last >= total - 1:
            raise ConfigError(
                f'regularizers.tread.routes: "{text}" ends in block {route.last}, and the model has the blocks 0 to '
                f"{total - 1}, of which the last must see every token. End the route at {total - 2} or before."
            )
    blocks = covered(resolved(tread, total))
    if len(set(blocks)) < len(blocks):
        raise ConfigError("regularizers.tread.routes overlap. A block can be in one route alone.")
    if memory.blocks_to_swap:
        check_streamed(config, spread(total, memory.blocks_to_swap), total)


def _check_features(config: RunConfig, data: TrainingSet, samples: Sequence[Sample]) -> None:
    """Raise CacheError where DINOv2 features are missing, damaged, of something else, or of several models; those that
    are good are watched from here on."""
    missing = [sample for sample in samples if not dino_path(sample.latent_path).is_file()]
    if missing:
        raise CacheError(
            f"regularizers.crepa.mode is dino, and {len(missing)} of {len(samples)} clips have no DINOv2 features "
            f"({', '.join(sample.key for sample in missing[:_NAMED])}). Set cache.dino.model to the folder of a DINOv2 "
            "model and run `ltx2-train cache build RUN.toml` (in ComfyUI: the Prepare Dataset node), or set the mode "
            "to backbone.",
            dino_path(missing[0].latent_path),
        )
    model, models = _wanted_model(config), dict[tuple[int, str], str]()
    for sample in samples:
        file = CacheFile(dino_path(sample.latent_path))
        shape = dino_shape(file)
        if reason := _unfit(file, shape[0], sample, model):
            raise CacheError(
                f"The DINOv2 features of {sample.key} cannot be used: {reason}. Build the caches anew with "
                "cache.dino.model set.",
                file.path,
            )
        models.setdefault((shape[2], file.metadata.get("checkpoint", "")), sample.key)
        data.watch(file)
    if len(models) > 1:
        (one, first), (other, second) = list(models.items())[:2]
        widths = f" ({one[0]} values a patch, and {other[0]})" if one[0] != other[0] else ""
        raise CacheError(
            f"The DINOv2 features of {first} and {second} are of several models{widths}. Build the caches anew with "
            "one cache.dino.model.",
            dino_path(samples[0].latent_path),
        )


def _wanted_model(config: RunConfig) -> DinoModel | None:
    """The DINOv2 model that the run names; None where it names none, or its folder is not on this machine."""
    folder = config.cache.dino.model
    return DinoModel.find(config.cache.dino) if folder is not None and folder.is_dir() else None


def _unfit(file: CacheFile, frames: int, sample: Sample, model: DinoModel | None) -> str | None:
    """Why features of so many `frames` are not those of `sample` by the `model` that is asked for; None where they are,
    or nothing tells."""
    needed = sample.shape.video(sample.fps).frames
    if frames != needed:
        return f"they are of {frames} frames, and the clip has {needed}"
    if reason := damage(file.path):
        return reason
    latents = CacheFile(sample.latent_path)
    if file.fingerprinted and latents.fingerprinted:
        made, beside = file.record("settings"), latents.record("settings")
        contents = [one.record("source").get("sha256") for one in (file, latents)]
        if None not in contents and contents[0] != contents[1]:
            return "they are of another clip than its latents"
        if reason := difference(made, {name: value for name, value in beside.items() if name in made}):
            return f"its latents are made otherwise: {reason}"
    if model is None or not file.fingerprinted:
        return None
    return stale_weights(file, "DINOv2 model", model.fingerprint) or difference(
        file.record("settings"), {"dino_size": model.size}
    )


def _block(layer: str) -> int:
    """The block that a layer lies in, -1 for none."""
    match = re.match(r"transformer_blocks\.(\d+)\.", layer)
    return -1 if match is None else int(match[1])
