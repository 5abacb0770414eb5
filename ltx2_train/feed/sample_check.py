"""Whether the caches of a plan are all there and fit, item by item, and saying together what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..caching import cache_file as caches
from ..caching.build import (
    audio_mask_settings,
    failed_before,
    latent_settings,
    mask_settings,
    reference_settings,
    sound_failed_before,
    sound_settings,
    text_settings,
)
from ..caching.cache_file import CacheFile, Fingerprints
from ..caching.encode import failure_name, latents_state, reference_job
from ..caching.settings import CacheSettings
from ..dataset.cache_names import TextForm
from ..dataset.plan import DatasetPlan, Item
from ..dataset.scan import SHOWN_AT_MOST
from ..errors import CacheError, DataError
from ..events import Events
from ..media.sound import read_sound
from ..objective.audio import AudioSettings, virtual_shape
from ..shapes import AUDIO_BINS, AUDIO_CHANNELS, LatentShape, Mode
from .samples import Sample

_KEEP = CacheSettings(skip_existing=True)  # whether a cache is fresh does not depend on a wish to make it again

NO_SOURCES = (
    "These datasets are read from their caches alone, so they cannot be made again here. Build them where the media "
    "are, with this checkpoint, or choose the checkpoint they were made with."
)


class SampleChecker:
    """Turns items into samples and notes what is missing, stale, left out or of no use to the mode."""

    def __init__(
        self,
        plan: DatasetPlan,
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
        self.unheard: dict[Path, str] = {}
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
        companions = self._companions(item, kind, bool(steps))
        if shape is None or text_path is None or steps is None or companions is None:
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
            **companions,
        )

    def _companions(self, item: Item, kind: str, heard: bool) -> dict[str, Path] | None:
        """The caches of references and masks that the mode has a use for; None with the reason noted."""
        found: dict[str, Path] = {}
        if kind != "audio":
            job = reference_job(self.plan, item, self.settings)
            if job is not None and not self._made(item, job.path, job.source, failure_name(job)):
                return None
            if job is not None:
                if reason := latents_state(job, self.vae_fingerprint, _KEEP)[1]:
                    self.problems[job.path] = reason
                    return None
                found["reference_path"] = job.path
        if heard and (path := item.reference_audio_path) is not None and item.reference_audio is not None:
            # once something is missing the run ends anyway, and sounds need not be listened to
            if not path.is_file() and not self.problems and (reason := _unheard(item.reference_audio)):
                self.unheard[item.reference_audio] = reason
                return found
            wanted = reference_settings(self.plan, item, self.settings)
            if not self._fresh(path, item.reference_audio, wanted, "audio VAE", self.audio_fingerprint):
                return None
            found["reference_audio_path"] = path
        for key, source, path, wanted in (
            ("mask_path", item.mask, item.mask_path, mask_settings),
            ("audio_mask_path", item.audio_mask, item.audio_mask_path, audio_mask_settings),
        ):
            if path is None or source is None or not (kind != "audio" if key == "mask_path" else heard):
                continue
            if not self._made(item, path, source, path.name):
                return None
            if not self._fresh(path, source, wanted(self.plan, item)):
                return None
            found[key] = path
        return found

    def _made(self, item: Item, path: Path, source: Path, name: str) -> bool:
        """Whether a companion is there; if it failed before, its item is left out, as it was then."""
        if path.is_file():
            return True
        if reason := failed_before(item, name, source):
            self.left_out[item.source.path] = reason
        else:
            self.problems[path] = "missing"
        return False

    def _fresh(self, path: Path, source: Path, wanted: dict[str, Any], part: str = "", fingerprint: str = "") -> bool:
        try:
            file = CacheFile(path)
            reason = caches.stale_made(file, source, wanted, part, fingerprint) if file.fingerprinted else None
        except CacheError as error:
            reason = "missing" if not path.is_file() else without_mend(error)
        if reason:
            self.problems[path] = reason
        return reason is None

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
            self.problems[path] = "missing" if not path.is_file() else without_mend(error)
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
            self.problems[path] = "missing" if not path.is_file() else without_mend(error)
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
        forms: list[TextForm] = [preferred, "full" if preferred == "compact" else "compact"]
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
                reason = without_mend(error)
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
                f"{caches.MEND if self.plan.items else NO_SOURCES}",
                first,
            )
        for path, reason in self.left_out.items():
            self.events.message(f"{path.name} is left out, as when it was cached: {reason}", "warning")
        for path, reason in self.mute.items():
            self.events.message(f"{path.name} is trained without its sound, as when it was cached: {reason}", "warning")
        for path, reason in self.unheard.items():
            self.events.message(f"The reference sound {path.name} is missing in training: {reason}", "warning")
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


def _unheard(path: Path) -> str:
    """Why a reference sound could not be cached; "" where it can be heard, and was only not cached yet."""
    try:
        read_sound(path)
    except DataError as error:
        return str(error)
    return ""


def without_mend(error: DataError) -> str:
    return str(error).replace(caches.MEND, "").strip()
