"""Long videos -> clips to train on, cut at scenes or by seconds, in a folder of their own.

The sources are only read. What was found in them is kept in `cut.json` beside the clips, so that a run that was stopped
looks for no scene twice and writes only the clips that are missing.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from ..dataset.outputs import no_folder
from ..errors import ConfigError, DataError
from ..events import Events, shielded
from ..files import parse_json, write_text
from ..media.info import MediaInfo
from ..media.scenes import scene_starts
from ..media.sound_media import AUDIO_SUFFIXES
from ..media.video import VIDEO_SUFFIXES, probe_media
from ..threads import heeding
from .cut_video import piece_seconds, read_index, write_piece
from .passed_over import tell_passed_over

NOTES = "cut.json"
SHORTEST_SECONDS = 1.0
ROUNDING = 1e-3  # seconds, and a share of a frame: what binary fractions of times may be off by


@dataclass(frozen=True)
class CutClip:
    """A clip that was written. `start` counts from the first frame of `source`; `copied`: nothing was encoded again."""

    path: Path
    source: Path
    start: float
    seconds: float
    copied: bool


@dataclass(frozen=True)
class CutReport:
    """What a cut left: `kept` clips were there already, `short` pieces were left out, `failed` videos and why."""

    clips: tuple[CutClip, ...]
    kept: int = 0
    short: int = 0
    failed: tuple[tuple[Path, str], ...] = ()

    def text(self) -> str:
        lines = [
            f"{clip.path.name}  {clip.start:.2f} s + {clip.seconds:.2f} s of {clip.source.name}, "
            f"{'copied' if clip.copied else 'encoded'}"
            for clip in self.clips
        ]
        copied = sum(clip.copied for clip in self.clips)
        seconds = sum(clip.seconds for clip in self.clips)
        written, again = len(self.clips), len(self.clips) - copied
        lines.append(f"{written} clips written ({seconds:.1f} s; {copied} copied, {again} encoded).")
        if self.kept:
            lines.append(f"{self.kept} clips were there already.")
        if self.short:
            lines.append(f"{self.short} pieces were shorter than the shortest clip wanted (--min) and left out.")
        lines += [f"failed: {reason}" for _, reason in self.failed]
        return "\n".join(lines)


def cut_videos(
    source: Path | str,
    out: Path | str,
    *,
    seconds: float | None = None,
    shortest: float | None = None,
    longest: float | None = None,
    events: Events | None = None,
) -> CutReport:
    """Cut a video, or all in a folder, into `out`/NAME_0001.mp4 and so on, with their sound; what is there is kept.

    `seconds`: into pieces of that length; None: at scenes, which needs PySceneDetect. Pieces below `shortest` seconds
    (default 1, or `seconds` where that is less) are left out; scenes above `longest` are cut into equal parts. A video
    that cannot be used is named in the report and the others go on. Raises ConfigError, DataError, Stopped.
    """
    source, out, events = Path(source), Path(out), shielded(events)
    settings = {"seconds": seconds, "shortest": _lengths(seconds, shortest, longest), "longest": longest}
    videos = _videos(source)
    refuse_output(source, out, videos)
    tell_passed_over(source, videos, ("video", "audio"), events, out)
    notes = read_notes(out / NOTES)
    clips: list[CutClip] = []
    failed: list[tuple[Path, str]] = []
    kept = short = 0
    with heeding(events):
        for video in videos:
            try:
                events.check_stop()
                info = probe_media(video)
                _tell(info, events)
                pieces, left_out = _pieces(info, settings, notes, out, events)
                short += left_out
                index = None
                events.stage(f"cut {video.name}", len(pieces))
                for number, (first, stop) in enumerate(pieces, 1):
                    path = out / f"{video.stem}_{number:04d}.mp4"
                    if path.exists():
                        kept += 1
                        if reason := _unlike(path, stop - first):
                            failed.append((video, spoilt(path, reason)))
                            events.message(failed[-1][1], "warning")
                    else:
                        events.check_stop()
                        index = index or read_index(info)
                        begin, end = piece_seconds(info, first, stop)
                        try:
                            copied = write_piece(info, index, first, stop, path, events)
                        except DataError as error:
                            failed.append((video, f"{path.name} is not written: {error}"))
                            events.message(failed[-1][1], "warning")
                        else:
                            clips.append(CutClip(path, video, begin - info.times[0], end - begin, copied))
                    events.progress(number, len(pieces), path.name)
            except DataError as error:
                failed.append((video, str(error)))
                events.message(str(error), "warning")
    return CutReport(tuple(clips), kept, short, tuple(failed))


def _tell(info: MediaInfo, events: Events) -> None:
    """Say what of a video its clips will not have, and what is wrong with it."""
    if len(info.tracks) > 1:
        tracks = "; ".join(info.tracks)
        get = "the two as left and right" if info.pair else "the preferred one"
        events.message(f"{info.path.name} has {len(info.tracks)} sound tracks ({tracks}); clips get {get}.")
    for remark in info.remarks:
        events.message(f"{info.path.name} {remark.rstrip('.')}.", "warning")


def spoilt(path: Path, reason: str) -> str:
    """What is said of a clip that an earlier cut should have left whole."""
    return f"{path} was there already, and {reason}. Delete it, and cut again."


def _unlike(path: Path, frames: int) -> str:
    """Why a clip that is there is none of `frames` frames; "" where it is."""
    try:
        found = probe_media(path).frames
    except DataError:
        return "it cannot be read"
    return "" if found == frames else f"it has {found} frames, not {frames}"


def _lengths(seconds: float | None, shortest: float | None, longest: float | None) -> float:
    """The shortest piece wanted. Raises ConfigError where the lengths do not go together."""
    for name, value in (("--seconds", seconds), ("--min", shortest), ("--max", longest)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name}: {value:g} is not a length. Give seconds above 0.")
    if seconds is not None and longest is not None:
        raise ConfigError("--max is for scenes; with --seconds no clip is longer than that. Leave one of them out.")
    most = seconds if seconds is not None else longest
    if shortest is None:
        return SHORTEST_SECONDS if most is None else min(SHORTEST_SECONDS, most)
    if most is not None and shortest > most:
        name = "--max" if seconds is None else "--seconds"
        raise ConfigError(f"--min: {shortest:g} s is more than {name} {most:g} s, so no clip fits. Lower --min.")
    return shortest


def _videos(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix.lower() in AUDIO_SUFFIXES:
            raise DataError(f"{source} is a recording, which is cut at its pauses. Use --speech.", source)
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist. Name a video, or a folder of videos.", source)
    videos = [
        path
        for path in sorted(source.iterdir())
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if not videos:
        raise DataError(f"{source} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))}). Name another folder.", source)
    owners: dict[str, Path] = {}
    for video in videos:
        owner = owners.setdefault(video.stem.casefold(), video)
        if owner is not video:
            raise DataError(
                f"{video.name} and {owner.name} in {source} would give clips of the same names. Rename one.", video
            )
    return videos


def refuse_output(source: Path, out: Path, videos: Sequence[Path]) -> None:
    """Raise ConfigError where the pieces would lie among their sources, or below a file."""
    if why := no_folder(out):
        raise ConfigError(f"--out: {out} {why}. Name a folder for the clips.")
    folder = source if source.is_dir() else source.parent
    if out.resolve() == folder.resolve() or any(out.resolve() == video.resolve() for video in videos):
        raise ConfigError(
            f"--out: {out} is the folder of the source, where clips and sources would be mixed up. "
            f"Name another one, for example {folder / 'clips'}."
        )


def _pieces(
    info: MediaInfo, settings: dict[str, Any], notes: dict[str, Any], out: Path, events: Events
) -> tuple[list[tuple[int, int]], int]:
    """Frames [first, stop) of each clip and how many were too short; from the notes of a run before where they are."""
    name = info.path.stem
    wanted = {"file": info.path.name, "bytes": info.path.stat().st_size, "frames": info.frames, **settings}
    noted = notes.get(name)
    if noted is not None:
        was = {key: noted.get(key) for key in wanted}
        if was != wanted:
            changed = ", ".join(f"{key} was {was[key]}, is {wanted[key]}" for key in wanted if was[key] != wanted[key])
            raise DataError(
                f"{info.path.name} was cut into {out} in another way ({changed}). Choose another --out, or delete "
                f"{name}_*.mp4 and {NOTES} there.",
                info.path,
            )
        return [(first, stop) for first, stop in noted["pieces"]], noted["short"]
    there = out / f"{name}_0001.mp4"
    if there.exists():
        raise DataError(
            f"{there} is there, but {NOTES} does not say that it was cut from {info.path.name}. Choose another --out.",
            info.path,
        )
    if settings["seconds"] is None:
        events.stage(f"find scenes in {info.path.name}", info.frames)
        starts, longest = scene_starts(info, events), settings["longest"]
    else:
        starts, longest = _every(info, settings["seconds"]), None
    even = settings["seconds"] is not None
    pieces, short = divide(info, starts, settings["shortest"], longest, even)
    notes[name] = {**wanted, "pieces": pieces, "short": short}
    write_text(out / NOTES, json.dumps(notes, indent=1, ensure_ascii=False) + "\n")
    return pieces, short


def _every(info: MediaInfo, seconds: float) -> list[int]:
    """The frames with which pieces of `seconds` begin: the first one shown at or after each multiple. Raises DataError
    where a single frame lasts longer."""
    begin, end = piece_seconds(info, 0, info.frames)
    if seconds < (frame := (end - begin) / info.frames) * (1 - ROUNDING):
        raise DataError(
            f"{info.path.name}: its frames last {frame:.3g} s, so no piece of it can last {seconds:g} s (--seconds).",
            info.path,
        )
    starts, number = [], 0
    for count in range(max(1, ceil((end - begin) / seconds - ROUNDING))):
        while number < info.frames and info.times[number] < begin + count * seconds - ROUNDING:
            number += 1
        if number < info.frames and (not starts or number > starts[-1]):
            starts.append(number)
    return starts


def divide(
    info: MediaInfo, starts: Sequence[int], shortest: float, longest: float | None, even: bool = False
) -> tuple[list[tuple[int, int]], int]:
    """Frames [first, stop) of each piece, and how many are below `shortest` seconds and left out.

    What is above `longest` becomes equal parts, or where those would be too short, parts of `longest` and a rest. Such
    parts, and all where `starts` are `even`, end at the next frame, so that one may lack less than a frame.
    """
    pieces, short = [], 0
    begin, end = piece_seconds(info, info.frames - 1, info.frames)
    frame = (end - begin) * (1 - ROUNDING)
    for first, stop in zip(starts, [*starts[1:], info.frames], strict=True):
        edges = [first, stop] if longest is None else _parts(info, first, stop, shortest, longest)
        slack = frame if even or len(edges) > 2 else ROUNDING
        for one, other in zip(edges, edges[1:], strict=False):
            begin, end = piece_seconds(info, one, other)
            if end - begin + slack < shortest:
                short += 1
            else:
                pieces.append((one, other))
    return pieces, short


def _parts(info: MediaInfo, first: int, stop: int, shortest: float, longest: float) -> list[int]:
    begin, end = piece_seconds(info, first, stop)
    length = end - begin
    count = max(1, ceil((length - ROUNDING) / longest))
    size = length / count if length / count + ROUNDING >= shortest else longest
    edges = [bisect_left(info.times, begin + part * size - ROUNDING) for part in range(1, count)]
    return sorted({first, *(edge for edge in edges if first < edge < stop), stop})


def read_notes(path: Path) -> dict[str, Any]:
    """What an earlier run noted in `path`; nothing where there is none. Raises DataError where it is damaged."""
    try:
        notes = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(notes, dict):
            raise ValueError("not an object")
        return notes
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Delete it with the clips beside it, or choose another --out.", path
        ) from error
