"""Folders of media and dataset files of other programs: what is taken over, and that the rest is named."""

import json
from pathlib import Path

from unit.config.community_files import written

from ltx2_train.cli import main
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


def test_what_a_dataset_file_gives_is_used_by_its_run(tmp_path, capsys):
    lines = 'video_directory = "v"\ncontrol_directory = "r"\nreference_audio_directory = "s"\n'
    written(tmp_path, "data.toml", f"[[datasets]]\n{lines}")
    made = import_settings(tmp_path / "data.toml")
    run = load_run(made.write(tmp_path / "out")[-1])
    kinds = [[one.type for one in stream.conditions] for stream in (run.video, run.audio)]
    assert (kinds, run.model.mode) == ([["reference"], ["reference"]], "av")
    written(tmp_path, "sounds.toml", '[[datasets]]\naudio_directory = "s"\n')
    assert load_run(import_settings(tmp_path / "sounds.toml").write(tmp_path / "heard")[-1]).model.mode == "audio"
    for name in ("v", "r", "s", "gemma"):
        (tmp_path / name).mkdir()
    written(tmp_path, "base.safetensors", "")
    command = "ltx2_train_network.py --dataset_config data.toml --ltx2_checkpoint base.safetensors --gemma_root gemma"
    written(tmp_path, "train.sh", f"accelerate launch {command}\n")
    assert main(["import", str(tmp_path / "train.sh"), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().out
    assert "datasets[0].reference_directory: No condition uses references: add [[video.conditions]]" in said
    assert "Put that right" in said


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
    names = ["1_a/a.png", "1_a/a.caption", "2_b/b.png", "3_c/c.png", "3_c/c.txt", "3_c/c.caption"]
    made, left = laid(tmp_path / "kohya", *names)
    endings = [one.caption_extension for one in DatasetConfig.read(tmp_path / "kohya_out" / "dataset.toml").datasets]
    assert endings == [".caption", ".txt", ".txt"]
    assert left == ["2_b", "3_c/c.caption"]


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


def test_a_sound_that_no_clip_has_the_name_of_is_told_so(tmp_path):
    made, _ = laid(tmp_path / "half", "x_start.mp4", "x_audio.wav", "y.mp4", "y.wav")
    said = [line.partition(": ")[::2] for line in made.left_out]
    assert [(name, why[:30]) for name, why in said] == [
        ("x_audio.wav", "is a sound that no picture has"),
        ("y.wav", "is a sound beside pictures. au"),
    ]


def test_kinds_of_media_that_lie_together_are_a_dataset_each_or_named(tmp_path):
    made, left = laid(tmp_path / "mix", "a.mp4", "p.png", "s.wav", "h.heic", "m.mpo", "sub/q.png", "a.txt", "Thumbs.db")
    assert left == ["s.wav", "h.heic, m.mpo", "sub"]
    video, image = DatasetConfig.read(tmp_path / "mix_out" / "dataset.toml").datasets
    assert video.video_directory.resolve() == image.image_directory.resolve() == tmp_path / "mix"
    assert image.cache_directory.resolve() == tmp_path / "mix" / "image_caches"  # two datasets share none
    made, left = laid(tmp_path / "sounds", "a.wav", "a.txt", ".hidden.png")
    assert (left, list(made.data["datasets"][0])) == ([], ["audio_directory"])


def test_sounds_that_a_backend_names_are_used_or_refused_by_name(tmp_path):
    def made(of, *others):
        clips = {"id": "v", "dataset_type": "video", "instance_data_dir": "v", "s2v_datasets": of}
        return import_settings(written(tmp_path, "data.json", [clips, *others]))

    sounds = {"id": "s", "dataset_type": "audio", "instance_data_dir": "sounds"}
    (entry,) = made(["s"], sounds).data["datasets"]
    assert (entry["audio_source"], Path(entry["audio_files_directory"]).name) == ("audio_files", "sounds")
    lost = "v: s2v_datasets names s, which is no dataset of sounds here."
    assert lost in made("s").problems
    assert lost in made("s", {"id": "s", "dataset_type": "audio"}).problems
    assert "v: s2v_datasets names 2 datasets; videos have one sound." in made(["s", "t"], sounds).problems


def test_what_a_backend_says_in_vain_is_told(tmp_path):
    image = {"id": "i", "instance_data_dir": "i", "video": {"num_frames": 9}, "instance_prompt": "a fox"}
    told = import_settings(written(tmp_path, "data.json", [image])).data_notes
    assert [note.split(" has")[0] for note in told if " has" in note] == ["i: video", "i: instance_prompt"]


def test_a_dataset_without_subsets_is_not_lost(tmp_path):
    written(tmp_path, "data.toml", '[[datasets]]\nimage_directory = "i"\nsubsets = []\n')
    assert any("subsets" in text for text in import_settings(tmp_path / "data.toml").problems)


def test_a_list_of_media_in_a_folder_is_named(tmp_path):
    for name in ("a.mp4", "a.txt", "dataset.json", "train.jsonl"):
        written(tmp_path, f"clips/{name}", "")
    (left,) = import_settings(tmp_path / "clips").left_out
    assert left.startswith("dataset.json, train.jsonl: is a list of media by its name")
