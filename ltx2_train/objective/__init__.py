"""The training objective.

sigmas    noise levels            flow            flow matching and its losses
audio     settings for sound      audio_balance   the weight of sound beside the picture
                                  supervision     whether sound is there at all
"""

from .audio import AudioSettings
from .audio_balance import AudioBalance, BalanceSettings, sample_weights
from .flow import LossSettings, add_noise, element_loss, masked_mean, velocity
from .sigmas import SigmaSettings, sample_audio_sigmas, sample_sigmas, shift_for
from .supervision import SupervisionMonitor

__all__ = [
    "AudioBalance",
    "AudioSettings",
    "BalanceSettings",
    "LossSettings",
    "SigmaSettings",
    "SupervisionMonitor",
    "add_noise",
    "element_loss",
    "masked_mean",
    "sample_audio_sigmas",
    "sample_sigmas",
    "sample_weights",
    "shift_for",
    "velocity",
]
