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

import torch
from torch import Tensor

ANCHOR_TOKENS = 4096
TERMINAL = 0.1


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
