"""Whether the caches of a plan are all there and fit, item by item, and saying together what does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..caching.cache_file import MEND, CacheFile
from ..caching.encode import Latents, References
from ..caching.encode_keyframes import Keyframes
from ..caching.encode_mask import Masks, SoundMasks
from ..caching.encode_sound import ReferenceSound, SoundLatents
from ..caching.encode_text import Text, said_caption
from ..caching.kind import Job
from ..caching.recipe import CacheRecipe
from ..dataset.notes import SHOWN_AT_MOST
from ..dataset.plan import DatasetPlan, Item
from ..errors import CacheError, DataError
from ..events import Events
from ..media.sound import read_sound
from ..objective.audio import AudioSettings, virtual_shape
from ..shapes import Mode
from ..weights.reader import ENDING
from .captions_in_use import told_of_unsaid
from .samples import Sample, SoundBuckets

NO_SOURCES = (
    "These datasets are read from their caches alone, so they cannot be made again here. Build them where the media "
    "are, with this checkpoint, or choose the checkpoint they were made with."
)
NOTHING_TO_SEE = "The datasets hold sound alone, which model.mode = video does not train. Set it to audio."


class SampleChecker:
    """Turns items into samples and notes what is missing, stale, left out or of no use to the mode."""

    def __init__(self, plan: DatasetPlan, recipe: CacheRecipe, events: Events, audio: AudioSettings) -> None:
        self.plan, self.recipe, self.events, self.audio = plan, recipe, events, audio
        self.mode: Mode = recipe.mode
        self.problems: dict[Path, str] = {}
        self.left_out: dict[Path, str] = {}
        self.mute: dict[Path, str] = {}
        self.unheard: dict[Path, str] = {}
        self.marks: dict[Path, str] = {}  # of the files that were found good, see CacheFile.mark
        self.origins: dict[Path, str] = {}  # and of the media that they were made from
        self.unfit = 0
        self.foreign = 0
        self._latents, self._references = Latents(plan, recipe), References.each(plan, recipe)
        self._sounds, self._reference_sounds = SoundLatents(plan, recipe), ReferenceSound.each(plan, recipe)
        self._masks, self._sound_masks = Masks(plan, recipe), SoundMasks(plan, recipe)
        self._keyframes = Keyframes(plan, recipe)
        self._text = Text(plan, recipe)
        self._texts: dict[tuple[Path, str], tuple[Path, ...] | None] = {}
        self._unsaid: dict[tuple[Path, str], Item] = {}

    def sample(self, item: Item) -> Sample | None:
        """The sample of `item`, or None where the mode has no use for it or with the reason noted."""
        entry, kind = self.plan.settings_of(item), item.source.media.kind
        if self.mode == "video" and kind == "audio":
            self.unfit += 1
            return None
        if self.mode == "audio" and item.flipped:
            return None  # the sound of a mirrored copy is that of its clip
        latents = None if self.mode == "audio" else self._latents.of(item)
        if latents is not None and not latents.path.is_file() and (reason := self._latents.failure(latents)):
            self.left_out[item.source.path] = reason
            return None
        steps, silent = (0, False) if self.mode == "video" else self._heard(item)
        if steps == 0 and latents is None:
            if item.source.path in self.mute:
                self.left_out[item.source.path] = self.mute.pop(item.source.path)
            else:
                self.unfit += 1
            return None
        if latents is None:
            resolution = self.audio.sequence_resolution
            if resolution is None:
                resolution = entry.audio_only_sequence_resolution
            shape, kind = virtual_shape(item.shape, resolution), "audio"
        else:
            file = self._usable(latents)
            shape = None if file is None else file.latent_shape()
        texts = self._texts_of(item)
        companions = self._companions(item, latents is not None, bool(steps))
        if shape is None or texts is None or steps is None or companions is None:
            return None
        return Sample(
            key=item.key,
            shape=shape,
            fps=item.fps,
            caption=item.caption,
            latent_path=item.latent_path,
            text_path=texts[0],
            others=tuple(zip(item.source.others, texts[1:], strict=True)),
            unsaid=item.text_key in self._unsaid,
            dataset=item.dataset.index,
            repeats=entry.num_repeats,
            buckets=SoundBuckets.of(entry, self.audio),
            first_frame_probability=entry.first_frame_probability,
            video_loss_weight=entry.video_loss_weight,
            kind=kind,
            audio_path=item.audio_path if steps else None,
            audio_steps=steps,
            silent=silent,
            audio_loss_weight=entry.audio_loss_weight,
            reference_temporal_scale=entry.reference_temporal_scale,
            **companions,
        )

    def _usable(self, job: Job) -> CacheFile | None:
        """The fresh file of `job`; None with the reason noted."""
        state = job.kind.check(job)
        if problem := state.problem:
            self.problems[job.path] = problem
            return None
        assert state.file is not None, job.path
        self.note(state.file)
        self.foreign += not state.file.fingerprinted
        return state.file

    def note(self, file: CacheFile) -> None:
        """Take down what tells a file that was found good, and its medium, from others."""
        self.marks[file.path], self.origins[file.path] = file.mark, file.origin

    def _heard(self, item: Item) -> tuple[int | None, bool]:
        """Latent steps of the sound of `item`, 0 where it has none, None with the reason noted; and whether it is
        silence."""
        job = self._sounds.of(item)
        if job is None:
            return 0, False
        if not job.path.is_file() and (reason := self._sounds.failure(job)):
            self.mute[item.source.path] = reason
            return 0, False
        file = self._usable(job)
        return (None, False) if file is None else (file.audio_steps(), file.silent)

    def _texts_of(self, item: Item) -> tuple[Path, ...] | None:
        """The fresh text caches of `item`, one a caption: of the form that is set, else of the other."""
        if item.text_key not in self._texts:
            paths = [self._text_of(one) for one in item.by_caption]
            self._texts[item.text_key] = None if None in paths else tuple(path for path in paths if path is not None)
        return self._texts[item.text_key]

    def _text_of(self, item: Item) -> Path | None:
        job, state = self._text.either(item)
        if problem := state.problem:
            self.problems[job.path] = problem
            return None
        if state.file is not None:
            self.foreign += not state.file.fingerprinted
            if not said_caption(state.file):
                self._unsaid[item.text_key] = item
        return job.path

    def _companions(self, item: Item, seen: bool, heard: bool) -> dict[str, Any] | None:
        """The caches of references and masks that the mode has a use for; None with the reason noted."""
        needed = {
            "reference_paths": [kind.of(item) for kind in self._references] if seen else [],
            "reference_audio_paths": [kind.of(item) for kind in self._reference_sounds] if heard else [],
            "mask_path": [self._masks.of(item)] if seen else [],
            "audio_mask_path": [self._sound_masks.of(item)] if heard else [],
            "keyframes_path": [self._keyframes.of(item)] if seen else [],
        }
        paths_of: dict[str, tuple[Path | None, ...]] = {}
        for key, jobs in needed.items():
            paths: list[Path | None] = []
            for job in jobs:
                if job is not None and not job.path.is_file():
                    if key == "reference_audio_paths":
                        # once something is missing the run ends anyway, and sounds need not be listened to
                        if not self.problems and (reason := _unheard(job.source)):
                            self.unheard[job.source] = reason
                            job = None
                    elif reason := job.kind.failure(job):
                        self.left_out[item.source.path] = reason
                        return None
                if job is not None and self._usable(job) is None:
                    return None
                paths.append(None if job is None else job.path)
            paths_of[key] = tuple(paths)
        single = ("mask_path", "audio_mask_path", "keyframes_path")
        each = {key: next(iter(paths_of.pop(key)), None) for key in single}
        return {**each, **{key: up_to_the_last(paths) for key, paths in paths_of.items()}}

    def finish(self, total: int) -> None:
        if self.problems:
            shown = "\n".join(f"  {path.name}: {why}" for path, why in list(self.problems.items())[:SHOWN_AT_MOST])
            more = len(self.problems) - SHOWN_AT_MOST
            shown += f"\n  and {more} more" if more > 0 else ""
            first = next(iter(self.problems))
            raise CacheError(
                f"{len(self.problems)} caches of {total} samples are missing or stale in {first.parent}.\n{shown}\n"
                f"{MEND if self.plan.items else NO_SOURCES}",
                first,
            )
        self.plan.require_enough(self.left_out)
        for path, reason in self.left_out.items():
            then = "" if path.suffix == ENDING else ", as when it was cached"  # caches are looked at now
            self.events.message(f"{path.name} is left out{then}: {reason}", "warning")
        for path, reason in self.mute.items():
            self.events.message(f"{path.name} is trained without its sound, as when it was cached: {reason}", "warning")
        for path, reason in self.unheard.items():
            self.events.message(f"The reference sound {path.name} is missing in training: {reason}", "warning")
        if self.unfit:
            what = "have no picture and" if self.mode == "video" else "have no sound and"
            self.events.message(f"{self.unfit} samples {what} are not used in mode {self.mode}.")
        if self._unsaid:
            self.events.message(told_of_unsaid(list(self._unsaid.values())), "warning")
        if self.foreign:
            self.events.message(
                f"{self.foreign} caches were made by another program and carry no fingerprints; "
                "only their shapes can be checked. Be sure that they belong to this checkpoint.",
                "warning",
            )

    def nothing_left(self) -> CacheError:
        """The error where no sample for training remains."""
        if self.unfit == len(self.plan.items) and self.mode == "video":
            return CacheError(NOTHING_TO_SEE)
        if self.unfit:
            return CacheError(
                "Not one sample with sound is left. Add clips or recordings that have sound, or set model.mode = video."
            )
        return CacheError("Not one sample for training is left. " + MEND)


def up_to_the_last(paths: Sequence[Path | None]) -> tuple[Path | None, ...]:
    """`paths` without what is missing behind the last that is there."""
    count = max((place for place, path in enumerate(paths, 1) if path is not None), default=0)
    return tuple(paths[:count])


def _unheard(path: Path) -> str:
    """Why a reference sound could not be cached; "" where it can be heard, and was only not cached yet."""
    try:
        read_sound(path)
    except DataError as error:
        return str(error)
    return ""
