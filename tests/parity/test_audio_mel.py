"""The mel front end against the one of ltx-core, which is torchaudio's."""

import pytest
import torch
from audio_sizes import chirp

from ltx2_train.models.mel import mel_filterbank, waveform_to_mel

torchaudio = pytest.importorskip("torchaudio")
ops = pytest.importorskip("ltx_core.model.audio_vae.ops")
types = pytest.importorskip("ltx_core.types")


def reference(waveform, rate):
    processor = ops.AudioProcessor(target_sample_rate=16000, mel_bins=64, mel_hop_length=160, n_fft=1024)
    return processor.waveform_to_mel(types.Audio(waveform=waveform, sampling_rate=rate))


@pytest.mark.parametrize("samples", [513, 640, 16000, 16001, 16159, 16160])
def test_the_mel_of_a_waveform_equals_ltx_core(samples):
    waveform = chirp(samples)
    torch.testing.assert_close(waveform_to_mel(waveform, 16000), reference(waveform, 16000), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rate", [48000, 44100, 22050, 8000])
def test_a_waveform_at_another_rate_is_resampled_as_in_ltx_core(rate):
    waveform = chirp(rate // 2 + 7, rate=rate)
    torch.testing.assert_close(waveform_to_mel(waveform, rate), reference(waveform, rate), rtol=1e-5, atol=1e-5)


def test_silence_meets_the_floor_as_in_ltx_core():
    silence = torch.zeros(1, 2, 2000)
    mel = waveform_to_mel(silence, 16000)
    assert torch.equal(mel, reference(silence, 16000))
    assert torch.equal(mel, torch.full_like(mel, 1e-5).log())


def test_mono_gives_what_ltx_core_gives_for_two_equal_channels():
    mono = chirp(4000, channels=1)
    expected = reference(mono.expand(-1, 2, -1), 16000)
    torch.testing.assert_close(waveform_to_mel(mono, 16000), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n_fft", "bins", "rate"), [(1024, 64, 16000), (512, 64, 16000), (512, 32, 24000)])
def test_the_filterbank_equals_torchaudio(n_fft, bins, rate):
    expected = torchaudio.functional.melscale_fbanks(
        n_fft // 2 + 1, 0.0, rate / 2, bins, rate, norm="slaney", mel_scale="slaney"
    )
    torch.testing.assert_close(mel_filterbank(n_fft, bins, rate), expected, rtol=1e-5, atol=1e-8)
