import sys

import pytest
import torch
from audio_sizes import chirp

from ltx2_train.errors import DataError
from ltx2_train.models.mel import log_mel, mel_filterbank, resample_waveform, waveform_to_mel


@pytest.mark.parametrize("samples", [513, 640, 799, 800, 16000, 80667])
def test_a_row_of_mel_is_made_every_160_samples_and_one_more(samples):
    assert waveform_to_mel(torch.zeros(1, 2, samples), 16000).shape == (1, 2, 1 + samples // 160, 64)


def test_mono_is_put_on_both_channels():
    mono = chirp(4000, channels=1)
    mel = waveform_to_mel(mono, 16000)
    assert torch.equal(mel[:, 0], mel[:, 1])
    assert torch.equal(mel, waveform_to_mel(mono.expand(-1, 2, -1), 16000))


def test_channels_and_batches_do_not_mix():
    waves = torch.cat([chirp(4000), chirp(4000).flip(1)])
    mel = waveform_to_mel(waves, 16000)
    assert not torch.equal(mel[0, 0], mel[0, 1])
    torch.testing.assert_close(mel[0], mel[1].flip(0))


def test_a_tone_is_loudest_in_the_bin_that_holds_its_frequency():
    time = torch.arange(16000) / 16000
    table = mel_filterbank(1024, 64, 16000)
    for hertz in (250.0, 1000.0, 5000.0):
        mel = log_mel(torch.sin(2 * torch.pi * hertz * time)[None, None], 16000)
        expected = table[round(hertz / 16000 * 1024)].argmax()
        assert mel[0, 0, 50].argmax() == expected


def test_every_filter_has_the_area_of_one_hertz():
    # Slaney's norm; the step of the table is 15.6 Hz, too coarse for the narrow filters at the bottom.
    area = mel_filterbank(16384, 64, 16000).sum(0) * 8000 / 8192
    torch.testing.assert_close(area, torch.ones(64), rtol=0.01, atol=0.0)


def test_half_precision_input_is_computed_in_float32():
    mel = waveform_to_mel(chirp(4000).bfloat16(), 16000)
    assert mel.dtype == torch.float32
    assert torch.equal(mel, waveform_to_mel(chirp(4000).bfloat16().float(), 16000))


@pytest.mark.parametrize("samples", [0, 1, 512])
def test_a_sound_too_short_for_one_window_is_refused_with_its_length(samples):
    with pytest.raises(DataError, match=f"too short: {samples} samples"):
        waveform_to_mel(torch.zeros(1, 2, samples), 16000)


@pytest.mark.parametrize("shape", [(1, 6, 4000), (2, 4000)])
def test_surround_sound_and_missing_axes_are_refused_with_the_shape(shape):
    with pytest.raises(DataError, match="one or two channels"):
        waveform_to_mel(torch.zeros(shape), 16000)


def test_resampling_keeps_the_duration():
    pytest.importorskip("torchaudio")
    assert resample_waveform(torch.zeros(1, 2, 48000), 48000, 16000).shape == (1, 2, 16000)
    assert waveform_to_mel(torch.zeros(1, 2, 44100), 44100).shape[2] == 101


def test_without_torchaudio_the_error_names_the_command_and_equal_rates_still_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    wave = chirp(4000)
    assert resample_waveform(wave, 16000, 16000) is wave
    with pytest.raises(DataError, match="pip install torchaudio"):
        resample_waveform(wave, 48000, 16000)
