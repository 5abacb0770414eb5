"""What the demo trains on where no file is given: a drawn clip with a tune, and the tune alone."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..files import atomic

FPS = 25
RATE = 48000

# a tune of 1.6 s that begins anew: frequency in hertz and length in seconds
TUNE = ((523.25, 0.2), (659.26, 0.2), (783.99, 0.2), (1046.5, 0.3), (783.99, 0.2), (587.33, 0.2), (493.88, 0.3))


def draw_clip(path: Path, frames: int = 40, width: int = 320, height: int = 200) -> Path:
    """Draw a clip with motion and a tune, as mp4 (H.264 and AAC)."""
    import av

    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"crf": "14"}
        sound = container.add_stream("aac", rate=RATE)
        rows, columns = np.mgrid[0:height, 0:width]
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(_picture(index / FPS, rows, columns), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode())
        wave = melody(frames / FPS)
        for start in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    return path


def draw_sound(path: Path, seconds: float = 1.96) -> Path:
    """Write the tune as a wav file (16 bit, mono)."""
    import wave

    with atomic(path) as temporary, open(temporary, "wb") as file, wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((melody(seconds) * 32767).astype("<i2").tobytes())
    return path


def melody(seconds: float) -> np.ndarray:
    """The tune as float32 [N] at 48 kHz: plucked notes with overtones over a quiet bass."""
    times = np.arange(int(RATE * seconds)) / RATE
    wave = 0.06 * np.sin(2 * math.pi * 130.81 * times)
    start, number = 0.0, 0
    while start < seconds:
        pitch, length = TUNE[number % len(TUNE)]
        inside = (times >= start) & (times < start + length)
        age = times[inside] - start
        note = sum(np.sin(2 * math.pi * pitch * overtone * age) / overtone for overtone in (1, 2, 3))
        # the attack of 5 ms and the end that fades keep the notes from clicking
        wave[inside] += (
            0.3 * note * np.minimum(age / 0.005, 1) * np.exp(-age / 0.15) * np.minimum((length - age) / 0.005, 1)
        )
        start, number = start + length, number + 1
    return wave.astype(np.float32)


def _picture(t: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    height, width = rows.shape
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = (120, 190, 235)
    picture[rows > height * 0.6] = (70, 150, 60)
    kite_x, kite_y = width * (0.15 + 0.35 * t), height * (0.22 + 0.06 * math.sin(5 * t))
    kite = abs(columns - kite_x) / 22 + abs(rows - kite_y) / 16 < 1
    picture[kite] = (30, 50, 200)
    ball_x, ball_y = width * (0.85 - 0.4 * t), height * (0.75 - 0.4 * abs(math.sin(4 * t)))
    picture[(columns - ball_x) ** 2 + (rows - ball_y) ** 2 < 26**2] = (215, 40, 40)
    return picture
