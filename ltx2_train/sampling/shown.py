"""What a sample is given besides its prompt: the conditions of training, each with the file that it is made of.

A prompt line names the usual ones (`--i`, `--v`, `--ra`); a table of a prompt file, or of `sample.prompts`, lists any
under `conditions`, in the names of the official trainer:

    { type = "first_frame", image_or_video = "a.png" }
    { type = "prefix", video = "a.mp4", num_frames = 17 }             # 8n+1; suffix: 8n
    { type = "suffix", audio = "a.wav", duration = 1.0 }
    { type = "spatial_crop", video = "a.mp4", spatial_region = [0, 0, 256, 512] }
    { type = "mask", video = "a.mp4", mask = "mask.png" }             # white is given
    { type = "reference", video = "depth.mp4", include_in_output = true }
    { type = "reference", audio = "voice.wav", negative_positions = true }
    { type = "video_to_audio", video = "a.mp4" }                      # the picture is given whole
    { type = "audio_to_video", audio = "a.wav" }                      # the sound is given whole
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from ..caching.cache_file import CacheFile
from ..caching.encode_mask import latent_mask, step_mask
from ..conditions.given import Target, why_not_given
from ..conditions.settings import (
    SWITCHES,
    AudioCondition,
    AudioReference,
    FirstFrame,
    Mask,
    Prefix,
    Reference,
    SpatialCrop,
    Suffix,
    VideoCondition,
)
from ..conditions.trained import OF_AUDIO, OF_VIDEO, Trained, reference_sounds_of, references_of
from ..config import RunConfig
from ..dataset.reference import probe_picture
from ..dataset.sources import source_stat
from ..errors import ConfigError, DataError
from ..feed.loader import Sample
from ..media.frames import timeline
from ..media.info import MediaInfo
from ..media.sound_media import probe_sound
from ..settings import Settings, parse
from ..shapes import SPATIAL_FACTOR, TEMPORAL_FACTOR, Mode, StreamName, VideoShape, sampled_audio_steps


@dataclass(frozen=True)
class Shown:
    """One thing that a sample is given. `condition` says which tokens it gives; None: the whole stream.

    `path` is a medium or, if `cached`, latents of the caches; `mask` belongs to a condition of type mask. What a
    reference leaves open (None) is as the LoRA was trained. `beside`: it is shown beside the sample. `number` counts
    the references of a stream from 0.
    """

    stream: StreamName
    condition: VideoCondition | AudioCondition | None
    path: Path
    name: str
    mask: Path | None = None
    downscale: int | None = None
    temporal_scale: int | None = None
    switches: tuple[tuple[str, bool], ...] = ()
    beside: bool = False
    cached: bool = False
    number: int = 0

    @property
    def is_reference(self) -> bool:
        return isinstance(self.condition, (Reference, AudioReference))

    def form(self, trained: Trained) -> Trained:
        """How this reference is shown, where the LoRA was trained as `trained` says."""
        return Trained(
            self.downscale or trained.downscale,
            self.temporal_scale or trained.temporal_scale,
            trained.frames,
            trained.seconds,
            trained.sound.model_copy(update=dict(self.switches)),
            trained.more_frames,
        )


class ShownTable(Settings):
    """One table of `conditions` of a prompt."""

    type: Literal[
        "first_frame", "prefix", "suffix", "spatial_crop", "mask", "reference", "video_to_audio", "audio_to_video"
    ]
    image_or_video: Path | None = None
    video: Path | None = None
    audio: Path | None = None
    mask: Path | None = None
    num_frames: int | None = Field(default=None, ge=1)
    duration: float | None = Field(default=None, gt=0)
    spatial_region: tuple[int, int, int, int] | None = None
    downscale_factor: int | None = Field(default=None, ge=1, le=16)
    temporal_scale_factor: int | None = Field(default=None, ge=1, le=16)
    include_in_output: bool = False
    negative_positions: bool | None = None
    hide_from_video: bool | None = None
    hide_text: bool | None = None


MEDIA_OPTIONS = {"image": "--i", "reference": "--v", "reference_audio": "--ra"}
REPEATED = ("reference", "reference_audio")  # given once for each reference, in the order of training
# which keys a table of a type may have besides its medium; those of the sound alone
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None]] = {
    "first_frame": ((), None),
    "prefix": (("num_frames",), ("duration",)),
    "suffix": (("num_frames",), ("duration",)),
    "spatial_crop": (("spatial_region",), None),
    "mask": (("mask",), ("mask",)),
    "reference": (("downscale_factor", "temporal_scale_factor", "include_in_output"), SWITCHES),
    "video_to_audio": ((), None),
    "audio_to_video": ((), ()),
}
_NEEDED = {"spatial_crop": "spatial_region", "mask": "mask"}


def shown_by_option(setting: str, path: Path, shape: VideoShape) -> Shown:
    """What an option of a prompt line gives: "image" (--i), "reference" (--v) or "reference_audio" (--ra).

    Raises ConfigError where `path` holds no such medium.
    """
    name = f"{MEDIA_OPTIONS[setting]} {path.name}"
    if setting == "reference_audio":
        sound_seconds(path, name)
        return Shown(OF_AUDIO, AudioReference(), path, name)
    _probed(path, name, shape.fps)
    return Shown(OF_VIDEO, FirstFrame() if setting == "image" else Reference(), path, name)


def shown_tables(tables: Any, shape: VideoShape, base: Path) -> list[Shown]:
    """The `conditions` of a prompt that is drawn in `shape`; paths are seen from `base`. Raises ConfigError."""
    if not isinstance(tables, Sequence) or isinstance(tables, str) or not all(isinstance(t, Mapping) for t in tables):
        raise ConfigError("conditions: expected a list of tables, each with a type.")
    return [_shown_table(table, shape, base) for table in tables]


def _shown_table(given: Mapping[str, Any], shape: VideoShape, base: Path) -> Shown:
    kind = str(given.get("type"))
    name = f"conditions, {kind}"
    table = parse(ShownTable, given, name)
    of_video, of_audio = _KEYS[table.type]
    medium = "image_or_video" if table.type == "first_frame" else "audio" if table.type == "audio_to_video" else "video"
    media = [medium] if of_audio is None or medium == "audio" else ["video", "audio"]
    named = [key for key in ("image_or_video", "video", "audio") if getattr(table, key) is not None]
    if len(named) != 1 or named[0] not in media:
        raise ConfigError(f"{name}: needs {' or '.join(media)}, one of them, and not {', '.join(named) or 'none'}.")
    heard = named[0] == "audio"
    allowed = (of_audio or ()) if heard else of_video
    strange = [key for key in given if key not in ("type", *media, *allowed)]
    if strange:
        known = ", ".join(allowed) or "nothing more"
        raise ConfigError(f"{name}: {strange[0]} has no meaning with {named[0]}. Known: {known}.")
    if (needed := _NEEDED.get(table.type)) and getattr(table, needed) is None:
        raise ConfigError(f"{name}: {needed} is missing.")
    path = _found(getattr(table, named[0]), base, name)
    name = f"{name} {path.name}"
    mask = None if table.mask is None else _found(table.mask, base, name)
    if heard:
        return _heard(table, path, mask, shape, name)
    return _seen(table, path, mask, shape, name)


def _seen(table: ShownTable, path: Path, mask: Path | None, shape: VideoShape, name: str) -> Shown:
    media = _probed(path, name, shape.fps)
    target = Target.video(shape.latent(), shape.fps)
    if table.type == "reference":
        return Shown(
            OF_VIDEO, Reference(), path, name, None, table.downscale_factor, table.temporal_scale_factor,
            beside=table.include_in_output,
        )  # fmt: skip
    condition: VideoCondition | None
    if table.type == "first_frame":
        condition = FirstFrame()
    elif table.type in ("prefix", "suffix"):
        latents = _latents_of(table, len(picks(media, shape.fps)), name)
        kind = Prefix if table.type == "prefix" else Suffix
        condition = kind(temporal_boundary=(latents, latents))
    else:
        need_frames(media, shape, name)
        if table.type == "spatial_crop":
            assert table.spatial_region is not None
            condition = parse(SpatialCrop, {"spatial_region": list(table.spatial_region)}, name)
        elif table.type == "mask":
            assert mask is not None
            _probed(mask, f"{name}, mask", shape.fps)
            condition = Mask()
        else:
            condition = None
    if condition is not None and (reason := why_not_given([condition], target)):
        raise ConfigError(f"{name}: the sample {reason}.")
    return Shown(OF_VIDEO, condition, path, name, mask)


def _latents_of(table: ShownTable, frames: int, name: str) -> int:
    """How many latent frames a prefix or suffix gives, of a video with `frames` frames at the rate of the sample."""
    prefix = table.type == "prefix"
    count = table.num_frames
    if count is None:
        latents = 1 + (frames - 1) // TEMPORAL_FACTOR if prefix else (frames - 1) // TEMPORAL_FACTOR
    elif count % TEMPORAL_FACTOR != (1 if prefix else 0):
        raise ConfigError(
            f"{name}: num_frames is {count}, and a {table.type} has 8n{'+1' if prefix else ''} frames. Use "
            f"{(1 if prefix else 0) + max(1, round(count / TEMPORAL_FACTOR)) * TEMPORAL_FACTOR}."
        )
    else:
        latents = 1 + (count - 1) // TEMPORAL_FACTOR if prefix else count // TEMPORAL_FACTOR
    # the first latent is one frame, so the last n of a video are made from 8 n + 1 frames
    needed = 1 + TEMPORAL_FACTOR * (latents - 1) if prefix else 1 + TEMPORAL_FACTOR * latents
    if latents < 1 or frames < needed:
        raise ConfigError(
            f"{name}: it has {frames} frames at the rate of the sample, and {max(needed, 9)} are needed. Use a longer "
            "video, or a smaller num_frames."
        )
    return latents


def _heard(table: ShownTable, path: Path, mask: Path | None, shape: VideoShape, name: str) -> Shown:
    seconds = sound_seconds(path, name)
    steps = sampled_audio_steps(shape.seconds)
    if table.type == "reference":
        switches = tuple((key, value) for key in SWITCHES if (value := getattr(table, key)) is not None)
        return Shown(OF_AUDIO, AudioReference(), path, name, switches=switches)
    if table.type == "audio_to_video":
        return Shown(OF_AUDIO, None, path, name)
    condition: AudioCondition
    if table.type == "mask":
        assert mask is not None
        if mask.suffix.lower() != ".json":
            sound_seconds(mask, f"{name}, mask")
        return Shown(OF_AUDIO, Mask(), path, name, mask)
    length = table.duration or seconds
    if length > seconds + 1 / Target(steps).units(1.0):
        raise ConfigError(f"{name}: lasts {seconds:.2f} s, and duration asks for {length:g} s. Use a smaller duration.")
    kind = Prefix if table.type == "prefix" else Suffix
    condition = kind(seconds=(length, length))
    if reason := why_not_given([condition], Target(steps)):
        raise ConfigError(f"{name}: the sound of the sample {reason}.")
    return Shown(OF_AUDIO, condition, path, name)


def shown_of_clip(sample: Sample, run: RunConfig) -> tuple[Shown, ...]:
    """What the conditions of `run` give of a cached clip, whatever their coins; each length is the longest."""
    name = f"the clip {sample.key}"
    shown: list[Shown] = []
    if not run.video.generated:
        shown.append(Shown(OF_VIDEO, None, sample.latent_path, name, cached=True))
    elif run.sample.validation_first_frame and sample.shape.frames > 1:
        shown.append(Shown(OF_VIDEO, FirstFrame(), sample.latent_path, name, cached=True))
    scale = sample.reference_temporal_scale
    for one, path in zip(references_of(run.video.conditions), sample.reference_paths, strict=False):
        if path is not None:
            shown.append(Shown(OF_VIDEO, one, path, name, temporal_scale=scale, cached=True))
    for one in run.video.conditions:
        if isinstance(one, Mask) and sample.mask_path is not None and run.video.generated:
            shown.append(Shown(OF_VIDEO, one, sample.latent_path, name, sample.mask_path, cached=True))
        elif not isinstance(one, (Reference, Mask, FirstFrame)) and run.video.generated:
            shown.append(Shown(OF_VIDEO, one, sample.latent_path, name, cached=True))
    if run.model.mode == "video" or sample.audio_path is None or sample.shape.frames == 1:
        return tuple(shown)
    if not run.audio.generated:
        shown.append(Shown(OF_AUDIO, None, sample.audio_path, name, cached=True))
    for one, path in zip(reference_sounds_of(run.audio.conditions), sample.reference_audio_paths, strict=False):
        if path is not None:
            shown.append(Shown(OF_AUDIO, one, path, name, cached=True))
    for one in run.audio.conditions:
        if isinstance(one, Mask) and sample.audio_mask_path is not None and run.audio.generated:
            shown.append(Shown(OF_AUDIO, one, sample.audio_path, name, sample.audio_mask_path, cached=True))
        elif not isinstance(one, (AudioReference, Mask)) and run.audio.generated:
            shown.append(Shown(OF_AUDIO, one, sample.audio_path, name, cached=True))
    return tuple(shown)


def require_given(shown: Sequence[Shown], shape: VideoShape, mode: Mode, trained: Trained) -> None:
    """Raise ConfigError where a model of `mode` cannot draw a sample of `shape` that is given `shown`."""
    for one in shown:
        if mode not in (one.stream, "av") and not isinstance(one.condition, FirstFrame):
            raise ConfigError(f"{one.name}: model.mode is {mode}, which has no {one.stream}. Set model.mode to av.")
        if one.condition is None and mode != "av":
            raise ConfigError(f"{one.name}: it gives all there is in mode {mode}. Set model.mode to av.")
        if isinstance(one.condition, FirstFrame) and shape.frames == 1 and mode != "audio":
            raise ConfigError(f"{one.name}: a sample of one frame is given whole by it. Ask for more frames.")
        if one.stream == OF_AUDIO and mode == "av" and shape.frames == 1:
            raise ConfigError(f"{one.name}: a sample of one frame has no sound. Ask for more frames.")
        if one.stream == OF_VIDEO and one.is_reference and not one.cached:
            factor = one.form(trained).downscale
            if shape.width % (factor * SPATIAL_FACTOR) or shape.height % (factor * SPATIAL_FACTOR):
                raise ConfigError(
                    f"{one.name}: a reference {factor} times smaller than {shape.width}x{shape.height} is not made of "
                    f"whole latents of {SPATIAL_FACTOR} pixels. Use width and height that "
                    f"{factor * SPATIAL_FACTOR} divides."
                )
    if {one.stream for one in shown if one.condition is None} == {OF_VIDEO, OF_AUDIO}:
        raise ConfigError("conditions: picture and sound are both given whole, so nothing is left to draw.")
    for stream in (OF_VIDEO, OF_AUDIO):
        for which in ("first_frame", "mask", "prefix", "suffix", "whole"):
            found = [one for one in shown if one.stream == stream and getattr(one.condition, "type", "whole") == which]
            if len(found) > 1 and (which in ("first_frame", "mask") or not found[1].cached):  # clips have several
                raise ConfigError(f"{found[1].name}: there is another {which} of the {stream} already. Keep one.")
        parts = [one.condition for one in shown if one.stream == stream and one.condition is not None]
        frames = shape.latent() if stream == OF_VIDEO else None
        target = Target.video(frames, shape.fps) if frames else Target(sampled_audio_steps(shape.seconds))
        if parts and (reason := why_not_given(parts, target)):
            raise ConfigError(f"conditions: the {'sample' if frames else 'sound of the sample'} {reason}.")
    for one in shown:
        if one.mask is not None and not one.cached:
            _require_both_colours(one, shape)


def _require_both_colours(one: Shown, shape: VideoShape) -> None:
    """Raise ConfigError where the mask of `one` gives all of a sample, or nothing."""
    try:
        mask = mask_of(one, shape)
    except (DataError, OSError) as error:
        raise ConfigError(f"{one.name}: {error}") from None
    if bool(mask.any()) and not bool(mask.all()):
        return
    says = "white all over, so nothing is left to make" if bool(mask.any()) else "darker than half, so it gives nothing"
    assert one.mask is not None
    raise ConfigError(f"{one.name}: its mask {one.mask.name} is {says}. White is given, black is made.")


def mask_of(one: Shown, shape: VideoShape) -> Tensor:
    """The mask of a condition of type mask, bool [F, H, W] or [T], of a sample of `shape`. Raises DataError."""
    assert one.mask is not None, one
    if one.cached:
        return CacheFile(one.mask).mask()
    if one.stream == OF_AUDIO:
        steps = sampled_audio_steps(shape.seconds)
        return step_mask(one.mask, 0.0, shape.seconds, steps).bool()
    media, own = probed_picture(one.mask, shape.fps), probed_picture(one.path, shape.fps)
    line = picks(media, shape.fps)
    frames = [line[min(index, len(line) - 1)] for index in range(shape.frames)]
    return latent_mask(media, frames, own, shape.latent()).bool()


def picks(media: MediaInfo, fps: float) -> Sequence[int]:
    """The frame of `media` that is shown at each frame of a sample of `fps`; of a picture, it alone."""
    if media.kind == "image":
        return (0,)
    return timeline(media.path.name, media.times, media.fps or fps, fps).picks


def need_frames(media: MediaInfo, shape: VideoShape, name: str) -> None:
    """Raise ConfigError where a video is shorter than the sample; a picture stands still as long as it takes."""
    there = len(picks(media, shape.fps))
    if media.kind != "image" and there < shape.frames:
        raise ConfigError(
            f"{name}: it has {there} frames at {shape.fps:g} a second, and the sample {shape.frames}. Use a longer "
            "video, or fewer frames."
        )


def probed_picture(path: Path, fps: float) -> MediaInfo:
    """What the picture, video or folder of frames `path` holds. Raises DataError."""
    return _probe(path, *source_stat(path), fps)


def sound_seconds(path: Path, name: str) -> float:
    """How long a sound is. Raises ConfigError where there is none in `path`."""
    try:
        return _seconds(path, *source_stat(path))
    except (DataError, OSError) as error:
        raise ConfigError(f"{name}: {error}") from None


def _probed(path: Path, name: str, fps: float) -> MediaInfo:
    try:
        return probed_picture(path, fps)
    except (DataError, OSError) as error:
        raise ConfigError(f"{name}: {error}") from None


@functools.lru_cache(maxsize=256)
def _probe(path: Path, size: int, mtime_ns: int, fps: float) -> MediaInfo:
    return probe_picture(path, fps)


@functools.lru_cache(maxsize=256)
def _seconds(path: Path, size: int, mtime_ns: int) -> float:
    return probe_sound(path).duration


def _found(path: Path, base: Path, name: str) -> Path:
    path = path if path.is_absolute() else base / path
    if not path.exists():
        raise ConfigError(f"{name}: {path} does not exist. Correct the path, which is seen from the prompt file.")
    return path
