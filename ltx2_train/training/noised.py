"""The streams of a batch on their way into the model: noised, what conditions give of them, references in front.

What is given of a sample stays clean, has timestep 0 and does not count in the loss; references go in front of it in
the same way. A stream that is not generated is given whole.

Sound shares the noise level of its video unless audio.independent_timestep asks for another, or the video is given.
Everything of the video is drawn before anything of the sound, so a clip gets the same noise in every mode; coins and
lengths of conditions are drawn last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..conditions.given import Target, draw_given
from ..conditions.reference import Lead, audio_lead, joined_leads, video_lead
from ..conditions.settings import Condition, FirstFrame
from ..conditions.stream import as_modality
from ..conditions.trained import reference_sounds_of, references_of
from ..config import RunConfig
from ..feed.batches import Batch, GivenData
from ..models.patchify import audio_tokens, video_tokens
from ..models.positions import audio_positions, slot_places, slot_positions, video_positions
from ..models.transformer import Modality
from ..objective.flow import add_noise, draw_first_frame, element_loss, first_frame_tokens, masked_mean, velocity
from ..objective.sigmas import sample_audio_sigmas, sample_sigmas
from ..shapes import AudioLatentShape, LatentShape

R = TypeVar("R", bound=Condition)


@dataclass(frozen=True)
class Noised:
    """One stream of a batch: tokens [B, T, C] in float32.

    `given` [B, T]: tokens that stay clean, None where no sample has any; where all of them are at the start, and alike
    in every sample, `lead` is their number. `learned` [B, T]: tokens that are no padding, None where there is none.
    `leads`: the references of each sample, empty where none has any. All is settled on the CPU, so that nothing has to
    wait for the device, to which `sent` takes it. `first`: tokens of the first latent frame of a picture; the last
    `slots` are those of keyframe slots. A stream that is not `generated` has noise level 0. Tokens that a regularizer
    has `masked` [B, T] have the noise level `second` [B]; `told` [B], where it is there, is what the model is told for
    all tokens instead.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    positions: Tensor
    given: Tensor | None = None
    lead: int | None = None
    learned: Tensor | None = None
    leads: Sequence[Lead | None] = ()
    generated: bool = True
    first: int = 0
    slots: int = 0
    second: Tensor | None = None
    masked: Tensor | None = None
    told: Tensor | None = None

    def part(self, rows: Sequence[int] | None, tokens: int | None = None, even: bool = False) -> Noised:
        """The samples `rows`, and of them the first `tokens`; `even` if all of them are that long."""
        chosen = None if rows is None else torch.tensor(rows, device=self.clean.device)

        def cut(value: Tensor) -> Tensor:
            return (value if chosen is None else value[chosen])[:, :tokens]

        return replace(
            self,
            clean=cut(self.clean),
            noise=cut(self.noise),
            sigma=self.sigma if chosen is None else self.sigma[chosen],
            positions=self.positions[:, :, :tokens],
            given=None if self.given is None else cut(self.given),
            learned=None if even or self.learned is None else cut(self.learned),
            leads=self.leads if rows is None or not self.leads else [self.leads[row] for row in rows],
        )

    def sent(self, send: Callable[[Tensor], Tensor]) -> Noised:
        """The same with its tensors where `send` puts them."""
        return replace(
            self,
            clean=send(self.clean),
            noise=send(self.noise),
            sigma=send(self.sigma),
            positions=send(self.positions),
            given=None if self.given is None else send(self.given),
            learned=None if self.learned is None else send(self.learned),
            leads=[None if lead is None else lead.sent(send) for lead in self.leads],
        )

    @property
    def reference(self) -> Lead | None:
        """The references of all samples together, which must be of one shape; None where there is none."""
        there = [lead for lead in self.leads if lead is not None]
        return replace(there[0], tokens=torch.cat([lead.tokens for lead in there])) if there else None

    def modality(self, context: Tensor) -> Modality:
        """What the model is shown."""
        noisy = add_noise(self.clean, self.noise, self.levels) if self.generated else self.clean
        if self.given is not None:
            noisy = torch.where(self.given[..., None], self.clean, noisy)
        return as_modality(
            noisy,
            self.sigma if self.told is None else self.told,
            self.positions,
            context,
            given=self.given,
            lead=self.lead,
            reference=self.reference,
            learned=self.learned,
            generated=self.generated,
            first=self.first,
            slots=self.slots,
            second=self.second if self.told is None else None,
            masked=self.masked if self.told is None else None,
        )

    @property
    def levels(self) -> Tensor:
        """Noise levels, [B] or [B, T]; of what is given as if it were not."""
        if self.masked is None or self.second is None:
            return self.sigma
        return torch.where(self.masked, self.second[:, None], self.sigma[:, None])

    @property
    def judged(self) -> Tensor | None:
        """bool [B, T]: tokens whose prediction counts, None for all."""
        if self.given is None:
            return self.learned
        return ~self.given if self.learned is None else self.learned & ~self.given

    def losses(self, predicted: Tensor, run: RunConfig) -> Tensor:
        """[B]: the mean over what is learned."""
        errors = element_loss(predicted[:, -self.clean.shape[1] :], velocity(self.clean, self.noise), run.loss)
        return masked_mean(errors, self.judged)


def noised_video(batch: Batch, run: RunConfig, version: str, generator: torch.Generator, turn: int) -> Noised:
    """The pictures of `batch`, which has some."""
    assert batch.latents is not None
    shape = LatentShape(*batch.latents.shape[2:])
    clean = video_tokens(batch.latents.float())  # [B, T, C]
    noise = video_tokens(torch.randn(batch.latents.shape, generator=generator))
    sigma = sample_sigmas(run.objective, len(batch.samples), shape.tokens, version, generator, turn=turn)
    first, others = _first_frame(run)
    chances = [first if s.first_frame_probability is None else s.first_frame_probability for s in batch.samples]
    given = first_frame_tokens(shape, draw_first_frame(chances, generator))  # [B, T]
    data_given = batch.given or [GivenData()] * len(batch.samples)
    given = given | draw_given(others, Target.video(shape, batch.fps), [one.mask for one in data_given], generator)
    scales = [sample.reference_temporal_scale for sample in batch.samples]
    leads = _leads(
        references_of(others),
        [one.references for one in data_given],
        lambda _, row, latents: video_lead(latents, shape, batch.fps, scales[row]),
        generator,
    )
    positions = video_positions(shape, batch.fps)
    if not run.video.generated:
        nothing = torch.zeros_like(sigma)
        return Noised(clean, noise, nothing, positions, leads=leads, generated=False, first=shape.frame_tokens)
    tokens, lead = _settled(given)
    video = Noised(clean, noise, sigma, positions, given=tokens, lead=lead, leads=leads, first=shape.frame_tokens)
    keyframes = [one.keyframes for one in data_given if one.keyframes is not None]
    return _with_slots(video, torch.stack(keyframes), shape, batch.fps, generator) if keyframes else video


def _with_slots(video: Noised, keyframes: Tensor, shape: LatentShape, fps: float, generator: torch.Generator) -> Noised:
    """`video` of `shape` with slots behind it, in which the `keyframes` [B, 128, K, H, W] are to be made."""
    assert len(keyframes) == len(video.clean), "clips of one shape have equally many slots"
    clean = video_tokens(keyframes.float())
    noise = video_tokens(torch.randn(keyframes.shape, generator=generator))
    positions = slot_positions(slot_places(keyframes.shape[2], shape.video().frames), shape, fps)
    given = None if video.given is None else pad(video.given, (0, clean.shape[1]), value=False)
    return replace(
        video,
        clean=torch.cat((video.clean, clean), dim=1),
        noise=torch.cat((video.noise, noise), dim=1),
        positions=torch.cat((video.positions, positions), dim=2),
        given=given,
        slots=clean.shape[1],
    )


def noised_audio(
    batch: Batch,
    latents: Tensor,
    lengths: Sequence[int],
    video: Noised | None,
    run: RunConfig,
    version: str,
    generator: torch.Generator,
    turn: int,
) -> Noised:
    """The sounds `latents` [B, 8, T, 16] of `batch`, of these `lengths`."""
    clean = audio_tokens(latents.float())  # [B, T, C]
    noise = audio_tokens(torch.randn(latents.shape, generator=generator))
    if run.audio.independent_timestep:
        sigma = sample_audio_sigmas(run.objective, len(batch.samples), generator)
    elif video is not None and video.generated:
        sigma = video.sigma
    else:
        # each sound has its own length, hence its own shift; without a picture that of an imagined one
        tokens = [sample.shape.tokens if video is None else clean.shape[1] for sample in batch.samples]
        sigma = sample_sigmas(run.objective, len(tokens), tokens, version, generator, video is None, turn)
    learned = torch.arange(clean.shape[1])[None] < torch.tensor(lengths)[:, None]  # [B, T]
    learned = None if bool(learned.all()) else learned
    given, leads = _given_of_sound(batch, clean.shape[1], lengths, run, generator)
    positions = audio_positions(AudioLatentShape(clean.shape[1]))
    if not run.audio.generated:
        sigma = torch.zeros_like(sigma)
        return Noised(clean, noise, sigma, positions, learned=learned, leads=leads, generated=False)
    marked, lead = _settled(given)
    return Noised(clean, noise, sigma, positions, given=marked, lead=lead, learned=learned, leads=leads)


def _given_of_sound(
    batch: Batch,
    steps: int,
    lengths: Sequence[int],
    run: RunConfig,
    generator: torch.Generator,
) -> tuple[Tensor, list[Lead | None]]:
    """Tokens that are given, bool [B, T], and each sample's references; each sound ends where it ends."""
    given = torch.zeros(len(lengths), steps, dtype=torch.bool)
    data = batch.given or [GivenData()] * len(lengths)
    for row, length in enumerate(lengths):
        mask = data[row].audio_mask
        if length:
            masks = [None if mask is None else mask[:length]]
            given[row, :length] = draw_given(run.audio.conditions, Target(length), masks, generator)[0]
    shown = [one.reference_audios for one in data]
    conditions = reference_sounds_of(run.audio.conditions)
    return given, _leads(conditions, shown, lambda condition, _, latents: audio_lead(latents, condition), generator)


def _first_frame(run: RunConfig) -> tuple[float, list[Any]]:
    """The probability of the first frame, and the other conditions of the picture.

    A condition of type first_frame has its own probability, which counts before that of the run.
    """
    found = [one for one in run.video.conditions if isinstance(one, FirstFrame)]
    others = [one for one in run.video.conditions if not isinstance(one, FirstFrame)]
    return (found[0].probability if found else run.train.first_frame_probability), others


def _leads(
    conditions: Sequence[R],
    shown: Sequence[Sequence[Tensor | None]],
    lead: Callable[[R, int, Tensor], Lead],
    generator: torch.Generator,
) -> list[Lead | None]:
    """What goes in front of each sample, of those of its references `shown` whose coins fall so; empty where no
    condition asks for any. `lead` makes it of a condition, the place of a sample and the latents."""
    found: list[list[Lead | None]] = [[] for _ in shown]
    for number, condition in enumerate(conditions):
        coins = (torch.rand(len(shown), generator=generator) < condition.probability).tolist()
        for row, references in enumerate(shown):
            latents = references[number] if number < len(references) else None
            found[row].append(lead(condition, row, latents) if coins[row] and latents is not None else None)
    return [joined_leads(leads) for leads in found] if conditions else []


def _settled(given: Tensor) -> tuple[Tensor | None, int | None]:
    """`given` [B, T], None where nothing is; and how many are at the start, where no others are."""
    if not bool(given.any()):
        return None, None
    count = int(given[0].sum())
    lead = count if bool(given[:, :count].all()) and not bool(given[:, count:].any()) else None
    return given, lead
