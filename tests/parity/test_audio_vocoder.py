"""The vocoders against ltx-core and diffusers, on random weights in float32."""

import pytest
import torch
import torch.nn.functional as F
from audio_sizes import REAL_VOCODER_20, REAL_VOCODER_23, chirp, randomize, vocoder_section_20, vocoder_section_23

from ltx2_train.models.bandwidth import sinc_upsample
from ltx2_train.models.vocoder import Generator, VocoderConfig, build_vocoder

LENGTHS = [1, 2, 3, 13, 21]


def make(section):
    """A vocoder whose generators make sound of a loudness that few samples reach the clamp."""
    vocoder = build_vocoder(VocoderConfig.from_checkpoint(section)).eval()
    randomize(vocoder)
    with torch.no_grad():
        for generator in (vocoder,) if isinstance(vocoder, Generator) else (vocoder.vocoder, vocoder.bwe_generator):
            hidden = {}
            hook = generator.conv_post.register_forward_hook(lambda *call, hidden=hidden: hidden.update(wave=call[2]))
            generator(mel_of(13))
            hook.remove()
            generator.conv_post.weight.mul_(0.3 / hidden["wave"].std())
    return vocoder


def is_sound(wave):
    return (wave.abs() == 1).float().mean() < 0.1 and wave.std() > 0.1


def ltx_core(section, state):
    configurator = pytest.importorskip("ltx_core.model.audio_vae.model_configurator")
    model = configurator.VocoderConfigurator.from_config({"vocoder": section}).eval()
    model.load_state_dict(state, strict=True)
    return model


def diffusers_name(name):
    for ours, theirs in (
        ("conv_pre", "conv_in"),
        ("conv_post", "conv_out"),
        ("act_post", "act_out"),
        ("ups.", "upsamplers."),
        ("resblocks", "resnets"),
        ("lowpass.", ""),
    ):
        name = name.replace(ours, theirs)
    return name


def generator_arguments(section):
    return {
        "hidden_channels": section["upsample_initial_channel"],
        "upsample_kernel_sizes": section["upsample_kernel_sizes"],
        "upsample_factors": section["upsample_rates"],
        "resnet_kernel_sizes": section["resblock_kernel_sizes"],
        "resnet_dilations": section["resblock_dilation_sizes"],
    }


def diffusers_20(section, state):
    module = pytest.importorskip("diffusers.pipelines.ltx2.vocoder")
    model = module.LTX2Vocoder(**generator_arguments(section)).eval()
    model.load_state_dict({diffusers_name(name): tensor for name, tensor in state.items()}, strict=True)
    return model


def diffusers_23(section, state, first_end):
    """`first_end`: the activation after the first generator."""
    module = pytest.importorskip("diffusers.pipelines.ltx2.vocoder")
    extension = {f"bwe_{name}": value for name, value in generator_arguments(section["bwe"]).items()}
    model = module.LTX2VocoderWithBWE(
        **generator_arguments(section["vocoder"]), **extension, final_act_fn=first_end
    ).eval()
    model.load_state_dict({diffusers_name(name): tensor for name, tensor in state.items()}, strict=True)
    return model


def mel_of(frames, batch=2):
    return torch.randn(batch, 2, frames, 64, generator=torch.Generator().manual_seed(frames)) * 2 - 3


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@torch.no_grad()
def test_the_20_vocoder_equals_ltx_core_and_diffusers():
    section = vocoder_section_20()
    ours = make(section)
    core, diff = ltx_core(section, ours.state_dict()), diffusers_20(section, ours.state_dict())
    for frames in LENGTHS:
        mel = mel_of(frames)
        wave = ours(mel)
        assert wave.shape == (2, 2, frames * 240)
        close(wave, core(mel))
        close(wave, diff(mel))
    assert is_sound(wave)
    assert ours.sample_rate == core.output_sampling_rate == 24000


@torch.no_grad()
def test_the_23_vocoder_equals_ltx_core_and_diffusers_with_its_clamp_on():
    section = vocoder_section_23()
    ours = make(section)
    core = ltx_core(section, ours.state_dict())
    diff = diffusers_23(section, ours.state_dict(), first_end="clamp")
    for frames in LENGTHS:
        mel = mel_of(frames)
        wave = ours(mel)
        assert wave.shape == (2, 2, frames * 480)
        close(wave, core(mel))
        close(wave, diff(mel))
    assert is_sound(wave)
    assert ours.sample_rate == core.output_sampling_rate == 48000


@torch.no_grad()
def test_diffusers_without_the_clamp_differs_where_the_first_wave_is_too_loud():
    section = vocoder_section_23()
    ours = make(section)
    ours.vocoder.conv_post.weight.mul_(3.0)
    mel = mel_of(13)
    assert (ours.vocoder(mel).abs() == 1).any()
    close(ours(mel), diffusers_23(section, ours.state_dict(), first_end="clamp")(mel))
    unclamped = diffusers_23(section, ours.state_dict(), first_end=None)
    assert (ours(mel) - unclamped(mel)).abs().max() > 0.1


@torch.no_grad()
def test_each_stage_of_the_extension_equals_ltx_core():
    section = vocoder_section_23()
    ours = make(section)
    core = ltx_core(section, ours.state_dict())
    wave = chirp(1600).expand(2, -1, -1)
    close(ours.mel_stft(wave), core._compute_mel(wave).transpose(2, 3))
    close(sinc_upsample(wave, 3), core.resampler(wave))
    rows = ours.mel_stft(wave)
    close(ours.bwe_generator(rows), core.bwe_generator(rows))


@torch.no_grad()
def test_a_first_wave_that_fills_no_whole_row_is_padded_as_in_ltx_core():
    section = vocoder_section_23()
    section["bwe"].update(hop_length=96, upsample_rates=[6, 6, 2, 2, 2], upsample_kernel_sizes=[12, 12, 4, 4, 4])
    ours = make(section)
    mel = mel_of(7)
    assert ours.vocoder(mel).shape[-1] % 96
    wave = ours(mel)
    assert is_sound(wave)
    close(wave, ltx_core(section, ours.state_dict())(mel))


def test_the_filters_we_compute_are_those_that_ltx_core_computes():
    section = vocoder_section_23()
    configurator = pytest.importorskip("ltx_core.model.audio_vae.model_configurator")
    theirs = configurator.VocoderConfigurator.from_config({"vocoder": section}).state_dict()
    ours = build_vocoder(VocoderConfig.from_checkpoint(section)).state_dict()
    names = [name for name in theirs if name.endswith(".filter")]
    assert names
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_the_sinc_is_torchaudio_s():
    functional = pytest.importorskip("torchaudio.functional")
    wave = chirp(800)
    edges = F.pad(wave, (100, 100), mode="replicate")  # torchaudio pads with zeros
    expected = functional.resample(edges, 16000, 48000)[..., 300:-300]
    torch.testing.assert_close(sinc_upsample(wave, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("section", [REAL_VOCODER_20, REAL_VOCODER_23], ids=["2.0", "2.3"])
def test_a_file_of_ltx_core_has_exactly_our_names_and_shapes(section):
    configurator = pytest.importorskip("ltx_core.model.audio_vae.model_configurator")
    with torch.device("meta"):
        theirs = configurator.VocoderConfigurator.from_config({"vocoder": section})
        ours = build_vocoder(VocoderConfig.from_checkpoint(section))
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
