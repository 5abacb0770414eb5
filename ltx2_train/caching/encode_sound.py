"""Sound: windows of clips, recordings, and reference sounds, through the audio VAE.

Sound that cannot be used never ends caching: its clip trains silent, its recording is left out, and the report names
each with the reason. What can be used but deserves a look (silence, clipping, sound shorter than its clip) is reported
too.

All latents that the encoder gives are kept, as the official trainer does: the mel spectrogram has a last row centred on
the very end, so there is often one more than sampling makes for that length.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..dataset.cache_names import AUDIO_SUFFIX
from ..dataset.notes import SHOWN_AT_MOST
from ..dataset.plan import DatasetPlan, Item
from ..dataset.sources import source_stat
from ..device import DTYPE_NAMES, DTYPES
from ..errors import DataError, OutOfMemory
from ..media.sound import Prepared, prepare, prepare_file, probe_sound, read_sound
from ..media.sound_media import channels_of
from ..models.audio_vae import TIME_FACTOR, past_rows
from ..shapes import AUDIO_BINS, AUDIO_CHANNELS, AudioLatentShape, LatentShape, encoded_audio_steps
from .cache_file import AUDIO_LENGTH_KEY, SILENCE, VIRTUAL_KEYS, CacheFile, audio_key, latent_key, write_cache
from .encode import no_numbers
from .kind import Bench, CacheKind, CacheMade, Job, header_bytes
from .recipe import CacheRecipe

if TYPE_CHECKING:
    from ..models.audio_vae import AudioVAE

TOPICS = {
    "padded": "have sound that begins late, ends early or has holes",
    "silent": "are silent",
    "clipped": "are clipped",
    "damaged": "are damaged in places",
}
SURROUND = "weights add up to 1"  # how it is mixed down; what is written into caches
PIECE_STEPS = 500  # latents that are encoded together: 20 s
VIRTUAL_BYTES = 1150  # the file of latents beside a recording, in which there is one zero


class SoundLatents(CacheKind[Prepared]):
    """Of the sound of a clip's window, or of a recording. A mirrored copy is heard as its original, from one file."""

    name = "sound"
    stage = "encode sound"
    suffix = AUDIO_SUFFIX
    modes = frozenset(("av", "audio"))
    model = "audio_vae"
    part = "audio VAE"
    reads_ahead = False  # the rate is known once the audio VAE is open

    @property
    def weights(self) -> str:
        return self.recipe.audio_vae

    def of(self, item: Item) -> Job | None:
        if item.sound is None or item.audio_path is None:
            return None
        return Job(self, item, item.sound.path, item.audio_path, self.made_from(item))

    def jobs(self) -> Iterator[Job]:
        return (job for item in self.plan.items if not item.flipped and (job := self.of(item)) is not None)

    def made_from(self, item: Item) -> dict[str, Any]:
        sound, settings = item.sound, self.recipe.settings
        assert sound is not None, item.key
        return {
            "sound_file": sound.path.name,
            "sound_window": [round(sound.start, 6), round(sound.seconds, 6)],
            "sound_length": round(sound.length, 6),
            "tracks": list(sound.tracks),
            "audio_normalize": self.plan.settings_of(item).audio_normalize,
            "surround": SURROUND,
            "audio_vae_dtype": settings.audio_vae_dtype,
            "audio_latents_dtype": settings.audio_latents_dtype,
        }

    def stale(self, file: CacheFile, job: Job) -> str | None:
        return _of_another_model(file) or super().stale(file, job) or _too_loud(file, job)

    def beside(self, job: Job) -> Path | None:
        return job.item.latent_path if job.item.kind == "audio" else None

    def consequence(self, job: Job) -> str:
        return super().consequence(job) if job.item.kind == "audio" else "trains without its sound"

    def size(self, job: Job) -> int:
        values = (
            encoded_audio_steps(self.seconds(job))
            * AUDIO_CHANNELS
            * AUDIO_BINS
            * DTYPES[self.recipe.settings.audio_latents_dtype].itemsize
        )
        return values + header_bytes(job.made_from) + (VIRTUAL_BYTES if self.beside(job) is not None else 0)

    def weight(self, job: Job) -> float:
        return self.seconds(job)

    def seconds(self, job: Job) -> float:
        """About how long the sound is as it is encoded; 0 where nobody can tell."""
        return job.item.sound.length if job.item.sound is not None else 0.0

    def read(self, job: Job, model: AudioVAE) -> Prepared:
        entry, window, rate = self.plan.settings_of(job.item), job.item.sound, model.config.sample_rate
        assert window is not None, job.item.key
        if job.item.kind == "audio" and window.start == 0 and not entry.speech_segments and not window.tracks:
            # The header of a compressed file may be off by a little: what is there is what counts.
            return prepare_file(job.source, window.length, rate, entry.audio_normalize)
        sound = read_sound(job.source, window.start, window.seconds, window.of_clip, window.tracks)
        return prepare(sound, window.length, rate, entry.audio_normalize)

    def make(self, job: Job, was_read: Prepared, bench: Bench) -> CacheMade:
        settings, rate = self.recipe.settings, bench.model.config.sample_rate
        latents = encode(was_read, bench.model, bench.device).to(DTYPES[settings.audio_latents_dtype]).cpu()
        if not bool(torch.isfinite(latents).all()):
            dtypes = settings.audio_vae_dtype, settings.audio_latents_dtype
            raise DataError(f"{job.source}: {no_numbers('audio VAE', *dtypes, 'audio_vae_dtype')}", job.source)
        channels, steps, bins = latents.shape
        tensors = {
            audio_key(AudioLatentShape(steps, channels, bins), latents.dtype): latents,
            AUDIO_LENGTH_KEY: torch.tensor(steps, dtype=torch.int32),
        }
        said = {"duration_seconds": repr(was_read.samples.shape[1] / rate)}
        size = self.write(job, tensors, **said, **{SILENCE: "yes" if "silent" in was_read.remarks else "no"})
        if self.beside(job) is not None:
            size += self._write_virtual(job, latents.dtype, said)
        return CacheMade(size, was_read.remarks)

    def _write_virtual(self, job: Job, dtype: torch.dtype, notes: Mapping[str, str]) -> int:
        """The file of latents of a recording: one zero, and the size of the video that is imagined beside it."""
        shape, path = job.item.shape, job.item.latent_path
        chosen = self.plan.settings_of(job.item).audio_video_latent_dtype
        dtype = dtype if chosen is None else DTYPE_NAMES[chosen]
        one = LatentShape(1, 1, 1, shape.channels)
        tensors = {latent_key(one, dtype): torch.zeros(shape.channels, 1, 1, 1, dtype=dtype)}
        for key, size in zip(VIRTUAL_KEYS, (shape.frames, shape.height, shape.width), strict=True):
            tensors[key] = torch.tensor(size, dtype=torch.int32)
        count = str((shape.frames - 1) * 8 + 1)
        size = {"frame_count": count, "width": str(job.item.width), "height": str(job.item.height)}
        write_cache(path, tensors, self.metadata(job, **notes, **size, fps=repr(job.item.fps)))
        return path.stat().st_size

    def notes(self, seen: Mapping[str, Mapping[Path, str]]) -> list[str]:
        notes = [
            f"{len(sources)} files {TOPICS[topic]}: {_some([f'{path.name} {text}' for path, text in sources.items()])}"
            for topic, sources in seen.items()
        ]
        items = self.plan.items
        mute = {item.source.path: item.silence for item in items if item.kind == "video" and item.sound is None}
        if mute:
            lines = _some([f"{path.name} ({reason})" for path, reason in mute.items()])
            notes.append(f"{len(mute)} videos have no sound and train as pictures alone: {lines}")
        return notes

    def verdict(self, jobs: Sequence[Job], lost: set[Path]) -> str | None:
        recordings_only = bool(self.plan.items) and all(item.kind == "audio" for item in self.plan.items)
        if recordings_only and all(job.path in lost for job in jobs):
            return "Not one recording could be encoded."
        return None

    def too_large(self, job: Job) -> OutOfMemory:
        seconds = job.item.sound.length if job.item.sound is not None else 0.0
        return self._too_long(job, f" ({seconds:.0f} s)" if seconds else "", "speech_segments = true or max_seconds")

    def _too_long(self, job: Job, length: str, advice: str) -> OutOfMemory:
        return OutOfMemory(
            f"The device ran out of memory while the audio VAE encoded {job.source.name}{length}. "
            f"Set {advice} in the dataset. Finished items are kept."
        )


class ReferenceSound(SoundLatents):
    """Of the sounds that samples are given as a reference: of each its sound `number`, counted from 0."""

    def __init__(self, plan: DatasetPlan, recipe: CacheRecipe, number: int = 0) -> None:
        super().__init__(plan, recipe)
        self.number = number

    @classmethod
    def each(cls, plan: DatasetPlan, recipe: CacheRecipe) -> list[CacheKind[Any]]:
        most = max((len(item.reference_audios) for item in plan.items), default=0)
        return [cls(plan, recipe, number) for number in range(max(1, most))]

    def of(self, item: Item) -> Job | None:
        sounds = item.reference_audios
        if self.number >= len(sounds) or (sound := sounds[self.number]) is None:
            return None
        return Job(self, item, sound, item.reference_audio_path(self.number), self.made_from(item))

    def made_from(self, item: Item) -> dict[str, Any]:
        entry, settings = self.plan.settings_of(item), self.recipe.settings
        return {
            "reference_file": sound.name if (sound := item.reference_audios[self.number]) is not None else None,
            "reference_audio_max_seconds": entry.reference_audio_max_seconds,
            "audio_normalize": entry.audio_normalize,
            "surround": SURROUND,
            "audio_vae_dtype": settings.audio_vae_dtype,
            "audio_latents_dtype": settings.audio_latents_dtype,
        }

    def beside(self, job: Job) -> Path | None:
        return None

    def remember(self, job: Job, reason: str) -> None:
        """Nothing: its sample trains all the same."""

    def consequence(self, job: Job) -> str:
        return f"is missing as the reference sound of {job.item.source.path.name}"

    def seconds(self, job: Job) -> float:
        limit = self.plan.settings_of(job.item).reference_audio_max_seconds
        try:
            size, mtime_ns = source_stat(job.source)
            seconds = _probed_seconds(job.source, size, mtime_ns)
        except (DataError, OSError):
            return 0.0
        return seconds if limit is None else min(limit, seconds)

    def read(self, job: Job, model: AudioVAE) -> Prepared:
        # A reference is heard as it is: neither the clip's window nor its length is forced upon it.
        entry = self.plan.settings_of(job.item)
        limit, rate = entry.reference_audio_max_seconds, model.config.sample_rate
        return prepare_file(job.source, limit, rate, entry.audio_normalize)

    def too_large(self, job: Job) -> OutOfMemory:
        return self._too_long(job, "", "reference_audio_max_seconds")


def _of_another_model(file: CacheFile) -> str | None:
    """Why the sound in `file` is none of LTX-2, or None. Raises CacheError where it is damaged."""
    shape = file.audio_shape()
    file.audio_steps()
    if (shape.channels, shape.bins) == (AUDIO_CHANNELS, AUDIO_BINS):
        return None
    return f"its sound has {shape.channels} channels of {shape.bins} bins, not {AUDIO_CHANNELS} of {AUDIO_BINS}"


def _too_loud(file: CacheFile, job: Job) -> str | None:
    """Why a cache of ours from before surround sound was brought to that level will not do, or None."""
    if not file.fingerprinted or "surround" in file.record("settings"):
        return None
    try:
        channels = sound_channels(job.source, *source_stat(job.source))
    except (DataError, OSError):  # training goes on without its sources
        return None
    return f"its {channels} channels are mixed down to another level now" if channels > 2 else None


@functools.lru_cache(maxsize=4096)
def _probed_seconds(path: Path, size: int, mtime_ns: int) -> float:
    return probe_sound(path).duration


@functools.lru_cache(maxsize=4096)
def sound_channels(path: Path, size: int, mtime_ns: int) -> int:
    """How many channels a sound has, from its header alone. Raises DataError."""
    return channels_of(path)


@torch.no_grad()
def encode(sound: Prepared, vae: AudioVAE, device: torch.device | str) -> torch.Tensor:
    """[8, T, 16] in float32; piece by piece where it is long, each with all of the past that it depends on."""
    config, samples = vae.config, sound.samples.shape[1]
    rows = 1 + samples // config.hop
    steps = -(-rows // TIME_FACTOR)
    if steps <= PIECE_STEPS or config.mid_attention:
        wave = torch.from_numpy(sound.samples)
        # The spectrogram reflects half a window at both ends and so needs more than that; a frame may be shorter.
        short = config.n_fft // 2 + config.hop - samples
        wave = torch.nn.functional.pad(wave, (0, short)) if short > 0 else wave
        mel = vae.waveform_to_mel(wave[None].to(device), config.sample_rate)
        return vae.encode(mel)[0, :, :steps].float()
    pieces = []
    for first in range(0, steps, PIECE_STEPS):
        last = min(first + PIECE_STEPS, steps)
        before = min(first, -(-past_rows(config) // TIME_FACTOR))
        mel = _rows(sound, vae, device, TIME_FACTOR * (first - before), min(rows, TIME_FACTOR * last))
        pieces.append(vae.encode(mel)[0, :, before:].float().cpu())
    return torch.cat(pieces, dim=1)


def _rows(sound: Prepared, vae: AudioVAE, device: torch.device | str, first: int, last: int) -> torch.Tensor:
    """The rows of mel from `first` to before `last`, as those of the whole sound are."""
    config = vae.config
    margin = -(-config.n_fft // (2 * config.hop))  # rows whose window reaches over the edge of a cut
    begin = max(0, first - margin)
    wave = torch.from_numpy(sound.samples[:, begin * config.hop : (last + margin) * config.hop])
    mel = vae.waveform_to_mel(wave[None].to(device), config.sample_rate)
    return mel[:, :, first - begin : last - begin]


def _some(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - SHOWN_AT_MOST} more" if len(lines) > SHOWN_AT_MOST else ""
    return "; ".join(lines[:SHOWN_AT_MOST]) + more
