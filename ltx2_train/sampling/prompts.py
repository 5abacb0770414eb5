"""Prompts and what is said about each: one a line, options behind two dashes.

    A red fox runs through snow --w 768 --h 512 --f 49 --d 7 --s 30 --g 4 --n blurry, low quality
    The fox turns its head --i first_frame.png

Options: w width, h height, f frames, r frames a second, d seed, s steps, g (or l) guidance, n negative prompt, i image
of the first frame. Where sound alone is drawn, f and r say how long it lasts. Lines that begin with # are left out. A
prompt may begin with any word: only what follows two dashes is an option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import SampleSettings
from ..errors import ConfigError
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


_OPTION = re.compile(r"(?:^|\s)--(?=[A-Za-z]+(?:\s|$))")
_NUMBERS = {"w": int, "h": int, "f": int, "r": float, "d": int, "s": int, "g": float, "l": float}
_NAMES = {
    "w": "width", "h": "height", "f": "frames", "r": "fps", "d": "seed", "s": "steps", "g": "guidance", "l": "guidance"
}  # fmt: skip
_LIMITS = {"w": (32, 8192), "h": (32, 8192), "f": (1, 1025), "r": (0.1, 240), "d": (0, 2**63 - 1), "s": (1, 1000)}


def read_prompts(settings: SampleSettings, fallback: Sequence[str] = ()) -> list[Prompt]:
    """The prompts of `settings.prompts` (a file or a list), else those of `fallback`. Raises ConfigError."""
    source = settings.prompts
    if source is None:
        return [parse_prompt(text, settings, plain=True) for text in fallback]
    if isinstance(source, Path):
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise ConfigError(f"sample.prompts: cannot read {source}: {error.strerror or error}.") from None
        except UnicodeDecodeError:
            raise ConfigError(f"sample.prompts: {source} is not UTF-8 text. Save it as UTF-8.") from None
        base, name = source.parent, source.name
    else:
        lines, base, name = list(source), Path("."), "sample.prompts"
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                prompts.append(parse_prompt(line, settings, base))
            except ConfigError as error:
                raise ConfigError(f"{name}, line {number}: {error}") from None
    if not prompts:
        raise ConfigError(f"{name}: no prompt found. Write one a line.")
    return prompts


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
