"""The training objective: noise levels (sigmas.py), flow matching and its losses (flow.py)."""

from .flow import LossSettings, add_noise, element_loss, masked_mean, velocity
from .sigmas import SigmaSettings, sample_sigmas, shift_for

__all__ = [
    "LossSettings",
    "SigmaSettings",
    "add_noise",
    "element_loss",
    "masked_mean",
    "sample_sigmas",
    "shift_for",
    "velocity",
]
