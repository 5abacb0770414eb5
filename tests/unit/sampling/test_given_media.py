"""The latents of what samples are given: which frames, which seconds, through which codec, and where they go."""

import dataclasses

import numpy as np
import pytest
import torch
from media import grey_levels, tone, write_image, write_sound, write_video

from ltx2_train.caching.settings import CacheSettings
from ltx2_train.conditions.settings import AudioReference
from ltx2_train.conditions.trained import Trained
from ltx2_train.config import DrawSettings
from ltx2_train.errors import DataError
from ltx2_train.events import Events
from ltx2_train.sampling.denoise import GivenPair
from ltx2_train.sampling.given_media import GivenMedia
from ltx2_train.sampling.giving import given_pair
from ltx2_train.sampling.prompts import parse_prompt
from ltx2_train.sampling.recompress import through_h264
from ltx2_train.weights.load import load_audio_vae, load_video_vae

SETTINGS = DrawSettings(width=64, height=64, frames=17)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vaes(tiny):
    video = load_video_vae(tiny.checkpoint, decoder=False, dtype=torch.float32)
    return {"video": video, "audio": load_audio_vae(tiny.checkpoint, decoder=False, dtype=torch.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "clip.mp4", grey_levels(25, 64, 64))
    write_image(folder / "a.png", 128, 128)
    sound = np.concatenate([tone(0.5, 440), tone(0.5, 880)], axis=1)
    write_sound(folder / "voice.wav", sound)
    write_sound(folder / "silent.wav", 0 * sound)
    return folder


def latents_of(folder, vaes, *tables, media=GivenMedia(settings=CacheSettings(vae_dtype="fp32")), line="a fox"):  # noqa: B008
    prompt = parse_prompt(line, SETTINGS, folder, tables=list(tables))
    return prompt, [(one, media.make(prompt, one, vaes[one.stream], Events())) for one in prompt.given]


def pair(folder, vaes, *tables, trained=Trained(), **more) -> GivenPair:  # noqa: B008
    media = GivenMedia(settings=CacheSettings(vae_dtype="fp32"), trained=trained)
    prompt, latents = latents_of(folder, vaes, *tables, media=media, **more)
    return given_pair(prompt.shape, latents, trained, CPU)


def test_a_prefix_is_the_start_of_the_file_and_a_suffix_its_end(folder, vaes):
    whole = pair(folder, vaes, {"type": "mask", "video": "clip.mp4", "mask": "a.png"}).video.latents
    first = pair(folder, vaes, {"type": "prefix", "video": "clip.mp4", "num_frames": 9}).video
    assert first.tokens.reshape(3, -1).all(1).tolist() == [True, True, False]
    last = pair(folder, vaes, {"type": "suffix", "video": "clip.mp4", "num_frames": 16}).video
    assert last.tokens.reshape(3, -1).all(1).tolist() == [False, True, True]
    assert last.latents[:, :, 0].abs().max() == 0
    # the file has 25 frames and the sample 17: they end with frame 25, and begin with frame 1
    assert whole.shape == first.latents.shape == last.latents.shape
    _, ((_, end),) = latents_of(folder, vaes, {"type": "suffix", "video": "clip.mp4", "num_frames": 8})
    assert torch.equal(end[:, 0], last.latents[0, :, 2]) or end.shape[1] == 1
    _, ((_, start),) = latents_of(folder, vaes, {"type": "prefix", "video": "clip.mp4", "num_frames": 1})
    torch.testing.assert_close(start[:, 0], first.latents[0, :, 0], atol=1e-4, rtol=1e-4)


def test_a_crop_and_a_mask_give_their_tokens_of_the_video(folder, vaes):
    crop = pair(folder, vaes, {"type": "spatial_crop", "video": "clip.mp4", "spatial_region": [0, 0, 64, 32]}).video
    assert crop.tokens.reshape(3, 2, 2).tolist() == [[[True, False]] * 2] * 3
    assert crop.latents[0, :, :, :, 1].abs().max() == 0
    assert crop.latents[0, :, :, :, 0].abs().min(0).values.max() > 0


def test_conditions_of_one_sample_are_given_together(folder, vaes):
    both = pair(
        folder,
        vaes,
        {"type": "prefix", "video": "clip.mp4", "num_frames": 1},
        {"type": "suffix", "video": "clip.mp4", "num_frames": 8},
        {"type": "reference", "video": "a.png"},
    ).video
    assert both.tokens.reshape(3, -1).all(1).tolist() == [True, False, True]
    assert both.reference.extent == (1, 2, 2)


@pytest.mark.parametrize(("trained", "extent"), [(Trained(), (3, 2, 2)), (Trained(2, 2, 0), (2, 1, 1))])
def test_a_reference_video_has_the_size_and_rate_of_training(folder, vaes, trained, extent):
    lead = pair(folder, vaes, trained=trained, line="a fox --v clip.mp4").video.reference
    assert lead.extent == extent
    ends = lead.positions[0, :, -1, 1].tolist()
    assert ends == pytest.approx([17 / 25, 64, 64])  # it lies in the space and on the clock of the sample


def test_a_part_of_a_sound_is_given_in_its_place(folder, vaes):
    steps = 17
    start = pair(folder, vaes, {"type": "prefix", "audio": "voice.wav", "duration": 0.2}).audio
    assert start.tokens.tolist() == [True] * 5 + [False] * (steps - 5)
    end = pair(folder, vaes, {"type": "suffix", "audio": "voice.wav", "duration": 0.2}).audio
    assert end.tokens.tolist() == [False] * (steps - 5) + [True] * 5
    assert end.latents[0, :, : steps - 5].abs().max() == 0
    assert not torch.allclose(start.latents[0, :, :5], end.latents[0, :, -5:], atol=1e-3)  # 440 and 880 Hz


def test_a_reference_sound_is_as_long_as_it_is_and_lies_as_in_training(folder, vaes):
    switches = AudioReference(negative_positions=True, hide_text=True)
    lead = pair(folder, vaes, trained=Trained(sound=switches), line="a fox --ra voice.wav").audio.reference
    assert lead.extent[0] in (25, 26)
    assert lead.positions[0, 0, -1, 1].item() == pytest.approx(-0.04)
    assert (lead.textless, lead.unseen) == (True, False)
    short = pair(folder, vaes, trained=Trained(seconds=0.4), line="a fox --ra voice.wav").audio.reference
    assert short.extent[0] in (10, 11)


def test_a_silent_reference_sound_is_refused(folder, vaes):
    with pytest.raises(DataError, match="silent.wav is silent"):
        latents_of(folder, vaes, line="a fox --ra silent.wav")


def test_streams_are_given_whole(folder, vaes):
    seen = pair(folder, vaes, {"type": "video_to_audio", "video": "clip.mp4"})
    assert (seen.video.whole, seen.audio) == (True, None)
    assert seen.video.latents.shape == (1, 128, 3, 2, 2)
    heard = pair(folder, vaes, {"type": "audio_to_video", "audio": "voice.wav"})
    assert (heard.audio.whole, heard.video) == (True, None)
    assert heard.audio.latents.shape == (1, 8, 17, 16)


def test_what_was_encoded_is_kept_by_content_size_and_way(folder, vaes, tmp_path):
    media = GivenMedia(tmp_path, "v", "a", CacheSettings(vae_dtype="fp32"))
    lines = ["a fox --i a.png", "a fox --v a.png", "a fox --ra voice.wav", "a fox --v clip.mp4"]
    prompts = [parse_prompt(line, SETTINGS, folder) for line in lines]
    opened = []

    def opener(stream):
        return lambda: opened.append(stream) or vaes[stream]

    assert media.fill(prompts, opener("video"), opener("audio"), Events()) == 4
    assert opened == ["video", "audio"]
    assert sorted(path.name.split("_")[0] for path in tmp_path.iterdir()) == ["image", "image", "sound", "video"]
    assert media.fill(prompts, opener("video"), opener("audio"), Events()) == 0
    for prompt in prompts:
        (shown,) = prompt.given
        made = dataclasses.replace(media, folder=None).make(prompt, shown, vaes[shown.stream], Events())
        torch.testing.assert_close(media.read(prompt, shown), made)
    other = dataclasses.replace(media, crf=20)
    assert other.read(prompts[0], prompts[0].given[0]) is None  # compressed differently
    assert other.read(prompts[1], prompts[1].given[0]) is not None  # a reference is not compressed
    smaller = dataclasses.replace(media, trained=Trained(downscale=2))
    assert smaller.read(prompts[1], prompts[1].given[0]) is None


def test_a_picture_goes_through_h264_at_its_own_size(folder, vaes):
    picture = np.random.default_rng(0).integers(0, 256, (65, 48, 3), np.uint8)
    soft, softer = through_h264(picture, 20), through_h264(picture, 45)
    assert soft.shape == (64, 48, 3)
    whole = picture[:64].astype(float)
    errors = [np.abs(one.astype(float) - whole).mean() for one in (soft, softer)]
    assert 0 < errors[0] < errors[1]
    assert through_h264(picture, 0) is picture
    plain, compressed = (
        latents_of(
            folder, vaes, line="a fox --i a.png", media=GivenMedia(settings=CacheSettings(vae_dtype="fp32"), crf=n)
        )
        for n in (0, 33)
    )
    assert not torch.allclose(plain[1][0][1], compressed[1][0][1], atol=1e-4)


def test_several_references_go_in_front_each_with_its_own_frames(folder, vaes):
    trained = Trained(frames=0, more_frames=(1,))
    both = pair(folder, vaes, trained=trained, line="a fox --v clip.mp4 --v a.png").video.reference
    assert both.extent == (1, 2, 2, 3, 2, 2)
    table = pair(folder, vaes, {"type": "reference", "video": "a.png"}, trained=trained, line="a fox --v clip.mp4")
    assert torch.equal(table.video.reference.tokens, both.tokens)
    one = pair(folder, vaes, trained=trained, line="a fox --v clip.mp4").video.reference
    assert torch.equal(both.tokens[:, 4:], one.tokens)
    sounds = pair(folder, vaes, line="a fox --ra voice.wav --ra voice.wav").audio.reference
    assert sounds.tokens.shape[1] in (50, 52)
