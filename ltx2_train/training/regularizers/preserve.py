"""What the base does is kept: at the empty prompt, at a prompt without the trigger, and in the sound of silent clips.

Both models see the same noisy clip, so with a LoRA that does nothing the terms are zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from ...models.patchify import audio_tokens
from ...models.positions import audio_positions
from ...objective.audio import audio_steps, silence_batch
from ...objective.regularizers import DopSettings
from ...shapes import AudioLatentShape
from ..contexts import EMPTY_PROMPT
from ..noised import Noised
from ..ready import Group
from .base import Cost, CostSizes, Kit, Preservation, with_texts


class Blank(Preservation):
    """What is made without a prompt, which guidance compares with, stays what the base makes."""

    name = "blank"

    @property
    def key(self) -> Any:
        return "text", EMPTY_PROMPT

    @classmethod
    def cost(cls, settings: Any, sizes: CostSizes) -> Cost:
        return one_more(sizes)

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        return self.kit.texts([EMPTY_PROMPT] * group.count)

    def beside(self, group: Group) -> Group | None:
        return with_texts(group, self.name)


class Dop(Preservation):
    """What is made at a prompt without the trigger stays what the base makes."""

    name = "dop"

    def __init__(self, settings: DopSettings, kit: Kit) -> None:
        super().__init__(settings, kit)
        self._triggers = sought_triggers(settings, kit.triggers)

    @property
    def key(self) -> Any:
        return ("text", self.settings.class_prompt) if self.settings.captions == "class" else ("captions", self.name)

    @classmethod
    def cost(cls, settings: Any, sizes: CostSizes) -> Cost:
        return one_more(sizes)

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        if self.settings.captions == "class":
            return self.kit.texts([self.settings.class_prompt] * group.count)
        texts = [self._without(sample.caption) for sample in group.samples]
        if not any(text is not None for text in texts):
            return {}
        # a caption without the trigger has nothing to be kept apart from; it does not count
        keys = [sample.text_path if text is None else text for sample, text in zip(group.samples, texts, strict=True)]
        return self.kit.texts(keys)

    def beside(self, group: Group) -> Group | None:
        return with_texts(group, self.name) if any(self.counts(group)) else None

    def counts(self, group: Group) -> list[bool]:
        if self.settings.captions == "class":
            return super().counts(group)
        return [self._without(sample.caption) is not None for sample in group.samples]

    def _without(self, caption: str) -> str | None:
        return without_trigger(caption, self._triggers, self.settings.class_prompt)


class AudioDop(Preservation):
    """On clips without sound: the sound that the LoRA would give to silence stays what the base would give."""

    name = "audio_dop"
    reads = ("audio",)

    @property
    def key(self) -> Any:
        return "silence"

    @classmethod
    def cost(cls, settings: Any, sizes: CostSizes) -> Cost:
        return one_more(sizes)

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """Silence and its noise, [count, T, C], and what the sound reads."""
        if group.audio is not None or group.video is None:
            return {}
        assert self.kit.silence is not None
        sample = group.samples[0]
        steps = audio_steps(sample.shape.video(sample.fps).frames, sample.fps)
        silence = silence_batch(self.kit.silence, group.count, steps)
        noise = torch.randn(silence.shape, generator=generator)
        texts = self.kit.texts([sample.text_path for sample in group.samples])
        return {"clean": audio_tokens(silence), "noise": audio_tokens(noise), "text": texts["audio"]}

    def beside(self, group: Group) -> Group | None:
        clean = group.drawn.get(f"{self.name}.clean")
        if clean is None:
            return None
        assert group.video is not None
        positions = audio_positions(AudioLatentShape(clean.shape[1]), clean.device)
        sound = Noised(clean, group.drawn[f"{self.name}.noise"], group.video.sigma, positions)
        return replace(group, audio=sound, contexts={**group.contexts, "audio": group.drawn[f"{self.name}.text"]})


def one_more(sizes: CostSizes) -> Cost:
    """Of a pass of its own: what the base predicts is held, and compared in float32."""
    return Cost(forwards=1, steps=1, bytes=2 * 4 * sizes.outputs)


def sought_triggers(settings: DopSettings, of_dataset: Sequence[str]) -> tuple[str, ...]:
    """The triggers that are looked for, the longest first."""
    found = [settings.trigger] if settings.trigger.strip() else of_dataset
    return tuple(sorted({one.strip() for one in found if one.strip()}, key=len, reverse=True))


def without_trigger(caption: str, triggers: Iterable[str], instead: str) -> str | None:
    """`caption` with `instead` where one of `triggers` is, as whole words in any case; None where none of them is."""
    changed = caption
    for trigger in triggers:
        changed = re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", lambda _: instead.strip(), changed, flags=re.IGNORECASE)
    if changed == caption:
        return None
    changed = re.sub(r"\s+([,.;:!?])", r"\1", " ".join(changed.split()))
    return changed.strip(" ,;:") if not instead.strip() else changed


def dop_texts(settings: DopSettings, captions: Iterable[str], of_dataset: Sequence[str]) -> list[str]:
    """The prompts that DOP reads. Raises ConfigError where the trigger is to be replaced and no caption holds it."""
    if not settings.weight:
        return []
    if settings.captions == "class":
        return [settings.class_prompt]
    triggers = sought_triggers(settings, of_dataset)
    if not triggers:
        raise ConfigError(
            "regularizers.dop.captions is replace, and there is no trigger to replace. Set trigger_word in the dataset "
            "file, or regularizers.dop.trigger; or set regularizers.dop.captions to class."
        )
    texts = {without_trigger(caption, triggers, settings.class_prompt) for caption in captions}
    found = sorted(text for text in texts if text is not None)
    if not found:
        raise ConfigError(
            f"regularizers.dop.captions is replace, and no caption holds the trigger {' or '.join(triggers)}. Put it "
            "into the captions (trigger_word of the dataset does so), correct regularizers.dop.trigger, or set "
            "regularizers.dop.captions to class."
        )
    return found
