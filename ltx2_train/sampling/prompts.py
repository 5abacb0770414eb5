"""Prompts and what is said about each: one a line, options behind two dashes.

    A red fox runs through snow --w 768 --h 512 --f 49 --d 7 --s 30 --g 4 --n blurry, low quality
    The fox turns its head --i first_frame.png
    --v depth.mp4 A fox in the snow --n blurry

or a library of them in JSON or TOML, see read_library.

Options: w width, h height, f frames, r frames a second, d seed, s steps, g (or l) guidance, n negative prompt, i image
of the first frame, v reference picture or video, ra reference sound; v and ra once for each reference. Where sound
alone is drawn, f and r say how long it lasts. Lines of a file that begin with # are left out. A prompt may begin with
any word: only what follows two dashes is an option. A table of a library may have `conditions`, see shown.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from ..conditions.settings import AudioReference, FirstFrame
from ..conditions.trained import OF_AUDIO, OF_VIDEO, Trained
from ..config import DrawSettings, RunConfig, SampleSettings
from ..dataset.captions import NOT_TEXT, text_lines
from ..errors import ConfigError
from ..feed.loader import Sample
from ..models.upsampler import FACTOR
from ..settings import limits
from ..shapes import SPATIAL_FACTOR, Mode, VideoShape, floor_frames, floor_side
from ..text_files import read_text
from .prompt_files import TABLES, read_library, require_lines
from .schedule import require_steps
from .shown import MEDIA_OPTIONS as OPTIONS_OF_MEDIA
from .shown import REPEATED, Shown, require_given, shown_by_option, shown_of_clip, shown_tables


@dataclass(frozen=True)
class Prompt:
    """One sample to draw."""

    text: str
    negative: str
    shape: VideoShape
    seed: int
    steps: int
    guidance: float
    given: tuple[Shown, ...] = ()
    guidance_of_sound: float | None = None  # None: as guidance
    identity_guidance: float = 0.0  # of the sound where a reference sound is given; 0: as without one
    upsampled: bool = False  # drawn in two stages
    asked: tuple[int, int, int] | None = field(default=None, compare=False)  # width, height and frames, as given
    own: tuple[str, ...] = field(default=(), compare=False, repr=False)  # settings that its line says

    @property
    def stages(self) -> tuple[Prompt, ...]:
        """What is drawn for it, one after the other: of two stages the first is half as wide and high."""
        if not self.upsampled:
            return (self,)
        half = replace(self.shape, width=self.shape.width // FACTOR, height=self.shape.height // FACTOR)
        return replace(self, shape=half, upsampled=False), self

    @property
    def audio_guidance(self) -> float:
        """The guidance of the sound."""
        if self.identity_guidance and any(isinstance(one.condition, AudioReference) for one in self.given):
            return self.identity_guidance
        return self.guidance if self.guidance_of_sound is None else self.guidance_of_sound

    @property
    def needs_negative(self) -> bool:
        """Whether the negative prompt has a part in it."""
        return self.guidance != 1 or self.audio_guidance != 1


@dataclass(frozen=True)
class Option:
    """One option of a prompt line: --`letter`, in place of the field `setting` of the sample settings.

    `kind` is int, float, str (all up to the next option) or Path (a medium beside the prompt file; `setting` then says
    what it is given as). `names` are what prompt libraries call it. The limits of a number are those of the setting.
    """

    letter: str
    setting: str
    kind: type
    names: tuple[str, ...]

    def read(self, rest: str, base: Path) -> tuple[Any, str]:
        """The value that `rest`, the text behind the letter, begins with, and what follows it. Raises ConfigError."""
        if self.kind is str:
            return rest, ""
        if self.kind is Path:
            return self._path(rest, base)
        word, _, more = rest.partition(" ")
        try:
            value = self.kind(word)
        except ValueError:
            raise ConfigError(f"--{self.letter} {word!r}: expected a number.") from None
        bounds = limits(SampleSettings.model_fields[self.setting])
        low, high = bounds.get("ge", bounds.get("gt")), bounds["le"]
        if not low <= value <= high or ("gt" in bounds and value == low):
            wanted = f"more than {low}, up to {high}" if "gt" in bounds else f"{low} to {high}"
            raise ConfigError(f"--{self.letter} {word}: expected {wanted}.")
        return value, more.strip()

    def _path(self, rest: str, base: Path) -> tuple[Path, str]:
        """The longest beginning of `rest` that is a medium, since names may hold spaces and a prompt may follow."""
        if quoted := re.match(r"([\"'])(.+?)\1(?:\s+|$)", rest):
            rest, after = quoted[2], rest[quoted.end() :]
            ends = [len(rest)]
        else:
            after, ends = "", [len(rest), *(space.start() for space in reversed(list(re.finditer(r"\s+", rest))))]
        for end in ends:
            path = Path(rest[:end]) if Path(rest[:end]).is_absolute() else base / rest[:end]
            if path.exists() and rest[:end].strip():
                return path, after or rest[end:].strip()
        what = {"image": "image", "reference": "reference"}.get(self.setting, "sound")
        raise ConfigError(f"--{self.letter} {rest}: no such {what} ({base / rest}).")


# a new option is one line here; what draws a sample takes its value from Prompt
OPTIONS = (
    Option("w", "width", int, ("width",)),
    Option("h", "height", int, ("height",)),
    Option("f", "frames", int, ("frame_count", "frames")),
    Option("r", "fps", float, ("fps",)),
    Option("d", "seed", int, ("seed",)),
    Option("s", "steps", int, ("sample_steps", "steps")),
    Option("g", "guidance", float, ("guidance_scale", "guidance")),
    Option("l", "guidance", float, ("cfg_scale",)),
    Option("n", "negative_prompt", str, ("negative_prompt",)),
    Option("i", "image", Path, ("image_path",)),
    Option("v", "reference", Path, ("reference", "v2v_ref_path")),
    Option("ra", "reference_audio", Path, ("reference_audio", "ref_audio_path")),
)
BY_LETTER = {option.letter: option for option in OPTIONS}
BY_NAME = {name: option for option in OPTIONS for name in option.names}
_WORN = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)  # as other programs' prompts load files
OF_SETTINGS = "sample.prompts"  # a list, whose prompts a node has one a line
_OPTION = re.compile(r"(?:^|\s)--(?=[A-Za-z](?:[\w-]*\w)?(?:[\s=]|$))")
# before what is an option: one hyphen, dashes that phones and office programs write for two, or two and a blank
_DASHED = re.compile(
    rf"(?:^|\s)(-|-{{3,}}|[-\u2010-\u2015\u2212\uff0d]*[\u2010-\u2015\u2212\uff0d]+-?|--\s+)({'|'.join(BY_LETTER)})[\s=]+(?:\d|\S+\.\w{{3,4}}(?:\s|$))"
)

# an option that nothing parts from the word before it, or a blank of no width
_GLUED = re.compile(rf"(\S+?)--({'|'.join(BY_LETTER)})[\s=]+(?:\d|\S+\.\w{{3,4}}(?:\s|$))")


def read_prompts(settings: DrawSettings, fallback: Sequence[str] = ()) -> list[Prompt]:
    """The prompts of `settings.prompts` (a file or a list), else those of `fallback`. Raises ConfigError."""
    source = settings.prompts
    if source is None:
        return [parse_prompt(text, settings, plain=True) for text in fallback]
    if not isinstance(source, Path):
        return _parsed(OF_SETTINGS, list(source), settings, Path("."))
    try:
        text = read_text(source)
    except OSError as error:
        raise ConfigError(f"sample.prompts: cannot read {source}: {error.strerror or error}.") from None
    except UnicodeError as error:
        raise ConfigError(f"sample.prompts: {source} {error}") from None
    if source.suffix.lower() in TABLES:
        raise ConfigError(
            f"sample.prompts: {source} is a table, whose lines are no prompts. Give a text with a prompt a line, or a "
            "JSON or TOML file."
        )
    if source.suffix.lower() in (".json", ".toml"):
        entries = read_library(source.name, text, source.suffix.lower())
    else:
        require_lines(source.name, text)
        return _parsed(source.name, text_lines(text), settings, source.parent, of_list=False)
    return _parsed(source.name, entries, settings, source.parent)


def validation_prompts(samples: Sequence[Sample], run: RunConfig, settings: DrawSettings) -> list[Prompt]:
    """Prompts of the first clips of the validation datasets, each at the clip's own size, length and rate.

    Each is given what the conditions of the run give of it: its own parts, its reference, the whole other stream. They
    are drawn in one stage, since what is given of a clip is there in its own size.
    """
    clips = [sample for sample in samples if sample.kind != "audio"][: settings.validation_clips]
    return [
        replace(
            parse_prompt(sample.caption, settings, plain=True),
            shape=sample.shape.video(sample.fps),
            given=shown_of_clip(sample, run),
            upsampled=False,
        )
        for sample in clips
    ]


def _parsed(
    name: str, entries: Sequence[str | dict[str, Any]], settings: DrawSettings, base: Path, of_list: bool = True
) -> list[Prompt]:
    """The prompts of `entries`; of a text that is no list, blank lines and those that begin with # are none."""
    prompts, wrong = [], []
    for number, entry in enumerate(entries, 1):
        try:
            if of_list and isinstance(entry, str) and not entry.strip():
                raise ConfigError("the prompt is empty. Take it out, or write what is to be seen.")
            if isinstance(entry, dict):
                prompts.append(parse_prompt(_line_of(entry), settings, base, tables=entry.get("conditions", ())))
            elif of_list or (entry.strip() and not entry.lstrip().startswith("#")):
                prompts.append(parse_prompt(entry, settings, base))
        except ConfigError as error:
            place = "prompt" if of_list and name != OF_SETTINGS else "line"
            wrong.append(f"{name}, {place} {number}: {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    if not prompts:
        raise ConfigError(f"{name}: no prompt found. Write one a line.")
    return prompts


def _line_of(entry: dict[str, Any]) -> str:
    """A table of options as a prompt line."""
    if not isinstance(entry.get("prompt"), str):
        raise ConfigError(f"{entry}: needs a prompt.")
    line = entry["prompt"]
    for key, value in entry.items():
        if key not in ("prompt", "conditions", "enum"):  # the community trainer numbers its prompts with enum
            if key not in BY_NAME:
                raise ConfigError(f"{key} is not known. Known: {', '.join(BY_NAME)}, conditions.")
            several = value if isinstance(value, list) and BY_NAME[key].setting in REPEATED else [value]
            line += "".join(f" --{BY_NAME[key].letter} {one}" for one in several)
    return line


def parse_prompt(
    line: str, settings: DrawSettings, base: Path = Path("."), plain: bool = False, tables: Any = ()
) -> Prompt:
    """One line as a Prompt; what it leaves open comes from `settings`. `plain`: the line is all prompt.

    `tables` are its conditions; paths are seen from `base`. Raises ConfigError.
    """
    pieces = [line] if plain else _OPTION.split(line.strip())
    prompt = pieces[0].strip()
    if NOT_TEXT.search(line):
        raise ConfigError(f"{line[:60]!r} holds characters that are no text. Write the prompt anew, as UTF-8.")
    if not plain and (dashed := _DASHED.search(line)):
        blank = " and no blank behind them" if dashed[1].endswith((" ", "\t")) else ""
        raise ConfigError(f"{dashed[1]}{dashed[2]}: an option begins with two hyphens{blank}. Write --{dashed[2]}.")
    if not plain and (glued := _GLUED.search(line)):
        before, letter = glued[1][-20:], glued[2]
        raise ConfigError(f"--{letter} behind {before!r}: an option has a blank before it. Write {before} --{letter}.")
    prompt, values = _options(prompt, pieces[1:], base)
    if not plain and not prompt:
        raise ConfigError(f"{line.strip()}: the prompt is empty. Write what is to be seen, and its options behind it.")
    if worn := _WORN.search(prompt):
        raise ConfigError(
            f"{worn[0]}: a prompt loads no LoRA. Take it out, and draw with `ltx2-train sample --with FILE=STRENGTH`."
        )

    def of(setting: str) -> Any:
        return values.get(setting, getattr(settings, setting))

    require_steps(settings.sigmas, of("steps"))
    asked = of("width"), of("height"), of("frames")
    shape = VideoShape(floor_frames(asked[2]), floor_side(asked[1]), floor_side(asked[0]), of("fps"))
    by_option = [
        shown_by_option(setting, path, shape)
        for setting in OPTIONS_OF_MEDIA
        for path in (values.get(setting, ()) if setting in REPEATED else filter(None, [values.get(setting)]))
    ]
    return Prompt(
        text=prompt,
        negative=of("negative_prompt"),
        shape=shape,
        seed=of("seed"),
        steps=of("steps"),
        guidance=of("guidance"),
        guidance_of_sound=None if "guidance" in values and settings.sound_of_model else settings.audio_guidance,
        identity_guidance=settings.identity_guidance,
        upsampled=settings.upsampler is not None,
        asked=asked,
        given=_counted((*by_option, *shown_tables(tables, shape, base))),
        own=tuple(values),
    )


def _options(prompt: str, pieces: Sequence[str], base: Path) -> tuple[str, dict[str, Any]]:
    """The prompt, which may stand behind its options, and the value of each setting in `pieces`, one an option."""
    values: dict[str, Any] = {}
    letters: set[str] = set()
    for piece in pieces:
        letter, *behind = re.split(r"[\s=]", piece.strip(), maxsplit=1)
        rest = "".join(behind)
        if letter not in BY_LETTER:
            raise ConfigError(f"--{letter} is not known. Known: {' '.join(BY_LETTER)}.")
        option = BY_LETTER[letter]
        if letter in letters and option.setting not in REPEATED:
            raise ConfigError(f"--{letter} stands there twice. Keep one of them.")
        letters.add(letter)
        value, more = option.read(rest.strip(), base)
        if option.setting in REPEATED:
            value = (*values.pop(option.setting, ()), value)
        if values.setdefault(option.setting, value) != value:
            raise ConfigError(
                f"{option.setting} is given twice: {values[option.setting]} and {value}. Keep one of them."
            )
        # options may stand before the prompt, so what follows a number is the prompt, once
        if more and prompt:
            expected = "a path" if option.kind is Path else "one number"
            raise ConfigError(f"--{letter} {rest.strip()}: expected {expected}, then the next option.")
        prompt = prompt or more
    return prompt, values


def _counted(shown: Sequence[Shown]) -> tuple[Shown, ...]:
    """`shown` with the references of each stream numbered in their order, as those of a clip are."""
    numbers = {OF_VIDEO: count(), OF_AUDIO: count()}
    return tuple(replace(one, number=next(numbers[one.stream])) if one.is_reference else one for one in shown)


def require_drawable(prompts: Sequence[Prompt], mode: Mode, trained: Trained) -> None:
    """Raise ConfigError that names each prompt where a model of `mode` cannot draw one with what it is given."""
    wrong = []
    for prompt in prompts:
        try:
            if prompt.upsampled:
                _require_two_stages(prompt, mode)
            require_given(prompt.given, prompt.shape, mode, trained)
        except ConfigError as error:
            wrong.append(f"The sample {prompt.text[:60]!r}: {error}")
    if wrong:
        raise ConfigError("\n".join(wrong))


def _require_two_stages(prompt: Prompt, mode: Mode) -> None:
    """Raise ConfigError where `prompt`, which asks for two stages, cannot be drawn in them by a model of `mode`."""
    if mode == "audio":
        raise ConfigError("sample.upsampler is set, and model.mode is audio, which draws no picture. Leave it out.")
    side, shape = FACTOR * SPATIAL_FACTOR, prompt.shape
    if shape.width % side or shape.height % side:
        raise ConfigError(
            f"it is {shape.width}x{shape.height}, and half of that is not made of whole latents of {SPATIAL_FACTOR} "
            f"pixels, as sample.upsampler needs. Use a width and height that {side} divides."
        )
    for one in prompt.given:
        if one.stream == OF_VIDEO and not isinstance(one.condition, FirstFrame):
            raise ConfigError(
                f"{one.name}: two stages (sample.upsampler) are given first frames and sounds, and no other part of a "
                "picture. Take it out of the sample, or leave sample.upsampler out."
            )


def prompt_texts(prompts: Sequence[Prompt]) -> list[str]:
    """Every text that has to be encoded to draw `prompts`, once."""
    texts: dict[str, None] = {}
    for prompt in prompts:
        texts |= dict.fromkeys((prompt.text, prompt.negative) if prompt.needs_negative else (prompt.text,))
    return list(texts)
