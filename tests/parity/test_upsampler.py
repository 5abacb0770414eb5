"""The latent upsampler against the official module and that of ComfyUI, with the same weights."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.errors import CheckpointError
from ltx2_train.weights.upsampler import load_upsampler, upsampler_sizes, write_tiny_upsampler

CLOSE = 1e-5


def official(config):
    from ltx_core.model.upsampler.model import LatentUpsampler

    return LatentUpsampler(**config)


def of_comfyui(config):
    root = os.environ.get("COMFYUI_PATH")
    if root is None:
        pytest.skip("needs COMFYUI_PATH")
    path = Path(root) / "comfy" / "ldm" / "lightricks" / "latent_upsampler.py"
    spec = importlib.util.spec_from_file_location("latent_upsampler_of_comfyui", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LatentUpsampler.from_config(config)


@pytest.mark.parametrize("peer", [official, of_comfyui])
@pytest.mark.parametrize(("version", "rational"), [("2.0", True), ("2.3", False)])
def test_latents_are_enlarged_as_by_the_other_module(tmp_path, peer, version, rational):
    path = write_tiny_upsampler(tmp_path, version, seed=3)
    other = peer(
        {"in_channels": 128, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3, "rational_resampler": rational}
    )
    other.load_state_dict({name: one.float() for name, one in load_file(path).items()}, strict=True)
    latents = torch.randn(2, 128, 3, 2, 5, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = load_upsampler(path, torch.float32)(latents), other(latents)
    assert ours.shape == (2, 128, 3, 4, 10)
    assert (ours - theirs).abs().max() < CLOSE
    assert ours.std() > 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"upsampler.0.weight": (9 * 32, 32, 3, 3)}, "enlarges by another factor than 2"),
        ({"upsampler.0.weight": (2 * 32, 32, 3, 3, 3)}, "of another kind: it adds frames, not rows"),
        ({"initial_conv.weight": (32, 16, 3, 3, 3)}, "its latents have 16 channels, not 128"),
        ({"final_conv.bias": None, "res_blocks.0.norm1.bias": (8,)}, ""),
    ],
)
def test_an_upsampler_that_does_something_else_is_named(tmp_path, change, said):
    tensors = load_file(write_tiny_upsampler(tmp_path, "2.3", seed=0))
    for name, shape in change.items():
        tensors.pop(name)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=f"other.safetensors.*{said}"):
        load_upsampler(tmp_path / "other.safetensors")


def test_a_checkpoint_is_no_upsampler(tiny):
    with pytest.raises(
        CheckpointError, match="is no latent upsampler, but a checkpoint of LTX-2. Choose ltx-2.3-spatial"
    ):
        upsampler_sizes(tiny.checkpoint)
