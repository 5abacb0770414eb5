"""What is given and not used, or is used otherwise than a person may think, is told by the plan and by the check."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest
from media import moving_square, tone, write_captioned, write_image, write_sound

from ltx2_train.caching.encode_text import Text
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import DataError
from ltx2_train.workshop.check import check_dataset


def config(folder, *entries, validation=()):
    general = {"resolution": 64, "target_frames": [9]}
    table = {"general": general, "datasets": list(entries), "validation_datasets": list(validation)}
    return DatasetConfig.from_table({key: value for key, value in table.items() if value}, folder)


def of_list(folder, rows, key="video_jsonl_file", **entry):
    (folder / "l.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return config(folder, {key: "l.jsonl", "cache_directory": "cache", **entry})


@pytest.fixture
def clips(tmp_path):
    """Clips a and b of 25 frames, 64x64, at 25 a second."""
    for shift, name in enumerate("ab"):
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(25 + shift, 64, 64), caption=name)
    return tmp_path


@pytest.mark.parametrize("way", ["itself", "copy", "link"])
def test_validation_on_copies_or_links_of_what_is_trained_is_told(clips, way):
    held = clips / "held"
    if way == "link":
        os.symlink(clips / "clips", held)
    else:
        held.mkdir()
        for name in ("a.mp4", "a.txt"):
            shutil.copy(clips / "clips" / name, held / f"x{name[1:]}")
    folder = "clips" if way == "itself" else "held"
    asked = config(
        clips,
        {"video_directory": "clips", "cache_directory": "c1"},
        validation=[{"video_directory": folder, "cache_directory": "c2"}],
    )
    name = {"itself": "a.mp4, b.mp4", "copy": "x.mp4 is a.mp4", "link": "a.mp4 is a.mp4, b.mp4 is b.mp4"}[way]
    assert any(f"known by heart looks well: {name}" in text for text in plan_dataset(asked).warnings)
    told = {one.path.name for one in check_dataset(asked).findings if "trained on as well" in one.reason}
    assert told == ({"x.mp4"} if way == "copy" else {"a.mp4", "b.mp4"})


@pytest.mark.parametrize(
    ("seconds", "told"), [(3.0, "longer than their clips"), (0.3, "shorter than their clips"), (1.2, "")]
)
def test_a_sound_of_another_length_than_its_clip_is_told(clips, seconds, told):
    for name in "ab":
        write_sound(clips / "snd" / f"{name}.wav", tone(seconds if name == "a" else 1.0))
    asked = config(
        clips,
        {"video_directory": "clips", "audio_source": "audio_files", "audio_files_directory": "snd"}
        | {"cache_directory": "cache"},
    )
    found = [text for text in plan_dataset(asked).pairs if "sounds are" in text]
    assert [told in text and text.endswith(f"a.wav ({seconds:.2f} s, the clip 1.00 s)") for text in found] == [
        True
    ] * bool(told)
    assert {text.removeprefix("datasets[0]: ") for text in found} <= {
        one.reason for one in check_dataset(asked).findings
    }


def test_what_lies_among_frames_and_is_none_is_told_and_no_rate_is_said_to_be_detected(tmp_path):
    for number in range(9):
        write_image(tmp_path / "fr" / f"{number:03}.png", 64, 64, caption=None)
    write_sound(tmp_path / "fr" / "audio.wav", tone(0.4))
    (tmp_path / "fr" / "notes.txt").write_text("x")
    row = {"video_path": "fr", "caption": "a square", "audio_path": "fr/audio.wav"}
    plan = plan_dataset(of_list(tmp_path, [row]))
    assert plan.items[0].source.timeline.notes == ()
    said = "fr holds 1 files beside its frames, which are not used: notes.txt"
    assert any(text.endswith(said) for text in plan.warnings)
    assert any("have no frame rate, and are taken at 25 a second" in text for text in plan.warnings)
    del row["audio_path"]
    report = check_dataset(of_list(tmp_path, [row]))
    assert any("2 files beside its frames" in one.reason for one in report.findings)


def test_a_clip_that_is_listed_twice_is_trained_on_and_not_red(clips):
    row = {"video_path": "clips/a.mp4", "caption": "a"}
    report = check_dataset(of_list(clips, [row, {**row, "caption": "again"}]))
    assert [(one.level, one.reason) for one in report.findings if one.rule == "same-stem"] == [
        ("amber", "is listed twice, and the first row counts; num_repeats repeats a dataset")
    ]
    assert report.ok


@pytest.mark.parametrize(
    ("name", "key", "words"),
    [
        ("d.tsv", "dataset_file", "parted by tabs. Save it as CSV"),
        ("d.parquet", "dataset_file", "a Parquet table, a kind that is not read"),
        ("d.xlsx", "video_jsonl_file", "an Excel table"),
        ("d.csv", "video_jsonl_file", r"CSV, and not one JSON object a line\. The key for CSV is dataset_file"),
    ],
)
def test_a_list_of_a_form_that_is_not_read_is_refused_by_name(tmp_path, name, key, words):
    (tmp_path / name).write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(DataError, match=words):
        plan_dataset(config(tmp_path, {key: name, "cache_directory": "cache"}))


@pytest.mark.parametrize(("mode", "needed"), [("video", ["a.mp4", "b.mp4"]), ("audio", ["v.wav"]), ("av", None)])
def test_captions_of_media_that_the_mode_does_not_train_are_not_encoded(clips, mode, needed):
    write_sound(clips / "voice" / "v.wav", tone(1.0), caption="a tone")
    recordings = {"audio_directory": "voice", "cache_directory": "c2"}
    plan = plan_dataset(config(clips, {"video_directory": "clips", "cache_directory": "c1"}, recordings))
    text = Text(plan, SimpleNamespace(mode=mode, settings=SimpleNamespace(text_form="compact", text_dtype="bf16")))
    found = [job.source.name for job in text.jobs() if not text.needless(job)]
    assert found == (needed or ["a.mp4", "b.mp4", "v.wav"])


def of_repeats(asked):
    """What plan and check say of repeats in the names of folders, which is the same."""
    told = [one for one in plan_dataset(asked).warnings if "not read as repeats" in one]
    found = [one.reason for one in check_dataset(asked).findings if "not read as repeats" in one.reason]
    assert found == [one.words + ": " + ", ".join(one.names) for one in told]
    return [one for note in told for one in note.names]


def test_repeats_in_the_names_of_folders_are_told(tmp_path):
    for place in ("10_fox", "5_hen/more", "plain", "1_once", "2000000_far"):
        write_image(tmp_path / "all" / place / f"{place[:4]}.png", 64, 64)

    def entry(folder, **more):
        return {"image_directory": folder, "cache_directory": "cache", **more}

    both = ["10_fox (num_repeats = 10)", "5_hen (num_repeats = 5)"]
    assert of_repeats(config(tmp_path, entry("all", recursive=True))) == both
    others = ["1_once (num_repeats = 1)", both[1]]
    assert of_repeats(config(tmp_path, entry("all", recursive=True, num_repeats=10))) == others
    assert of_repeats(config(tmp_path, entry("all/10_fox"))) == both[:1]
    assert of_repeats(config(tmp_path, entry("all/10_fox", num_repeats=3))) == []
    assert of_repeats(config(tmp_path, entry("all/plain"), validation=[entry("all/10_fox", cache_directory="c")])) == []
    rows = [{"image_path": f"all/{one}", "caption": "x"} for one in ("10_fox/10_f.png", "plain/plai.png")]
    assert of_repeats(of_list(tmp_path, rows, "image_jsonl_file")) == both[:1]
    (tmp_path / "lists").mkdir()
    rows[0]["image_path"] = str(tmp_path / "all" / "10_fox" / "10_f.png")
    assert of_repeats(of_list(tmp_path / "lists", rows[:1], "image_jsonl_file")) == both[:1]
    assert of_repeats(of_list(tmp_path, rows[:1], "image_jsonl_file", num_repeats=10)) == []
