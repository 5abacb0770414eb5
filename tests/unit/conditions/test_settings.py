from __future__ import annotations

import pytest

from ltx2_train.conditions.settings import AudioStream, Prefix, VideoStream
from ltx2_train.errors import ConfigError
from ltx2_train.settings import parse


def test_the_official_names_are_read_and_a_single_length_is_both_ends():
    stream = parse(
        VideoStream,
        {
            "conditions": [
                {"type": "first_frame", "probability": 0.5},
                {"type": "prefix", "temporal_boundary": 3},
                {"type": "suffix", "seconds": [0.5, 2.0]},
                {"type": "spatial_crop", "spatial_region": [0, 0, 64, 96]},
                {"type": "mask"},
                {"type": "reference", "temporal_scale_factor": 2},
            ]
        },
        "run",
    )
    assert [one.type for one in stream.conditions][:2] == ["first_frame", "prefix"]
    prefix = stream.conditions[1]
    assert isinstance(prefix, Prefix)
    assert prefix.temporal_boundary == (3, 3)
    assert stream.conditions[2].seconds == (0.5, 2.0)


@pytest.mark.parametrize(
    ("stream", "condition", "said"),
    [
        (VideoStream, {"type": "prefix"}, "either temporal_boundary or seconds"),
        (VideoStream, {"type": "prefix", "temporal_boundary": 0}, "above 0"),
        (VideoStream, {"type": "suffix", "temporal_boundary": [4, 2]}, "ascending"),
        (VideoStream, {"type": "first_frame", "probability": 1.5}, "probability"),
        (AudioStream, {"type": "mask", "probability": -0.1}, "probability: must be at least 0"),
        (VideoStream, {"type": "spatial_crop", "spatial_region": [64, 0, 32, 64]}, "top < bottom"),
        (AudioStream, {"type": "spatial_crop", "spatial_region": [0, 0, 32, 64]}, "one of prefix, suffix"),
        (AudioStream, {"type": "first_frame"}, "one of prefix, suffix"),
        (VideoStream, {"probability": 1.0}, "one of first_frame"),
    ],
)
def test_what_cannot_be_is_refused_by_name(stream, condition, said):
    with pytest.raises(ConfigError, match=said):
        parse(stream, {"conditions": [condition]}, "run")


def test_a_wrong_number_is_named_with_its_place_and_an_unknown_one_with_those_of_its_type():
    with pytest.raises(ConfigError, match=r"conditions\[0\]\.probability: must be at most 1"):
        parse(VideoStream, {"conditions": [{"type": "first_frame", "probability": 2}]}, "run")
    conditions = [{"type": "mask"}, {"type": "spatial_crop", "spatial_region": [0, 0, 32, 32], "region": 1}]
    with pytest.raises(ConfigError, match=r"conditions\[1\]\.region: unknown setting\. Did you mean spatial_region"):
        parse(VideoStream, {"conditions": conditions}, "run")
