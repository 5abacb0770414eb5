"""Which samples form a batch, in which order, and reading them ahead of the training step.

The order of an epoch depends on the seed and the epoch alone, so a run continues from (epoch, index) with the batches
it would have seen. A batch holds samples of one dataset, one shape and one frame rate, since those are stacked, and a
dataset may set its own loss weight. Reading is done by one thread: ComfyUI must not be re-imported by child processes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .loader import FullText, Sample, TrainingSet

if TYPE_CHECKING:
    from ..models.text import TextFeatures

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Batch:
    """`latents` [B, 128, F, H, W] in float32, one text a sample, and the place (epoch, index) in the order."""

    latents: torch.Tensor
    texts: list[TextFeatures | FullText]
    samples: list[Sample]
    fps: float
    epoch: int
    index: int


class BatchOrder:
    """The batches of every epoch, as tuples of positions in `samples`. `batch_sizes` has one entry a dataset."""

    def __init__(self, samples: Sequence[Sample], batch_sizes: Sequence[int] | int, seed: int) -> None:
        assert samples, "no samples to order"
        self.samples = samples
        self.seed = seed
        self._buckets: dict[tuple[Any, ...], list[int]] = {}
        self._sizes: dict[tuple[Any, ...], int] = {}
        for position, sample in enumerate(samples):
            key = (sample.dataset, sample.shape, sample.fps)
            self._buckets.setdefault(key, []).extend([position] * sample.repeats)
            self._sizes[key] = batch_sizes if isinstance(batch_sizes, int) else batch_sizes[sample.dataset]
        self.length = sum(-(-len(bucket) // self._sizes[key]) for key, bucket in self._buckets.items())

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
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

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
    """Read the caches of `samples`, which share shape and frame rate."""
    latents = torch.stack([dataset.load_latents(sample) for sample in samples])
    texts = [dataset.load_text(sample) for sample in samples]
    return Batch(latents, texts, list(samples), samples[0].fps, epoch, index)


class Batches:
    """Endless batches from a place on, read ahead by one thread that holds at most `prefetch` of them.

    Use it in a `with` block, or call `close`. With `prefetch` 0 there is no thread. Errors of the thread are raised to
    whoever asks for the batch that failed.
    """

    def __init__(self, dataset: TrainingSet, order: BatchOrder, start: tuple[int, int] = (0, 0), prefetch: int = 2):
        self._dataset, self._order = dataset, order
        self._walk = order.walk(*start)
        self._stop = threading.Event()
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=max(1, prefetch))
        self._thread: threading.Thread | None = None
        if prefetch > 0:
            self._thread = threading.Thread(target=self._fill, name="ltx2-prefetch", daemon=True)
            self._thread.start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._stop.is_set():
            raise StopIteration
        if self._thread is None:
            return self._load_next()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        return item

    def close(self) -> None:
        """Stop reading ahead and wait for the thread."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load_next(self) -> Batch:
        epoch, index, positions = next(self._walk)
        return load_batch(self._dataset, [self._order.samples[i] for i in positions], epoch, index)

    def _fill(self) -> None:
        while not self._stop.is_set():
            item: Batch | BaseException
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
