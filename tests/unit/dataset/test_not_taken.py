"""Media in the folder of a dataset that no dataset takes are named before anything is encoded."""

from __future__ import annotations

import media
import pytest

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.events import Events


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
        media.write_image(tmp_path / "clips" / name)
        (tmp_path / "clips" / name).with_suffix(".txt").write_text(name)
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
    (tmp_path / "clips/runs/r/manifest.json").write_text("{}")
    (tmp_path / "list.jsonl").write_text('{"image_path": "clips/day/b.png", "caption": "b"}\n')
    listed = {"image_jsonl_file": "list.jsonl", "cache_directory": "cache"}
    table = {"general": {"resolution": [64, 64]}, "datasets": [{"image_directory": "clips"}, listed]}
    events = Told()
    plan_dataset(DatasetConfig.from_table(table, tmp_path), events)
    assert not [text for text in events.texts if "not used" in text]
