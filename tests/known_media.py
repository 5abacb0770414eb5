"""Made clips of which everything is known: each frame bears its number, and a flash and a beep come together."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, BLOCK, BITS = 192, 128, 16, 10
FLASH_SECONDS = 0.2
RATE = 48000
TEXTURE = np.kron(np.random.default_rng(0).integers(20, 200, (HEIGHT // 8, WIDTH // 4, 3)), np.ones((8, 8, 1)))


def frame_of(number: int, flash: bool = False) -> np.ndarray:
    """uint8 [H, W, 3]: blocks for the bits of `number` and below them the opposite ones, over a moving texture."""
    picture = np.roll(TEXTURE, -3 * number, axis=1)[:, :WIDTH].astype(np.uint8)
    for bit in range(BITS):
        left, level = BLOCK * (bit + 1), 235 if number >> bit & 1 else 20
        picture[BLOCK : 2 * BLOCK, left : left + BLOCK] = level
        picture[2 * BLOCK : 3 * BLOCK, left : left + BLOCK] = 255 - level
    picture[4 * BLOCK : 6 * BLOCK, 4 * BLOCK : 8 * BLOCK] = 255 if flash else 0
    return picture


def number_of(picture: np.ndarray) -> int:
    """The number in a picture of the same shape, or -1 where its blocks contradict each other."""
    grey = picture.astype(float).mean(axis=-1)
    number = 0
    for bit in range(BITS):
        left = BLOCK * (bit + 1)
        on, off = (grey[row + 4 : row + 12, left + 4 : left + 12].mean() for row in (BLOCK, 2 * BLOCK))
        if abs(on - off) < 60:
            return -1
        number |= (on > off) << bit
    return number


def flashes(clip: np.ndarray) -> np.ndarray:
    """Which frames of [F, H, W, 3] flash."""
    return clip[:, 4 * BLOCK + 8 : 6 * BLOCK - 8, 4 * BLOCK + 8 : 8 * BLOCK - 8].mean(axis=(1, 2, 3)) > 128


def is_wrong(picture: np.ndarray, number: int, flash: bool = False) -> bool:
    """Whether a part of a picture is not what frame `number` shows."""
    apart = np.abs(picture.astype(int) - frame_of(number, flash)).mean(axis=-1)
    return bool(apart.reshape(HEIGHT // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK).mean(axis=(1, 3)).max() > 50)


def make_clip(
    path: Path,
    times: Sequence[float],
    codec: str = "libx264",
    at: float | None = None,
    sound_codec: str = "aac",
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    rate: int = 25,
    start: float = 0.0,
    caption: str = "numbers pass by",
) -> Path:
    """A clip whose frames are shown at `times`; its numbers count frames. Flash and beep come `at` that second.

    All of it is `start` seconds later on the clock of the container. Times are kept to a 12,000th of a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = times[-1] + 0.2
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=rate, options=options or {})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, pixel_format
        if "crf" not in (options or {}):
            video.bit_rate = 4_000_000
        base = Fraction(1, rate) if path.suffix in (".avi", ".mpg") else Fraction(1, 12_000)
        video.codec_context.time_base = base
        heard = None if at is None else container.add_stream(sound_codec, rate=RATE, layout="mono")
        for number, time in enumerate(times):
            flash = at is not None and at - 1e-6 <= time < at + FLASH_SECONDS
            frame = av.VideoFrame.from_ndarray(frame_of(number, flash), format="rgb24")
            frame.pts, frame.time_base = round((time + start) / base), base
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if heard is not None and at is not None:
            wave = np.zeros(round(seconds * RATE), np.float32)
            first = round(at * RATE)
            wave[first : first + RATE // 10] = 0.8 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 10) / RATE)
            for begin in range(0, len(wave), 1024):
                block = av.AudioFrame.from_ndarray(wave[None, begin : begin + 1024], format="flt", layout="mono")
                block.sample_rate, block.pts, block.time_base = RATE, begin + round(start * RATE), Fraction(1, RATE)
                container.mux(heard.encode(block))
            container.mux(heard.encode(None))
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def beep(samples: np.ndarray, rate: int) -> float | None:
    """The second at which a beep begins in [C, N]; None where there is none."""
    loud = np.flatnonzero(np.abs(samples).max(axis=0) > 0.3)
    return float(loud[0]) / rate if len(loud) else None
