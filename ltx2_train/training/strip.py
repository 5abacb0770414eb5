"""Samples of a slider: each prompt at every strength, and a strip that shows them beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..events import Events
from ..files import atomic
from ..lora.inject import LoraSet
from ..media.font import load_font
from ..sampling.prompts import Prompt
from ..sampling.render import Failed, SampleFile
from .setup import Run

_HEIGHT, _BAND = 256, 28  # pixels of a picture of the strip, and of the line above it


def sample_name(run: Run, index: int, prompt: Prompt) -> str:
    """The name of a sample of this step, without its ending."""
    return f"step_{run.step:06d}_p{index + 1:02d}_s{prompt.seed}"


def draw_strengths(run: Run, events: Events, failed: Failed, mark: str = "") -> None:
    """Draw the prompts at each strength of the slider, with the same seeds, and a strip of each prompt.

    `mark` stands behind the seed in the files' names. The LoRA is at strength 1 afterwards. What fails is reported and
    left out, and the class of its error put into `failed`.
    """
    assert run.slider is not None
    assert isinstance(run.loras, LoraSet)
    drawn: dict[int, list[tuple[float, SampleFile]]] = {}
    try:
        for strength in run.slider.settings.strengths:
            run.loras.set_strength(strength)
            told = f"{mark}_mult{strength:+.1f}" if strength == round(strength, 1) else f"{mark}_mult{strength:+g}"
            files = run.renderer.draw(
                run.prompts,
                lambda index, prompt, told=told: run.folder.samples / f"{sample_name(run, index, prompt)}{told}",
                {"step": run.step, "run": run.folder.name, "strength": strength},
                failed=failed,
            )
            for file in files:
                drawn.setdefault(run.prompts.index(file.prompt), []).append((strength, file))
    finally:
        run.loras.set_strength(1.0)
    for index, files in drawn.items():
        prompt = run.prompts[index]
        path = run.folder.samples / f"{sample_name(run, index, prompt)}{mark}_strip.png"
        write_strip(path, [(strength, file.path) for strength, file in files])
        events.sample(path, {"prompt": prompt.text, "seed": prompt.seed, "step": run.step, "run": run.folder.name})


def write_strip(path: Path, files: Sequence[tuple[float, Path]]) -> None:
    """A picture of `files` beside each other, their middle frames, each below its strength."""
    from PIL import Image, ImageDraw

    pictures = [(strength, _scaled(_middle(file))) for strength, file in files]
    width = sum(picture.width for _, picture in pictures)
    strip = Image.new("RGB", (width, _HEIGHT + _BAND), "black")
    pen, left = ImageDraw.Draw(strip), 0
    for strength, picture in pictures:
        strip.paste(picture, (left, _BAND))
        pen.text((left + 6, 5), f"{strength:+g}", font=load_font(16), fill="white")
        left += picture.width
    with atomic(path) as temporary:
        strip.save(temporary, format="png")


def _scaled(picture: Any) -> Any:
    return picture.resize((max(1, round(picture.width * _HEIGHT / picture.height)), _HEIGHT))


def _middle(path: Path) -> Any:
    """The picture in the middle of a sample."""
    from PIL import Image

    if path.suffix == ".png":
        with Image.open(path) as picture:
            return picture.convert("RGB")
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    return frames[len(frames) // 2]
