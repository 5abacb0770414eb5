"""Prompts and what is said about each: one a line, options behind two dashes.

    A red fox runs through snow --w 768 --h 512 --f 49 --d 7 --s 30 --g 4 --n blurry, low quality
    The fox turns its head --i first_frame.png

or a library of them in JSON or TOML, see read_library.

Options: w width, h height, f frames, r frames a second, d seed, s steps, g (or l) guidance, n negative prompt, i image
of the first frame. Where sound alone is drawn, f and r say how long it lasts. Lines that begin with # are left out. A
prompt may begin with any word: only what follows two dashes is an option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import SampleSettings
from ..config.read import tomllib
from ..errors import ConfigError
from ..feed.loader import Sample
from ..files import parse_json
from ..shapes import VideoShape, floor_frames, floor_side


@dataclass(frozen=True)
class Prompt:
    """One sample to draw."""

    text: str
    negative: str
    shape: VideoShape
    seed: int
    steps: int
    guidance: float
    image: Path | None = None
    clip: Path | None = None  # cached latents whose first frame is given


_OPTION = re.compile(r"(?:^|\s)--(?=[A-Za-z]+(?:\s|$))")
_NUMBERS = {"w": int, "h": int, "f": int, "r": float, "d": int, "s": int, "g": float, "l": float}
_NAMES = {
    "w": "width", "h": "height", "f": "frames", "r": "fps", "d": "seed", "s": "steps", "g": "guidance", "l": "guidance"
}  # fmt: skip
# how libraries spell the options
_LONG = {
    "width": "w", "height": "h", "frame_count": "f", "frames": "f", "fps": "r", "seed": "d", "sample_steps": "s",
    "steps": "s", "guidance_scale": "g", "guidance": "g", "cfg_scale": "l", "negative_prompt": "n", "image_path": "i",
}  # fmt: skip
_LIMITS = {"w": (32, 8192), "h": (32, 8192), "f": (1, 1025), "r": (0.1, 240), "d": (0, 2**63 - 1), "s": (1, 1000)}


def read_prompts(settings: SampleSettings, fallback: Sequence[str] = ()) -> list[Prompt]:
    """The prompts of `settings.prompts` (a file or a list), else those of `fallback`. Raises ConfigError."""
    source = settings.prompts
    if source is None:
        return [parse_prompt(text, settings, plain=True) for text in fallback]
    if not isinstance(source, Path):
        return _parsed("sample.prompts", list(source), settings, Path("."))
    try:
        text = source.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"sample.prompts: cannot read {source}: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"sample.prompts: {source} is not UTF-8 text. Save it as UTF-8.") from None
    if source.suffix.lower() in (".json", ".toml"):
        entries = read_library(source.name, text, source.suffix.lower())
    else:
        entries = text.splitlines()
    return _parsed(source.name, entries, settings, source.parent)


def read_library(name: str, text: str, suffix: str) -> list[str | dict[str, Any]]:
    """The entries of a prompt library: lines, or tables of options. Raises ConfigError.

    JSON: {"name": "prompt", ...}, or a list of prompts or tables. TOML: the table [prompt], whose values hold for each
    table of its list `subset`; that is the community trainer's form.
    """
    try:
        library = parse_json(text) if suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid {suffix[1:].upper()}: {error}.") from None
    if suffix == ".toml":
        shared = library.get("prompt", library)
        if not isinstance(shared, dict):
            raise ConfigError(f"{name}: expected a table [prompt].")
        common = {key: value for key, value in shared.items() if key != "subset"}
        entries = [{**common, **entry} for entry in shared.get("subset", [{}])]
    elif isinstance(library, dict):
        entries = list(library.values())
    else:
        entries = library
    if not isinstance(entries, list) or not all(isinstance(entry, (str, dict)) for entry in entries):
        raise ConfigError(f"{name}: expected prompts, or tables with a prompt and its options.")
    return entries


def validation_prompts(samples: Sequence[Sample], settings: SampleSettings) -> list[Prompt]:
    """Prompts of the first clips of the validation datasets, each at the clip's own size, length and rate."""
    clips = [sample for sample in samples if sample.kind != "audio"][: settings.validation_clips]
    return [
        replace(
            parse_prompt(sample.caption, settings, plain=True),
            shape=sample.shape.video(sample.fps),
            clip=sample.latent_path if settings.validation_first_frame and sample.shape.frames > 1 else None,
        )
        for sample in clips
    ]


def _parsed(name: str, entries: Sequence[str | dict[str, Any]], settings: SampleSettings, base: Path) -> list[Prompt]:
    prompts = []
    for number, entry in enumerate(entries, 1):
        try:
            if isinstance(entry, dict):
                prompts.append(parse_prompt(_line_of(entry), settings, base))
            elif entry.strip() and not entry.lstrip().startswith("#"):
                prompts.append(parse_prompt(entry, settings, base))
        except ConfigError as error:
            raise ConfigError(f"{name}, line {number}: {error}") from None
    if not prompts:
        raise ConfigError(f"{name}: no prompt found. Write one a line.")
    return prompts


def _line_of(entry: dict[str, Any]) -> str:
    """A table of options as a prompt line."""
    if not isinstance(entry.get("prompt"), str):
        raise ConfigError(f"{entry}: needs a prompt.")
    line = entry["prompt"]
    for key, value in entry.items():
        if key not in ("prompt", "enum"):  # the community trainer numbers its prompts with enum
            if key not in _LONG:
                raise ConfigError(f"{key} is not known. Known: {', '.join(_LONG)}.")
            line += f" --{_LONG[key]} {value}"
    return line


def parse_prompt(line: str, settings: SampleSettings, base: Path = Path("."), plain: bool = False) -> Prompt:
    """One line as a Prompt; what it leaves open comes from `settings`. `plain`: the line is all prompt."""
    pieces = [line] if plain else _OPTION.split(line.strip())
    text = pieces[0].strip()
    values: dict[str, float] = {}
    negative, image = settings.negative_prompt, None
    for piece in pieces[1:]:
        name, _, rest = piece.strip().partition(" ")
        rest = rest.strip()
        if name == "n":
            negative = rest
        elif name == "i":
            image = Path(rest) if Path(rest).is_absolute() else base / rest
            if not image.is_file():
                raise ConfigError(f"--i {rest}: no such image ({image}).")
        elif name in _NUMBERS:
            word, _, more = rest.partition(" ")
            values[_NAMES[name]] = _number(name, word)
            # options may stand before the prompt, so what follows a number is the prompt, once
            if more.strip() and text:
                raise ConfigError(f"--{name} {rest}: expected one number, then the next option.")
            text = text or more.strip()
        else:
            raise ConfigError(f"--{name} is not known. Known: w h f r d s g l n i.")
    shape = VideoShape(
        floor_frames(int(values.get("frames", settings.frames))),
        floor_side(int(values.get("height", settings.height))),
        floor_side(int(values.get("width", settings.width))),
        float(values.get("fps", settings.fps)),
    )
    return Prompt(
        text=text,
        negative=negative,
        shape=shape,
        seed=int(values.get("seed", settings.seed)),
        steps=int(values.get("steps", settings.steps)),
        guidance=float(values.get("guidance", settings.guidance)),
        image=image,
    )


def prompt_texts(prompts: Sequence[Prompt]) -> list[str]:
    """Every text that has to be encoded to draw `prompts`, once."""
    texts = (text for prompt in prompts for text in ((prompt.text, prompt.negative) if prompt.guidance != 1 else
                                                     (prompt.text,)))  # fmt: skip
    return list(dict.fromkeys(texts))


def _number(name: str, word: str) -> float:
    try:
        value = _NUMBERS[name](word)
    except ValueError:
        raise ConfigError(f"--{name} {word!r}: expected a number.") from None
    low, high = _LIMITS.get(name, (0, 50))
    if not low <= value <= high:
        raise ConfigError(f"--{name} {word}: expected {low} to {high}.")
    return value
