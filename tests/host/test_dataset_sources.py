"""Datasets that are combined, paired or made from lists, on the pretended ComfyUI, up to their caches."""

from __future__ import annotations

import math
import re
import shutil
import types
from fractions import Fraction
from pathlib import Path

import fake_comfy
import media
import numpy as np
import pytest
import torch
from PIL import Image

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.media.sound_media import read_sound
from ltx2_train.media.video import probe_media
from ltx2_train.training.held_out import require_validation

SIZE = {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head", "buckets": False}
SHARES = {"share_1": 1, "share_2": 1, "share_3": 1, "share_4": 1}
VOICE = {"normalise": True, "cut_at_pauses": False, "min_seconds": 2.0, "max_seconds": 12.0}


def clip(path: Path, caption: str = "a square moves", frames: int = 30) -> Path:
    return media.write_captioned(path, media.moving_square(frames, 64, 64), caption)


@pytest.fixture
def graph(nodes, comfy, tiny):
    """Runs single nodes with the widgets that matter."""

    class Graph:
        def clips(self, folder, **more):
            given = {"folder": folder, "path": "", "trigger_word": "", "fps": 25.0, **more}
            return nodes.LoadTrainingClips.execute(**given).args[0]

        def voice(self, folder):
            return nodes.LoadTrainingAudio.execute(folder=folder, path="", speaker_word="", **VOICE).args[0]

        def combined(self, *parts, **shares):
            given = {f"dataset_{number}": part for number, part in enumerate(parts, 1)}
            return nodes.CombineDatasets.execute(**given, **{**SHARES, **shares}).args

        def pairs(self, **more):
            given = {"folder": "after", "path": "", "reference_folder": "before", "reference_path": ""}
            given |= {"trigger_word": "", "fps": 25.0, "reference_frames": 1, "reference_downscale": 1, **more}
            return nodes.LoadTrainingPairs.execute(**given).args

        def lists(self, captions, name="made", batches="pictures", **more):
            given = {"trigger_word": ["ohwx"], "fps": [25.0], **more}
            return nodes.DatasetFromLists.execute(captions=captions, name=[name], batches=[batches], **given).args

        def prepared(self, dataset, mode="video", **more):
            for kind, file in (("checkpoints", tiny.checkpoint), ("text_encoders", tiny.text_encoder)):
                target = comfy.folder("models", kind) / "tiny.safetensors"
                if not target.exists():
                    shutil.copy2(file, target)
            files = {"checkpoint": "tiny.safetensors", "text_encoder": "tiny.safetensors", "precision": "fp32"}
            model = nodes.LoadBaseModel.execute(**files, device="cpu", mode=mode).args[0]
            return nodes.PrepareDataset.execute(model=model, dataset=dataset, **{**SIZE, **more}).args

    with torch.inference_mode():  # as in ComfyUI
        yield Graph()


# ---------------------------------------------------------------------------------------------- Combine Datasets


def test_a_combined_dataset_is_cached_in_folders_that_do_not_meet(graph, comfy):
    # the same file name in each folder, and one folder twice
    clip(comfy.folder("input", "anna") / "clip.mp4", "a yellow square")
    clip(comfy.folder("input", "bert") / "clip.mp4", "another square")
    anna, bert = graph.clips("anna", repeats=2), graph.clips("bert")
    dataset, count = graph.combined(anna, bert, graph.clips("anna", trigger_word="ohwx"), share_1=3, share_2=5)
    assert (count, repr(dataset)) == (3, "<3 clips in anna + bert + anna>")
    assert comfy.texts[-1][1] == ("1 clips in anna x 3: 50% | 1 clips in bert x 5: 42% | 1 clips in anna x 1: 8%"), (
        "anna is repeated twice by itself"
    )
    prepared, summary = graph.prepared(dataset)
    assert "3 made" in summary
    config = DatasetConfig.read(prepared.config)
    assert [entry.num_repeats for entry in config.datasets] == [6, 5, 1]
    assert [entry.source.name for entry in config.datasets] == ["anna", "bert", "anna"]
    for entry in config.datasets:
        assert list(entry.caches.glob("clip*.safetensors")), entry.caches
    other, summary = graph.prepared(graph.combined(anna, bert, graph.clips("anna", trigger_word="ohwx"))[0])
    assert set(re.findall(r"(\d+) made", summary)) == {"0"}, "another share makes no cache anew"
    assert other.config != prepared.config


def test_datasets_are_combined_again_and_gaps_are_left_out(nodes, graph, comfy):
    clip(comfy.folder("input", "anna") / "clip.mp4")
    media.write_sound(comfy.folder("input", "voice") / "a.wav", media.tone(1.0), caption="a tone")
    inner, _ = graph.combined(graph.clips("anna"), share_1=2)
    outer = nodes.CombineDatasets.execute(
        dataset_1=inner, dataset_4=graph.voice("voice"), **{**SHARES, "share_1": 3, "share_4": 7}
    ).args[0]
    assert repr(outer) == "<2 files in anna + voice>"
    with pytest.raises(RuntimeError, match="share_3 is 5, and nothing is connected to `dataset_3`"):
        graph.combined(inner, share_3=5)
    assert [entry["num_repeats"] for entry in outer.entries] == [6, 7]
    assert comfy.texts[-1][1] == "1 clips in anna x 3: 46% | 1 recordings in voice x 7: 54%"
    with pytest.raises(RuntimeError, match="voice holds recordings, but the base is set to train video alone"):
        graph.prepared(outer)
    prepared, _ = graph.prepared(outer, mode="av")
    assert [entry.kind for entry in DatasetConfig.read(prepared.config).datasets] == ["video", "audio"]


def test_clips_that_are_held_out_stand_apart_in_the_dataset_file(nodes, graph, comfy, monkeypatch):
    clip(comfy.folder("input", "anna") / "clip.mp4", "a yellow square")
    clip(comfy.folder("input", "held") / "other.mp4", "another square", frames=20)
    report = types.SimpleNamespace(summary=lambda: "", kinds={}, left_out=[], files=())
    monkeypatch.setattr(nodes.data.core, "build_caches", lambda run, events, trains: report)
    prepared, _ = graph.prepared(graph.clips("anna"), validation=graph.clips("held"))
    config = DatasetConfig.read(prepared.config)
    assert [entry.source.name for entry in config.datasets] == ["anna"]
    assert [entry.source.name for entry in config.validation_datasets] == ["held"]
    assert len({entry.caches for entry in (*config.datasets, *config.validation_datasets)}) == 2
    without = config.model_copy(update={"validation_datasets": ()})
    with pytest.raises(ConfigError) as error:
        require_validation(nodes.data.core.make_run({"validation": {"every": 1}}), without)
    said = nodes.words.in_widget_words(str(error.value))
    assert "no clips to measure on. Connect some to `validation` of Prepare Dataset" in said
    assert said.count("[[") == 1, "the dataset file is named, for whoever has one"


@pytest.mark.slow
def test_clips_that_are_held_out_are_cached_and_measured(nodes, graph, comfy, tmp_path):
    clip(comfy.folder("input", "anna") / "clip.mp4", "a yellow square")
    clip(comfy.folder("input", "held") / "other.mp4", "another square", frames=20)
    prepared, summary = graph.prepared(graph.clips("anna"), validation=graph.clips("held"))
    assert "2 made" in summary
    run = {
        "run": {"name": "v", "folder": str(tmp_path)},
        "train": {"steps": 1},
        "lora": {"rank": 2},
        "sample": {"every": 0, "at_start": False},
        "validation": {"every": 1, "levels": 1},
    }
    core = nodes.data.core
    with torch.inference_mode(False), torch.enable_grad():
        core.train(core.make_run({**prepared.tables, **run}, prepared.config.parent))
    rows = core.read_rows(tmp_path / "v" / "metrics.jsonl")
    assert math.isfinite(rows[-1]["val_loss"])


# ------------------------------------------------------------------------------------------- Load Training Pairs


def test_pairs_are_cached_with_their_references(graph, comfy):
    clip(comfy.folder("input", "after") / "a.mp4")
    clip(comfy.folder("input", "after") / "b.mp4")
    clip(comfy.folder("input", "after") / "alone.mp4")
    media.write_image(comfy.folder("input", "before") / "a.png", 64, 64, None)
    media.write_video(comfy.folder("input", "before") / "b.mp4", media.moving_square(30, 64, 64)[:, :, ::-1])
    dataset, count = graph.pairs(reference_frames=9, reference_downscale=2)
    assert (count, repr(dataset)) == (2, "<2 pairs in after>")
    assert comfy.texts[-1][1] == "2 pairs in after | without a reference: alone.mp4"
    prepared, summary = graph.prepared(dataset)
    assert "alone.mp4" in summary
    (entry,) = DatasetConfig.read(prepared.config).datasets
    assert (entry.reference_directory.name, entry.reference_frames, entry.reference_downscale) == ("before", 9, 2)
    assert len(list(entry.reference_caches().glob("*.safetensors"))) == 2
    plain = DatasetConfig.read(graph.prepared(graph.clips("after"))[0].config).datasets[0]
    assert plain.caches != entry.caches, "the same clips without references have caches of their own"


def test_pairs_that_cannot_be_are_refused_in_plain_words(nodes, graph, comfy):
    clip(comfy.folder("input", "after") / "a.mp4")
    media.write_image(comfy.folder("input", "before") / "other.png", 64, 64, None)
    with pytest.raises(RuntimeError, match=r"for a\.mp4 it is a\.png or a\.mp4"):
        graph.pairs()
    with pytest.raises(RuntimeError, match="Choose one in `reference_folder`, or write its path into `reference_path`"):
        graph.pairs(reference_folder="(folder from the path below)")
    media.write_image(comfy.folder("input", "before") / "a.png", 64, 64, None)
    with pytest.raises(RuntimeError, match=r"reference_frames: .*8n\+1"):
        graph.pairs(reference_frames=4)

    def mark(**more):
        given = {"folder": "after", "path": "", "reference_folder": "before", "reference_path": "", **more}
        return nodes.LoadTrainingPairs.fingerprint_inputs(**given)

    before = mark()
    assert mark() == before
    media.write_image(comfy.folder("input", "before") / "a.png", 32, 32, None)
    assert mark() != before
    assert math.isnan(mark(reference_path=None)), "it comes over a wire"


# -------------------------------------------------------------------------------------------- Dataset from Lists


class Video:
    """What a VIDEO wire carries that is no file, as far as a node may ask."""

    def get_components(self):
        images = torch.rand(30, 64, 64, 3, generator=torch.Generator().manual_seed(0))
        audio = {"waveform": torch.from_numpy(media.tone(1.2, channels=2))[None], "sample_rate": 48000}
        return types.SimpleNamespace(images=images, audio=audio, frame_rate=Fraction(25))


def test_lists_become_files_with_captions_and_are_prepared(graph, comfy):
    pictures = torch.rand(2, 64, 96, 3)
    audio = {"waveform": torch.from_numpy(media.tone(1.0, 440.0, 16000))[None], "sample_rate": 16000}
    captions = ["one", "two", "three", "four", "five"]
    dataset, count = graph.lists(
        captions, images=[pictures, torch.zeros(1, 32, 32, 3)], videos=[Video()], audios=[audio]
    )
    folder = comfy.folder("output", "ltx2_runs", "datasets", "made", "media")
    assert (count, repr(dataset)) == (5, "<5 clips in made>")
    names = ["made_0001.png", "made_0002.png", "made_0003.png", "made_0004.mp4", "made_0005.wav"]
    texts = [name.rsplit(".", 1)[0] + ".txt" for name in names]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names + texts)
    assert [(folder / name).read_text() for name in texts] == captions
    seen = np.asarray(Image.open(folder / names[1]))
    assert np.abs(seen / 255 - pictures[1].numpy()).max() <= 0.5 / 255 + 1e-6
    assert (probe_media(folder / names[3]).frames, probe_media(folder / names[3]).has_audio) == (30, True)
    heard = read_sound(folder / names[4])
    assert (heard.rate, heard.samples.shape) == (16000, (2, 16000))
    assert media.pitch(heard.samples, heard.rate) == pytest.approx(440, abs=1)
    prepared, _ = graph.prepared(dataset, mode="av")
    assert prepared.config.parent.name.startswith("made-")
    assert [entry.kind for entry in DatasetConfig.read(prepared.config).datasets] == ["image", "video", "audio"]


def test_writing_again_keeps_what_is_the_same_and_removes_what_is_gone(nodes, graph, comfy):
    pictures = torch.rand(3, 32, 32, 3)
    nodes.DatasetFromLists.fingerprint_inputs()
    graph.lists(["a\nb\nc"], images=[pictures])
    folder = comfy.folder("output", "ltx2_runs", "datasets", "made", "media")
    (folder / "own.txt").write_text("of another hand")
    stat = (folder / "made_0001.png").stat().st_mtime_ns
    graph.lists(["for both"], images=[torch.cat([pictures[:1], torch.rand(1, 32, 32, 3)])])
    assert (folder / "made_0001.png").stat().st_mtime_ns == stat
    assert (folder / "made_0002.txt").read_text() == "for both"
    assert not list(folder.glob("made_0003*"))
    assert (folder / "own.txt").is_file()
    mark = nodes.DatasetFromLists.fingerprint_inputs()
    (folder / "made_0001.png").unlink()
    assert nodes.DatasetFromLists.fingerprint_inputs() != mark, "a picture alone"
    graph.lists(["for both"], images=[pictures[:2]])
    mark = nodes.DatasetFromLists.fingerprint_inputs()
    shutil.rmtree(folder.parent)
    assert nodes.DatasetFromLists.fingerprint_inputs() != mark


def test_writing_is_counted_and_can_be_stopped(nodes, graph, comfy, monkeypatch):
    pictures = torch.rand(4, 32, 32, 3)
    folder = comfy.folder("output", "ltx2_runs", "datasets", "made", "media")

    written, write_video = [], nodes.lists.core.write_video

    def stops(path, frames, *more, **named):
        def until_stopped():
            for number, frame in enumerate(frames):
                comfy.interrupted = number == 10
                written.append(number)
                yield frame

        return write_video(path, until_stopped(), *more, **named)

    monkeypatch.setattr(nodes.lists.core, "write_video", stops, raising=False)
    with pytest.raises(fake_comfy.InterruptProcessingException):
        graph.lists(["all"], images=[pictures], videos=[Video(), Video()])
    assert not list(folder.glob("*.mp4"))
    assert written == list(range(11)), "within a video"
    assert (comfy.interrupted, comfy.polls_that_consume) == (False, 1)
    assert comfy.progress[-1][1] < comfy.progress[-1][2] == 6
    names = [f"made_{number:04d}" for number in range(1, 5)]
    assert sorted(path.stem for path in folder.glob("*.txt")) == names, "each file that is there has its caption"
    assert not list(folder.parent.glob(".writing*"))
    graph.lists(["all"], images=[pictures[:1]])
    assert sorted(path.name for path in folder.iterdir()) == ["made_0001.png", "made_0001.txt"], "nothing is left over"
    assert comfy.progress[-1][1:3] == (1, 1)


def test_a_batch_can_be_a_clip(graph, comfy):
    frames = torch.from_numpy(media.moving_square(10, 65, 49)).float() / 255
    _, count = graph.lists(["a square"], batches="clips", images=[frames], fps=[10.0])
    info = probe_media(comfy.folder("output", "ltx2_runs", "datasets", "made", "media") / "made_0001.mp4")
    assert (count, info.frames, info.width, info.height, info.fps) == (1, 10, 64, 48, 10)


@pytest.mark.parametrize("name", ["../out", "..", "a/b", "a\\b", "/tmp/x", "C:x", "", "  ", "a."])
def test_a_name_that_climbs_out_is_refused(graph, comfy, name):
    with pytest.raises(RuntimeError, match="cannot be a folder's name"):
        graph.lists(["one"], name=name, images=[torch.zeros(1, 32, 32, 3)])
    assert not list(comfy.base.rglob("*.png"))


def test_captions_have_to_fit(graph, comfy):
    pictures = [torch.zeros(3, 32, 32, 3)]
    with pytest.raises(RuntimeError, match="3 media but 2 captions"):
        graph.lists(["one", "two"], images=pictures)
    with pytest.raises(RuntimeError, match="caption of medium 2 is empty"):
        graph.lists(["one", " ", "three"], images=pictures)
    with pytest.raises(RuntimeError, match="connect `images`, `videos` or `audios`"):
        graph.lists(["one"])
    assert not list(comfy.base.rglob("*.png"))
