"""From a probed medium to its samples: which windows, at which size, with which sound, reference and mask."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..media import frames as timing
from ..media.buckets import BucketSelector, ExplicitBuckets, parse_bucket
from ..media.frame_folder import at_rate
from ..media.info import MediaInfo, MediaKind
from ..media.sound_media import AUDIO_SUFFIXES
from .companions import Companions, SoundFinder
from .dataset_file import DatasetRef, DatasetSettings
from .items import Item, Medium, ReferenceMedia, reference_size
from .notes import DataNote, NoteKind
from .pairs import MUTE_MASK, MUTE_REFERENCE, UNHEARD, UNSEEN_MASK, UNSEEN_REFERENCE, Fit
from .reference import frames_within
from .scan import MediaFile
from .sound_plan import SoundWindow, chosen_tracks, clip_sound, named_shape, of_tracks, recording_parts

IMAGE_FPS = 25.0
SILENCED, FILE_SILENT = "audio_source is none", "the file has no sound"
NO_SOUND = "trains without its sound"


@dataclass(frozen=True)
class _Beside:
    """The files that belong to all windows of a medium."""

    reference_audios: tuple[Path | None, ...]
    mask: Path | None
    mask_media: MediaInfo | None
    audio_mask: Path | None


@dataclass
class Cutter:
    """Turns a probed medium into items, by the settings of its dataset."""

    dataset: DatasetRef
    targets: tuple[int, ...]
    promised: int  # references of each medium, by the list of media
    look: Callable[[Path], MediaInfo]  # what a file holds; raises DataError
    buckets: BucketSelector = field(init=False)
    sounds: SoundFinder = field(init=False)
    companions: Companions = field(init=False)
    notes: list[DataNote] = field(default_factory=list)  # what a user should know of the media that were cut
    fit: Fit = field(default_factory=Fit)  # of their references and masks

    @property
    def settings(self) -> DatasetSettings:
        return self.dataset.entry

    def __post_init__(self) -> None:
        entry = self.settings
        self.sounds = SoundFinder(entry)
        self.companions = Companions(entry, self.promised)
        factor = entry.reference_downscale if self.companions.wanted else 1
        self.buckets = BucketSelector(entry.resolution, entry.enable_bucket, entry.bucket_no_upscale, factor)

    def cut(self, media: MediaInfo, candidate: MediaFile) -> tuple[list[Item], str | None]:
        """The items of a medium; none and the reason where it, or what belongs to it, cannot be used."""
        try:
            return self._cut(media, candidate)
        except DataError as error:
            return [], str(error)

    def _cut(self, media: MediaInfo, candidate: MediaFile) -> tuple[list[Item], str | None]:
        if media.kind == "audio":
            return self._cut_recording(media, candidate)
        entry = self.settings
        references = self.companions.references(candidate)
        if None in references:
            return [], self.companions.missing(candidate, references.index(None))
        if gone := self.companions.gone(candidate):
            return [], gone
        shown = [self._look(path, "reference") for path in references if path is not None]
        if media.kind == "image":
            line = timing.Timeline((0,), IMAGE_FPS, entry.target_fps, False)
            cut, explicit = [timing.Window(0, 1)], self._explicit(media, 1)
        else:
            if entry.kind == "image":
                return [], "it is a video; list it in video_jsonl_file"
            rated = media.fps is not None or entry.source_fps is not None
            media = at_rate(media, entry.source_fps or entry.target_fps)
            assert media.fps is not None
            if reason := self._seconds(media.duration):
                return [], reason
            line = timing.timeline(media.path.name, media.times, media.fps, entry.target_fps, entry.source_fps)
            line = line if rated else dataclasses.replace(line, notes=())  # nothing was detected; the plan says it
            explicit = self._explicit(media, line.frames)
            cut, reason = self._windows(line, explicit, media)
            if reason:
                return [], f"{reason} ({media.frames} frames at {line.source_fps:.2f} fps in the file)"
        source = Medium(media, candidate.caption or "", candidate.stem, entry.caches, line, candidate.more_captions)
        self.fit.colours("clips", media)
        width, height = explicit[:2] if explicit else self.buckets.choose(media.width, media.height)
        apart, silence = self._sound_of(media, candidate)
        if silence and candidate.sound is not None and entry.audio_source != "none":
            self._tell(f"{media.path.name} {NO_SOUND}: {silence}", "sound")
        if entry.audio_source == "none":
            self.fit.useless(UNHEARD, [candidate.sound])
        overridden, by_clock = entry.source_fps is not None, False
        if apart is not None and not silence:
            with contextlib.suppress(DataError):  # whoever encodes it says so
                by_clock = self.fit.sound(media, self.look(apart), line.frames / line.fps if overridden else None)
        tracks: tuple[int, ...] = ()
        if apart is None and not silence:
            tracks, silence = chosen_tracks(media, entry.audio_track)
            self._tell(of_tracks(media, entry.audio_track))
        beside = self._companions_of(candidate, media.kind)
        if silence:
            self.fit.useless(MUTE_MASK, [beside.audio_mask])
            self.fit.useless(MUTE_REFERENCE, beside.reference_audios)
        items = []
        for window in cut:
            sound = None if silence else clip_sound(media, line, window, overridden, apart, tracks, by_clock)
            pairs = tuple(self._reference(number, media, window, width, height) for number, media in enumerate(shown))
            item = self._item(source, window, (width, height), beside, sound, silence=silence, references=pairs)
            self._check_fit(item)
            items += [item, dataclasses.replace(item, flipped=True)] if entry.flip else [item]
        return items, None

    def _tell(self, note: str, kind: NoteKind = "settings") -> None:
        if note:
            self.notes.append(DataNote(kind, f"{note}."))

    def _item(
        self,
        source: Medium,
        window: timing.Window,
        size: tuple[int, int],
        beside: _Beside,
        sound: SoundWindow | None,
        **more: Any,
    ) -> Item:
        return Item(
            source,
            window,
            *size,
            self.dataset,
            sound,
            reference_audios=() if sound is None else beside.reference_audios,
            mask=beside.mask,
            mask_media=beside.mask_media,
            audio_mask=None if sound is None else beside.audio_mask,
            **more,
        )

    def _sound_of(self, media: MediaInfo, candidate: MediaFile) -> tuple[Path | None, str]:
        """The file with the sound of a medium (None: itself), and why it has none."""
        if media.kind == "image":
            return None, "a picture has no sound"
        if self.settings.audio_source == "none":
            return None, SILENCED
        if self.settings.audio_source == "audio_files" or candidate.sound is not None:
            return self.sounds.apart(candidate)
        return None, "" if media.has_audio else FILE_SILENT

    def _cut_recording(self, media: MediaInfo, candidate: MediaFile) -> tuple[list[Item], str | None]:
        entry = self.settings
        if entry.kind != "audio" and entry.source_key != "dataset_file":
            return [], "it is sound alone; list it in audio_jsonl_file"
        if gone := self.companions.gone(candidate):
            return [], gone
        if not entry.speech_segments and (reason := self._seconds(media.duration)):
            return [], reason
        tracks, reason = chosen_tracks(media, entry.audio_track)
        if reason:
            return [], reason
        self._tell(of_tracks(media, entry.audio_track))
        try:
            parts = recording_parts(media.path, media.duration, entry, tracks)
        except DataError as error:
            return [], str(error)
        if not parts or media.duration <= 0:
            return [], (
                f"no spoken segment of {entry.speech_min_seconds:g} to {entry.speech_max_seconds:g} s in "
                f"{media.duration:.1f} s; lower speech_min_seconds, or turn speech_segments off"
            )
        if len(parts) > 1:
            self._tell(
                f"the {len(parts)} segments of {media.path.name} all carry its whole caption, whatever is said in "
                "each. Cut it with `ltx2-train data cut --speech` and caption the pieces"
            )
        fps = entry.audio_only_target_fps
        line = timing.Timeline((0,), fps, fps, False)
        source = Medium(media, candidate.caption or "", candidate.stem, entry.caches, line, candidate.more_captions)
        beside = self._companions_of(candidate, media.kind)
        self.fit.useless(UNSEEN_MASK, [candidate.mask])
        self.fit.useless(UNSEEN_REFERENCE, candidate.references)
        items = []
        for start, seconds in parts:
            window = timing.Window(int(start * fps), max(1, round(seconds * fps)))
            sound = SoundWindow(media.path, start, seconds, seconds, tracks=tracks)
            item = self._item(source, window, entry.resolution, beside, sound, virtual=named_shape(entry, seconds))
            self._check_fit(item)
            items.append(item)
        return items, None

    def _companions_of(self, candidate: MediaFile, kind: MediaKind) -> _Beside:
        """What lies beside a medium; looked for once, however many windows it has."""
        mask = self.companions.mask(candidate) if kind != "audio" else None
        voices, most = self.sounds.references(candidate), self.settings.reference_audio_max_seconds
        for path in filter(None, voices):
            with contextlib.suppress(DataError):  # whoever encodes it says so
                self.fit.voice(self.look(path), most)
        return _Beside(
            voices,
            mask,
            None if mask is None else self._look(mask, "mask"),
            self.companions.audio_mask(candidate),
        )

    def _look(self, path: Path, what: str) -> MediaInfo:
        """What a reference or a mask holds. Raises DataError."""
        try:
            media = self.look(path)
        except DataError as error:
            raise DataError(f"no {what}: {error}", path) from error
        if what in ("reference", "mask") and media.kind == "audio":
            raise DataError(f"no {what}: {path.name} is sound alone. Name a picture or a video.", path)
        rate = self.settings.source_fps or self.settings.target_fps
        return at_rate(media, rate) if media.kind == "video" else media

    def _check_fit(self, item: Item) -> None:
        """Take down how the files beside an item fit it. Raises DataError where one belongs to another medium."""
        self.fit.references(item)
        self.fit.reference_sounds(item)
        self.fit.mask(item)
        if item.audio_mask is not None and item.audio_mask.suffix.lower() in AUDIO_SUFFIXES:
            self.fit.sound_mask(item, self._look(item.audio_mask, "mask for sound"))

    def _reference(
        self, number: int, media: MediaInfo, window: timing.Window, width: int, height: int
    ) -> ReferenceMedia:
        entry = self.settings
        scale = entry.reference_temporal_scale
        frames = entry.frames_of(number) or frames_within(window.count, scale)
        size = reference_size(width, height, entry.reference_downscale)
        return ReferenceMedia(media.path, entry.reference_caches(number), frames, *size, scale, media)

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
        self, line: timing.Timeline, explicit: tuple[int, int, int] | None, media: MediaInfo
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
        whole = timing.whole_until(line, media.damage) if extraction == "full" else line.frames
        cut = timing.windows(
            whole,
            targets,
            extraction,
            stride=entry.frame_stride,
            samples=entry.frame_sample,
            max_frames=entry.max_frames,
            pad=entry.pad_short == "pad",
            interval=entry.frame_interval,
        )
        if extraction == "full" and (more := line.frames - entry.max_frames) > timing.PAD_LIMIT:
            self.fit.long_clip(media, entry.max_frames, more / line.fps)
        kept = [window for window in cut if not timing.is_window_damaged(line, window, media.damage)]
        if kept:
            return kept, None
        if cut or not whole:
            return [], f"damaged: none of its windows is whole; it {'; '.join(media.remarks)}".rstrip(".")
        reason = f"too short: {rate}, the shortest of target_frames is {min(self.targets)}"
        close = min(self.targets) - line.frames <= timing.PAD_LIMIT
        return [], reason + ('; pad_short = "pad" would keep it' if close and entry.pad_short == "skip" else "")
