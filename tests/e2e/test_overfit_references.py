"""A tiny IC-LoRA learns to follow its reference: one caption, two references, two outcomes; so does a voice.

Learned and sampled by the same code as runs are, on latents that need no VAE.
"""

from pathlib import Path

import pytest
import torch
from unit.training.step_parts import make_sample

from ltx2_train.conditions.settings import AudioReference, Reference
from ltx2_train.conditions.trained import Trained
from ltx2_train.config import make_run
from ltx2_train.feed.batches import Batch, GivenData
from ltx2_train.lora.inject import inject
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.sampling.denoise import Pair, denoise
from ltx2_train.sampling.giving import given_pair
from ltx2_train.sampling.schedule import sampling_sigmas
from ltx2_train.sampling.shown import Shown
from ltx2_train.shapes import VideoShape
from ltx2_train.training.sound import RunSound
from ltx2_train.training.step import training_step
from ltx2_train.weights.load import load_transformer

pytestmark = pytest.mark.slow
SIZE = VideoShape(9, 64, 64)


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def learned(tiny, mode, settings, batches, steps=500):
    """The model after so many steps, and its text."""
    run = make_run({"model": {"mode": mode}, "train": {"first_frame_probability": 0.0}, **settings})
    model = load_transformer(tiny.checkpoint, mode, torch.float32)
    loras = inject(model, LoraSettings(rank=32, target="full"), torch.Generator().manual_seed(0))
    side = model.config.video if mode == "video" else model.config.audio
    text = noise(1, 8, side.width, seed=9)
    optimizer = torch.optim.AdamW(loras.parameters(), lr=5e-3)
    sound = None if mode == "video" else RunSound(run)
    for step in range(steps):
        for index, batch in enumerate(batches):
            generator = torch.Generator().manual_seed(2 * step + index)
            terms = training_step(model, batch, {mode: text}, run, "2.3", generator, sound, turn=step)
            terms.loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(loras.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), text


def nearest(drawn, outcomes):
    return min(range(len(outcomes)), key=lambda index: float((drawn - outcomes[index]).square().mean()))


@pytest.mark.parametrize("before", [0, 1], ids=["alone", "behind another that is always the same"])
def test_the_reference_decides_the_picture(tiny, before):
    outcomes = [noise(1, 128, 2, 2, 2, seed=seed) for seed in (1, 2)]
    same = [noise(128, 2, 2, 2, seed=5)] * before
    references = [(*same, noise(128, 1, 2, 2, seed=seed)) for seed in (3, 4)]
    batches = [
        Batch(outcome, [make_sample("a")], 25.0, 0, 0, given=(GivenData(shown),))
        for outcome, shown in zip(outcomes, references, strict=True)
    ]
    conditions = [{"type": "reference"}] * (1 + before)
    model, text = learned(tiny, "video", {"video": {"conditions": conditions}}, batches)
    for index, latents in enumerate(references):
        shown = [(Shown("video", Reference(), Path("unused"), "a reference", cached=True), one) for one in latents]
        given = given_pair(SIZE, shown, Trained(), torch.device("cpu"))
        for seed in (11, 12):
            start = Pair(noise(1, 128, 2, 2, 2, seed=seed))
            drawn = denoise(model, start, sampling_sigmas(12), Pair(text), fps=25, given=given).video
            assert nearest(drawn, outcomes) == index


@pytest.mark.parametrize("switches", [{}, {"negative_positions": True, "hide_text": True}])
def test_the_voice_decides_the_sound(tiny, switches):
    outcomes = [noise(1, 8, 9, 16, seed=seed) for seed in (1, 2)]
    voices = [noise(8, 6, 16, seed=seed) for seed in (3, 4)]
    batches = [
        Batch(
            None,
            [make_sample("a", "audio", 9)],
            25.0,
            0,
            0,
            outcome,
            torch.ones(1, 9, dtype=torch.bool),
            (GivenData(reference_audios=(voice,)),),
        )
        for outcome, voice in zip(outcomes, voices, strict=True)
    ]
    conditions = [{"type": "reference", **switches}]
    model, text = learned(tiny, "audio", {"audio": {"conditions": conditions}}, batches)
    for index, voice in enumerate(voices):
        shown = Shown("audio", AudioReference(**switches), "unused", "a voice", cached=True)
        given = given_pair(SIZE, [(shown, voice)], Trained(), torch.device("cpu"))
        start = Pair(None, noise(1, 8, 9, 16, seed=11))
        drawn = denoise(model, start, sampling_sigmas(12), Pair(None, text), fps=25, given=given).audio
        assert nearest(drawn, outcomes) == index
