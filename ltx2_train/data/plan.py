"""From a dataset file to the list of everything that will be cached and trained on.

Planning reads directories, captions and the headers and timestamps of media; it loads no model and takes seconds. What
cannot be used is listed with its reason, and a dataset of which nothing is left is an error that says what was found.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from ..events import Events
from ..shapes import LatentShape, VideoShape
from . import frames as timing
from .buckets import BucketSelector, ExplicitBuckets, parse_bucket
from .caches import (
    AUDIO_SUFFIX,
    LATENT_SUFFIX,
    TextForm,
    audio_cache_name,
    content_hash,
    image_cache_name,
    text_cache_name,
    video_cache_name,
)
from .dataset import DatasetConfig, DatasetSettings, MediaKind
from .listing import SHOWN_AT_MOST, Candidate, Skipped, SoundFinder, find_media, nothing_left, with_captions
from .media import MediaInfo, probe_media
from .sound_media import AUDIO_SUFFIXES
from .sound_plan import SoundWindow, clip_sound, probe_recording, recording_parts, virtual_shape

IMAGE_FPS = 25.0


@dataclass(frozen=True)
class Source:
    """A medium with its caption. `stem` names its caches; `picks` maps output frames to source frames."""

    media: MediaInfo
    caption: str
    stem: str
    folder: Path  # of the caches
    timeline: timing.Timeline

    @property
    def path(self) -> Path:
        return self.media.path

    def text_path(self, form: TextForm) -> Path:
        """Where the cache of the caption belongs."""
        return self.folder / text_cache_name(self.stem, form)


@dataclass(frozen=True)
class Item:
    """One training sample: a window of a medium at its bucket. `dataset` counts within training or validation.

    `sound` is None where there is none; `silence` then says why, if it is a video. Of a recording ("audio"), `window`
    counts frames of the imagined video, and `virtual` is its size.
    """

    source: Source
    window: timing.Window
    width: int
    height: int
    dataset: int
    validation: bool = False
    sound: SoundWindow | None = None
    silence: str = ""
    virtual: LatentShape | None = None
    reference_audio: Path | None = None  # the file
    reference_folder: Path | None = None  # of its cache

    @property
    def kind(self) -> MediaKind:
        return self.source.media.kind

    @property
    def key(self) -> str:
        """A name unique within the plan."""
        part = "validation" if self.validation else "train"
        return f"{part}/{self.dataset}/{self.latent_path.name.removesuffix(LATENT_SUFFIX)}"

    @property
    def caption(self) -> str:
        return self.source.caption

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

    @property
    def latent_path(self) -> Path:
        media = self.source.media
        if media.kind == "image":
            name = image_cache_name(self.source.stem, media.width, media.height)
        elif media.kind == "audio" and self.sound is not None and self.sound.seconds == media.duration:
            name = image_cache_name(self.source.stem, self.width, self.height)
        else:
            window = self.window
            name = video_cache_name(self.source.stem, window.start, window.count, self.width, self.height)
        return self.source.folder / name

    @property
    def audio_path(self) -> Path | None:
        """Where the cache of the sound belongs; None where there is no sound."""
        return None if self.sound is None else self.latent_path.with_name(audio_cache_name(self.latent_path.name))

    @property
    def reference_audio_path(self) -> Path | None:
        """Where the cache of the reference sound belongs; None where there is none."""
        if self.reference_audio is None or self.reference_folder is None:
            return None
        return self.reference_folder / audio_cache_name(self.latent_path.name)

    @property
    def text_key(self) -> tuple[Path, str]:
        """Equal for items that share their text cache."""
        return self.source.folder, self.source.stem


@dataclass(frozen=True)
class Plan:
    """What a dataset file comes to."""

    config: DatasetConfig
    items: tuple[Item, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def sources(self) -> list[Source]:
        """The media in use, each once."""
        return list({item.text_key: item.source for item in self.items}.values())

    def settings_of(self, item: Item) -> DatasetSettings:
        """The dataset entry that `item` belongs to."""
        entries = self.config.validation_datasets if item.validation else self.config.datasets
        return entries[item.dataset]

    def leftovers(self) -> list[Path]:
        """Caches of latents and sound in the cache folders that no item uses; nothing deletes them."""
        used = {path for item in self.items for path in (item.latent_path, item.audio_path)}
        folders = {entry.caches for _, entry in self.config.named()}
        kinds = (f"*{LATENT_SUFFIX}", f"*{AUDIO_SUFFIX}")
        found = (path for folder in folders if folder.is_dir() for kind in kinds for path in folder.glob(kind))
        return sorted(path for path in found if path not in used)

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
        lines += [f"  left out {skip.path.name}: {skip.reason}" for skip in self.skipped]
        return "\n".join(lines)


def plan_dataset(config: DatasetConfig, events: Events | None = None) -> Plan:
    """Find, check and cut all media of `config`.

    Messages go to `events`, those about frame rates in the words of the community trainer. Raises DataError where a
    dataset has nothing to offer: folder missing or empty, no captions, all clips too short or unreadable.
    """
    events = events or Events()
    items: list[Item] = []
    skipped: list[Skipped] = []
    warnings: list[str] = []
    for validation, entries in ((False, config.datasets), (True, config.validation_datasets)):
        for index, entry in enumerate(entries):
            name = f"{'validation_datasets' if validation else 'datasets'}[{index}]"
            found, left_out = _plan_one(name, entry, index, validation, events, warnings)
            items += found
            skipped += left_out
    for warning in warnings:
        events.message(warning, "warning")
    if skipped:
        shown = "; ".join(f"{skip.path.name}: {skip.reason}" for skip in skipped[:SHOWN_AT_MOST])
        more = f"; and {len(skipped) - SHOWN_AT_MOST} more" if len(skipped) > SHOWN_AT_MOST else ""
        events.message(f"{len(skipped)} files are left out. {shown}{more}", "warning")
    return Plan(config, tuple(items), tuple(skipped), tuple(warnings))


@dataclass
class _Cutter:
    """Turns a probed medium into items, by the settings of its dataset."""

    settings: DatasetSettings
    index: int
    validation: bool
    targets: tuple[int, ...]
    buckets: BucketSelector = field(init=False)
    sounds: SoundFinder = field(init=False)

    def __post_init__(self) -> None:
        entry = self.settings
        self.sounds = SoundFinder(entry)
        self.buckets = BucketSelector(entry.resolution, entry.enable_bucket, entry.bucket_no_upscale)

    def cut(self, media: MediaInfo, candidate: Candidate) -> tuple[list[Item], str | None]:
        """The items of a medium; none and the reason where it is too short."""
        if media.kind == "audio":
            return self._cut_recording(media, candidate)
        entry = self.settings
        if media.kind == "image":
            line = timing.Timeline((0,), IMAGE_FPS, entry.target_fps, False)
            cut, explicit = [timing.Window(0, 1)], self._explicit(media, 1)
        else:
            if entry.kind == "image":
                return [], "it is a video; list it in video_jsonl_file"
            assert media.fps is not None
            if reason := self._seconds(media.duration):
                return [], reason
            line = timing.timeline(media.path.name, media.times, media.fps, entry.target_fps, entry.source_fps)
            explicit = self._explicit(media, line.frames)
            cut, reason = self._windows(line, explicit)
            if reason:
                return [], f"{reason} ({media.frames} frames at {line.source_fps:.2f} fps in the file)"
        source = Source(media, candidate.caption or "", candidate.stem, entry.caches, line)
        width, height = explicit[:2] if explicit else self.buckets.choose(media.width, media.height)
        apart, silence = self._sound_of(media, candidate)
        overridden = entry.source_fps is not None
        items = []
        for window in cut:
            sound = None if silence else clip_sound(media, line, window, overridden, apart)
            item = Item(source, window, width, height, self.index, self.validation, sound, silence)
            items.append(self._with_reference(item, candidate))
        return items, None

    def _sound_of(self, media: MediaInfo, candidate: Candidate) -> tuple[Path | None, str]:
        """The file with the sound of a medium (None: itself), and why it has none."""
        if media.kind == "image":
            return None, "a picture has no sound"
        if self.settings.audio_source == "none":
            return None, "audio_source is none"
        if self.settings.audio_source == "audio_files" or candidate.sound is not None:
            return self.sounds.apart(candidate)
        return None, "" if media.has_audio else "the file has no sound"

    def _cut_recording(self, media: MediaInfo, candidate: Candidate) -> tuple[list[Item], str | None]:
        entry = self.settings
        if entry.kind != "audio":
            return [], "it is sound alone; list it in audio_jsonl_file"
        if not entry.speech_segments and (reason := self._seconds(media.duration)):
            return [], reason
        try:
            parts = recording_parts(media.path, media.duration, entry)
        except DataError as error:
            return [], str(error)
        if not parts or media.duration <= 0:
            return [], (
                f"no spoken segment of {entry.speech_min_seconds:g} to {entry.speech_max_seconds:g} s in "
                f"{media.duration:.1f} s; lower speech_min_seconds, or turn speech_segments off"
            )
        fps = entry.audio_only_target_fps
        line = timing.Timeline((0,), fps, fps, False)
        source = Source(media, candidate.caption or "", candidate.stem, entry.caches, line)
        items = []
        for start, seconds in parts:
            window = timing.Window(int(start * fps), max(1, round(seconds * fps)))
            item = Item(source, window, *entry.resolution, self.index, self.validation)
            sound = SoundWindow(media.path, start, seconds, seconds)
            item = dataclasses.replace(item, sound=sound, virtual=virtual_shape(entry, seconds))
            items.append(self._with_reference(item, candidate))
        return items, None

    def _with_reference(self, item: Item, candidate: Candidate) -> Item:
        if self.settings.reference_audio_directory is None:
            return item
        found = self.sounds.reference(candidate)
        return dataclasses.replace(item, reference_audio=found, reference_folder=self.settings.reference_audio_caches)

    def _seconds(self, duration: float) -> str | None:
        entry = self.settings
        if entry.min_seconds is not None and duration < entry.min_seconds - 1e-3:
            return f"too short: {duration:.2f} s, min_seconds is {entry.min_seconds:g}"
        if entry.max_seconds is not None and duration > entry.max_seconds + 1e-3:
            return f"too long: {duration:.2f} s, max_seconds is {entry.max_seconds:g}"
        return None

    def _explicit(self, media: MediaInfo, frames: int) -> tuple[int, int, int] | None:
        """The listed size for a medium, where the dataset lists sizes and one fits."""
        sizes = tuple(parse_bucket(text) for text in self.settings.resolution_buckets)
        return ExplicitBuckets(sizes).choose(media.width, media.height, frames)

    def _windows(
        self, line: timing.Timeline, explicit: tuple[int, int, int] | None
    ) -> tuple[list[timing.Window], str | None]:
        entry = self.settings
        targets, extraction = self.targets, entry.frame_extraction
        if entry.resolution_buckets:
            if explicit is None:
                shortest = min(parse_bucket(text)[2] for text in entry.resolution_buckets)
                return [], f"too short: {line.frames} frames, the shortest of resolution_buckets is {shortest}"
            targets, extraction = (explicit[2],), "head" if extraction == "full" else extraction
        rate = f"{line.frames} frames at {entry.target_fps:g} fps"
        if line.frames < entry.min_frames:
            return [], f"too short: {rate}, min_frames is {entry.min_frames}"
        cut = timing.windows(
            line.frames,
            targets,
            extraction,
            stride=entry.frame_stride,
            samples=entry.frame_sample,
            max_frames=entry.max_frames,
            pad=entry.pad_short == "pad",
            interval=entry.frame_interval,
        )
        if cut:
            return cut, None
        reason = f"too short: {rate}, the shortest of target_frames is {min(self.targets)}"
        close = min(self.targets) - line.frames <= timing.PAD_LIMIT
        return [], reason + ('; pad_short = "pad" would keep it' if close and entry.pad_short == "skip" else "")


def _plan_one(
    name: str, entry: DatasetSettings, index: int, validation: bool, events: Events, warnings: list[str]
) -> tuple[list[Item], list[Skipped]]:
    targets, notes = timing.floor_targets(entry.target_frames)
    if entry.kind == "video" and entry.frame_extraction != "full":
        warnings += [f"{name}: {note}" for note in notes]
        given = entry.model_fields_set & {"target_frames", "resolution_buckets"}
        if not given and targets == (1,):
            warnings.append(
                f"{name}: target_frames is not set, so one frame of each video is used. For motion give lengths, "
                "for example target_frames = [49]."
            )
    candidates, skipped = find_media(name, entry)
    ready = with_captions(entry, candidates, skipped, warnings)
    if not ready:
        raise DataError(nothing_left(name, entry, len(candidates), skipped), entry.source)

    cutter = _Cutter(entry, index, validation, targets)
    items: list[Item] = []
    events.stage(f"read {name}", len(ready))
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="probe") as pool:
        try:
            for done, (candidate, media) in enumerate(zip(ready, pool.map(_probe, ready), strict=True), 1):
                events.check_stop()
                if isinstance(media, DataError):
                    skipped.append(Skipped(candidate.path, str(media)))
                else:
                    found, reason = cutter.cut(media, candidate)
                    items += found
                    if reason:
                        skipped.append(Skipped(candidate.path, reason))
                    for note in found[0].source.timeline.notes if found else ():
                        events.message(note)
                    warnings += [f"{media.path.name} {remark}" for remark in media.remarks if found]
                events.progress(done, len(ready), candidate.path.name)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if not items:
        raise DataError(nothing_left(name, entry, len(candidates), skipped), entry.source)
    warnings += [f"{name}: {note}" for note in (*_twins(items), *_without_reference(entry, items))]
    return items, skipped


def _twins(items: list[Item]) -> list[str]:
    """A sentence for each file that is a copy of another."""
    by_size: dict[int, dict[Path, int]] = {}
    for path in {item.source.path: None for item in items}:
        stat = path.stat()
        by_size.setdefault(stat.st_size, {})[path] = stat.st_mtime_ns
    notes = []
    for size, group in by_size.items():
        first: dict[str, Path] = {}
        for path, mtime_ns in group.items() if len(group) > 1 else ():
            other = first.setdefault(content_hash(path, size, mtime_ns), path)
            if other is not path:
                notes.append(f"{path.name} is a copy of {other.name}; both are used. Use num_repeats to repeat a clip.")
    return notes


def _without_reference(entry: DatasetSettings, items: list[Item]) -> list[str]:
    """A sentence where media lack the reference sound that their dataset promises."""
    if entry.reference_audio_directory is None:
        return []
    lacking = list(dict.fromkeys(item.source.path.name for item in items if item.reference_audio is None))
    if not lacking:
        return []
    return [
        f"{len(lacking)} files have no reference sound of their name in {entry.reference_audio_directory}: "
        f"{', '.join(lacking[:SHOWN_AT_MOST])}{' ...' if len(lacking) > SHOWN_AT_MOST else ''}"
    ]


def _probe(candidate: Candidate) -> MediaInfo | DataError:
    try:
        stat = candidate.path.stat()
        return _probe_once(candidate.path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return DataError(f"{candidate.path} does not exist or cannot be opened.", candidate.path)
    except DataError as error:
        return error


@functools.lru_cache(maxsize=512)
def _probe_once(path: Path, size: int, mtime_ns: int) -> MediaInfo:
    # Caching, training and sampling in one process each plan; the media are read once.
    return probe_recording(path) if path.suffix.lower() in AUDIO_SUFFIXES else probe_media(path)
