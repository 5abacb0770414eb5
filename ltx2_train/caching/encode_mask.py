"""Masks at the resolution of latents: 1 is given to the model, 0 is generated.

A latent is given where the mask is white over more than half of the pixels and frames it stands for: 32 x 32 pixels of
the first frame alone, then of eight frames. The mask of a sound is given for each latent step of 1/25 s, from a sound
file by its mean level, from JSON ([[from, to], ...] in seconds of the medium) by the share that is covered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dataset.augment import GREY, crop_centre, same_shape
from ..dataset.cache_names import AUDIO_MASK_SUFFIX, MASK_SUFFIX
from ..dataset.dataset_file import DatasetSettings
from ..dataset.notes import SHOWN_AT_MOST
from ..dataset.plan import Item
from ..dataset.reference import frames_beside, line_beside, probe_companion
from ..errors import DataError
from ..files import parse_json
from ..media.buckets import MIDDLE, cover
from ..media.info import MediaInfo
from ..media.sound import read_sound
from ..media.video import read_frames
from ..shapes import AUDIO_LATENTS_PER_SECOND, SPATIAL_FACTOR, TEMPORAL_FACTOR, LatentShape
from ..text_files import read_text
from .cache_file import MASK_KEY, CacheFile
from .encode import companion_settings
from .kind import Bench, CacheKind, CacheMade, Job, header_bytes

THRESHOLD = 0.5
BLACK, WHITE, GREY_SHARE = 1 / 8, 3 / 4, 0.5  # soft edges and compression leave less between black and white
BEHIND_END = "spans behind the end of their clips, which are not used"
LIKE_A_PICTURE = "grey or coloured in more than half, as a picture is: white is given, black is generated"
_GIVES = ""  # a part
HEADER = 330  # bytes of a mask besides tensor and settings; no weights are named


class Masks(CacheKind[tuple[torch.Tensor, bool]]):
    """Of the pictures of clips. What is read is the mask, and whether it is odd: it looks like a picture."""

    name = "masks"
    stage = "encode masks"
    suffix = MASK_SUFFIX
    modes = frozenset(("video", "av"))
    nothing = "masks are darker than one half in all windows that were made now, and give nothing; white is given"
    everything = "masks are white all over in windows that were made now, so that nothing is left to make there"
    odd = f"masks are {LIKE_A_PICTURE}"

    def of(self, item: Item) -> Job | None:
        mask, path, shape = item.mask, item.mask_path, item.shape
        if mask is None or path is None:
            return None
        made_from = {
            "mask_file": mask.name,
            "resolution": f"{item.width}x{item.height}",
            **companion_settings(item, self.plan.settings_of(item)),
            "latents": [shape.frames, shape.height, shape.width],
        }
        if _was_read_otherwise(item, self.plan.settings_of(item)):
            made_from["mask_times"] = "of the clip"
        return Job(self, item, mask, path, made_from)

    def stale(self, file: CacheFile, job: Job) -> str | None:
        if MASK_KEY not in file.keys:
            return f"it holds no mask, but {', '.join(file.keys) or 'nothing'}"
        file.mask()  # a few bytes, which building reads in any case
        return super().stale(file, job)

    def cells(self, item: Item) -> int:
        """Values of the mask, one byte each."""
        return item.shape.tokens

    def size(self, job: Job) -> int:
        return self.cells(job.item) + header_bytes(job.made_from, HEADER)

    def weight(self, job: Job) -> float:
        return max(1.0, self.cells(job.item))

    def read(self, job: Job, model: None) -> tuple[torch.Tensor, bool]:
        shares: list[float] = []
        return picture_mask(job.source, job.item, self.plan.settings_of(job.item), shares), is_like_a_picture(shares)

    def make(self, job: Job, was_read: tuple[torch.Tensor, bool], bench: Bench) -> CacheMade:
        mask, is_odd = was_read
        topics = [self.everything if bool(mask.all()) else _GIVES if bool(mask.any()) else self.nothing]
        topics += [self.odd] if is_odd else []
        return CacheMade(self.write(job, {MASK_KEY: mask}), dict.fromkeys(topics, ""))

    def notes(self, seen: Mapping[str, Mapping[Path, str]]) -> list[str]:
        notes = []
        for kind in (Masks, SoundMasks):
            full, some = seen.get(kind.everything, {}), seen.get(_GIVES, {})
            empty = [path for path in seen.get(kind.nothing, {}) if path not in full and path not in some]
            odd = list(seen.get(kind.odd, ()))
            for topic, paths in ((kind.everything, list(full)), (kind.nothing, empty), (kind.odd, odd)):
                if paths:
                    more = " ..." if len(paths) > SHOWN_AT_MOST else ""
                    shown = ", ".join(path.name for path in paths[:SHOWN_AT_MOST])
                    notes.append(f"{len(paths)} {topic}: {shown}{more}")
        return notes


class SoundMasks(Masks):
    """Of the sound of clips and recordings; a mirrored copy shares it."""

    suffix = AUDIO_MASK_SUFFIX
    modes = frozenset(("av", "audio"))
    nothing = "masks for sound give nothing in the windows that were made now; level 1, or a span, is given"
    everything = "masks for sound give all in windows that were made now, so that nothing is left to make there"
    odd = f"masks for sound have {BEHIND_END}"

    def of(self, item: Item) -> Job | None:
        mask, path, sound = item.audio_mask, item.audio_mask_path, item.sound
        if mask is None or path is None or sound is None:
            return None
        made_from: dict[str, Any] = {
            "mask_file": mask.name,
            "sound_window": [round(sound.start, 6), round(sound.seconds, 6)],
            "stretched": round(sound.length / sound.seconds, 6) if sound.seconds else 1.0,
        }
        return Job(self, item, mask, path, made_from)

    def jobs(self) -> Iterator[Job]:
        return (job for item in self.plan.items if not item.flipped and (job := self.of(item)) is not None)

    def cells(self, item: Item) -> int:
        return item.sound.steps if item.sound is not None else 0

    def read(self, job: Job, model: None) -> tuple[torch.Tensor, bool]:
        return sound_mask(job.source, job.item), has_spans_behind(job.source, job.item)


def has_spans_behind(path: Path, item: Item) -> bool:
    """Whether a mask in JSON gives what lies behind the end of the medium. Raises DataError."""
    own = item.source.media
    end = max(own.duration, 0.0 if item.sound is None else item.sound.start + item.sound.seconds)
    return path.suffix.lower() == ".json" and any(begin >= end for begin, _ in _spans(path))


def is_like_a_picture(grey_shares: Sequence[float]) -> bool:
    """Whether a mask of which these shares are neither black nor white is hardly one."""
    return bool(grey_shares) and sum(grey_shares) / len(grey_shares) > GREY_SHARE


def picture_mask(
    path: Path, item: Item, entry: DatasetSettings, grey_shares: list[float] | None = None
) -> torch.Tensor:
    """uint8 [F, H, W] in latents; `grey_shares` as in `latent_mask`. Raises DataError."""
    media, own = item.mask_media or probe_companion(path, entry), item.source.media
    picks = frames_beside(item, media, entry, item.window.count, by_clock=True)
    return latent_mask(media, picks, own, item.shape, crop_centre(item, entry), item.flipped, grey_shares)


def _was_read_otherwise(item: Item, entry: DatasetSettings) -> bool:
    """Whether a mask of another length than its clip was once read from its beginning for a later window."""
    media = item.mask_media
    if media is None or media.kind == "image" or not item.window.start:
        return False
    return line_beside(item, media, entry)[1] != item.window.start


def latent_mask(
    media: MediaInfo,
    picks: Sequence[int],
    own: MediaInfo,
    shape: LatentShape,
    centre: tuple[float, float] = MIDDLE,
    flipped: bool = False,
    grey_shares: list[float] | None = None,
) -> torch.Tensor:
    """uint8 [F, H, W] of the frames `picks` of the mask `media` of a clip that is cached in `shape`, 1 where it is
    given. `own` is the clip's file, and it is cropped around `centre`. The share of its pixels that are neither black
    nor white goes to `grey_shares`, of each F. Raises DataError."""
    mask = torch.empty(shape.frames, shape.height, shape.width, dtype=torch.uint8)
    size = (shape.width * SPATIAL_FACTOR, shape.height * SPATIAL_FACTOR)
    for row in range(shape.frames):
        first = max(0, (row - 1) * TEMPORAL_FACTOR + 1)
        grey = _grey(media, picks[first : row * TEMPORAL_FACTOR + 1], own, size, centre)
        if grey_shares is not None:
            grey_shares.append(float(((grey > BLACK) & (grey < WHITE)).mean()))
        grey = grey[:, :, ::-1] if flipped else grey
        cells = grey.reshape(len(grey), shape.height, SPATIAL_FACTOR, shape.width, SPATIAL_FACTOR)
        mask[row] = torch.from_numpy(cells.mean(axis=(0, 2, 4)) > THRESHOLD)
    return mask


def _grey(
    media: MediaInfo, picks: Sequence[int], own: MediaInfo, size: tuple[int, int], centre: tuple[float, float]
) -> np.ndarray:
    """float32 [F, H, W] from 0 to 1, scaled and cropped as the clip is."""
    from PIL import Image

    if same_shape(media, own.width, own.height):
        clip = read_frames(media, picks, size, centre)
    else:
        # a mask of another shape is stretched over the whole picture first
        scaled_w, scaled_h, left, top = cover(own.width, own.height, size, centre)
        pictures = [Image.fromarray(picture) for picture in read_frames(media, picks)]
        box = (left, top, left + size[0], top + size[1])
        resized = [picture.resize((scaled_w, scaled_h), Image.Resampling.BILINEAR).crop(box) for picture in pictures]
        clip = np.stack([np.asarray(picture) for picture in resized])
    return clip.astype(np.float32) @ GREY / 255.0


def sound_mask(path: Path, item: Item) -> torch.Tensor:
    """uint8 [T] in latent steps of the sound of `item`. Raises DataError."""
    sound = item.sound
    assert sound is not None, item.key
    steps = sound.steps
    start = sound.start - item.source.media.times[0] if sound.of_clip else sound.start
    # In seconds of the medium; what the last latent has beyond the end of the sound does not count.
    second = sound.seconds / sound.length / AUDIO_LATENTS_PER_SECOND
    return step_mask(path, start, sound.seconds, steps, second)


def step_mask(
    path: Path, start: float, seconds: float, steps: int, second: float = 1 / AUDIO_LATENTS_PER_SECOND
) -> torch.Tensor:
    """uint8 [steps] of the `seconds` from `start` on in the mask `path`, 1 where a step is given.

    A step takes `second` seconds. Raises DataError.
    """
    edges = start + np.minimum(np.arange(steps + 1) * second, seconds)
    if path.suffix.lower() == ".json":
        covered = np.zeros(steps)
        for begin, end in _spans(path):
            covered += np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin), 0, None)
        given = covered > THRESHOLD * np.diff(edges)
    else:
        heard = read_sound(path, max(0.0, start), seconds)
        level = np.abs(heard.samples).mean(axis=0)
        cuts = np.round((edges - start) * heard.rate).astype(int)
        parts = [level[left:right] for left, right in pairwise(cuts)]
        given = np.array([bool(len(part)) and float(part.mean()) > THRESHOLD for part in parts])
    if steps > 1 and edges[-1] - edges[-2] < second / 2:
        given[-1] = given[-2]  # there is hardly anything of its own to go by
    return torch.from_numpy(given).to(torch.uint8)


def _spans(path: Path) -> list[tuple[float, float]]:
    try:
        spans = parse_json(read_text(path))
        if not isinstance(spans, list) or any(isinstance(edge, (bool, str)) for span in spans for edge in span):
            raise TypeError(spans)
        unmerged = [(float(begin), float(end)) for begin, end in spans]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", path) from error
    except UnicodeError as error:
        raise DataError(f"{path} {error}", path) from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected [[from, to], ...] in seconds, for example [[0, 1.5]].", path) from error
    if any(begin < 0 for begin, _ in unmerged):
        raise DataError(f"{path}: a [from, to] begins before 0, which is the beginning of the medium.", path)
    if any(end <= begin for begin, end in unmerged):
        raise DataError(f"{path}: every [from, to] must end after it begins.", path)
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(unmerged):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
