"""One micro-batch: noise it, ask for the velocity, measure the error.

    x_sigma = (1 - sigma) x0 + sigma noise        target v = noise - x0        loss = |model(x_sigma, sigma) - v|

(rectified flow, arXiv 2209.03003, in the form of arXiv 2403.03206). Per sample, a coin may give the first latent frame:
its tokens stay clean, have timestep 0 and do not count in the loss. The result is not reduced: one value a sample.

Sound shares the noise level of its video unless audio.independent_timestep asks for another. Everything of the video
is drawn before anything of the sound, so a clip gets the same noise in every mode. A sample never sees the padding of
another: clips are run in groups of one length of sound, those without sound through the video half alone, and padded
steps of sounds without video are hidden from the attention. So each sample's loss is what it would be in a batch of
its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import RunConfig
from ..feed.batches import Batch
from ..models.patchify import audio_tokens, video_tokens
from ..models.positions import audio_positions, video_positions
from ..models.transformer import LTXTransformer, Modality
from ..objective.audio_balance import sample_weights
from ..objective.flow import (
    add_noise,
    draw_first_frame,
    element_loss,
    first_frame_tokens,
    masked_mean,
    token_sigmas,
    velocity,
)
from ..objective.sigmas import sample_audio_sigmas, sample_sigmas
from ..objective.terms import Term, total
from ..shapes import AudioLatentShape, LatentShape
from .metrics import LOSS, loss_column
from .sound import Sound


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


@dataclass(frozen=True)
class _Noised:
    """One stream of a batch: tokens [B, T, C] in float32.

    `given` [B, T]: tokens that stay clean, None where no sample has any. `learned` [B, T]: tokens that are no padding,
    None where there is none. Both are settled on the CPU, so that nothing has to wait for the device.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    positions: Tensor
    given: Tensor | None = None
    learned: Tensor | None = None

    def part(self, rows: Tensor | None, tokens: int | None = None, even: bool = False) -> _Noised:
        """The samples `rows`, and of them the first `tokens`; `even` if all of them are that long."""

        def cut(value: Tensor | None) -> Tensor | None:
            return None if value is None else (value if rows is None else value[rows])[:, :tokens]

        return _Noised(
            clean=cut(self.clean),
            noise=cut(self.noise),
            sigma=self.sigma if rows is None else self.sigma[rows],
            positions=self.positions[:, :, :tokens],
            given=cut(self.given),
            learned=None if even else cut(self.learned),
        )

    def modality(self, context: Tensor) -> Modality:
        noisy, timesteps, weights = add_noise(self.clean, self.noise, self.sigma), None, None
        if self.given is not None:
            noisy = torch.where(self.given[..., None], self.clean, noisy)
            timesteps = token_sigmas(self.sigma, self.given)
        if self.learned is not None:  # nobody may listen to padding
            weights = self.learned[:, None, :].expand(-1, self.learned.shape[1], -1).float()
        return Modality(
            latent=noisy.to(context.dtype),
            sigma=self.sigma,
            timesteps=timesteps,
            positions=self.positions,
            context=context,
            attention_mask=weights,
        )

    def losses(self, predicted: Tensor, run: RunConfig) -> Tensor:
        """[B]: the mean over what is learned."""
        errors = element_loss(predicted, velocity(self.clean, self.noise), run.loss)
        return masked_mean(errors, self.learned if self.given is None else ~self.given)


def training_step(
    model: LTXTransformer,
    batch: Batch,
    contexts: Mapping[str, Tensor],
    run: RunConfig,
    version: str,
    generator: torch.Generator,
    sound: Sound | None = None,
    turn: int = 0,
) -> StepTerms:
    """Forward pass and loss of `batch` with the text contexts [B, S, D] of its streams.

    Random numbers come from `generator` (CPU). `sound` is what the run keeps about sound, None in mode video;
    `turn` counts the batches before this one.
    """
    any_context = next(iter(contexts.values()))
    device, count = any_context.device, len(batch.samples)
    video = _video(batch, run, version, generator, device, turn) if batch.has_video and model.has_video else None
    audio, lengths, real = None, [0] * count, [False] * count
    if model.has_audio and sound is not None:
        latents, lengths, real = sound.latents(batch)
        if latents is not None:
            audio = _audio(batch, latents, lengths, video, run, version, generator, device, turn)
    video_losses: list[Tensor] = []
    audio_losses: list[Tensor] = []
    order: list[int] = []
    for rows, steps in _groups(lengths, with_video=video is not None):
        chosen = None if len(rows) == count else torch.tensor(rows, device=device)
        v = None if video is None else video.part(chosen)
        a = None if audio is None or not steps else audio.part(chosen, steps, even=video is not None)
        out = model(
            None if v is None else v.modality(_rows(contexts["video"], chosen)),
            None if a is None else a.modality(_rows(contexts["audio"], chosen)),
        )
        zeros = torch.zeros(len(rows), device=device)
        video_losses.append(zeros if v is None else v.losses(out.video, run))
        audio_losses.append(zeros if a is None else a.losses(out.audio, run))
        order += rows
    back = torch.tensor(order, device=device).argsort() if len(video_losses) > 1 else None
    terms: dict[str, Term] = {}
    facts: dict[str, Tensor | float] = {}
    if video is not None:
        terms["video"] = _video_term(batch, _joined(video_losses, back), run)
        facts["sigma"] = video.sigma
    if audio is not None:
        facts["sigma_audio"] = audio.sigma
        facts.setdefault("sigma", audio.sigma)  # that of the stream that leads
    if sound is not None:
        losses = None if audio is None else _joined(audio_losses, back)
        term, weight = _audio_term(batch, losses, real, sound, terms.get("video"))
        if term is not None:
            terms["audio"] = term
        if any(real):
            facts["audio_weight"] = weight
    return StepTerms(terms, facts)


def _video(
    batch: Batch, run: RunConfig, version: str, generator: torch.Generator, device: torch.device, turn: int
) -> _Noised:
    shape = LatentShape(*batch.latents.shape[2:])
    clean = video_tokens(batch.latents.to(device=device, dtype=torch.float32))  # [B, T, C]
    noise = video_tokens(torch.randn(batch.latents.shape, generator=generator).to(device))
    sigma = sample_sigmas(run.objective, len(batch.samples), shape.tokens, version, generator, turn=turn).to(device)
    default = run.train.first_frame_probability
    chances = [default if s.first_frame_probability is None else s.first_frame_probability for s in batch.samples]
    given = first_frame_tokens(shape, draw_first_frame(chances, generator))  # [B, T]
    given = given.to(device) if bool(given.any()) else None
    return _Noised(clean, noise, sigma, video_positions(shape, batch.fps, device), given=given)


def _audio(
    batch: Batch,
    latents: Tensor,
    lengths: Sequence[int],
    video: _Noised | None,
    run: RunConfig,
    version: str,
    generator: torch.Generator,
    device: torch.device,
    turn: int,
) -> _Noised:
    clean = audio_tokens(latents.to(device=device, dtype=torch.float32))  # [B, T, C]
    noise = audio_tokens(torch.randn(latents.shape, generator=generator).to(device))
    if run.audio.independent_timestep:
        sigma = sample_audio_sigmas(run.objective, len(batch.samples), generator).to(device)
    elif video is not None:
        sigma = video.sigma
    else:
        # each sound has its own length, hence its own shift
        tokens = [sample.shape.tokens for sample in batch.samples]
        sigma = sample_sigmas(run.objective, len(tokens), tokens, version, generator, True, turn).to(device)
    learned = torch.arange(clean.shape[1])[None] < torch.tensor(lengths)[:, None]  # [B, T]
    learned = None if bool(learned.all()) else learned.to(device)
    positions = audio_positions(AudioLatentShape(clean.shape[1]), device)
    return _Noised(clean, noise, sigma, positions, learned=learned)


def _groups(lengths: Sequence[int], with_video: bool) -> Iterator[tuple[list[int], int | None]]:
    """Positions of the samples that go through the model together, and their number of steps of sound."""
    if not with_video:
        yield list(range(len(lengths))), max(lengths)
        return
    for steps in sorted(set(lengths)):
        yield [index for index, length in enumerate(lengths) if length == steps], steps


def _rows(context: Tensor, rows: Tensor | None) -> Tensor:
    return context if rows is None else context[rows]


def _joined(parts: list[Tensor], back: Tensor | None) -> Tensor:
    return parts[0] if back is None else torch.cat(parts)[back]


def _video_term(batch: Batch, losses: Tensor, run: RunConfig) -> Term:
    """The loss of the picture, [B]; a dataset may weigh its own."""
    return Term(losses, sample_weights(run.loss.video_weight, [s.video_loss_weight for s in batch.samples]))


def _audio_term(
    batch: Batch, losses: Tensor | None, real: Sequence[bool], sound: Sound, video: Term | None
) -> tuple[Term | None, float]:
    """The loss of sound, None for a batch without any, and its weight. `real`: samples whose sound is no silence."""
    term = None if losses is None else Term(losses, mask=real)
    weight = sound.weight(batch, None if video is None else video.measured(), None if term is None else term.measured())
    if term is not None:
        term = replace(term, weight=[weight if has else weight * sound.silence_weight for has in real])
    return term, weight
