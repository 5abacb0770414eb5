"""Tiny video VAEs of both versions, with all block kinds of the real ones, and random weights for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ltx2_train.models.video_vae import VideoVAE, VideoVAEConfig

RES = ["res_x", {"num_layers": 1}]
BASE = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "decoder_base_channels": 4,
    "patch_size": 4,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "causal_decoder": False,
}


def encoder_blocks(last_multiplier: int) -> list[list]:
    return [
        RES,
        ["compress_space_res", {"multiplier": 2}],
        RES,
        ["compress_time_res", {"multiplier": 2}],
        RES,
        ["compress_all_res", {"multiplier": 2}],
        RES,
        ["compress_all_res", {"multiplier": last_multiplier}],
        RES,
    ]


def section_20(conditioned: bool = False, inject_noise: bool = False) -> dict:
    """`config.vae` of a tiny 2.0 checkpoint, which names no padding mode."""
    res = ["res_x", {"num_layers": 1, "inject_noise": inject_noise}]
    up = ["compress_all", {"residual": True, "multiplier": 2}]
    return {
        **BASE,
        "encoder_blocks": encoder_blocks(2),
        "decoder_blocks": [res, up, res, up, res, up, res],
        "timestep_conditioning": conditioned,
    }


def section_23() -> dict:
    """`config.vae` of a tiny 2.3 checkpoint."""
    return {
        **BASE,
        "encoder_blocks": encoder_blocks(1),
        "decoder_blocks": [
            RES,
            ["compress_space", {"multiplier": 2}],
            RES,
            ["compress_time", {"multiplier": 2}],
            RES,
            ["compress_all", {"multiplier": 1}],
            RES,
            ["compress_all", {"multiplier": 2}],
            RES,
        ],
        "spatial_padding_mode": "zeros",
        "timestep_conditioning": False,
    }


SECTIONS = {
    "2.0": section_20(),
    "2.3": section_23(),
    "2.0 conditioned": section_20(conditioned=True),
    "2.0 conditioned, noise": section_20(conditioned=True, inject_noise=True),
}


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size that keeps activations near 1, and statistics that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("timestep_scale_multiplier"):
                tensor.fill_(1000.0)
            elif "std-of-means" in name:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                spread = tensor[0].numel() ** -0.5 if tensor.ndim == 5 else 0.3
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
    return module.eval().requires_grad_(False)


def tiny_vae(name: str = "2.3", seed: int = 0) -> VideoVAE:
    section = SECTIONS[name]
    return fill(VideoVAE(VideoVAEConfig.from_checkpoint(section)), seed)


def clip(frames: int = 17, height: int = 64, width: int = 96, seed: int = 1, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def latent_clip(frames: int = 3, height: int = 2, width: int = 3, seed: int = 2, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, BASE["latent_channels"], frames, height, width, generator=generator)


def apart(one: Tensor, other: Tensor) -> float:
    """The largest difference relative to the largest value."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())
