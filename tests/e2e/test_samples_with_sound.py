"""Samples with sound and sound alone, from real checkpoint files to files a person can play."""

from __future__ import annotations

import wave

import av
import numpy as np
import pytest
import torch

from ltx2_train import load_run, sample
from ltx2_train.cli import main
from ltx2_train.errors import Stopped
from ltx2_train.events import Events
from ltx2_train.lora.branches import keep_branches
from ltx2_train.lora.inject import inject
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.sampling import render
from ltx2_train.sampling.sound import SoundParts, decode_mel, decode_wave
from ltx2_train.weights.load import load_transformer

RUN = """\
[model]
checkpoint = '{checkpoint}'
text_encoder = '{encoder}'
precision = "fp32"
device = "cpu"
[cache]
vae_dtype = "fp32"
[sample]
width = 64
height = 64
frames = 9
steps = 2
stg = 0.0
"""
PROMPT = ["a dog barks --g 1"]


@pytest.fixture
def run_of(tiny, tmp_path):
    def make(mode, *more, files=tiny):
        path = tmp_path / "run.toml"
        path.write_text(RUN.format(checkpoint=files.checkpoint, encoder=files.text_encoder))
        return load_run(path, [f"model.mode={mode}", *more])

    return make


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory):
    """A LoRA of all branches that changes a lot."""
    generator = torch.Generator().manual_seed(5)
    loras = inject(load_transformer(tiny.checkpoint, "av", torch.float32), LoraSettings(rank=4), generator)
    with torch.no_grad():
        for layer in loras.layers.values():
            layer.lora_B.normal_(std=0.2, generator=generator)
    path = tmp_path_factory.mktemp("lora") / "both.safetensors"
    save_lora(path, loras, {"base": {"version": "2.3"}}, "fp32")
    return path


def samples_of(path):
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (2, 2)
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        return data, file.getframerate()


@pytest.mark.parametrize(("version", "rate"), [("2.3", 48000), ("2.0", 24000)])
def test_a_sample_with_sound_is_one_file_of_both_versions(version, rate, run_of, tiny, tiny20, tmp_path):
    files = tiny if version == "2.3" else tiny20
    run = run_of("av", "sample.stg=1", files=files)
    found = sample(run, None, tmp_path / "out", prompts=["a dog barks --g 3 --n silence"])
    with av.open(str(found[0].path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert audio.rate == rate
        ends = [float(stream.duration * stream.time_base) for stream in (video, audio)]
        assert ends == pytest.approx([9 / 25, 9 / 25], abs=2e-3)
    assert found[0].audio_latents.shape == (8, 9, 16)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*")) == [
        "base_p01_s42.mp4",
        "base_p01_s42.sound.png",
    ]


class Asked(Events):
    """Counts the questions whether to stop; asks for it at the one of number `at`."""

    def __init__(self, at=None):
        self.count, self.at = 0, at

    def should_stop(self):
        self.count += 1
        return self.at is not None and self.count >= self.at


def test_a_stop_is_heard_within_each_part_of_decoding_and_writing_a_sample(run_of, tmp_path, monkeypatch):
    run, asked, frames = run_of("av", "sample.steps=1"), {}, []

    def watched(name):
        original = getattr(render, name)

        def call(*arguments):
            before = events.count
            made = original(*arguments)
            asked[name] = events.count - before
            return made

        return call

    for name in ("decode_mel", "decode_wave"):
        monkeypatch.setattr(render, name, watched(name))
    write = render.write_video

    def written(path, shown, *more):
        return write(path, (frames.append(0) or frame for frame in shown), *more)

    monkeypatch.setattr(render, "write_video", written)
    sample(run, None, tmp_path / "out", prompts=PROMPT, events=(events := Asked()))
    assert min(asked.values()) > 20
    assert len(frames) == 9
    frames.clear()
    with pytest.raises(Stopped):
        sample(run, None, tmp_path / "again", prompts=PROMPT, events=(events := Asked(events.count)))
    assert len(frames) == 8, "the last question is the one before the last frame"
    assert not list((tmp_path / "again").glob("*.mp4"))


def test_sound_alone_never_reads_the_video_side(run_of, tmp_path, monkeypatch):
    import ltx2_train.placement as placement
    import ltx2_train.sampling.render as module

    loaded = []

    def watched(*args, **more):
        loaded.append(load_transformer(*args, **more))
        return loaded[-1]

    monkeypatch.setattr(placement, "load_transformer", watched)
    monkeypatch.setattr(module, "load_video_vae", lambda *_, **__: pytest.fail("no picture, no video VAE"))
    found = sample(run_of("audio", "sample.frames=25", "sample.fps=10"), None, tmp_path / "out", prompts=PROMPT)
    assert found[0].latents is None
    assert found[0].audio_latents.shape == (8, 62, 16)
    data, rate = samples_of(found[0].path)
    assert (len(data), rate) == (120000, 48000)  # 25 frames at 10 a second
    assert np.abs(data).max() > 0
    names = [name.split(".") for name, _ in loaded[0].named_parameters()]
    blocks = [parts[2] for parts in names if parts[0] == "transformer_blocks"]
    assert blocks
    assert all(part.startswith("audio") for part in blocks)


def test_a_model_with_pictures_draws_the_sound_alone_where_that_is_asked_for(run_of, tmp_path, monkeypatch):
    import ltx2_train.sampling.render as module

    monkeypatch.setattr(module, "load_video_vae", lambda *_, **__: pytest.fail("no picture, no video VAE"))
    (alone,) = sample(run_of("audio"), None, tmp_path / "audio", prompts=PROMPT)
    (found,) = sample(run_of("av", "sample.streams=sound"), None, tmp_path / "av", prompts=PROMPT)
    assert found.latents is None
    assert torch.equal(found.audio_latents, alone.audio_latents), "as the sound side by itself"
    assert found.path.suffix == ".wav"
    assert found.path.with_name("base_p01_s42.sound.png").is_file()


def test_strengths_stand_beside_each_other_at_the_same_seed(run_of, lora, tmp_path):
    run, out = run_of("av", "sample.audio=separate"), tmp_path / "out"
    base = sample(run, None, out, prompts=PROMPT)[0]
    zero, full = sample(run, lora, out, prompts=PROMPT, strengths=(0.0, 1.0))
    assert torch.equal(zero.audio_latents, base.audio_latents)
    assert torch.equal(zero.latents, base.latents)
    assert not torch.allclose(full.audio_latents, base.audio_latents, atol=1e-3)
    assert not torch.allclose(full.latents, base.latents, atol=1e-3)
    assert [one.audio_path.name for one in (zero, full)] == ["both_x0_p01_s42.wav", "both_x1_p01_s42.wav"]
    assert [one.info["strength"] for one in (zero, full)] == [0.0, 1.0]
    assert np.array_equal(samples_of(zero.audio_path)[0], samples_of(base.audio_path)[0])
    assert not np.array_equal(samples_of(full.audio_path)[0], samples_of(base.audio_path)[0])


def test_the_voice_of_a_lora_alone_changes_sound_as_the_whole_does(run_of, lora, tmp_path):
    voice = tmp_path / "voice.safetensors"
    keep_branches(lora, ["audio"], voice)
    draw = {
        name: sample(run_of("audio"), path, tmp_path / name, prompts=PROMPT)[0].audio_latents
        for name, path in (("base", None), ("whole", lora), ("voice", voice))
    }
    # a model of sound alone has no other layers, so the rest of the LoRA made no difference to it
    assert torch.equal(draw["voice"], draw["whole"])
    assert not torch.allclose(draw["voice"], draw["base"], atol=1e-3)
    video = [sample(run_of("video"), None, tmp_path / "v", prompts=PROMPT)[0].latents]
    looks = tmp_path / "looks.safetensors"
    keep_branches(lora, ["video"], looks)
    video += [sample(run_of("video"), path, tmp_path / "v", prompts=PROMPT)[0].latents for path in (lora, looks)]
    assert torch.equal(video[1], video[2])
    assert not torch.allclose(video[0], video[1], atol=1e-3)


def test_the_sound_equals_ltx_core_s_decoding(tiny, tiny20):
    from ltx_core.loader.single_gpu_model_builder import SingleGPUModelBuilder
    from ltx_core.model.audio_vae import (
        AUDIO_VAE_DECODER_COMFY_KEYS_FILTER,
        VOCODER_COMFY_KEYS_FILTER,
        AudioDecoderConfigurator,
        VocoderConfigurator,
        decode_audio,
    )

    latents = torch.randn(8, 26, 16, generator=torch.Generator().manual_seed(3))
    for files in (tiny, tiny20):
        decoder, vocoder = (
            SingleGPUModelBuilder(
                model_path=str(files.checkpoint), model_class_configurator=configurator, model_sd_ops=keys
            ).build(device=torch.device("cpu"), dtype=torch.float32)
            for configurator, keys in (
                (AudioDecoderConfigurator, AUDIO_VAE_DECODER_COMFY_KEYS_FILTER),
                (VocoderConfigurator, VOCODER_COMFY_KEYS_FILTER),
            )
        )
        with torch.no_grad():
            theirs = decode_audio(latents[None], decoder, vocoder)
        parts = SoundParts(files.checkpoint, torch.device("cpu"), Events())
        voice = parts.open_vocoder()
        seconds = theirs.waveform.shape[-1] / theirs.sampling_rate
        ours = decode_wave(voice, decode_mel(parts.open_decoder(), latents), seconds)
        assert voice.sample_rate == theirs.sampling_rate
        assert ours.shape == theirs.waveform.shape
        assert float((ours - theirs.waveform).abs().max()) < 1e-4
        assert float(theirs.waveform.abs().max()) > 1e-3


def test_the_command_line_draws_sound(run_of, lora, tmp_path, capsys):
    run_of("audio")
    out = tmp_path / "out"
    options = ["--set", "model.mode=a", "--set", "sample.audio_format=flac", "--strength", "0.5", "--prompt", PROMPT[0]]
    assert main(["sample", str(tmp_path / "run.toml"), "--lora", str(lora), "--out", str(out), *options]) == 0
    assert capsys.readouterr().out.strip().endswith("both_x0.5_p01_s42.flac")
    assert (out / "both_x0.5_p01_s42.sound.png").is_file()
