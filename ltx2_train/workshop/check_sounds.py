"""What a check hears in the sound of a medium and in the reference sounds beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..dataset.companions import named_reference
from ..dataset.pairs import same_file
from ..dataset.plan import Item
from ..errors import DataError
from ..media.sound import PADDED_SECONDS, SILENCE_DB, rms_db, to_stereo
from ..media.sound_media import Sound, check_numbers, probe_sound, read_sound
from .check_report import FindingLevel

SHORT_VOICE = 0.5  # seconds of a recording or a reference sound
HEARD_SECONDS = 60.0  # of each sound; the rest is not decoded
COMPARED_RATE = 8000  # about, in samples a second
SHIFT_SECONDS = 0.1  # by which coding moves a sound
ALIKE = 0.9  # correlation; two takes of one voice stay far below


def of_reference_sounds(items: Sequence[Item]) -> Iterator[tuple[FindingLevel, str]]:
    """What is wrong with the reference sounds of a medium, in what is used of them."""
    for number, path in enumerate(items[0].reference_audios):
        role, most = named_reference(number, "reference sound"), items[0].dataset.entry.reference_audio_max_seconds
        try:
            if path is None:
                continue
            whole = check_whole(path)
            seconds = whole if most is None else min(most, whole)
            voice = read_sound(path, 0.0, min(seconds, HEARD_SECONDS) if min(seconds, HEARD_SECONDS) < whole else None)
            if voice.damaged:
                yield "amber", f"{voice.damaged} parts of its {role} {path.name} are damaged and silenced"
            elif voice.missing > PADDED_SECONDS * voice.rate:
                lacked = voice.missing / voice.rate
                yield "amber", f"its {role} {path.name} lacks {lacked:.2f} s of what is used; silence is added"
            if rms_db(to_stereo(voice)) < SILENCE_DB:
                # a run that shows it refuses it; of a longer one the rest is not heard here
                yield "amber" if seconds > HEARD_SECONDS else "red", f"its {role} {path.name} is silence"
            elif seconds < SHORT_VOICE:
                used = "" if seconds == whole else f", of which {seconds:.2f} s are used"
                yield "amber", f"its {role} {path.name} lasts {whole:.2f} s{used}, in which little can be heard"
            elif _is_own(voice, items, path):
                repeat = "so that there is nothing to learn but to repeat it"
                yield "amber", f"its {role} {path.name} is its own sound, {repeat}"
        except DataError as error:
            yield "red", f"its {role}: {error}".rstrip(".")


def check_whole(path: Path) -> float:
    """Seconds of a sound beside a medium. Raises DataError where its end is missing, or a sample is no number."""
    seconds = check_end(path)
    check_numbers(path)
    return seconds


def check_end(path: Path) -> float:
    """Seconds of a sound beside a medium. Raises DataError where its end is missing."""
    info = probe_sound(path)
    if info.cut_short:
        raise DataError(f"{path} is cut short: {info.cut_short}", path)
    return info.duration


def heard_of(items: Sequence[Item]) -> Sound:
    """The sound that the windows of a medium use, at most a minute of it. Raises DataError."""
    used = [item.sound for item in items if item.sound is not None]
    start = min(part.start for part in used)
    whole = max(part.start + part.seconds for part in used) - start
    seconds = min(HEARD_SECONDS, whole)
    if seconds < whole:
        check_numbers(used[0].path, used[0].tracks)
    return read_sound(used[0].path, start, seconds, used[0].of_clip, used[0].tracks)


def _is_own(voice: Sound, items: Sequence[Item], path: Path) -> bool:
    """Whether `voice`, from the beginning of `path`, is what is heard in the windows of a medium at the same time."""
    sounds = [item.sound for item in items if item.sound is not None]
    if not sounds or same_file(path, sounds[0].path):  # which the plan has said
        return False
    try:
        own = heard_of(items)
    except DataError:
        return False  # it is said of the clip
    one, other = _coarse(voice), _coarse(own)
    start = min(sound.start for sound in sounds) - (items[0].source.media.times[0] if sounds[0].of_clip else 0.0)
    one = one[max(0, round(start * COMPARED_RATE)) :]
    length = min(len(one), len(other))
    if length < SHORT_VOICE * COMPARED_RATE:
        return False
    spectrum = np.fft.rfft(one[:length], 2 * length) * np.conj(np.fft.rfft(other[:length], 2 * length))
    alike, most = np.fft.irfft(spectrum, 2 * length), round(SHIFT_SECONDS * COMPARED_RATE)
    shift = max(range(-most, most + 1), key=lambda by: alike[by])
    one, other = one[max(0, shift) : length], other[max(0, -shift) : length]
    one, other = one[: len(other)], other[: len(one)]
    return bool(one @ other > ALIKE * np.sqrt((one @ one) * (other @ other)))


def _coarse(sound: Sound) -> np.ndarray:
    """A sound [samples] of about COMPARED_RATE, in one channel, without its mean."""
    wave, step = sound.samples.mean(axis=0, dtype=np.float64), sound.rate / COMPARED_RATE
    edges = np.arange(0, len(wave) / step) * step
    wave = np.interp(edges, np.arange(len(wave)), np.convolve(wave, np.ones(max(1, round(step))) / step, "same"))
    return wave - wave.mean()
