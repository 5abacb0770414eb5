"""Media in the folder of a dataset that no dataset takes are named before anything is encoded."""

from __future__ import annotations

import media
import pytest

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.events import Events
from ltx2_train.workshop.check import check_dataset


class Told(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {},
            [
                "clips: s.wav is not used. Name",
                "clips: day/cam/b.png, masks/a.png are in sub-folders and not used. Set",
            ],
        ),
        ({"mask_directory": "clips/masks"}, ["clips: s.wav is not", "clips: day/cam/b.png is in sub-folders"]),
        ({"recursive": True, "mask_directory": "clips/masks"}, ["clips: s.wav is not used. Name the folder as audio_"]),
    ],
)
def test_what_no_dataset_takes_is_named(tmp_path, more, told):
    for name in ("a.png", "day/cam/b.png", "masks/a.png"):
        media.write_image(tmp_path / "clips" / name, caption=None if name.startswith("masks") else name)
    (tmp_path / "clips" / "s.wav").write_bytes(b"RIFF")
    table = {"datasets": [{"image_directory": "clips", "resolution": [64, 64], **more}]}
    events = Told()
    plan_dataset(DatasetConfig.from_table(table, tmp_path), events)
    said = [text for text in events.texts if "not used" in text]
    assert [text.startswith(begin) for text, begin in zip(said, told, strict=True)] == [True] * len(told)


def test_what_a_list_or_a_run_has_there_is_not_named(tmp_path):
    for name in ("a.png", "day/b.png", "runs/r/samples/c.png"):
        media.write_image(tmp_path / "clips" / name)
        (tmp_path / "clips" / name).with_suffix(".txt").write_text(name)
    for name in ("manifest.json", "run.toml"):
        (tmp_path / "clips/runs/r" / name).write_text("{}")
    (tmp_path / "list.jsonl").write_text('{"image_path": "clips/day/b.png", "caption": "b"}\n')
    listed = {"image_jsonl_file": "list.jsonl", "cache_directory": "cache"}
    table = {"general": {"resolution": [64, 64]}, "datasets": [{"image_directory": "clips"}, listed]}
    events = Told()
    plan_dataset(DatasetConfig.from_table(table, tmp_path), events)
    assert not [text for text in events.texts if "not used" in text]


def folder_of(tmp_path, *files):
    media.write_image(tmp_path / "clips" / "a.png")
    media.write_image(tmp_path / "clips" / "b.png", 90)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".png"):
            media.write_image(tmp_path / name, caption=None)
        else:
            (tmp_path / name).write_text("[[0, 1]]")
    entry = {"image_directory": "clips", "cache_directory": "cache", "resolution": [64, 64], "mask_directory": "masks"}
    return DatasetConfig.from_table({"datasets": [entry]}, tmp_path)


def test_files_beside_media_that_go_with_none_are_named_by_plan_and_check(tmp_path):
    files = ["masks/a.png", "masks/A.png", "masks/sub/b.png", "masks/z.png", "masks/a.json", "masks/c.npy"]
    config = folder_of(tmp_path, *files, "masks/ltx2_failed.json")
    warnings = plan_dataset(config).warnings
    for told in (
        "not used, since another file has the very name of the medium: A.png",
        "are of a kind that is not read there, and not used: a.json, c.npy",
        "lie in sub-folders that are not those of the media of their names, and are not used: sub/b.png",
        "have no medium of their name: z.png",
    ):
        assert any(text.endswith(told) for text in warnings), told
    found = {one.path.relative_to(tmp_path).as_posix() for one in check_dataset(config).findings if one.path}
    assert {*files[1:]} <= found
    assert not {"masks/a.png", "masks/ltx2_failed.json"} & found


def test_files_in_a_media_folder_that_nobody_reads_are_named_by_plan_and_check(tmp_path):
    files = ["clips/a.json", "clips/c.npy", "clips/A.txt", "clips/alone.txt", "clips/b.png.txt", "clips/notes/x.txt"]
    ours = ["clips/ltx2_media.json", "clips/cut.json", "clips/dataset.toml"]
    config = folder_of(tmp_path, *files, *ours, "masks/a.png")
    events = Told()
    plan_dataset(config, events)
    assert [text for text in events.texts if text.startswith("clips: ")] == [
        "clips: notes/x.txt is in sub-folders and not used. Set recursive = true to use what is of the kind of the "
        "folder, or move them elsewhere.",
        "clips: a.json, c.npy are not used: each is not a medium.",
        "clips: A.txt is not used: it is a caption beside a.txt, which has the very name of the medium.",
        "clips: alone.txt is not used: it is a caption without its medium.",
        "clips: b.png.txt is not used: it is a caption with the ending of its medium in its name; b.txt is there "
        "already, keep one of the two.",
    ]
    found = {one.path.relative_to(tmp_path).as_posix() for one in check_dataset(config).findings if one.path}
    assert found >= {*files[:5], "clips/notes"}


def test_a_caption_with_the_ending_of_another_file_in_its_name_is_told_the_name_that_is_free(tmp_path):
    config = folder_of(tmp_path, "clips/b.webm.txt", "masks/a.png")
    (tmp_path / "clips/b.txt").unlink()
    events = Told()
    plan_dataset(config, events)
    (said,) = [text for text in events.texts if "b.webm.txt" in text]
    assert said.endswith("ending of its medium in its name; call it b.txt.")


def test_what_a_run_drew_and_masks_below_the_media_are_not_media(tmp_path):
    for name in ("a.png", "day/b.png", "runs/r/samples/c.png", "masks/a.png"):
        media.write_image(tmp_path / "clips" / name)
    for name in ("manifest.json", "run.toml"):
        (tmp_path / "clips/runs/r" / name).write_text("{}")
    entry = {"image_directory": "clips", "recursive": True, "resolution": [64, 64], "mask_directory": "clips/masks"}
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, tmp_path))
    assert [item.source.path.name for item in plan.items] == ["a.png", "b.png"]
    assert any("runs/r is the folder of a run, and what it drew is not trained on" in text for text in plan.warnings)


def test_a_voice_with_the_ending_of_a_video_is_told_as_what_it_is(tmp_path):
    media.write_sound(tmp_path / "clips" / "a.wav", media.tone(1), caption="a voice")
    media.write_sound(tmp_path / "clips" / "b.mp4", media.tone(1), codec="aac", caption="another")
    table = {"datasets": [{"audio_directory": "clips", "cache_directory": "cache"}]}
    events = Told()
    config = DatasetConfig.from_table(table, tmp_path)
    plan_dataset(config, events)
    (said,) = [text for text in events.texts if "b.mp4" in text]
    why = "holds sound alone and has the ending of a video"
    assert said == f"clips: b.mp4 is not used: it {why}; give it the ending of a sound, as .m4a or .mka."
    assert [one.reason for one in check_dataset(config).findings if one.path and one.path.name == "b.mp4"] == [why]


def test_texts_about_a_folder_are_not_told_and_other_texts_of_media_as_that(tmp_path):
    media.write_image(tmp_path / "p" / "a.png", 64, 64, caption=None)
    for name in ("a.caption", "a.txt", "README.txt", "LICENSE", "stray.txt"):
        (tmp_path / "p" / name).write_text("a fox")
    (tmp_path / "p" / "deep.txt").mkdir()
    entry = {"image_directory": "p", "caption_extension": ".caption", "cache_directory": "c"}
    events = Told()
    plan_dataset(DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, tmp_path), events)
    heard = [text for text in events.texts if "not used" in text]
    assert heard == [
        "p: a.txt is not used: it is text beside a medium, and caption_extension names another ending.",
        "p: stray.txt is not used: it is not a medium.",
    ]
