"""A picture of a sound: loudness by time and pitch, since that is read faster than a file is listened to.

Pitch runs on the mel scale from 0 to half the rate; loudness is that of the louder channel, in decibels below the
loudest point, down to RANGE. A silent sound gives a dark picture and no division by zero.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import atomic
from ..media.font import drawable, load_font
from ..models.mel import FLOOR, log_mel

RANGE = 80.0  # decibels from black to white
BINS = 128
WINDOW_SECONDS = 0.043
SILENCE = math.log(FLOOR)
# dark to bright, evenly growing in lightness so that equal steps look equal
COLOURS = ((0, (6, 4, 20)), (0.25, (66, 15, 104)), (0.5, (158, 42, 99)), (0.75, (236, 105, 55)), (1, (252, 253, 191)))
PITCHES = (250, 500, 1000, 2000, 4000, 8000, 16000)


def draw_spectrogram(path: Path, sound: Tensor, rate: int, title: str = "", size: tuple[int, int] = (960, 360)) -> Path:
    """Write the picture of `sound` [C, N] in [-1, 1] at `rate` Hz as PNG."""
    with atomic(path) as temporary:
        spectrogram_image(sound, rate, title, size).save(temporary, format="PNG")
    return path


def loudness(sound: Tensor, rate: int, columns: int) -> np.ndarray:
    """Levels [BINS, at most `columns`] from 0 (RANGE below the loudest point, or silence) to 1, low pitches first."""
    n_fft = 2 ** round(math.log2(rate * WINDOW_SECONDS))
    hop = max(n_fft // 8, -(-sound.shape[1] // columns))
    short = n_fft - sound.shape[1]
    if short > 0:  # the transform reflects at the ends and needs something to reflect
        sound = torch.nn.functional.pad(sound, (0, short))
    mel = log_mel(sound[None].float().cpu(), rate, n_fft=n_fft, hop=hop, bins=BINS)[0].amax(dim=0)  # [T, bins]
    decibels = mel * (20 / math.log(10))
    top = decibels.max()
    level = ((decibels - top) / RANGE + 1).clamp(0, 1)
    level = torch.where(mel > SILENCE + 1e-3, level, torch.zeros_like(level))
    return level.T.numpy()


def spectrogram_image(sound: Tensor, rate: int, title: str = "", size: tuple[int, int] = (960, 360)) -> Any:
    """The picture as a PIL image with axes in seconds and hertz."""
    from PIL import Image, ImageDraw

    left, right, top, bottom = 56, size[0] - 16, 32, size[1] - 34
    image = Image.new("RGB", size, "#ffffff")
    draw = ImageDraw.Draw(image)
    font = load_font(13)
    field = Image.fromarray(_colour(loudness(sound, rate, right - left))[::-1])
    image.paste(field.resize((right - left, bottom - top), Image.Resampling.BILINEAR), (left, top))
    draw.text((left, 9), _cut(draw, drawable(title) or "sound", font, right - left - 120), fill="#222222", font=font)
    peak = float(sound.abs().max()) if sound.numel() else 0.0
    note = f"peak {20 * math.log10(peak):.1f} dB" if peak > 0 else "silent"
    draw.text((right, 9), note, fill="#555555", font=font, anchor="ra")
    highest = _mel(rate / 2)
    for pitch in PITCHES:
        y = bottom - (bottom - top) * _mel(pitch) / highest
        if y > top + 8:
            draw.line([(left - 4, y), (left, y)], fill="#888888")
            name = f"{pitch // 1000}k" if pitch >= 1000 else str(pitch)
            draw.text((left - 8, y), name, fill="#555555", font=font, anchor="rm")
    draw.text((left - 8, top), "Hz", fill="#555555", font=font, anchor="rm")
    seconds = sound.shape[1] / rate
    step = _step(seconds)
    for index in range(int(seconds / step) + 1):
        x = left + (right - left) * index * step / seconds if seconds else left
        draw.line([(x, bottom), (x, bottom + 4)], fill="#888888")
        draw.text((x, bottom + 8), f"{index * step:g}", fill="#555555", font=font, anchor="ma")
    draw.text((right, bottom + 20), "seconds", fill="#555555", font=font, anchor="ra")
    return image


def _colour(levels: np.ndarray) -> np.ndarray:
    """[H, W] in 0..1 -> uint8 [H, W, 3]."""
    at = [place for place, _ in COLOURS]
    channels = [np.interp(levels, at, [colour[index] for _, colour in COLOURS]) for index in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _mel(hz: float) -> float:
    # Slaney's scale, as the filters have it: linear below 1 kHz, then 27 mels for each factor of 6.4
    return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)


def _step(seconds: float) -> float:
    """A round distance between marks that gives at most ten of them."""
    for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30):
        if seconds / step <= 10:
            return step
    return 60


def _cut(draw: Any, text: str, font: Any, width: float) -> str:
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font=font) > width:
        text = text[:-1]
    return f"{text}..."
