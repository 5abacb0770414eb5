"""One micro-batch: noise it, ask for the velocity, measure the error.

    x_sigma = (1 - sigma) x0 + sigma noise        target v = noise - x0        loss = |model(x_sigma, sigma) - v|

(rectified flow, arXiv 2209.03003, in the form of arXiv 2403.03206). The result is not reduced: one value a sample.

A sample never sees the padding of another: clips are run in groups of one length of sound and one shape of references,
those without sound through the video half alone, and padded steps of sounds without video are hidden from the
attention. So each sample's loss is what it would be in a batch of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ..config import RunConfig
from ..feed.batches import Batch
from ..models.transformer import Modality, Output
from ..objective.audio_balance import sample_weights
from ..objective.terms import Term, total
from .metrics import LOSS, loss_column
from .noised import Noised, noised_audio, noised_video


class StepModel(Protocol):
    """What a step asks of the transformer."""

    has_video: bool
    has_audio: bool

    def __call__(self, video: Modality | None, audio: Modality | None, /) -> Output: ...


class StepSound(Protocol):
    """What a step asks of `Sound`, which says more of each."""

    @property
    def silence_weight(self) -> float: ...

    def latents(self, batch: Batch, /) -> tuple[Tensor | None, list[int], list[bool]]: ...

    def weight(self, batch: Batch, video_loss: Tensor | None, audio_loss: Tensor | None, /) -> float: ...


@dataclass(frozen=True)
class StepTerms:
    """What one micro-batch says. `terms`: the parts of its loss by name. `facts`: what else is worth a column of the
    metrics, by the column's name: a number, or one a sample."""

    terms: Mapping[str, Term]
    facts: Mapping[str, Tensor | float]

    @cached_property
    def loss(self) -> Tensor:
        """[B], with the gradient."""
        return total(self.terms)

    def columns(self) -> dict[str, Tensor | float]:
        """The numbers of the batch for the record, means over its samples. What no sample has is left out."""
        measured = {loss_column(name): term.measured() for name, term in self.terms.items()}
        values = {LOSS: self.loss.detach(), **measured, **self.facts}
        return {
            column: value.mean() if isinstance(value, Tensor) else value
            for column, value in values.items()
            if value is not None
        }


def training_step(
    model: StepModel,
    batch: Batch,
    contexts: Mapping[str, Tensor],
    run: RunConfig,
    version: str,
    generator: torch.Generator,
    sound: StepSound | None = None,
    turn: int = 0,
) -> StepTerms:
    """Forward pass and loss of `batch` with the text contexts [B, S, D] of its streams.

    Random numbers come from `generator` (CPU). `sound` is what the run keeps about sound, None in mode video;
    `turn` counts the batches before this one.
    """
    any_context = next(iter(contexts.values()))
    device, count = any_context.device, len(batch.samples)
    video = noised_video(batch, run, version, generator, device, turn) if batch.has_video and model.has_video else None
    audio, lengths, real = None, [0] * count, [False] * count
    if model.has_audio and sound is not None:
        latents, lengths, real = sound.latents(batch)
        if latents is not None:
            audio = noised_audio(batch, latents, lengths, video, run, version, generator, device, turn)
    video_losses: list[Tensor] = []
    audio_losses: list[Tensor] = []
    order: list[int] = []
    for rows, steps in _groups(lengths, video, audio):
        some = None if len(rows) == count else rows
        v = None if video is None else video.part(some)
        a = None if audio is None or not steps else audio.part(some, steps, even=video is not None)
        out = model(
            None if v is None else v.modality(_rows(contexts["video"], some)),
            None if a is None else a.modality(_rows(contexts["audio"], some)),
        )
        zeros = torch.zeros(len(rows), device=device)
        video_losses.append(zeros if v is None or out.video is None or not v.generated else v.losses(out.video, run))
        audio_losses.append(zeros if a is None or out.audio is None or not a.generated else a.losses(out.audio, run))
        order += rows
    back = torch.tensor(order, device=device).argsort() if len(video_losses) > 1 else None
    terms: dict[str, Term] = {}
    facts: dict[str, Tensor | float] = {}
    if video is not None and video.generated:
        terms["video"] = _video_term(batch, _joined(video_losses, back), run)
        facts["sigma"] = video.sigma
    if audio is not None and audio.generated:
        facts["sigma_audio"] = audio.sigma
        facts.setdefault("sigma", audio.sigma)  # that of the stream that leads
    if sound is not None and run.audio.generated:
        losses = None if audio is None else _joined(audio_losses, back)
        term, weight = _audio_term(batch, losses, real, sound, terms.get("video"))
        if term is not None:
            terms["audio"] = term
        if any(real):
            facts["audio_weight"] = weight
    return StepTerms(terms, facts)


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


def _joined(parts: list[Tensor], back: Tensor | None) -> Tensor:
    return parts[0] if back is None else torch.cat(parts)[back]


def _video_term(batch: Batch, losses: Tensor, run: RunConfig) -> Term:
    """The loss of the picture, [B]; a dataset may weigh its own."""
    return Term(losses, sample_weights(run.loss.video_weight, [s.video_loss_weight for s in batch.samples]))


def _audio_term(
    batch: Batch, losses: Tensor | None, real: Sequence[bool], sound: StepSound, video: Term | None
) -> tuple[Term | None, float]:
    """The loss of sound, None for a batch without any, and its weight. `real`: samples whose sound is no silence."""
    term = None if losses is None else Term(losses, mask=real)
    weight = sound.weight(batch, None if video is None else video.measured(), None if term is None else term.measured())
    if term is not None:
        term = replace(term, weight=[weight if has else weight * sound.silence_weight for has in real])
    return term, weight
