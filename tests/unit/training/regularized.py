"""Tiny models with regularizers, for their tests."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from unit.training.step_parts import make_batch, widths_of

from ltx2_train.config import make_run
from ltx2_train.lora.inject import inject
from ltx2_train.training.contexts import ContextStore, streams_of
from ltx2_train.training.ready import make_ready
from ltx2_train.training.regularizers import Kit, Regularizers
from ltx2_train.training.sound import RunSound

TEXT = 8  # tokens of a context


class Bench:
    """A tiny model with a LoRA that does something, and what `settings` of regularizers make of a batch."""

    def __init__(self, model: Any, folder: Any, settings: dict[str, Any], mode: str = "video", **more: Any) -> None:
        triggers, data, strength = more.pop("triggers", ()), more.pop("data", None), more.pop("strength", 0.1)
        lora = {"rank": 4, **more.pop("lora", {})}
        self.run = make_run({"model": {"mode": mode}, "regularizers": settings, "lora": lora, **more})
        self.model, self.mode = model, mode
        self.loras = inject(model, self.run.lora, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for layer in self.loras.layers.values():
                last = list(layer.trained().values())[-1]
                last.copy_(strength * torch.randn(last.shape, generator=generator))
        self.model.train()
        self.contexts = ContextStore(folder / "contexts.bin", 1 << 30)
        self.silence = torch.randn(8, 200, 16, generator=generator)
        data = SimpleNamespace() if data is None else data
        kit = Kit(
            run=self.run, model=model, loras=self.loras, contexts=self.contexts, data=data,
            device=torch.device("cpu"), total=100, triggers=triggers, silence=self.silence,
        )  # fmt: skip
        self.regularizers = Regularizers(kit)
        self.sound = None if mode == "video" else RunSound(self.run)

    def know(self, key: Any) -> None:
        """Make a context of the text or caption `key`."""
        seed = int.from_bytes(str(key).encode()[:7].ljust(7, b"."), "big")
        generator = torch.Generator().manual_seed(seed)
        for stream, width in widths_of(self.model, self.mode).items():
            self.contexts.add(key, stream, torch.randn(TEXT, width, generator=generator).to(self.model.dtype))

    def parts(self, batch: Any, step: int = 0, seed: int = 1, help: bool = True):
        """The parts of the loss of `batch`."""
        for sample in batch.samples:
            self.know(sample.text_path)
        keys = [sample.text_path for sample in batch.samples]
        contexts = {one: self.contexts.batch(keys, one, "cpu") for one in streams_of(self.mode)}
        generator = torch.Generator().manual_seed(seed)
        ready = make_ready(self.model, batch, contexts, self.run, "2.3", generator, self.sound, step)
        ready = self.regularizers.drawn(ready, torch.Generator().manual_seed(seed + 7), step)
        return self.regularizers.parts(self.model, ready, self.sound)

    def step(self, batch: Any, step: int = 0, seed: int = 1, held: bool = False) -> dict[str, Any]:
        """All terms of `batch`; gradients are added to the LoRA's."""
        found: dict[str, Any] = {}
        with self.loras.held(self.model.dtype) if held else nullcontext():
            for part in self.parts(batch, step, seed):
                part.loss.mean().backward()
                found |= part.terms
        return found

    def loss(self, batch: Any, step: int = 0, seed: int = 1) -> float:
        return float(sum(part.loss.detach().double().mean() for part in self.parts(batch, step, seed)))

    def gradients(self) -> dict[str, torch.Tensor]:
        return {
            f"{path}.{half}": weight.grad.clone()
            for path, layer in self.loras.layers.items()
            for half, weight in layer.trained().items()
            if weight.grad is not None
        }

    def close(self) -> None:
        self.loras.remove()


def captioned(batch: Any, *captions: str) -> Any:
    """The batch with these captions."""
    samples = [replace(sample, caption=text) for sample, text in zip(batch.samples, captions, strict=True)]
    return replace(batch, samples=samples)


__all__ = ["Bench", "captioned", "make_batch"]
