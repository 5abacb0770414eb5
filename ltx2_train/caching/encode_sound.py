"""Filling the caches of sound: windows of clips, recordings, and reference sounds, through the audio VAE.

As for pictures (encode), what is fresh stays and each file is written as soon as it is ready. Sound that cannot be used
never ends caching: its clip trains silent, its recording is left out, and the report names each with the reason. What
can be used but deserves a look (silence, clipping, sound shorter than its clip) is reported too.

A window of L seconds becomes round(25 L) latents, as many as sampling makes for that length. The encoder is causal, so
a latent beyond that (the mel spectrogram has a last row centred on the very end) is dropped without changing the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..dataset.plan import DatasetPlan, Item
from ..dataset.scan import SHOWN_AT_MOST, Skipped
from ..dataset.sources import source_record, source_stat
from ..errors import CacheError, DataError, OutOfMemory
from ..events import Events
from ..files import write_tensors
from ..media.sound import Prepared, Sound, prepare, probe_sound, read_sound
from ..shapes import AUDIO_LATENTS_PER_SECOND, AudioLatentShape, LatentShape
from . import cache_file as caches
from .build import (
    CacheReport,
    note_failure,
    record_failure,
    reference_settings,
    sound_settings,
    with_model,
)
from .cache_file import ARCHITECTURE, AUDIO_LENGTH_KEY, DTYPES, FORMAT_VERSION, VIRTUAL_KEYS, CacheFile
from .due import Due
from .settings import CacheSettings
from .turns import Turns

if TYPE_CHECKING:
    from ..models.audio_vae import AudioVAE

KINDS = {
    "padded": "have sound that ends before they do",
    "silent": "are silent",
    "clipped": "are clipped",
    "broken": "hold samples that are not numbers",
    "damaged": "are damaged in places",
}


@dataclass(frozen=True)
class SoundJob:
    """A cache to be made: of the item's own sound or of its reference."""

    item: Item
    source: Path
    path: Path
    made_from: dict[str, Any]
    reference: bool = False
    virtual: str | None = None  # precision of the file of latents beside a recording; None: that of the sound


def sound_due(plan: DatasetPlan, fingerprint: str, settings: CacheSettings) -> Due[SoundJob]:
    """The sounds that are missing or no longer fit."""
    return Due.find(
        sound_jobs(plan, settings),
        lambda job: job.path,
        lambda job, checked: sound_state(job, fingerprint, checked),
        settings,
    )


def encode_sound(
    plan: DatasetPlan,
    open_audio_vae: Callable[[], AudioVAE],
    fingerprint: str,
    settings: CacheSettings,
    events: Events | None = None,
    device: torch.device | str = "cpu",
    due: Due[SoundJob] | None = None,
) -> CacheReport:
    """Cache the sound, and the reference sound, of every item of `plan` that has one; `due` spares looking for them.

    `open_audio_vae` gives the audio VAE in the precision of `settings.audio_vae_dtype`; it is called only if something
    is to be made. Raises DataError where the plan holds nothing but recordings and none could be encoded.
    """
    events, started = events or Events(), time.monotonic()
    due = sound_due(plan, fingerprint, settings) if due is None else due
    report = due.report("sound", events)
    seen: dict[str, dict[Path, str]] = {kind: {} for kind in KINDS}
    rate = 0  # known once the audio VAE is open; nothing is read before

    def read(job: SoundJob) -> Prepared:
        with contextlib.suppress(OSError):
            source_record(job.source)  # hashes the file in this thread; it is known when the cache is written
        return _read(plan, job, rate)

    def work(vae: AudioVAE) -> None:
        nonlocal rate
        rate = vae.config.sample_rate

        def make(job: SoundJob, sound: Prepared | DataError) -> None:
            try:
                if isinstance(sound, DataError):
                    raise sound
                report.bytes += _write(job, sound, vae, fingerprint, settings, device)
                report.made += 1
                for kind, text in sound.remarks.items():
                    seen[kind][job.source] = text
            except DataError as error:
                note_failure(report, Skipped(job.source, _advice(job, error)), events)
                if not job.reference:
                    _remember(job, str(error))
            except torch.OutOfMemoryError as error:
                raise _too_long(job) from error

        turns.each(make)

    with Turns(due, read, lambda job: sound_seconds(plan, job), "encode sound", events) as turns:
        if turns.begin(reading=False):
            with_model(open_audio_vae, work, device)
    report.others = turns.others
    report.notes += _notes(plan, seen)
    for note in report.notes:
        events.message(note, "warning")
    report.seconds = time.monotonic() - started
    recordings_only = bool(plan.items) and all(item.kind == "audio" for item in plan.items)
    if recordings_only and not report.made + report.kept + report.others:
        raise DataError("Not one recording could be encoded.\n" + report.summary(), report.failed[0].path)
    return report


def sound_jobs(plan: DatasetPlan, settings: CacheSettings) -> Iterator[SoundJob]:
    """All sounds that `plan` needs. A mirrored copy is heard as its original is, from the same file."""
    for item in plan.items:
        if item.flipped:
            continue
        if item.sound is not None and item.audio_path is not None:
            made_from, virtual = sound_settings(plan, item, settings), plan.settings_of(item).audio_video_latent_dtype
            yield SoundJob(item, item.sound.path, item.audio_path, made_from, virtual=virtual)
        if item.reference_audio is not None and item.reference_audio_path is not None:
            made_from = reference_settings(plan, item, settings)
            yield SoundJob(item, item.reference_audio, item.reference_audio_path, made_from, reference=True)


def sound_seconds(plan: DatasetPlan, job: SoundJob) -> float:
    """About how long the sound of `job` is as it is encoded; 0 where nobody can tell."""
    if not job.reference:
        return job.item.sound.length if job.item.sound is not None else 0.0
    limit = plan.settings_of(job.item).reference_audio_max_seconds
    try:
        size, mtime_ns = source_stat(job.source)
        seconds = _duration(job.source, size, mtime_ns)
    except (DataError, OSError):
        return 0.0
    return seconds if limit is None else min(limit, seconds)


@functools.lru_cache(maxsize=4096)
def _duration(path: Path, size: int, mtime_ns: int) -> float:
    return probe_sound(path).duration


def sound_state(job: SoundJob, fingerprint: str, settings: CacheSettings) -> tuple[bool, str | None]:
    """Whether the cache is missing, and why it must be made again (None: it is fresh)."""
    if not job.path.is_file():
        return True, "missing"
    if not settings.skip_existing:
        return False, "skip_existing is off"
    if job.item.kind == "audio" and not job.reference and not job.item.latent_path.is_file():
        return False, f"{job.item.latent_path.name} is missing"
    try:
        file = CacheFile(job.path)
        file.audio_steps()
    except CacheError:
        return False, "damaged"
    return False, caches.stale_sound(file, job.source, job.made_from, fingerprint)


def _read(plan: DatasetPlan, job: SoundJob, rate: int) -> Prepared:
    entry, window = plan.settings_of(job.item), job.item.sound
    if job.reference:
        # A reference is heard as it is: neither the clip's window nor its length is forced upon it.
        sound = read_sound(job.source)
        limit = entry.reference_audio_max_seconds
        length = sound.samples.shape[1] / sound.rate
        length = length if limit is None else min(limit, length)
        return prepare(_first(sound, length), length, rate, entry.audio_normalize)
    assert window is not None
    if job.item.kind == "audio" and window.start == 0 and not entry.speech_segments:
        # The header of a compressed file may be off by a little: what is there is what counts.
        sound = read_sound(job.source)
        length = min(window.length, sound.samples.shape[1] / sound.rate)
        return prepare(_first(sound, length), length, rate, entry.audio_normalize)
    sound = read_sound(job.source, window.start, window.seconds, window.of_clip)
    return prepare(sound, window.length, rate, entry.audio_normalize)


def _first(sound: Sound, seconds: float) -> Sound:
    return dataclasses.replace(sound, samples=sound.samples[:, : max(1, round(seconds * sound.rate))])


def _write(
    job: SoundJob, sound: Prepared, vae: AudioVAE, fingerprint: str, settings: CacheSettings, device: torch.device | str
) -> int:
    latents = _encode(sound, vae, device).to(DTYPES[settings.audio_latents_dtype]).cpu()
    if not bool(torch.isfinite(latents).all()):
        raise DataError(
            f"{job.source}: the audio VAE gave numbers that are not finite in {settings.audio_vae_dtype}, stored as "
            f'{settings.audio_latents_dtype}. Set cache.audio_vae_dtype = "fp32", cache.audio_latents_dtype = "bf16".',
            job.source,
        )
    channels, steps, bins = latents.shape
    metadata = {
        "format_version": FORMAT_VERSION,
        "architecture": ARCHITECTURE,
        "duration_seconds": repr(sound.samples.shape[1] / vae.config.sample_rate),
        "source": json.dumps(source_record(job.source)),
        "settings": json.dumps(job.made_from),
        "checkpoint": fingerprint,
    }
    tensors = {
        caches.audio_key(AudioLatentShape(steps, channels, bins), latents.dtype): latents,
        AUDIO_LENGTH_KEY: torch.tensor(steps, dtype=torch.int32),
    }
    write_tensors(job.path, tensors, metadata)
    size = job.path.stat().st_size
    if job.item.kind == "audio" and not job.reference:
        size += _write_virtual(job, metadata, latents.dtype if job.virtual is None else DTYPES[job.virtual])
    return size


def _encode(sound: Prepared, vae: AudioVAE, device: torch.device | str) -> torch.Tensor:
    """[8, T, 16] on the device of the VAE."""
    config = vae.config
    wave = torch.from_numpy(sound.samples)[None]
    steps = max(1, round(wave.shape[-1] / config.sample_rate * AUDIO_LATENTS_PER_SECOND))
    # The spectrogram reflects half a window at both ends and so needs more than that; a single frame may be shorter.
    short = config.n_fft // 2 + config.hop - wave.shape[-1]
    if short > 0:
        wave = torch.nn.functional.pad(wave, (0, short))
    with torch.no_grad():
        mel = vae.waveform_to_mel(wave.to(device), config.sample_rate)
        return vae.encode(mel)[0, :, :steps].float()


def _write_virtual(job: SoundJob, metadata: dict[str, str], dtype: torch.dtype) -> int:
    """The file of latents of a recording: one zero, and the size of the video that is imagined beside it."""
    shape, path = job.item.shape, job.item.latent_path
    one = LatentShape(1, 1, 1, shape.channels)
    tensors = {caches.latent_key(one, dtype): torch.zeros(shape.channels, 1, 1, 1, dtype=dtype)}
    for key, size in zip(VIRTUAL_KEYS, (shape.frames, shape.height, shape.width), strict=True):
        tensors[key] = torch.tensor(size, dtype=torch.int32)
    count = str((shape.frames - 1) * 8 + 1)
    extra = {"frame_count": count, "width": str(job.item.width), "height": str(job.item.height)}
    write_tensors(path, tensors, {**metadata, **extra, "fps": repr(job.item.fps)})
    return path.stat().st_size


def _remember(job: SoundJob, reason: str) -> None:
    """So that training knows: the clip is silent, the recording is left out."""
    record_failure(job.item, reason, job.path.name, job.source)
    if job.item.kind == "audio":
        record_failure(job.item, reason)


def _advice(job: SoundJob, error: DataError) -> str:
    if job.reference:
        return f"{error} Its reference sound is missing until then."
    if job.item.kind == "audio":
        return str(error)
    return f"{error} The clip trains without sound until then."


def _notes(plan: DatasetPlan, seen: dict[str, dict[Path, str]]) -> list[str]:
    notes = []
    for kind, sources in seen.items():
        if sources:
            notes.append(f"{len(sources)} files {KINDS[kind]}: {_some([f'{p.name} {t}' for p, t in sources.items()])}")
    mute = {item.source.path: item.silence for item in plan.items if item.kind == "video" and item.sound is None}
    if mute:
        lines = _some([f"{path.name} ({reason})" for path, reason in mute.items()])
        notes.append(f"{len(mute)} videos have no sound and train as pictures alone: {lines}")
    return notes


def _some(lines: list[str]) -> str:
    more = f"; and {len(lines) - SHOWN_AT_MOST} more" if len(lines) > SHOWN_AT_MOST else ""
    return "; ".join(lines[:SHOWN_AT_MOST]) + more


def _too_long(job: SoundJob) -> OutOfMemory:
    seconds = job.item.sound.length if job.item.sound is not None and not job.reference else 0.0
    advice = "reference_audio_max_seconds" if job.reference else "speech_segments = true or max_seconds"
    length = f" ({seconds:.0f} s)" if seconds else ""
    return OutOfMemory(
        f"The device ran out of memory while the audio VAE encoded {job.source.name}{length}. "
        f"Set {advice} in the dataset. Finished items are kept."
    )
