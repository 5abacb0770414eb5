"""References: clean tokens in front of a target, and the positions that tie them to it.

A picture's reference has the time axis of its own frames, and its rows and columns are stretched into the target's
space where it is cached smaller. With fewer frames a second (scale S) its times follow its own rate and move back by
(S - 1) / fps, so that its last latent ends where the target's does; the first, one frame, is held at 0.

A sound's reference runs from time 0 beside the target, or ends one latent step before 0 (`negative`), so that the
target keeps the clock of its picture.

IC-LoRA: arXiv 2410.23775; positions as in the official trainer of LTX-2.

Shape letters: R tokens of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.patchify import audio_tokens, video_tokens
from ..models.positions import audio_positions, video_positions
from ..shapes import AUDIO_HOP, AUDIO_HOPS_PER_LATENT, AUDIO_RATE, AudioLatentShape, LatentShape
from .settings import AudioReference

STEP_SECONDS = AUDIO_HOPS_PER_LATENT * AUDIO_HOP / AUDIO_RATE


@dataclass(frozen=True)
class Lead:
    """Reference tokens [B, R, C] in float32, their positions [1, axes, R, 2], and what does not hold for them."""

    tokens: Tensor
    positions: Tensor
    extent: tuple[int, ...]  # latent frames, rows, columns, or steps and side: equal where the positions are
    unseen: bool = False  # the other modality does not attend to them
    textless: bool = False  # they do not attend to the text

    def sent(self, send: Callable[[Tensor], Tensor]) -> Lead:
        """The same with its tensors where `send` puts them."""
        return replace(self, tokens=send(self.tokens), positions=send(self.positions))


def joined_leads(leads: Sequence[Lead | None]) -> Lead | None:
    """The references of one sample as one, in the order of their conditions; None where there are none.

    Each goes in front of what is there, so the last stands first, as in the official trainer. Their switches must be
    alike.
    """
    present = [lead for lead in reversed(leads) if lead is not None]
    if len(present) < 2:
        return present[0] if present else None
    return replace(
        present[0],
        tokens=torch.cat([lead.tokens for lead in present], dim=1),
        positions=torch.cat([lead.positions for lead in present], dim=2),
        extent=tuple(size for lead in present for size in lead.extent),
    )


def downscale(reference: LatentShape, target: LatentShape) -> int | None:
    """How many times smaller the reference is: a whole number, the same for both sides. None if there is none."""
    factor = round(target.height / reference.height)
    fits = reference.height * factor == target.height and reference.width * factor == target.width
    return factor if factor >= 1 and fits else None


def video_reference_positions(
    reference: LatentShape,
    fps: float,
    downscale_factor: int = 1,
    temporal_scale: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """Intervals [1, 3, R, 2] of a reference, in seconds and in pixels of the target; `fps` is the target's."""
    positions = video_positions(reference, fps / temporal_scale, device)
    if temporal_scale != 1:
        positions[:, 0] = (positions[:, 0] - (temporal_scale - 1) / fps).clamp(min=0)
    if downscale_factor != 1:
        positions[:, 1:] *= downscale_factor
    return positions


def audio_reference_positions(steps: int, negative: bool, device: torch.device | str | None = None) -> Tensor:
    """Intervals [1, 1, R, 2] in seconds of a reference of `steps` latents; `negative` ends it one step before 0."""
    positions = audio_positions(AudioLatentShape(steps), device)
    return positions - (positions[..., -1:, 1:] + STEP_SECONDS) if negative else positions


def video_lead(
    latents: Tensor, target: LatentShape, fps: float, temporal_scale: int, device: torch.device | str | None = None
) -> Lead:
    """The reference `latents` [128, F, H, W] in front of `target`, which they must fit (`downscale`)."""
    size = LatentShape(*latents.shape[1:])
    factor = downscale(size, target)
    assert factor is not None, (size, target)  # looked at before the run
    positions = video_reference_positions(size, fps, factor, temporal_scale, device)
    tokens = video_tokens(latents[None].to(device=device, dtype=torch.float32))
    return Lead(tokens, positions, (size.frames, size.height, size.width))


def audio_lead(latents: Tensor, reference: AudioReference, device: torch.device | str | None = None) -> Lead:
    """The reference sound `latents` [8, T, 16] in front of a sound."""
    positions = audio_reference_positions(latents.shape[1], reference.negative_positions, device)
    tokens = audio_tokens(latents[None].to(device=device, dtype=torch.float32))
    extent = (latents.shape[1], int(reference.negative_positions))
    return Lead(tokens, positions, extent, reference.hide_from_video, reference.hide_text)
