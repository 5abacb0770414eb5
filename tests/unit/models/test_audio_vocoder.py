import copy

import pytest
import torch
from audio_sizes import (
    REAL_VOCODER_20,
    REAL_VOCODER_23,
    chirp,
    noise,
    randomize,
    vocoder_section_20,
    vocoder_section_23,
)

from ltx2_train.errors import CheckpointError
from ltx2_train.models.bandwidth import CausalMel, CausalSTFT, sinc_upsample, stft_basis
from ltx2_train.models.snake import AntiAliasedSnake, SnakeBeta, kaiser_sinc
from ltx2_train.models.vocoder import ExtendedVocoder, Vocoder, VocoderConfig, build_vocoder

SECTIONS = {"2.0": vocoder_section_20(), "2.3": vocoder_section_23()}


@pytest.fixture(scope="module", params=list(SECTIONS))
def vocoder(request):
    model = build_vocoder(VocoderConfig.from_checkpoint(SECTIONS[request.param])).eval().requires_grad_(False)
    randomize(model, gain=0.5)
    return model


def test_the_sections_of_real_checkpoints_give_the_published_rates():
    old, new = VocoderConfig.from_checkpoint(REAL_VOCODER_20), VocoderConfig.from_checkpoint(REAL_VOCODER_23)
    assert old == VocoderConfig(old.generator, None, 24000)
    assert (old.generator.end, old.generator.end_bias, old.generator.factor) == ("tanh", True, 240)
    assert (new.generator.end, new.generator.end_bias, new.generator.factor) == ("clamp", False, 160)
    assert (new.extension.generator.end, new.extension.ratio, new.sample_rate) == ("none", 3, 48000)


@pytest.mark.parametrize(
    ("section", "kind", "tensors", "millions"),
    [(REAL_VOCODER_20, Vocoder, 194, 55.6), (REAL_VOCODER_23, ExtendedVocoder, 1227, 129.1)],
    ids=["2.0", "2.3"],
)
def test_the_real_model_has_as_many_tensors_and_parameters_as_the_published_one(section, kind, tensors, millions):
    with torch.device("meta"):
        vocoder = build_vocoder(VocoderConfig.from_checkpoint(section))
    assert isinstance(vocoder, kind)
    assert len(vocoder.state_dict()) == tensors
    assert sum(t.numel() for t in vocoder.state_dict().values()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("frames", [1, 2, 25])
def test_a_row_of_mel_makes_a_hundredth_of_a_second_of_stereo(vocoder, frames):
    wave = vocoder(noise(1, 2, frames, 64))
    assert wave.shape == (1, 2, frames * vocoder.sample_rate // 100)
    assert wave.abs().max() <= 1
    assert wave.isfinite().all()


def test_the_state_of_one_model_loads_strictly_into_one_built_without_memory(vocoder):
    section = SECTIONS["2.3" if isinstance(vocoder, ExtendedVocoder) else "2.0"]
    with torch.device("meta"):
        empty = build_vocoder(VocoderConfig.from_checkpoint(section)).eval()
    empty.load_state_dict(vocoder.state_dict(), strict=True, assign=True)
    assert not any(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    mel = noise(1, 2, 5, 64)
    assert torch.equal(empty(mel), vocoder(mel))


def test_the_two_versions_are_told_apart_by_the_names_the_checkpoint_has():
    old, new = (build_vocoder(VocoderConfig.from_checkpoint(section)) for section in SECTIONS.values())
    assert "conv_pre.weight" in old.state_dict()
    names = new.state_dict()
    for name in ("vocoder.conv_pre.weight", "bwe_generator.conv_pre.weight", "mel_stft.stft_fn.forward_basis"):
        assert name in names
    assert names["mel_stft.mel_basis"].shape == (64, 257)
    assert names["mel_stft.stft_fn.inverse_basis"].shape == (514, 1, 512)


def test_mel_in_half_precision_is_taken_by_a_float32_vocoder(vocoder):
    mel = noise(1, 2, 5, 64).bfloat16()
    wave = vocoder(mel)
    assert wave.dtype == torch.float32
    assert torch.equal(wave, vocoder(mel.float()))


def test_the_causal_spectrogram_has_one_row_a_hop_and_knows_nothing_of_later_sound():
    stft = CausalSTFT(512, 80)
    wave = chirp(1600)[0]
    rows = stft(wave)
    assert rows.shape == (2, 257, 20)
    changed = torch.cat([wave[:, :800], torch.zeros(2, 800)], dim=1)
    torch.testing.assert_close(stft(changed)[:, :, :10], rows[:, :, :10])
    assert not torch.allclose(stft(changed)[:, :, 10], rows[:, :, 10])


def test_the_tables_of_the_causal_spectrogram_are_a_windowed_fourier_transform():
    wave = noise(512)
    spectrum = torch.fft.rfft(wave * torch.hann_window(512))
    real, imaginary = (stft_basis(512)[:, 0] @ wave).chunk(2)
    torch.testing.assert_close(real, spectrum.real, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(imaginary, spectrum.imag, rtol=1e-4, atol=1e-4)


def test_silence_makes_the_floor_of_the_extension_s_mel():
    rows = CausalMel(512, 80, 64, 16000)(torch.zeros(1, 2, 400))
    assert torch.equal(rows, torch.full((1, 2, 5, 64), 1e-5).log())


def test_raising_the_rate_keeps_a_tone():
    time = torch.arange(1600) / 16000
    raised = sinc_upsample(torch.sin(2 * torch.pi * 440 * time)[None, None], 3)
    assert raised.shape == (1, 1, 4800)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(4800) / 48000)
    torch.testing.assert_close(raised[0, 0, 60:-60], expected[60:-60], rtol=0.0, atol=0.01)


def test_snake_adds_a_squared_sine_of_learned_frequency_and_height():
    snake = SnakeBeta(2)
    with torch.no_grad():
        snake.alpha.copy_(torch.tensor([2.0, 3.0]).log())
        snake.beta.copy_(torch.tensor([4.0, 0.5]).log())
    x = torch.linspace(-1, 1, 7).expand(1, 2, 7)
    frequency, height = torch.tensor([[2.0], [3.0]]), torch.tensor([[0.25], [2.0]])
    torch.testing.assert_close(snake(x), x + height * torch.sin(frequency * x) ** 2)


def test_the_anti_aliased_activation_keeps_length_and_level():
    constant = torch.full((1, 3, 9), 0.7)
    torch.testing.assert_close(AntiAliasedSnake(3)(constant), SnakeBeta(3)(constant), rtol=0.0, atol=0.02)
    assert kaiser_sinc().sum().item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("section", [None, "vocoder", {}, {"bwe": {}}, {"bwe": REAL_VOCODER_23["bwe"]}])
def test_a_checkpoint_without_a_vocoder_is_refused(section):
    with pytest.raises(CheckpointError, match="vocoder"):
        VocoderConfig.from_checkpoint(section)


def changed(part, key, value):
    section = copy.deepcopy(REAL_VOCODER_23)
    section[part][key] = value
    return section


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vocoder", "resblock", "1"),
        ("vocoder", "activation", "snake"),
        ("vocoder", "stereo", False),
        ("vocoder", "upsample_rates", None),
        ("vocoder", "upsample_initial_channel", 100),
        ("vocoder", "upsample_rates", [5, 2, 2, 2, 2]),
        ("bwe", "activation", "snake"),
        ("bwe", "hop_length", None),
        ("bwe", "n_fft", None),
        ("bwe", "upsample_kernel_sizes", None),
    ],
)
def test_a_vocoder_that_cannot_be_built_is_refused_by_the_key_at_fault(part, key, value):
    with pytest.raises(CheckpointError, match=key):
        VocoderConfig.from_checkpoint(changed(part, key, value))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hop_length", 100, "multiply to 300"),
        ("output_sampling_rate", 44100, "whole multiple"),
        ("input_sampling_rate", 24000, "fit together|reads 24000 Hz"),
    ],
)
def test_an_extension_that_does_not_fit_its_rates_is_refused(key, value, words):
    with pytest.raises(CheckpointError, match=words):
        VocoderConfig.from_checkpoint(changed("bwe", key, value))


def test_an_extension_that_reads_another_rate_than_the_first_stage_makes_is_refused():
    section = changed("vocoder", "upsample_rates", [6, 2, 2, 2, 2, 2])
    with pytest.raises(CheckpointError, match="makes 19200 Hz"):
        VocoderConfig.from_checkpoint(section)


def test_the_20_vocoder_needs_no_sizes_and_no_rate_in_its_section():
    assert VocoderConfig.from_checkpoint({"resblock": "1", "stereo": True}) == VocoderConfig.from_checkpoint(
        REAL_VOCODER_20
    )
