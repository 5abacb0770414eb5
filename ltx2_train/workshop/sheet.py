"""Contact sheets: every sample as the trainer sees it, in one picture that a person takes in at a glance.

A tile shows first, middle and last frame of a sample after window and crop, or the loudness of a recording; below it
name, size, length and the first words of its caption. The bar on its left is the colour of its check. Files that are
left out have a tile with the reason.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset.augment import crop_centre, jitter
from ..dataset.dataset_file import DatasetConfig, DatasetSettings
from ..dataset.plan import Item
from ..dataset.sound_plan import SoundWindow
from ..errors import DataError
from ..events import Events, shielded
from ..files import atomic
from ..media.font import drawable, load_font
from ..media.sound_media import read_sound
from ..media.video import read_frames
from ..threads import Threads
from .check_report import CheckReport

COLUMNS = 5
ROWS = 8
PICTURE = (210, 150)
SMALL = (105, 75)
THIRD = (105, 150)  # of a tall picture
GAP = 10
BAR = 7
LINE = 17
LINES = 4
LONGEST_LINE = 400  # letters; more than fit in a tile, however thin they are
TILE = (BAR + PICTURE[0] + SMALL[0] + 6, PICTURE[1] + LINES * LINE + 8)
HEAD = 34
COLOURS = {"green": (70, 190, 90), "amber": (240, 170, 40), "red": (230, 60, 60)}
BACKGROUND, CARD, INK, FAINT = (24, 26, 30), (40, 43, 49), (232, 232, 232), (160, 165, 172)
SOUND_BINS = 150


def sample_frames(
    item: Item, entry: DatasetSettings, numbers: Sequence[int], size: tuple[int, int] | None = None
) -> np.ndarray:
    """Frames `numbers` (ascending) of a sample as the trainer sees them, uint8 [n, H, W, 3]; `size`: made small.

    They are cropped, shifted in colour and mirrored as `entry`, the dataset of the sample, says.
    """
    picks = item.picks
    wanted = [picks[number] for number in numbers]
    clip = read_frames(item.source.media, wanted, size or (item.width, item.height), crop_centre(item, entry))
    if entry.color_jitter:
        jitter(clip, entry.color_jitter, item.source.path.name)
    return clip[:, :, ::-1] if item.flipped else clip


def contact_sheets(
    items: Sequence[Item],
    config: DatasetConfig,
    report: CheckReport,
    folder: Path,
    events: Events | None = None,
    name: str = "sheet",
) -> list[Path]:
    """Write `name`_01.png ... into `folder`, 40 tiles each; the worst files come first. Returns their paths."""
    events = shielded(events)
    levels = {(file.path, file.dataset): file.level for file in report.files}
    order = {"red": 0, "amber": 1, "green": 2}
    used = {item.source.path for item in items}
    lost = [file for file in report.files if file.path not in used]
    jobs: list[Callable[[], Any]] = [_left_out_job(file.path, report) for file in lost]
    ranked = [(levels.get((item.source.path, item.dataset.name), "green"), item) for item in items]
    ranked.sort(key=lambda pair: order[pair[0]])
    jobs += [_item_job(item, item.dataset.entry, level) for level, item in ranked]
    tiles = []
    events.stage("draw the contact sheet", len(jobs))
    with Threads(min(8, os.cpu_count() or 1), "sheet", events) as threads:
        for done, tile in enumerate(threads.map(lambda job: job(), jobs), 1):
            tiles.append(tile)
            events.progress(done, len(jobs))
    counts = report.counts()
    head = f"{len(items)} samples   " + "   ".join(f"{count} {level}" for level, count in counts.items() if count)
    paths = []
    for page in range(max(1, math.ceil(len(tiles) / (COLUMNS * ROWS)))):
        path = folder / f"{name}_{page + 1:02d}.png"
        _save(_page(tiles[page * COLUMNS * ROWS : (page + 1) * COLUMNS * ROWS], head), path)
        paths.append(path)
    return paths


def _item_job(item: Item, entry: DatasetSettings, level: str) -> Callable[[], Any]:
    def draw() -> Any:
        tile, pen = _card(level)
        try:
            if item.kind == "audio":
                assert item.sound is not None
                tile.paste(_waveform(item.sound), (BAR, 0))
                size = f"{item.sound.seconds:.2f} s of sound from {item.sound.start:.2f} s"
            else:
                _paste_frames(tile, item, entry)
                size = f"{item.width}x{item.height}"
                if item.kind == "video":
                    start = item.window.start / item.fps
                    size += f", {item.window.count} frames at {item.fps:g} fps"
                    size += f", from {start:.2f} s" if start else ""
                    size += ", sound" if item.sound else ""
                size += ", mirrored" if item.flipped else ""
        except DataError as error:
            size = str(error).replace(str(item.source.path), "").strip(": ")
        _write(pen, item.source.path.name, size, item.caption)
        return tile

    return draw


def _left_out_job(path: Path, report: CheckReport) -> Callable[[], Any]:
    def draw() -> Any:
        found = report.of(path)
        tile, pen = _card("red" if any(finding.level == "red" for finding in found) else "amber")
        pen.text((BAR + 10, 10), "not used", font=load_font(16), fill=FAINT)
        reason = found[0].reason if found else "it cannot be used"
        lines = _wrapped(pen, reason, TILE[0] - BAR - 20, 6)
        for number, line in enumerate(lines):
            pen.text((BAR + 10, 38 + number * LINE), line, font=load_font(12), fill=INK)
        _write(pen, path.name, "", found[0].remedy if found else "")
        return tile

    return draw


def _paste_frames(tile: Any, item: Item, entry: DatasetSettings) -> None:
    from PIL import Image

    last = item.window.count - 1
    big = _inside(item, PICTURE)
    if item.kind == "image" or not last:
        tile.paste(
            Image.fromarray(sample_frames(item, entry, [0], _inside(item, (TILE[0] - BAR, PICTURE[1])))[0]), (BAR, 0)
        )
        return
    tall = item.height > item.width
    frames = sample_frames(item, entry, [0, last // 2, last], _inside(item, THIRD) if tall else big)
    if tall:
        for column, frame in enumerate(frames):
            tile.paste(Image.fromarray(frame), (BAR + column * (THIRD[0] + 3), 0))
        return
    first, middle, end = frames
    tile.paste(Image.fromarray(first), (BAR, 0))
    small = _inside(item, SMALL)
    for row, frame in enumerate((middle, end)):
        tile.paste(Image.fromarray(frame).resize(small), (BAR + PICTURE[0] + 3, row * SMALL[1]))


def _inside(item: Item, box: tuple[int, int]) -> tuple[int, int]:
    scale = min(box[0] / item.width, box[1] / item.height)
    return max(1, round(item.width * scale)), max(1, round(item.height * scale))


def _waveform(sound: SoundWindow) -> Any:
    """The loudness over a window as a picture."""
    from PIL import Image, ImageDraw

    samples = np.abs(read_sound(sound.path, sound.start, sound.seconds, tracks=sound.tracks).samples).max(axis=0)
    picture = Image.new("RGB", (TILE[0] - BAR, PICTURE[1]), (18, 22, 28))
    pen = ImageDraw.Draw(picture)
    middle, step = PICTURE[1] // 2, picture.width / SOUND_BINS
    for number, part in enumerate(np.array_split(samples, SOUND_BINS)):
        tall = max(1.0, min(1.0, float(part.max(initial=0))) * (middle - 4))
        pen.rectangle(
            (number * step, middle - tall, number * step + max(1, step - 1), middle + tall), fill=(90, 170, 230)
        )
    return picture


def _card(level: str) -> tuple[Any, Any]:
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", TILE, CARD)
    pen = ImageDraw.Draw(tile)
    pen.rectangle((0, 0, BAR - 3, TILE[1]), fill=COLOURS[level])
    return tile, pen


def _write(pen: Any, name: str, size: str, caption: str) -> None:
    width, top = TILE[0] - BAR - 14, PICTURE[1] + 4
    pen.text((BAR + 5, top), _fitted(pen, name, load_font(14), width), font=load_font(14), fill=INK)
    if size:
        pen.text((BAR + 5, top + LINE), _fitted(pen, size, load_font(12), width), font=load_font(12), fill=FAINT)
    for number, line in enumerate(_wrapped(pen, caption, width, 2)):
        pen.text((BAR + 5, top + (2 + number) * LINE), line, font=load_font(12), fill=INK)


def _page(tiles: Sequence[Any], head: str) -> Any:
    from PIL import Image, ImageDraw

    columns = min(COLUMNS, max(2, len(tiles)))
    rows = max(1, math.ceil(len(tiles) / columns))
    size = (GAP + columns * (TILE[0] + GAP), HEAD + rows * (TILE[1] + GAP))
    page = Image.new("RGB", size, BACKGROUND)
    ImageDraw.Draw(page).text((GAP, 8), head, font=load_font(16), fill=INK)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        page.paste(tile, (GAP + column * (TILE[0] + GAP), HEAD + row * (TILE[1] + GAP)))
    return page


def _save(page: Any, path: Path) -> None:
    with atomic(path) as temporary:
        page.save(temporary, format="PNG")


def _fitted(pen: Any, text: str, font: Any, width: int) -> str:
    """A line of `text` that is at most `width` wide, cut where it must be."""
    text = drawable(text[: LONGEST_LINE + 1])
    if len(text) <= LONGEST_LINE and pen.textlength(text, font=font) <= width:
        return text
    return _cut_off(pen, text, font, width)


def _cut_off(pen: Any, text: str, font: Any, width: int) -> str:
    """As much of `text` as fits with dots behind it."""
    fits, over = 0, min(len(text), LONGEST_LINE) + 1
    while over - fits > 1:
        middle = (fits + over) // 2
        if pen.textlength(text[:middle] + "...", font=font) <= width:
            fits = middle
        else:
            over = middle
    return text[:fits] + "..."


def _wrapped(pen: Any, text: str, width: int, most: int) -> list[str]:
    """At most `most` lines of `text`."""
    lines: list[str] = []
    font = load_font(12)
    for word in drawable(text[: most * LONGEST_LINE]).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and len(longer) <= LONGEST_LINE and pen.textlength(longer, font=font) <= width:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] = _cut_off(pen, longer, font, width)
            return lines
        else:
            lines.append(_fitted(pen, word, font, width))
    return lines
