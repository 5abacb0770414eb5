"""Long recordings -> spoken segments, cut at their pauses, each a .wav of its own in a folder of their own.

The sources, which may be videos with sound, are only read. What was found in them is noted in `speech.json` beside the
segments, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError
from ..events import Events, shielded
from ..files import atomic, write_text
from ..media.sound_media import AUDIO_SUFFIXES, probe_sound, read_sound, sound_levels
from ..media.speech import STEPS_PER_SECOND, spoken_segments
from ..media.structure import behind_end
from ..media.video import VIDEO_SUFFIXES
from ..threads import heeding
from .cut import CutClip, CutReport, read_notes, refuse_output, spoilt
from .passed_over import tell_passed_over

NOTES = "speech.json"
SHORTEST, LONGEST, PAUSE = 2.0, 12.0, 0.3  # seconds, as in the dataset file
NOTICED = 0.05  # seconds; the last segment may end with its recording


def cut_recordings(
    source: Path | str,
    out: Path | str,
    *,
    shortest: float | None = None,
    longest: float | None = None,
    pause: float = PAUSE,
    events: Events | None = None,
) -> CutReport:
    """Cut a recording, or all in a folder, into `out`/NAME_0001.wav and so on; what is there is kept.

    Segments last `shortest` (default 2) to `longest` (default 12) seconds; quiet of `pause` seconds parts them. A file
    that cannot be used is named in the report and the others go on. Raises ConfigError, DataError, Stopped.
    """
    source, out, events = Path(source), Path(out), shielded(events)
    longest = LONGEST if longest is None else longest
    shortest = min(SHORTEST, longest) if shortest is None else shortest
    if not (0 < shortest <= longest < float("inf")) or pause <= 0:
        raise ConfigError(
            f"Segments of {shortest:g} to {longest:g} s with pauses of {pause:g} s make no sense. Use lengths above 0, "
            "the shortest not above the longest."
        )
    files = _recordings(source)
    refuse_output(source, out, files)
    tell_passed_over(source, files, ("video", "audio"), events, out)
    settings = {"shortest": shortest, "longest": longest, "pause": pause}
    notes = read_notes(out / NOTES)
    clips: list[CutClip] = []
    failed: list[tuple[Path, str]] = []
    kept = 0
    with heeding(events):
        for path in files:
            try:
                events.check_stop()
                if remark := behind_end(path):
                    events.message(f"{path.name} {remark}.", "warning")
                segments = _segments(path, settings, notes, out, events)
                events.stage(f"cut {path.name}", len(segments))
                for number, (start, seconds) in enumerate(segments, 1):
                    target = out / f"{path.stem}_{number:04d}.wav"
                    if target.exists():
                        kept += 1
                        if reason := _unlike(target, seconds):
                            failed.append((path, spoilt(target, reason)))
                            events.message(failed[-1][1], "warning")
                    else:
                        events.check_stop()
                        _write(path, start, seconds, target)
                        clips.append(CutClip(target, path, start, seconds, False))
                    events.progress(number, len(segments), target.name)
            except DataError as error:
                failed.append((path, str(error)))
                events.message(str(error), "warning")
    return CutReport(tuple(clips), kept, 0, tuple(failed))


def _recordings(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist. Name a recording, or a folder of recordings.", source)
    heard = AUDIO_SUFFIXES | VIDEO_SUFFIXES
    files = [path for path in sorted(source.iterdir()) if path.suffix.lower() in heard and path.is_file()]
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise DataError(f"{source} holds no recordings. Name another folder.", source)
    owners: dict[str, Path] = {}
    for path in files:
        owner = owners.setdefault(path.stem.casefold(), path)
        if owner is not path:
            raise DataError(f"{path.name} and {owner.name} would give segments of the same names. Rename one.", path)
    return files


def _segments(
    path: Path, settings: dict[str, float], notes: dict, out: Path, events: Events
) -> list[tuple[float, float]]:
    """(start, seconds) of each segment; from the notes of a run before where they are."""
    wanted = {"file": path.name, "bytes": path.stat().st_size, **settings}
    noted = notes.get(path.stem)
    if noted is not None:
        if {key: noted.get(key) for key in wanted} != wanted:
            raise DataError(
                f"{path.name} was cut into {out} in another way, or has changed. Choose another --out, or delete "
                f"{path.stem}_*.wav and {NOTES} there.",
                path,
            )
        return [(float(start), float(seconds)) for start, seconds in noted["segments"]]
    if (out / f"{path.stem}_0001.wav").exists():
        raise DataError(f"{path.stem}_0001.wav is in {out}, but {NOTES} does not know it. Choose another --out.", path)
    events.stage(f"listen to {path.name}")
    limits = (settings["shortest"], settings["longest"], settings["pause"])
    found = spoken_segments(sound_levels(path, STEPS_PER_SECOND), *limits)
    segments = [(round(start, 4), round(seconds, 4)) for start, seconds in found]
    if not segments:
        raise DataError(f"{path}: no speech of {settings['shortest']:g} s or more was found. Lower --min.", path)
    notes[path.stem] = {**wanted, "segments": segments}
    write_text(out / NOTES, json.dumps(notes, indent=1, ensure_ascii=False) + "\n")
    return segments


def _unlike(path: Path, seconds: float) -> str:
    """Why a segment that is there does not last `seconds`; "" where it does."""
    try:
        found = probe_sound(path).duration
    except DataError:
        return "it cannot be read"
    return "" if abs(found - seconds) <= NOTICED else f"it lasts {found:.2f} s, not {seconds:.2f}"


def _write(path: Path, start: float, seconds: float, target: Path) -> None:
    """16 bits with the channels and the rate of the source."""
    sound = read_sound(path, start, seconds)
    samples = np.clip(np.nan_to_num(sound.samples), -1, 1)
    with atomic(target) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes((np.ascontiguousarray(samples.T) * 32767).round().astype("<i2").tobytes())
