"""Which linears are stored in few bits, and turning each into its format the moment it has arrived.

Only the linears inside the transformer's blocks are quantized, and of those not the attention gates, whose few rows
decide much. Whatever the file brings quantized is kept as it is and never quantized again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..quant.awq import AwqNf4, channel_scales
from ..quant.base import QuantLinear, require_library
from ..quant.formats import FORMATS, STORED, quantize_linear
from ..quant.settings import QuantSettings
from .keys import BLOCKS, GATES
from .loftq import Loftq, find_companion
from .reader import TensorFile
from .stored import StoredLinears, stored_in

log = logging.getLogger(__name__)


def eligible(path: str) -> bool:
    """Whether the linear at dotted `path` (with or without a prefix) is one that is quantized."""
    parts = path.split(".")
    return BLOCKS in parts and parts[-1] != GATES


def quantized_paths(model: nn.Module) -> list[str]:
    """Dotted paths of the linears of `model` that a format would store, in the model's order."""
    return [path for path, module in model.named_modules() if isinstance(module, nn.Linear) and eligible(path)]


class Quantizer:
    """Called with each linear that has arrived; gives the quantized one, on the device the linear is on.

    `device` is where linears have to arrive. With `loftq` the linears it names are made to miss a low-rank part, which
    is left in `loftq.initial`. `activations` (path -> mean |x| of each input) makes it AWQ.
    """

    def __init__(
        self,
        settings: QuantSettings,
        format: str,
        device: torch.device,
        compute_dtype: torch.dtype,
        loftq: Loftq | None = None,
        activations: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.settings, self.format, self.device, self.compute_dtype = settings, format, device, compute_dtype
        self.loftq, self.activations = loftq, activations
        self.quantized = 0

    def wants(self, path: str) -> bool:
        return eligible(path)

    def __call__(self, path: str, linear: nn.Linear) -> QuantLinear | None:
        if not self.wants(path):
            return None
        _require_finite(path, linear.weight.detach())
        if self.loftq is not None and path in self.loftq.paths:
            quantized = self.loftq.quantize(path, linear, self.settings)
        elif self.activations is not None:
            quantized = self._scaled(path, linear, self.activations)
        else:
            quantized = quantize_linear(linear, self.format, self.settings)
        quantized.compute_dtype = self.compute_dtype
        if quantized.bias is not None:  # it passed through the dtype of the weight
            quantized.bias.data = linear.bias.detach().to(self.compute_dtype)
        self.quantized += 1
        return quantized

    def _scaled(self, path: str, linear: nn.Linear, activations: Mapping[str, Tensor]) -> QuantLinear:
        if path not in activations:
            raise CheckpointError(
                f"The AWQ scales lack the layer {path}: they were measured on another model. Delete "
                "awq_scales.safetensors in the run folder, or switch quant.awq off."
            )
        weight = linear.weight.detach()
        scales = channel_scales(activations[path].to(weight.device), self.settings.awq_alpha)
        bias = None if linear.bias is None else linear.bias.detach()
        return AwqNf4.quantize_scaled(weight, bias, self.settings, weight.dtype, scales)


def _require_finite(path: str, weight: Tensor) -> None:
    """Raise CheckpointError where a number of `weight` is NaN or infinite: a scale would carry it to its neighbours."""
    if weight.is_meta or not weight.numel():
        return
    ends = torch.stack([weight.amin(), weight.amax()])  # a NaN becomes both; no copy of the weight is made
    if not bool(torch.isfinite(ends).all()):
        raise CheckpointError(
            f"{path} of the checkpoint holds numbers that are not finite, so it cannot be quantized. The file is "
            "damaged; fetch it again."
        )


def quantizer(
    settings: QuantSettings,
    device: torch.device | str,
    compute_dtype: torch.dtype = torch.bfloat16,
    loftq: Loftq | None = None,
    activations: Mapping[str, Tensor] | None = None,
) -> Quantizer | None:
    """The Quantizer that `settings` ask for, working on quant.device (auto: `device`); None where nothing is to do."""
    if settings.format in ("auto", "none"):
        return None
    if settings.loftq and loftq is None:
        raise ConfigError(
            "quant.loftq needs to know the layers of the LoRA; there is none here. Switch quant.loftq off."
        )
    if settings.awq and activations is None:
        raise ConfigError("quant.awq needs measured activations; there are none here. Switch quant.awq off.")
    where = quant_device(settings, device)
    return Quantizer(
        settings,
        settings.format,
        where,
        compute_dtype,
        loftq if settings.loftq else None,
        activations if settings.awq else None,
    )


def quant_device(settings: QuantSettings, device: torch.device | str) -> torch.device:
    """Where weights are quantized. Raises ConfigError where that device is not there."""
    if settings.device == "auto":
        return torch.device(device)
    try:
        device = torch.device("cuda" if settings.device == "gpu" else settings.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"quant.device: {settings.device!r} cannot be used ({reason}). Use auto or cpu.") from None
    return device


def check_quant(path: Path | str, settings: QuantSettings, rank: int | None = None) -> str:
    """What loading `path` with `settings` gives: the format of the blocks, "none", or the words of what is kept.

    Reads the header only, and with `rank` (that of the LoRA) whether LoftQ's companion is there. Raises CheckpointError
    or ConfigError where the file does not go with the settings.
    """
    with TensorFile(path) as file:
        stored = stored_in(file)
        words = settle_storage(stored, settings, file.path.name)[1]
    if settings.loftq and stored.in_blocks() and rank is not None:
        find_companion(path, rank)
    return words


def settle_storage(stored: StoredLinears, settings: QuantSettings, name: str) -> tuple[QuantSettings, str]:
    """(settings under which the plain linears of a file are loaded, what its blocks are then stored as).

    Raises CheckpointError for a layout that cannot be read, ConfigError where a quantized file meets settings that
    would quantize it again.
    """
    if complaint := stored.complaint():
        raise CheckpointError(f"{name} is stored as {complaint}")
    kinds = set(stored.in_blocks().values())
    asked = settings.format
    if not kinds:
        if asked in FORMATS:
            require_library(FORMATS.get(asked).storage)
        return settings, "none" if asked == "auto" else asked
    storages = [STORED.get(kind).storage for kind in kinds]
    words = " and ".join(sorted(storage.words for storage in storages))
    plain = settings.model_copy(update={"format": "none", "loftq": False, "awq": False})
    if settings.awq:
        raise ConfigError(
            f"{name} is {words} already, and quant.awq needs the full-precision weights. Use the bf16 checkpoint, or "
            "switch quant.awq off."
        )
    same = all(asked in (storage.name, storage.answers) for storage in storages)
    if asked in ("auto", "none") or same:
        _same_blocks(stored, settings, name)
        return plain, words
    remedy = "set quant.format to none (or auto), or use the bf16 checkpoint"
    if asked in (storage.called for storage in storages):
        raise ConfigError(
            f"The file is {asked} already, but not as quant.format = {asked} would store it: {name}; {remedy}."
        )
    raise ConfigError(f"{name} is {words} already and cannot be quantized again to {asked}: {remedy}.")


def _same_blocks(stored: StoredLinears, settings: QuantSettings, name: str) -> None:
    asked = settings.block_size if "block_size" in settings.model_fields_set else 0
    if stored.format == "nf4" and asked and stored.block_size and asked != stored.block_size:
        raise ConfigError(
            f"{name} is nf4 in blocks of {stored.block_size}, but quant.block_size is {asked}. Set it to "
            f"{stored.block_size}, or quantize the bf16 checkpoint again with blocks of {asked}."
        )
