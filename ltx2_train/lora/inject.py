"""Puts LoRA around the linears of a model and keeps them together as one set.

A layer keeps the dotted path at which it stands in the model, which is the checkpoint's own name; nothing is ever
rebuilt from a flattened name.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import RunError
from .adapter import Adapter
from .file import LoraFile
from .fit import fitting_start
from .held import Held
from .kinds import KIND_NAMES, make_layer
from .layer import LoRALinear
from .others import OtherEntry, fill_adapter
from .settings import LoraSettings
from .targets import BRANCHES, block_of, branch_of, candidates, count_branches, layers_text, select


@dataclass(frozen=True)
class Loaded:
    """What came of loading a file: module paths that were filled, that the file lacks, and that are not trained."""

    filled: list[str]
    untouched: list[str]
    unknown: list[str]


class LoraSet:
    """The LoRA layers of one model: `layers` by dotted path, in the model's order."""

    def __init__(self, model: nn.Module, layers: dict[str, Adapter], settings: LoraSettings) -> None:
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
        """What is trained, layer by layer: A and B of a LoRA, the factors of other kinds."""
        for layer in self.layers.values():
            yield from layer.trained().values()

    def named(self) -> list[tuple[Any, ...]]:
        """(dotted path, then its parameters) of each layer, as groups of learning rates take them."""
        return [(path, *layer.trained().values()) for path, layer in self.layers.items()]

    def branches(self) -> dict[str, int]:
        """Number of layers in each branch of the model."""
        return count_branches(self.layers)

    def describe(self) -> str:
        """One sentence for the user."""
        number = sum(parameter.numel() for parameter in self.parameters())
        counts = ", ".join(f"{count} {branch}" for branch, count in self.branches().items())
        kinds = Counter(KIND_NAMES[layer.algo] for layer in self.layers.values())
        kind = " and ".join(kinds) if len(kinds) < 2 else " and ".join(f"{name} ({n})" for name, n in kinds.items())
        size = f"{kind} of rank {self.rank} (alpha {self.alpha:g})"
        return f"{size} on {layers_text(len(self.layers))} ({counts}), {number:,} numbers."

    def held(self, dtype: torch.dtype) -> AbstractContextManager[None]:
        """While entered, products in `dtype` use copies of the factors, which must not change meanwhile.

        The room for the copies, one value of `dtype` a number, is kept. Factors in `dtype` need none.
        """
        layers = [layer for layer in self.layers.values() if isinstance(layer, LoRALinear)]
        if all(parameter.dtype == dtype for layer in layers for parameter in (layer.lora_A, layer.lora_B)):
            return nullcontext()
        if self._held is None or not self._held.fits(layers, dtype):
            self._held = None
            self._held = Held(layers, dtype)
        return self._held.fresh()

    def set_strength(self, strength: float) -> None:
        """Scale of all layers; 0 gives exactly the model without LoRA."""
        for layer in self.layers.values():
            layer.strength = float(strength)

    @contextmanager
    def off(self) -> Iterator[None]:
        """While entered, the model is exactly the base, whatever kinds of change lie round its linears."""
        with self.at_strength(0.0):
            yield

    @contextmanager
    def at_strength(self, strength: float) -> Iterator[None]:
        """While entered, all layers have this scale; afterwards each has its own again."""
        before = [layer.strength for layer in self.layers.values()]
        self.set_strength(strength)
        try:
            yield
        finally:
            for layer, former in zip(self.layers.values(), before, strict=True):
                layer.strength = former

    @contextmanager
    def unheld(self) -> Iterator[None]:
        """While entered, products use the factors themselves, so that others may be put in their place for a while.

        They must be what they were at the end, to the bit.
        """
        held = [(layer, layer.held) for layer in self.layers.values() if isinstance(layer, LoRALinear)]
        for layer, _ in held:
            layer.held = None
        try:
            yield
        finally:
            for layer, pair in held:
                layer.held = pair

    def measure(self, blocks: Callable[[int], AbstractContextManager[Any]], seed: int) -> None:
        """Let the layers look at the weights of the base; `blocks(n)` is a context in which those of block n are there.

        Call it after `inject` and before a saved state is laid over the set.
        """
        measured = {path: layer for path, layer in self.layers.items() if layer.measures}
        for block, paths in itertools.groupby(measured, block_of):
            with blocks(int(block or 0)):
                for path in paths:
                    measured[path].measure(torch.Generator().manual_seed(seed + zlib.crc32(path.encode())))

    def norms(self) -> dict[str, float]:
        """Frobenius norm of the change of the weights, per branch, at strength 1; LoftQ's part is none."""
        squares: dict[str, list[torch.Tensor]] = {}
        for path, layer in self.layers.items():
            squares.setdefault(branch_of(path), []).append(layer.squared_change())
        return {
            branch: float(torch.stack(squares[branch]).sum().clamp(min=0).sqrt())
            for branch in BRANCHES
            if branch in squares
        }

    def load(self, file: LoraFile) -> Loaded:
        """Fill the layers from a file so that they change the model as the file does, whatever its alpha.

        Layers that the file lacks stay as they are, so that a video LoRA can start an audio-video run. Layers of a file
        with several ranks are filled up to this set's. Raises ConfigError where the rank or a shape differs, or where
        the file and this set share no layer.
        """
        sizes = {path: (layer.out_features, layer.in_features) for path, layer in self.layers.items()}
        entries, unknown = fitting_start(file, sizes, self.settings)
        with torch.no_grad():
            for path, entry in entries.items():
                layer = self.layers[path]
                if isinstance(entry, OtherEntry):
                    fill_adapter(layer, entry)
                    continue
                assert isinstance(layer, LoRALinear), type(layer)
                # components beyond the file's rank stay as they were made: A drawn, B zero, so that they can learn
                layer.lora_A[: entry.rank].copy_(entry.down)
                layer.lora_B.zero_()
                layer.lora_B[:, : entry.rank].copy_(entry.up.float() * (entry.scale / layer.own_scale))
        untouched = [path for path in self.layers if path not in entries]
        return Loaded(list(entries), untouched, unknown)

    def state(self) -> dict[str, dict[str, Any]]:
        """All that a resume equal to an unbroken run needs, by dotted path: A, B in full precision, dropout draws."""
        return {
            path: {
                **{name: parameter.detach() for name, parameter in layer.trained().items()},
                **layer.kept(),
                "dropout_draws": layer.dropout_draws,
            }
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
            saved = {name: tuple(state[path][name].shape) for name in layer.trained() if name in state[path]}
            here = {name: tuple(parameter.shape) for name, parameter in layer.trained().items()}
            if "A" in saved and "A" in here and saved["A"][0] != here["A"][0]:
                raise RunError(
                    f"The saved state has rank {saved['A'][0]}, this run has {here['A'][0]}. Resume with the lora.rank "
                    "that the run began with."
                )
            if saved != here:
                raise RunError(
                    f"The saved state has {_sizes(saved)} for {path}, this run has {_sizes(here)}. Resume with the "
                    "lora.algo, lora.rank and lora.factor that the run began with."
                )
        with torch.no_grad():
            for path, layer in self.layers.items():
                layer.restore(state[path])

    def remove(self) -> None:
        """Put the original linears back; the set is empty afterwards."""
        for path, layer in self.layers.items():
            place_module(self.model, path, layer.base)
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
    assert not any(isinstance(module, Adapter) for module in model.modules()), "the model has a LoRA already"
    layers: dict[str, Adapter] = {}
    for path in chosen_layers(model, settings):
        base = model.get_submodule(path)
        layer = make_layer(base, settings.layer(path), settings, dtype, generator)
        place_module(model, path, layer)
        layers[path] = layer
    return LoraSet(model, layers, settings)


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()) or "nothing"


def place_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` where `path` points to in `model`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
