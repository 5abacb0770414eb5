"""Sound written with a sample has the length, the channels and the samples it was given."""

import json
import math

import av
import numpy as np
import pytest
import torch

from ltx2_train.media.video import read_frames
from ltx2_train.sampling.sound_file import write_sound
from ltx2_train.sampling.spectrogram import draw_spectrogram, loudness, spectrogram_image
from ltx2_train.sampling.video_file import write_video


def tones(rate, seconds, left=440.0, right=660.0):
    time = torch.arange(round(rate * seconds)) / rate
    return torch.stack((0.6 * torch.sin(2 * math.pi * left * time), 0.3 * torch.sin(2 * math.pi * right * time)))


def decoded(path):
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("fltp", "stereo", stream.rate)
        frames = [new for frame in container.decode(stream) for new in resampler.resample(frame)]
        return np.concatenate([frame.to_ndarray() for frame in frames], axis=1), stream.rate, dict(container.metadata)


@pytest.mark.parametrize("ending", [".wav", ".flac"])
@pytest.mark.parametrize("rate", [24000, 48000])
def test_a_sound_file_gives_every_sample_back(ending, rate, tmp_path):
    sound = tones(rate, 0.37)
    path = write_sound(tmp_path / f"a{ending}", sound, rate, {"prompt": "dog"})
    samples, found_rate, metadata = decoded(path)
    assert found_rate == rate
    assert samples.shape == sound.shape
    assert np.abs(samples - sound.numpy()).max() < 1e-4  # half a 16-bit step, and 32767 against 32768
    if ending == ".flac":
        assert json.loads(metadata["comment"]) == {"prompt": "dog"}


def test_what_is_too_loud_is_clipped_and_does_not_wrap_round(tmp_path):
    path = write_sound(tmp_path / "a.wav", torch.tensor([[1.5, -1.5], [1.0, -1.0]]), 16000)
    samples, _, _ = decoded(path)
    assert np.abs(samples - [[1, -1], [1, -1]]).max() < 1e-3


@pytest.mark.parametrize(("rate", "fps", "count"), [(24000, 25.0, 49), (48000, 23.976, 9), (24000, 8.0, 17)])
def test_sound_in_a_video_begins_with_it_and_ends_with_it(rate, fps, count, tmp_path):
    sound = tones(rate, count / fps)
    frames = [np.full((64, 32, 3), 4 * index, np.uint8) for index in range(count)]
    path = write_video(tmp_path / "a.mp4", frames, fps, {"seed": 1}, sound, rate)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert float(audio.duration * audio.time_base) == pytest.approx(count / fps, abs=2e-3)
        assert float(video.duration * video.time_base) == pytest.approx(count / fps, abs=2e-3)
        assert len(list(container.decode(video))) == count
    samples, found_rate, metadata = decoded(path)
    assert found_rate == rate
    assert json.loads(metadata["comment"]) == {"seed": 1}
    # AAC loses little of two tones, unless they are late, swapped or cut into pieces
    length = sound.shape[1] - 2048
    error = ((samples[:, :length] - sound[:, :length].numpy()) ** 2).mean(axis=1)
    assert (error / (sound.numpy() ** 2).mean(axis=1) < 0.02).all()


def test_packets_of_sound_and_picture_are_interleaved(tmp_path):
    frames = [np.full((32, 32, 3), index, np.uint8) for index in range(100)]
    path = write_video(tmp_path / "a.mp4", frames, 25.0, {}, tones(24000, 4.0), 24000)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.stream.type) for packet in container.demux() if packet.pos is not None]
    kinds = [kind for _, kind in sorted(places)]
    assert "audio" in kinds[: len(kinds) // 4]
    assert "video" in kinds[-len(kinds) // 4 :]


@pytest.mark.parametrize("size", [(64, 96), (720, 1280)])
def test_the_colours_of_a_video_are_coded_as_it_says(tmp_path, size):
    colours = np.uint8([[220, 30, 30], [30, 200, 40], [40, 50, 220]])
    frame = np.broadcast_to(np.repeat(colours, size[1] // 3 + 1, axis=0)[: size[1]], (*size, 3))
    path = write_video(tmp_path / "a.mp4", [frame] * 3, 25)
    with av.open(str(path)) as container:
        shown = next(container.decode(video=0))
    assert (shown.colorspace, shown.color_range) == (1, 1)
    got = read_frames(path, [1])[0, size[0] // 2, size[1] // 6 :: size[1] // 3][:3]
    assert np.abs(got.astype(int) - colours).max() <= 3


def test_a_video_without_sound_has_no_sound_track(tmp_path):
    path = write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 3, 25.0)
    with av.open(str(path)) as container:
        assert not container.streams.audio


def test_a_tone_is_a_bright_row_at_its_pitch(tmp_path):
    rate = 24000
    low, high = (loudness(tones(rate, 1.0, pitch, pitch), rate, 200) for pitch in (300.0, 3000.0))
    assert low.min() >= 0
    assert low.max() == 1
    middle = slice(50, -50)
    rows = [int(levels[:, middle].mean(axis=1).argmax()) for levels in (low, high)]
    highest = 15 + math.log(12) * 27 / math.log(6.4)
    expected = [300 * 3 / 200 / highest * 128, (15 + math.log(3) * 27 / math.log(6.4)) / highest * 128]
    assert rows == pytest.approx(expected, abs=1.5)
    path = draw_spectrogram(tmp_path / "a.png", tones(rate, 1.0), rate, "a dog \u00fc " * 40)
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("sound", [torch.zeros(2, 24000), torch.zeros(2, 160), torch.zeros(2, 0)])
def test_silence_is_dark_however_short_it_is(sound):
    assert (loudness(sound, 24000, 300) == 0).all()
    image = spectrogram_image(sound, 24000)
    assert image.getpixel((400, 150)) == (6, 4, 20)
