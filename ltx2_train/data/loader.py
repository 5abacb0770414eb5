"""The caches as training sees them: every sample checked before the first step, then read one by one.

Opening a training set reads headers only. Whatever is missing or stale is reported at once and together, with the
command that mends it; nothing is trained on silently that the dataset file does not describe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from ..errors import CacheError, DataError
from ..events import Events
from ..objective.audio import AudioSettings, virtual_shape
from ..shapes import AUDIO_BINS, AUDIO_CHANNELS, LatentShape
from . import caches
from .building import (
    CacheSettings,
    failed_before,
    latent_settings,
    sound_failed_before,
    sound_settings,
    text_settings,
)
from .caches import CacheFile, Fingerprints
from .dataset import DatasetConfig, DatasetSettings
from .encode_text import read_compact
from .listing import SHOWN_AT_MOST
from .plan import Item, Plan, plan_dataset

if TYPE_CHECKING:
    from ..models.text import TextFeatures


Mode = Literal["video", "av", "audio"]


@dataclass(frozen=True)
class SoundBuckets:
    """How sounds of several lengths become batches; one of these for each dataset. `interval` is in seconds."""

    strategy: Literal["pad", "truncate"] = "pad"
    interval: float = 2.0
    separate: bool = False

    @classmethod
    def of(cls, entry: DatasetSettings, run: AudioSettings) -> SoundBuckets:
        """What the run says, else what the dataset says."""
        return cls(
            entry.audio_bucket_strategy if run.bucket_strategy is None else run.bucket_strategy,
            entry.audio_bucket_interval if run.bucket_interval is None else run.bucket_interval,
            entry.separate_audio_buckets if run.separate_buckets is None else run.separate_buckets,
        )


@dataclass(frozen=True)
class Sample:
    """One cached clip and its caption. `dataset` counts within its list; the optional values override the run's.

    `kind` is what is trained of it: "audio" has no picture, be it a recording or, in mode audio, the sound of a clip;
    its `shape` then is that of an imagined video, which the noise levels follow. `audio_steps` counts the latents of
    its sound, 0 for none.
    """

    key: str
    shape: LatentShape
    fps: float
    caption: str
    latent_path: Path
    text_path: Path
    dataset: int = 0
    repeats: int = 1
    first_frame_probability: float | None = None
    video_loss_weight: float | None = None
    kind: Literal["video", "image", "audio"] = "video"
    audio_path: Path | None = None
    audio_steps: int = 0
    audio_loss_weight: float | None = None


@dataclass(frozen=True)
class FullText:
    """Text after the connectors: [N, D] a stream, and [N] of 1 (attend) and 0."""

    video_context: torch.Tensor
    audio_context: torch.Tensor | None
    mask: torch.Tensor


@dataclass(frozen=True)
class TrainingSet:
    """Samples whose caches are all there and fresh. Open it with `TrainingSet.open`."""

    samples: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    batch_sizes: tuple[int, ...]
    buckets: tuple[SoundBuckets, ...] = ()
    mode: Mode = "video"

    @classmethod
    def open(
        cls,
        config: DatasetConfig,
        vae_fingerprint: str = "",
        text_fingerprint: Fingerprints | str = "",
        settings: CacheSettings | None = None,
        events: Events | None = None,
        plan: Plan | None = None,
        mode: Mode = "video",
        audio_fingerprint: str = "",
        audio: AudioSettings | None = None,
    ) -> TrainingSet:
        """Check every cache of `config`; `plan` spares planning it again.

        Mode video takes no notice of sound, audio takes only what has sound, av takes all. Fingerprints that are
        empty are not compared; a text fingerprint given as str is the checkpoint's. Raises CacheError that lists what
        is missing or stale and why.
        """
        events, audio = events or Events(), audio or AudioSettings()
        settings = settings or CacheSettings()
        if isinstance(text_fingerprint, str):
            text_fingerprint = Fingerprints(checkpoint=text_fingerprint)
        plan = plan or plan_dataset(config, _WarningsOnly(events))
        checker = _Checker(plan, vae_fingerprint, text_fingerprint, settings, events, mode, audio_fingerprint, audio)
        events.stage("check caches", len(plan.items))
        found: tuple[list[Sample], list[Sample]] = ([], [])
        for done, item in enumerate(plan.items, 1):
            sample = checker.sample(item)
            if sample is not None:
                found[item.validation].append(sample)
            events.progress(done, len(plan.items), item.latent_path.name)
        checker.finish(len(plan.items))
        if not found[0]:
            raise checker.nothing_left()
        sizes = tuple(entry.batch_size for entry in plan.config.datasets)
        buckets = tuple(SoundBuckets.of(entry, audio) for entry in plan.config.datasets)
        return cls(tuple(found[0]), tuple(found[1]), sizes, buckets, mode)

    def load_latents(self, sample: Sample) -> torch.Tensor:
        """[128, F, H, W] in float32, normalised. Raises CacheError where the file is damaged."""
        return CacheFile(sample.latent_path).latents()

    def load_audio(self, sample: Sample) -> torch.Tensor:
        """[8, T, 16] in float32, normalised; T is `audio_steps`. Raises CacheError where the file is damaged."""
        assert sample.audio_path is not None, sample.key
        return CacheFile(sample.audio_path).audio_latents()[:, : sample.audio_steps]

    def load_text(self, sample: Sample) -> TextFeatures | FullText:
        """The caption, in the form it is cached in. Raises CacheError where the file is damaged."""
        return load_text(sample.text_path)


def load_text(path: Path) -> TextFeatures | FullText:
    """Read a text cache of either form, ours or the community trainer's."""
    file = CacheFile(path)
    if file.find("video_features_") is not None:
        return read_compact(file)
    video_key, audio_key = file.find("video_prompt_embeds_"), file.find("audio_prompt_embeds_")
    if video_key is None:
        raise CacheError(f"{path} holds no text: {', '.join(file.keys) or 'it is empty'}. {caches.MEND}", path)
    video = file.tensor(video_key)
    if "prompt_attention_mask" in file.keys:
        mask = file.tensor("prompt_attention_mask").reshape(-1)
    else:
        mask = torch.ones(video.shape[0], dtype=torch.int64)
    return FullText(video, None if audio_key is None else file.tensor(audio_key), mask)


class _WarningsOnly(Events):
    """Passes on what the user must know and drops the log lines of planning, which caching has shown already."""

    def __init__(self, inner: Events) -> None:
        self._inner = inner

    def stage(self, name: str, total: int | None = None) -> None:
        self._inner.stage(name, total)

    def progress(self, done: int, total: int, text: str = "") -> None:
        self._inner.progress(done, total, text)

    def message(self, text: str, level: str = "info") -> None:
        if level != "info":
            self._inner.message(text, level)

    def should_stop(self) -> bool:
        return self._inner.should_stop()


class _Checker:
    def __init__(
        self,
        plan: Plan,
        vae_fingerprint: str,
        weights: Fingerprints,
        settings: CacheSettings,
        events: Events,
        mode: Mode,
        audio_fingerprint: str,
        audio: AudioSettings,
    ) -> None:
        self.plan, self.vae_fingerprint, self.weights = plan, vae_fingerprint, weights
        self.settings, self.events = settings, events
        self.mode, self.audio_fingerprint, self.audio = mode, audio_fingerprint, audio
        self.problems: dict[Path, str] = {}
        self.left_out: dict[Path, str] = {}
        self.mute: dict[Path, str] = {}
        self.unfit = 0
        self.foreign = 0
        self._texts: dict[tuple[Path, str], Path | None] = {}

    def sample(self, item: Item) -> Sample | None:
        """The sample of `item`, or None where the mode has no use for it or with the reason noted."""
        entry, kind = self.plan.settings_of(item), item.source.media.kind
        if self.mode == "video" and kind == "audio":
            self.unfit += 1
            return None
        if kind != "audio" and self.mode != "audio" and not item.latent_path.is_file():
            if reason := failed_before(item):
                self.left_out[item.source.path] = reason
                return None
        steps = 0 if self.mode == "video" else self._sound(item)
        if steps == 0 and (kind == "audio" or self.mode == "audio"):
            if item.source.path in self.mute:
                self.left_out[item.source.path] = self.mute.pop(item.source.path)
            else:
                self.unfit += 1
            return None
        if kind == "audio" or self.mode == "audio":
            resolution = self.audio.sequence_resolution
            if resolution is None:
                resolution = entry.audio_only_sequence_resolution
            shape, kind = virtual_shape(item.shape, resolution), "audio"
        else:
            shape = self._latents(item)
        text_path = self._text(item)
        if shape is None or text_path is None or steps is None:
            return None
        return Sample(
            key=item.key,
            shape=shape,
            fps=item.fps,
            caption=item.caption,
            latent_path=item.latent_path,
            text_path=text_path,
            dataset=item.dataset,
            repeats=entry.num_repeats,
            first_frame_probability=entry.first_frame_probability,
            video_loss_weight=entry.video_loss_weight,
            kind=kind,
            audio_path=item.audio_path if steps else None,
            audio_steps=steps,
            audio_loss_weight=entry.audio_loss_weight,
        )

    def _sound(self, item: Item) -> int | None:
        """Latent steps of the sound of `item`, 0 where it has none; None with the reason noted."""
        if item.sound is None:
            return 0
        path = item.audio_path
        assert path is not None, item.key
        if not path.is_file() and (reason := sound_failed_before(item)):
            self.mute[item.source.path] = reason
            return 0
        try:
            file = CacheFile(path)
            found, steps = file.audio_shape(), file.audio_steps()
        except CacheError as error:
            self.problems[path] = "missing" if not path.is_file() else _without_mend(error)
            return None
        if (found.channels, found.bins) != (AUDIO_CHANNELS, AUDIO_BINS):
            self.problems[path] = f"its sound has {found.channels} channels of {found.bins} bins, not 8 of 16"
            return None
        wanted = sound_settings(self.plan, item, self.settings)
        if reason := caches.stale_sound(file, item.sound.path, wanted, self.audio_fingerprint):
            self.problems[path] = reason
            return None
        self.foreign += not file.fingerprinted
        return steps

    def _latents(self, item: Item) -> LatentShape | None:
        path = item.latent_path
        try:
            file = CacheFile(path)
            shape = file.latent_shape()
        except CacheError as error:
            self.problems[path] = "missing" if not path.is_file() else _without_mend(error)
            return None
        wanted = latent_settings(self.plan, item, self.settings)
        reason = caches.stale_latents(file, item.source.path, wanted, self.vae_fingerprint)
        if reason:
            self.problems[path] = reason
            return None
        self.foreign += not file.fingerprinted
        return shape

    def _text(self, item: Item) -> Path | None:
        """The fresh text cache of `item`: of the form that is set, else of the other."""
        if item.text_key in self._texts:
            return self._texts[item.text_key]
        preferred = self.settings.text_form
        forms: list[caches.TextForm] = [preferred, "full" if preferred == "compact" else "compact"]
        first_problem, first_path, result = "missing", item.source.text_path(preferred), None
        for form in forms:
            path = item.source.text_path(form)
            if not path.is_file():
                continue
            try:
                file = CacheFile(path)
                reason = caches.stale_text(file, item.caption, text_settings(form, self.settings), self.weights)
                if reason is None and form == "full" and self.mode != "video":
                    spoken = file.find("audio_prompt_embeds_") is not None
                    reason = None if spoken else "it was made for video alone and holds no text for sound; delete it"
            except CacheError as error:
                reason = _without_mend(error)
            if reason is None:
                self.foreign += not file.fingerprinted
                result = path
                break
            if first_problem == "missing":
                first_problem, first_path = reason, path
        if result is None:
            self.problems[first_path] = first_problem
        self._texts[item.text_key] = result
        return result

    def finish(self, total: int) -> None:
        if self.problems:
            shown = "\n".join(f"  {path.name}: {why}" for path, why in list(self.problems.items())[:SHOWN_AT_MOST])
            more = len(self.problems) - SHOWN_AT_MOST
            shown += f"\n  and {more} more" if more > 0 else ""
            first = next(iter(self.problems))
            raise CacheError(
                f"{len(self.problems)} caches of {total} samples are missing or stale in {first.parent}.\n{shown}\n"
                f"{caches.MEND}",
                first,
            )
        for path, reason in self.left_out.items():
            self.events.message(f"{path.name} is left out, as when it was cached: {reason}", "warning")
        for path, reason in self.mute.items():
            self.events.message(f"{path.name} is trained without its sound, as when it was cached: {reason}", "warning")
        if self.unfit:
            what = "have no picture and" if self.mode == "video" else "have no sound and"
            self.events.message(f"{self.unfit} samples {what} are not used in mode {self.mode}.")
        if self.foreign:
            self.events.message(
                f"{self.foreign} caches were made by another program and carry no fingerprints; "
                "only their shapes can be checked. Be sure that they belong to this checkpoint.",
                "warning",
            )

    def nothing_left(self) -> CacheError:
        """The error where no sample for training remains."""
        if self.unfit == len(self.plan.items) and self.mode == "video":
            return CacheError(
                "The datasets hold sound alone, which model.mode = video does not train. Set it to audio."
            )
        if self.unfit:
            return CacheError(
                "Not one sample with sound is left. Add clips or recordings that have sound, or set model.mode = video."
            )
        return CacheError("Not one sample for training is left. " + caches.MEND)


def _without_mend(error: DataError) -> str:
    return str(error).replace(caches.MEND, "").strip()
