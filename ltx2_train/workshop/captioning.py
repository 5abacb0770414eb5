"""Writing captions for a folder of media: what is seen by a local vision-language model, what is said by a Whisper.

First all sounds are heard, then all pictures are looked at, so that only one model is in memory. What was heard, and
what an overwriting run has rewritten, is noted in a hidden file until all is done, so that a run that was stopped goes
on. A caption that is there is never touched unless that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dataset.as_read import CaptionsAsRead, captions_as_read
from ..dataset.odd_captions import odd_form
from ..dataset.scan import MEDIA_SUFFIXES
from ..device import pick_device
from ..errors import ConfigError, DataError
from ..events import Events, shielded
from ..files import parse_json, write_text
from ..media.images import IMAGE_SUFFIXES
from ..media.info import MediaInfo
from ..media.names import name_key, why_no_file
from ..media.sound import resample, to_stereo
from ..media.sound_media import AUDIO_SUFFIXES, read_sound, sound_levels
from ..media.speech import STEPS_PER_SECOND, spoken_segments
from ..media.video import VIDEO_SUFFIXES, probe_media, read_frames
from ..threads import heeding
from .caption_models import Describer, Listener
from .choices import CAPTION_FRAMES, SPEAKER
from .passed_over import tell_passed_over

if TYPE_CHECKING:
    import torch

PROMPT = (
    "Describe what is seen in one paragraph of plain sentences, in the present: who and what is there, how they look, "
    "what they do and how they move, the place, the light, the camera. Say only what can be seen; do not begin with "
    "'The video' or 'The image'."
)
IN_ORDER = "These are frames of one clip, in their order. "
LONGEST_SIDE = 768  # pixels of a frame as it is shown to the model
LONGEST_TEXT = 300  # tokens
SHORTEST_SPEECH, LONGEST_SPEECH, PAUSE = 0.3, 29.0, 0.5  # seconds; Whisper hears 30 at once
NOTES = ".captions.json"


@dataclass(frozen=True)
class CaptionReport:
    """Captions that were written, how many were there already, and the media that got none, with the reason."""

    written: tuple[Path, ...]
    kept: int = 0
    failed: tuple[tuple[Path, str], ...] = ()
    read: CaptionsAsRead | None = None  # what was written

    def text(self) -> str:
        lines = [f"{len(self.written)} captions written, {self.kept} were there already and stay as they are."]
        lines += [] if self.read is None else [self.read.text()]
        return "\n".join(lines + [f"failed: {reason}" for _, reason in self.failed])


@dataclass
class _Job:
    path: Path
    caption: Path
    info: MediaInfo | None = None  # None: sound alone


def caption_media(
    folder: Path | str,
    model: Path | str | None = None,
    *,
    whisper: Path | str | None = None,
    prompt: str | None = None,
    prefix: str = "",
    speaker: str = SPEAKER,
    overwrite: bool = False,
    frames: int = CAPTION_FRAMES,
    device: str = "auto",
    events: Events | None = None,
) -> CaptionReport:
    """Write NAME.txt beside each image, clip and sound in `folder`.

    `model` looks at `frames` frames of a clip, `whisper` hears its sound; either may be left out. `prompt` is what the
    model is asked, `prefix` is put in front of each caption, `speaker` says what is heard. One medium that cannot be
    used is named in the report and the others go on. Raises ConfigError, DataError, OutOfMemory, Stopped.
    """
    folder, events = Path(folder), shielded(events)
    if model is None and whisper is None:
        raise ConfigError("Name a model: --model for what is seen, --whisper for what is said, or both.")
    if frames < 1:
        raise ConfigError(f"--frames: {frames} is too few; use 1 or more, for example {CAPTION_FRAMES}.")
    _require_words({"--speaker": None if whisper is None else speaker, "--prompt": prompt})
    chosen = dict(model=model, whisper=whisper, prompt=prompt, prefix=prefix, speaker=speaker, frames=frames)
    notes = _Notes(folder / NOTES, {key: str(value) for key, value in chosen.items()})
    failed: list[tuple[Path, str]] = []
    jobs, kept = _jobs(folder, overwrite, notes, failed, events)
    tell_passed_over(folder, None, tuple(MEDIA_SUFFIXES), events)
    jobs = _each("look into files", jobs, failed, events, _probe)
    where = pick_device(device)
    if whisper is not None:
        jobs = _heard(jobs, Path(whisper), where, notes, failed, events)
    written: dict[Path, str] = {}
    describer = None
    if model is not None and any(job.info is not None for job in jobs):
        describer = Describer(Path(model), where, events)

    def write(job: _Job) -> None:
        seen = _describe(job.info, describer, prompt, frames) if describer and job.info is not None else ""
        text = joined_caption(prefix, seen, notes.speech.get(job.path.name, ""), speaker)
        if text == prefix.strip():
            raise DataError(f"{job.path}: {_nothing(job, model, whisper)}", job.path)
        if overwrite or not job.caption.exists():
            write_text(job.caption, text + "\n")
            written[job.caption] = text
            _tell_odd(job.caption, seen, events)
            if overwrite:
                notes.wrote(job.path.name)

    try:
        _each("write captions", jobs, failed, events, write)
    finally:
        if describer is not None:
            describer.close()
    if not failed:
        notes.remove()
    read = captions_as_read((path.name, text) for path, text in written.items())
    return CaptionReport(tuple(written), kept, tuple(failed), read)


def _require_words(texts: Mapping[str, str | None]) -> None:
    """Raise ConfigError where an option is given a text that says nothing."""
    for option, text in texts.items():
        if text is not None and not text.strip():
            raise ConfigError(f"{option} is empty. Give it a text, or leave it out.")


def _tell_odd(caption: Path, seen: str, events: Events) -> None:
    """Say so where what a model wrote was hardly meant as a caption."""
    if seen and (form := odd_form(seen)):
        events.message(f"{caption.name}: the caption {form}.", "warning")


def joined_caption(prefix: str, seen: str, said: str, speaker: str = SPEAKER) -> str:
    """The caption from its parts; speech stands in quotes, as the text encoder of LTX-2 knows it."""
    spoken = said.replace('"', "'")
    quote = f'{speaker.strip()} says: "{spoken}"' if spoken else ""
    return " ".join(part for part in (prefix.strip(), seen, quote) if part)


class _Notes:
    """What was heard and rewritten so far by a run with the same settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.speech: dict[str, str] = {}
        self.written: list[str] = []
        try:
            kept = parse_json(path.read_text(encoding="utf-8"))
            if kept["settings"] == settings:
                self.speech, self.written = dict(kept["speech"]), list(kept["written"])
        except (OSError, ValueError, KeyError, TypeError):  # none, or nothing that can be used: begin again
            pass

    def heard(self, name: str, text: str) -> None:
        self.speech[name] = text
        self._save()

    def wrote(self, name: str) -> None:
        self.written.append(name)
        self._save()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _save(self) -> None:
        kept = {"settings": self.settings, "speech": self.speech, "written": self.written}
        write_text(self.path, json.dumps(kept, ensure_ascii=False))


def _jobs(
    folder: Path, overwrite: bool, notes: _Notes, failed: list[tuple[Path, str]], events: Events
) -> tuple[list[_Job], int]:
    """The media that need a caption, and how many have one. Of two that share a caption the one to be seen counts.

    The other is added to `failed`, or told of if it is the sound of a clip; added is also what has something else than
    a file in the place of its caption.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Name the folder with the media.", folder)
    seen = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    media = [
        path
        for path in sorted(folder.iterdir(), key=lambda path: (path.suffix.lower() not in seen, path.name))
        if path.suffix.lower() in seen | AUDIO_SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if not media:
        raise DataError(f"{folder} holds no images, videos or sounds. Name another folder.", folder)
    owners: dict[Path, Path] = {}
    there = _captions(folder, {path.stem for path in media})
    for path in media:
        plain = path.with_suffix(".txt")
        near = there.get(path.stem) or there.get(name_key(path.stem)) or plain
        owner = owners.setdefault(plain if plain.exists() else near, path)
        if owner is path:
            continue
        if path.suffix.lower() in AUDIO_SUFFIXES and owner.suffix.lower() in VIDEO_SUFFIXES:
            events.message(f"{path.name} is taken for the sound of {owner.name}, and is not listened to.", "warning")
        else:
            why = f"its name without the ending is that of {owner.name}, so both would share one; rename one"
            failed.append((path, f"{path} gets no caption: {why}."))
    jobs, kept = [], 0
    for caption, path in owners.items():
        if caption.exists() and (why := why_no_file(caption)):
            failed.append((path, f"{path} gets no caption: {caption.name} {why}. Move it away."))
        elif caption.exists() and (not overwrite or path.name in notes.written):
            kept += 1
        else:
            jobs.append(_Job(path, caption))
    return jobs, kept


def _captions(folder: Path, stems: Collection[str]) -> dict[str, Path]:
    """Captions, of which a dataset reads those as well whose names differ in case: by the stem of a medium where it is
    one of `stems`, else by the key of their name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() == ".txt" and not path.name.startswith("."):
            found.setdefault(path.stem if path.stem in stems else name_key(path.stem), path)
    return found


def _each(
    stage: str,
    jobs: Sequence[_Job],
    failed: list[tuple[Path, str]],
    events: Events,
    work: Callable[[_Job], None],
) -> list[_Job]:
    """Do `work` for each job; those that went well. What cannot be used is told, and added to `failed`."""
    done: list[_Job] = []
    events.stage(stage, len(jobs))
    for number, job in enumerate(jobs, 1):
        events.check_stop()
        try:
            with heeding(events):
                work(job)
            done.append(job)
        except DataError as error:
            failed.append((job.path, str(error)))
            events.message(str(error), "warning")
        events.progress(number, len(jobs), job.path.name)
    return done


def _probe(job: _Job) -> None:
    if job.path.suffix.lower() not in AUDIO_SUFFIXES:
        job.info = probe_media(job.path)


def _heard(
    jobs: Sequence[_Job],
    whisper: Path,
    device: torch.device,
    notes: _Notes,
    failed: list[tuple[Path, str]],
    events: Events,
) -> list[_Job]:
    """Listen to those of `jobs` that have a sound which was not heard before; all but those that failed."""
    new = [job for job in jobs if (job.info is None or job.info.has_audio) and job.path.name not in notes.speech]
    if new:
        listener = Listener(whisper, device, events)
        try:
            _each("listen", new, failed, events, lambda job: notes.heard(job.path.name, _said(job.path, listener)))
        finally:
            listener.close()
    bad = {path for path, _ in failed}
    return [job for job in jobs if job.path not in bad]


def _said(path: Path, listener: Listener) -> str:
    """The words of a whole file, cut at pauses; silence is not listened to, for Whisper makes words of it."""
    parts = spoken_segments(sound_levels(path, STEPS_PER_SECOND), SHORTEST_SPEECH, LONGEST_SPEECH, PAUSE)
    words = []
    for start, seconds in parts:
        sound = read_sound(path, start, seconds)
        words.append(listener(resample(to_stereo(sound), sound.rate, listener.rate).mean(axis=0)))
    return " ".join(word for word in words if word)


def _describe(info: MediaInfo, describer: Describer, prompt: str | None, frames: int) -> str:
    text = describer(sampled(info, frames), prompt or (IN_ORDER if info.frames > 1 else "") + PROMPT, LONGEST_TEXT)
    if not text:
        raise DataError(f"{info.path}: the model had nothing to say of it. Try another --prompt or --model.", info.path)
    return text


def sampled(info: MediaInfo, frames: int) -> np.ndarray:
    """Up to `frames` frames at the middles of equal parts, uint8 [F, H, W, 3], the longer side at most 768."""
    picks = sorted({int((part + 0.5) * info.frames / frames) for part in range(frames)})
    share = min(1.0, LONGEST_SIDE / max(info.width, info.height))
    size = (max(1, round(info.width * share)), max(1, round(info.height * share)))
    return read_frames(info, picks, size)


def _nothing(job: _Job, model: Any, whisper: Any) -> str:
    if job.info is None and whisper is None:
        return "it is sound alone, which needs --whisper."
    if job.info is not None and model is None and not job.info.has_audio:
        return "it has no sound, and what is seen needs --model."
    return "no speech was heard in it. Write its caption by hand" + ("." if model else ", or describe it with --model.")
