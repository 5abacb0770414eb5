"""The nodes that check, combine and make datasets, on the pretended ComfyUI: what they hand on and what they write."""

from __future__ import annotations

from pathlib import Path

import media
import numpy as np
import pytest
from PIL import Image

SIZE = {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head", "buckets": False}


def clip(path: Path, caption: str | None = "a square moves", frames: int = 30) -> Path:
    media.write_video(path, media.moving_square(frames, 96, 64))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


@pytest.fixture
def load(nodes):
    """The handle of a folder below input."""

    def loaded(folder, **more):
        given = {"folder": folder, "path": "", "trigger_word": "", "fps": 25.0, **more}
        return nodes.LoadTrainingClips.execute(**given).args[0]

    return loaded


# ------------------------------------------------------------------------------------------------- Check Dataset


def checked(nodes, dataset, stop_on_red=False, goal="style", **more):
    return nodes.CheckDataset.execute(dataset=dataset, goal=goal, stop_on_red=stop_on_red, **{**SIZE, **more})


def test_a_check_shows_its_findings_and_a_sheet_and_passes_the_dataset_on(nodes, comfy, load):
    folder = comfy.folder("input", "mixed")
    clip(folder / "good.mp4", "a yellow square goes from left to right")
    clip(folder / "mute.mp4", None)
    media.write_image(folder / "still.png", 64, 64, "a square at rest")
    dataset = load("mixed")
    result = checked(nodes, dataset)
    passed, report = result.args
    assert passed is dataset
    assert report.startswith("RED: 3 files")
    assert "mute.mp4: " in report
    assert "5 to 10 images" in report, "what the goal needs"
    assert 'still.png: "a square at rest"' in report.split("Captions as they are read (2; ")[1]
    assert comfy.texts[-1] == ("7", report.replace("\n", "  \n")), "the node shows the report"
    (shown,) = result.ui["images"]
    sheet = comfy.folder("output") / shown["subfolder"] / shown["filename"]
    assert np.asarray(Image.open(sheet)).std() > 10
    assert sorted(path.name for path in folder.iterdir()) == [
        "good.mp4",
        "good.txt",
        "mute.mp4",
        "still.png",
        "still.txt",
    ]
    assert not list(comfy.folder("output").rglob("*.toml")), "nothing but the sheets is written"


def test_the_size_decides_what_is_cut_away(nodes, comfy, load):
    clip(comfy.folder("input", "wide") / "clip.mp4")
    dataset = load("wide")
    assert "33% of the picture" in checked(nodes, dataset).args[1]
    whole = checked(nodes, dataset, width=96, height=64).args[1]
    assert "0% of the picture" in whole
    assert "70% of the length" in whole
    assert "17% of the length" in checked(nodes, dataset, frames=25).args[1]


def test_red_stops_only_where_it_is_asked_to(nodes, comfy, load):
    folder = comfy.folder("input", "half")
    clip(folder / "good.mp4")
    clip(folder / "mute.mp4", None)
    checked(nodes, load("half"))
    with pytest.raises(RuntimeError, match=r"(?s)stop_on_red is on.*mute\.mp4: .*switch stop_on_red off"):
        checked(nodes, load("half"), stop_on_red=True)
    (folder / "mute.txt").write_text("another square")
    assert "0 red" in checked(nodes, load("half"), stop_on_red=True).args[1]


def test_a_deleted_sheet_is_drawn_again(nodes, comfy, load):
    clip(comfy.folder("input", "again") / "clip.mp4")
    nodes.CheckDataset.fingerprint_inputs()
    result = checked(nodes, load("again"))
    mark = nodes.CheckDataset.fingerprint_inputs()
    assert nodes.CheckDataset.fingerprint_inputs() == mark
    (shown,) = result.ui["images"]
    (comfy.folder("output") / shown["subfolder"] / shown["filename"]).unlink()
    assert nodes.CheckDataset.fingerprint_inputs() != mark
