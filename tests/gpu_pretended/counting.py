"""Host waits of one step of a real run on a pretended card."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from ltx2_train import Events, load_run, train
from ltx2_train.cli.demo import draw_clip
from ltx2_train.weights.tiny import make_tiny

from .card import Card, pretended
from .making import GPU, make_run_file
from .swapping import swapping


class Steps(Events):
    """Notes what the host has waited for at the end of each step."""

    def __init__(self, card: Card) -> None:
        self.card, self.after = card, list[Counter[tuple[str, str]]]()

    def step(self, metrics: Any) -> None:
        self.after.append(Counter(self.card.waits))

    @property
    def second(self) -> Counter[tuple[str, str]]:
        """What the second step waited for, and where; in the first, caches are filled."""
        return self.after[1] - self.after[0]


def train_pretended(run_file: Path, *settings: str) -> tuple[Card, Steps]:
    """Train the run of `run_file` on a pretended card."""
    with pretended() as card, swapping():
        steps = Steps(card)
        train(load_run(run_file, [*GPU, *settings]), steps)
    return card, steps


def waits_of_a_step() -> int:
    """How often the host waits in a step of mode av with the first frame given."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run_file = make_run_file(root / "run", make_tiny(root / "tiny"), draw_clip(root / "clip.mp4"), "av")
        _, steps = train_pretended(run_file, "optimizer.name=adamw", "train.first_frame_probability=1")
    return steps.second.total()
