"""How much the sound counts beside the picture: fixed weights, and two ways to follow the data.

The weight of a sample is its dataset's where the dataset names one, else the run's. With `base` that weight, the
audio weight of a batch is

    none       base
    inv_freq   clamp(base / max(f, eps), min, max)           f: share of batches with sound, a running mean
                   f <- (1 - beta) f + beta [batch has sound]           beginning at `start`
    ema_mag    clamp(base * ratio * V / A, min, max)         V, A: running means of the two losses
                   V <- decay V + (1 - decay) |video loss|,  A alike;   only over batches that have both

so inv_freq makes up for sound that is rare, and ema_mag holds the audio loss at a share of the video loss. V and A
begin at zero and are divided by 1 - decay^n, so that they are means of what has been seen from the first batch on;
without this correction (Kingma and Ba 2015, arXiv:1412.6980) the first hundred steps would follow the start value.
A base of zero stays zero whatever the clamp says: it is how a dataset keeps its sound out of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from ..errors import RunError
from ..settings import Settings


class BalanceSettings(Settings):
    """How the weight of the audio loss follows the data."""

    mode: Literal["none", "inv_freq", "ema_mag"] = Field(
        default="none",
        description="Balance of the audio loss: none = its fixed weight; inv_freq = more where sound is rare among the "
        "batches; ema_mag = held at a share of the video loss.",
        json_schema_extra={
            "counts_with": ["model.mode = av", "audio.generated"],
            "community": "audio_loss_balance_mode",
            "advanced": True,
        },
    )
    beta: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="inv_freq: how fast the share of batches with sound is followed; 0.02 to 0.05 reacts faster.",
        json_schema_extra={"counts_with": ".mode = inv_freq", "community": "audio_loss_balance_beta", "advanced": True},
    )
    eps: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="inv_freq: the smallest share that is divided by; 0.1 where weights jump.",
        json_schema_extra={"counts_with": ".mode = inv_freq", "community": "audio_loss_balance_eps", "advanced": True},
    )
    start: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="inv_freq: the share of batches with sound that is assumed at first; 1 begins without a boost.",
        json_schema_extra={
            "counts_with": ".mode = inv_freq",
            "community": "audio_loss_balance_ema_init",
            "advanced": True,
        },
    )
    ratio: float = Field(
        default=0.33,
        gt=0,
        le=1000,
        description="ema_mag: the audio loss aimed at, as a share of the video loss.",
        json_schema_extra={
            "counts_with": ".mode = ema_mag",
            "community": "audio_loss_balance_target_ratio",
            "advanced": True,
        },
    )
    decay: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="ema_mag: memory of the running means of the losses; nearer 1 is smoother and slower.",
        json_schema_extra={
            "counts_with": ".mode = ema_mag",
            "community": "audio_loss_balance_ema_decay",
            "advanced": True,
        },
    )
    min: float = Field(
        default=0.05,
        ge=0,
        le=1000,
        description="Lowest weight the balance may give.",
        json_schema_extra={
            "counts_with": ".mode = inv_freq | ema_mag",
            "community": "audio_loss_balance_min",
            "advanced": True,
        },
    )
    max: float = Field(
        default=4.0,
        gt=0,
        le=1000,
        description="Highest weight the balance may give.",
        json_schema_extra={
            "counts_with": ".mode = inv_freq | ema_mag",
            "community": "audio_loss_balance_max",
            "advanced": True,
        },
    )

    @model_validator(mode="after")
    def _ordered(self) -> BalanceSettings:
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g}); swap them or lower min")
        return self


def sample_weights(default: float, overrides: Sequence[float | None]) -> list[float]:
    """The weight of each sample: its dataset's, which replaces the run's `default` where it is not None."""
    return [default if weight is None else weight for weight in overrides]


class AudioBalance:
    """The running numbers of a balance. Call `observe` for every batch, then `weight`; save `state_dict`."""

    def __init__(self, settings: BalanceSettings) -> None:
        self.settings = settings
        self.frequency = settings.start
        self._video = self._audio = 0.0
        self._seen = 0

    def observe(self, has_sound: bool, video_loss: float | None = None, audio_loss: float | None = None) -> None:
        """Take in a batch: whether it has real sound, and its losses before any weight.

        Losses that are missing or not finite are passed over; such a batch says nothing of their size.
        """
        beta = self.settings.beta
        self.frequency = (1 - beta) * self.frequency + beta * float(has_sound)
        if not has_sound or video_loss is None or audio_loss is None:
            return
        if not (math.isfinite(video_loss) and math.isfinite(audio_loss)):
            return
        decay = self.settings.decay
        self._video = decay * self._video + (1 - decay) * abs(video_loss)
        self._audio = decay * self._audio + (1 - decay) * abs(audio_loss)
        self._seen += 1

    @property
    def losses(self) -> tuple[float, float] | None:
        """Running means of the video and the audio loss; None before the first batch that has both."""
        if not self._seen:
            return None
        known = 1 - self.settings.decay**self._seen
        return self._video / known, self._audio / known

    def weight(self, base: float) -> float:
        """The weight of the audio loss now, from the fixed one."""
        settings = self.settings
        if settings.mode == "none" or base == 0:
            return base
        if settings.mode == "inv_freq":
            factor = 1 / max(self.frequency, settings.eps)
        else:
            losses = self.losses
            if losses is None:
                return base
            video, audio = losses
            factor = settings.ratio * video / audio if audio > 0 else math.inf if video > 0 else 1.0
        return min(max(base * factor, settings.min), settings.max)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a resume that goes on with the same weights."""
        return {"frequency": self.frequency, "video": self._video, "audio": self._audio, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo everything since `state_dict`. Raises RunError where the state is none of this kind."""
        try:
            self.frequency = float(state["frequency"])
            self._video, self._audio, self._seen = float(state["video"]), float(state["audio"]), int(state["seen"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"The saved state holds no usable loss balance ({error}). Resume from another one."
            ) from None
