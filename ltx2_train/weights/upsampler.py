"""Files of the latent upsampler: told from others by their shapes, read, and made tiny."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from .. import files
from ..errors import CheckpointError
from ..models.upsampler import FACTOR, LatentUpsampler
from ..shapes import VIDEO_CHANNELS
from . import keys
from .materialise import Arrival, LoadProgress, Origin, materialise
from .probe import probe
from .reader import TensorFile

USUAL = "ltx-2.3-spatial-upscaler-x2-1.0.safetensors"
_PLAIN, _RATIONAL = "upsampler.0.weight", "upsampler.conv.weight"
_TINY = {"width": 32, "blocks": 1}


def load_upsampler(
    path: Path,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: LoadProgress | None = None,
) -> LatentUpsampler:
    """The frozen upsampler in `path`. Raises CheckpointError where it is none that doubles rows and columns."""
    with TensorFile(path) as file:
        with torch.device("meta"):
            model = _empty(file)
        # the blur of other ratios is among the tensors, and has no part in this one
        origin = Origin(file, "", "latent upsampler", lambda name: "blur_down" not in name)
        materialise(model, origin, Arrival(dtype, device, on_progress))
    return model


def upsampler_sizes(path: Path) -> tuple[int, int]:
    """Bytes of its weights and its inner channels, by the header alone. Raises CheckpointError as `load_upsampler`."""
    with TensorFile(path) as file:
        _empty(file)
        return sum(tensor.nbytes for tensor in file.tensors.values()), file.tensors["initial_conv.weight"].shape[0]


def _empty(file: TensorFile) -> LatentUpsampler:
    """The upsampler of `file`, on the meta device. Raises CheckpointError."""
    name = file.path.name
    if not all(mark in file.tensors for mark in keys.UPSAMPLER_MARKS):
        what = probe(file.path)
        known = f"a checkpoint of {what.family}" if what.kind in ("ltx2", "ltxv") else what.family
        raise CheckpointError(
            f"{name} is no latent upsampler{f', but {known}' if known else ''}. Choose {USUAL}, or that of LTX-2."
        )
    width, channels, *kernel = file.tensors["initial_conv.weight"].shape
    rational = _RATIONAL in file.tensors
    step = file.tensors.get(_RATIONAL if rational else _PLAIN)
    if step is None or len(step.shape) != 4 or len(kernel) != 3:
        raise CheckpointError(f"{name} is an upsampler of another kind: it adds frames, not rows. Choose {USUAL}.")
    if step.shape[0] != FACTOR**2 * width:
        raise CheckpointError(f"{name} enlarges by another factor than {FACTOR}. Choose {USUAL}.")
    if channels != VIDEO_CHANNELS:
        raise CheckpointError(
            f"{name} is of another model: its latents have {channels} channels, not {VIDEO_CHANNELS}. Choose {USUAL}."
        )
    blocks = sum(one.startswith("res_blocks.") and one.endswith(".conv1.weight") for one in file.tensors)
    with torch.device("meta"):
        return LatentUpsampler(channels, width, blocks, rational)


def write_tiny_upsampler(out: Path, version: str, seed: int) -> Path:
    """A tiny file in the real format, of the make that `version` has."""
    rational = version == "2.0"
    model = LatentUpsampler(VIDEO_CHANNELS, **_TINY, rational=rational)
    _fill(model, torch.Generator().manual_seed(seed))
    tensors = {name: one.bfloat16() for name, one in model.state_dict().items()}
    if rational:
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
        tensors["upsampler.blur_down.kernel"] = ((row[:, None] * row) / 256.0)[None, None]
    config = {
        "_class_name": "LatentUpsampler",
        "in_channels": VIDEO_CHANNELS,
        "mid_channels": _TINY["width"],
        "num_blocks_per_stage": _TINY["blocks"],
        "dims": 3,
        "spatial_upsample": True,
        "temporal_upsample": False,
        "spatial_scale": float(FACTOR),
        "rational_resampler": rational,
    }
    path = out / f"ltx-{'2' if rational else '2.3'}-tiny-upscaler-x2.safetensors"
    files.write_tensors(path, tensors, {"config": json.dumps(config)})
    return path


@torch.no_grad()
def _fill(model: LatentUpsampler, generator: torch.Generator) -> None:
    """Random weights that keep numbers as large as they are."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        else:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
