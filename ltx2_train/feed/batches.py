"""Which samples form a batch, in which order, and reading them ahead of the training step.

The order of an epoch depends on the seed and the epoch alone, so a run continues from (epoch, index) with the batches
it would have seen. A batch holds samples of one dataset, one shape and one frame rate, since those are stacked, and a
dataset may set its own loss weight. Reading is done by one thread: ComfyUI must not be re-imported by child processes.

Sounds of one picture are as long as it, up to a step; the shorter ones are filled up and masked, and so is a silent
clip among clips with sound, unless its dataset keeps them apart. Sounds without a picture form batches of their own,
by length n in latent steps, of which d are one interval:

    pad        key = max(1, round(n / d)) d: filled up to the longest of the batch and masked
    truncate   key = floor(n / d) d, or n itself where that is zero: cut to the key, nothing is filled up

Two settings move batches with sound within the epoch, which never changes how often a sample is seen. With
`min_batches` each window of as many batches as a step has holds that many with sound or, if there are more of them, an
even share; windows run on across epochs as steps do, so what the end of one leaves open the start of the next fills.
With `batch_probability` a coin chooses between both kinds as long as there are both.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from ..errors import ConfigError
from ..objective.audio import AudioSettings
from ..shapes import AUDIO_BINS, AUDIO_CHANNELS, AUDIO_LATENTS_PER_SECOND
from .loader import Sample, SoundBuckets, TrainingSet

_POLL_SECONDS = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class GivenData:
    """What conditions may give of one sample, None where it has none of it: references [128, F, H, W] and reference
    sounds [8, T, 16] in float32, masks [F, H, W] and [T] as bool, true where it is given; and the `keyframes`
    [128, K, H, W] that its slots are to make."""

    references: tuple[torch.Tensor | None, ...] = ()
    reference_audios: tuple[torch.Tensor | None, ...] = ()
    mask: torch.Tensor | None = None
    audio_mask: torch.Tensor | None = None
    keyframes: torch.Tensor | None = None

    @property
    def any(self) -> bool:
        values = (*self.references, *self.reference_audios, self.mask, self.audio_mask, self.keyframes)
        return any(value is not None for value in values)


@dataclass(frozen=True)
class Batch:
    """`latents` [B, 128, F, H, W] and `audio` [B, 8, T, 16] in float32, each None where the batch has none of it.

    `audio_mask` [B, T] is true where there is sound and false where it was filled up or the clip is silent. `epoch`
    and `index` are the place in the order. `given` has an entry a sample where any sample has a reference, a mask or
    keyframes.
    """

    latents: torch.Tensor | None
    samples: list[Sample]
    fps: float
    epoch: int
    index: int
    audio: torch.Tensor | None = None
    audio_mask: torch.Tensor | None = None
    given: tuple[GivenData, ...] = ()

    @property
    def has_video(self) -> bool:
        return self.latents is not None

    @property
    def has_audio(self) -> bool:
        return self.audio is not None


def sound_key(steps: int, buckets: SoundBuckets) -> int:
    """The length, in latent steps, under which a sound of `steps` is grouped; with truncate it is cut to it."""
    interval = max(1, round(buckets.interval * AUDIO_LATENTS_PER_SECOND))
    if buckets.strategy == "truncate":
        return steps // interval * interval or steps
    return max(1, int(steps / interval + 0.5)) * interval


def used_steps(sample: Sample) -> int:
    """How many latent steps of its sound a sample is trained on."""
    if sample.kind != "audio" or sample.buckets.strategy != "truncate":
        return sample.audio_steps
    return min(sample.audio_steps, sound_key(sample.audio_steps, sample.buckets))


class BatchOrder:
    """The batches of every epoch, as tuples of positions in `samples`.

    `batch_sizes` has one entry a dataset; `accumulation` batches make a step. Raises ConfigError where `audio` asks for
    batches with sound that cannot be had.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_sizes: Sequence[int] | int,
        seed: int,
        audio: AudioSettings | None = None,
        accumulation: int = 1,
    ) -> None:
        assert samples, "no samples to order"
        self.samples = samples
        self.seed = seed
        self.audio, self.accumulation = audio or AudioSettings(), accumulation
        self._buckets: dict[tuple[Any, ...], list[int]] = {}
        self._sizes: dict[tuple[Any, ...], int] = {}
        for position, sample in enumerate(samples):
            key = _key(sample)
            self._buckets.setdefault(key, []).extend([position] * sample.repeats)
            self._sizes[key] = batch_sizes if isinstance(batch_sizes, int) else batch_sizes[sample.dataset]
        self.length = sum(-(-len(bucket) // self._sizes[key]) for key, bucket in self._buckets.items())
        self._check()

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.length

    def epoch(self, epoch: int) -> list[tuple[int, ...]]:
        """The batches of `epoch` in order; every sample occurs as often as it repeats."""
        generator = torch.Generator().manual_seed(self.seed + epoch)
        batches: list[tuple[int, ...]] = []
        for key, bucket in self._buckets.items():
            order = [bucket[i] for i in torch.randperm(len(bucket), generator=generator).tolist()]
            size = self._sizes[key]
            batches += [tuple(order[start : start + size]) for start in range(0, len(order), size)]
        batches = _shuffled(batches, generator)
        if not self.audio.min_batches and self.audio.batch_probability is None:
            return batches
        sound = [batch for batch in batches if self.with_sound(batch)]
        rest = [batch for batch in batches if not self.with_sound(batch)]
        if self.audio.batch_probability is not None:
            return _by_coin(sound, rest, self.audio.batch_probability, generator)
        return self._by_window(sound, rest, epoch * self.length, generator)

    def with_sound(self, batch: Sequence[int]) -> bool:
        """Whether any sample of `batch` has sound."""
        return any(self.samples[position].audio_steps for position in batch)

    def share_of_sound(self, epoch: int = 0) -> float:
        """Share of the batches of `epoch` that carry sound."""
        return sum(map(self.with_sound, self.epoch(epoch))) / self.length

    def describe_sound(self) -> str:
        """A line for people on how much of an epoch carries sound, and what to do where that is little."""
        carrying = sum(map(self.with_sound, self.epoch(0)))
        sentence = f"Sound: {carrying} of {self.length} batches of an epoch carry it ({carrying / self.length:.0%})."
        wanted = -(-self.length * self.audio.min_batches // self.accumulation)
        if carrying < wanted:
            return (
                f"{sentence} audio.min_batches = {self.audio.min_batches} with train.accumulation = "
                f"{self.accumulation} takes {wanted}, so the last steps of an epoch go without. Raise num_repeats "
                "where there is sound."
            )
        if 0 < carrying < 0.3 * self.length:
            return f"{sentence} 30 to 50 % is usual for a voice; num_repeats of the datasets with sound raises it."
        return sentence

    def fullness(self) -> dict[int, tuple[int, int, int]]:
        """Of each dataset its batch size, the samples of its largest batch, and how many kinds are never mixed."""
        found: dict[int, tuple[int, int, int]] = {}
        for key, bucket in self._buckets.items():
            size, (_, largest, kinds) = self._sizes[key], found.get(key[0], (0, 0, 0))
            found[key[0]] = size, max(largest, min(size, len(bucket))), kinds + 1
        return found

    def _check(self) -> None:
        wanted = self.audio.min_batches
        if wanted > self.accumulation:
            raise ConfigError(
                f"audio.min_batches is {wanted}, but a step has only {self.accumulation} batches "
                "(train.accumulation, times train.processes). Lower the one or raise the other."
            )
        if wanted and not any(sample.audio_steps for sample in self.samples):
            raise ConfigError(
                f"audio.min_batches is {wanted}, but not one sample has sound. Set it to 0, or choose clips with sound "
                "and model.mode = av."
            )

    def _by_window(
        self, sound: list[tuple[int, ...]], rest: list[tuple[int, ...]], before: int, generator: torch.Generator
    ) -> list[tuple[int, ...]]:
        """Both kinds in order of use, window by window; `before` batches were taken in earlier epochs."""
        ordered: list[tuple[int, ...]] = []
        while sound or rest:
            left, done = len(sound) + len(rest), (before + len(ordered)) % self.accumulation
            size = min(self.accumulation - done, left)
            # an open start makes up for all that the last epoch may lack; an open end counts on the next to do so
            quota = self.audio.min_batches - (0 if done else self.accumulation - size)
            share = (2 * len(sound) * size + left) // (2 * left)  # rounded, so that no surplus gathers at the end
            take = min(len(sound), max(min(quota, size), share))
            take = max(take, size - len(rest))
            window, sound, rest = sound[:take] + rest[: size - take], sound[take:], rest[size - take :]
            ordered += _shuffled(window, generator)
        return ordered

    def following(self, epoch: int, index: int) -> tuple[int, int]:
        """The place after (epoch, index)."""
        return (epoch, index + 1) if index + 1 < self.length else (epoch + 1, 0)

    def walk(self, epoch: int = 0, index: int = 0) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """(epoch, index, batch) from a place on, without end."""
        while True:
            for number, batch in enumerate(self.epoch(epoch)):
                if number >= index:
                    yield epoch, number, batch
            epoch, index = epoch + 1, 0


def load_batch(dataset: TrainingSet, samples: Sequence[Sample], epoch: int = 0, index: int = 0) -> Batch:
    """Read the caches of `samples`, which share dataset, shape and frame rate."""
    latents = None
    if samples[0].kind != "audio":
        latents = torch.stack([dataset.load_latents(sample) for sample in samples])
    audio, mask = _load_audio(dataset, samples)
    given = tuple(_load_given(dataset, sample) for sample in samples)
    if not any(one.any for one in given):
        given = ()
    return Batch(latents, list(samples), samples[0].fps, epoch, index, audio, mask, given)


def _load_given(dataset: TrainingSet, sample: Sample) -> GivenData:
    return GivenData(
        dataset.load_references(sample) if sample.reference_paths else (),
        dataset.load_reference_audios(sample) if sample.reference_audio_paths else (),
        None if sample.mask_path is None else dataset.load_mask(sample),
        None if sample.audio_mask_path is None else dataset.load_audio_mask(sample),
        None if sample.keyframes_path is None else dataset.load_keyframes(sample),
    )


def _load_audio(
    dataset: TrainingSet, samples: Sequence[Sample]
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    lengths = [used_steps(sample) for sample in samples]
    if not any(lengths):
        return None, None
    audio = torch.zeros(len(samples), AUDIO_CHANNELS, max(lengths), AUDIO_BINS)
    for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        if length:
            audio[row, :, :length] = dataset.load_audio(sample)[:, :length]
    return audio, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def _key(sample: Sample) -> tuple[Any, ...]:
    """Equal for samples that may share a batch."""
    if sample.kind == "audio":
        return sample.dataset, sound_key(sample.audio_steps, sample.buckets)
    shown = tuple(path is not None for path in sample.reference_paths)
    key = (sample.dataset, sample.shape, sample.fps, shown)
    return (*key, sample.audio_steps > 0) if sample.buckets.separate else key


def _shuffled(batches: list[tuple[int, ...]], generator: torch.Generator) -> list[tuple[int, ...]]:
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def _by_coin(
    sound: list[tuple[int, ...]], rest: list[tuple[int, ...]], probability: float, generator: torch.Generator
) -> list[tuple[int, ...]]:
    """Both kinds in one row: a coin a place while there are both, then what is left."""
    coins = (torch.rand(len(sound) + len(rest), generator=generator) < probability).tolist()
    kinds, used, result = (rest, sound), [0, 0], []
    for heads in coins:
        kind = heads if used[heads] < len(kinds[heads]) else not heads
        result.append(kinds[kind][used[kind]])
        used[kind] += 1
    return result


class Batches(Generic[T]):
    """Endless batches from a place on, read ahead by one thread that holds at most `prefetch` of them.

    `read(samples, epoch, index)` makes one; the thread calls it in order. Use it in a `with` block, or call `close`.
    With `prefetch` 0 there is no thread. Errors of the thread are raised to whoever asks for the batch that failed.
    `share` (number, count): of each `count` batches the one at place `number` alone, the others are somebody else's.
    """

    def __init__(
        self,
        read: Callable[[Sequence[Sample], int, int], T],
        order: BatchOrder,
        start: tuple[int, int] = (0, 0),
        prefetch: int = 2,
        share: tuple[int, int] = (0, 1),
    ):
        self._read, self._order = read, order
        self._walk = itertools.islice(order.walk(*start), share[0], None, share[1])
        self._stop = threading.Event()
        self._ready: queue.Queue[T | BaseException] = queue.Queue(maxsize=max(1, prefetch))
        self._failed: BaseException | None = None
        self._thread: threading.Thread | None = None
        if prefetch > 0:
            self._thread = threading.Thread(target=self._fill, name="ltx2-prefetch", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._stop.is_set():
            raise StopIteration
        if self._thread is None:
            return self._load_next()
        item = self._failed or self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def poll(self) -> T | None:
        """The next batch where the thread has it already, else None."""
        if self._stop.is_set() or self._thread is None or self._failed is not None:
            return None
        try:
            item = self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            self._failed = item  # for whoever needs that batch
            return None
        return item

    def close(self) -> None:
        """Stop reading ahead and wait for the thread."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Batches[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load_next(self) -> T:
        epoch, index, positions = next(self._walk)
        return self._read([self._order.samples[i] for i in positions], epoch, index)

    def _fill(self) -> None:
        while not self._stop.is_set():
            item: T | BaseException
            try:
                item = self._load_next()
            except Exception as error:
                item = error
            while not self._stop.is_set():
                try:
                    self._ready.put(item, timeout=_POLL_SECONDS)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
