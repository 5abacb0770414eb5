"""Small audio models with every branch of the real ones, as the sections that a checkpoint's config would hold."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

REAL_AUDIO_VAE: dict[str, Any] = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
        "audio": {"sampling_rate": 16000},
    },
}

_BLOCKS = {"resblock_kernel_sizes": [3, 7, 11], "resblock_dilation_sizes": [[1, 3, 5]] * 3, "stereo": True}

REAL_VOCODER_20: dict[str, Any] = {
    **_BLOCKS,
    "upsample_initial_channel": 1024,
    "upsample_rates": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "resblock": "1",
    "output_sampling_rate": 24000,
}

REAL_VOCODER_23: dict[str, Any] = {
    "vocoder": {
        **_BLOCKS,
        "upsample_initial_channel": 1536,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
        "resblock": "AMP1",
        "activation": "snakebeta",
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
    },
    "bwe": {
        **_BLOCKS,
        "upsample_initial_channel": 512,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "resblock": "AMP1",
        "activation": "snakebeta",
        "use_tanh_at_final": False,
        "use_bias_at_final": False,
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "num_mels": 64,
    },
}


def audio_vae_section(**sizes: Any) -> dict[str, Any]:
    """The real section with other sizes in its ddconfig."""
    section = copy.deepcopy(REAL_AUDIO_VAE)
    section["model"]["params"]["ddconfig"].update(sizes)
    return section


def vocoder_section_20(**sizes: Any) -> dict[str, Any]:
    """A 2.0 vocoder 32 channels wide with two kernels side by side."""
    small = {"upsample_initial_channel": 32, "resblock_kernel_sizes": [3, 7]}
    return {**REAL_VOCODER_20, **small, "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]], **sizes}


def vocoder_section_23() -> dict[str, Any]:
    """A 2.3 vocoder 64 channels wide whose extension has 32, two kernels side by side in both."""
    section = copy.deepcopy(REAL_VOCODER_23)
    for part, width in (("vocoder", 64), ("bwe", 32)):
        section[part].update(
            upsample_initial_channel=width,
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
        )
    return section


def randomize(module: nn.Module, gain: float = 1.0, seed: int = 0) -> None:
    """Fills every parameter so that activations keep about their size; biases and scales are not left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(noise * (gain * fan_in**-0.5 if parameter.ndim > 1 else 0.1))
        for name, buffer in module.named_buffers():
            if name.endswith("mean-of-means"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
            elif name.endswith("std-of-means"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def chirp(samples: int, channels: int = 2, rate: int = 16000) -> torch.Tensor:
    """A rising tone with a little noise, other in each channel: [1, channels, samples]."""
    time = torch.arange(samples) / rate
    tones = [torch.sin(2 * torch.pi * (200 + 900 * (c + 1) * time) * time) for c in range(channels)]
    noise = torch.randn(channels, samples, generator=torch.Generator().manual_seed(1))
    return (0.4 * torch.stack(tones) + 0.02 * noise)[None]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """The same normal numbers in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
