import copy

import pytest
import torch
from audio_sizes import REAL_AUDIO_VAE, audio_vae_section, chirp, noise, randomize

from ltx2_train.errors import CheckpointError
from ltx2_train.models.audio_vae import AudioVAE, AudioVAEConfig

SECTION = audio_vae_section(ch=8, num_res_blocks=1)


@pytest.fixture(scope="module")
def vae():
    model = AudioVAE(AudioVAEConfig.from_checkpoint(SECTION)).eval().requires_grad_(False)
    randomize(model, gain=1.3)
    return model


def test_the_section_of_a_real_checkpoint_gives_the_defaults():
    config = AudioVAEConfig.from_checkpoint(REAL_AUDIO_VAE)
    assert config == AudioVAEConfig()
    assert config.latent_bins == 16
    assert config.latents_per_second == 25.0


def test_the_real_model_has_as_many_tensors_and_parameters_as_the_published_one():
    with torch.device("meta"):
        state = AudioVAE(AudioVAEConfig()).state_dict()
    sides = {side: [t for name, t in state.items() if name.startswith(side)] for side in ("encoder.", "decoder.")}
    assert [len(tensors) + 2 for tensors in sides.values()] == [46, 58]
    assert [round(sum(t.numel() for t in tensors) / 1e6, 1) for tensors in sides.values()] == [21.3, 31.9]
    assert state["per_channel_statistics.mean-of-means"].shape == (128,)


@pytest.mark.parametrize(("frames", "steps"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (61, 16), (64, 16), (65, 17)])
def test_four_rows_of_mel_make_one_latent_and_the_last_may_be_short(vae, frames, steps):
    latents = vae.encode(noise(1, 2, frames, 64))
    assert latents.shape == (1, 8, steps, 16)
    assert vae.decode(latents).shape == (1, 2, 4 * steps - 3, 64)


def test_sound_of_one_second_makes_26_latents(vae):
    mel = vae.waveform_to_mel(chirp(16000), 16000)
    assert mel.shape == (1, 2, 101, 64)
    assert vae.encode(mel).shape == (1, 8, 26, 16)


def test_a_latent_knows_nothing_of_later_sound(vae):
    mel = noise(1, 2, 41, 64)
    changed = torch.cat([mel[:, :, :21], noise(1, 2, 20, 64, seed=1)], dim=2)
    before, after = vae.encode(mel), vae.encode(changed)
    # Latent s ends at row 4 s, so the first 21 rows make 6 latents.
    torch.testing.assert_close(before[:, :, :6], after[:, :, :6])
    assert not torch.allclose(before[:, :, 6], after[:, :, 6])
    torch.testing.assert_close(vae.decode(before)[:, :, :21], vae.decode(after)[:, :, :21])


def test_latents_are_the_means_normalised_by_channel_and_bin(vae):
    mel = noise(1, 2, 9, 64)
    means = vae.encoder(mel)[:, :8]
    statistics = vae.per_channel_statistics
    std, mean = statistics.get_buffer("std-of-means"), statistics.get_buffer("mean-of-means")
    latents = vae.encode(mel)
    for channel, column in ((0, 0), (0, 15), (3, 7), (7, 15)):
        index = channel * 16 + column
        expected = (means[0, channel, :, column] - mean[index]) / std[index]
        torch.testing.assert_close(latents[0, channel, :, column], expected)
    torch.testing.assert_close(statistics.denormalize(latents), means)


def test_the_state_of_one_model_loads_strictly_into_one_built_without_memory(vae):
    with torch.device("meta"):
        empty = AudioVAE(vae.config).eval()
    empty.load_state_dict(vae.state_dict(), strict=True, assign=True)
    assert not any(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    wave = chirp(8000)
    latents = empty.encode(empty.waveform_to_mel(wave, 16000))
    assert torch.equal(latents, vae.encode(vae.waveform_to_mel(wave, 16000)))
    assert torch.equal(empty.decode(latents), vae.decode(latents))


@pytest.mark.parametrize(("sides", "absent"), [({"decoder": False}, "decoder."), ({"encoder": False}, "encoder.")])
def test_a_side_that_is_left_out_has_no_tensors(sides, absent):
    names = AudioVAE(AudioVAEConfig(channels=8), **sides).state_dict()
    assert not [name for name in names if name.startswith(absent)]
    assert "per_channel_statistics.std-of-means" in names


def test_a_model_in_bfloat16_takes_float32_mel_and_float32_latents(vae):
    half = copy.deepcopy(vae).bfloat16()
    latents = half.encode(noise(1, 2, 9, 64))
    assert latents.dtype == torch.bfloat16
    assert half.decode(latents.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("section", [None, {}, {"model": None}, {"model": {"params": {}}}, "audio_vae"])
def test_a_checkpoint_without_the_section_is_refused(section):
    with pytest.raises(CheckpointError, match="audio VAE"):
        AudioVAEConfig.from_checkpoint(section)


@pytest.mark.parametrize("key", ["ch", "ch_mult", "num_res_blocks", "z_channels"])
def test_a_missing_size_is_refused_by_name(key):
    section = audio_vae_section()
    del section["model"]["params"]["ddconfig"][key]
    with pytest.raises(CheckpointError, match=rf"lacks {key} in"):
        AudioVAEConfig.from_checkpoint(section)


def test_the_mel_bins_may_stand_in_the_preprocessing_alone():
    section = audio_vae_section()
    del section["model"]["params"]["ddconfig"]["mel_bins"]
    assert AudioVAEConfig.from_checkpoint(section).mel_bins == 64
    del section["preprocessing"]
    with pytest.raises(CheckpointError, match="lacks mel_bins"):
        AudioVAEConfig.from_checkpoint(section)


@pytest.mark.parametrize(
    "sizes",
    [
        {"norm_type": "group"},
        {"causality_axis": "width"},
        {"causality_axis": None},
        {"resamp_with_conv": False},
        {"ch_mult": [1, 2, 4, 8]},
        {"attn_resolutions": [128]},
    ],
)
def test_an_audio_vae_of_another_make_is_refused_by_the_setting_that_differs(sizes):
    (name,) = sizes
    with pytest.raises(CheckpointError, match=name):
        AudioVAEConfig.from_checkpoint(audio_vae_section(**sizes))


def test_attention_in_the_middle_is_there_unless_the_config_says_no():
    section = audio_vae_section(ch=8)
    assert not AudioVAEConfig.from_checkpoint(section).mid_attention
    del section["model"]["params"]["ddconfig"]["mid_block_add_attention"]
    config = AudioVAEConfig.from_checkpoint(section)
    assert config.mid_attention
    assert "encoder.mid.attn_1.proj_out.weight" in AudioVAE(config).state_dict()
