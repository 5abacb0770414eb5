"""The video VAE's configuration, sizes and behaviour that does not need a reference."""

from __future__ import annotations

import pytest
import torch
from video_vae_sizes import SECTIONS, apart, clip, latent_clip, section_20, section_23, tiny_vae

from ltx2_train.errors import CheckpointError, DataError
from ltx2_train.models.vae_layers import (
    ClipMemory,
    depth_to_space,
    from_patches,
    space_to_depth,
    to_patches,
)
from ltx2_train.models.video_vae import VideoVAE, VideoVAEConfig


@pytest.mark.parametrize("name", SECTIONS)
def test_one_frame_encodes_like_the_first_of_a_clip(name):
    vae = tiny_vae(name)
    pixels = clip(17)
    assert apart(vae.encode(pixels[:, :, :1]), vae.encode(pixels)[:, :, :1]) < 1e-5


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (9, 2), (17, 3)])
@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_sizes_follow_the_factors_8_and_32(name, frames, latents):
    vae = tiny_vae(name)
    encoded = vae.encode(clip(frames, 96, 64))
    assert encoded.shape == (1, 8, latents, 3, 2)
    assert vae.decode(encoded).shape == (1, 3, frames, 96, 64)


@pytest.mark.parametrize("frames", [2, 8, 18])
def test_a_frame_count_that_is_not_8n_plus_1_is_refused(frames):
    with pytest.raises(DataError, match=f"{frames} frames"):
        tiny_vae().encode(clip(frames))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 65)])
def test_a_side_that_is_no_multiple_of_32_is_refused(height, width):
    with pytest.raises(DataError, match=f"{width} x {height}"):
        tiny_vae().encode(clip(1, height, width))


def test_latents_of_other_channels_are_refused():
    with pytest.raises(DataError, match="expected \\[batch, 8,"):
        tiny_vae().decode(torch.zeros(1, 9, 1, 2, 2))


def test_a_mirroring_decoder_refuses_latents_it_cannot_mirror():
    with pytest.raises(DataError, match="at least 64 pixels"):
        tiny_vae("2.0").decode(latent_clip(1, 1, 2))
    assert tiny_vae("2.3").decode(latent_clip(1, 1, 1)).shape == (1, 3, 1, 32, 32)


def test_padding_modes_default_to_zeros_in_the_encoder_and_reflect_in_the_decoder():
    config = VideoVAEConfig.from_checkpoint(section_20())
    assert (config.encoder_padding, config.decoder_padding) == ("zeros", "reflect")
    config = VideoVAEConfig.from_checkpoint(section_20() | {"spatial_padding_mode": "replicate"})
    assert (config.encoder_padding, config.decoder_padding) == ("replicate", "replicate")


@pytest.mark.parametrize("prefix", ["vae.", ""])
def test_tensor_names_decide_on_time_step_conditioning(prefix):
    plain = [f"{prefix}decoder.conv_in.conv.weight", f"{prefix}encoder.conv_in.conv.weight"]
    timed = [*plain, f"{prefix}decoder.timestep_scale_multiplier", f"{prefix}decoder.last_scale_shift_table"]
    assert not VideoVAEConfig.from_checkpoint(section_20(conditioned=True), plain).timestep_conditioning
    assert VideoVAEConfig.from_checkpoint(section_20(conditioned=False), timed).timestep_conditioning
    # without names there is only the header to believe
    assert VideoVAEConfig.from_checkpoint(section_20(conditioned=True)).timestep_conditioning
    assert not VideoVAEConfig.from_checkpoint(section_23()).timestep_conditioning


def test_an_unknown_block_kind_is_named():
    section = section_23()
    section["decoder_blocks"][1] = ["attn_res_x", {"num_layers": 1}]
    with pytest.raises(CheckpointError, match=r"decoder_blocks\[1\].*'attn_res_x'.*compress_all"):
        VideoVAEConfig.from_checkpoint(section)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm_layer": "group_norm"}, "group_norm"),
        ({"spatial_padding_mode": "mirror"}, "mirror"),
        ({"latent_log_var": "some"}, "some"),
        ({"dims": 2}, "dims"),
        ({"encoder_blocks": []}, "encoder_blocks"),
        ({"encoder_blocks": [["res_x", {}], "res_x_y_z"]}, r"encoder_blocks\[1\]"),
        ({"encoder_blocks": [["compress_all_res", {}]]}, "scales time by 2 and space by 8"),
    ],
)
def test_options_this_vae_does_not_have_are_refused(change, text):
    with pytest.raises(CheckpointError, match=text):
        VideoVAEConfig.from_checkpoint(section_23() | change)


def test_channels_that_cannot_be_split_are_refused():
    with pytest.raises(CheckpointError, match="Block 1"):
        VideoVAE(VideoVAEConfig.from_checkpoint(section_23() | {"latent_channels": 3}))


def test_a_number_may_stand_for_the_layers_of_a_stage():
    section = section_23()
    section["encoder_blocks"][0] = ["res_x", 2]
    assert VideoVAEConfig.from_checkpoint(section).encoder_blocks[0].layers == 2


def test_the_half_that_is_not_wanted_has_no_tensors():
    config = VideoVAEConfig.from_checkpoint(section_23())
    names = VideoVAE(config, decoder=False).state_dict()
    assert any(name.startswith("encoder.") for name in names)
    assert not any(name.startswith("decoder.") for name in names)
    assert not any(name.startswith("encoder.") for name in VideoVAE(config, encoder=False).state_dict())


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [("2.0", 34, 28), ("2.3", 34, 34), ("2.0 conditioned", 34, 54), ("2.0 conditioned, noise", 34, 62)],
)
def test_the_number_of_tensors_is_that_of_the_published_layout(name, encoder, decoder):
    # the published counts include the two statistics, which both halves share
    names = list(tiny_vae(name).state_dict())
    assert {"per_channel_statistics.mean-of-means", "per_channel_statistics.std-of-means"} <= set(names)
    assert sum(key.startswith("encoder.") for key in names) + 2 == encoder
    assert sum(key.startswith("decoder.") for key in names) + 2 == decoder


REAL_ENCODER_20 = [("res_x", 4), ("compress_space_res", 2), ("res_x", 6), ("compress_time_res", 2), ("res_x", 6)]
REAL_ENCODER_20 += [("compress_all_res", 2), ("res_x", 2), ("compress_all_res", 2), ("res_x", 2)]
REAL_ENCODER_23 = [("res_x", 4), ("compress_space_res", 2), ("res_x", 6), ("compress_time_res", 2), ("res_x", 4)]
REAL_ENCODER_23 += [("compress_all_res", 2), ("res_x", 2), ("compress_all_res", 1), ("res_x", 2)]
REAL_DECODER_23 = [("res_x", 4), ("compress_space", 2), ("res_x", 6), ("compress_time", 2), ("res_x", 4)]
REAL_DECODER_23 += [("compress_all", 1), ("res_x", 2), ("compress_all", 2), ("res_x", 2)]
REAL_DECODER_20 = [("res_x", 5), *[("compress_all", 2), ("res_x", 5)] * 3]


@pytest.mark.parametrize(
    ("encoder", "decoder", "millions"),
    [(REAL_ENCODER_20, REAL_DECODER_20, (694.1, 528.4)), (REAL_ENCODER_23, REAL_DECODER_23, (318.9, 407.2))],
)
def test_full_size_vaes_have_the_published_number_of_parameters(encoder, decoder, millions):
    def listed(blocks, **more):
        return [
            [kind, {"num_layers": number} if kind == "res_x" else {"multiplier": number, **more}]
            for kind, number in blocks
        ]

    residual = decoder is REAL_DECODER_20
    section = {"encoder_blocks": listed(encoder), "decoder_blocks": listed(decoder, residual=residual)}
    with torch.device("meta"):
        vae = VideoVAE(VideoVAEConfig.from_checkpoint(section))
    counts = [sum(p.numel() for p in half.parameters()) / 1e6 for half in (vae.encoder, vae.decoder)]
    assert counts == pytest.approx(millions, abs=0.06)


def test_statistics_centre_the_latents():
    vae = tiny_vae()
    pixels = clip(1)
    plain = vae.encoder(pixels, ClipMemory())
    mean, deviation = (
        vae.per_channel_statistics.get_buffer(name).view(1, -1, 1, 1, 1) for name in ("mean-of-means", "std-of-means")
    )
    assert torch.equal(vae.encode(pixels), (plain - mean) / deviation)


def test_bfloat16_weights_give_float32_latents_near_the_full_precision_ones():
    vae = tiny_vae()
    pixels = clip(9)
    exact, pictures = vae.encode(pixels), vae.decode(latent_clip())
    vae.to(torch.bfloat16)
    rough = vae.encode(pixels)
    assert rough.dtype == torch.float32
    assert 0 < apart(rough, exact) < 0.1
    assert vae.decode(latent_clip()).dtype == torch.bfloat16
    assert apart(vae.decode(latent_clip()).float(), pictures) < 0.1


def test_noise_of_the_decoder_comes_from_the_generator_alone():
    vae = tiny_vae("2.0 conditioned, noise")
    latents = latent_clip()
    torch.manual_seed(1)
    one, seeded = vae.decode(latents), vae.decode(latents, torch.Generator().manual_seed(7))
    torch.manual_seed(2)
    assert torch.equal(one, vae.decode(latents))
    assert torch.equal(seeded, vae.decode(latents, torch.Generator().manual_seed(7)))
    assert not torch.equal(one, seeded)


def test_gradients_reach_pixels_and_latents():
    vae = tiny_vae()
    pixels, latents = clip(9).requires_grad_(), latent_clip().requires_grad_()
    vae.encode(pixels).square().sum().backward()
    vae.decode(latents).square().sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("stride", [(2, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_depth_to_space_undoes_space_to_depth(stride):
    x = torch.arange(2 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    assert torch.equal(depth_to_space(space_to_depth(x, stride), stride), x)


def test_patches_count_columns_before_rows():
    pixels = torch.arange(16).reshape(1, 1, 1, 4, 4)
    patches = to_patches(pixels, 4)
    assert patches.flatten().tolist()[:5] == [0, 4, 8, 12, 1]
    assert torch.equal(from_patches(patches, 4), pixels)
