"""What a slider learns: at strength 1 more of one thing, at strength -1 more of its opposite.

Mode text. The frozen model is asked for its velocity at the same noise three times, for the prompts of what the slider
is for (neutral), of more of it and of less. The LoRA at strength +1 and -1 learns to answer the neutral prompt with

    t(+-1) = like(neutral +- guidance (positive - negative)),      like: with the mean and spread of neutral

There is no data: x0 = 0, so the input is sigma noise. Neutral is the class prompt, as the sampler will read it; with
the empty prompt in its place the slider would also learn what tells the class from everything else.

Mode reference. Two latents of the same name, one noise, one sigma: at strength +1 the velocity of the positive one is
learned, at -1 that of the negative one.

Both halves are backward passes of their own, since layers that are computed again must meet the strength they had.

Sliders: Gandikota et al. 2023, "Concept Sliders", arXiv:2311.12092.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import RunConfig
from ..config.slider import SliderSettings, SliderTarget
from ..feed.batches import Batch
from ..feed.loader import Sample, TrainingSet
from ..lora.inject import LoraSet
from ..models.patchify import video_tokens
from ..models.transformer import LTXTransformer
from ..objective.flow import element_loss, masked_mean
from ..objective.terms import Term
from .contexts import ContextStore
from .noised import Noised
from .ready import Group, Ready
from .step import StepTerms

HALVES = ((1.0, "positive"), (-1.0, "negative"))  # strength, and the name of its term


@dataclass(frozen=True)
class SliderSet(TrainingSet):
    """What a slider is trained on. `targets` by the key of a sample, in mode text; `negatives` by the latents of the
    positive, in mode reference."""

    targets: Mapping[str, SliderTarget] = field(default_factory=dict)
    negatives: Mapping[Path, Path] = field(default_factory=dict)

    def load_latents(self, sample: Sample) -> Tensor:
        if sample.key not in self.targets:
            return super().load_latents(sample)
        shape = sample.shape
        return torch.zeros(shape.channels, shape.frames, shape.height, shape.width)

    def load_negative(self, sample: Sample) -> Tensor:
        """[128, F, H, W] of the negative in float32. Raises CacheError where the file is damaged."""
        return self.opened(self.negatives[sample.latent_path]).latents()


class Slider:
    """The two halves of each step of a slider."""

    def __init__(self, settings: SliderSettings, run: RunConfig, data: SliderSet, contexts: ContextStore) -> None:
        self.settings, self._run, self._data, self._contexts = settings, run, data, contexts

    def parts(self, model: LTXTransformer, loras: LoraSet, ready: Ready) -> Iterator[StepTerms]:
        """The loss of each half, whose gradient has to be taken before the next one is asked for.

        The LoRA is at strength 1 afterwards.
        """
        (group,) = ready.groups  # pictures alone, so nothing keeps them apart
        video = group.video
        assert video is not None
        try:
            goals = self._goals(model, loras, ready.batch, group, video)
            model.train()
            for strength, name in HALVES:
                loras.set_strength(strength)
                shown, goal = goals[name]
                predicted = model(shown.modality(group.contexts["video"]), None).video
                assert predicted is not None
                values = masked_mean(element_loss(predicted, goal, self._run.loss))
                yield StepTerms({name: Term(values, self._weights(ready.batch))}, {"sigma": video.sigma})
        finally:
            loras.set_strength(1.0)

    def about(self) -> dict[str, Any]:
        """What a saved LoRA says of it."""
        about: dict[str, Any] = {"ss_slider_mode": self.settings.mode}
        if self.settings.mode == "text":
            about["ss_slider_guidance_strength"] = f"{self.settings.guidance:g}"
            about["slider_targets"] = [target.model_dump() for target in self.settings.targets]
        return about

    def _goals(
        self, model: LTXTransformer, loras: LoraSet, batch: Batch, group: Group, video: Noised
    ) -> dict[str, tuple[Noised, Tensor]]:
        """For each half: what the model is shown, and the velocity it is to answer."""
        if self.settings.mode == "reference":
            latents = torch.stack([self._data.load_negative(sample) for sample in batch.samples])
            other = replace(video, clean=video_tokens(latents).to(video.clean))
            return {"positive": (video, video.noise - video.clean), "negative": (other, other.noise - other.clean)}
        targets = [self._data.targets[sample.key] for sample in batch.samples]
        neutral = group.contexts["video"]
        prompts = ([one.positive for one in targets], [one.negative for one in targets])
        model.eval()
        answers: list[Tensor] = []
        with loras.off(), torch.no_grad():
            for context in (neutral, *(self._contexts.batch(texts, "video", neutral.device) for texts in prompts)):
                answer = model(video.modality(context), None).video
                assert answer is not None
                answers.append(answer.float())
        middle, more, less = answers
        step = self.settings.guidance * (more - less)
        return {"positive": (video, like(middle + step, middle)), "negative": (video, like(middle - step, middle))}

    def _weights(self, batch: Batch) -> list[float]:
        targets = self._data.targets
        return [targets[sample.key].weight if sample.key in targets else 1.0 for sample in batch.samples]


def like(values: Tensor, other: Tensor) -> Tensor:
    """`values` [B, ...] with the mean and the standard deviation of `other`, each of the whole sample."""
    dims = tuple(range(1, values.ndim))
    centred = values - values.mean(dims, keepdim=True)
    spread = centred.square().mean(dims, keepdim=True).sqrt().clamp(min=1e-8)
    mean = other.mean(dims, keepdim=True)
    return centred / spread * (other - mean).square().mean(dims, keepdim=True).sqrt() + mean
