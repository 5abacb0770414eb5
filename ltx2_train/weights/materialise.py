"""Filling a module: each tensor arrives once.

A module built on the meta device has shapes and no memory. Each tensor is read, sent to its device, cast there and put
in place before the next one is read, in the order of the file. So RAM and device memory hold the model and one tensor.

Linears are quantized as soon as their last tensor is there, on a device of their own choice, and then laid where they
belong; so a model whose blocks live in RAM never passes through the card as a whole. Linears that a file brings
quantized are kept as they are. All other tensors of quantized files are turned back into numbers, w = q * scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..device import card_is_full
from ..errors import CheckpointError, OutOfMemory
from ..quant.base import QuantLinear
from .expected import check_names
from .quantize import Quantizer
from .reader import TensorFile
from .stored import stored_in
from .stored_numbers import read_numbers, read_stored

LoadProgress = Callable[[int, int, str], None]  # bytes done, bytes in all, name; may raise Stopped
OnLinear = Callable[[str, nn.Linear], "nn.Module | None"]
Home = Callable[[str], "torch.device | str"]  # module path -> where its finished tensors shall lie


@dataclass(frozen=True)
class Origin:
    """The tensors `prefix` + name of `file`, called `what` where something is wrong with them.

    `owned(name without prefix)` says which tensors under `prefix` must find a place; None: all of them.
    """

    file: TensorFile
    prefix: str
    what: str
    owned: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Arrival:
    """What becomes of the tensors. Parameters become `dtype`; buffers keep the precision they are stored in.

    Everything ends on `home(module path)`, or `device`. `keep(path)`: a linear that the file stores quantized stays so.
    `quantize` takes the plain linears it wants from its own device, in the dtype of the file. `on_linear(path, linear)`
    may return a module that takes the place of another plain linear that has just arrived.
    """

    dtype: torch.dtype
    device: torch.device | str = "cpu"
    on_progress: LoadProgress | None = None
    on_linear: OnLinear | None = None
    keep: Callable[[str], bool] | None = None
    quantize: Quantizer | None = None
    home: Home | None = None


def materialise(module: nn.Module, origin: Origin, arrival: Arrival) -> None:
    """Fill `module`, built on the meta device, with the tensors of `origin`; freeze it, set it to eval.

    Raises CheckpointError where a tensor is missing, left over, of another shape or not finite, OutOfMemory where the
    device is full.
    """
    filling = _Filling(module, origin, arrival)
    try:
        for name in filling.order:
            filling.take(name)
            filling.count(name)
    except RuntimeError as error:
        if not card_is_full(error):
            raise
        raise OutOfMemory(
            f"{torch.device(arrival.device)} ran out of memory while the {origin.what} was loaded "
            f"({filling.done / 1e9:.1f} of {filling.total / 1e9:.1f} GB). Choose a smaller quantization, let more "
            "blocks stay in RAM, or close what else uses the device."
        ) from error
    _check_full(module)
    module.requires_grad_(False).eval()


class _Filling:
    """A module on its way: `take` each name of `order` in turn, then `count` it."""

    def __init__(self, module: nn.Module, origin: Origin, arrival: Arrival) -> None:
        self.module, self.origin, self.arrival, self.file = module, origin, arrival, origin.file
        self.stored = stored_in(self.file)
        names = module.state_dict()
        check_names(self.file, origin.prefix, origin.what, names, origin.owned, self.stored)
        self.parameters = {name for name, _ in module.named_parameters()}
        self.order = sorted(names, key=lambda name: self.file.tensors[origin.prefix + name].offset)
        self.total = sum(self.file.tensors[origin.prefix + name].nbytes for name in names)
        self.done = 0
        self._missing = Counter(_layer_of(name) for name in names)  # tensors of each layer that have not come yet
        self._came_whole: set[str] = set()

    def take(self, name: str) -> None:
        """Read one tensor and put it where it belongs; of a linear that is stored quantized, all at once."""
        path = _layer_of(name)
        if path in self._came_whole:
            return
        if self.origin.prefix + path in self.stored.kinds:
            self._take_stored(path)
            self._came_whole.add(path)
            return
        layer, arrival = self.module.get_submodule(path), self.arrival
        quantize = arrival.quantize
        if quantize is not None and not (isinstance(layer, nn.Linear) and quantize.wants(path)):
            quantize = None
        parameter = name in self.parameters
        as_stored = not parameter or (quantize is not None and name.endswith(".weight"))
        device = self._home(path) if quantize is None else quantize.device
        _place(self.module, name, self._read(name, device, None if as_stored else arrival.dtype), parameter)
        self._missing[path] -= 1
        replace = arrival.on_linear if quantize is None else quantize
        if replace is not None and not self._missing[path] and isinstance(layer, nn.Linear):
            self._replace(path, replace(path, layer))

    def count(self, name: str) -> None:
        """One more has come."""
        self.done += self.file.tensors[self.origin.prefix + name].nbytes
        if self.arrival.on_progress is not None:
            self.arrival.on_progress(self.done, self.total, name)

    def _home(self, path: str) -> torch.device:
        return torch.device(self.arrival.device if self.arrival.home is None else self.arrival.home(path))

    def _take_stored(self, path: str) -> None:
        """A linear that the file stores quantized: itself where it is kept, else as numbers."""
        arrival, layer, device = self.arrival, self.module.get_submodule(path), self._home(path)
        assert isinstance(layer, nn.Linear), path
        bias = None if layer.bias is None else self._read(f"{path}.bias", device, arrival.dtype)
        shape = (layer.out_features, layer.in_features)
        made = read_stored(self.file, self.origin.prefix + path, self.stored, bias, arrival.dtype, device, shape)
        if arrival.keep is not None and arrival.keep(path):
            _set(self.module, path, made)
            return
        _place(self.module, f"{path}.weight", made.dequantize(arrival.dtype), True)
        if bias is not None:
            _place(self.module, f"{path}.bias", bias, True)

    def _replace(self, path: str, made: nn.Module | None) -> None:
        if made is not None:
            _set(self.module, path, made.to(self._home(path)) if isinstance(made, QuantLinear) else made)

    def _read(self, name: str, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """The numbers of one tensor on `device`; floating ones in `dtype`, where one is given."""
        name = self.origin.prefix + name
        tensor = read_numbers(self.file, name, self.file.tensors[name], device)
        if not _finite(tensor):
            raise CheckpointError(
                f"The {self.origin.what} cannot be loaded from {self.file.path.name}: {name} holds numbers that are "
                "not finite. The file is damaged. Download or make it again."
            )
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _check_full(module: nn.Module) -> None:
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    assert not left, f"computed buffers were lost on the meta device: {left}"


def _finite(tensor: Tensor) -> bool:
    """Whether `tensor` holds neither NaN nor infinities, which its ends would show."""
    if not tensor.is_floating_point() or tensor.itemsize < 2 or not tensor.numel():
        return True
    if tensor.is_meta or type(tensor) is not Tensor:  # sizes alone
        return True
    return all(bool(torch.isfinite(end)) for end in tensor.aminmax())  # a tenth of the time of isfinite on all


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def _place(module: nn.Module, name: str, tensor: Tensor, parameter: bool) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if parameter:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _set(module: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)
