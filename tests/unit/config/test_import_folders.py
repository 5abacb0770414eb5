"""Folders of media laid out for other programs as dataset files: what is taken over, and that the rest is named."""

import json
from pathlib import Path

from unit.config.community_files import written

from ltx2_train.config import load_run
from ltx2_train.config.importing import import_settings
from ltx2_train.dataset.dataset_file import DatasetConfig


def test_folders_of_other_programs_become_datasets(tmp_path):
    for name in ("10_fox/a.png", "3_hare/b.mp4"):
        written(tmp_path, f"train/{name}", "")
    made = import_settings(tmp_path / "train")
    first, second = made.data["datasets"]
    assert (Path(first["image_directory"]).name, first["num_repeats"]) == ("10_fox", 10)
    assert (Path(second["video_directory"]).name, second["num_repeats"]) == ("3_hare", 3)
    for name in ("a_start.mp4", "a_end.mp4", "a_audio.wav", "b.mp4"):
        written(tmp_path, f"pairs/{name}", "")
    written(tmp_path, "pairs/a.txt", "it turns")
    made = import_settings(tmp_path / "pairs")
    (row,) = [json.loads(line) for line in made.lists["pairs.jsonl"].splitlines()]
    assert Path(row["video_path"]).name == "a_end.mp4"
    assert Path(row["control_path"]).name == "a_start.mp4"
    assert (Path(row["audio_path"]).name, row["caption"]) == ("a_audio.wav", "it turns")


def laid(folder, *names):
    """What becomes of a folder with files of these names: the datasets, and what is said of the rest."""
    for name in names:
        written(folder.parent, f"{folder.name}/{name}", "x")
    made = import_settings(folder)
    assert made.complete == (not made.left_out)
    out = made.write(folder.parent / f"{folder.name}_out")[0].read_text()
    assert all(
        f"# Not taken over: {line}." in out and f"not taken over: {line}" in made.summary() for line in made.left_out
    )
    return made, [line.split(":")[0] for line in made.left_out]


def test_what_no_numbered_folder_holds_is_named(tmp_path):
    loose = ["hare/b.png", "deep/er/c.mp4", "0_off/d.png", "loose.png", "texts/notes.md"]
    inside = ["3_fox/a.png", "3_fox/a.txt", "3_fox/old.heic", "3_fox/more/e.png", "3_fox/f.mp4"]
    made, left = laid(tmp_path / "train", *loose, *inside)
    assert left == ["0_off", "deep, hare", "loose.png", "3_fox/old.heic", "3_fox/more"]
    assert [one["num_repeats"] for one in made.data["datasets"]] == [3, 3]
    assert len(DatasetConfig.read(tmp_path / "train_out" / "dataset.toml").datasets) == 2
    assert made.data_notes[0].startswith("1 sub-folders")


def test_what_belongs_to_no_pair_is_named_and_the_pairs_are_shown(tmp_path):
    pair = ["x_start.png", "x_end.mp4", "x_end.txt"]
    made, left = laid(
        tmp_path / "pairs", *pair, "y_start.png", "z_end.mp4", "x_start.webp", "q.mp4", "q.txt", "x_audio.mp4"
    )
    assert left == ["x_audio.mp4, x_start.webp, y_start.png, z_end.mp4", "q.mp4", "q.txt"]
    (row,) = [json.loads(line) for line in made.lists["pairs.jsonl"].splitlines()]
    assert [Path(row[key]).name for key in ("video_path", "control_path")] == ["x_end.mp4", "x_start.png"]
    assert row["caption"] == "x"
    run = load_run(tmp_path / "pairs_out" / "run.toml")
    assert [one.type for one in run.video.conditions] == ["reference"]
    assert run.model.mode == "video"
    made, left = laid(tmp_path / "heard", "x_end.mp4", "x_audio.wav", "x.txt")
    run = load_run(tmp_path / "heard_out" / "run.toml")
    assert (left, run.model.mode, run.video.conditions) == ([], "av", [])


def test_kinds_of_media_that_lie_together_are_a_dataset_each_or_named(tmp_path):
    made, left = laid(tmp_path / "mix", "a.mp4", "p.png", "s.wav", "h.heic", "m.mpo", "sub/q.png", "a.txt", "Thumbs.db")
    assert left == ["s.wav", "h.heic, m.mpo", "sub"]
    video, image = DatasetConfig.read(tmp_path / "mix_out" / "dataset.toml").datasets
    assert video.video_directory.resolve() == image.image_directory.resolve() == tmp_path / "mix"
    assert image.cache_directory.resolve() == tmp_path / "mix" / "image_caches"  # two datasets share none
    made, left = laid(tmp_path / "sounds", "a.wav", "a.txt", ".hidden.png")
    assert (left, list(made.data["datasets"][0])) == ([], ["audio_directory"])
