"""Samples of a dataset that is its caches alone: of a manifest, of `cache_only`, or imported from another trainer.

Nothing but the cache folder is looked at. What a file is, its name and its tensors say (see caches); where this program
made it, its metadata say with what weights, and those are compared. A sample without text, as one without the reference
that its dataset promises, is left out with a warning, as in the community trainer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..caching.cache_file import VIRTUAL_KEYS, CacheFile, stale_weights, without_mend
from ..caching.encode_keyframes import keyframes_path
from ..caching.encode_text import said_caption, stale_text_weights, useless_text
from ..caching.notes import damage
from ..dataset.cache_names import (
    LATENT_SUFFIX,
    TextForm,
    audio_cache_name,
    audio_mask_cache_name,
    mask_cache_name,
    text_cache_name,
)
from ..dataset.captions import with_trigger
from ..dataset.dataset_file import DatasetConfig
from ..dataset.entry import DatasetRef, DatasetSettings, numbered_caches
from ..dataset.items import require_share
from ..dataset.manifest import MANIFEST_NAME
from ..dataset.plan import DatasetPlan, plan_dataset
from ..dataset.scan import Skipped
from ..dataset.windows import IMAGE_FPS
from ..errors import CacheError
from ..events import Events
from ..models.positions import slot_places
from ..objective.audio import virtual_shape
from ..shapes import (
    AUDIO_BINS,
    AUDIO_CHANNELS,
    VIDEO_CHANNELS,
    LatentShape,
    VideoShape,
)
from .cached_names import CachedName, cached_names, first_names, listed_in_manifest, lone_texts, passed_over
from .captions_in_use import cached_texts, caption_count, told_of_caches
from .sample_check import SampleChecker, up_to_the_last
from .samples import Sample, SoundBuckets


def cached_captions(entry: DatasetSettings) -> Iterator[str]:
    """The first captions in the text caches of a dataset, in the order of its samples."""
    return (captions[0] for _, captions in cached_texts(entry) if captions)


def are_unsaid(config: DatasetConfig) -> bool:
    """Whether all datasets of `config` are caches alone that are there, and none of these says its caption."""
    entries = config.datasets
    if not all(entry.from_caches and cached_names(entry) for entry in entries):
        return False
    return not any(True for entry in entries for _ in cached_captions(entry))


def dataset_captions(config: DatasetConfig, events: Events | None = None, plan: DatasetPlan | None = None) -> list[str]:
    """The first captions of the media that are trained on; `plan` spares planning. Raises DataError."""
    plan = plan or plan_dataset(config, events)
    found = [item.caption for item in plan.items if not item.validation]
    for entry in config.datasets:
        found += cached_captions(entry) if entry.from_caches else ()
    return list(dict.fromkeys(found))


class CachedSamples:
    """Makes samples of caches, and notes in a `SampleChecker` what is wrong with them."""

    def __init__(self, checker: SampleChecker) -> None:
        self.checker = checker
        self.seen = 0
        self._rates: dict[Path, float | None] = {}  # latents -> the frame rate that they say
        self._origins: dict[Path, str] = {}  # and the check sum of what they were made from

    def of(self, ref: DatasetRef) -> list[Sample]:
        """The samples of a dataset. Raises CacheError where its folder holds none."""
        entry = ref.entry
        names = cached_names(entry)
        self.seen += len(names)
        self._tell_passed_over(ref)
        if not names:
            hint = "Correct the path."
            if entry.preprocessed_data_root is not None:
                hint = f"Run `ltx2-train cache import {entry.preprocessed_data_root} --out {entry.caches}` first."
            raise CacheError(f"{ref.name}: there are no caches in {entry.caches}. {hint}", entry.caches)
        samples = []
        for one in names:
            parsed = CachedName.beside(entry.caches, one)
            if parsed is None:
                self.checker.left_out[entry.caches / one] = (
                    "its name is not that of latents (docs/dataset_file.md lists the names)"
                )
                continue
            try:
                sample = self._sample(entry, parsed, ref.index, f"{ref.prefix}/{one.removesuffix(LATENT_SUFFIX)}")
            except CacheError as error:
                self.checker.problems[error.path or entry.caches / one] = without_mend(error)
                continue
            if sample is not None:
                samples.append(sample)
        self._tell_rates(ref, samples)
        self._tell_found(ref, samples)
        paths = (entry.caches / one for one in names)
        out = [Skipped(path, self.checker.left_out[path]) for path in paths if path in self.checker.left_out]
        require_share(ref, out, len(names))
        return samples

    def _tell_passed_over(self, ref: DatasetRef) -> None:
        folder, lost = ref.entry.caches, passed_over(ref, self.checker.plan.config)
        if not lost:
            return
        shown = first_names([str(path.relative_to(folder)) for path in lost])
        self.checker.events.message(
            f"{ref.name}: {shown} below {folder} {'is' if len(lost) == 1 else 'are'} not used: caches lie in the "
            f"folder itself, and their names end in {LATENT_SUFFIX}.",
            "warning",
        )

    def _tell_found(self, ref: DatasetRef, samples: Sequence[Sample]) -> None:
        """What a folder of caches comes to, and what of it another build left there or is lacking."""
        tell, entry = self.checker.events.message, ref.entry
        sizes = Counter("sound alone" if one.kind == "audio" else _size_of(one.shape) for one in samples)
        media = len({one.text_path for one in samples})
        of_sizes = ", ".join(f"{count} of {size}" for size, count in sizes.items())
        tell(f"{ref.name} is read from its caches alone: {len(samples)} samples of {media} media ({of_sizes}).")
        for text in told_of_caches(ref):
            tell(text, "warning")
        if shared := self._of_one_text(samples):
            tell(
                f"{ref.name}: latents of several media share the text cache of one, and its caption: a clip that is "
                f"another since, or folders of equal names put together. Take out what is old: {first_names(shared)}.",
                "warning",
            )
        if entry.cache_files is not None:
            return
        if lone := lone_texts(entry):
            tell(f"{ref.name}: there are captions without latents in {entry.caches}: {first_names(lone)}.", "warning")
        listed = listed_in_manifest(entry.caches)
        names = set(cached_names(entry))
        if listed is not None and (older := sorted(names - listed)):
            tell(
                f"{ref.name}: {len(older)} of {len(names)} latents in {entry.caches} are not in the {MANIFEST_NAME} of "
                f"its last `cache build` or import, and are used: {first_names(older)}. Name the manifest as "
                "data.manifest, or take them out.",
                "warning",
            )

    def _of_one_text(self, samples: Sequence[Sample]) -> list[str]:
        """The latents of samples whose text cache is that of other media too, by what the latents were made from."""
        made: dict[Path, dict[str, str]] = {}
        for one in samples:
            if source := self._origins.get(one.latent_path):
                made.setdefault(one.text_path, {})[source] = one.latent_path.name
        return [name for sources in made.values() if len(sources) > 1 for name in sources.values()]

    def _tell_rates(self, ref: DatasetRef, samples: Sequence[Sample]) -> None:
        """Clips of another frame rate than is set for the dataset, and those that no rate is known of."""
        clips = [one for one in samples if one.kind == "video"]
        known = {one.key: self._rates.get(one.latent_path) for one in clips}
        rates = {rate for rate in known.values() if rate is not None}
        said = ref.entry.target_fps if "target_fps" in ref.entry.model_fields_set else None
        if said is not None and (others := sorted(rates - {said})):
            self.checker.events.message(
                f"{ref.name}: target_fps = {said:g} counts where caches are made, and for those that say no rate. "
                f"These were made at {', '.join(f'{rate:g}' for rate in others)} frames a second, which is used.",
                "warning",
            )
        silent = [key for key, rate in known.items() if rate is None]
        if silent and said is None:
            self.checker.events.message(
                f"{ref.name}: the caches of {len(silent)} of {len(clips)} clips do not say their frame rate, "
                f"{silent[0].rpartition('/')[2]} first: {ref.entry.target_fps:g} is taken. Set target_fps where it was "
                "another.",
                "warning",
            )

    def _sample(self, entry: DatasetSettings, name: CachedName, index: int, key: str) -> Sample | None:
        checker, mode = self.checker, self.checker.mode
        if mode == "audio" and name.mirrored:
            return None  # its sound is that of its clip
        path = entry.caches / name.name
        file = CacheFile(path) if path.is_file() else None
        recording = file is not None and VIRTUAL_KEYS[0] in file.keys
        if mode == "video" and recording:
            checker.unfit += 1
            return None
        if file is None and mode != "audio":
            sound = (entry.caches / audio_cache_name(name.plain)).is_file()
            checker.left_out[path] = "there is its sound, but no latents" if sound else "it is missing"
            return None
        heard = None if mode == "video" else self._sound(entry, name)
        if heard is None and (recording or mode == "audio"):
            checker.unfit += 1
            return None
        shape = self._shape(file, name, recording, entry)
        kind = "audio" if recording or mode == "audio" else "image" if not name.count and shape.frames == 1 else "video"
        if kind == "audio":
            resolution = checker.audio.sequence_resolution
            if resolution is None:
                resolution = entry.audio_only_sequence_resolution
            shape = virtual_shape(shape, resolution)
        elif file is not None:
            self._check(file, "VAE", checker.recipe.video_vae)
        caption_file = self._text(entry, name)
        companions = self._companions(entry, name, kind, heard is not None)
        if caption_file is None or companions is None:
            return None
        _require_trigger(entry, caption_file)
        _require_one_medium([one for one in (file, heard, caption_file) if one is not None])
        self._rates[path] = stated = frame_rate(file)
        self._origins[path] = "" if file is None else file.origin
        rate = IMAGE_FPS if kind == "image" else entry.target_fps
        return Sample(
            key=key,
            shape=shape,
            fps=stated or rate,
            caption=said_caption(caption_file),
            unsaid=not said_caption(caption_file),
            latent_path=path,
            text_path=caption_file.path,
            others=self._others(entry, name, caption_file),
            dataset=index,
            repeats=entry.num_repeats,
            buckets=SoundBuckets.of(entry, checker.audio),
            first_frame_probability=entry.first_frame_probability,
            video_loss_weight=entry.video_loss_weight,
            kind=kind,
            audio_path=None if heard is None else heard.path,
            audio_steps=0 if heard is None else heard.audio_steps(),
            silent=heard is not None and heard.silent,
            audio_loss_weight=entry.audio_loss_weight,
            reference_temporal_scale=entry.reference_temporal_scale,
            **companions,
        )

    def _shape(self, file: CacheFile | None, name: CachedName, recording: bool, entry: DatasetSettings) -> LatentShape:
        if file is not None and recording:
            frames, height, width = (int(file.tensor(key)) for key in VIRTUAL_KEYS)
            return LatentShape(frames, height, width)
        if file is not None:
            shape = file.latent_shape()
            if shape.channels != VIDEO_CHANNELS:
                raise CacheError(f"its latents have {shape.channels} channels, not {VIDEO_CHANNELS}", file.path)
            return shape
        return VideoShape(max(1, name.count), name.height, name.width).latent()

    def _sound(self, entry: DatasetSettings, name: CachedName) -> CacheFile | None:
        """The file with the sound; None where there is none."""
        path = entry.caches / audio_cache_name(name.plain)
        if not path.is_file():
            return None
        file = CacheFile(path)
        found = file.audio_shape()
        if (found.channels, found.bins) != (AUDIO_CHANNELS, AUDIO_BINS):
            raise CacheError(f"its sound has {found.channels} channels of {found.bins} bins, not 8 of 16", path)
        self._check(file, "audio VAE", self.checker.recipe.audio_vae)
        return file

    def _others(self, entry: DatasetSettings, name: CachedName, first: CacheFile) -> tuple[tuple[str, Path], ...]:
        """The further captions that a medium has by what the cache of its first says."""
        found = []
        for number in range(1, said := caption_count(first)):
            file = self._text(entry, name, number)
            if file is None:
                raise CacheError(f"caption {number + 1} of {said} has no cache", first.path)
            found.append((file.metadata.get("caption", ""), file.path))
        return tuple(found)

    def _text(self, entry: DatasetSettings, name: CachedName, number: int = 0) -> CacheFile | None:
        preferred = self.checker.recipe.settings.text_form
        other: TextForm = "full" if preferred == "compact" else "compact"
        for form in (preferred, other):
            path = entry.caches / text_cache_name(name.stem, form, number)
            if not path.is_file():
                continue
            file = CacheFile(path)
            reason = useless_text(file, self.checker.mode)
            if reason is None and file.fingerprinted:
                reason = stale_text_weights(file, self.checker.recipe.text)
            if reason is not None:
                raise CacheError(reason, path)
            self.checker.foreign += not file.fingerprinted
            return file
        self.checker.left_out[entry.caches / name.name] = f"there is no text cache for {name.stem}"
        return None

    def _companions(self, entry: DatasetSettings, name: CachedName, kind: str, heard: bool) -> dict[str, Any] | None:
        companions: dict[str, Any] = {}
        if kind != "audio":
            folders = numbered_caches(entry.reference_caches())
            references = self._numbered(folders, name.name, "VAE", self.checker.recipe.video_vae)
            if entry.reference_cache_directory is not None and None in references:
                lacking = folders[references.index(None)]
                self.checker.left_out[entry.caches / name.name] = f"there is no reference of its name in {lacking}"
                return None
            companions["reference_paths"] = up_to_the_last(references)
        if heard:
            folders = numbered_caches(entry.reference_audio_caches())
            plain = audio_cache_name(name.plain)
            sounds = self._numbered(folders, plain, "audio VAE", self.checker.recipe.audio_vae)
            companions["reference_audio_paths"] = up_to_the_last(sounds)
        masks = {
            "mask_path": entry.caches / mask_cache_name(name.name) if kind != "audio" else None,
            "audio_mask_path": entry.caches / audio_mask_cache_name(name.plain) if heard else None,
        }
        for key, mask in masks.items():
            if mask is not None and mask.is_file():
                self._check(CacheFile(mask), "", "")
                companions[key] = mask
        if kind == "video":
            companions["keyframes_path"] = self._keyframes(entry.caches / name.name)
        return companions

    def _keyframes(self, latents: Path) -> Path | None:
        """The frames of the slots of the clip with these `latents`, where the run has any. Raises CacheError."""
        asked = self.checker.recipe.settings.keyframe_slots
        wanted = len(slot_places(asked, CacheFile(latents).latent_shape().video().frames)) if asked else 0
        if not wanted:
            return None
        path = keyframes_path(latents)
        if not path.is_file():
            raise CacheError(f"it is missing, and cache.keyframe_slots is {asked}", path)
        file = CacheFile(path)
        if (count := file.latent_shape().frames) != wanted:
            raise CacheError(f"it holds {count} frames, and cache.keyframe_slots asks for {wanted}", path)
        self._check(file, "VAE", self.checker.recipe.video_vae)
        return path

    def _numbered(self, folders: Sequence[Path], name: str, part: str, weights: str) -> list[Path | None]:
        """The file called `name` in each of `folders`, None where it is missing. Raises CacheError."""
        found: list[Path | None] = []
        for folder in folders:
            path = folder / name
            if path.is_file():
                self._check(CacheFile(path), part, weights)
            found.append(path if path.is_file() else None)
        return found

    def _check(self, file: CacheFile, part: str, fingerprint: str) -> None:
        """Raise CacheError where a cache of ours was made by another format or other weights; count those of others."""
        if not file.fingerprinted:
            self.checker.foreign += 1
            return
        encoder = self.checker.recipe.video_encoder if part == "VAE" else ""
        if reason := damage(file.path) or stale_weights(file, part, fingerprint, encoder):
            raise CacheError(reason, file.path)
        self.checker.note(file)


def _require_trigger(entry: DatasetSettings, text: CacheFile) -> None:
    """Raise CacheError where a caption was encoded without the trigger word that its dataset names."""
    said = said_caption(text)
    if said and with_trigger(said, entry.trigger_word) != said:
        raise CacheError(
            f'its caption is without trigger_word = "{entry.trigger_word}", and captions are those of the caches: '
            f"{said[:60]}. Leave trigger_word out, or make the caches anew with it",
            text.path,
        )


def _size_of(shape: LatentShape) -> str:
    """Width, height and frames of what was encoded."""
    video = shape.video()
    return f"{video.width}x{video.height}x{video.frames}"


def _require_one_medium(files: Sequence[CacheFile]) -> None:
    """Raise CacheError where the caches of a sample were written for several media. Older ones do not say."""
    said = {file.medium: file for file in files if file.medium}
    if len(said) > 1:
        (one, first), (other, second) = list(said.items())[:2]
        raise CacheError(
            f"it was written for {one}, and {second.path.name} beside it for {other}: the caches of two media stand "
            "under one name. Give them their own names again, or cache anew",
            first.path,
        )


def frame_rate(file: CacheFile | None) -> float | None:
    """The frame rate that a file says it was made at; newer files of the community trainer call it target_fps."""
    said = {} if file is None else file.metadata
    try:
        return float(said.get("fps") or said.get("target_fps") or 0) or None
    except ValueError:
        return None
