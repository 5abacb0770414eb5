"""The losses of a few steps, frozen: changed arithmetic shows here first.

Weights, latents and text are drawn from generators, so that neither a media codec nor a linear-algebra library has a
say. Where a change is meant, replace the file by what the failure prints, and say in the commit why.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltx2_train.config import make_run
from ltx2_train.feed.batches import Batch
from ltx2_train.feed.loader import Sample
from ltx2_train.lora.inject import inject
from ltx2_train.models.transformer import LTXTransformer, TransformerConfig
from ltx2_train.optim import build_optimizer, build_schedule
from ltx2_train.shapes import LatentShape
from ltx2_train.training.fit.simulate import context_widths
from ltx2_train.training.step import training_step
from ltx2_train.weights.tiny import tiny_config

STEPS, SOUND_STEPS = 8, 17


def random(*shape: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


class Sounds:
    """Sound as it is in the batches, each weighing as the picture does."""

    silence_weight = 1.0

    def latents(self, batch: Batch) -> tuple[torch.Tensor | None, list[int], list[bool]]:
        return batch.audio, [SOUND_STEPS] * len(batch.samples), [True] * len(batch.samples)

    def weight(self, batch: Batch, video_loss: torch.Tensor | None, audio_loss: torch.Tensor | None) -> float:
        return 1.0


def losses_of(version: str, mode: str) -> list[float]:
    config = TransformerConfig.from_checkpoint(tiny_config(version)["transformer"])
    model = LTXTransformer(config, mode).eval().requires_grad_(False)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        scale = 0.05 if parameter.ndim > 1 else 0.02
        parameter.copy_(random(*parameter.shape, seed=index, scale=scale) + float(name.endswith("_norm.weight")))
    run = make_run(
        {"model": {"mode": mode}, "train": {"learning_rate": 3e-3, "seed": 7, "clip_norm": 1.0}, "lora": {"rank": 4}}
    )
    loras = inject(model, run.lora, torch.Generator().manual_seed(run.train.seed))
    optimizer, _ = build_optimizer([{"params": list(loras.parameters())}], run.optimizer, 3e-3, "cpu")
    schedule = build_schedule(optimizer, run.schedule, STEPS)
    model.train()
    shape = LatentShape(3, 2, 4)
    samples = [Sample(name, shape, 25.0, name, Path(name), Path(name)) for name in "ab"]
    latents = random(2, 128, 3, 2, 4, seed=1000)
    sound = random(2, 8, SOUND_STEPS, 16, seed=1002) if mode == "av" else None
    widths = context_widths(config, mode)
    contexts = {
        stream: random(2, 16, width, seed=1001 + 2 * number) for number, (stream, width) in enumerate(widths.items())
    }
    losses = []
    for step in range(STEPS):
        batch = Batch(latents, samples, 25.0, 0, step, sound)
        generator = torch.Generator().manual_seed(step)
        terms = training_step(model, batch, contexts, run, version, generator, None if sound is None else Sounds())
        terms.loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(loras.parameters(), run.train.clip_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(terms.loss.detach().mean()))
    return losses


@pytest.mark.parametrize(("version", "mode"), [("2.0", "video"), ("2.3", "video"), ("2.0", "av"), ("2.3", "av")])
def test_losses_are_the_golden_ones(version, mode):
    losses = losses_of(version, mode)
    golden = Path(__file__).with_name(f"golden_losses_{version}_{mode}.txt")
    expected = [float(line) for line in golden.read_text().split()]
    printed = "\n".join(f"{loss:.6f}" for loss in losses)
    assert losses == pytest.approx(expected, rel=1e-4), f"{golden.name} would be:\n{printed}\n"
