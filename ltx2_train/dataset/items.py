"""What a dataset comes to: media with their captions, the windows cut from them, and the whole plan."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import DataError
from ..media import frames as timing
from ..media.info import MediaInfo, MediaKind
from ..shapes import SPATIAL_FACTOR, LatentShape, Mode, VideoShape, floor_side
from .cache_names import (
    FLIPPED,
    LATENT_SUFFIX,
    TextForm,
    audio_cache_name,
    audio_mask_cache_name,
    image_cache_name,
    mask_cache_name,
    text_cache_name,
    video_cache_name,
)
from .dataset_file import DatasetConfig, DatasetRef, DatasetSettings
from .notes import SHOWN_AT_MOST, DataNote
from .scan import Skipped
from .sound_plan import SoundWindow

HELD = "frames held until the next"


@dataclass(frozen=True)
class Medium:
    """A medium with its caption. `stem` names its caches; `picks` maps output frames to source frames.

    `others` are further captions of it, one of all being drawn whenever it is trained on; `number` says which of them
    `caption` is.
    """

    media: MediaInfo
    caption: str
    stem: str
    folder: Path  # of the caches
    timeline: timing.Timeline
    others: tuple[str, ...] = ()
    number: int = 0

    @property
    def each(self) -> tuple[Medium, ...]:
        """The medium with each of its captions in turn."""
        more = (replace(self, caption=text, number=number) for number, text in enumerate(self.others, 1))
        return (self, *more)

    @property
    def path(self) -> Path:
        return self.media.path

    @property
    def reading(self) -> tuple[str, ...]:
        """What reading it does beyond the plain; its caches know it."""
        return (*self.media.reading, *((HELD,) if self.timeline.held else ()))

    def text_path(self, form: TextForm) -> Path:
        """Where the cache of the caption belongs."""
        return self.folder / text_cache_name(self.stem, form, self.number)


@dataclass(frozen=True)
class ReferenceMedia:
    """An image or a video that a sample is shown. `frames` of it are cached in `folder`, as `width` x `height`; after
    the first, each stands for `temporal_scale` frames of the clip. `media` is what the file holds, where known."""

    path: Path
    folder: Path
    frames: int
    width: int
    height: int
    temporal_scale: int = 1
    media: MediaInfo | None = field(default=None, repr=False, compare=False)

    @property
    def shape(self) -> LatentShape:
        return VideoShape(self.frames, self.height, self.width).latent()


@dataclass(frozen=True)
class Item:
    """One sample: a window of a medium at its bucket.

    `sound` is None where there is none; `silence` then says why, if it is a video. Of a recording ("audio"), `window`
    counts frames of the imagined video, and `virtual` is its size.
    """

    source: Medium
    window: timing.Window
    width: int
    height: int
    dataset: DatasetRef
    sound: SoundWindow | None = None
    silence: str = ""
    virtual: LatentShape | None = None
    reference_audios: tuple[Path | None, ...] = ()  # the files; None where one is missing
    references: tuple[ReferenceMedia, ...] = ()
    mask: Path | None = None
    audio_mask: Path | None = None
    flipped: bool = False
    mask_media: MediaInfo | None = field(default=None, repr=False, compare=False)  # what `mask` holds, where known

    @property
    def kind(self) -> MediaKind:
        return self.source.media.kind

    @property
    def key(self) -> str:
        """A name unique within the plan."""
        return f"{self.dataset.prefix}/{self.latent_path.name.removesuffix(LATENT_SUFFIX)}"

    @property
    def validation(self) -> bool:
        return self.dataset.validation

    def serves(self, mode: Mode) -> bool:
        """Whether a run of `mode` trains on it: it has the stream that the mode makes."""
        return {"video": self.kind != "audio", "audio": self.sound is not None}.get(mode, True)

    @property
    def caption(self) -> str:
        return self.source.caption

    @property
    def by_caption(self) -> tuple[Item, ...]:
        """The item with each of the captions of its medium in turn."""
        return tuple(self if one is self.source else replace(self, source=one) for one in self.source.each)

    @property
    def fps(self) -> float:
        """The rate that the model is told."""
        return self.source.timeline.fps

    @property
    def picks(self) -> list[int]:
        """The source frames of the window; past the end the last one is repeated."""
        all_picks = self.source.timeline.picks
        last = len(all_picks) - 1
        return [
            all_picks[min(index, last)] for index in range(self.window.start, self.window.start + self.window.count)
        ]

    @property
    def shape(self) -> LatentShape:
        if self.virtual is not None:
            return self.virtual
        return VideoShape(self.window.count, self.height, self.width).latent()

    @functools.cached_property
    def latent_path(self) -> Path:
        return self.source.folder / self._name(FLIPPED if self.flipped else "")

    def _name(self, mark: str) -> str:
        media, stem = self.source.media, self.source.stem + mark
        if media.kind == "image":
            return image_cache_name(stem, media.width, media.height)
        if media.kind == "audio" and self.sound is not None and self.sound.seconds == media.duration:
            return image_cache_name(stem, self.width, self.height)
        return video_cache_name(stem, self.window.start, self.window.count, self.width, self.height)

    @property
    def audio_path(self) -> Path | None:
        """Where the cache of the sound belongs; None where there is no sound. A mirrored copy shares it."""
        return None if self.sound is None else self.source.folder / audio_cache_name(self._name(""))

    def reference_audio_path(self, number: int) -> Path:
        """Where the cache of the reference sound `number` belongs."""
        return self.dataset.entry.reference_audio_caches(number) / audio_cache_name(self._name(""))

    def reference_path(self, number: int) -> Path:
        """Where the cache of the reference `number` belongs."""
        return self.references[number].folder / self.latent_path.name

    @property
    def mask_path(self) -> Path | None:
        """Where the cache of the mask belongs; None where there is none."""
        return None if self.mask is None else self.latent_path.with_name(mask_cache_name(self.latent_path.name))

    @property
    def audio_mask_path(self) -> Path | None:
        """Where the cache of the mask for the sound belongs; None where there is none."""
        return None if self.audio_mask is None else self.source.folder / audio_mask_cache_name(self._name(""))

    @property
    def text_key(self) -> tuple[Path, str]:
        """Equal for items that share their text cache."""
        return self.source.folder, self.source.stem


@dataclass(frozen=True)
class DatasetPlan:
    """What a dataset file comes to. `left_out` tells of each dataset what of it is among `skipped`."""

    config: DatasetConfig
    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[DataNote, ...] = ()
    left_out: Mapping[DatasetRef, Sequence[Skipped]] = field(default_factory=dict)

    @property
    def pairs(self) -> tuple[str, ...]:
        """What does not fit of references, masks and sounds; among the warnings too."""
        return tuple(note for note in self.warnings if note.kind == "pair")

    @property
    def from_caches(self) -> int:
        """How many datasets have no media, but caches alone; their samples are not among the items."""
        return sum(ref.entry.from_caches for ref in self.config.refs)

    @property
    def sources(self) -> list[Medium]:
        """The media in use, each once."""
        return list({item.text_key: item.source for item in self.items}.values())

    def settings_of(self, item: Item) -> DatasetSettings:
        """The dataset entry that `item` belongs to."""
        return item.dataset.entry

    def require_enough(self, lost: Mapping[Path, str] | None = None) -> None:
        """Raise DataError where more files of a dataset than its max_left_out allows are left out, counted together
        with those of other kinds in its folder; `lost` are media that turned out to be of no use after all, and why."""
        used: dict[DatasetRef, set[Path]] = {}
        for item in self.items:
            used.setdefault(item.dataset, set()).add(item.source.path)
        for ref in used:
            beside = [other for other in {**used, **self.left_out} if other.shares_folder(ref)]
            media = set().union(used[ref], *(used.get(other, ()) for other in beside))
            out = [skip for skip in self.left_out.get(ref, ()) if skip.path not in media]
            known = media | {skip.path for skip in out}
            out += [skip for other in beside for skip in self.left_out.get(other, ()) if skip.path not in known]
            total = len(media) + len(out)
            out += [Skipped(path, reason) for path, reason in (lost or {}).items() if path in media]
            lacking = [
                other.name
                for other in (ref, *beside)
                if self.left_out.get(other) or not used.get(other, set()).isdisjoint(lost or ())
            ]
            require_share(ref, out, total, " and ".join(sorted(lacking)))

    def summary(self) -> str:
        """A few lines for people: how many samples of which size, and what is left out."""
        training = [item for item in self.items if not item.validation]
        lines = [f"{len(training)} samples from {len({item.text_key for item in training})} files"]
        if len(training) < len(self.items):
            lines[0] += f", {len(self.items) - len(training)} samples for validation"
        pictured = [item for item in self.items if item.kind != "audio"]
        sizes = Counter((item.width, item.height, item.window.count) for item in pictured)
        lines += [f"  {w} x {h}, {count} frames: {number}" for (w, h, count), number in sorted(sizes.items())]
        if recordings := [item.sound.length for item in self.items if item.kind == "audio" and item.sound]:
            lines.append(
                f"  sound alone, {min(recordings):.1f} to {max(recordings):.1f} s, {sum(recordings):.0f} s in all: "
                f"{len(recordings)}"
            )
        if self.from_caches:
            lines.append(f"  {self.from_caches} datasets are read from their caches alone")
        lines += [f"  {note}" for note in self.pairs]
        lines += [f"  left out {skip.path.name}: {skip.reason}" for skip in self.skipped]
        return "\n".join(lines)


def require_share(ref: DatasetRef, out: Sequence[Skipped], total: int, name: str = "") -> None:
    """Raise DataError where of `total` files of a dataset more are left `out` than its max_left_out allows; `name` is
    what it and those counted with it are called."""
    most = ref.entry.max_left_out
    if len(out) <= most * total:
        return
    lines = [f"  {skip.path.name}: {skip.reason}" for skip in out[:SHOWN_AT_MOST]]
    lines += [f"  and {len(out) - SHOWN_AT_MOST} more"] if len(out) > SHOWN_AT_MOST else []
    words = f"{len(out)} of {total} files cannot be used, and max_left_out is {most:g}"
    raise TooManyLeftOut(name or ref.name, words, lines, ref)


class TooManyLeftOut(DataError):
    """More files of the dataset `ref` cannot be used than may be: how many in `words`, the first of them in `lines`."""

    remedy = "Mend them, take them away, or raise max_left_out to train on the rest."

    def __init__(self, name: str, words: str, lines: Sequence[str], ref: DatasetRef) -> None:
        super().__init__("\n".join((f"{name}: {words}.", *lines, self.remedy)), ref.entry.source)
        self.ref, self.name, self.words = ref, name, words


def reference_size(width: int, height: int, factor: int) -> tuple[int, int]:
    """The size of a reference that is `factor` times smaller than its clip, down to whole latents."""
    return max(SPATIAL_FACTOR, floor_side(width // factor)), max(SPATIAL_FACTOR, floor_side(height // factor))
