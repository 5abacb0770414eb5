"""LTX-Video's transformer and VAE equal those of diffusers: outputs, gradients of a LoRA, pictures and latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from parity.oracles_transformer import (
    FPS,
    GRID,
    SEGMENTS,
    Oracle,
    adapt,
    assert_close,
    assert_same_gradients,
    build,
    inputs,
    loss_of,
)
from torch.func import functional_call
from video_vae_sizes import SECTIONS, apart, clip, fill, latent_clip

from ltx2_train.families import FAMILIES
from ltx2_train.models.patchify import video_tokens
from ltx2_train.models.plain_text import stack_contexts
from ltx2_train.models.positions import video_positions
from ltx2_train.models.video_vae import DECODE_TIMESTEP, VideoVAE, VideoVAEConfig
from ltx2_train.sampling.denoise import Guidance, Pair, denoise
from ltx2_train.sampling.schedule import sampling_sigmas

# 2 x 8 leaves four features in front unrotated, as the width of 13B does; 2 x 10 two, as that of 2B
SIZES = {"13B": {}, "2B": {"attention_head_dim": 10, "cross_attention_dim": 20}}


class LtxVideo(Oracle):
    """diffusers' LTXVideoTransformer3DModel."""

    def make(self, config, mode):
        from diffusers import LTXVideoTransformer3DModel

        return LTXVideoTransformer3DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_layers=config.num_layers,
            num_attention_heads=config.video.heads,
            attention_head_dim=config.video.head_width,
            cross_attention_dim=config.video.context_width,
            caption_channels=config.caption_channels,
        )

    def name_of(self, name):
        return ".".join(SEGMENTS.get(part, part) for part in name.split("."))

    def __call__(self, video):
        batch, rows = video.context.shape[:2]
        mask = torch.ones(batch, rows) if video.context_mask is None else video.context_mask
        arguments = {
            "hidden_states": video.latent,
            "encoder_hidden_states": video.context,
            "timestep": video.token_timesteps * 1000,
            "encoder_attention_mask": mask,
            "video_coords": video_positions(GRID, FPS)[..., 0].expand(batch, -1, -1),  # where each token begins
            "return_dict": False,
        }
        return functional_call(self.net, self.weights, (), arguments, strict=False)[0]


@pytest.mark.parametrize(("size", "recompute"), [("2B", None), ("13B", 0)])
def test_outputs_and_gradients_are_equal(size, recompute):
    model = build("ltxv", "video", **SIZES[size])
    layers = adapt(model)
    model.set_recompute(recompute)
    oracle = LtxVideo(model, layers)
    video = inputs("ltxv", per_token=True).video
    ours, theirs = model(video, None), oracle(video)
    assert_close(ours.video, theirs)
    loss_of(ours).backward()
    loss_of((theirs, None)).backward()
    assert_same_gradients(layers, oracle)


def test_captions_of_different_lengths_are_read_as_with_a_mask():
    model = build("ltxv", "video")
    video = inputs("ltxv").video
    mask = torch.tensor([[1.0] * 5, [1.0] * 3 + [0.0] * 2])
    theirs = LtxVideo(model)(replace(video, context_mask=mask))
    own = [torch.cat([video.context[row, :count], torch.ones(count, 1)], dim=1) for row, count in ((0, 5), (1, 3))]
    ours = model(replace(video, context=stack_contexts(own)), None).video
    assert_close(ours, theirs)
    alone = replace(video, latent=video.latent[1:], sigma=video.sigma[1:], timesteps=None, context=own[1][None])
    assert_close(model(alone, None).video, theirs[1:])
    assert (theirs[1] - LtxVideo(model)(video)[1]).abs().max() > 1e-2


def vae_name(name: str) -> str:
    """What diffusers calls a tensor of the VAE: stages and the resampling between them are one block."""
    if name.startswith("per_channel_statistics."):
        return {"mean-of-means": "latents_mean", "std-of-means": "latents_std"}[name.rpartition(".")[2]]
    name = name.replace("last_time_embedder", "time_embedder").replace("last_scale_shift_table", "scale_shift_table")
    half, side, *rest = name.split(".")
    if side not in ("down_blocks", "up_blocks"):
        return name
    number, rest = int(rest[0]), rest[1:]
    inner = ".".join(rest).replace("res_blocks.", "resnets.")
    if (side, number) in (("up_blocks", 0), ("down_blocks", 8)):
        return f"{half}.mid_block.{inner}"
    if side == "up_blocks":
        number -= 1
    kind = {"up_blocks": "upsamplers.0.", "down_blocks": "downsamplers.0."}[side] if "resnets" not in inner else ""
    return f"{half}.{side}.{number // 2}.{inner if 'time_embedder' in inner else kind + inner}"


def vae_twins():
    from diffusers import AutoencoderKLLTXVideo

    config = VideoVAEConfig.from_checkpoint(SECTIONS["2.0 conditioned"], unnamed_padding="zeros")
    vae = fill(VideoVAE(config))
    twin = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 16, 32, 64, 128),
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
        spatio_temporal_scaling=(True,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        upsample_residual=(True,) * 3,
        upsample_factor=(2,) * 3,
        timestep_conditioning=True,
        decoder_causal=False,
    )
    twin.load_state_dict({vae_name(key): value for key, value in vae.state_dict().items()}, strict=True)
    return vae, twin.eval()


@torch.no_grad()
def test_the_vae_encodes_and_decodes_as_diffusers():
    vae, twin = vae_twins()
    mean, deviation = twin.latents_mean.view(1, -1, 1, 1, 1), twin.latents_std.view(1, -1, 1, 1, 1)
    pixels, latents = clip(9), latent_clip(2)
    means = twin.encode(pixels).latent_dist.mode()
    assert apart(vae.encode(pixels), (means - mean) / deviation) < 1e-5
    ours = vae.decode(latents, torch.Generator().manual_seed(5))
    noisy = vae.add_decode_noise(latents, torch.Generator().manual_seed(5)) * deviation + mean
    theirs = twin.decode(noisy, torch.full((1,), DECODE_TIMESTEP), return_dict=False)[0]
    assert apart(ours, theirs) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_guided_step_is_that_of_diffusers(rescale):
    from diffusers.pipelines.ltx.pipeline_ltx import rescale_noise_cfg

    model = build("ltxv", "video")
    oracle, texts = LtxVideo(model), [inputs("ltxv", batch=1, seed=seed).video.context for seed in (3, 4)]
    noise = torch.randn(1, 4, GRID.frames, GRID.height, GRID.width, generator=torch.Generator().manual_seed(0))
    sigmas = sampling_sigmas(5, GRID.tokens)
    marked = [torch.cat([text, torch.ones(1, text.shape[1], 1)], dim=2) for text in texts]
    ours = denoise(
        model, Pair(noise), sigmas[:2], Pair(marked[0]), fps=FPS, negative=Pair(marked[1]),
        guidance=Guidance(cfg=3.0, rescale=rescale), rescale_velocities=FAMILIES["ltxv-2b"].rescales_velocities,
    ).video  # fmt: skip
    tokens, level = video_tokens(noise), sigmas[:1]
    shown = replace(inputs("ltxv", batch=1).video, latent=tokens, sigma=level, timesteps=None)
    cond, uncond = (oracle(replace(shown, context=text)) for text in texts)
    velocity = rescale_noise_cfg(uncond + 3.0 * (cond - uncond), cond, rescale)
    theirs = tokens + (sigmas[1] - sigmas[0]) * velocity
    assert_close(video_tokens(ours), theirs, 1e-4)


def test_the_schedule_is_that_of_diffusers_pipeline_for_the_tokens_that_are_drawn():
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096, shift_terminal=0.1,
        use_dynamic_shifting=True,
    )  # fmt: skip
    mu = calculate_shift(2688, 1024, 4096, 0.95, 2.05)
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / 40, 40).tolist(), mu=mu)
    assert torch.allclose(sampling_sigmas(40, 2688), scheduler.sigmas, atol=1e-5)
