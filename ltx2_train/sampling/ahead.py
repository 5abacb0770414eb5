"""Which prompts a run will draw, as far as its dataset decides: so that they can be encoded ahead, all of them."""

from __future__ import annotations

from dataclasses import replace

from ..config import DrawSettings, RunConfig
from ..errors import ConfigError
from ..feed.loader import Sample, TrainingSet
from .prompts import Prompt, read_prompts, validation_prompts

CAPTIONS = 2  # drawn where no prompts are set


def training_prompts(run: RunConfig, data: TrainingSet, version: str) -> list[Prompt]:
    """The prompts that are drawn while training a model of `version` on `data`, in order; none where samples are off.

    Raises ConfigError.
    """
    settings = DrawSettings.of(run.sample, version)
    if not settings.wanted:
        return []
    captions = list(dict.fromkeys(sample.caption for sample in data.samples if sample.caption))[:CAPTIONS]
    if settings.prompts is None and not captions:
        raise unsaid_captions()
    return read_prompts(settings, captions) + validation_prompts(data.validation, run, settings)


def unsaid_captions() -> ConfigError:
    """What is raised where captions are to be drawn, and the caches of a dataset do not say them."""
    return ConfigError(
        "sample.prompts is not set, and the caches of this dataset do not say their captions, as after "
        "`ltx2-train cache import`. Name prompts in sample.prompts, or set sample.every to 0."
    )


def prompts_ahead(run: RunConfig, data: TrainingSet, version: str) -> list[Prompt]:
    """The same, and those of training from the manifest of `data`, where samples come by the names of their files."""

    def by_name(samples: tuple[Sample, ...]) -> tuple[Sample, ...]:
        return tuple(sorted(samples, key=lambda sample: (sample.dataset, sample.latent_path.name)))

    other = replace(data, samples=by_name(data.samples), validation=by_name(data.validation))
    return list(dict.fromkeys([*training_prompts(run, data, version), *training_prompts(run, other, version)]))
