"""From noise to latents: Euler steps of the flow, with guidance and with what is given; video, sound or both.

The model predicts the velocity v = noise - x0 at x = (1 - sigma) x0 + sigma noise, so x0 = x - sigma v per token. All
guidance happens on x0, in float32, for each modality by itself:

    x0 = c + (guidance - 1)(c - u) + stg (c - p) + (modality - 1)(c - i)

    c prompt, u negative prompt, p self-attention of some blocks skipped, i picture and sound kept from each other

(classifier-free guidance: arXiv 2207.12598; spatio-temporal guidance: arXiv 2411.18664; the last as in the pipelines of
LTX-2), then scaled back towards the spread of c where `rescale` is above 0 (arXiv 2305.08891). The pipelines of
LTX-Video guide velocities in place of x0: the sum is the same, what is scaled back is not. What is given keeps its
clean tokens at timestep 0, and a stream that is given whole stays as it is at noise level 0. Picture and sound walk
down one schedule together, since they were trained to see each other at like noise levels. Keyframe slots are drawn
with the picture they belong to, and let go of at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..conditions.reference import Lead
from ..conditions.stream import as_modality
from ..models.patchify import audio_grid, audio_tokens, video_grid, video_tokens
from ..models.positions import audio_positions, slot_places, slot_positions, video_positions
from ..models.transformer import LTXTransformer, Modality, SkipLayers
from ..shapes import AudioLatentShape, LatentShape


class Pair(NamedTuple):
    """Something of each modality: noise, latents or text context. None where the modality is not drawn."""

    video: Tensor | None = None
    audio: Tensor | None = None

    def of_one(self) -> Pair:
        """That of the only sample of a batch, on the CPU."""
        return Pair(*(None if part is None else part[0].cpu() for part in self))


@dataclass(frozen=True)
class Guidance:
    """How strongly one modality is corrected; 1, 0 and 1 switch the corrections off and save their forward passes."""

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0


@dataclass(frozen=True)
class GivenStream:
    """What one modality is given. `latents` have the shape of its noise and hold clean numbers where `tokens`, bool
    [T], is true; of a stream that is given `whole` they are all of it. `reference` goes in front."""

    latents: Tensor | None = None
    tokens: Tensor | None = None
    reference: Lead | None = None
    whole: bool = False


class GivenPair(NamedTuple):
    """What each modality is given; None: nothing but the text."""

    video: GivenStream | None = None
    audio: GivenStream | None = None


def guide(
    cond: Tensor,
    uncond: Tensor | None,
    perturbed: Tensor | None,
    guidance: Guidance,
    isolated: Tensor | None = None,
) -> Tensor:
    """What is guided from predictions of one shape [B, T, C], float32, x0 or velocities; those that the guidance has
    no use for: None."""
    guided = cond
    if uncond is not None:
        guided = guided + (guidance.cfg - 1) * (cond - uncond)
    if perturbed is not None:
        guided = guided + guidance.stg * (cond - perturbed)
    if isolated is not None:
        guided = guided + (guidance.modality - 1) * (cond - isolated)
    if guidance.rescale > 0 and guided is not cond:
        axes = tuple(range(1, cond.ndim))
        factor = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True).clamp_min(1e-8)
        guided = guided * (guidance.rescale * factor + 1 - guidance.rescale)
    return guided


@dataclass(frozen=True)
class _Tokens:
    """One modality on its way down: noisy tokens x [B, T, C] and, where some are given, which and what they are."""

    x: Tensor
    positions: Tensor
    given: Tensor | None = None  # [B, T] bool
    clean: Tensor | None = None
    reference: Lead | None = None
    generated: bool = True
    first: int = 0  # tokens of the first latent frame of a picture
    slots: int = 0  # tokens of the keyframe slots behind it

    def modality(self, sigma: Tensor, context: Tensor | None) -> Modality:
        assert context is not None, "what is drawn needs its text"
        return as_modality(
            self.x,
            sigma if self.generated else torch.zeros_like(sigma),
            self.positions,
            context,
            given=self.given,
            reference=self.reference,
            generated=self.generated,
            first=self.first,
            slots=self.slots,
        )

    def drawn(self, velocity: Tensor | None) -> Tensor:
        """What of the model's `velocity` is of these tokens, float32: a reference lies in front of them."""
        assert velocity is not None, "what is drawn comes out of the model"
        return velocity[:, -self.x.shape[1] :].float()

    def denoised(self, velocity: Tensor, sigma: Tensor) -> Tensor:
        levels = sigma[:, None] if self.given is None else torch.where(self.given, 0.0, sigma[:, None])
        return self.x - levels[..., None] * velocity

    def step(self, x0: Tensor, level: float, following: float) -> _Tokens:
        if not self.generated:
            return self
        if self.given is not None and self.clean is not None:
            x0 = torch.where(self.given[..., None], self.clean, x0)
        return replace(self, x=self.x + (following - level) * (self.x - x0) / level)


@torch.no_grad()
def denoise(
    model: LTXTransformer,
    noise: Pair,
    sigmas: Tensor,
    context: Pair,
    *,
    fps: float,
    negative: Pair | None = None,
    guidance: Guidance = Guidance(),
    audio_guidance: Guidance | None = None,
    stg_blocks: Sequence[int] = (0,),
    rescale_velocities: bool = False,
    given: GivenPair | None = None,
    slots: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Pair:
    """Latents drawn from `noise` of the same shapes along `sigmas`: [B, 128, F, H, W] and [B, 8, T, 16], float32.

    `context`, `negative`: text contexts [B, S, D] of every modality in `noise`; `negative` is needed where the guidance
    asks for it. `audio_guidance`: that of the sound, None: as `guidance`; `stg_blocks`: those that spatio-temporal
    guidance skips. `rescale_velocities`: guided velocities are scaled back, not x0. `given`: what each modality is
    given, alike for all samples. `slots` [B, 128, K, H, W]: the noise of keyframe slots. `on_step(done, total)` is
    called after each step and may raise to end the sampling.
    """
    first = next((part for part in noise if part is not None), None)
    assert first is not None, "nothing to draw"
    given = given or GivenPair()
    drawn = [
        None if noise.video is None else _video(noise.video, fps, given.video or GivenStream(), slots),
        None if noise.audio is None else _audio(noise.audio, given.audio or GivenStream()),
    ]
    strengths = [
        _asked(tokens, strength, alone=len([one for one in drawn if one is not None]) == 1)
        for tokens, strength in zip(drawn, (guidance, audio_guidance or guidance), strict=True)
    ]
    skipped = [frozenset(stg_blocks) if strength.stg != 0 else None for strength in strengths]
    for index, (level, following) in enumerate(pairwise(sigmas.tolist())):
        sigma = torch.full((first.shape[0],), level, device=first.device)
        cond = _predict(model, drawn, sigma, context)
        uncond = perturbed = isolated = (None, None)
        if negative is not None and any(strength.cfg != 1 for strength in strengths):
            uncond = _predict(model, drawn, sigma, negative)
        if any(skipped):
            perturbed = _predict(model, drawn, sigma, context, SkipLayers(*skipped))
        if any(strength.modality != 1 for strength in strengths):
            isolated = _predict(model, drawn, sigma, context, SkipLayers(a2v="all", v2a="all"))
        drawn = [
            None
            if tokens is None or c is None
            else tokens.step(_guided(tokens, c, u, p, i, strength, sigma, rescale_velocities), level, following)
            for tokens, c, u, p, i, strength in zip(drawn, cond, uncond, perturbed, isolated, strengths, strict=True)
        ]
        if on_step is not None:
            on_step(index + 1, len(sigmas) - 1)
    video, audio = drawn
    return Pair(
        None if video is None or noise.video is None else _picture(video.x, LatentShape(*noise.video.shape[2:])),
        None if audio is None or noise.audio is None else audio_grid(audio.x, _audio_shape(noise.audio)),
    )


def _asked(tokens: _Tokens | None, guidance: Guidance, alone: bool) -> Guidance:
    """What of `guidance` counts: nothing for a modality that is not made, and none of the other one where there is
    none."""
    if tokens is None or not tokens.generated:
        return Guidance()
    return replace(guidance, modality=1.0) if alone else guidance


def _predict(
    model: LTXTransformer,
    drawn: Sequence[_Tokens | None],
    sigma: Tensor,
    context: Pair,
    skip: SkipLayers | None = None,
) -> tuple[Tensor | None, ...]:
    """The model's velocity of each modality, float32, of the tokens that are drawn."""
    given = [
        None if tokens is None else tokens.modality(sigma, text) for tokens, text in zip(drawn, context, strict=True)
    ]
    output = model(*given, skip=skip)
    velocities = (None if given[0] is None else output.video, None if given[1] is None else output.audio)
    return tuple(
        None if tokens is None else tokens.drawn(velocity) for tokens, velocity in zip(drawn, velocities, strict=True)
    )


def _guided(
    tokens: _Tokens,
    cond: Tensor,
    uncond: Tensor | None,
    perturbed: Tensor | None,
    isolated: Tensor | None,
    guidance: Guidance,
    sigma: Tensor,
    of_velocities: bool,
) -> Tensor:
    """The guided x0 of one modality from the model's velocities."""
    if of_velocities:
        return tokens.denoised(guide(cond, uncond, perturbed, guidance, isolated), sigma)
    c, u, p, i = (None if one is None else tokens.denoised(one, sigma) for one in (cond, uncond, perturbed, isolated))
    assert c is not None, "what is drawn comes out of the model"
    return guide(c, u, p, guidance, i)


def _picture(x: Tensor, shape: LatentShape) -> Tensor:
    """The latents [B, 128, F, H, W] of the tokens `x`, without those of slots."""
    return video_grid(x[:, : shape.tokens], shape)


def _video(noise: Tensor, fps: float, given: GivenStream, slots: Tensor | None) -> _Tokens:
    shape = LatentShape(*noise.shape[2:])
    positions = video_positions(shape, fps, noise.device)
    clean = None if given.latents is None else video_tokens(given.latents.to(noise.device, torch.float32))
    video = replace(_begin(video_tokens(noise.float()), positions, clean, given), first=shape.frame_tokens)
    return video if slots is None or given.whole else _with_slots(video, slots, shape, fps)


def _with_slots(video: _Tokens, noise: Tensor, shape: LatentShape, fps: float) -> _Tokens:
    """`video` of `shape` with keyframe slots behind it, nothing of which is given."""
    x = video_tokens(noise.float())
    behind = slot_positions(slot_places(noise.shape[2], shape.video().frames), shape, fps, x.device)
    return replace(
        video,
        x=torch.cat((video.x, x), dim=1),
        positions=torch.cat((video.positions, behind), dim=2),
        given=None if video.given is None else pad(video.given, (0, x.shape[1]), value=False),
        clean=None if video.clean is None else pad(video.clean, (0, 0, 0, x.shape[1])),
        slots=x.shape[1],
    )


def _audio(noise: Tensor, given: GivenStream) -> _Tokens:
    positions = audio_positions(_audio_shape(noise), noise.device)
    clean = None if given.latents is None else audio_tokens(given.latents.to(noise.device, torch.float32))
    return _begin(audio_tokens(noise.float()), positions, clean, given)


def _begin(x: Tensor, positions: Tensor, clean: Tensor | None, given: GivenStream) -> _Tokens:
    clean = None if clean is None else clean.expand_as(x)
    lead = given.reference
    if lead is not None:
        lead = replace(lead, tokens=lead.tokens.expand(x.shape[0], -1, -1))
    if given.whole:
        assert clean is not None, "a stream that is given whole has its latents"
        return _Tokens(clean, positions, reference=lead, generated=False)
    if given.tokens is None or clean is None:
        return _Tokens(x, positions, reference=lead)
    tokens = given.tokens.to(x.device).expand(x.shape[:2])
    return _Tokens(torch.where(tokens[..., None], clean, x), positions, tokens, clean, lead)


def _audio_shape(latents: Tensor) -> AudioLatentShape:
    return AudioLatentShape(latents.shape[2], latents.shape[1], latents.shape[3])
