"""Samples in rows and columns as one video with labels, played together, with the sound of one of them.

A column has its label at the top, a row its prompt above it, a cell that can be heard its number. A sample that ends
before the others keeps its last picture; a sound alone is shown by its spectrogram.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TrainerError
from ..events import Events
from ..files import with_ending
from ..media.font import drawable, load_font
from ..media.sound_media import read_sound
from .spectrogram import spectrogram_image
from .video_file import write_image, write_video

WIDEST, HIGHEST = 3840, 2160  # pixels of the whole; what is larger plays nowhere
NARROWEST = 192  # of a cell, so that its label can be read
LINE, SIZE = 30, 17  # height of a line with words, and of its letters
GAP = 4
STILL_FPS = 8.0  # of pictures that stand still while a sound is heard
BACKGROUND, INK, FAINT = (24, 26, 30), (232, 232, 232), (160, 165, 172)


@dataclass(frozen=True)
class GridCell:
    """A sample in the grid: its file, or None where drawing it failed; `mark` is written into its corner."""

    path: Path | None
    mark: str = ""


def write_grid(
    stem: Path,
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Mapping[tuple[int, int], GridCell],
    sound: Path | None,
    info: dict[str, Any],
    events: Events,
) -> Path:
    """Write the grid of `cells` by (row, column) to `stem` and an ending: .mp4, or .png where nothing moves or sounds.

    `sound` is the file whose sound it has. Raises TrainerError where there is no cell to show, Stopped.
    """
    playing = {at: _Player.open(cell.path) for at, cell in cells.items() if cell.path is not None}
    try:
        if not playing:
            raise TrainerError("No sample could be drawn, so there is nothing to compare.")
        frame, places = _empty(columns, rows, cells, playing)
        marks = {at: cell.mark for at, cell in cells.items()}
        wave, rate = _wave(sound)
        moving = [player for player in playing.values() if player.fps]
        fps = max((player.fps for player in moving), default=STILL_FPS)
        seconds = max(
            [player.seconds for player in moving] + ([] if wave is None else [wave.shape[1] / rate]), default=0
        )
        count = max(1, round(seconds * fps))
        if count == 1 and wave is None:
            return write_image(with_ending(stem, ".png"), next(_frames(frame, places, playing, marks, 1, fps)), info)
        shown = events.heeded(_frames(frame, places, playing, marks, count, fps))
        return write_video(with_ending(stem, ".mp4"), shown, fps, info, wave, rate)
    finally:
        for player in playing.values():
            player.close()


def can_be_shown(path: Path) -> bool:
    """Whether the sample at `path` can be read, and is not one whose file was damaged."""
    from av.error import FFmpegError

    try:
        if path.suffix in (".wav", ".flac"):
            read_sound(path)
        else:
            _Player.open(path).close()
    except (FFmpegError, OSError, ValueError, LookupError, StopIteration, TrainerError):
        return False
    return True


class _Player:
    """The pictures of one sample by their time, read forwards."""

    def __init__(self, size: tuple[int, int], fps: float, seconds: float, frames: Iterator[Any], close: Any) -> None:
        self.size, self.fps, self.seconds = size, fps, seconds
        self._frames, self.close = frames, close
        self._picture: Any = next(frames)
        self._number = 0

    @classmethod
    def open(cls, path: Path) -> _Player:
        from PIL import Image

        if path.suffix in (".wav", ".flac", ".png"):
            if path.suffix == ".png":
                with Image.open(path) as image:
                    picture = image.convert("RGB")
            else:
                sound = read_sound(path)
                picture = spectrogram_image(torch.from_numpy(sound.samples), sound.rate, size=(480, 240))
            return cls(picture.size, 0.0, 0.0, iter([picture]), lambda: None)
        import av

        container = av.open(str(path))
        stream = container.streams.video[0]
        fps = float(stream.average_rate or STILL_FPS)
        pictures = (frame.to_image() for frame in container.decode(stream))
        return cls((stream.width, stream.height), fps, stream.frames / fps, pictures, container.close)

    def at(self, seconds: float) -> Any:
        """The picture at that time; the last one after the end."""
        while self._number < math.floor(seconds * self.fps + 1e-3):
            self._picture = next(self._frames, self._picture)
            self._number += 1
        return self._picture


def _empty(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Mapping[tuple[int, int], GridCell],
    playing: Mapping[tuple[int, int], _Player],
) -> tuple[Any, dict[tuple[int, int], tuple[int, int, int, int]]]:
    """The picture without the samples, and where each belongs: left, top, width, height."""
    from PIL import Image, ImageDraw

    width = max(player.size[0] for player in playing.values())
    height = max(player.size[1] for player in playing.values())
    scale = max(1.0, NARROWEST / width)
    scale = min(
        scale,
        (WIDEST - GAP * (len(columns) + 1)) / (len(columns) * width),
        (HIGHEST - LINE * (len(rows) + 1) - GAP * len(rows)) / (len(rows) * height),
    )
    wide, high = max(8, int(width * scale)), max(8, int(height * scale))
    whole = (GAP + len(columns) * (wide + GAP), LINE + len(rows) * (LINE + high + GAP))
    picture = Image.new("RGB", (whole[0] + whole[0] % 2, whole[1] + whole[1] % 2), BACKGROUND)
    pen, font = ImageDraw.Draw(picture), load_font(SIZE)
    for column, label in enumerate(columns):
        pen.text((GAP + column * (wide + GAP) + 4, 5), _fitting(label, wide - 8, font), font=font, fill=INK)
    places = {}
    for row, label in enumerate(rows):
        top = LINE + row * (LINE + high + GAP)
        pen.text((GAP + 4, top + 5), _fitting(label, whole[0] - 16, font), font=font, fill=FAINT)
        for column in range(len(columns)):
            left = GAP + column * (wide + GAP)
            places[row, column] = (left, top + LINE, wide, high)
            cell = cells.get((row, column))
            if cell is None or cell.path is None:
                pen.text((left + 8, top + LINE + 8), "failed", font=font, fill=FAINT)
    return picture, places


def _frames(
    empty: Any,
    places: Mapping[tuple[int, int], tuple[int, int, int, int]],
    playing: Mapping[tuple[int, int], _Player],
    marks: Mapping[tuple[int, int], str],
    count: int,
    fps: float,
) -> Iterator[np.ndarray]:
    """The pictures of the grid, [H, W, 3]; only what has moved is drawn anew."""
    pasted: dict[tuple[int, int], Any] = {}
    frame = empty.copy()
    for number in range(count):
        for cell, player in playing.items():
            picture = player.at(number / fps)
            if pasted.get(cell) is picture:
                continue
            pasted[cell] = picture
            left, top, wide, high = places[cell]
            scale = min(wide / picture.width, high / picture.height)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            small = _marked(picture.resize(size), marks.get(cell, ""))
            frame.paste(small, (left + (wide - size[0]) // 2, top + (high - size[1]) // 2))
        yield np.asarray(frame)


def _marked(picture: Any, mark: str) -> Any:
    """`picture` with `mark` on a dark ground in its lower left corner."""
    from PIL import ImageDraw

    if mark:
        pen, font = ImageDraw.Draw(picture), load_font(SIZE)
        top = picture.height - SIZE - 6
        pen.rectangle((0, top, font.getlength(mark) + 8, picture.height), fill=BACKGROUND)
        pen.text((4, top + 1), mark, font=font, fill=INK)
    return picture


def _wave(path: Path | None) -> tuple[Tensor | None, int]:
    """The sound of a file as [2, N] in [-1, 1], and its rate."""
    if path is None:
        return None, 0
    sound = read_sound(path)
    samples = torch.from_numpy(np.ascontiguousarray(sound.samples[:2])).clamp(-1, 1)
    return (samples.repeat(2, 1) if samples.shape[0] == 1 else samples), sound.rate


def _fitting(text: str, width: int, font: Any) -> str:
    """`text` in letters of the font, cut where it is wider than `width` pixels."""
    text = drawable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
