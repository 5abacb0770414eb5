"""One micro-batch: noise it, ask for the velocity, measure the error.

    x_sigma = (1 - sigma) x0 + sigma noise        target v = noise - x0        loss = |model(x_sigma, sigma) - v|

(rectified flow, arXiv 2209.03003, in the form of arXiv 2403.03206). The result is not reduced: one value a sample.
What can be done before the weights are known is ready.py's; what is left here reads no number from the device, but for
a balance that follows the size of the losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import RunConfig
from ..feed.batches import Batch
from ..models.transformer import Modality, Output
from ..objective.terms import Term, total
from .metrics import LOSS, loss_column
from .ready import Group, Ready, make_ready


class StepModel(Protocol):
    """What a step asks of the transformer."""

    has_video: bool
    has_audio: bool

    def __call__(self, video: Modality | None, audio: Modality | None, /, **options: Any) -> Output: ...


class StepSound(Protocol):
    """What a step asks of `RunSound`, which says more of each."""

    @property
    def silence_weight(self) -> float: ...

    def latents(self, batch: Batch, /) -> tuple[Tensor | None, list[int], list[bool]]: ...

    def weight(self, batch: Batch, video_loss: Tensor | None, audio_loss: Tensor | None, /) -> float: ...


class StepHelp(Protocol):
    """What a step asks of the regularizers, for each group in turn and then once for its terms."""

    def before(self, group: Group, /) -> tuple[Group, Mapping[str, Any]]:
        """What the model is to be shown in place of `group`, and how it is to be called."""
        ...

    def after(self, out: Output, /) -> None: ...

    def terms(self, ready: Ready, /) -> Mapping[str, Term]: ...

    def facts(self) -> Mapping[str, Tensor | float]: ...


@dataclass(frozen=True)
class StepTerms:
    """What one micro-batch says. `terms`: the parts of its loss by name. `facts`: what else is worth a column of the
    metrics, by the column's name: a number, or one a sample. `adds`: they come on top of the loss of the terms before,
    by a backward pass of their own."""

    terms: Mapping[str, Term]
    facts: Mapping[str, Tensor | float]
    adds: bool = False

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
    """Forward pass and loss of `batch`, which is made ready first and goes where its contexts are; see `make_ready`."""
    device = next(iter(contexts.values())).device
    ready = make_ready(model, batch, contexts, run, version, generator, sound, turn)
    return ready_step(model, ready.sent(lambda tensor: tensor.to(device)), run, sound)


def ready_step(
    model: StepModel, ready: Ready, run: RunConfig, sound: StepSound | None = None, help: StepHelp | None = None
) -> StepTerms:
    """Forward pass and loss of a batch that is ready, on its device."""
    video_losses: list[Tensor] = []
    audio_losses: list[Tensor] = []
    for group in ready.groups:
        options: Mapping[str, Any] = {}
        if help is not None:
            group, options = help.before(group)
        v, a = group.video, group.audio
        out = model(
            None if v is None else v.modality(group.contexts["video"]),
            None if a is None else a.modality(group.contexts["audio"]),
            **options,
        )
        if help is not None:
            help.after(out)
        device = next(x for x in (out.video, out.audio) if x is not None).device
        zeros = torch.zeros(group.count, device=device)
        video_losses.append(zeros if v is None or out.video is None or not v.generated else v.losses(out.video, run))
        audio_losses.append(zeros if a is None or out.audio is None or not a.generated else a.losses(out.audio, run))
    terms: dict[str, Term] = {}
    facts: dict[str, Tensor | float] = {}
    if ready.sigma is not None:
        terms["video"] = Term(in_batch_order(video_losses, ready.back), ready.video_weight)
        facts["sigma"] = ready.sigma
    if ready.sigma_audio is not None:
        facts["sigma_audio"] = ready.sigma_audio
        facts.setdefault("sigma", ready.sigma_audio)  # that of the stream that leads
    if sound is not None and run.audio.generated:
        losses = None if ready.sigma_audio is None else in_batch_order(audio_losses, ready.back)
        term, weight = _audio_term(ready, losses, sound, terms.get("video"))
        if term is not None:
            terms["audio"] = term
        if ready.any_heard:
            facts["audio_weight"] = weight
    if help is not None:
        terms |= help.terms(ready)
        facts |= help.facts()
    return StepTerms(terms, facts)


def in_batch_order(parts: list[Tensor], back: Tensor | None) -> Tensor:
    """Values of the groups [count, ...] in the order of the batch; see `Ready.back`."""
    return parts[0] if back is None else torch.cat(parts)[back]


def _audio_term(ready: Ready, losses: Tensor | None, sound: StepSound, video: Term | None) -> tuple[Term | None, float]:
    """The loss of sound, None for a batch without any, and its weight."""
    term = None if losses is None else Term(losses, rows=ready.heard)
    seen, heard = (None if one is None else one.measured() for one in (video, term))
    weight = sound.weight(ready.batch, seen, heard)
    if term is not None:
        silent = weight * sound.silence_weight
        term = replace(term, weight=weight if ready.is_heard is None else torch.where(ready.is_heard, weight, silent))
    return term, weight
