"""IMAGE, MASK and AUDIO of other nodes as what files hold: pictures of 8 bits, stereo up to full scale.

They come to what the same picture or sound would come to from a file. What is no picture or sound is refused by its
name, what is changed is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .. import ltx2_train as core
from ..ltx2_train.errors import DataError
from ..ltx2_train.events import Events

NOT_NUMBERS = (
    "holds values that are not numbers (NaN or infinite), as a VAE or a model leaves them that overflows in fp16. "
    "Make it anew in fp32 or bf16, or take it out."
)
HALF_STEP = 0.5 / 255  # less than this beyond black or white is rounded away
FAR = 0.5  # what lies further beyond 0 to 1 is of another range, such as -1 to 1 or 0 to 255
NAMED = 3

Namer = Callable[[int], str]  # the name of a picture or sound, by its place in what comes over a wire


class Changes:
    """What was changed, and of which pictures and sounds."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, what: str, measure: str = "") -> None:
        self._names.setdefault(what, []).append(f"{name} ({measure})" if measure else name)

    def lines(self) -> list[str]:
        return [f"{_listed(names)}: {what}" for what, names in self._names.items()]

    def tell(self, events: Events) -> None:
        for line in self.lines():
            events.message(line, "warning")


def pictures(batch: Any, name: Namer, told: Changes) -> np.ndarray:
    """uint8 [N, H, W, 3] of an IMAGE [N, H, W, C] in [0, 1]: C = 1 is grey, 3 colours, each with alpha or without.

    Raises DataError.
    """
    batch = batch[None] if batch.ndim == 3 else batch
    if batch.ndim != 4 or not batch.numel() or batch.shape[-1] > 4:
        raise DataError(
            f"{name(0)} has the shape {list(batch.shape)}. Expected are pictures of 1 to 4 channels: "
            "[pictures, height, width, channels]."
        )
    made = np.empty((*batch.shape[:3], 3), np.uint8)
    for number, picture in enumerate(batch):
        made[number] = _picture(picture.detach().float().cpu().numpy(), name(number), told)
    return made


def sounds(audio: Mapping[str, Any], name: Namer, told: Changes) -> Iterator[Any]:
    """Each sound of an AUDIO, [C, N], as a tensor [2, N] in [-1, 1], mixed as the sounds of files are.

    Raises DataError.
    """
    import torch

    waves, rate = audio["waveform"], int(audio["sample_rate"])
    waves = waves[None] if waves.ndim == 2 else waves
    if waves.ndim != 3 or not waves.numel() or rate <= 0:
        raise DataError(
            f"{name(0)} has the shape {list(waves.shape)} at {rate} Hz. Expected are [sounds, channels, samples], at "
            "least one of each."
        )
    for number, wave in enumerate(waves):
        samples = wave.detach().float().cpu().numpy()
        if not np.isfinite(samples).all():
            raise DataError(f"{name(number)} {NOT_NUMBERS}")
        if (channels := len(samples)) > 2:
            told.add(name(number), f"its {channels} channels are mixed down to two, as those of a file would be")
        mixed = core.to_stereo(core.Sound(samples, rate, ""))
        if (peak := float(np.abs(mixed).max())) > 1:
            told.add(name(number), "goes beyond full scale, and is made quieter as a whole", f"{peak:.3g} times")
            mixed = mixed / np.float32(peak)
        yield torch.from_numpy(mixed)


def _picture(picture: np.ndarray, name: str, told: Changes) -> np.ndarray:
    """uint8 [H, W, 3] of float32 [H, W, 1 to 4]."""
    if not np.isfinite(picture).all():
        raise DataError(f"{name} {NOT_NUMBERS}")
    low, high = float(picture.min()), float(picture.max())
    if low < -FAR or high > 1 + FAR:
        raise DataError(
            f"{name} has values from {low:.4g} to {high:.4g}. Those of an IMAGE go from 0, black, to 1, white: "
            "correct the node that it comes from, or take it out."
        )
    outside = float(((picture < -HALF_STEP) | (picture > 1 + HALF_STEP)).mean())
    if outside:
        told.add(name, "values below black or above white are clipped", f"{max(outside, 0.001):.1%} of them")
    picture = picture.clip(0, 1)
    if picture.shape[-1] in (2, 4):
        picture, alpha = picture[..., :-1], picture[..., -1:]
        if float(alpha.min()) < 1 - HALF_STEP:
            told.add(name, "has transparency; it is laid over black")
            picture = picture * alpha
    return np.broadcast_to((picture * 255).round().astype(np.uint8), (*picture.shape[:2], 3))


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
