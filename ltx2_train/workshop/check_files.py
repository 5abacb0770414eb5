"""What a check reads of one file, and what it says about that file alone. Nothing here raises for a bad file."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..caching.encode_mask import (
    BEHIND_END,
    LIKE_A_PICTURE,
    has_spans_behind,
    is_like_a_picture,
    picture_mask,
    sound_mask,
)
from ..dataset.captions import read_caption
from ..dataset.companions import named_reference
from ..dataset.dataset_file import DatasetSettings
from ..dataset.plan import Item
from ..dataset.windows import FILE_SILENT, NO_SOUND, SILENCED
from ..errors import DataError
from ..media.asked import OF_SOUND
from ..media.buckets import cover
from ..media.frames import BY_TIME
from ..media.images import OVER_BLACK, picture_doubts
from ..media.info import MediaInfo
from ..media.sound import CLIPPED_SHARE, PADDED_SECONDS, SILENCE_DB, UNSAID, clipped_share, rms_db, to_stereo
from ..media.sound_media import AUDIO_SUFFIXES, NOT_NUMBERS, read_sound
from ..media.video import check_frames, read_frames
from .check_looks import black_bars, glance, still_window
from .check_report import Finding, FindingLevel
from .check_sounds import HEARD_SECONDS, SHORT_VOICE, check_end, check_whole, heard_of, of_reference_sounds

LONGEST_CAPTION = 200  # words; what the guides call the limit
CROP_SHARE = 0.2  # more than this of a picture cut away deserves a look
UPSCALE = 1.25
LOST_IN_MIX = 15.0  # dB; the dialogue of 5.1 loses 11
DARK_LEVEL = 16  # of 255; no place of a picture is brighter
COLOURED, COLOURED_SHARE = 64, 0.01  # how far channels lie apart, of 255, and in how many pixels
MEANT_SILENT = (FILE_SILENT, SILENCED)
THUMB = (16, 16)
SLOW = 0.6  # of the rate of training; below it frames are seen to be repeated
LOOKS = {
    "bars": "Crop them away: they are learned with the rest.",
    "still": "Cut it off, or take the clip out: a picture that stands still is learned with the rest.",
}
TOO_SHORT_FOR = ("min_seconds", "min_frames", "resolution_buckets", "target_frames")
BY_PREFIX = (
    ("no caption", "no-caption", "Write one, or let `ltx2-train data caption` do it."),
    ("empty caption", "no-caption", ""),
    ("too short", "too-short", "Use a longer one, or lower {}."),
    ("too long", "too-long", "Cut it with `ltx2-train data cut`, or raise max_seconds."),
    ("no spoken segment", "too-short", ""),
    ("no reference", "reference", "Add it, or remove the target."),
    ("its name without", "same-stem", ""),
    ("is listed twice", "same-stem", ""),
    ("its name is", "name", ""),
    ("its name ends", "name", ""),
    ("is a link", "link", "Remove the link, or let it point at a file."),
    ("is a folder", "not-a-file", "Rename it, or move its media up."),
    ("is not a file", "not-a-file", "Move it elsewhere."),
    ("no mask", "mask", ""),
    ("two files", "same-stem", ""),
    ("damaged", "damaged", ""),
    ("is damaged", "damaged", ""),
    ("is a HEIC", "unread", ""),
    ("is a TIFF", "unread", ""),
    ("is a raw", "unread", ""),
)


@dataclass(frozen=True, eq=False)
class FileFacts:
    """What was read of a file that is trained on: its first frame [16, 16, 3], loudness in dB, share clipped.

    `level` is None where its sound is not used or there is none.
    """

    items: tuple[Item, ...]
    first_frame: np.ndarray | None = None
    level: float | None = None
    clipped: float = 0.0
    sound_error: str = ""
    picture_error: str = ""
    caption_warning: str = ""
    sound_short: float = 0.0  # seconds that its sound lacks
    sound_damaged: int = 0  # parts of it that cannot be decoded
    loud_track: int = 0  # where the sound is silence, a track of the file that is not
    lost_in_mix: float = 0.0  # dB by which its loudest channel is quieter in the mix to stereo, where that is much
    beside: tuple[tuple[FindingLevel, str], ...] = ()  # what is wrong with its references and its mask
    looks: tuple[tuple[str, str], ...] = ()  # (rule, what is said) of a look at frames
    doubts: tuple[str, ...] = ()  # what all bytes of a picture tell, beyond its header

    @property
    def path(self) -> Path:
        return self.items[0].source.path

    @property
    def media(self) -> MediaInfo:
        return self.items[0].source.media


def examine(items: Sequence[Item], caption_path: Path | None) -> FileFacts:
    """Decode the first frame, at most a minute of sound, and the bytes of the caption. Safe in a thread."""
    item = items[0]
    first_frame = picture_error = sound_error = caption_warning = None
    looks: list[tuple[str, str]] = []
    level, clipped, lost, short, damaged, loud, doubts = None, 0.0, 0.0, 0.0, 0, 0, []
    if item.kind != "audio":
        try:
            if item.source.media.kind == "image":
                thumb, used = glance(item, THUMB)
            else:
                thumb, used = read_frames(item.source.media, item.picks[:1], THUMB)[0], None
            first_frame = thumb.astype(np.float32)
            looks = [("bars", black_bars(item, used)), ("still", still_window(items))]
            doubts = picture_doubts(item.source.path) if item.kind == "image" else []
            if item.kind == "video" and not item.source.media.whole:
                for picks in _ranges(items):
                    check_frames(item.source.media, picks)
        except DataError as error:
            picture_error = str(error)
    if item.sound is not None:
        try:
            sound = heard_of(items)
            mixed = to_stereo(sound)
            level, clipped = rms_db(mixed), clipped_share(sound.samples)
            lost = max(rms_db(channel[None]) for channel in sound.samples) - level
            short, damaged = sound.missing / sound.rate, sound.damaged
            loud = _loud_track(item) if level < SILENCE_DB else 0
            if item.sound.path != item.source.path:
                check_end(item.sound.path)
        except DataError as error:
            sound_error = str(error)
    if caption_path is not None:
        try:
            caption_warning = read_caption(caption_path)[1]
        except DataError:
            pass  # the plan has said so
    return FileFacts(
        tuple(items),
        first_frame,
        level,
        clipped,
        sound_error or "",
        picture_error or "",
        caption_warning or "",
        short,
        damaged,
        loud,
        lost if lost > LOST_IN_MIX else 0.0,
        tuple(_of_companions(items)),
        tuple((rule, told) for rule, told in looks if told),
        tuple(doubts),
    )


def _of_companions(items: Sequence[Item]) -> Iterator[tuple[FindingLevel, str]]:
    """What is wrong with the files beside a medium, as far as the plan cannot know it."""
    item = items[0]
    pictures = [(named_reference(number), one.media) for number, one in enumerate(item.references)]
    for role, media in [*pictures, ("mask", item.mask_media)]:
        try:
            if media is not None and (media.kind == "image" or not media.whole):
                check_frames(media, range(media.frames))
                for doubt in picture_doubts(media.path) if media.path.is_file() and media.kind == "image" else []:
                    yield "amber", f"its {role} {media.path.name} {doubt}"
        except DataError as error:
            yield "red", f"its {role}: {error}".rstrip(".")
    with contextlib.suppress(DataError):  # said above
        grey: list[float] = []
        given = [] if item.mask is None else [picture_mask(item.mask, one, one.dataset.entry, grey) for one in items]
        if is_like_a_picture(grey):
            yield "amber", f"its mask is {LIKE_A_PICTURE}"
        if full := sum(bool(one.all()) for one in given):
            where = _of(full, given)
            yield "red", f"its mask is white all over{where}: everything is given, and nothing is left to make"
        elif given and not any(bool(one.any()) for one in given):
            levels = read_frames(item.mask_media, [0]) if item.mask_media is not None else np.zeros(1)
            yield "amber", f"its mask {_dark(levels)}: nothing is given"
    if item.audio_mask is not None and item.sound is not None:
        try:
            if item.audio_mask.suffix.lower() in AUDIO_SUFFIXES:
                check_whole(item.audio_mask)
            heard = [sound_mask(item.audio_mask, one) for one in items if one.sound is not None]
            if has_spans_behind(item.audio_mask, item):
                yield "amber", f"the mask of its sound has {BEHIND_END}"
            if full := sum(bool(one.all()) for one in heard):
                yield "red", f"the mask of its sound gives all of it{_of(full, heard)}, and nothing is left to make"
            elif not any(bool(one.any()) for one in heard):
                yield "amber", "the mask of its sound gives nothing: level 1 is given, or a span in seconds"
        except DataError as error:
            yield "red", f"the mask of its sound: {error}".rstrip(".")
    yield from of_reference_sounds(items)


def _dark(levels: np.ndarray) -> str:
    """What a mask that gives nothing is, by the levels of its first frame."""
    if levels.shape[-1] == 3 and (np.ptp(levels, axis=-1) > COLOURED).mean() > COLOURED_SHARE:
        return "is coloured, and its brightness stays below one half nearly everywhere; white is given"
    if levels.max():
        return f"is darker than one half nearly everywhere, and its levels reach {levels.max()} of 255"
    return "is black all over"


def _of(count: int, windows: Sequence[object]) -> str:
    """ " in 2 of its 5 windows"; "" where it is so in all of them."""
    return "" if count == len(windows) else f" in {count} of its {len(windows)} windows"


def _loud_track(item: Item) -> int:
    """A sound track of a file that is no silence; 0 where there is none, or no choice."""
    sound, tracks = item.sound, item.source.media.tracks
    if sound is None or len(tracks) < 2 or sound.path != item.source.path:
        return 0
    for number in range(1, len(tracks) + 1):
        try:
            heard = read_sound(sound.path, sound.start, min(HEARD_SECONDS, sound.seconds), sound.of_clip, (number,))
        except DataError:
            continue
        if rms_db(to_stereo(heard)) >= SILENCE_DB:
            return number
    return 0


def _ranges(items: Sequence[Item]) -> list[range]:
    """The source frames of all windows of a clip, each once."""
    spans: list[list[int]] = []
    for first, last in sorted((item.picks[0], item.picks[-1]) for item in items):
        if spans and first <= spans[-1][1] + 1:
            spans[-1][1] = max(last, spans[-1][1])
        else:
            spans.append([first, last])
    return [range(first, last + 1) for first, last in spans]


def file_findings(dataset: str, facts: FileFacts, entry: DatasetSettings) -> list[Finding]:
    """What is to be said about one file that is trained on."""
    findings: list[Finding] = []
    first = facts.items[0]

    def say(level, rule: str, reason: str, remedy: str = "") -> None:
        findings.append(Finding(level, rule, dataset, reason, remedy, facts.path))

    if facts.picture_error:
        say("red", "unreadable", facts.picture_error.removeprefix(f"{facts.path}: ").rstrip("."))
    if facts.sound_error:
        # a clip trains without its sound; a recording is nothing without it
        level = "red" if facts.items[0].kind == "audio" or NOT_NUMBERS in facts.sound_error else "amber"
        reason = facts.sound_error.removeprefix(f"{facts.path}: ").removeprefix(f"{facts.path} ")
        say(level, "unreadable", f"its sound: {reason}".rstrip("."))
    if first.kind == "video" and first.sound is None and first.silence not in MEANT_SILENT:
        say("amber", "sound-gone", f"{NO_SOUND}: {first.silence}")
    if facts.level is not None and facts.level < SILENCE_DB:
        remedy = 'Use another take, or audio_source = "none" for silent clips.'
        if facts.loud_track:
            remedy = f"Its track {facts.loud_track} is not: set audio_track = {facts.loud_track}."
        loud = ", and audio_normalize leaves it as it is" if entry.audio_normalize else ""
        say("amber", "silent", f"its sound is silence{loud}", remedy)
    if first.kind == "audio" and (seconds := facts.media.duration) < SHORT_VOICE:
        say(
            "amber",
            "too-short",
            f"lasts {seconds:.2f} s, in which little can be heard",
            "Take it out, or set min_seconds.",
        )
    if facts.lost_in_mix:
        reason = "lies in a channel that the mix to stereo leaves out"
        if not math.isinf(facts.lost_in_mix):
            reason = f"is {facts.lost_in_mix:.0f} dB quieter in the mix to stereo than in its loudest channel"
        say("amber", "mix", f"its sound {reason}", "Mix it to stereo yourself.")
    if facts.sound_short > PADDED_SECONDS:
        say("amber", "short-sound", f"its sound lacks {facts.sound_short:.2f} s of what is used; silence is added")
    if facts.sound_damaged:
        level = "red" if facts.items[0].kind == "audio" else "amber"
        say(level, "damaged", f"{facts.sound_damaged} parts of its sound are damaged and silenced", "Copy it again.")
    if facts.clipped > CLIPPED_SHARE:
        say("amber", "clipped", f"{facts.clipped:.1%} of its sound is at full scale", "Use a cleaner recording.")
    for rule, told in facts.looks:
        say("amber", rule, told, LOOKS[rule])
    if first.kind == "video" and (rate := first.source.timeline.source_fps) < SLOW * first.fps:
        remedy = "Motion will stutter: set target_fps near its rate, or take the clip out."
        say("amber", "fps-mix", f"has {rate:.4g} frames a second, each shown {first.fps / rate:.1f} times", remedy)
    for level, reason in facts.beside:
        say(level, "reference", reason)
    if facts.caption_warning:
        say("amber", "encoding", facts.caption_warning.split(": ", 1)[-1].rstrip("."))
    words = len(facts.items[0].caption.split())
    if words > LONGEST_CAPTION:
        say("amber", "long-caption", f"its caption has {words} words", f"Keep it under {LONGEST_CAPTION}.")
    for note in facts.items[0].source.timeline.notes:
        if note.endswith(BY_TIME):
            reason = note.removeprefix(f"{facts.path.name} ")
            say("amber", "fps-mix", reason, "Export it at one rate, or look at the preview.")
    return [*findings, *_remark_findings(dataset, facts), *_size_findings(dataset, facts, entry)]


def _remark_findings(dataset: str, facts: FileFacts) -> Iterator[Finding]:
    """What reading a file has told of it."""
    first = facts.items[0]

    def told(level, rule: str, reason: str, remedy: str = "") -> Finding:
        return Finding(level, rule, dataset, reason, remedy, facts.path)

    clear = OVER_BLACK in facts.media.remarks  # which makes it as dark
    if first.kind == "image" and not clear and facts.first_frame is not None and facts.first_frame.max() <= DARK_LEVEL:
        yield told("amber", "picture", "its picture is nearly black, as where 10 or 12 bits lie in 16", "Look at it.")
    for doubt in facts.doubts:
        yield told("amber", "picture", doubt)
    for remark in facts.media.remarks:
        if remark.startswith("is damaged"):
            yield told("red", "damaged", remark.rstrip("."))
        elif remark.startswith(OF_SOUND):
            if first.sound is not None and first.sound.path == facts.path:
                yield told("amber", "sound", remark)
        else:
            of_sound = "too-long" if remark.startswith("lasts") else "mix" if remark.startswith(UNSAID) else "damaged"
            yield told("amber", "picture" if first.kind != "audio" else of_sound, remark)


def _size_findings(dataset: str, facts: FileFacts, entry: DatasetSettings) -> list[Finding]:
    item, media = facts.items[0], facts.media
    if item.kind == "audio":
        return []
    findings = []
    shape = f"{media.width}x{media.height} becomes {item.width}x{item.height}"
    share = lost_frame(item)
    if share > CROP_SHARE:
        remedy = "Crop it yourself to what matters."
        if entry.resolution_buckets:
            remedy = "Add a size of its shape to resolution_buckets, or crop it yourself to what matters."
        elif not entry.enable_bucket:
            remedy = "Set enable_bucket = true, or crop it yourself to what matters."
        findings.append(
            Finding("amber", "odd-size", dataset, f"{shape}: {share:.0%} is cropped away", remedy, facts.path)
        )
    scale = max(item.width / media.width, item.height / media.height)
    if scale > UPSCALE:
        remedy = "Use a larger source, a lower resolution, or bucket_no_upscale = true."
        findings.append(
            Finding("amber", "odd-size", dataset, f"{shape}: enlarged {scale:.1f} times", remedy, facts.path)
        )
    return findings


def lost_frame(item: Item) -> float:
    """Share of the picture that the crop to its bucket takes away."""
    media = item.source.media
    wide, high, _, _ = cover(media.width, media.height, (item.width, item.height))
    return 1 - item.width * item.height / (wide * high)


def lost_clip(items: Sequence[Item]) -> float | None:
    """Share of a medium's length that is in none of its samples; None for images."""
    item = items[0]
    if item.kind == "image":
        return None
    if item.kind == "audio":
        used = sum(part.sound.seconds for part in items if part.sound is not None)
        return max(0.0, 1 - used / item.source.media.duration)
    frames = item.source.timeline.frames
    used = {frame for part in items for frame in range(part.window.start, part.window.start + part.window.count)}
    return max(0.0, 1 - len([frame for frame in used if frame < frames]) / frames)


def left_out_finding(dataset: str, path: Path, reason: str) -> Finding:
    """The finding for a file that the trainer leaves out."""
    reason = reason.removeprefix(f"{path} ").removeprefix(f"{path}: ")
    for prefix, rule, remedy in BY_PREFIX:
        if reason.startswith(prefix):
            broken = next((name for name in TOO_SHORT_FOR if name in reason), "")
            return Finding("red", rule, dataset, reason.rstrip("."), remedy.format(broken), path)
    return Finding("red", "unreadable", dataset, reason.rstrip("."), "", path)
