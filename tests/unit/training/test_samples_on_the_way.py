from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from ltx2_train.config import make_run
from ltx2_train.events import Events
from ltx2_train.lora.inject import inject
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.training import loop


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(4, 4)})})])


def test_samples_of_a_run_are_drawn_at_the_strength_of_its_settings(tmp_path):
    loras = inject(Tiny(), LoraSettings(rank=2), torch.Generator())
    drawn = []

    def draw(prompts, name, info, tolerant):
        drawn.append(([layer.strength for layer in loras.layers.values()], info["strength"]))

    run = SimpleNamespace(
        config=make_run({"sample": {"strength": 0.5}}), loras=loras, slider=None, step=3, prompts=["a fox"],
        peers=SimpleNamespace(first=True), renderer=SimpleNamespace(draw=draw),
        folder=SimpleNamespace(samples=tmp_path, name="fox"),
    )  # fmt: skip
    loop._draw_as_they_are(run, Events())
    assert drawn == [([0.5], 0.5)]
    assert [layer.strength for layer in loras.layers.values()] == [1.0]
