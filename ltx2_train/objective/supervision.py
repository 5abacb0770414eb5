"""Watches how many batches of an audio-video run carry sound.

Clips whose sound could not be read are silent, and images always are, so a run may learn no sound without a word of
it in the loss. Of the batches seen so far a share must have had sound, real or the silence of the regularizer; it is
looked at every `supervision_interval` batches once `supervision_warmup` have gone by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import DataError, RunError
from .audio import AudioSettings


class SupervisionMonitor:
    """Counts batches. Save `state_dict`: the share is that of the whole run."""

    def __init__(self, settings: AudioSettings) -> None:
        self.settings = settings
        self.batches = 0
        self.with_sound = 0

    @property
    def share(self) -> float:
        """Share of the batches so far that had sound; 1 before the first."""
        return self.with_sound / self.batches if self.batches else 1.0

    def observe(self, has_sound: bool, regularized: bool = False) -> str | None:
        """Count a batch. Returns a sentence to warn with, or None; raises DataError where `supervision` is error."""
        self.batches += 1
        self.with_sound += has_sound or regularized
        settings = self.settings
        if settings.supervision == "off" or self.batches < settings.supervision_warmup:
            return None
        if self.batches % settings.supervision_interval or self.share >= settings.supervision_min_ratio:
            return None
        text = (
            f"{self.with_sound} of {self.batches} batches had sound ({self.share:.0%}); "
            f"audio.supervision_min_ratio is {settings.supervision_min_ratio:.0%}. See whether the sound of the clips "
            "was cached, raise num_repeats of the datasets that have sound, switch on audio.silence_regularizer, or "
            "lower audio.supervision_min_ratio."
        )
        if settings.supervision == "error":
            raise DataError(text)
        return text

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a resume."""
        return {"batches": self.batches, "with_sound": self.with_sound}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo everything since `state_dict`. Raises RunError where the state is none of this kind."""
        try:
            self.batches, self.with_sound = int(state["batches"]), int(state["with_sound"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"The saved state holds no usable batch counts ({error}). Resume from another one."
            ) from None
