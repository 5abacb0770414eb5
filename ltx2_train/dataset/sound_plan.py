"""Which part of which sound belongs to which sample, and how long it lasts in training.

Of a clip. The window's frames were shown at certain seconds of the file; the sound of just those seconds belongs to
them. In training they last count / fps seconds. Where the two differ - the clip is slow or fast by a frame a second and
passed unresampled, or source_fps overrides what the file says - the sound is stretched to the length in training. Lost
frames are no reason: there the frame before is held, and the sound goes on.

Of a recording. All of it is one sample, or each of its spoken segments. It trains next to an imagined video that is
never computed: its size only tells how many tokens the sigma shift should reckon with, as in the community trainer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..media.frames import Timeline, Window
from ..media.info import MediaInfo
from ..media.sound import unsaid_channels
from ..media.sound_media import probe_sound, sound_levels
from ..media.speech import STEPS_PER_SECOND, spoken_segments
from ..media.structure import behind_end
from ..shapes import SPATIAL_FACTOR, LatentShape, VideoShape, encoded_audio_steps, floor_frames
from .dataset_file import DatasetSettings

LONG_SECONDS = 60.0


@dataclass(frozen=True)
class SoundWindow:
    """`seconds` of the file `path` from `start` on, which last `length` seconds in training.

    `of_clip`: the file is the clip itself, and `start` is on its container's clock; else from the file's beginning.
    `tracks` as for `media.read_sound`.
    """

    path: Path
    start: float
    seconds: float
    length: float
    of_clip: bool = False
    tracks: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """Latents in training: as many as the audio VAE makes of it."""
        return encoded_audio_steps(self.length)


def chosen_tracks(media: MediaInfo, track: int | None) -> tuple[tuple[int, ...], str]:
    """The sound tracks of a medium that are used, where `track` is the user's choice, and why there are none."""
    if track is None:
        return ((1, 2) if media.pair else ()), ""
    if track > len(media.tracks):
        return (), f"audio_track is {track}, and it has {len(media.tracks)} sound tracks"
    return (track,), ""


def of_tracks(media: MediaInfo, track: int | None) -> str:
    """What a user should know of the sound tracks of a medium, where there are several; else ""."""
    if len(media.tracks) < 2 or track is not None:
        return ""
    used = "the two are joined as left and right" if media.pair else "the one that it prefers is used"
    return (
        f"{media.path.name} has {len(media.tracks)} sound tracks ({'; '.join(media.tracks)}): {used}. Set audio_track"
    )


def clip_sound(
    media: MediaInfo,
    line: Timeline,
    window: Window,
    overridden: bool,
    apart: Path | None = None,
    tracks: tuple[int, ...] = (),
    by_clock: bool = False,
) -> SoundWindow:
    """The sound of a window of a clip; `overridden`: its frame rate is the user's. `apart`: the file it is in, which
    `by_clock` lasts as long as the clip does at that rate, and is not stretched."""
    first, last = window.start, window.start + window.count
    if by_clock:
        start, end = (media.times[0] + frame / line.fps for frame in (first, last))
    elif line.held:
        start, end = (media.times[0] + frame / line.fps * line.tempo for frame in (first, last))
    elif line.resampled and not overridden:
        start, end = (media.times[0] + frame / line.fps for frame in (first, last))
    else:
        scale = line.source_fps / line.fps if line.resampled else 1.0
        start, end = (_shown_at(media.times, frame * scale, line.source_fps) for frame in (first, last))
    if apart is not None:
        start, end = start - media.times[0], end - media.times[0]
    return SoundWindow(apart or media.path, start, end - start, window.count / line.fps, apart is None, tracks)


def _shown_at(times: Sequence[float], frame: float, fps: float) -> float:
    """Seconds at which source frame `frame` is shown, between frames and past the last one as well."""
    final = len(times) - 1
    if frame < final:
        before = int(frame)
        return times[before] + (frame - before) * (times[before + 1] - times[before])
    if frame == final:
        return times[-1]
    step = (times[-1] - times[0]) / final if final else 1.0 / fps
    return times[-1] + (frame - final) * step


def probe_recording(path: Path) -> MediaInfo:
    """What the plan must know of a sound file. Raises DataError."""
    info = probe_sound(path)
    if info.cut_short:
        raise DataError(f"{path} is cut short: {info.cut_short}. Copy or export it again, or remove it.", path)
    remarks = tuple(filter(None, (behind_end(path), unsaid_channels(info.layout, info.channels))))
    if info.duration > LONG_SECONDS:
        remarks = (
            *remarks,
            f"lasts {info.duration:.0f} s; speech_segments = true cuts it at its pauses, max_seconds leaves it out",
        )
    return MediaInfo(
        path,
        "audio",
        1,
        0,
        0,
        duration=info.duration,
        has_audio=True,
        remarks=remarks,
        tracks=info.tracks,
        pair=info.pair,
    )


def recording_parts(
    path: Path, duration: float, entry: DatasetSettings, tracks: tuple[int, ...] = ()
) -> list[tuple[float, float]]:
    """(start, seconds) of each sample in a recording. Raises DataError where it must be decoded and cannot be."""
    if not entry.speech_segments:
        return [(0.0, duration)]
    stat = path.stat()
    limits = (entry.speech_min_seconds, entry.speech_max_seconds, entry.speech_pause_seconds)
    return list(_segments(path, stat.st_size, stat.st_mtime_ns, limits, tracks))


@functools.lru_cache(maxsize=512)
def _segments(
    path: Path, size: int, mtime_ns: int, limits: tuple[float, float, float], tracks: tuple[int, ...]
) -> tuple[tuple[float, float], ...]:
    return tuple(spoken_segments(sound_levels(path, STEPS_PER_SECOND, tracks), *limits))


def virtual_side(entry: DatasetSettings) -> tuple[int, int]:
    """Width and height in pixels of the imagined video of a recording."""
    if entry.audio_only_sequence_resolution:
        return entry.audio_only_sequence_resolution, entry.audio_only_sequence_resolution
    if entry.audio_only_target_resolution is not None:
        return entry.audio_only_target_resolution, entry.audio_only_target_resolution
    return entry.resolution


def named_shape(entry: DatasetSettings, seconds: float) -> LatentShape:
    """Its size in latents."""
    width, height = (max(SPATIAL_FACTOR, side // SPATIAL_FACTOR * SPATIAL_FACTOR) for side in virtual_side(entry))
    frames = floor_frames(max(1, round(seconds * entry.audio_only_target_fps)))
    shape = VideoShape(frames, height, width).latent()
    return dataclasses.replace(shape, channels=entry.audio_video_latent_channels or shape.channels)
