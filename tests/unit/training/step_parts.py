"""Batches and losses of tiny models, for the tests of a step."""

from __future__ import annotations

from pathlib import Path

import torch

from ltx2_train.config import make_run
from ltx2_train.feed.batches import Batch
from ltx2_train.feed.loader import Sample
from ltx2_train.shapes import LatentShape
from ltx2_train.training.sound import RunSound
from ltx2_train.training.step import training_step

SHAPE = LatentShape(2, 2, 2)


def make_sample(name: str, kind: str = "video", steps: int = 0) -> Sample:
    return Sample(name, SHAPE, 25.0, "", Path(name), Path(name), kind=kind, audio_steps=steps)


def make_batch(lengths: list[int], picture: bool = True, longest: int | None = None, seed: int = 0) -> Batch:
    """A batch of clips, or of recordings, with sounds of `lengths` steps; what is filled up holds nonsense."""
    generator = torch.Generator().manual_seed(seed)
    count, longest = len(lengths), max(lengths) if longest is None else longest
    latents = torch.randn(count, 128, SHAPE.frames, SHAPE.height, SHAPE.width, generator=generator)
    audio = torch.randn(count, 8, longest, 16, generator=generator) if longest else None
    mask = None if audio is None else torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    samples = [make_sample(str(i), "video" if picture else "audio", n) for i, n in enumerate(lengths)]
    return Batch(latents if picture else None, samples, 25.0, 0, 0, audio, mask)


def losses(models, batch: Batch, mode: str = "av", silence=None, **settings):
    run = make_run({"model": {"mode": mode}, **settings})
    model = models[mode]
    generator = torch.Generator().manual_seed(5)
    count, dtype = len(batch.samples), next(model.parameters()).dtype
    contexts = {
        stream: torch.randn(1, 8, width, generator=generator).expand(count, -1, -1).to(dtype)
        for stream, width in widths_of(model, mode).items()
    }
    sound = None if mode == "video" else RunSound(run, silence)
    return training_step(model, batch, contexts, run, "2.3", torch.Generator().manual_seed(1), sound)


def widths_of(model, mode: str) -> dict[str, int]:
    """Widths of the text contexts of the streams of `mode`."""
    widths = {"video": model.config.cross_attention_dim, "audio": model.config.audio_cross_attention_dim}
    if not model.config.projects_captions:
        widths = {"video": model.config.video.width, "audio": model.config.audio.width}
    return {stream: widths[stream] for stream in (("video", "audio") if mode == "av" else (mode,))}


def measured(terms, name: str) -> torch.Tensor:
    """The plain values of one term, of the samples that have it."""
    return terms.terms[name].measured()
