"""How strong the inputs of each linear are on real batches: what AWQ scales weights by.

Measured on the model before it is quantized, in one pass over a few batches, and kept in the run folder, so that a
resumed run quantizes alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import write_tensors
from .fingerprint import same_weights
from .reader import TensorFile

log = logging.getLogger(__name__)

AWQ_FILE = "awq_scales.safetensors"
_VERSION = "1"


def collect_activations(model: nn.Module, run_batches: Callable[[], object], paths: Iterable[str]) -> dict[str, Tensor]:
    """mean |x| over all tokens [I], float32 on the CPU, of the inputs of the linears at `paths`.

    `run_batches()` calls the model on its batches; no gradient is kept. A linear that saw no token (those of the sound,
    where no batch has any) gets zeros, which means that it is not scaled. Raises CheckpointError where none saw any, or
    where inputs are not finite.
    """
    paths = list(paths)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            found = x.abs().sum(0, dtype=torch.float32)
            sums[path] = sums[path] + found.to(sums[path].device) if path in sums else found
            counts[path] = counts.get(path, 0) + x.shape[0]

        return look

    hooks = [model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths]
    try:
        with torch.no_grad():
            run_batches()
    finally:
        for hook in hooks:
            hook.remove()
    means = {path: (sums[path] / counts[path]).cpu() for path in sums if counts[path]}
    strange = [path for path, mean in means.items() if not torch.isfinite(mean).all()]
    if strange:
        raise CheckpointError(
            f"AWQ cannot be measured: the inputs of {len(strange)} layers are not finite, the first is {strange[0]}. "
            "Switch quant.awq off."
        )
    if not means:
        raise CheckpointError("AWQ cannot be measured: no layer saw a token of the batches. Switch quant.awq off.")
    unseen = [path for path in paths if path not in means]
    if unseen:
        log.warning("AWQ: %d layers saw no token of the batches and are not scaled, as %s", len(unseen), unseen[0])
    for path in unseen:
        width = model.get_submodule(path).in_features
        assert isinstance(width, int), path
        means[path] = torch.zeros(width)
    return {path: means[path] for path in paths}


def save_activations(path: Path | str, activations: Mapping[str, Tensor], made_from: Mapping[str, str]) -> None:
    """Write what was measured, atomically; `made_from` says on what: the fingerprint of the `checkpoint`, numbers of
    batches, mode."""
    write_tensors(path, activations, {"format_version": _VERSION, **made_from})


def load_activations(path: Path | str, made_from: Mapping[str, str]) -> dict[str, Tensor] | None:
    """What `save_activations` wrote; None where there is no file, or where it was made from something else."""
    path = Path(path)
    if not path.exists():
        return None
    with TensorFile(path) as file:
        expected = {"format_version": _VERSION, **made_from}
        base = expected.pop("checkpoint")
        if any(file.metadata.get(key) != value for key, value in expected.items()):
            return None
        if not same_weights(file.metadata.get("checkpoint"), base):
            return None
        return {name: file.read(name) for name in file.tensors}
