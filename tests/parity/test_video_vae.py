"""The video VAE against ltx-core and diffusers with the same random weights."""

from __future__ import annotations

import re

import pytest
import torch
from video_vae_sizes import SECTIONS, apart, clip, fill, latent_clip, tiny_vae

from ltx2_train.models.video_vae import VideoVAE

CLOSE = 1e-5


def core_state(vae: VideoVAE, half: str) -> dict[str, torch.Tensor]:
    state = vae.state_dict()
    wanted = {name.removeprefix(f"{half}."): value for name, value in state.items() if name.startswith(f"{half}.")}
    return wanted | {name: value for name, value in state.items() if name.startswith("per_channel_statistics.")}


def core_pair(name: str):
    from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator, VideoEncoderConfigurator

    vae = tiny_vae(name)
    encoder = VideoEncoderConfigurator.from_config({"vae": SECTIONS[name]})
    decoder = VideoDecoderConfigurator.from_config({"vae": SECTIONS[name]})
    # strict, so this also proves that the names and shapes are those of the original modules
    encoder.load_state_dict(core_state(vae, "encoder"), strict=True)
    decoder.load_state_dict(core_state(vae, "decoder"), strict=True)
    return vae, encoder.eval(), decoder.eval()


def diffusers_name(name: str, last_encoder_block: int) -> str | None:
    """Where diffusers keeps a tensor: stages and the resampling between them are one block, one end is `mid_block`."""
    if name.startswith("per_channel_statistics."):
        return {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}[name.rpartition(".")[2]]
    found = re.match(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(?:res_blocks\.)?(.*)", name)
    if found is None:
        return name
    side, index, rest = found[1], int(found[2]), found[3]
    half = side.partition(".")[0]
    if side == "encoder.down":
        if index == last_encoder_block:
            return f"{half}.mid_block.resnets.{rest}"
        kind = "downsamplers.0" if index % 2 else "resnets"
        return f"{side}_blocks.{index // 2}.{kind}.{rest}"
    if index == 0:
        return f"{half}.mid_block.resnets.{rest}"
    kind = "upsamplers.0" if index % 2 else "resnets"
    return f"{side}_blocks.{(index - 1) // 2}.{kind}.{rest}"


def diffusers_twin(name: str):
    from diffusers import AutoencoderKLLTX2Video

    vae = tiny_vae(name)
    options = {
        "2.0": {
            "block_out_channels": (16, 32, 64, 128),
            "decoder_block_out_channels": (8, 16, 32),
            "decoder_layers_per_block": (1,) * 4,
            "upsample_type": ("spatiotemporal",) * 3,
            "upsample_factor": (2, 2, 2),
            "upsample_residual": (True,) * 3,
            "decoder_spatial_padding_mode": "reflect",
        },
        "2.3": {
            "block_out_channels": (16, 32, 64, 64),
            "decoder_block_out_channels": (8, 16, 16, 32),
            "decoder_layers_per_block": (1,) * 5,
            "decoder_inject_noise": (False,) * 5,
            "decoder_spatio_temporal_scaling": (True,) * 4,
            "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            "upsample_factor": (2, 2, 1, 2),
            "upsample_residual": (False,) * 4,
            "decoder_spatial_padding_mode": "zeros",
        },
    }[name]
    twin = AutoencoderKLLTX2Video(latent_channels=8, layers_per_block=(1,) * 5, decoder_causal=False, **options)
    last = len(SECTIONS[name]["encoder_blocks"]) - 1
    twin.load_state_dict({diffusers_name(key, last): value for key, value in vae.state_dict().items()}, strict=True)
    return vae, twin.eval()


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("frames", [1, 9, 17])
def test_encodes_as_ltx_core(name, frames):
    vae, encoder, _ = core_pair(name)
    pixels = clip(frames)
    with torch.no_grad():
        assert apart(vae.encode(pixels), encoder(pixels)) < CLOSE


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_decodes_as_ltx_core(name, frames):
    vae, _, decoder = core_pair(name)
    latents = latent_clip(frames, batch=2)
    with torch.no_grad():
        ours = vae.decode(latents, torch.Generator().manual_seed(5))
        theirs = decoder(latents, generator=torch.Generator().manual_seed(5))
    assert apart(ours, theirs) < CLOSE


def test_decodes_as_ltx_core_when_it_is_causal():
    from ltx_core.model.video_vae.model_configurator import VideoDecoderConfigurator

    from ltx2_train.models.video_vae import VideoVAEConfig

    section = SECTIONS["2.3"] | {"causal_decoder": True}
    vae = fill(VideoVAE(VideoVAEConfig.from_checkpoint(section)))
    decoder = VideoDecoderConfigurator.from_config({"vae": section})
    decoder.load_state_dict(core_state(vae, "decoder"), strict=True)
    latents = latent_clip()
    with torch.no_grad():
        assert apart(vae.decode(latents), decoder(latents)) < CLOSE


@pytest.mark.parametrize("kind", ["compress_time", "compress_space", "compress_all", "compress_all_x_y", "res_x_y"])
def test_encodes_as_ltx_core_with_rarer_blocks(kind):
    from ltx_core.model.video_vae.model_configurator import VideoEncoderConfigurator

    from ltx2_train.models.video_vae import VideoVAEConfig

    missing = {
        "compress_time": [["compress_all", {}], ["compress_all", {}], ["compress_space", {}]],
        "compress_space": [["compress_all", {}], ["compress_all", {}], ["compress_time", {}]],
        "compress_all": [["compress_all", {}], ["compress_time", {}], ["compress_space", {}]],
        "compress_all_x_y": [["compress_all", {}], ["compress_time", {}], ["compress_space", {}]],
        "res_x_y": [["compress_all", {}]] * 2 + [["compress_time", {}], ["compress_space", {}]],
    }[kind]
    section = SECTIONS["2.3"] | {"encoder_blocks": [["res_x", 1], [kind, {}], *missing]}
    vae = fill(VideoVAE(VideoVAEConfig.from_checkpoint(section), decoder=False))
    encoder = VideoEncoderConfigurator.from_config({"vae": section})
    encoder.load_state_dict(core_state(vae, "encoder"), strict=True)
    with torch.no_grad():
        assert apart(vae.encode(clip()), encoder(clip())) < CLOSE


@pytest.mark.parametrize("name", ["2.0", "2.3"])
@pytest.mark.parametrize("frames", [1, 17])
def test_encodes_as_diffusers(name, frames):
    vae, twin = diffusers_twin(name)
    pixels = clip(frames)
    with torch.no_grad():
        means = twin.encode(pixels).latent_dist.mode()
        theirs = (means - twin.latents_mean.view(1, -1, 1, 1, 1)) / twin.latents_std.view(1, -1, 1, 1, 1)
        assert apart(vae.encode(pixels), theirs) < CLOSE


@pytest.mark.parametrize("name", ["2.0", "2.3"])
@pytest.mark.parametrize("frames", [1, 3])
def test_decodes_as_diffusers(name, frames):
    vae, twin = diffusers_twin(name)
    latents = latent_clip(frames)
    with torch.no_grad():
        means = latents * twin.latents_std.view(1, -1, 1, 1, 1) + twin.latents_mean.view(1, -1, 1, 1, 1)
        assert apart(vae.decode(latents), twin.decode(means).sample) < CLOSE
