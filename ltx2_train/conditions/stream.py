"""What the model is shown of one stream: noisy tokens, what is given of them, and the reference in front.

Training and sampling both come here, so what a LoRA was taught is what it is asked for.

Shape letters: B batch, T tokens of the target, R of the reference, C channels, S text tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..models.transformer import Modality
from .reference import Lead


def as_modality(
    tokens: Tensor,
    sigma: Tensor,
    positions: Tensor,
    context: Tensor,
    *,
    given: Tensor | None = None,
    lead: int | None = None,
    reference: Lead | None = None,
    learned: Tensor | None = None,
    generated: bool = True,
    first: int = 0,
    slots: int = 0,
    second: Tensor | None = None,
    masked: Tensor | None = None,
) -> Modality:
    """The stream of `tokens` [B, T, C], whose given ones are clean already, at noise levels `sigma` [B].

    `given` [B, T] has timestep 0; where all of it is at the start, and alike in every sample, `lead` is its number.
    `learned` [B, T] is false where there is padding. A stream that is not `generated` has noise level 0 as a whole.
    `first` is how many tokens the first latent frame of a picture has; 0 for sound. The last `slots` of the tokens are
    those of keyframe slots.
    Tokens that are `masked` [B, T] are at noise levels `second` [B].
    """
    front = 0 if reference is None else reference.tokens.shape[1]
    if reference is not None:
        tokens = torch.cat((reference.tokens, tokens), dim=1)
        positions = torch.cat((reference.positions, positions), dim=2)
        learned = None if learned is None else pad(learned, (front, 0), value=True)
        masked = None if masked is None else pad(masked, (front, 0), value=False)
        if generated:  # else all of it is at 0
            lead = front + (lead or 0) if given is None or lead is not None else None
            count = (tokens.shape[0], tokens.shape[1] - front)
            given = torch.zeros(count, dtype=torch.bool, device=tokens.device) if given is None else given
            given = pad(given, (front, 0), value=True)
    weights = None if learned is None else learned[:, None, :].float()  # one row for all that attend
    return Modality(
        latent=tokens.to(context.dtype),
        sigma=sigma,
        timesteps=None,
        positions=positions,
        context=context,
        attention_mask=weights,  # nobody may listen to padding
        given=given,
        lead=lead,
        single=slice(front, front + first) if first else None,
        slots=slots,
        second=second,
        masked=masked,
        unseen=front if reference is not None and reference.unseen else 0,
        textless=front if reference is not None and reference.textless else 0,
    )
