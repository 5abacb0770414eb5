"""Each file of each folder and each row of each list is counted once, and what nobody uses is named somewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from media import moving_square, tone, write_captioned, write_image, write_sound

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.events import Events
from ltx2_train.workshop.check import check_dataset

STRAYS = (
    ".hidden.mp4", "._a.mp4", ".DS_Store", "Thumbs.db", "README.md", "LICENSE", "settings.toml", "noending", "a.json",
    "a.npz", "c.TXT", "lonely.txt", "x.heic", "x.gif", "c.mp4.crdownload", "a.mp4.txt", "c.srt", "metadata.csv",
    "x.tsv", "folder.jpg", ".a.txt", "sub/a.mp4", "sub/a.txt", "sub/deep/z.png", "texts/q.txt", "docs/q.docx",
    "docs/deep/q.bin",
    ".hid/x.mp4", "__MACOSX/x.mp4", "cache/x.safetensors", "own/x.safetensors", "b_ltx2_te.safetensors", "empty.mp4",
    "dir.mp4/x.txt", "b.wav", "a.mid", "run/samples/q.mp4", "run/run.toml", "run/manifest.json", "named/a.png",
)  # fmt: skip


class Told(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


@pytest.fixture
def everything(tmp_path):
    """Clips with one of everything beside them, in their folder and in those of masks and sounds."""
    for index, name in enumerate("abc"):
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(20 + index, 64, 64), caption=name)
        write_sound(tmp_path / "sounds" / f"{name}.wav", tone(1))
    for name in ("a.png", "zz.png", "sub/a.png", ".b.png"):
        write_image(tmp_path / "masks" / name, 64, 64, caption=None)
    for folder, names in (("clips", STRAYS), ("masks", ("a.txt", "c.npy")), ("sounds", ("zz.wav", "y.mid"))):
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"" if name == "empty.mp4" else b"x")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "q.mp4").write_bytes(b"x")
    for place in ("clips/gone.mp4", "clips/gone", "masks/gone.png"):
        os.symlink(tmp_path / "nowhere", tmp_path / place)
    for place in ("clips/linked", "masks/linked", "clips/dir.mp4/linked"):
        os.symlink(tmp_path / "far", tmp_path / place)
    beside = {"mask_directory": "masks", "audio_source": "audio_files", "audio_files_directory": "sounds"}
    entry = {"video_directory": "clips", "cache_directory": "clips/own", **beside}
    named = {"image_directory": "clips/named", "cache_directory": "c2"}
    (tmp_path / "clips/named/a.txt").write_text("a")
    write_image(tmp_path / "clips/named/a.png", 64, 64)
    return DatasetConfig.from_table(
        {"general": {"resolution": 64, "target_frames": [9], "max_left_out": 0.9}, "datasets": [entry, named]}, tmp_path
    )


def files_below(folder):
    return sum(
        len(files) + sum(Path(at, one).is_symlink() for one in folders) for at, folders, files in os.walk(folder)
    )


def test_the_counts_of_a_folder_sum_and_what_is_unused_is_named(everything, tmp_path):
    events = Told()
    plan_dataset(everything, events)
    report = check_dataset(everything)
    folders = [tmp_path / name for name in ("clips", "clips/named", "masks", "sounds")]
    assert {one.place: one.total for one in report.accounts} == {folder: files_below(folder) for folder in folders}
    said = [text for text in events.texts if text.startswith("Of ")]
    assert {text.split(":")[0] for text in said} == {
        f"Of {files_below(folder)} files in {folder.name}" for folder in folders
    }
    clips = next(one for one in report.accounts if one.place == folders[0])
    assert {fate: list(names) for fate, names in clips.fates.items() if fate in ("videos", "hidden media")} == {
        "videos": ["a.mp4", "b.mp4"],
        "hidden media": [".hidden.mp4"],
    }
    assert set(clips.untold) >= {"docs/q.docx", "docs/deep/q.bin", "cache/x.safetensors", ".hidden.mp4"}
    assert clips.fates["caches and records"]
    assert "linked" not in clips.untold, "the check names that"
    assert any("docs/ (2)" in text and "linked" in text for text in said), "and the plan here"
    assert any("docs/ (2)" in one.reason for one in report.findings)


def test_the_rows_of_a_list_sum(tmp_path):
    for name in "abc":
        write_image(tmp_path / "m" / f"{name}.png", 64 + ord(name), 64, caption=name)
    rows = [{"image_path": f"m/{name}.png", "caption": name} for name in ("a", "b", "c", "a", "gone")]
    rows += [{"caption": "nothing"}, {"image_path": "m/gone2.png", "caption": ""}]
    (tmp_path / "l.jsonl").write_text("\n".join([*map(json.dumps, rows), "", "no json"]))
    table = {"image_jsonl_file": "l.jsonl", "cache_directory": "cache", "max_left_out": 0.9}
    report = check_dataset(DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [table]}, tmp_path))
    assert report.text().splitlines()[1] == "Of 8 rows in l.jsonl: 3 pictures, 5 left out."


def test_what_a_data_root_does_not_list_is_named(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "d" / "m" / f"{name}.png", 64 + ord(name), 64, caption=None)
    (tmp_path / "d" / "videos.txt").write_text("m/a.png\n")
    (tmp_path / "d" / "prompts.txt").write_text("a\n")
    table = {"data_root": "d", "cache_directory": "cache"}
    events = Told()
    plan_dataset(DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [table]}, tmp_path), events)
    assert [text for text in events.texts if text.startswith("Of ")] == [
        "Of 1 row in d: 1 picture.",
        "Of 4 files in d: 1 picture, 2 lists, 1 unused besides (m/ (1)).",
    ]


def test_what_is_of_no_use_beside_its_medium_is_told_once(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(20, 64, 64), caption="a")
    write_sound(tmp_path / "voices" / "a.wav", tone(1))
    entry = {"video_directory": "clips", "cache_directory": "cache", "reference_audio_directory": "voices"}
    config = DatasetConfig.from_table(
        {"general": {"resolution": 64, "target_frames": [9]}, "datasets": [entry]}, tmp_path
    )
    report = check_dataset(config)
    assert any("media without sound, and have no use: a.wav" in one.reason for one in report.findings)
    assert [one.untold for one in report.accounts] == [[], []]


def test_files_of_the_system_are_counted_as_such(tmp_path):
    write_image(tmp_path / "a.png", 64, 64)
    for name in ("Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    events = Told()
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": ".", "cache_directory": "cache"}]}
    plan_dataset(DatasetConfig.from_table(table, tmp_path), events)
    assert any(text.endswith("1 picture, 1 caption, 2 hidden or of the system.") for text in events.texts), events.texts
