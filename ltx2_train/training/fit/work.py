"""The batch that a plan is made for: the largest of the run, found without loading anything.

With caches their headers tell the sizes; before there are any, the plan of the dataset does; and a size can be given by
hand ("512x512x121", width x height x frames).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from ...caching.cache_file import CacheFile
from ...caching.recipe import CacheRecipe
from ...conditions.settings import AudioStream, VideoStream
from ...conditions.trained import reference_sounds_of, references_of
from ...config import RunConfig
from ...dataset.dataset_file import DatasetConfig
from ...dataset.entry import DatasetSettings
from ...dataset.plan import Item, plan_dataset
from ...errors import CacheError, ConfigError
from ...events import Events, Passing
from ...feed.batches import BatchOrder
from ...feed.captions_in_use import captions_in_use
from ...feed.loader import Sample, SoundBuckets
from ...models.positions import slot_places
from ...objective.audio import audio_steps, virtual_shape
from ...shapes import AUDIO_LATENTS_PER_SECOND as LATENTS_PER_SECOND
from ...shapes import SPATIAL_FACTOR, LatentShape, VideoShape, floor_frames
from ..run_data import open_data

ReferenceSizes = tuple[tuple[LatentShape, ...], int]  # of a picture, and latent steps of all those of a sound
ShownReference = Callable[[Sample], ReferenceSizes]
SampleStream = TypeVar("SampleStream", VideoStream, AudioStream)
TEXT_TOKENS = 1024  # connectors fill every caption up to this


@dataclass(frozen=True)
class Workload:
    """Sizes of one batch: `shape` None has no picture, `sound` counts latent steps, 0 for none.

    `given` is whether a first frame may be given clean, which costs memory; `captions` is how many contexts are kept.
    `references` are those of the picture, in front of it, `reference_sound` counts the latent steps of all those of
    the sound.
    `slots` counts the keyframe slots behind the picture, a latent frame's worth of tokens each.
    `held_out` are clips of the validation, the largest of which has `held_out_tokens`, of the picture where it has one.
    """

    mode: str
    shape: LatentShape | None
    sound: int
    batch: int = 1
    fps: float = 25.0
    text: int = TEXT_TOKENS
    given: bool = True
    captions: int = 1
    source: str = ""
    references: tuple[LatentShape, ...] = ()
    reference_sound: int = 0
    held_out: int = 0
    held_out_tokens: int = 0
    slots: int = 0

    @property
    def video_tokens(self) -> int:
        """Of one sample, with its references and keyframe slots."""
        slots = 0 if self.shape is None else self.slots * self.shape.frame_tokens
        return slots + sum(shape.tokens for shape in (self.shape, *self.references) if shape is not None)

    @property
    def audio_tokens(self) -> int:
        """Of one sample, with its references."""
        return self.sound + self.reference_sound

    @property
    def latent_bytes(self) -> int:
        """Of the batch as it is read, in float32."""
        return 4 * self.batch * 128 * (self.video_tokens + self.audio_tokens)

    def describe(self) -> str:
        """ "512 x 512, 121 frames, 5.0 s of sound"."""
        parts = []
        if self.shape is not None:
            video = self.shape.video(self.fps)
            parts.append(f"{video.width} x {video.height}, {video.frames} frame{'s' if video.frames > 1 else ''}")
        if self.sound:
            parts.append(f"{self.sound / 25:.1f} s of sound")
        for reference in self.references:
            shown = reference.video(self.fps)
            parts.append(f"a reference of {shown.width} x {shown.height}, {shown.frames} frames")
        if self.reference_sound:
            parts.append(f"a reference of {self.reference_sound / 25:.1f} s of sound")
        if self.slots:
            parts.append(f"{self.slots} keyframe slot{'s' if self.slots > 1 else ''}")
        if self.batch > 1:
            parts.append(f"{self.batch} at a time")
        return ", ".join(parts)


def parse_workload(size: str, mode: str, run: RunConfig | None = None, batch: int = 1) -> Workload:
    """The batch of clips called "512x512x121"; in mode audio only their sound. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", size.strip())
    if match is None:
        raise ConfigError(
            f"--bucket {size!r} is not a size. Expected width x height x frames, for example 512x512x121; without "
            "frames it is an image."
        )
    width, height, frames = (int(1 if part is None else part) for part in match.groups())
    if min(width, height) < SPATIAL_FACTOR or frames < 1:
        raise ConfigError(
            f"--bucket {size!r} is not a size: sides are {SPATIAL_FACTOR} pixels or more, and there is 1 frame or more."
        )
    shape = VideoShape(
        max(1, floor_frames(frames)),
        height // SPATIAL_FACTOR * SPATIAL_FACTOR,
        width // SPATIAL_FACTOR * SPATIAL_FACTOR,
    )
    sound = 0 if mode == "video" else audio_steps(shape.frames, shape.fps)
    picture = None if mode == "audio" else shape.latent()
    given = picture is not None and picture.frames > 1 and (run is None or run.train.first_frame_probability > 0)
    slots = 0 if run is None or picture is None else _slots(run, picture)
    source, taken = "the size that was given", (shape.width, shape.height, shape.frames)
    if taken != (width, height, frames):
        source = f"{size.strip()}, which is not a size of the model: sides are multiples of 32, frames 8n+1"
    return Workload(mode, picture, sound, batch, given=given, source=source, slots=slots)


def _slots(run: RunConfig, shape: LatentShape) -> int:
    """How many keyframe slots a clip of `shape` has."""
    return len(slot_places(run.cache.keyframe_slots, shape.video().frames))


def largest_workload(run: RunConfig, events: Events | None = None) -> Workload:
    """The largest batch of the run's dataset, by its caches or, where they are not made yet, by its plan."""
    dataset = DatasetConfig.read(run.dataset_file(), run.foreign)
    quiet = Passing(events or Events(), tells=())
    plan = plan_dataset(dataset, Passing(events or Events(), tells=("message",)), brief=True)
    mode = run.model.mode
    recipe = CacheRecipe(run.cache, mode)
    if events is not None:
        captions_in_use(dataset, plan.items, recipe).tell(events)
    try:
        data = open_data(run, recipe, quiet, dataset, plan)
        samples: Sequence[Sample] = data.samples
        shown, source = partial(cached_references, run=run), "the caches"
        held_out = data.validation
    except CacheError:
        planned = {item.key: item for item in plan.items}

        def shown(sample: Sample) -> ReferenceSizes:
            item = planned[sample.key]
            longest = item.dataset.entry.reference_audio_max_seconds or 0.0  # how long it is, its cache will say
            steps = math.ceil(longest * LATENTS_PER_SECOND)
            sounds = [0 if path is None else steps for path in item.reference_audios]
            return _used(run, [one.shape for one in item.references], sounds)

        samples = [
            sample
            for item in plan.items
            if not item.validation and (sample := _planned(item, run, item.dataset.entry)) is not None
        ]
        of_plan = (_planned(item, run, item.dataset.entry) for item in plan.items if item.validation)
        held_out = tuple(sample for sample in of_plan if sample is not None)
        source = "the plan of the dataset, since the caches are not complete"
    if not samples:
        for ref in dataset.refs:
            if not ref.entry.source.exists():
                raise ConfigError(
                    f"{ref.name}.{ref.entry.source_key}: {ref.entry.source} does not exist. Correct the path in "
                    f"the dataset file."
                )
        raise ConfigError(
            f"The dataset holds nothing that model.mode = {mode} can train on. Choose another mode or other clips."
        )
    sizes = tuple(entry.batch_size for entry in dataset.datasets)
    order = BatchOrder(samples, sizes, run.train.seed)
    captions = len({path for sample in samples for path in sample.text_paths})
    held_out = held_out[: run.validation.clips or None] if run.validation.wanted else ()
    return of_batch(largest_batch(order, run, shown), run, captions, source, shown, held_out)


def cached_references(sample: Sample, run: RunConfig) -> ReferenceSizes:
    """What `run` shows of the references of a cached sample, by the headers of their files."""
    pictures = [None if path is None else _latent_shape(path) for path in sample.reference_paths]
    return _used(run, pictures, [0 if path is None else _steps(path) for path in sample.reference_audio_paths])


def _used(run: RunConfig, pictures: Sequence[LatentShape | None], steps: Sequence[int]) -> ReferenceSizes:
    """The references that conditions of `run` ask for."""
    seen = zip(references_of(run.video.conditions), pictures, strict=False)
    heard = zip(reference_sounds_of(run.audio.conditions), steps, strict=False)
    shown = tuple(shape for one, shape in seen if one.probability and shape is not None)
    return shown, sum(count for one, count in heard if one.probability)


@cache
def _latent_shape(path: Path) -> LatentShape:
    return CacheFile(path).latent_shape()


@cache
def _steps(path: Path) -> int:
    return CacheFile(path).audio_steps()


def largest_batch(order: BatchOrder, run: RunConfig, shown: ShownReference | None = None) -> list[Sample]:
    """The samples of the batch with the most tokens, references among them; a token of sound is half as wide as one of
    a picture. `shown` tells the references of a sample; those of its cache where it is not given."""
    batches = [[order.samples[i] for i in batch] for batch in order.epoch(0)]
    tell = shown or partial(cached_references, run=run)

    def size(batch: list[Sample]) -> int:
        picture = 0
        if batch[0].kind != "audio":
            picture = batch[0].shape.tokens + _slots(run, batch[0].shape) * batch[0].shape.frame_tokens
        references = [tell(sample) for sample in batch]
        picture += max(sum(shape.tokens for shape in shapes) for shapes, _ in references)
        sound = max(sample.audio_steps for sample in batch) + max(steps for _, steps in references)
        return len(batch) * (2 * picture + sound)

    return max(batches, key=size)


def at_worst(run: RunConfig) -> RunConfig:
    """`run` with everything given whenever it may be, which takes the most memory."""

    def certain(stream: SampleStream) -> SampleStream:
        conditions = [
            one.model_copy(update={"probability": 1.0}) if one.probability else one for one in stream.conditions
        ]
        return stream.model_copy(update={"conditions": conditions})

    train = run.train
    if train.first_frame_probability:
        train = train.model_copy(update={"first_frame_probability": 1.0})
    return run.model_copy(update={"train": train, "video": certain(run.video), "audio": certain(run.audio)})


def of_batch(
    batch: Sequence[Sample],
    run: RunConfig,
    captions: int = 1,
    source: str = "the caches",
    shown: ShownReference | None = None,
    held_out: Sequence[Sample] = (),
) -> Workload:
    """The sizes of a batch of `run`; `shown` as in `largest_batch`, `held_out` the clips of the validation."""
    first, mode = batch[0], run.model.mode
    shape = None if first.kind == "audio" else first.shape
    sound = max(sample.audio_steps for sample in batch)
    fills = run.audio.silence_regularizer or run.regularizers.audio_dop.weight > 0
    if shape is not None and mode == "av" and fills and not sound:
        sound = audio_steps(shape.video(first.fps).frames, first.fps)
    default = run.train.first_frame_probability
    chances = [default if s.first_frame_probability is None else s.first_frame_probability for s in batch]
    given = shape is not None and shape.frames > 1 and max(chances) > 0
    references = [(shown or partial(cached_references, run=run))(sample) for sample in batch]
    pictures = [shapes for shapes, _ in references]
    tokens = [clip.audio_steps if clip.kind == "audio" else clip.shape.tokens for clip in held_out]
    return Workload(
        mode,
        shape,
        sound,
        len(batch),
        first.fps,
        given=given,
        captions=captions,
        source=source,
        references=max(pictures, key=lambda shapes: sum(one.tokens for one in shapes)) if shape is not None else (),
        reference_sound=max(steps for _, steps in references) if sound else 0,
        held_out=len(held_out),
        slots=0 if shape is None else _slots(run, shape),
        held_out_tokens=max(tokens, default=0),
    )


def _planned(item: Item, run: RunConfig, entry: DatasetSettings) -> Sample | None:
    """What an item becomes once it is cached, as far as its size goes; None where the mode has no use for it."""
    mode, kind = run.model.mode, item.kind
    steps = 0 if mode == "video" or item.sound is None else item.sound.steps
    if (kind == "audio" and mode == "video") or (steps == 0 and (kind == "audio" or mode == "audio")):
        return None
    shape = item.shape
    if kind == "audio" or mode == "audio":
        own = run.audio.sequence_resolution
        shape, kind = virtual_shape(shape, entry.audio_only_sequence_resolution if own is None else own), "audio"
    text_path = item.source.folder / item.source.stem
    path: Path = item.latent_path
    return Sample(
        key=item.key,
        shape=shape,
        fps=item.fps,
        caption=item.caption,
        latent_path=path,
        text_path=text_path,
        dataset=item.dataset.index,
        buckets=SoundBuckets.of(entry, run.audio),
        kind=kind,
        audio_steps=steps,
    )
