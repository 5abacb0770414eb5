"""The nodes that show a sample, cut films and write captions, on the pretended ComfyUI."""

from __future__ import annotations

from pathlib import Path

import media
import numpy as np
import pytest
import tiny_listeners
import torch

SHAPE = {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head", "buckets": True}
NO_FOLDER = "(folder from the path below)"


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture
def clips(comfy):
    folder = comfy.folder("input", "clips")
    media.write_captioned(folder / "a.mp4", media.moving_square(30, 96, 64), "a square crosses")
    media.write_video(folder / "b.mp4", media.moving_square(30, 96, 64)[:, ::-1], sound=media.tone(1.2))
    (folder / "b.txt").write_text("another one returns")
    media.write_image(folder / "p.png", caption="a picture")
    return folder


def load(nodes, folder="clips", **more):
    given = {"folder": folder, "path": "", "trigger_word": "ohwx", "fps": 25.0, **more}
    return nodes.LoadTrainingClips.execute(**given).args[0]


def shown(nodes, **more):
    return nodes.PreviewItem.execute(**{"item": "", "decode": False, **SHAPE, **more})


def test_preview_shows_the_sample_as_trained(nodes, comfy, clips):
    answer = shown(nodes, dataset=load(nodes), item="b.mp4")
    video, audio, caption, path = answer.args
    assert caption == "ohwx, another one returns"
    assert video.file == path
    assert media.pitch(audio["waveform"][0].numpy(), audio["sample_rate"]) == pytest.approx(440, abs=5)
    assert answer.ui["images"][0]["filename"] == Path(path).name
    first = shown(nodes, dataset=load(nodes)).args
    assert first[2] == "ohwx, a square crosses"
    assert "has no sound" in first[1].message
    assert shown(nodes, dataset=load(nodes), width=96).args[3] != first[3], "the page would show the old one"
    assert "no video" in shown(nodes, dataset=load(nodes), item="p").args[0].message


def test_preview_says_what_it_lacks(nodes, clips):
    with pytest.raises(RuntimeError, match="prepared"):
        shown(nodes, dataset=load(nodes), decode=True)
    with pytest.raises(RuntimeError, match="Nothing to show"):
        shown(nodes)
    with pytest.raises(RuntimeError, match=r"a\.mp4"):
        shown(nodes, dataset=load(nodes), item="../../etc/passwd")


def test_preview_of_a_prepared_dataset_decodes_its_caches(nodes, comfy, tiny, clips):
    for source, kind in ((tiny.checkpoint, "checkpoints"), (tiny.text_encoder, "text_encoders")):
        (comfy.folder("models", kind) / f"{kind}.safetensors").symlink_to(source)
    base = nodes.LoadBaseModel.execute(
        checkpoint="checkpoints.safetensors", text_encoder="text_encoders.safetensors", precision="fp32", device="cpu"
    ).args[0]
    prepared = nodes.PrepareDataset.execute(model=base, dataset=load(nodes), **SHAPE).args[0]
    plain, decoded = shown(nodes, prepared=prepared), shown(nodes, prepared=prepared, decode=True)
    assert decoded.args[3].endswith("_decoded.mp4")
    assert plain.args[2] == decoded.args[2]


def cut(nodes, **more):
    given = {"folder": "long", "path": "", "cut_at": "seconds", "seconds": 1.0, "min_seconds": 0.5, "max_seconds": 0.0}
    return nodes.CutLongVideos.execute(**{**given, "name": "cut", **more})


def test_cut_and_load_what_was_cut(nodes, comfy):
    source = comfy.folder("input", "long") / "film.mp4"
    quiet = np.zeros((1, 19200), np.float32)
    media.write_video(source, media.moving_square(60, 96, 64), sound=np.concatenate([media.tone(2), quiet], axis=1))
    folder, count, summary = cut(nodes).args
    assert count == 2
    assert folder == str(comfy.base / "output" / "ltx2_runs" / "clips" / "cut")
    assert sorted(path.name for path in Path(folder).glob("*.mp4")) == ["film_0001.mp4", "film_0002.mp4"]
    assert "2 clips written" in summary
    again = cut(nodes).args
    assert (again[1], "2 clips were there" in again[2]) == (2, True)
    unnamed = {cut(nodes, name="").args[0], cut(nodes, name="", cut_at="pauses of speech", min_seconds=0.0).args[0]}
    assert len(unnamed) == 2
    assert load(nodes, NO_FOLDER, path=folder).count == 2
    with pytest.raises(RuntimeError, match="cut_at"):
        cut(nodes, cut_at="somewhere")


@pytest.mark.parametrize("name", ["../out", "a/../../b", "/tmp/x", "~/x", "..\\x", "C:\\x"])
def test_a_name_that_climbs_out_is_refused(nodes, comfy, name):
    media.write_video(comfy.folder("input", "long") / "film.mp4", media.moving_square(30, 96, 64))
    with pytest.raises(RuntimeError, match="leads out"):
        cut(nodes, name=name)
    with pytest.raises(RuntimeError, match="leads out"):
        cut(nodes, folder=name)
    with pytest.raises(RuntimeError, match="leads out"):
        load(nodes, name)
    assert not list(comfy.base.rglob("*_0001*"))


def caption(nodes, **more):
    given = {"folder": "clips", "path": "", "model": "", "whisper": "", "speaker": "ohwx", "prompt": ""}
    return nodes.CaptionClips.execute(**{**given, "overwrite": False, **more})


def test_captions_by_models_below_the_models_folder(nodes, comfy, clips):
    tiny_listeners.make_describer(comfy.folder("models", "LLM") / "eye")
    tiny_listeners.make_whisper(comfy.folder("models", "LLM") / "ear")
    (clips / "b.txt").unlink()
    for model, whisper in (("LLM/eye", "ear"), ("eye", "LLM/ear")):
        folder, summary = caption(nodes, model=model, whisper=whisper, frames=2, prefix="film.").args
        assert folder == str(clips)
    assert "0 captions written, 3 were there" in summary
    assert (clips / "b.txt").read_text().startswith("film. ")
    assert (clips / "a.txt").read_text() == "a square crosses"
    with pytest.raises(RuntimeError, match="Name a model"):
        caption(nodes)
    with pytest.raises(RuntimeError, match="nowhere"):
        caption(nodes, model="nowhere", overwrite=True)
