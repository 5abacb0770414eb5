"""Prompts in a line each, as they will be drawn: a person sees at once what was read of them, and what was not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dataset.as_read import quoted
from ..dataset.captions import with_trigger
from ..shapes import Mode
from .prompt_files import remarks_of
from .prompts import Prompt

SHOWN_PROMPTS = 12


def describe_prompts(prompts: Sequence[Prompt], mode: Mode, source: Any = None) -> str:
    """A line for each of the first of `prompts`, which a model of `mode` draws, their common negative prompt, and the
    lines that were passed over where `source` is the file that they come from."""
    negatives = {prompt.negative if prompt.needs_negative else "" for prompt in prompts}
    facts = [_facts(prompt, mode) for prompt in prompts]
    common = [one for one in facts[0] if len(facts) > 1 and all(one in others for others in facts)] if facts else []
    own = [[one for one in of_one if one not in common] for of_one in facts]
    lines = [
        _line(number, prompt, said, len(negatives) > 1)
        for number, (prompt, said) in enumerate(zip(prompts, own, strict=True), 1)
    ]
    more = len(lines) - SHOWN_PROMPTS
    lines[SHOWN_PROMPTS:] = [f"  and {more} more"] if more > 0 else []
    if len(negatives) == 1 and (negative := negatives.pop()):
        lines.append(f"  negative prompt of {'each' if len(prompts) > 1 else 'it'}: {quoted(negative)}")
    if passed_over := remarks_of(source):
        count, first = len(passed_over), quoted(passed_over[0])
        lines.append(f"  lines that begin with #, which are no prompts: {count}; the first: {first}")
    of_all = f" ({', '.join(common)})" if common else ""
    return "\n".join([f"Prompts of samples as they are read{of_all}:", *lines])


def lacking_trigger(prompts: Sequence[Prompt], triggers: Sequence[str]) -> str:
    """A sentence where none of `prompts` has one of the trigger words, which all that is learned answers to; or ""."""
    if not prompts or not triggers:
        return ""
    if any(with_trigger(prompt.text, trigger) == prompt.text for prompt in prompts for trigger in triggers):
        return ""
    named = " or ".join(repr(trigger) for trigger in triggers)
    return f"No sample prompt has the trigger word ({named}), so samples show the LoRA without it. Put it into one."


def _facts(prompt: Prompt, mode: Mode) -> list[str]:
    """With what a prompt is drawn, in words."""
    shape = prompt.shape
    size = [] if mode == "audio" else [f"{shape.width}x{shape.height}"]
    frames = "1 frame" if shape.frames == 1 else f"{shape.frames} frames at {shape.fps:g} a second"
    facts = [*size, frames, f"seed {prompt.seed}", f"{prompt.steps} step{'s' if prompt.steps > 1 else ''}"]
    if mode != "audio":
        facts.append(f"guidance {prompt.guidance:g}")
    if mode != "video" and (mode == "audio" or prompt.audio_guidance != prompt.guidance):
        facts.append(f"guidance of the sound {prompt.audio_guidance:g}")
    return facts


def _line(number: int, prompt: Prompt, facts: Sequence[str], with_negative: bool) -> str:
    """What is known of the prompt of that number beside what is so of all, and which of it its own line says."""
    parts = [f"  prompt {number}: {quoted(prompt.text)} {', '.join(facts)}".rstrip()]
    if prompt.own:
        parts.append(f"its own: {', '.join(prompt.own)}")
    if given := [one.name for one in prompt.given]:
        parts.append(f"given: {', '.join(given)}")
    if with_negative and prompt.needs_negative and prompt.negative:
        parts.append(f"negative prompt: {quoted(prompt.negative)}")
    return "; ".join(parts)
