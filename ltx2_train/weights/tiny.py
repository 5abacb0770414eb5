"""Makes a tiny checkpoint in the real single-file format, and the tiny text encoder that goes with it.

Every part and every branch of a published file is there, with its names, prefixes and header; only the widths are
small. ComfyUI and ltx-core load it as they load the real one (save for the text encoder, whose sizes ComfyUI fixes).
It is for tests, demos and trying out settings on any machine: the video VAE returns a blurry copy of a clip and the
transformer is a weak denoiser, see `tiny_vae` and `tiny_transformer`. The audio VAE and the vocoder are random.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import files
from ..errors import ConfigError
from ..events import Events
from ..families import FAMILIES
from ..models.audio_vae import AudioVAE, AudioVAEConfig
from ..models.text import FeatureExtractor, TextConnectors
from ..models.transformer import LTXTransformer, TransformerConfig
from ..models.video_vae import VideoVAE, VideoVAEConfig
from ..models.vocoder import VocoderConfig, build_vocoder
from . import keys
from .published import MODEL_VERSIONS, published_config
from .tiny_gemma import write_tiny_gemma
from .tiny_split import write_tiny_split
from .tiny_t5 import write_tiny_t5
from .tiny_transformer import fill_linears, fill_transformer
from .tiny_vae import fill_video_vae
from .upsampler import write_tiny_upsampler

HIDDEN = 32  # of the tiny Gemma
LAYERS = 6
FILE_NAMES = {
    "2.0": "ltx-2-tiny.safetensors",
    "2.3": "ltx-2.3-tiny.safetensors",
    "2.5": "ltx-2.5-tiny.safetensors",
    "ltxv-2b": "ltxv-2b-tiny.safetensors",
}

_TRANSFORMER: dict[str, Any] = {
    "num_layers": 4,
    # 160 is wide enough for 128 channels and a direction of its own, and its rotary frequencies need padding, as 4096's
    "num_attention_heads": 4,
    "attention_head_dim": 40,
    "cross_attention_dim": 160,
    "audio_num_attention_heads": 4,
    "audio_attention_head_dim": 36,
    "audio_cross_attention_dim": 144,
    "caption_channels": HIDDEN,
    "connector_num_layers": 2,
}
_CONNECTORS: dict[str, dict[str, Any]] = {
    "2.0": {"connector_num_attention_heads": 4, "connector_attention_head_dim": HIDDEN // 4},
    "2.3": {
        "connector_num_attention_heads": 4,
        "connector_attention_head_dim": 40,
        "audio_connector_num_attention_heads": 4,
        "audio_connector_attention_head_dim": 36,
    },
}
# Widths stay at 128 in the encoder (the latent's), halve from 64 to 8 in the decoder.
_ENCODER_BLOCKS = [
    ["compress_space_res", {"multiplier": 1}],
    ["compress_time_res", {"multiplier": 1}],
    ["compress_all_res", {"multiplier": 1}],
    ["compress_all_res", {"multiplier": 1}],
    ["res_x", {"num_layers": 1}],
]
_DECODER_BASE = 8
_AUDIO_SIZES = {"ch_mult": [1, 1, 1], "num_res_blocks": 1}
_CONNECTORS["2.5"] = _CONNECTORS["2.3"]
_VOCODER_WIDTHS = {"2.0": 64, "2.3": 64, "bwe": 64}


@dataclass(frozen=True)
class TinyFiles:
    """Where the tiny files lie: the checkpoint, and the text encoder as a single file and as a folder.

    Of LTX-Video the encoder is a T5. Of LTX-2.5 `checkpoint` is the transformer alone, the VAEs have files of their
    own, and `whole` is everything but the text encoder in one file, which goes with the folder. `upsampler` draws
    samples in two stages.
    """

    checkpoint: Path
    text_encoder: Path
    gemma_folder: Path
    video_vae: Path | None = None
    diffusion_vae: Path | None = None
    audio_vae: Path | None = None
    whole: Path | None = None
    upsampler: Path | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a run, by name, that these files are."""
        names = ("checkpoint", "text_encoder", "video_vae", "audio_vae")
        return {f"model.{name}": str(path) for name in names if (path := getattr(self, name)) is not None}


def make_tiny(out: Path | str, version: str = "2.3", seed: int = 0, events: Events | None = None) -> TinyFiles:
    """Write the tiny files of `version`, a key of FILE_NAMES, into the folder `out`; one seed gives the same numbers.

    Raises ConfigError for another version, RunError where the folder cannot be written.
    """
    if version not in FILE_NAMES:
        raise ConfigError(f"version is {version!r}; tiny checkpoints exist for {' and '.join(FILE_NAMES)}.")
    events = events or Events()
    out = Path(out)
    events.stage("make a tiny checkpoint", 2)
    tensors = tiny_tensors(version, seed)
    events.check_stop()
    if version == "2.5":
        split = write_tiny_split(out, FILE_NAMES[version], tensors, tiny_config(version), HIDDEN, seed)
        made = TinyFiles(**split, upsampler=write_tiny_upsampler(out, version, seed))
        events.progress(2, 2, made.checkpoint.name)
        return made
    checkpoint = out / FILE_NAMES[version]
    stated = {"model_version": MODEL_VERSIONS[version]} if version in MODEL_VERSIONS else {}
    files.write_tensors(checkpoint, tensors, {"config": json.dumps(tiny_config(version)), **stated})
    events.progress(1, 2, checkpoint.name)
    if FAMILIES[version].text_encoder == "T5":
        single, folder = write_tiny_t5(out, hidden=HIDDEN, seed=seed)
    else:
        single, folder = write_tiny_gemma(out, hidden=HIDDEN, layers=LAYERS, seed=seed)
    events.progress(2, 2, single.name)
    return TinyFiles(checkpoint, single, folder, upsampler=write_tiny_upsampler(out, version, seed))


def tiny_config(version: str) -> dict[str, Any]:
    """The header's configuration: the published one with small sizes."""
    config = published_config(version)
    family = FAMILIES[version]
    sound = len(family.modes) > 1
    config["transformer"] |= {
        name: size
        for name, size in (_TRANSFORMER | _CONNECTORS.get(version, {})).items()
        if (sound or "audio" not in name) and (family.connectors or "connector" not in name)
    }
    vae = config["vae"]
    vae["encoder_blocks"] = _ENCODER_BLOCKS
    vae["decoder_base_channels"] = _DECODER_BASE
    vae["decoder_blocks"] = [
        [kind, options | ({"num_layers": 1} if kind == "res_x" else {})] for kind, options in vae["decoder_blocks"]
    ]
    if not sound:
        return config
    config["audio_vae"]["model"]["params"]["ddconfig"] |= _AUDIO_SIZES
    few = {"resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3, 5]]}
    vocoder = config["vocoder"]
    if version == "2.0":
        vocoder |= few | {"upsample_initial_channel": _VOCODER_WIDTHS["2.0"]}
    else:
        vocoder["vocoder"] |= few | {"upsample_initial_channel": _VOCODER_WIDTHS["2.3"]}
        vocoder["bwe"] |= few | {"upsample_initial_channel": _VOCODER_WIDTHS["bwe"]}
    return config


def tiny_tensors(version: str, seed: int = 0) -> dict[str, Tensor]:
    """All tensors of the checkpoint under their names in the file, in bfloat16."""
    config = tiny_config(version)
    section = config["transformer"]
    generator = torch.Generator().manual_seed(seed)

    video_vae = VideoVAE(VideoVAEConfig.from_checkpoint(config["vae"]))
    covariance = fill_video_vae(video_vae, generator)
    sizes = TransformerConfig.from_checkpoint(section)
    transformer = LTXTransformer(sizes, "av" if sizes.has_sound else "video")
    fill_transformer(transformer, covariance, generator)
    if not FAMILIES[version].connectors:
        return _stored((keys.TRANSFORMER, transformer), (keys.VIDEO_VAE, video_vae)) | _unused(video_vae)
    connectors = TextConnectors(section, "av")
    fill_linears(connectors, generator)
    columns = HIDDEN * (LAYERS + 1)
    widths = (HIDDEN, None) if version == "2.0" else (_width(section, ""), _width(section, "audio_"))
    projection = FeatureExtractor(columns, *widths)
    fill_linears(projection, generator)
    audio_vae = AudioVAE(AudioVAEConfig.from_checkpoint(config["audio_vae"]))
    _fill_audio_vae(audio_vae, generator)
    vocoder = build_vocoder(VocoderConfig.from_checkpoint(config["vocoder"]))
    _fill_vocoder(vocoder, generator)

    return _stored(
        (keys.TRANSFORMER, transformer),
        (keys.TRANSFORMER, connectors),
        (keys.TEXT_PROJECTION, projection),
        (keys.VIDEO_VAE, video_vae),
        (keys.AUDIO_VAE, audio_vae),
        (keys.VOCODER, vocoder),
    )


def _stored(*modules: tuple[str, torch.nn.Module]) -> dict[str, Tensor]:
    """The tensors of `modules` in bfloat16, under a prefix each."""
    return {prefix + name: one.bfloat16() for prefix, module in modules for name, one in module.state_dict().items()}


def _unused(vae: VideoVAE) -> dict[str, Tensor]:
    """The further statistics of latents that the files of LTX-Video carry and nothing reads."""
    return {name: torch.ones(vae.config.latent_channels) for name in keys.UNUSED if name.startswith(keys.VIDEO_VAE)}


def _width(section: dict[str, Any], prefix: str) -> int:
    return section[f"{prefix}num_attention_heads"] * section[f"{prefix}attention_head_dim"]


def _fill_audio_vae(vae: AudioVAE, generator: torch.Generator) -> None:
    """Random weights, and the statistics of what they make of sounds that drift through the bands."""
    fill_linears(vae, generator)
    with torch.no_grad():
        frames = torch.randn(2, 2, 12, 16, generator=generator)
        mel = _smooth(frames) * 2.0 - 5.0
        latents = vae.encoder(mel)[:, : vae.config.latent_channels]
        bins = latents.shape[-1]
        mean = latents.mean((0, 2, 3)).repeat_interleave(bins)
        deviation = latents.std((0, 2, 3)).repeat_interleave(bins)
        vae.per_channel_statistics.get_buffer("mean-of-means").copy_(mean)
        vae.per_channel_statistics.get_buffer("std-of-means").copy_(deviation)


def _smooth(coarse: Tensor) -> Tensor:
    """Four times as long on the last two axes, interpolated."""
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")


def _fill_vocoder(vocoder: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights that give a quiet sound; slopes of the activations stay as built."""
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if name.endswith((".alpha", ".beta")):
                continue
            gain = 0.05 if "conv_post" in name or "conv_pre" in name else 0.7
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / fan_in**0.5)
