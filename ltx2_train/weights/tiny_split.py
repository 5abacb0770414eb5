"""Writes a tiny LTX-2.5 in the ways it is published: a file for each part, and one for all but the text encoder.

The files lie as in ComfyUI's models folder, with the headers of the real ones: the transformer's knows nothing of the
VAEs, the names of the video VAE have no prefix, and the text encoder brings the text projection. The video VAE is there
with both decoders; of the diffusion decoder, which nothing here runs, there is a tensor and its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from . import keys
from .gemma4 import PUBLISHED, SOURCE
from .published import MODEL_VERSIONS
from .tiny_gemma4 import write_tiny_gemma4

_VERSION = {"model_version": MODEL_VERSIONS["2.5"]}
_SOURCE = {SOURCE: json.dumps({"ltx_version": MODEL_VERSIONS["2.5"], "gemma_version": PUBLISHED})}


def write_tiny_split(
    out: Path, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], hidden: int, seed: int
) -> dict[str, Path]:
    """Write all files into `out`; returns them by the fields of TinyFiles. `name` is that of the file for all parts."""
    paths = {
        "checkpoint": out / "diffusion_models" / "ltx-2.5-tiny-dev-transformer-bf16.safetensors",
        "video_vae": out / "vae" / "ltx-2.5-tiny-video-vae-conv.safetensors",
        "diffusion_vae": out / "vae" / "ltx-2.5-tiny-video-vae.safetensors",
        "audio_vae": out / "vae" / "ltx-2.5-tiny-audio-vae.safetensors",
        "whole": out / "checkpoints" / name,
    }

    def write(part: str, content: Mapping[str, Tensor], sections: Mapping[str, Any], more: Mapping[str, str]) -> None:
        files.write_tensors(paths[part], dict(content), {"config": json.dumps(sections), **_VERSION, **more})

    def under(*prefixes: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name.startswith(prefixes)}

    def sections(*names: str) -> dict[str, Any]:
        return {name: config[name] for name in names}

    vae = {name[len(keys.VIDEO_VAE) :]: tensor for name, tensor in under(keys.VIDEO_VAE).items()}
    encoder = {name: tensor for name, tensor in vae.items() if not name.startswith("decoder.")}
    write("checkpoint", under(keys.TRANSFORMER), sections("transformer", "scheduler"), _SOURCE)
    write("video_vae", vae, sections("vae"), {})
    write("diffusion_vae", encoder | {keys.DIFFUSION_DECODER: torch.zeros(4, 4)}, {"vae": _nested(config["vae"])}, {})
    write("audio_vae", under(keys.AUDIO_VAE, keys.VOCODER), sections("audio_vae", "vocoder"), {})
    write("whole", tensors, config, _SOURCE)
    projection = under(keys.TEXT_PROJECTION)
    single, folder = write_tiny_gemma4(out / "text_encoders", projection, hidden=hidden, seed=seed)
    return paths | {"text_encoder": single, "gemma_folder": folder}


def _nested(vae: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the file with the diffusion decoder, which words that of the encoder in its own way."""
    return {
        "_class_name": "CausalDiffusionVAE",
        "encoder": {
            "blocks": vae["encoder_blocks"],
            "out_channels": vae["latent_channels"],
            "patch_size": vae["patch_size"],
            "norm_layer": vae["norm_layer"],
            "spatial_padding_mode": vae["spatial_padding_mode"],
            "latent_log_var": "constant",
        },
        "decoder": {"_class_name": "NADiffusionDecoder", "default_num_inference_steps": 1},
        "model_output_type": "x0",
    }
