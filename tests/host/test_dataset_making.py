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
    assert "no effect" not in comfy.texts[-1][1]
    shown(nodes, prepared=prepared, width=128, batch_size=2)
    assert "width = 128, batch_size = 2 have no effect: `prepared` is shown as" in comfy.texts[-1][1]
    with pytest.raises(RuntimeError, match="`dataset` and `prepared` are both connected"):
        shown(nodes, prepared=prepared, dataset=load(nodes))


def cut(nodes, **more):
    given = {"folder": "long", "path": "", "cut_at": "seconds", "seconds": 1.0, "min_seconds": 0.5, "max_seconds": 0.0}
    return nodes.CutLongVideos.execute(**{**given, "name": "cut", **more})


def test_what_comes_over_a_wire_is_looked_at_again_at_each_press(nodes):
    for ask in (
        lambda: nodes.CutLongVideos.fingerprint_inputs(),
        lambda: nodes.CaptionClips.fingerprint_inputs(),
        lambda: nodes.PreviewItem.fingerprint_inputs(),
        lambda: nodes.LoadTrainingClips.fingerprint_inputs(folder=NO_FOLDER, path=None),
    ):
        assert (ask(),) != (ask(),), "one and the same NaN equals itself inside a tuple, and ComfyUI compares those"


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


NONE = "(none)"


def caption(nodes, **more):
    given = {"folder": "clips", "path": "", "model": NONE, "whisper": NONE, "speaker": "ohwx", "prompt": ""}
    return nodes.CaptionClips.execute(**{**given, "overwrite": False, **more})


@pytest.fixture
def listeners(comfy):
    tiny_listeners.make_describer(comfy.folder("models", "LLM") / "eye")
    tiny_listeners.make_whisper(comfy.folder("models", "LLM") / "ear")
    (comfy.folder("models", "text_encoders", "gemma") / "config.json").write_text('{"model_type": "gemma3_text"}')
    (comfy.folder("models", "LLM", "broken") / "config.json").write_text("[")


def test_the_models_that_are_there_are_the_choices(nodes, listeners):
    choices = {shown.id: shown.options.get("options") for shown in nodes.CaptionClips.define_schema().inputs}
    assert choices["model"] == [NONE, "LLM/eye"]
    assert choices["whisper"] == [NONE, "LLM/ear"]


def test_captions_by_models_below_the_models_folder(nodes, comfy, clips, listeners):
    (clips / "b.txt").unlink()
    elsewhere = str(comfy.base / "models" / "LLM" / "eye")
    for named in ({"model": "LLM/eye"}, {"model_path": elsewhere}):
        folder, summary = caption(nodes, whisper="LLM/ear", frames=2, prefix="film.", **named).args
        assert folder == str(clips)
    assert "0 captions written, 3 were there" in summary
    assert (clips / "b.txt").read_text().startswith("film. ")
    assert (clips / "a.txt").read_text() == "a square crosses"
    with pytest.raises(RuntimeError, match="Press R, and choose"):
        caption(nodes, model="LLM/nowhere")
    with pytest.raises(RuntimeError, match=r"holds no config\.json"):
        caption(nodes, model_path=str(comfy.base))


def test_captions_by_hand_are_taken_as_they_are(nodes, comfy, clips, caplog):
    assert "3 files have their captions" in caption(nodes).args[1]
    given = {"prompt": "Who?", "frames": 2, "prefix": "film.", "overwrite": True}
    caption(nodes, **given)
    assert "prompt = Who? has no effect: nothing is chosen in model." in caplog.text
    assert "prefix = film. has no effect: nothing is chosen in model or whisper." in caplog.text
    for told in ("frames = 2 has no effect", "speaker = ohwx has no effect", "overwrite has no effect"):
        assert told in caplog.text
    caplog.clear()
    caption(nodes, speaker="A voice")  # as it is
    assert "has no effect" not in caplog.text
    (clips / "b.txt").unlink()
    with pytest.raises(RuntimeError, match=r"1 of 3 files in .* no caption \(b\.mp4\), and no model is chosen"):
        caption(nodes)


def test_captions_are_written_anew_once_and_not_at_each_press(nodes, clips, listeners):
    given = {"model": "LLM/eye", "overwrite": True, "frames": 1}
    assert "3 captions written" in caption(nodes, **given).args[1]
    (clips / "a.txt").write_text("corrected by hand")
    assert "0 captions written" in caption(nodes, **given).args[1]
    assert (clips / "a.txt").read_text() == "corrected by hand"
    assert "3 captions written" in caption(nodes, **given, prefix="film.").args[1]


def test_what_goes_wrong_is_said_in_the_words_of_the_node(nodes, comfy, caplog):
    media.write_video(comfy.folder("input", "long") / "film.mp4", media.moving_square(60, 96, 64))
    cut(nodes)
    with pytest.raises(RuntimeError, match=r"Choose another name, or delete"):
        cut(nodes, seconds=0.7)
    with pytest.raises(RuntimeError, match=r"^min_seconds: 3 s is more than"):
        cut(nodes, name="other", min_seconds=3.0)
    with pytest.raises(RuntimeError, match=r"(?s)Nothing was cut.*shortest clip wanted \(min_seconds\)"):
        cut(nodes, name="short", seconds=9.0, min_seconds=8.0)
    with pytest.raises(RuntimeError, match=r"seconds is 1, and max_seconds is 0\.3: each piece would be longer"):
        cut(nodes, name="long", max_seconds=0.3)
    assert cut(nodes, name="even", max_seconds=1.0).args[1] == 2
    assert "max_seconds = 1 has no effect: no piece of 1 seconds is longer." in caplog.text
    for seconds in (3.0, 5.0):
        speech = {"name": f"speech {seconds:g}", "cut_at": "pauses of speech", "seconds": seconds, "min_seconds": 0.5}
        with pytest.raises(RuntimeError):  # it has no sound
            cut(nodes, **speech)
        assert caplog.text.count("seconds = 3 has no effect: cut_at is pauses of speech.") == 1
    ways = {cut(nodes, name="", seconds=length).args[0] for length in (0.6, 0.7)}
    assert len(ways) == 2, "each way to cut has a folder"
    assert not any("--" in text for _, text in comfy.texts)


def test_a_recording_is_seen_as_a_picture_of_its_sound(nodes, comfy):
    media.write_sound(comfy.folder("input", "voice") / "v.wav", media.tone(2.0, 440.0, 16000), 16000, caption="a tone")
    whole = {"cut_at_pauses": False, "min_seconds": 2.0, "max_seconds": 12.0}
    voice = {"speaker_word": "ohwx", "normalise": False, **whole}
    dataset = nodes.LoadTrainingAudio.execute(folder="voice", path="", **voice).args[0]
    answer = shown(nodes, dataset=dataset)
    assert "no video" in answer.args[0].message
    assert media.pitch(answer.args[1]["waveform"][0].numpy(), 16000) == pytest.approx(440, abs=5)
    (seen,) = answer.ui["images"]
    assert seen["filename"].endswith(".sound.png")
    assert (comfy.base / "output" / seen["subfolder"] / seen["filename"]).is_file()


def test_text_in_a_node_is_not_html(nodes, comfy):
    nodes.host.ComfyEvents("7").finish("finished", "a <img src=x onerror=run()> [[link|javascript:run()]] & more\nend")
    assert comfy.texts == [("7", "a \u2039img src=x onerror=run()\u203a [ [link|javascript:run()]] & more  \nend")]
