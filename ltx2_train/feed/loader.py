"""The caches as training sees them: every sample checked before the first step, then read one by one.

Opening a training set reads headers only. Whatever is missing or stale is reported at once and together, with the
command that mends it; nothing is trained on silently that the dataset file does not describe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..caching.cache_file import CacheFile
from ..caching.recipe import CacheRecipe
from ..caching.text_file import FullText, load_text
from ..dataset.dataset_file import DatasetConfig
from ..dataset.plan import DatasetPlan, plan_dataset
from ..errors import CacheError
from ..events import Events, Passing
from ..objective.audio import AudioSettings
from ..shapes import Mode
from .cached import CachedSamples
from .sample_check import SampleChecker
from .samples import Sample, SoundBuckets

if TYPE_CHECKING:
    from ..models.text import TextFeatures

__all__ = ["FullText", "Mode", "Sample", "SoundBuckets", "TrainingSet", "load_text"]


@dataclass(frozen=True)
class TrainingSet:
    """Samples whose caches are all there and fresh. Open it with `TrainingSet.open`.

    `marks` tell each file that was looked at from another that takes its place later, `origins` the media that they
    were made from, `recipe` what they were made with.
    """

    samples: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    batch_sizes: tuple[int, ...]
    buckets: tuple[SoundBuckets, ...] = ()
    mode: Mode = "video"
    marks: dict[Path, str] = field(default_factory=dict, repr=False)
    origins: dict[Path, str] = field(default_factory=dict, repr=False)
    recipe: CacheRecipe = field(default_factory=CacheRecipe, repr=False)

    @classmethod
    def open(
        cls,
        config: DatasetConfig,
        recipe: CacheRecipe | None = None,
        events: Events | None = None,
        plan: DatasetPlan | None = None,
        audio: AudioSettings | None = None,
    ) -> TrainingSet:
        """Check every cache of `config` against `recipe`; `plan` spares planning it again.

        Mode video takes no notice of sound, audio takes only what has sound, av takes all. Raises CacheError that
        lists what is missing or stale and why.
        """
        recipe, events, audio = recipe or CacheRecipe(), events or Events(), audio or AudioSettings()
        plan = plan or plan_dataset(config, _WarningsOnly(events), brief=True)
        checker = SampleChecker(plan, recipe, events, audio)
        events.stage("check caches", len(plan.items))
        samples: tuple[list[Sample], list[Sample]] = ([], [])
        for done, item in enumerate(plan.items, 1):
            sample = checker.sample(item)
            if sample is not None:
                samples[item.validation].append(sample)
            events.progress(done, len(plan.items), item.latent_path.name)
        cached = CachedSamples(checker)
        for ref in plan.config.refs:
            if ref.entry.from_caches:
                samples[ref.validation].extend(cached.of(ref))
        checker.finish(len(plan.items) + cached.seen)
        if not samples[0]:
            raise checker.nothing_left()
        sizes = tuple(entry.batch_size for entry in plan.config.datasets)
        buckets = tuple(SoundBuckets.of(entry, audio) for entry in plan.config.datasets)
        both = tuple(samples[0]), tuple(samples[1])
        return cls(*both, sizes, buckets, recipe.mode, checker.marks, checker.origins, recipe)

    def watch(self, file: CacheFile) -> None:
        """From here on `opened` notices where another file takes the place of this one, which was found good."""
        self.marks[file.path] = file.mark

    def opened(self, path: Path) -> CacheFile:
        """The cache at `path`. Raises CacheError where it is not the one that was looked at."""
        file = CacheFile(path)
        if (mark := self.marks.get(path)) and mark != file.mark:
            raise CacheError(
                f"The cache {path} was replaced while the run was trained: it is of another source, other settings or "
                "other weights. Start the run again: it looks at all caches anew and goes on.",
                path,
            )
        return file

    def load_latents(self, sample: Sample) -> torch.Tensor:
        """[128, F, H, W] in float32, normalised. Raises CacheError where the file is damaged."""
        return self.opened(sample.latent_path).latents()

    def load_audio(self, sample: Sample) -> torch.Tensor:
        """[8, T, 16] in float32, normalised; T is `audio_steps`. Raises CacheError where the file is damaged."""
        assert sample.audio_path is not None, sample.key
        return self.opened(sample.audio_path).audio_latents()[:, : sample.audio_steps]

    def load_references(self, sample: Sample) -> tuple[torch.Tensor | None, ...]:
        """[128, F, H, W] of each reference in float32, normalised; None where one is missing. Raises CacheError where
        a file is damaged."""
        return tuple(None if path is None else self.opened(path).latents() for path in sample.reference_paths)

    def load_reference_audios(self, sample: Sample) -> tuple[torch.Tensor | None, ...]:
        """[8, T, 16] of each reference sound in float32, normalised, as long as it is; None where one is missing."""
        files = [None if path is None else self.opened(path) for path in sample.reference_audio_paths]
        return tuple(None if file is None else file.audio_latents()[:, : file.audio_steps()] for file in files)

    def load_mask(self, sample: Sample) -> torch.Tensor:
        """bool [F, H, W] in latents, true where the clip is given. Raises CacheError where the file is damaged."""
        assert sample.mask_path is not None, sample.key
        return self.opened(sample.mask_path).mask()

    def load_audio_mask(self, sample: Sample) -> torch.Tensor:
        """bool [T], true where the sound is given; T is `audio_steps`. Raises CacheError where the file is damaged."""
        assert sample.audio_mask_path is not None, sample.key
        mask = self.opened(sample.audio_mask_path).mask()
        missing = sample.audio_steps - len(mask)  # caches of the sound once had a step less, and so had their masks
        return torch.cat([mask, mask[-1:].expand(max(0, missing))])[: sample.audio_steps]

    def load_keyframes(self, sample: Sample) -> torch.Tensor:
        """[128, K, H, W] in float32, normalised: the frames of its slots. Raises CacheError where the file is
        damaged."""
        assert sample.keyframes_path is not None, sample.key
        return self.opened(sample.keyframes_path).latents()

    def load_text(self, sample: Sample) -> TextFeatures | FullText:
        """The caption, in the form it is cached in. Raises CacheError where the file is damaged."""
        return load_text(sample.text_path)


class _WarningsOnly(Passing):
    """Passes on what the user must know and drops the log lines of planning, which caching has shown already."""

    def message(self, text: str, level: str = "info") -> None:
        if level != "info":
            super().message(text, level)
