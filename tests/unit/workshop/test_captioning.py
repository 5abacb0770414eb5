"""Captions by local models: what is asked and written, what is left alone, what a stopped run takes up again."""

from __future__ import annotations

import json
import shutil

import media
import numpy as np
import pytest
import tiny_listeners
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.cli import main
from ltx2_train.errors import ConfigError, DataError, Stopped
from ltx2_train.events import Events
from ltx2_train.media.video import probe_media
from ltx2_train.workshop import captioning
from ltx2_train.workshop.caption_models import Describer, Listener, clean
from ltx2_train.workshop.captioning import caption_media, joined_caption, sampled

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def describer(tmp_path_factory):
    return tiny_listeners.make_describer(tmp_path_factory.mktemp("describer"))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return tiny_listeners.make_whisper(tmp_path_factory.mktemp("whisper"))


class Made:
    """Stands in for both models; says what it was given."""

    open = 0

    def __init__(self, folder, device, events):
        assert not Made.open, "two models in memory"
        Made.open += 1
        self.rate, self.asked, self.heard = 16000, [], []
        Made.last[folder.name] = self

    def __call__(self, given, prompt=None, longest=None):
        if prompt is None:
            self.heard.append(given)
            return f"{len(given) / 16000:.1f} seconds"
        self.asked.append((given, prompt))
        return f"{len(given)} frames {given.shape[2]}x{given.shape[1]}."

    def close(self):
        Made.open -= 1


class Said(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


@pytest.fixture
def made(monkeypatch):
    Made.open, Made.last = 0, {}
    monkeypatch.setattr(captioning, "Describer", Made)
    monkeypatch.setattr(captioning, "Listener", Made)
    return Made.last


@pytest.fixture
def folder(tmp_path):
    """A clip with sound, one without, a picture and a recording."""
    path = tmp_path / "clips"
    media.write_video(path / "a.mp4", media.moving_square(25, 64, 48), sound=media.tone(1.0))
    media.write_video(path / "b.mp4", media.moving_square(25, 64, 48))
    media.write_image(path / "c.png", 80, 60, caption=None)
    media.write_sound(path / "d.wav", media.tone(2.0))
    (path / "notes.md").write_text("not media")
    return path


def texts(folder):
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def test_each_medium_gets_what_is_seen_and_said(folder, made):
    report = caption_media(folder, "see", whisper="hear", prefix=" ohwx,", frames=4)
    assert texts(folder) == {
        "a": 'ohwx, 4 frames 64x48. A voice says: "1.0 seconds"\n',
        "b": "ohwx, 4 frames 64x48.\n",
        "c": "ohwx, 1 frames 80x60.\n",
        "d": 'ohwx, A voice says: "2.0 seconds"\n',
    }
    assert report.written == tuple(folder / f"{name}.txt" for name in "abcd")
    assert (report.kept, report.failed) == (0, ())
    assert '  b.txt: "ohwx, 4 frames 64x48."' in report.text()
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []
    prompts = [prompt for _, prompt in made["see"].asked]
    assert prompts[0].startswith(captioning.IN_ORDER)
    assert prompts[2] == captioning.PROMPT
    assert media.pitch(made["hear"].heard[1], 16000) == pytest.approx(440, abs=1)
    assert Made.open == 0


def test_the_refusal_of_a_model_is_told_behind_a_prefix(folder, made, monkeypatch):
    monkeypatch.setattr(captioning, "_describe", lambda *_: "I cannot describe this video.")
    told = Said()
    caption_media(folder, "see", prefix="ohwx,", events=told)
    assert "a.txt: the caption looks like the refusal of a captioner; write the caption." in told.texts


def test_a_caption_that_is_there_is_not_touched_unless_asked(folder, made):
    (folder / "a.txt").write_text("by hand")
    (folder / "c.txt").write_text("")
    report = caption_media(folder, "see", whisper="hear")
    assert (len(report.written), report.kept) == (2, 2)
    assert texts(folder)["a"] == "by hand"
    assert texts(folder)["c"] == ""
    report = caption_media(folder, "see", prompt="Who?", overwrite=True)
    assert texts(folder)["a"] == "8 frames 64x48.\n"
    assert {prompt for _, prompt in made["see"].asked} == {"Who?"}
    assert [path.name for path, _ in report.failed] == ["d.wav"]
    assert "needs --whisper" in report.failed[0][1]


def test_a_caption_that_a_dataset_would_read_counts_whatever_the_case_of_its_name(folder, made):
    (folder / "a.TXT").write_text("by hand")
    (folder / "B.txt").write_text("by hand")
    (folder / "c.txt").mkdir()
    (folder / "._d.txt").write_text("of a Mac")
    report = caption_media(folder, "see", whisper="hear")
    assert [path.name for path in report.written] == ["d.txt"]
    assert report.kept == 2
    assert [(path.suffix, why.split(": ", 1)[1]) for path, why in report.failed] == [
        (next(folder.glob("c.[!t]*")).suffix, "c.txt is a folder, not a file. Move it away.")
    ]
    report = caption_media(folder, "see", whisper="hear", overwrite=True)
    assert sorted(path.name for path in report.written) == ["B.txt", "a.TXT", "d.txt"]
    assert not (folder / "a.txt").exists()


def test_frames_are_spread_over_the_clip_and_scaled_down(tmp_path):
    info = probe_media(media.write_video(tmp_path / "a.mp4", media.grey_levels(20, 1600, 48)))
    shown = sampled(info, 4)
    assert media.numbers(shown) == [2, 7, 12, 17]
    assert shown.shape == (4, 23, 768, 3)
    assert len(sampled(info, 50)) == 20


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stopped_run_goes_on_and_hears_nothing_twice(folder, made, after):
    class StopAt(Events):
        def progress(self, done, total, text=""):
            self.written = len(list(folder.glob("*.txt")))

        def should_stop(self):
            return getattr(self, "written", 0) >= after

    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(Stopped):
        caption_media(folder, "see", whisper="hear", events=StopAt())
    assert len(texts(folder)) == after
    assert Made.open == 0
    made.clear()
    report = caption_media(folder, "see", whisper="hear")
    assert (len(report.written), report.kept) == (4 - after, after)
    assert "hear" not in made
    assert len(texts(folder)) == 4


def test_a_stopped_overwriting_run_goes_on(folder, made):
    for name in "abcd":
        (folder / f"{name}.txt").write_text("old")

    class StopAt(Events):
        def should_stop(self):
            return texts(folder)["a"] != "old"

    with pytest.raises(Stopped):
        caption_media(folder, "see", whisper="hear", overwrite=True, events=StopAt())
    assert len(caption_media(folder, "see", whisper="hear", overwrite=True).written) == 3
    assert "old" not in texts(folder).values()
    assert len(caption_media(folder, "see", whisper="hear", overwrite=True).written) == 4


def test_notes_of_other_settings_or_half_written_ones_are_not_used(folder, made):
    settings = dict.fromkeys(("model", "whisper", "prompt", "prefix", "frames"), "other")
    for text in ("{", json.dumps({"settings": settings, "speech": {"a.mp4": "wrong"}, "written": []})):
        (folder / captioning.NOTES).write_text(text)
        caption_media(folder, "see", whisper="hear", overwrite=True)
        assert '"1.0 seconds"' in texts(folder)["a"]


def test_one_bad_clip_is_named_and_the_others_go_on(folder, made):
    (folder / "bad.mp4").write_bytes(b"no video")
    media.truncate(folder / "a.mp4")
    media.write_sound(folder / "quiet.wav", np.zeros((1, 48000), np.float32))
    told = []

    class Told(Events):
        def message(self, text, level="info"):
            told.append((level, text))

    report = caption_media(folder, "see", whisper="hear", events=Told())
    assert sorted(path.name for path, _ in report.failed) == ["a.mp4", "bad.mp4", "quiet.wav"]
    assert sorted(texts(folder)) == ["b", "c", "d"]
    assert [level for level, _ in told] == ["warning"] * 4
    assert told.pop(0)[1].endswith("not used here: notes.md.")
    assert "no speech was heard" in report.text()


def test_of_two_media_with_one_caption_the_clip_counts(folder, made):
    media.write_sound(folder / "a.flac", media.tone(3.0), codec="flac")
    media.write_image(folder / "b.png", 80, 60, caption=None)
    media.write_sound(folder / "c.wav", media.tone(1.0))
    said = Said()
    report = caption_media(folder, "see", whisper="hear", overwrite=True, events=said)
    assert len(report.written) == 4
    assert texts(folder)["a"].startswith("8 frames")
    assert "a.flac is taken for the sound of a.mp4, and is not listened to." in said.texts
    why = "its name without the ending is that of {}, so both would share one; rename one."
    assert [text.split("clips/")[1] for _, text in report.failed] == [
        f"b.png gets no caption: {why.format('b.mp4')}",
        f"c.wav gets no caption: {why.format('c.png')}",
    ]


def test_files_of_kinds_that_are_not_known_are_told(folder, made):
    for name in ("old.tiff", "a.mpo", "film.h264", "list.json", "Thumbs.db"):
        (folder / name).touch()
    said = Said()
    caption_media(folder, "see", whisper="hear", events=said)
    assert said.texts[0] == f"{folder} holds what is not used here: a.mpo, film.h264, notes.md, old.tiff."


def test_what_cannot_be_done_is_refused(folder, tmp_path, made):
    with pytest.raises(ConfigError, match="--model"):
        caption_media(folder)
    with pytest.raises(ConfigError, match="--frames"):
        caption_media(folder, "see", frames=0)
    (tmp_path / "none").mkdir()
    for missing in ("none", "gone"):
        with pytest.raises(DataError, match=missing):
            caption_media(tmp_path / missing, "see")


def test_the_parts_of_a_caption():
    assert joined_caption("", "A man.", 'he said "no"') == "A man. A voice says: \"he said 'no'\""
    assert joined_caption("  x ", "", "") == "x"
    assert clean("<think>well\nhm</think>\n A  man\nwalks. ") == "A man walks."
    assert clean("a man\x00\x1b walks\x7f") == "a man walks"  # what is written must be read again


def test_the_speaker_is_named_as_asked(folder, made):
    caption_media(folder, whisper="ear", speaker="anna")
    assert texts(folder)["d"].startswith('anna says: "')


def test_a_real_model_looks_at_the_pictures(describer):
    model = Describer(describer, CPU, Events())
    dark, light = np.zeros((2, 48, 64, 3), np.uint8), np.full((2, 48, 64, 3), 255, np.uint8)
    seen = [model(pictures, "What is seen?", 12) for pictures in (dark, light, dark)]
    assert seen[0] == seen[2] != seen[1]
    assert all(seen)
    assert "What is seen" not in seen[0]  # the answer alone
    model.close()
    assert model.model is None


def test_a_real_whisper_listens(whisper):
    model = Listener(whisper, CPU, Events())
    assert model.rate == 16000
    said = [model(media.tone(1.0, hz, rate=16000)[0]) for hz in (300, 3000, 300)]
    assert said[0] == said[2]
    assert said[0]
    assert not any("<|" in text for text in said)
    model.close()


def test_a_stop_is_heard_while_a_model_speaks(describer):
    class StopLater(Events):
        asked = 0

        def should_stop(self):
            self.asked += 1
            return self.asked >= 3

    events = StopLater()
    with pytest.raises(Stopped):
        Describer(describer, CPU, events)(np.zeros((1, 48, 64, 3), np.uint8), "What?", 300)
    assert events.asked < 6


def test_a_folder_that_is_no_such_model_is_named(folder, describer, whisper, tmp_path):
    def refused(**models):
        with pytest.raises(ConfigError) as error:
            caption_media(folder, **models, device="cpu")
        return str(error.value)

    assert "is not a folder" in refused(model=tmp_path / "gone")
    assert "no config.json" in refused(model=folder)
    assert "--model" in refused(model=whisper)
    assert "--whisper" in refused(whisper=describer)
    bare = tiny_listeners.make_describer(tmp_path / "bare", template=None)
    assert "no chat template" in refused(model=bare)
    weights = load_file(bare / "model.safetensors")
    lost = [weights.pop(name) for name in list(weights) if "up_proj" in name]
    save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks {len(lost)} weights of its model, the first is model." in refused(model=bare)
    whole = (whisper / "model.safetensors").read_bytes()
    shutil.copytree(whisper, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[:-100])
    assert "cut/model.safetensors is damaged or still downloading" in refused(whisper=tmp_path / "cut")
    (bare / "model.safetensors").unlink()
    assert "cannot be loaded" in refused(model=bare)
    assert not texts(folder)


def test_the_command_with_real_models(folder, describer, whisper, capsys):
    command = ["data", "caption", str(folder), "--model", str(describer), "--whisper", str(whisper), "--device", "cpu"]
    assert main([*command, "--prefix", "ohwx,", "--frames", "2", "--prompt", "What?"]) == 0
    assert "4 captions written" in capsys.readouterr().out
    assert all(text.startswith("ohwx, ") for text in texts(folder).values())
    assert "A voice says:" in texts(folder)["a"]
    before = texts(folder)
    assert main(command) == 0
    assert "0 captions written, 4 were there" in capsys.readouterr().out
    assert texts(folder) == before
    (folder / "bad.mp4").write_bytes(b"x")
    assert main(command) == 1


@pytest.mark.parametrize(
    ("given", "model", "needed"),
    [
        (["--prompt", "What?"], "whisper", "--model"),
        (["--frames", "3"], "whisper", "--model"),
        (["--speaker", "anna"], "model", "--whisper"),
    ],
)
def test_what_no_model_would_use_is_refused(folder, given, model, needed, capsys):
    before = texts(folder)
    assert main(["data", "caption", str(folder), f"--{model}", "none", *given]) == 2
    assert f"{given[0]} counts with {needed} alone" in capsys.readouterr().err
    assert texts(folder) == before


@pytest.mark.parametrize("option", ["speaker", "prompt"])
def test_an_empty_speaker_or_prompt_is_refused(tmp_path, option):
    with pytest.raises(ConfigError, match=f"--{option} is empty"):
        caption_media(tmp_path, tmp_path, whisper=tmp_path, **{option: " "})


def test_a_speaker_is_needed_where_something_is_heard_alone(tmp_path):
    """A node always sends its widget, whether or not a Whisper is chosen."""
    with pytest.raises(DataError):  # an empty folder, which is looked at after the words
        caption_media(tmp_path, tmp_path, speaker="")
