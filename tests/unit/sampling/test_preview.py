"""The contact sheets and clips show exactly what the trainer is given."""

from __future__ import annotations

import media
import numpy as np
import pytest
from PIL import Image

from ltx2_train import load_run, preview_dataset, sample
from ltx2_train.cli import main
from ltx2_train.dataset.augment import read_clip
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import CacheError, ConfigError, DataError
from ltx2_train.events import Events
from ltx2_train.media import font
from ltx2_train.media.sound_media import probe_sound, read_sound
from ltx2_train.media.video import read_frames
from ltx2_train.sampling.preview import find_item
from ltx2_train.workshop import sheet


@pytest.fixture
def folder(tmp_path):
    media.write_captioned(tmp_path / "clips" / "wide.mp4", media.moving_square(40, 160, 64), "a wide clip")
    media.write_captioned(tmp_path / "clips" / "name with spaces ä.mp4", media.moving_square(40, 64, 96), "ein Käfer")
    (tmp_path / "clips" / "broken.mp4").write_text("no video")
    (tmp_path / "clips" / "broken.txt").write_text("broken")
    media.write_image(tmp_path / "clips" / "pic.png")
    media.write_sound(tmp_path / "voice" / "take.wav", media.tone(2), caption='anna says: "hi"')
    (tmp_path / "ds.toml").write_text(
        "[general]\nresolution = [64, 64]\nenable_bucket = true\ntarget_frames = [9]\nframe_extraction = 'uniform'\n"
        "frame_sample = 2\n[[datasets]]\nvideo_directory = 'clips'\ncache_directory = 'c1'\n"
        "[[datasets]]\nimage_directory = 'clips'\ncache_directory = 'c2'\n[[datasets]]\naudio_directory = 'voice'\n"
        "[[validation_datasets]]\nvideo_directory = 'nowhere'\n",
        encoding="utf-8",
    )
    return tmp_path


def test_every_sample_and_every_file_left_out_has_its_tile(folder):
    made = preview_dataset(folder / "ds.toml", folder / "out")
    (path,) = made.sheets
    page = Image.open(path).convert("RGB")
    width, height = sheet.TILE
    columns = 5
    bars = []
    for number in range(10):
        row, column = divmod(number, columns)
        spot = (sheet.GAP + column * (width + sheet.GAP) + 1, sheet.HEAD + row * (height + sheet.GAP) + 30)
        bars.append(page.getpixel(spot) if spot[1] < page.height else None)
    names = {colour: name for name, colour in sheet.COLOURS.items()}
    # broken.mp4, then four windows of two clips, a picture and a recording
    assert [names.get(bar) for bar in bars[:7]] == ["red", *(names[bar] for bar in bars[1:7])]
    assert all(bar in names for bar in bars[:7])
    assert all(bar not in names for bar in bars[7:])
    assert not made.report.ok


def test_a_tile_shows_the_cropped_frames_of_the_window(folder):
    config = DatasetConfig.read(folder / "ds.toml")
    item = plan_dataset(config.model_copy(update={"validation_datasets": ()})).items[-1 - 2]
    assert item.window.start == 31
    shown = sheet.sample_frames(item, item.dataset.entry, [0, 8])
    again = read_frames(item.source.media, [31, 39], (item.width, item.height))
    assert (shown == again).all()


def test_changes_at_caching_are_seen_too(folder):
    text = (folder / "ds.toml").read_text(encoding="utf-8")
    (folder / "ds.toml").write_text(text.replace("[general]", "[general]\nflip = true\ncolor_jitter = 0.3"), "utf-8")
    config = DatasetConfig.read(folder / "ds.toml").model_copy(update={"validation_datasets": ()})
    item = next(item for item in plan_dataset(config).items if item.flipped)
    shown = sheet.sample_frames(item, item.dataset.entry, list(range(9)))
    assert (shown == read_clip(item, item.dataset.entry)).all()
    plain = read_frames(item.source.media, item.picks, (item.width, item.height))
    assert np.abs(shown.astype(int) - plain).mean() > 5
    made = preview_dataset(folder / "ds.toml", folder / "out", item.latent_path.name)
    assert "~flip" in made.clip.name
    assert np.abs(read_frames(made.clip).astype(int) - shown).mean() < 4


def test_many_samples_go_on_to_another_page(folder, monkeypatch):
    monkeypatch.setattr(sheet, "ROWS", 1)
    made = preview_dataset(folder / "ds.toml", folder / "out")
    assert [path.name for path in made.sheets] == ["sheet_01.png", "sheet_02.png"]


def test_letters_that_the_font_lacks_do_not_become_boxes(monkeypatch):
    monkeypatch.setattr(font, "FONTS", ())
    font.load_font.cache_clear()
    try:
        assert font.drawable("K\u00e4fer \u732b") == "Kafer ?"
    finally:
        font.load_font.cache_clear()


def test_one_sample_is_the_very_clip_with_its_sound(folder):
    loud = media.tone(1.6, channels=2)
    media.write_video(folder / "clips" / "heard.mp4", media.moving_square(40, 160, 64), sound=loud)
    (folder / "clips" / "heard.txt").write_text("a wide clip with a tone")
    made = preview_dataset(folder / "ds.toml", folder / "out", "heard.mp4")
    assert made.clip.name == "heard_00000-009_0064x0064_ltx2.mp4"
    assert made.caption.read_text().strip() == "a wide clip with a tone"
    config = DatasetConfig.read(folder / "ds.toml").model_copy(update={"validation_datasets": ()})
    item = next(item for item in plan_dataset(config).items if item.source.path.name == "heard.mp4")
    wanted = read_frames(item.source.media, item.picks, (item.width, item.height))
    got = read_frames(made.clip)
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).mean() < 4
    assert probe_sound(made.clip).duration == pytest.approx(9 / 25, abs=0.03)
    sound = read_sound(made.clip, 0.0, 0.3)
    assert media.pitch(sound.samples, sound.rate) == pytest.approx(440, abs=3)
    later = preview_dataset(folder / "ds.toml", folder / "out", "heard_00031-009_0064x0064_ltx2")
    assert "00031" in later.clip.name


def test_a_picture_and_a_recording_have_files_of_their_kind(folder):
    picture = preview_dataset(folder / "ds.toml", folder / "out", "pic")
    assert (picture.clip.suffix, Image.open(picture.clip).size) == (".png", (64, 64))
    voice = preview_dataset(folder / "ds.toml", folder / "out", "take")
    assert voice.clip.suffix == ".wav"
    assert probe_sound(voice.clip).duration == pytest.approx(2.0, abs=0.01)


def test_a_name_that_is_not_there_is_answered_with_those_that_are(folder):
    with pytest.raises(DataError, match=r"wide\.mp4"):
        preview_dataset(folder / "ds.toml", folder / "out", "nothing")


def test_the_caches_are_decoded_beside_the_clip(sound_run_file):
    run = load_run(sound_run_file)
    folder = sound_run_file.parent
    with pytest.raises(ConfigError, match="--item"):
        preview_dataset(folder / "dataset.toml", folder / "out", run=run)
    made = preview_dataset(folder / "dataset.toml", folder / "out", "clip.mp4", run)
    assert made.decoded.name == "clip_00000-009_0064x0064_ltx2_decoded.mp4"
    assert read_frames(made.decoded).shape == read_frames(made.clip).shape == (9, 64, 64, 3)
    assert probe_sound(made.decoded).duration == pytest.approx(9 / 25, abs=0.03)
    text = (folder / "dataset.toml").read_text(encoding="utf-8")
    (folder / "dataset.toml").write_text(text.replace("[general]", "[general]\ncolor_jitter = 0.3"), encoding="utf-8")
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append((level, text))
    preview_dataset(folder / "dataset.toml", folder / "out", "clip.mp4", run, events)
    ((level, told),) = said
    assert level == "warning"
    assert "clip_00000-009_0064x0064_ltx2.safetensors is stale" in told
    assert "color_jitter changed (0.0 -> 0.3)" in told
    for path in (folder / "cache").glob("*_ltx2.safetensors"):
        path.unlink()
    with pytest.raises(CacheError, match="cache build"):
        preview_dataset(folder / "dataset.toml", folder / "out", "clip.mp4", run)


def test_the_command_prints_what_it_wrote(folder, capsys):
    assert main(["data", "preview", str(folder / "ds.toml"), "--out", str(folder / "out")]) == 0
    assert capsys.readouterr().out.strip().endswith("sheet_01.png")
    assert main(["data", "preview", str(folder / "ds.toml"), "--out", str(folder / "out"), "--item", "wide"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[0].endswith(".mp4")
    with pytest.raises(SystemExit):
        main(["data", "preview", str(folder / "ds.toml"), "--out", str(folder / "out"), "--item", " "])
    assert "--item is empty" in capsys.readouterr().err
    assert main(["data", "preview", str(folder / "ds.toml"), "--out", str(folder / "ds.toml")]) == 2
    shown = capsys.readouterr().err
    assert "ds.toml is a file, not a folder. Name a folder for the pictures" in shown
    assert "read" not in shown, "nothing was looked at"


def test_a_dataset_without_samples_is_said_to_be_one():
    with pytest.raises(DataError, match=r"no samples.*Check Dataset"):
        find_item([], "")


def test_a_name_is_found_as_it_is_written_and_tidied(tmp_path):
    for name in ("wolf.png", " fox.png"):
        media.write_image(tmp_path / "clips" / name, 64, 64)
    table = {"datasets": [{"image_directory": "clips", "resolution": 64}]}
    items = plan_dataset(DatasetConfig.from_table(table, tmp_path)).items
    for name in (" fox.png", " fox", "fox.png", "FOX"):
        assert find_item(items, name).source.path.name == " fox.png"
    assert find_item(items, " Wolf.png").source.path.name == "wolf.png"


def test_a_name_that_several_files_have_is_told_apart_by_their_folders(tmp_path):
    for name in ("x/a.png", "y/a.png", "y/b.png"):
        media.write_image(tmp_path / "clips" / name, 64, 64)
    table = {"datasets": [{"image_directory": "clips", "recursive": True, "resolution": 64}]}
    items = plan_dataset(DatasetConfig.from_table(table, tmp_path)).items
    for name, found in (("x/a.png", "x"), ("clips/y/a", "y"), ("y__a", "y"), ("Y/A.PNG", "y"), ("b.png", "y")):
        assert find_item(items, name).source.path.parent.name == found
    assert find_item(items, str(tmp_path / "clips/y/a.png")).source.path.parent.name == "y"
    for name in ("a.png", "a"):
        with pytest.raises(DataError, match=rf"^{name} could be any of x/a.png, y/a.png. Name one with its folder"):
            find_item(items, name)
    with pytest.raises(DataError, match=r"No sample is called zz/a.png. There are: x/a.png, y/a.png, b.png$"):
        find_item(items, "zz/a.png")


@pytest.mark.parametrize("out", ["clips", "voice", "clips/."])
def test_nothing_is_written_into_a_folder_of_media(folder, out):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError, match=r"--out: .* is datasets\[\d\]\.\w+_directory"):
        preview_dataset(folder / "ds.toml", folder / out, "pic")
    assert sorted(folder.rglob("*")) == before


def test_a_folder_inside_one_of_media_counts_where_it_would_be_read(folder):
    text = (folder / "ds.toml").read_text(encoding="utf-8")
    preview_dataset(folder / "ds.toml", folder / "clips" / "seen", "pic")
    (folder / "ds.toml").write_text(text.replace("[general]", "[general]\nrecursive = true"), encoding="utf-8")
    with pytest.raises(ConfigError, match="trained on"):
        preview_dataset(folder / "ds.toml", folder / "clips" / "other", "pic")


def test_samples_are_not_drawn_into_a_folder_of_media(run_file):
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.video_directory"):
        sample(load_run(run_file), None, run_file.parent / "clips", prompts=["a ball"])
    assert {path.suffix for path in (run_file.parent / "clips").iterdir()} == {".mp4", ".txt"}


def test_a_recording_is_shown_as_far_as_it_is_trained_on(tmp_path):
    media.write_sound(tmp_path / "v" / "w.wav", media.tone(3.0), caption="a tone")
    entry = {"audio_directory": "v", "audio_bucket_strategy": "truncate", "audio_bucket_interval": 2}
    for more, seconds in ({}, 2.0), ({"audio_bucket_strategy": "pad"}, 3.0):
        config = DatasetConfig.from_table({"datasets": [{**entry, **more}]}, tmp_path)
        made = preview_dataset(config, tmp_path / "out", "w.wav")
        assert probe_sound(made.clip).duration == pytest.approx(seconds, abs=0.05)
