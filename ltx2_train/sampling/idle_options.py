"""Settings of samples that no prompt makes use of, and sizes that are rounded: told by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..conditions.settings import AudioReference, FirstFrame
from ..config import DrawSettings, SampleSettings
from ..config.sample import SIZES
from ..dataset.odd_captions import odd_look
from ..shapes import Mode
from .prompts import Prompt

# when samples are drawn in training, and of what there alone
_OF_TRAINING = ("every", "every_epochs", "at_start", "validation_clips", "validation_first_frame")
# what other programs take for weights of words, and for a choice of words
_WEIGHTED = re.compile(r"\([^()]+:\d+(?:\.\d+)?\)")
_CHOICE = re.compile(r"\{[^{}]*\|[^{}]*\}|(?<!\w)__[\w/-]+__(?!\w)")
_WRAPPED = re.compile(r"^(?:\"[^\"]*\"|\u201c[^\u201d]*\u201d|'[^']*'),?$")
_OF_JSON = re.compile(r"^[\[{]\s*\"|^[\[\]{}],?$")
_REMARK = re.compile(r"^(?://|;|--\s|<!--|/\*)")


def only_words(prompts: Sequence[Prompt]) -> list[str]:
    """A sentence on the first of each form of signs in `prompts` that the text encoder reads as they stand, and on each
    prompt that was hardly meant to be one."""
    texts = [text for prompt in prompts for text in (prompt.text, prompt.negative)]
    firsts = (next(filter(None, map(form.search, texts)), None) for form in (_WEIGHTED, _CHOICE))
    told = [
        f"{found[0]!r} in a sample prompt is read as words, as it stands: prompts have no weights and no choices."
        for found in firsts
        if found is not None
    ]
    if len(prompts) > 1 and all(one.text.startswith((f"{n}.", f"{n})")) for n, one in enumerate(prompts, 1)):
        told.append("All sample prompts begin with their numbers, which are read as words. Leave them out.")
    first: dict[Prompt, int] = {}
    for number, prompt in enumerate(prompts, 1):
        about = f"Sample prompt {number} ({prompt.text[:60]!r})"
        if odd := odd_prompt(about, prompt.text):
            told.append(odd)
        if first.setdefault(prompt, number) != number:
            told.append(f"{about} is the same as {first[prompt]}, and is drawn again.")
    return told


def odd_prompt(about: str, prompt: str) -> str:
    """A sentence, which begins with `about`, on a prompt that was hardly meant as it stands; or ""."""
    if _REMARK.search(prompt):
        return f"{about} is drawn as it stands; only a line of a file that begins with # is no prompt."
    if _WRAPPED.search(prompt):
        return f"{about} is read with its quotes. Leave them out, unless somebody is to say it."
    if _OF_JSON.search(prompt):
        return f"{about} looks like JSON: it is read as it stands."
    if prompt.endswith("\\"):
        return f"{about} ends in a backslash, which is read as it stands: a prompt is one line."
    look = odd_look(prompt)
    if look is None or _WEIGHTED.search(prompt) or _CHOICE.search(prompt):
        return ""
    return f"{about} looks like {look[0]}: it is read as it stands."


def unused_options(
    given: SampleSettings, settings: DrawSettings, prompts: Sequence[Prompt], mode: Mode = "av"
) -> list[str]:
    """A sentence for each of the `given` settings that none of `prompts` makes use of; `settings` are all of them.

    Where a run draws nothing there are no prompts.
    """
    media = [one for prompt in prompts for one in prompt.given]
    guided = any(_guided(prompt, mode) for prompt in prompts)
    voices = any(isinstance(one.condition, AudioReference) for one in media)
    shown = any(one.is_reference and one.stream == "video" for one in media)
    begun = any(isinstance(one.condition, FirstFrame) and not one.cached for one in media)
    used = (
        ("negative_prompt", guided, "no sample is drawn with a guidance other than 1"),
        ("rescale", guided or settings.guided_without_text, "no sample is guided"),
        ("identity_guidance", voices, "no sample is given a reference sound (--ra)"),
        ("include_reference", shown, "no sample is given a reference (--v)"),
        ("image_crf", begun, "no sample begins with a picture (--i)"),
    )
    set_to = {name: getattr(given, name) for name, _, _ in used}
    idle = [(name, why) for name, there, why in used if not there and (set_to[name] or _asked_for_none(name, given))]
    if not prompts:
        default = SampleSettings()
        names = [name for name, value in given if name not in _OF_TRAINING and value != getattr(default, name)]
        has = "has" if len(names) == 1 else "have"
        why = "no samples are drawn (sample.every is 0); `ltx2-train sample` draws with what is set"
        return [f"sample.{', '.join(names)} {has} no effect in training: {why}."] if names else []
    own = [one.text for one in prompts if one.negative not in ("", settings.negative_prompt) and not _guided(one, mode)]
    mute = ["sample.audio = off has no effect: model.mode is audio, and samples are sound alone."]
    return [
        *(mute if mode == "audio" and given.audio == "off" else ()),
        *(f"sample.{name} has no effect: {why}." for name, why in idle),
        *only_words(prompts),
        *(f"--n of {text[:60]!r} has no effect: it is drawn with a guidance of 1. Raise it (--g)." for text in own),
        *(_of_sound_alone(given, settings, prompts) if mode == "audio" else ()),
    ]


def _asked_for_none(name: str, given: SampleSettings) -> bool:
    """Whether the 0 of that setting says something: the compression of pictures has another default."""
    return name == "image_crf" and given.image_crf == 0


def _guided(prompt: Prompt, mode: Mode) -> bool:
    """Whether the negative prompt has a part in what a model of `mode` draws."""
    return (mode != "audio" and prompt.guidance != 1) or (mode != "video" and prompt.audio_guidance != 1)


def _of_sound_alone(given: SampleSettings, settings: DrawSettings, prompts: Sequence[Prompt]) -> list[str]:
    """The sentences on what is for a picture, where there is none."""
    told, plain = [], SampleSettings()
    for name, own in (("guidance", "audio_guidance"), ("stg", "audio_stg")):
        if getattr(given, own) is not None and getattr(given, name) != getattr(plain, name):
            told.append(f"sample.{name} has no effect: model.mode is audio, where sample.{own} counts.")
    for prompt in prompts:
        options = []
        if prompt.asked is not None:
            pairs = zip(("--w", "--h"), prompt.asked, (settings.width, settings.height), strict=False)
            options = [option for option, asked, usual in pairs if asked != usual]
        if prompt.guidance != settings.guidance and prompt.guidance_of_sound is not None:
            options.append("--g")
        for one in prompt.given:
            if isinstance(one.condition, FirstFrame) and not one.cached:
                options.append(one.name)
            if dict(one.switches).get("hide_from_video"):
                options.append(f"hide_from_video of {one.name}")
        if options:
            has = "has" if len(options) == 1 else "have"
            told.append(f"{', '.join(options)} of {prompt.text[:60]!r} {has} no effect: model.mode is audio.")
    return told


def rounded_sizes(prompts: Sequence[Prompt], mode: Mode) -> list[str]:
    """A sentence for each size or length that no sample can have, and is drawn rounded down."""
    told: dict[str, None] = {}
    for prompt in prompts:
        shape = prompt.shape
        for name, asked, drawn in zip(
            SIZES, prompt.asked or (), (shape.width, shape.height, shape.frames), strict=False
        ):
            if asked != drawn and (name == "frames" or mode != "audio"):
                told[f"{name} {asked} of a sample is not {SIZES[name]}; {drawn} is drawn instead."] = None
    return list(told)
