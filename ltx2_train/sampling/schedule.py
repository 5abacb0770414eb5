"""The noise levels a sample walks down.

A uniform grid from 1 to 0 is shifted towards noise, the more so the more tokens there are, and then stretched so that
the last level above zero is 0.1:

    s = linspace(1, 0, steps + 1)        mu = 0.95 + (tokens - 1024) * (2.05 - 0.95) / (4096 - 1024)
    s' = e^mu / (e^mu + 1/s - 1)         s'' = 1 - (1 - s') * (1 - 0.1) / (1 - s'_last)

Source: the scheduler of the official LTX-2 pipelines, which call it with 4096 tokens whatever the size, those of
LTX-Video with the tokens that are drawn; the shift is
that of "Scaling Rectified Flow Transformers" (arXiv 2403.03206), section 5.3.2.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

ANCHOR_TOKENS = 4096
TERMINAL = 0.1

# the levels that the distilled model was made for, as its pipelines take them
DISTILLED = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
# where the second of two stages begins and ends, in the pipelines of LTX-2
SECOND_STAGE = DISTILLED[5:]


def noise_levels(kind: Literal["shifted", "distilled"], steps: int, tokens: int = ANCHOR_TOKENS) -> Tensor:
    """The noise levels [steps + 1] that sample.sigmas = `kind` asks for, float32. Raises ConfigError."""
    if kind == "shifted":
        return sampling_sigmas(steps, tokens)
    require_steps(kind, steps)
    return torch.tensor(DISTILLED)


def require_steps(kind: Literal["shifted", "distilled"], steps: int) -> None:
    """Raise ConfigError where sample.sigmas = `kind` has another number of steps."""
    own = len(DISTILLED) - 1
    if kind == "distilled" and steps != own:
        raise ConfigError(
            f"sample.sigmas is distilled, which has {own} steps, and {steps} are asked for. Set sample.steps to {own} "
            "(of one prompt: --s), or sample.sigmas to shifted."
        )


def sampling_sigmas(steps: int, tokens: int = ANCHOR_TOKENS) -> Tensor:
    """Noise levels [steps + 1], float32, from 1 down to 0."""
    mu = 0.95 + (tokens - 1024) * (2.05 - 0.95) / (4096 - 1024)
    shift = math.exp(min(mu, 30.0))  # e^30 is 1 to the last bit of float64 after the shift; beyond lies overflow
    grid = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    sigmas = shift / (shift + 1 / grid[:-1] - 1)
    last = float(sigmas[-1])
    # with one step the only level is 1 itself, and there is nothing to stretch
    if steps > 1 and last < 1:
        sigmas = 1 - (1 - sigmas) * (1 - TERMINAL) / (1 - last)
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()
