"""Runs with sound: video with its sound, and sound alone, from files to a LoRA; and what people get wrong with them.

It is long: both modes with sound, and each mistake people make with it.
"""

from __future__ import annotations

import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from media import moving_square, write_image, write_video
from safetensors import safe_open
from safetensors.torch import save_file

from ltx2_train import Events, Stopped, build_caches, inspect_lora, load_run, sample, train
from ltx2_train.cli.demo_media import draw_sound, melody
from ltx2_train.errors import CheckpointError, DataError, TrainerError
from ltx2_train.lora.file import load_lora_state
from ltx2_train.training.metrics import read_rows


class Heard(Events):
    """Keeps what it is told, and asks for a stop once `step` steps are done."""

    def __init__(self, step: int = 10**9) -> None:
        self.at, self.done, self.messages = step, 0, []

    def step(self, metrics):
        self.done = metrics["step"]

    def message(self, text, level="info"):
        self.messages.append((level, text))

    def should_stop(self):
        return self.done >= self.at

    def warnings(self) -> str:
        return "\n".join(text for level, text in self.messages if level == "warning")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    entries = load_lora_state(path).entries
    return {f"{name}.{part}": getattr(entry, part) for name, entry in entries.items() for part in ("down", "up")}


def rows_of(result) -> list[dict]:
    return read_rows(result.folder / "metrics.jsonl")


def write_wave(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    path.with_suffix(".txt").write_text(f"sound of {path.stem}")
    return path


EVERYTHING = [
    "train.save_precision=fp32",
    "train.accumulation=2",
    "train.caption_dropout=0.4",
    "train.audio_learning_rate=5e-4",
    "train.loraplus_ratio=4",
    "lora.dropout=0.1",
    "loss.balance.mode=ema_mag",
    "loss.balance.decay=0.5",
    "audio.independent_timestep=true",
    "audio.supervision=warn",
]


def test_a_resumed_run_with_sound_equals_an_unbroken_one_bit_for_bit(sound_run_file):
    whole = train(load_run(sound_run_file, ["run.name=whole", *EVERYTHING]))
    with pytest.raises(Stopped, match="after step 3 of 6"):
        train(load_run(sound_run_file, ["run.name=broken", *EVERYTHING]), Heard(3))
    broken = train(load_run(sound_run_file, ["run.name=broken", *EVERYTHING]))
    first, second = tensors(whole.lora), tensors(broken.lora)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for name in ("loss", "loss_video", "loss_audio", "sigma_audio", "audio_weight", "lr", "lr_audio"):
        assert [row[name] for row in rows_of(whole)] == [row[name] for row in rows_of(broken)], name
    row = rows_of(whole)[3]
    assert row["sigma"] != row["sigma_audio"]
    assert row["lr_audio"] == pytest.approx(row["lr"] / 2)
    assert row["audio_weight"] != 1.0


def test_a_stop_inside_a_step_counts_none_of_its_batches(sound_run_file, monkeypatch):
    from ltx2_train.training import loop

    more = ["train.save_precision=fp32", "train.accumulation=2", "loss.balance.mode=inv_freq", "loss.balance.start=0.5"]
    whole = train(load_run(sound_run_file, ["run.name=whole", *more]))
    real, events = loop.ready_step, Heard()

    def step(*arguments, **more):
        terms = real(*arguments, **more)
        step.calls += 1
        if step.calls == 5:  # the first batch of the third step
            events.at = 0
        return terms

    step.calls = 0
    monkeypatch.setattr(loop, "ready_step", step)
    with pytest.raises(Stopped, match="after step 2 of 6"):
        train(load_run(sound_run_file, ["run.name=broken", *more]), events)
    monkeypatch.undo()
    broken = train(load_run(sound_run_file, ["run.name=broken", *more]))
    assert [row["audio_weight"] for row in rows_of(whole)] == [row["audio_weight"] for row in rows_of(broken)]
    first, second = tensors(whole.lora), tensors(broken.lora)
    assert all(torch.equal(first[key], second[key]) for key in first)


MIXED = """\
[general]
resolution = [64, 64]
target_frames = [9]
frame_extraction = "uniform"
frame_sample = 2
batch_size = 2
[[datasets]]
video_directory = "clips"
cache_directory = "cache/clips"
[[datasets]]
image_directory = "images"
cache_directory = "cache/images"
[[datasets]]
audio_directory = "sounds"
cache_directory = "cache/sounds"
"""


@pytest.fixture
def mixed_run_file(sound_run_file: Path) -> Path:
    """A clip with sound, a silent clip, an image and two recordings, in batches of two."""
    work = sound_run_file.parent
    write_video(work / "clips" / "silent.mp4", moving_square(20, 96, 96), 25)
    (work / "clips" / "silent.txt").write_text("a square slides")
    write_image(work / "images" / "picture.png", 96, 96, caption="a still square")
    for number, seconds in enumerate((0.9, 1.3)):
        draw_sound(work / "sounds" / f"tune{number}.wav", seconds)
        (work / "sounds" / f"tune{number}.txt").write_text(f"tune number {number}")
    (work / "dataset.toml").write_text(MIXED)
    return sound_run_file


def test_pictures_silent_clips_clips_with_sound_and_recordings_train_together(mixed_run_file):
    run = load_run(mixed_run_file, ["train.steps=12", "loss.balance.mode=inv_freq"])
    report = build_caches(run)
    assert report.kinds["sound"].made + report.kinds["sound"].kept >= 3
    events = Heard()
    result = train(run, events)
    kinds = {(row["loss_video"] is not None, row["loss_audio"] is not None) for row in rows_of(result)}
    assert kinds == {(True, True), (True, False), (False, True)}
    assert all(row["loss"] is not None for row in rows_of(result))
    said = "\n".join(text for _, text in events.messages)
    assert "batches of an epoch carry it" in said
    norms = inspect_lora(result.lora).norms
    assert norms["video"] > 0
    assert norms["audio"] > 0


def test_silence_stands_in_for_the_sound_of_silent_clips(mixed_run_file):
    run = load_run(mixed_run_file, ["train.steps=8", "audio.silence_regularizer=true", "audio.silence_weight=0.5"])
    build_caches(run)
    result = train(run)
    quiet = [row for row in rows_of(result) if row["loss_video"] is not None and row["loss_audio"] is None]
    assert quiet, "no batch without sound came up"
    # the loss of silence counts, and is not passed off as a loss of sound
    assert all(row["loss"] > row["loss_video"] + 0.1 for row in quiet)
    assert all(row["sigma_audio"] == row["sigma"] for row in quiet)


def test_sound_alone_trains_only_audio_layers_and_needs_no_picture(sound_run_file):
    work = sound_run_file.parent
    draw_sound(work / "sounds" / "tune.wav", 1.0)
    (work / "sounds" / "tune.txt").write_text("a tune")
    (work / "dataset.toml").write_text('[[datasets]]\naudio_directory = "sounds"\ncache_directory = "cache2"\n')
    run = load_run(sound_run_file, ["model.mode=audio", "run.name=alone", "sample.every=6"])
    report = build_caches(run)
    assert "latents" not in report.kinds
    result = train(run)
    assert set(inspect_lora(result.lora).norms) == {"audio"}
    assert all(row["loss_video"] is None and row["loss_audio"] is not None for row in rows_of(result))
    drawn = sorted(path.suffix for path in (result.folder / "samples").iterdir())
    assert drawn.count(".wav") == 2
    assert ".mp4" not in drawn
    files = sample(run, result.lora, work / "drawn", strengths=[0.0, 1.0])
    base = sample(run, None, work / "drawn")
    assert torch.equal(files[0].audio_latents, base[0].audio_latents)
    assert not torch.equal(files[1].audio_latents, base[0].audio_latents)


def test_sound_of_clips_alone_can_be_trained(sound_run_file):
    result = train(load_run(sound_run_file, ["model.mode=audio", "run.name=voice", "train.steps=2"]))
    assert set(inspect_lora(result.lora).norms) == {"audio"}


def test_a_run_of_another_mode_is_not_continued(sound_run_file):
    train(load_run(sound_run_file, ["train.steps=1"]))
    with pytest.raises(TrainerError, match=r"model\.mode: was av, now audio"):
        train(load_run(sound_run_file, ["train.steps=2", "model.mode=audio"]))


def test_norms_of_the_branches_are_in_the_metrics(sound_run_file):
    result = train(load_run(sound_run_file, ["train.steps=4", "train.norms_every=2"]))
    rows = rows_of(result)
    assert "norm_audio" not in rows[0]
    assert {"norm_video", "norm_audio", "norm_a2v", "norm_v2a"} <= rows[1].keys()
    assert rows[3]["norm_audio"] > rows[1]["norm_audio"] > 0


def test_an_audio_branch_that_does_not_move_is_told_after_a_while(sound_run_file, monkeypatch):
    from ltx2_train.training import watch

    monkeypatch.setattr(watch, "CHECK_AFTER", 3)
    events = Heard()
    train(load_run(sound_run_file, ["train.lr_args=['audio_=1e-12']", "train.steps=4"]), events)
    assert "have not moved" in events.warnings()
    events = Heard()
    train(load_run(sound_run_file, ["run.name=b", "train.steps=4"]), events)
    assert "have not moved" not in events.warnings()


def test_a_target_without_audio_layers_is_told_at_once(sound_run_file):
    events = Heard()
    more = [r"lora.include_patterns=['.*\.attn1\.to_q']", "train.steps=1"]
    train(load_run(sound_run_file, more), events)
    assert "no audio layers" in events.warnings()


def test_an_epoch_almost_without_sound_is_told_before_the_start(mixed_run_file, monkeypatch):
    from ltx2_train.training import watch

    monkeypatch.setattr(watch, "STARVING", 0.9)
    run = load_run(mixed_run_file, ["train.steps=1"])
    build_caches(run)
    events = Heard()
    train(run, events)
    assert "num_repeats" in events.warnings()
    assert "hardly be learned" in events.warnings()


def test_the_supervision_monitor_ends_a_run_that_starves(mixed_run_file):
    more = ["audio.supervision=error", "audio.supervision_warmup=4", "audio.supervision_interval=4"]
    run = load_run(mixed_run_file, [*more, "train.steps=20"])
    build_caches(run)
    with pytest.raises(DataError, match="supervision_min_ratio"):
        train(run)


def test_the_same_caption_everywhere_is_warned_of(mixed_run_file):
    for path in mixed_run_file.parent.rglob("*.txt"):
        path.write_text("my style")
    run = load_run(mixed_run_file, ["train.steps=1"])
    build_caches(run)
    events = Heard()
    train(run, events)
    assert "same caption" in events.warnings()
    assert "my style" in events.warnings()


@pytest.mark.parametrize("mode", ["av", "audio"])
def test_clips_without_any_sound_are_refused_where_sound_is_asked_for(sound_run_file, mode):
    work = sound_run_file.parent
    shutil.rmtree(work / "clips")
    write_video(work / "clips" / "silent.mp4", moving_square(20, 96, 96), 25)
    (work / "clips" / "silent.txt").write_text("a square slides")
    run = load_run(sound_run_file, [f"model.mode={mode}", "run.name=x"])
    with pytest.raises(TrainerError, match=r"(?i)sound") as caught:
        build_caches(run)
    assert "model.mode" in str(caught.value)
    assert not (work / "runs" / "x").exists()


def test_recordings_that_are_all_silence_are_refused_when_built_and_when_trained(sound_run_file):
    work = sound_run_file.parent
    shutil.rmtree(work / "clips")
    for name in ("one", "two"):
        write_video(
            work / "clips" / f"{name}.mp4", moving_square(20, 96, 96), 25, sound=np.zeros((1, 48000), np.float32)
        )
        (work / "clips" / f"{name}.txt").write_text(f"square {name}")
    run = load_run(sound_run_file, ["model.mode=av", "run.name=x", "train.steps=1"])
    silence = r"is silence \(one\.mp4, two\.mp4\).*set model\.mode to video"
    for _ in range(2):  # found in what is made, and in what is kept
        with pytest.raises(DataError, match=silence):
            build_caches(run)
    build_caches(load_run(sound_run_file, ["model.mode=video"]))
    with pytest.raises(DataError, match=r"is silence \(one_.*set model\.mode to video"):
        train(run)
    assert not (work / "runs" / "x").exists()
    with pytest.raises(DataError, match=r"is silence"):
        train(load_run(sound_run_file, ["model.mode=audio", "run.name=x"]))


def test_recordings_that_cannot_be_used_are_named_and_left_out(sound_run_file):
    work = sound_run_file.parent
    good = write_wave(work / "sounds" / "good.wav", melody(1.0)[::3])
    write_wave(work / "sounds" / "empty.wav", np.zeros(0))
    import av

    broken = np.full((1, 16000), np.nan, np.float32)
    with av.open(str(work / "sounds" / "nan.wav"), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(broken, format="flt", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (work / "sounds" / "nan.txt").write_text("not a number")
    (work / "dataset.toml").write_text(
        '[[datasets]]\naudio_directory = "sounds"\ncache_directory = "cache2"\nmax_left_out = 0.7\n'
    )
    run = load_run(sound_run_file, ["model.mode=audio", "run.name=x", "train.steps=1"])
    report = build_caches(run)
    assert "empty.wav" in report.summary()
    assert "nan.wav" in report.summary()
    assert good.name not in report.summary()
    assert train(run).step == 1


def test_sound_that_ends_before_its_clip_is_told_and_trained(sound_run_file):
    work = sound_run_file.parent
    write_video(work / "clips" / "long.mp4", moving_square(20, 96, 96), 25)
    (work / "clips" / "long.txt").write_text("a square slides")
    write_wave(work / "clips" / "long.wav", melody(0.3)[::3])
    text = (work / "dataset.toml").read_text().replace("[[datasets]]", '[[datasets]]\naudio_source = "audio_files"')
    (work / "dataset.toml").write_text(text)
    (work / "clips" / "clip.mp4").unlink()
    (work / "clips" / "clip.txt").unlink()
    run = load_run(sound_run_file, ["run.name=x", "train.steps=3"])
    report = build_caches(run)
    assert "long" in report.summary()
    assert train(run).step == 3


@pytest.mark.parametrize("mode", ["av", "audio"])
def test_a_checkpoint_without_an_audio_vae_is_refused_before_anything_is_written(sound_run_file, tiny, mode, tmp_path):
    with safe_open(tiny.checkpoint, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("audio_vae.")}
        save_file(kept, tmp_path / "mute.safetensors", file.metadata())
    more = [f"model.mode={mode}", "run.name=x", f"model.checkpoint={tmp_path / 'mute.safetensors'}"]
    for call in (train, build_caches):
        with pytest.raises(CheckpointError, match="no audio VAE"):
            call(load_run(sound_run_file, more))
    assert not (sound_run_file.parent / "runs" / "x").exists()


def test_sound_alone_needs_the_vocoder_too(sound_run_file, tiny, tmp_path):
    with safe_open(tiny.checkpoint, "pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("vocoder.")}
        save_file(kept, tmp_path / "mute.safetensors", file.metadata())
    more = [f"model.checkpoint={tmp_path / 'mute.safetensors'}", "run.name=x", "train.steps=1"]
    with pytest.raises(CheckpointError, match="no vocoder"):
        train(load_run(sound_run_file, [*more, "model.mode=audio"]))


def test_video_mode_of_a_clip_with_sound_is_what_it_was_without(cached_folder, sound_run_file, tmp_path):
    """A dataset whose sound is cached trains video to the same bits as one where nobody thought of sound."""
    more = ["model.mode=video", "train.steps=3", "train.save_precision=fp32"]
    run_file = Path(shutil.copytree(cached_folder, tmp_path / "plain")) / "run.toml"
    shutil.copy2(sound_run_file.parent / "clips" / "clip.txt", run_file.parent / "clips" / "clip.txt")
    build_caches(load_run(run_file, more))
    plain, with_sound = train(load_run(run_file, more)), train(load_run(sound_run_file, more))
    first, second = tensors(plain.lora), tensors(with_sound.lora)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(row["loss_audio"] is None for row in rows_of(with_sound))


def test_dropped_captions_leave_the_noise_as_it_is(sound_run_file):
    """The coins have a generator of their own, so runs with and without dropout see the same noise levels."""
    more = ["train.steps=3", "lora.rank=1", "train.learning_rate=1e-9"]
    found = {
        name: rows_of(train(load_run(sound_run_file, [f"run.name={name}", f"train.{setting}", *more])))
        for name, setting in (("none", "caption_dropout=0"), ("all", "caption_dropout=1"))
    }
    zeros = ["run.name=zeros", "train.caption_dropout=1", "train.caption_dropout_with=zeros"]
    found["zeros"] = rows_of(train(load_run(sound_run_file, [*zeros, *more])))
    assert len({tuple(row["sigma"] for row in rows) for rows in found.values()}) == 1
    assert len({tuple(row["loss_video"] for row in rows) for rows in found.values()}) == 3
    assert len({tuple(row["loss_audio"] for row in rows) for rows in found.values()}) == 3


def test_a_stop_while_sound_is_encoded_leaves_nothing_half_written(sound_run_file):
    shutil.rmtree(sound_run_file.parent / "cache")
    run = load_run(sound_run_file, ["train.steps=1"])

    class StopInSound(Heard):
        def stage(self, name, total=None):
            if name == "encode sound":
                self.at = 0

    with pytest.raises(Stopped):
        build_caches(run, StopInSound())
    assert not list(sound_run_file.parent.rglob("*.part"))
    build_caches(run)
    assert train(run).step == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["av", "audio"])
def test_the_demo_learns_sound(tmp_path, capsys, mode):
    from ltx2_train.cli import main

    assert main(["demo", "--mode", mode, "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert "loss          audio" in said
    assert ("loss          video" in said) == (mode == "av")
    assert list((tmp_path / "demo" / "samples").glob("*.mp4" if mode == "av" else "*.wav"))


def test_clips_without_sound_are_refused_before_anything_is_encoded(run_file):
    clip = run_file.parent / "clips" / "clip.mp4"
    write_video(clip, moving_square(40, 64, 64))
    shutil.rmtree(run_file.parent / "cache")
    with pytest.raises(DataError, match="mode is av, but not one of the 3 samples has sound"):
        build_caches(load_run(run_file, ["model.mode=av"]))
    assert not list((run_file.parent / "cache").glob("*.safetensors"))
