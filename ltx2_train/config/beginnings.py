"""Numbers to begin with: for what is to be learned, and for how samples are drawn.

The nodes Training Recipe and Samples Recipe show them, and `config --recipe` writes those of training as a run file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..shapes import MODES


@dataclass(frozen=True)
class Beginning:
    """Numbers to begin with, by the dotted paths of their settings, for what is to be learned or how samples are drawn.
    `modes` are those of model.mode that they are for."""

    about: str
    settings: Mapping[str, Any]
    modes: tuple[str, ...] = MODES

    def tables(self) -> dict[str, Any]:
        """As groups of a run."""
        tables: dict[str, Any] = {}
        for path, value in self.settings.items():
            group, _, name = path.rpartition(".")
            tables.setdefault(group, {})[name] = value
        return tables


def _numbers(steps: int, rank: int, rate: float, every: int, **more: Any) -> dict[str, Any]:
    """What every recipe says, and what one of them says besides; `__` stands for a dot."""
    common = {"train.steps": steps, "lora.rank": rank, "train.learning_rate": rate, "train.save_every": every}
    return {**common, "sample.every": every, **{name.replace("__", "."): value for name, value in more.items()}}


_PICTURE = ("video", "av")

# Where the numbers come from: the official trainer's configurations (rank 32, 1e-4, 2000 steps; for references 2e-4 and
# 3000), and what people report of their runs: 1000 to 1500 steps for a small set or a voice, 3000 or more for a style.
TRAINING_RECIPES: dict[str, Beginning] = {
    "character": Beginning(
        "a person, a creature or a thing, from 10 to 40 clips or pictures of it",
        _numbers(2000, 32, 1e-4, 250, train__first_frame_probability=0.5, train__caption_dropout=0.05),
        _PICTURE,
    ),
    "style": Beginning(
        "a look, from 30 clips or pictures and more, of subjects as different as can be",
        _numbers(3000, 32, 1e-4, 250, train__first_frame_probability=0.2, train__caption_dropout=0.1),
        _PICTURE,
    ),
    "motion": Beginning(
        "a movement or a camera, from 20 clips and more in which little else is alike; the first frame is mostly "
        "given, so that the looks come from it",
        _numbers(2000, 32, 1e-4, 250, train__first_frame_probability=0.8, train__caption_dropout=0.05),
        _PICTURE,
    ),
    "voice": Beginning(
        "a voice, from 3 to 6 minutes of one speaker in pieces of about 5 seconds; saved often, as it is learned soon",
        _numbers(1200, 32, 1e-4, 100, train__caption_dropout=0.05),
        ("audio",),
    ),
    "talking_character": Beginning(
        "looks and voice of a person, from clips with sound",
        _numbers(2000, 32, 1e-4, 250, train__first_frame_probability=0.5, train__caption_dropout=0.05),
        ("av",),
    ),
    "ic_lora": Beginning(
        "to make each clip from its reference, from 80 pairs and more; with the conditions of the recipe of this name",
        _numbers(3000, 32, 2e-4, 250, train__caption_dropout=0.05),
        _PICTURE,
    ),
    "image_to_video": Beginning(
        "to go on from a first frame, from 20 clips and more",
        _numbers(2000, 32, 1e-4, 250, train__first_frame_probability=0.9, train__caption_dropout=0.05),
        _PICTURE,
    ),
}

SAMPLE_RECIPES: dict[str, Beginning] = {
    "fast": Beginning(
        "eight steps and no guidance, for a distilled base or with the distilled LoRA",
        {
            "sample.steps": 8,
            "sample.sigmas": "distilled",
            "sample.guidance": 1.0,
            "sample.stg": 0.0,
            "sample.rescale": 0.0,
            "sample.modality_guidance": 1.0,
        },
    ),
    "faithful": Beginning(
        "as the model's own pipelines draw: all kinds of guidance, four passes of the model a step",
        {
            "sample.steps": 30,
            "sample.guidance": 3.0,
            "sample.stg": 1.0,
            "sample.rescale": 0.7,
            "sample.modality_guidance": 3.0,
            "sample.audio_guidance": 7.0,
        },
    ),
}
"""How samples are drawn, as a whole: the presets of the node Samples Recipe."""
