"""Nodes and sound on the pretended ComfyUI: recordings, clips with sound, what is drawn, and a LoRA taken apart."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from pathlib import Path

import fake_comfy
import pytest
import torch
from safetensors.torch import save_file

from ltx2_train.cli.demo_media import draw_sound
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.report import inspect_lora

SIZE = {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head", "buckets": False}
VOICE = {
    "folder": "voice",
    "path": "",
    "speaker_word": "ohwx",
    "normalise": True,
    "cut_at_pauses": False,
    "min_seconds": 2.0,
    "max_seconds": 12.0,
}
RUN = {
    "steps": 2,
    "rank": 2,
    "learning_rate": 1e-3,
    "train_seed": 7,
    "sample_every": 0,
    "sample_prompts": "a tune",
    "if_exists": "continue",
    "sample_frames": 9,
    "sample_width": 64,
    "sample_height": 64,
    "sample_steps": 2,
    "sample_guidance": 1.0,
}
DRAW = {"strength": 1.0, "width": 64, "height": 64, "frames": 9, "steps": 2, "guidance": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, tiny, drawn_clip: Path):
    """One pretended ComfyUI for the whole file, so that the caches are made once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake = fake_comfy.install(monkeypatch, tmp_path_factory.mktemp("comfy"))
        shutil.copy2(drawn_clip, fake.folder("input", "ball") / "clip.mp4")
        (fake.folder("input", "ball") / "clip.txt").write_text("a red ball bounces to a tune")
        for number, seconds in enumerate((0.8, 1.2)):
            path = draw_sound(fake.folder("input", "voice") / f"tune{number}.wav", seconds)
            path.with_suffix(".txt").write_text(f"tune number {number}")
        shutil.copy2(tiny.checkpoint, fake.folder("models", "checkpoints") / "tiny.safetensors")
        shutil.copy2(tiny.text_encoder, fake.folder("models", "text_encoders") / "gemma.safetensors")
        yield fake


@pytest.fixture
def chain(nodes, comfy):
    """Runs the chain up to a node and gives that node's outputs."""
    comfy.sent.clear()

    class Chain:
        def base(self, mode):
            files = {"checkpoint": "tiny.safetensors", "text_encoder": "gemma.safetensors"}
            return nodes.LoadBaseModel.execute(**files, precision="fp32", device="cpu", mode=mode).args[0]

        def clips(self, **more):
            given = {"folder": "ball", "path": "", "trigger_word": "ohwx", "fps": 25.0, **more}
            return nodes.LoadTrainingClips.execute(**given).args[0]

        def voice(self, **more):
            return nodes.LoadTrainingAudio.execute(**VOICE | more).args

        def prepared(self, mode, **more):
            dataset = {"audio": self.voice()[0], "av": self.clips()}[mode]
            return nodes.PrepareDataset.execute(model=self.base(mode), **{"dataset": dataset, **SIZE, **more}).args

        def trained(self, mode, run_name, prepared=None, **more):
            prepared = prepared or self.prepared(mode)[0]
            return nodes.TrainLoRA.execute(prepared=prepared, **{**RUN, "run_name": run_name, **more})

    with torch.inference_mode():  # as in ComfyUI
        yield Chain()


def test_recordings_are_counted_and_keep_their_settings(chain):
    dataset, count = chain.voice(repeats=3, cut_at_pauses=True)
    assert (count, repr(dataset)) == (2, "<2 recordings in voice>")
    (entry,) = dataset.entries
    assert Path(entry["audio_directory"]).name == "voice"
    assert (entry["trigger_word"], entry["audio_normalize"], entry["num_repeats"]) == ("ohwx", True, 3)
    assert (entry["speech_segments"], entry["speech_max_seconds"]) == (True, 12.0)


def test_sizes_that_recordings_or_sound_alone_do_not_have_are_named(nodes, chain):
    told, clips, voice = nodes.data.idle_sizes, chain.clips(), chain.voice()[0]
    assert told([clips], SIZE, "audio").startswith("width = 64, height = 64 have no effect: the base is set to sound")
    assert told([voice], {"max_frames": 33, "batch_size": 2}).startswith("max_frames = 33 has no effect: recordings")
    assert told([clips, voice], SIZE) == told([voice], {"width": 512, "batch_size": 2}, "audio") == ""


def test_the_wrong_loader_for_a_folder_names_the_right_one(chain):
    with pytest.raises(RuntimeError, match=r"holds no recordings. It holds 1 video; use Load Training Clips"):
        chain.voice(folder="ball")
    with pytest.raises(RuntimeError, match="It holds 2 recordings; use Load Training Audio"):
        chain.clips(folder="voice")


def test_a_changed_transcript_is_noticed(nodes, comfy):
    def mark(**more):
        return nodes.LoadTrainingAudio.fingerprint_inputs(**{"folder": "other", "path": "", **more})

    path = draw_sound(comfy.folder("input", "other") / "tune.wav", 0.5)
    path.with_suffix(".txt").write_text("one")
    before = mark()
    assert mark() == before
    path.with_suffix(".txt").write_text("another")
    assert mark() != before
    assert math.isnan(mark(path=None)), "it comes over a wire"


def test_recordings_need_a_base_that_is_set_to_sound(nodes, chain):
    with pytest.raises(RuntimeError, match="Set `mode` of Load LTX-2 Base Model to av"):
        nodes.PrepareDataset.execute(model=chain.base("video"), dataset=chain.voice()[0], **SIZE)
    with pytest.raises(RuntimeError, match="voice holds recordings"):
        nodes.PrepareDataset.execute(model=chain.base("video"), dataset=chain.clips(), audio=chain.voice()[0], **SIZE)


def test_a_base_without_the_models_of_sound_is_refused_where_it_is_chosen(chain, nodes, monkeypatch):
    base_files = importlib.import_module(nodes.model.core.__name__ + ".config.base_files")
    plain = base_files.require_trainable

    def deaf(*args, **options):
        info = plain(*args, **options)
        del info.parts["audio_vae"]
        return info

    monkeypatch.setattr(base_files, "require_trainable", deaf)
    with pytest.raises(RuntimeError, match="no audio VAE"):
        chain.base("av")
    assert "video" in repr(chain.base("video"))


def test_clips_and_recordings_are_prepared_together(chain):
    prepared, summary = chain.prepared("av", audio=chain.voice()[0])
    assert summary.count("made") >= 3, "pictures, sounds, captions"
    text = prepared.config.read_text()
    assert "video_directory" in text
    assert "audio_directory" in text
    _, summary = chain.prepared("av", audio=chain.voice()[0])
    assert " 0 made" in summary
    alone, _ = chain.prepared("av")
    assert alone.config != prepared.config, "another dataset is another file"


def test_sound_settings_of_clips_that_train_no_sound_are_told_on_the_node(nodes, chain, comfy):
    clips = chain.clips(audio_normalize=True, audio_loss_weight=0.5)
    prepared, summary = nodes.PrepareDataset.execute(model=chain.base("video"), dataset=clips, **SIZE).args
    told = "mode of Load LTX-2 Base Model = video trains no sound"
    assert told in summary
    assert told in comfy.texts[-1][1]
    assert told in chain.trained("video", "mute", prepared).ui["ltx2_train"][0]["message"]
    comfy.texts.clear()  # which others look through


def test_two_folders_of_clips_do_not_share_their_caches(chain, comfy):
    clips = comfy.folder("input", "more")
    shutil.copy2(comfy.folder("input", "ball") / "clip.mp4", clips / "clip.mp4")
    (clips / "clip.txt").write_text("another ball")
    prepared, _ = chain.prepared("av", audio=chain.clips(folder="more"))
    assert len({path.parent for path in prepared.config.parent.rglob("clip_*_ltx2.safetensors")}) == 2


def test_losses_of_picture_and_sound_are_shown_apart(nodes, chain, comfy):
    chain.trained("av", "apart")
    shown = comfy.events("ltx2_train.step")[-1]
    assert [step for step, *_ in shown["curve"]] == [step for step, *_ in shown["curve_audio"]] == [1, 2]
    rows = (comfy.folder("output", "ltx2_runs", "apart") / "metrics.jsonl").read_text().splitlines()
    last = json.loads(rows[-1])
    assert shown["curve"][-1][1] == last["loss_video"] != last["loss_audio"] == shown["curve_audio"][-1][1]
    assert (
        f"(video {last['loss_video']:.4f}, audio {last['loss_audio']:.4f})" in nodes.host.page._views["7"].status_line()
    )


def test_a_voice_is_trained_drawn_and_played(nodes, chain, comfy):
    result = chain.trained("audio", "voice", sample_every=2)
    sample = comfy.events("ltx2_train.sample")[-1]["sample"]
    assert sample["file"]["filename"].endswith(".wav")
    assert comfy.events("ltx2_train.step")[-1]["curve_audio"] == []
    told = result.ui["ltx2_train"][0]["message"]
    drawn = nodes.SampleLoRA.execute(prompt="a tune", run=result.args[1], **DRAW)
    prepared, *_, last = (text for _, text in comfy.texts if "no effect" in text)
    assert "width = 64, height = 64, frames = 9, buckets = False have no effect: recordings have neither" in prepared
    assert "sample_width = 64 has no effect: it counts only with mode of Load LTX-2 Base Model = video or av" in told
    assert "\nwidth = 64 has no effect: it counts only with mode" in last
    video, path, audio = drawn.args
    assert "no video" in video.message
    assert Path(path).suffix == ".wav"
    assert audio["waveform"].shape[:2] == (1, 2)
    assert audio["waveform"].shape[2] / audio["sample_rate"] == pytest.approx(9 / 25, abs=0.01)
    assert drawn.ui["audio"][0]["filename"] == Path(path).name
    assert drawn.ui["images"][0]["filename"] == f"{Path(path).stem}.sound.png"
    assert nodes.live.first_frame(Path(path)).size[0] > 100, "the picture of the sound stands in for one"


def test_a_video_with_sound_comes_out_of_both_sockets(nodes, chain):
    run = chain.trained("av", "both").args[1]
    video, path, audio = nodes.SampleLoRA.execute(prompt="a ball", run=run, **DRAW).args
    assert video.file == path
    assert audio["waveform"].abs().max() > 0
    video, path, beside = nodes.SampleLoRA.execute(prompt="a ball", run=run, **DRAW, audio_file="separate").args
    assert Path(path).with_suffix(".wav").is_file()
    assert beside["sample_rate"] == audio["sample_rate"]
    mute = nodes.SampleLoRA.execute(prompt="a ball", run=run, **DRAW, audio_file="off").args[2]
    assert "no sound" in mute.message


def test_a_lora_is_taken_apart_and_listed(nodes, chain, comfy):
    lora, _, path = chain.trained("av", "parts").args
    choice = {"action": "keep", "branches": "audio", "lora_path": "", "save_name": "voice of it"}
    kept, report, out = nodes.KeepBranch.execute(lora=lora, **choice).args
    assert out == str(comfy.folder("models", "loras") / "voice of it.safetensors")
    assert set(inspect_lora(Path(out)).branches) == {"audio"}
    assert report.startswith("voice of it.safetensors: kept")
    assert all(torch.equal(kept[key], lora[key]) for key in kept)

    again = nodes.KeepBranch.execute(lora=lora, **choice).args[2]
    assert again == out, "the same file again is no other"
    with pytest.raises(RuntimeError, match="is there already and holds something else"):
        nodes.KeepBranch.execute(lora=lora, **{**choice, "branches": "video"})
    assert set(inspect_lora(Path(out)).branches) == {"audio"}

    dropped, _, there = nodes.KeepBranch.execute(
        **{**choice, "action": "drop", "lora_path": path, "save_name": ""}
    ).args
    assert Path(there).is_relative_to(comfy.folder("output", "ltx2_runs"))
    assert set(kept) | set(dropped) == set(lora)
    assert not set(kept) & set(dropped)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "connect `lora`, or write `lora_path`"),
        ({"lora_path": "nowhere"}, "there is no file nowhere"),
        ({"lora_path": "whole", "save_name": "../x"}, "cannot be a file name"),
        ({"lora_path": "whole", "save_name": "whole"}, "written over itself"),
    ],
)
def test_what_cannot_be_taken_apart_is_told_plainly(nodes, chain, comfy, given, message):
    shutil.copy2(chain.trained("av", "parts").args[2], comfy.folder("models", "loras") / "whole.safetensors")
    choice = {"action": "keep", "branches": "audio", "lora_path": "", "save_name": ""}
    with pytest.raises(RuntimeError, match=message):
        nodes.KeepBranch.execute(**choice | given)


def test_a_lora_on_the_wire_keeps_the_scale_and_the_version_of_its_file(nodes, comfy):
    tensors = {
        f"transformer.transformer_blocks.0.{part}.to_q.lora_{half}.weight": torch.ones(2, 2)
        for part in ("attn1", "audio_attn1")
        for half in "AB"
    }
    table = {"transformer.r": 2, "transformer.lora_alpha": 8}
    metadata = {"lora_adapter_metadata": json.dumps(table), "ss_ltx_version": "2.0"}
    save_file(tensors, comfy.folder("models", "loras") / "theirs.safetensors", metadata)
    kept = nodes.KeepBranch.execute(action="keep", branches="audio", lora_path="theirs", save_name="").args[0]
    assert set(kept) == {key for key in tensors if "audio" in key}
    file = load_lora_state(nodes.wire.lora_file(kept))
    assert [entry.scale for entry in file.entries.values()] == [4.0]
    assert file.version == "2.0"
    assert nodes.wire.lora_file(dict(kept)) != nodes.wire.lora_file(kept)  # the same tensors at another scale


def test_a_lora_file_that_changed_is_taken_apart_anew(nodes, comfy):
    path = comfy.folder("models", "loras") / "changing.safetensors"
    path.write_bytes(b"one")

    def mark(text):
        return nodes.KeepBranch.fingerprint_inputs(lora_path=text)

    before = mark("changing")
    assert mark("changing") == before
    path.write_bytes(b"another")
    assert mark("changing") != before
    assert mark("") == mark("")
    assert math.isnan(mark("gone"))
