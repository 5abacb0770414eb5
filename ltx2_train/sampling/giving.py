"""From the latents of what a prompt is given to the tokens that `denoise` keeps, by the same rules as in training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..conditions.given import Target, lengths, tokens_of
from ..conditions.reference import audio_lead, joined_leads, video_lead
from ..conditions.settings import AudioReference, Boundary, Mask, Suffix
from ..conditions.trained import OF_AUDIO, OF_VIDEO, Trained
from ..shapes import AUDIO_BINS, AUDIO_CHANNELS, VideoShape, sampled_audio_steps
from .denoise import GivenPair, GivenStream
from .shown import Shown, mask_of

ShownLatents = Sequence[tuple[Shown, Tensor]]  # each with what it is made of: [128, F, H, W] or [8, T, 16]


def given_pair(shape: VideoShape, latents: ShownLatents, trained: Trained, device: torch.device) -> GivenPair:
    """What each stream of a sample of `shape` is given."""
    return GivenPair(
        _video(shape, [one for one in latents if one[0].stream == OF_VIDEO], trained, device),
        _audio(shape, [one for one in latents if one[0].stream == OF_AUDIO], trained, device),
    )


def _video(shape: VideoShape, latents: ShownLatents, trained: Trained, device: torch.device) -> GivenStream | None:
    size = shape.latent()
    clean = torch.zeros(size.channels, size.frames, size.height, size.width)
    target = Target.video(size, shape.fps)
    given = _parts(clean, target, latents, shape)
    leads = [
        video_lead(reference, size, shape.fps, shown.form(trained).temporal_scale, device)
        for shown, reference in latents
        if shown.is_reference
    ]
    return replace(given or GivenStream(), reference=joined_leads(leads)) if leads else given


def _audio(shape: VideoShape, latents: ShownLatents, trained: Trained, device: torch.device) -> GivenStream | None:
    steps = sampled_audio_steps(shape.seconds)
    clean = torch.zeros(AUDIO_CHANNELS, steps, AUDIO_BINS)
    # what is encoded of a sound often has a step more than is drawn
    given = _parts(clean, Target(steps), [(shown, piece[:, :steps]) for shown, piece in latents], shape)
    leads = []
    for shown, reference in latents:
        if isinstance(condition := shown.condition, AudioReference):
            switches = condition if shown.cached else shown.form(trained).sound
            leads.append(audio_lead(reference, switches, device))
    return replace(given or GivenStream(), reference=joined_leads(leads)) if leads else given


def _parts(
    clean: Tensor, target: Target, latents: Iterable[tuple[Shown, Tensor]], shape: VideoShape
) -> GivenStream | None:
    """What of `clean` [C, frames or steps, ...], which is filled, is given; None where nothing is."""
    tokens = torch.zeros(target.tokens, dtype=torch.bool)
    per_frame = target.height * target.width
    any_given = False
    for shown, piece in latents:
        condition = shown.condition
        if condition is None:
            return GivenStream(piece[None], whole=True)
        if shown.is_reference:
            continue
        any_given, length_given = True, piece.shape[1]
        length = None
        if isinstance(condition, Boundary):
            length = min(lengths(condition, target)[1], length_given)
        mask = None
        if isinstance(condition, Mask):
            mask = mask_of(shown, shape).flatten()
            mask = torch.nn.functional.pad(mask, (0, max(0, target.tokens - len(mask))))[: target.tokens]
        own = tokens_of(condition, target, mask, length)
        first = target.frames - length_given if isinstance(condition, Suffix) else 0
        placed = torch.zeros_like(clean)
        placed[:, first : first + length_given] = piece
        held = torch.zeros(target.frames, dtype=torch.bool)
        held[first : first + length_given] = True
        own &= held.repeat_interleave(per_frame)  # a sound may end before its sample
        chosen = own.reshape(clean.shape[1:4] if target.fps is not None else clean.shape[1:2])
        clean[:, chosen] = placed[:, chosen]
        tokens |= own
    return GivenStream(clean[None], tokens) if any_given else None
