"""The audio VAE against ltx-core and diffusers, on random weights in float32."""

import pytest
import torch
from audio_sizes import audio_vae_section, randomize

from ltx2_train.models.audio_vae import AudioVAE, AudioVAEConfig, channel_norm

SMALL = audio_vae_section(ch=16, z_channels=2, mel_bins=32, num_res_blocks=1)
ATTENDING = audio_vae_section(ch=16, z_channels=2, mel_bins=32, mid_block_add_attention=True)
REAL_LATENTS = audio_vae_section(ch_mult=[1, 2, 1], num_res_blocks=1)

FRAMES = [1, 2, 3, 4, 5, 61, 64, 65, 253]


def make(section):
    vae = AudioVAE(AudioVAEConfig.from_checkpoint(section)).eval()
    randomize(vae, gain=1.3)
    return vae


def ltx_core(section, vae):
    """Encoder and decoder of ltx-core with the weights of `vae`, loaded as from a file."""
    configurator = pytest.importorskip("ltx_core.model.audio_vae.model_configurator")
    state = vae.state_dict()
    sides = []
    for side, name in (
        ("encoder", "AudioEncoderConfigurator"),
        ("decoder", "AudioDecoderConfigurator"),
    ):
        model = getattr(configurator, name).from_config({"audio_vae": section}).eval()
        own = {k.removeprefix(f"{side}."): v for k, v in state.items() if k.startswith((f"{side}.", "per_channel"))}
        model.load_state_dict(own, strict=True)
        sides.append(model)
    return sides


def diffusers(section, vae):
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_ltx2_audio")
    sizes = section["model"]["params"]["ddconfig"]
    model = module.AutoencoderKLLTX2Audio(
        base_channels=sizes["ch"],
        ch_mult=tuple(sizes["ch_mult"]),
        num_res_blocks=sizes["num_res_blocks"],
        latent_channels=sizes["z_channels"],
        mel_bins=sizes["mel_bins"],
        mid_block_add_attention=sizes["mid_block_add_attention"],
    ).eval()
    names = {"std-of-means": "latents_std", "mean-of-means": "latents_mean"}
    state = vae.state_dict()
    model.load_state_dict({names.get(k.rpartition(".")[2], k): v for k, v in state.items()}, strict=True)
    return model


def mel_of(section, frames, batch=2):
    bins = section["model"]["params"]["ddconfig"]["mel_bins"]
    return torch.randn(batch, 2, frames, bins, generator=torch.Generator().manual_seed(frames)) * 3 - 4


def latents_of(section, steps, batch=2):
    sizes = section["model"]["params"]["ddconfig"]
    shape = (batch, sizes["z_channels"], steps, sizes["mel_bins"] // 4)
    return torch.randn(shape, generator=torch.Generator().manual_seed(steps))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("section", [SMALL, ATTENDING], ids=["small", "attention"])
@torch.no_grad()
def test_encoding_equals_ltx_core_at_every_length(section):
    vae = make(section)
    encoder, _ = ltx_core(section, vae)
    for frames in FRAMES:
        mel = mel_of(section, frames)
        latents = vae.encode(mel)
        assert latents.shape[2] == -(-frames // 4)
        close(latents, encoder(mel))


@pytest.mark.parametrize("section", [SMALL, ATTENDING], ids=["small", "attention"])
@torch.no_grad()
def test_decoding_equals_ltx_core_at_every_length(section):
    vae = make(section)
    _, decoder = ltx_core(section, vae)
    for steps in (1, 2, 3, 16, 17, 64):
        latents = latents_of(section, steps)
        mel = vae.decode(latents)
        assert mel.shape[2] == 4 * steps - 3
        close(mel, decoder(latents))


@torch.no_grad()
def test_the_latents_of_the_real_model_are_8_by_16_and_equal_to_ltx_core():
    vae = make(REAL_LATENTS)
    encoder, decoder = ltx_core(REAL_LATENTS, vae)
    mel = mel_of(REAL_LATENTS, 13, batch=1)
    latents = vae.encode(mel)
    assert latents.shape == (1, 8, 4, 16)
    close(latents, encoder(mel))
    close(vae.decode(latents), decoder(latents))


@torch.no_grad()
def test_encoding_and_decoding_equal_diffusers():
    vae = make(SMALL)
    theirs = diffusers(SMALL, vae)
    mel, latents = mel_of(SMALL, 65), latents_of(SMALL, 17)
    # diffusers leaves the statistics to its pipelines, which put channel and bin on one axis.
    std, mean = (table.view(1, 2, 1, 8) for table in (theirs.latents_std, theirs.latents_mean))
    close(vae.encode(mel), (theirs.encode(mel).latent_dist.mode() - mean) / std)
    close(vae.decode(latents), theirs.decode(latents * std + mean).sample)


@pytest.mark.parametrize("multipliers", [[1, 2, 4], [1, 2, 1]])
def test_a_file_of_ltx_core_has_exactly_our_names_and_shapes(multipliers):
    configurator = pytest.importorskip("ltx_core.model.audio_vae.model_configurator")
    section = audio_vae_section(ch_mult=multipliers)
    with torch.device("meta"):
        vae = AudioVAE(AudioVAEConfig.from_checkpoint(section))
        encoder = configurator.AudioEncoderConfigurator.from_config({"audio_vae": section})
        decoder = configurator.AudioDecoderConfigurator.from_config({"audio_vae": section})
    expected = {}
    for side, model in (("encoder.", encoder), ("decoder.", decoder)):
        for name, tensor in model.state_dict().items():
            expected[name if name.startswith("per_channel") else side + name] = tensor.shape
    assert {name: tensor.shape for name, tensor in vae.state_dict().items()} == expected


def test_the_norm_treats_near_silence_as_ltx_core_does():
    normalization = pytest.importorskip("ltx_core.model.common.normalization")
    norm = normalization.build_normalization_layer(4, normtype=normalization.NormType.PIXEL)
    x = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 1e-3
    torch.testing.assert_close(channel_norm(x), norm(x), rtol=1e-5, atol=0.0)
