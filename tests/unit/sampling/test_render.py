"""The renderer draws what its model has, opens one decoder at a time, and outlives what fails."""

import dataclasses
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image
from refusing import Refusing, for_good, once

from ltx2_train import files
from ltx2_train.conditions.settings import FirstFrame
from ltx2_train.config import DrawSettings
from ltx2_train.errors import RunError, TrainerError
from ltx2_train.events import Events
from ltx2_train.models.transformer import LTXTransformer, Output
from ltx2_train.sampling.denoise import denoise
from ltx2_train.sampling.prompts import parse_prompt
from ltx2_train.sampling.render import Renderer
from ltx2_train.sampling.shown import Shown
from ltx2_train.sampling.sound import decode_wave, fit, sound_shape
from ltx2_train.sampling.video_file import write_video
from ltx2_train.shapes import VideoShape

RATE = 16000


class Model(torch.nn.Module):
    """Moves all tokens towards zero; keeps what it was given."""

    def __init__(self, mode, broken=False):
        super().__init__()
        self.has_video, self.has_audio = mode != "audio", mode != "video"
        self.transformer_blocks = torch.nn.ModuleList([torch.nn.Identity()])
        self.broken, self.seen = broken, []

    polled = LTXTransformer.polled
    _poll = None

    def forward(self, video, audio, *, skip=None):
        self.seen.append((video, audio, skip))
        heard = None if audio is None else audio.latent * (float("nan") if self.broken else 0.1)
        return Output(None if video is None else video.latent * 0.1, heard)


class Decoders:
    """Stands for the video VAE, the audio VAE and the vocoder; `log` says in which order they were opened."""

    def __init__(self, lost=False):
        self.log, self.lost = [], lost

    def video(self, encoder, decoder):
        self.log.append("video")
        return PictureVAE()

    def open_decoder(self):
        self.log.append("mel")
        if self.lost:
            raise TrainerError("the checkpoint has no audio VAE")
        return MelVAE()

    def open_vocoder(self):
        self.log.append("wave")
        return Voice()


class PictureVAE(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, pixels):
        return pixels.mean() + torch.zeros(1, 128, 1, pixels.shape[3] // 32, pixels.shape[4] // 32)


class MelVAE(PictureVAE):
    def decode(self, latents):
        return torch.zeros(1, 2, 4 * latents.shape[2] - 3, 64) + latents.mean()


class Voice(PictureVAE):
    sample_rate = RATE

    def forward(self, mel):
        time = torch.arange(mel.shape[2] * 160) / RATE
        return (0.5 + 0 * mel.mean()) * torch.sin(2 * torch.pi * 440 * time).expand(1, 2, -1)


class Told(Events):
    def __init__(self):
        self.messages, self.samples = [], []

    def message(self, text, level="info"):
        self.messages.append((level, text))

    def sample(self, path, info):
        self.samples.append((path, info))


@pytest.fixture(autouse=True)
def plain_frames(monkeypatch):
    def decode(vae, latents, tiles):
        frames = (latents.shape[2] - 1) * 8 + 1
        yield np.zeros((frames, latents.shape[3] * 32, latents.shape[4] * 32, 3), np.uint8)

    monkeypatch.setattr("ltx2_train.sampling.render.decode_frames", decode)


@pytest.fixture
def draw(tmp_path):
    """Draw two prompts; returns the samples, the model, the decoders and what was told."""

    def run(
        mode, *, frames=9, broken=False, lost=False, tolerant=False, version="2.3",
        line="a {} barks --w 64 --h 32 --s 2", **more,
    ):  # fmt: skip
        settings = DrawSettings(**{"frames": frames, "stg": 0, **more})
        model, decoders, told = Model(mode, broken), Decoders(lost), Told()
        text = torch.zeros(4, 6)
        contexts = (text if model.has_video else None, text if model.has_audio else None)
        renderer = Renderer(
            model, lambda _: contexts, decoders.video, settings, version, torch.device("cpu"), told,
            decoders if model.has_audio else None,
        )  # fmt: skip
        prompts = [parse_prompt(line.format(animal), settings, tmp_path) for animal in ("dog", "cat")]
        files = renderer.draw(
            prompts, lambda index, prompt: tmp_path / f"x0.5_{index}", {"step": 3}, [] if tolerant else None
        )
        return files, model, decoders, told

    return run


@pytest.mark.parametrize(("version", "expected"), [("2.3", False), ("ltxv-2b", True)])
def test_velocities_are_scaled_back_for_ltx_video_alone(draw, monkeypatch, version, expected):
    asked = []

    def noted(*given, **named):
        asked.append(named["rescale_velocities"])
        return denoise(*given, **named)

    monkeypatch.setattr("ltx2_train.sampling.render.denoise", noted)
    draw("video", frames=1, version=version)
    assert asked == [expected] * 2


@pytest.mark.parametrize("how", [once, for_good])
@pytest.mark.parametrize("tolerant", [True, False])
def test_each_refused_write_of_a_sample_is_named_and_leaves_nothing_half_written(draw, tmp_path, how, tolerant):
    more = {"audio": "separate", "spectrogram": True, "tolerant": tolerant}
    with pytest.MonkeyPatch.context() as patch:
        system = Refusing(patch, tmp_path, kinds=("make", "rename"))
        draw("av", **more)
    whole = names(tmp_path)
    for at in range(len(system.changes)):
        for path in tmp_path.iterdir():
            path.unlink()
        refused = f"could not write|{re.escape(str(tmp_path))}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "WAITS", ())
            system = Refusing(patch, tmp_path, how(at), ("make", "rename"))
            if tolerant:
                told = draw("av", **more)[3]
                assert any(re.search(refused, text) for level, text in told.messages if level == "warning")
            else:
                with pytest.raises(RunError, match=refused):
                    draw("av", **more)
        assert set(names(tmp_path)) < set(whole)
        assert all(path.stat().st_size for path in tmp_path.iterdir())
    draw("av", **more)
    assert names(tmp_path) == whole


def track(path):
    """(seconds of sound, seconds of picture); None where there is no such track."""
    with av.open(str(path)) as container:
        streams = [*container.streams.audio[:1], None][0], [*container.streams.video[:1], None][0]
        return tuple(None if one is None else float(one.duration * one.time_base) for one in streams)


def names(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_video_model_gets_no_sound_and_opens_nothing_for_it(draw, tmp_path):
    files, model, decoders, _ = draw("video")
    assert decoders.log == ["video"]
    assert all(audio is None for _, audio, _ in model.seen)
    assert names(tmp_path) == ["x0.5_0.mp4", "x0.5_1.mp4"]
    assert track(files[0].path)[0] is None
    assert files[0].audio_latents is files[0].audio_path is None


def test_sound_goes_into_the_video_and_both_end_together(draw, tmp_path):
    files, model, decoders, told = draw("av", guidance=3.0)
    assert decoders.log == ["mel", "wave", "video"]  # one after the other, each once for all prompts
    assert names(tmp_path) == ["x0.5_0.mp4", "x0.5_0.sound.png", "x0.5_1.mp4", "x0.5_1.sound.png"]
    heard, seen = track(files[0].path)
    assert heard == pytest.approx(9 / 25, abs=2e-3)
    assert seen == pytest.approx(9 / 25, abs=2e-3)
    assert files[0].audio_path == files[0].path
    assert files[0].latents.shape == (128, 2, 1, 2)
    assert files[0].audio_latents.shape == (8, 9, 16)
    assert len(model.seen) == 2 * 2 * 2  # prompts, steps, with and without the prompt: one pass for both modalities
    assert told.samples[0][1]["step"] == 3


@pytest.mark.parametrize("sound_format", ["wav", "flac"])
def test_sound_goes_beside_the_video_where_that_is_asked(sound_format, draw, tmp_path):
    files, _, _, _ = draw("av", audio="separate", audio_format=sound_format, spectrogram=False)
    assert names(tmp_path) == [f"x0.5_{index}.{end}" for index in (0, 1) for end in sorted(("mp4", sound_format))]
    assert track(files[0].path)[0] is None
    assert files[0].audio_path.suffix == f".{sound_format}"
    assert track(files[0].audio_path)[0] == pytest.approx(9 / 25)


def test_sound_is_drawn_but_not_decoded_where_it_is_off(draw):
    files, _, decoders, _ = draw("av", audio="off")
    assert decoders.log == ["video"]
    assert files[0].audio_path is None
    assert files[0].audio_latents.shape == (8, 9, 16)


@pytest.mark.parametrize("audio", ["merge", "off"])
def test_sound_alone_is_a_sound_file_and_builds_no_video(audio, draw, tmp_path):
    files, model, decoders, _ = draw("audio", audio=audio, frames=25)
    assert decoders.log == ["mel", "wave"]
    assert all(video is None for video, _, _ in model.seen)
    assert names(tmp_path) == ["x0.5_0.sound.png", "x0.5_0.wav", "x0.5_1.sound.png", "x0.5_1.wav"]
    assert files[0].path == files[0].audio_path
    assert files[0].latents is None
    assert track(files[0].path) == (pytest.approx(1.0), None)


def test_sound_alone_has_no_first_frame_and_says_so(draw, tmp_path):
    Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
    _, _, decoders, told = draw("audio", line="a {} barks --s 2 --i a.png")
    assert "video" not in decoders.log
    assert any("first frames" in text for _, text in told.messages)


def test_a_picture_that_is_damaged_since_costs_its_own_sample_alone(draw, tmp_path, monkeypatch):
    plain = parse_prompt

    def damaged_since(line, *more):
        prompt = plain(line, *more)
        (tmp_path / "dog.png").write_bytes(b"no picture")
        return prompt

    line = "a {0} barks --w 64 --h 32 --s 2 --i {0}.png"
    for animal in ("cat", "dog"):
        Image.new("RGB", (64, 32), (255, 0, 0)).save(tmp_path / f"{animal}.png")
    monkeypatch.setitem(globals(), "parse_prompt", damaged_since)
    with pytest.raises(TrainerError, match="dog.png cannot be read"):
        draw("video", line=line)
    Image.new("RGB", (64, 32), (255, 0, 0)).save(tmp_path / "dog.png")
    files, model, decoders, told = draw("video", line=line, tolerant=True)
    assert [file.prompt.text for file in files] == ["a cat barks"]
    assert [level for level, _ in told.messages] == ["warning"]
    assert "'a dog barks'" in told.messages[0][1]
    assert decoders.log == ["video", "video"]  # the encoder once, the decoder once
    assert len(model.seen) == 2 * 2


def test_a_clip_whose_latents_are_gone_costs_its_own_sample_alone(draw, tmp_path, monkeypatch):
    plain = parse_prompt

    def with_clip(line, *more):
        prompt = plain(line, *more)
        gone = Shown("video", FirstFrame(), tmp_path / "gone.safetensors", "the clip", cached=True)
        return dataclasses.replace(prompt, given=(gone,)) if "dog" in line else prompt

    monkeypatch.setitem(globals(), "parse_prompt", with_clip)
    files, _, _, told = draw("video", tolerant=True)
    assert [file.prompt.text for file in files] == ["a cat barks"]
    assert "missing" in told.messages[0][1]


def test_an_image_has_no_sound(draw, tmp_path):
    files, model, decoders, _ = draw("av", frames=1)
    assert names(tmp_path) == ["x0.5_0.png", "x0.5_1.png"]
    assert decoders.log == ["video"]
    assert all(audio is None for _, audio, _ in model.seen)
    assert files[0].audio_latents is None


def test_the_picture_starts_from_the_same_noise_with_sound_and_without(draw):
    _, with_sound, _, _ = draw("av")
    _, without, _, _ = draw("video")
    assert torch.equal(with_sound.seen[0][0].latent, without.seen[0][0].latent)


def test_the_block_without_attention_is_skipped_in_both_modalities(draw):
    _, model, _, _ = draw("av", guidance=1.0, stg=1.0)
    assert [skip is None for _, _, skip in model.seen[:2]] == [True, False]
    assert model.seen[1][2].at(0) == {"video_self", "audio_self"}


def test_a_sound_that_diverged_ends_a_sample_call_and_only_warns_in_training(draw, tmp_path):
    with pytest.raises(TrainerError, match="sound are not finite"):
        draw("av", broken=True)
    files, _, _, told = draw("av", broken=True, tolerant=True)
    assert [level for level, _ in told.messages] == ["warning", "warning"]
    assert "sound of 'a dog barks'" in told.messages[0][1]
    assert track(files[0].path)[0] is None  # the picture is still worth a look
    assert draw("audio", broken=True, tolerant=True)[0] == []


def test_training_goes_on_without_the_models_of_the_sound(draw):
    files, _, _, told = draw("av", lost=True, tolerant=True)
    assert "no audio VAE" in told.messages[0][1]
    assert len(files) == 2


@pytest.mark.parametrize(
    ("frames", "fps", "steps"), [(49, 25.0, 49), (121, 24.0, 126), (1, 240.0, 1), (9, 23.976, 9), (25, 30.0, 21)]
)
def test_the_sound_has_25_latents_a_second_as_in_the_official_pipelines(frames, fps, steps):
    from ltx_core.types import AudioLatentShape, VideoPixelShape

    assert sound_shape(VideoShape(frames, 64, 64, fps)).steps == steps
    theirs = AudioLatentShape.from_video_pixel_shape(VideoPixelShape(1, frames, 64, 64, fps))
    assert max(1, theirs.frames) == steps


def test_a_waveform_that_is_not_finite_is_refused():
    with pytest.raises(TrainerError, match="decoded sound is not finite"):
        decode_wave(Voice(), torch.full((2, 5, 64), float("inf")), 0.1)


def test_a_waveform_is_cut_or_filled_with_silence():
    wave = torch.ones(2, 5)
    assert torch.equal(fit(wave, 3), wave[:, :3])
    assert fit(wave, 7)[0].tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_a_small_video_is_written_to_the_same_bytes_each_time(tmp_path):
    """x264 is not as sure of itself as a seed is."""
    pictures = (np.kron(np.random.default_rng(0).random((9, 8, 8, 3)), np.ones((1, 8, 8, 1))) * 255).astype(np.uint8)
    assert len({write_video(tmp_path / "a.mp4", pictures, 25.0).read_bytes() for _ in range(12)}) == 1
