"""A micro-batch made ready for the model: noised, weighed, and sorted into groups that can go through it together.

Nothing in here depends on the weights, so the thread that reads ahead does it, on the CPU; where the batch lies then,
and when it goes to the device, is sending.py's. Whatever needs a look at values, such as which rows belong together or
where there is padding, is settled here, so that a step asks its device for nothing.

A sample never sees the padding of another: clips are run in groups of one length of sound and one shape of references,
those without sound through the video half alone, and padded steps of sounds without video are hidden from the
attention. So each sample's loss is what it would be in a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..config import RunConfig
from ..feed.batches import Batch
from ..feed.loader import Sample
from ..objective.audio_balance import sample_weights
from ..objective.terms import Factor
from .noised import Noised, noised_audio, noised_video

Send = Callable[[Tensor], Tensor]


class Streams(Protocol):
    """Which streams a model has."""

    has_video: bool
    has_audio: bool


class SoundOfBatch(Protocol):
    """What is asked of `RunSound`, which says more of it."""

    def latents(self, batch: Batch, /) -> tuple[Tensor | None, list[int], list[bool]]: ...


@dataclass(frozen=True)
class Group:
    """`count` samples that go through the model together, and what they read.

    `drawn` is what regularizers drew for them or look at, by name.
    """

    count: int
    video: Noised | None
    audio: Noised | None
    contexts: Mapping[str, Tensor]
    samples: tuple[Sample, ...] = ()
    drawn: Mapping[str, Tensor] = field(default_factory=dict)

    def sent(self, send: Send) -> Group:
        """The same with its tensors where `send` puts them."""
        return replace(
            self,
            video=None if self.video is None else self.video.sent(send),
            audio=None if self.audio is None else self.audio.sent(send),
            contexts={name: send(context) for name, context in self.contexts.items()},
            drawn={name: send(value) for name, value in self.drawn.items()},
        )


@dataclass(frozen=True)
class Ready:
    """A micro-batch that the model can be shown.

    `back` [B] puts the samples of the groups, one after the other, in the order of the batch; None where they are.
    `sigma` and `sigma_audio` [B] are the noise levels of the streams that are generated, `video_weight` the factor on
    the loss of the picture. `heard` [n]: places of the samples with real sound, and `is_heard` [B]; None where all are.
    `places` is `back` as numbers, empty where that is None; `step` counts the steps before this one.
    """

    batch: Batch
    groups: tuple[Group, ...]
    back: Tensor | None
    sigma: Tensor | None
    sigma_audio: Tensor | None
    video_weight: Factor
    any_heard: bool
    heard: Tensor | None
    is_heard: Tensor | None
    places: tuple[int, ...] = ()
    step: int = 0

    def sent(self, send: Send) -> Ready:
        """The same with its tensors where `send` puts them."""

        def other(value: Tensor | None) -> Tensor | None:
            return None if value is None else send(value)

        return replace(
            self,
            groups=tuple(group.sent(send) for group in self.groups),
            back=other(self.back),
            sigma=other(self.sigma),
            sigma_audio=other(self.sigma_audio),
            video_weight=send(self.video_weight) if isinstance(self.video_weight, Tensor) else self.video_weight,
            heard=other(self.heard),
            is_heard=other(self.is_heard),
        )


def make_ready(
    streams: Streams,
    batch: Batch,
    contexts: Mapping[str, Tensor],
    run: RunConfig,
    version: str,
    generator: torch.Generator,
    sound: SoundOfBatch | None = None,
    turn: int = 0,
) -> Ready:
    """`batch` with the text contexts [B, S, D] of its streams, for a model with these `streams`.

    Random numbers come from `generator` (CPU). `sound` is what the run keeps about sound, None in mode video;
    `turn` counts the batches before this one.
    """
    count = len(batch.samples)
    video = noised_video(batch, run, version, generator, turn) if batch.has_video and streams.has_video else None
    audio, lengths, real = None, [0] * count, [False] * count
    if streams.has_audio and sound is not None:
        latents, lengths, real = sound.latents(batch)
        if latents is not None:
            audio = noised_audio(batch, latents, lengths, video, run, version, generator, turn)
    groups: list[Group] = []
    order: list[int] = []
    for rows, steps in _groups(lengths, video, audio):
        some = None if len(rows) == count else rows
        v = None if video is None else video.part(some)
        a = None if audio is None or not steps else audio.part(some, steps, even=video is not None)
        shown = {name: contexts[name] for name, stream in (("video", v), ("audio", a)) if stream is not None}
        texts = {name: _rows(context, some) for name, context in shown.items()}
        groups.append(Group(len(rows), v, a, texts, tuple(batch.samples[row] for row in rows)))
        order += rows
    back = torch.tensor(order).argsort() if len(groups) > 1 else None
    weights = sample_weights(run.loss.video_weight, [sample.video_loss_weight for sample in batch.samples])
    heard = None if all(real) else torch.tensor([row for row, has in enumerate(real) if has], dtype=torch.long)
    return Ready(
        batch=batch,
        groups=tuple(groups),
        back=back,
        places=() if back is None else tuple(back.tolist()),
        sigma=None if video is None or not video.generated else video.sigma,
        sigma_audio=None if audio is None or not audio.generated else audio.sigma,
        video_weight=weights[0] if len(set(weights)) == 1 else torch.tensor(weights),
        any_heard=any(real),
        heard=heard,
        is_heard=None if heard is None else torch.tensor(real),
    )


def _groups(
    lengths: Sequence[int], video: Noised | None, audio: Noised | None
) -> Iterator[tuple[list[int], int | None]]:
    """Positions of the samples that go through the model together, and their number of steps of sound.

    Those of one group have references of one shape, and beside a picture sounds of one length.
    """
    sizes = [tuple(_lead_tokens(stream, row) for stream in (video, audio)) for row in range(len(lengths))]
    if video is None:
        keys = [(size, max(lengths)) for size in sizes]
    else:
        keys = [(size, length) for size, length in zip(sizes, lengths, strict=True)]
    for key in sorted(set(keys)):
        yield [index for index, one in enumerate(keys) if one == key], key[1]


def _lead_tokens(stream: Noised | None, row: int) -> tuple[int, ...]:
    """What must be equal for two references to stand in one batch."""
    lead = stream.leads[row] if stream is not None and stream.leads else None
    return () if lead is None else lead.extent


def _rows(context: Tensor, rows: Sequence[int] | None) -> Tensor:
    return context if rows is None else context[torch.tensor(rows, device=context.device)]
