"""What other nodes hand to Sample LoRA: pictures, masks and sounds become files and conditions, and are drawn with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ltx2_train.conditions.trained import Trained
from ltx2_train.config import DrawSettings
from ltx2_train.media.images import read_image
from ltx2_train.media.sound_media import read_sound
from ltx2_train.sampling.prompts import read_prompts, require_drawable


@pytest.fixture
def given(nodes):
    """The module of the node, in the pack as ComfyUI loads it."""
    return nodes.sample.given


def pictures(count: int, value: float = 0.5) -> torch.Tensor:
    return torch.full((count, 64, 64, 3), value) + torch.linspace(0, 0.2, count)[:, None, None, None]


def sound(seconds: float = 1.0) -> dict:
    wave = torch.sin(torch.arange(int(16000 * seconds)) / 20) * 0.5
    return {"waveform": wave[None, None], "sample_rate": 16000}


def test_each_wire_is_a_condition_that_the_sampler_reads(nodes, given):
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1
    tables = given.conditions(
        {"first_frame": pictures(1), "reference": pictures(9), "given_frames": pictures(17), "given_mask": left,
         "given_audio": None, "reference_audio": sound()}
    )  # fmt: skip
    assert [table["type"] for table in tables] == ["first_frame", "reference", "reference", "mask"]
    asked = {"prompts": [{"prompt": "a ball", "conditions": tables}], "width": 64, "height": 64, "frames": 9}
    settings = DrawSettings(**asked)
    (prompt,) = read_prompts(settings)
    require_drawable([prompt], "av", Trained())
    again = given.conditions({"reference": pictures(9)})
    assert again[0]["video"] == tables[1]["video"], "the same pictures are one file"
    two = given.conditions({"reference": pictures(9), "reference_2": pictures(1), "reference_audio": sound()})
    assert [next(key for key in table if key != "type") for table in two] == ["video", "video", "audio"]
    assert (two[0]["video"], two[1]["video"]) == (tables[1]["video"], tables[0]["image_or_video"])
    whole = given.conditions({"given_frames": pictures(9), "given_audio": sound()})
    assert [table["type"] for table in whole] == ["video_to_audio", "audio_to_video"]


@pytest.mark.parametrize(
    ("wires", "says"),
    [
        ({"first_frame": pictures(2)}, "`first_frame` takes one picture, and 2 are connected"),
        ({"given_mask": torch.ones(1, 64, 64)}, "`given_mask` is connected without `given_frames`"),
        ({"reference_2": pictures(1)}, "`reference_2` is connected without `reference`"),
        (
            {"given_audio": {"waveform": torch.zeros(2, 1, 99), "sample_rate": 16000}},
            "`given_audio` takes one sound, and 2 are connected",
        ),
    ],
)
def test_wires_that_cannot_be_used_are_refused_by_name(given, wires, says):
    with pytest.raises(Exception, match=says):
        given.conditions(wires)


def test_wires_are_taken_as_files_are_and_what_is_changed_is_told(nodes, given):
    told = nodes.tensors.Changes()
    wave = torch.zeros(1, 6, 16000)
    wave[:, 0] = sound()["waveform"][0, 0]
    clear = torch.cat([pictures(1), torch.full((1, 64, 64, 1), 0.5)], -1)
    tables = given.conditions(
        {"first_frame": clear, "reference": pictures(1), "reference_audio": {"waveform": wave, "sample_rate": 16000}},
        told,
    )
    assert int(read_image(Path(tables[0]["image_or_video"]))[0, 0, 0]) == 64
    left, right = read_sound(Path(tables[2]["audio"])).samples
    assert (left.max() > 0.1, right.max()) == (True, 0)
    assert told.lines() == [
        "`first_frame`: has transparency; it is laid over black",
        "`reference_audio`: its 6 channels are mixed down to two, as those of a file would be",
    ]
    with pytest.raises(Exception, match="picture 2 of `reference` holds values that are not numbers"):
        given.conditions({"reference": pictures(2) * torch.tensor([1, float("nan")])[:, None, None, None]})
    with pytest.raises(Exception, match="`given_mask` has values from 255 to 255"):
        given.conditions({"given_frames": pictures(1), "given_mask": torch.full((1, 64, 64), 255.0)})
