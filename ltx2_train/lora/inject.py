"""Puts LoRA around the linears of a model and keeps them together as one set.

A layer keeps the dotted path at which it stands in the model, which is the checkpoint's own name; nothing is ever
rebuilt from a flattened name.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import RunError
from .file import LoraFile
from .fit import fitting_start
from .held import Held
from .layer import LoRALinear
from .low_rank import squared_norm
from .settings import LoraSettings
from .targets import BRANCHES, branch_of, candidates, count_branches, select


@dataclass(frozen=True)
class Loaded:
    """What came of loading a file: module paths that were filled, that the file lacks, and that are not trained."""

    filled: list[str]
    untouched: list[str]
    unknown: list[str]


class LoraSet:
    """The LoRA layers of one model: `layers` by dotted path, in the model's order."""

    def __init__(self, model: nn.Module, layers: dict[str, LoRALinear], settings: LoraSettings) -> None:
        self.model = model
        self.layers = layers
        self.settings = settings
        self.rank = settings.rank
        self.alpha = settings.effective_alpha
        self._held: Held | None = None

    @property
    def scale(self) -> float:
        """alpha / rank, which multiplies B @ A at strength 1."""
        return self.alpha / self.rank

    def parameters(self) -> Iterator[nn.Parameter]:
        """A and B of every layer."""
        for layer in self.layers.values():
            yield layer.lora_A
            yield layer.lora_B

    def branches(self) -> dict[str, int]:
        """Number of layers in each branch of the model."""
        return count_branches(self.layers)

    def describe(self) -> str:
        """One sentence for the user."""
        number = sum(parameter.numel() for parameter in self.parameters())
        counts = ", ".join(f"{count} {branch}" for branch, count in self.branches().items())
        size = f"LoRA of rank {self.rank} (alpha {self.alpha:g})"
        return f"{size} on {len(self.layers)} layers ({counts}), {number:,} numbers."

    def held(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """While entered, products in `dtype` use copies of the factors, which must not change meanwhile.

        The room for the copies, one value of `dtype` a number, is kept. Factors in `dtype` need none.
        """
        layers = list(self.layers.values())
        if all(parameter.dtype == dtype for parameter in self.parameters()):
            return nullcontext()
        if self._held is None or not self._held.fits(layers, dtype):
            self._held = None
            self._held = Held(layers, dtype)
        return self._held.fresh()

    def set_strength(self, strength: float) -> None:
        """Scale of all layers; 0 gives exactly the model without LoRA."""
        for layer in self.layers.values():
            layer.strength = float(strength)

    def norms(self) -> dict[str, float]:
        """Frobenius norm of the weight change alpha / rank * B @ A, per branch, at strength 1; LoftQ's part is none."""
        return branch_norms({path: layer.change() for path, layer in self.layers.items()})

    def load(self, file: LoraFile) -> Loaded:
        """Fill the layers from a file so that they change the model as the file does, whatever its alpha.

        Layers that the file lacks stay as they are, so that a video LoRA can start an audio-video run. Layers of a file
        with several ranks are filled up to this set's. Raises ConfigError where the rank or a shape differs, or where
        the file and this set share no layer.
        """
        sizes = {path: (layer.out_features, layer.in_features) for path, layer in self.layers.items()}
        entries, unknown = fitting_start(file, sizes, self.rank, self.settings.target)
        with torch.no_grad():
            for path, entry in entries.items():
                layer = self.layers[path]
                # components beyond the file's rank stay as they were made: A drawn, B zero, so that they can learn
                layer.lora_A[: entry.rank].copy_(entry.down)
                layer.lora_B.zero_()
                layer.lora_B[:, : entry.rank].copy_(entry.up.float() * (entry.scale / self.scale))
        untouched = [path for path in self.layers if path not in entries]
        return Loaded(list(entries), untouched, unknown)

    def state(self) -> dict[str, dict[str, Any]]:
        """All that a resume equal to an unbroken run needs, by dotted path: A, B in full precision, dropout draws."""
        return {
            path: {"A": layer.lora_A.detach(), "B": layer.lora_B.detach(), "dropout_draws": layer.dropout_draws}
            for path, layer in self.layers.items()
        }

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Undo everything since `state`. Raises RunError where it is of other layers or another rank."""
        if set(state) != set(self.layers):
            raise RunError(
                f"The saved state has {len(state)} LoRA layers, this run has {len(self.layers)}, and they are not the "
                "same. Resume with the lora settings that the run began with."
            )
        for path, layer in self.layers.items():
            if state[path]["A"].shape != layer.lora_A.shape or state[path]["B"].shape != layer.lora_B.shape:
                raise RunError(
                    f"The saved state has rank {state[path]['A'].shape[0]}, this run has {self.rank}. Resume with the "
                    "lora.rank that the run began with."
                )
        with torch.no_grad():
            for path, layer in self.layers.items():
                layer.lora_A.copy_(state[path]["A"])
                layer.lora_B.copy_(state[path]["B"])
                layer.dropout_draws = int(state[path]["dropout_draws"])

    def remove(self) -> None:
        """Put the original linears back; the set is empty afterwards."""
        for path, layer in self.layers.items():
            place(self.model, path, layer.base)
        self.layers, self._held = {}, None


def chosen_layers(model: nn.Module, settings: LoraSettings) -> list[str]:
    """The dotted paths of the linears that get a LoRA, in the model's order, which may be on the meta device.

    Raises ConfigError where the settings choose no layer.
    """
    return select(
        candidates(model),
        settings.target,
        settings.include_patterns,
        settings.exclude_patterns,
        settings.target_modules,
    )


def inject(
    model: nn.Module, settings: LoraSettings, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> LoraSet:
    """Wrap the chosen linears of `model` in LoRA whose weights are kept in `dtype`.

    `generator` is a CPU generator; the layers draw from it in the model's order. Raises ConfigError where the
    settings choose no layer.
    """
    assert not any(isinstance(module, LoRALinear) for module in model.modules()), "the model has a LoRA already"
    layers: dict[str, LoRALinear] = {}
    for path in chosen_layers(model, settings):
        base = model.get_submodule(path)
        layer = LoRALinear(
            base,
            settings.rank,
            settings.effective_alpha,
            settings.dropout,
            dtype,
            generator,
            settings.rank_dropout,
            settings.module_dropout,
        )
        place(model, path, layer)
        layers[path] = layer
    return LoraSet(model, layers, settings)


def branch_norms(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], scale: float = 1.0) -> dict[str, float]:
    """Frobenius norm of scale * B @ A over the layers of each branch; (A [r, in], B [out, r]) by dotted path."""
    squares: dict[str, list[torch.Tensor]] = {}
    for path, (down, up) in pairs.items():
        squares.setdefault(branch_of(path), []).append(squared_norm(down, up))
    return {
        branch: scale * float(torch.stack(squares[branch]).sum().clamp(min=0).sqrt())
        for branch in BRANCHES
        if branch in squares
    }


def place(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where `path` points to in `model`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
