"""Data that is given and trains nothing is refused by name, until a feature takes it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltx2_train.config import make_run
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.feed.loader import Sample, TrainingSet
from ltx2_train.shapes import LatentShape
from ltx2_train.training import unused
from ltx2_train.training.unused import CONSUMERS, require_items_used, require_samples_used, require_used

RUN = make_run({})


def dataset(tmp_path: Path, validation: bool = False, **more: Any) -> DatasetConfig:
    table: dict[str, Any] = {"datasets": [{"video_directory": "a"}, {"video_directory": "b", **more}]}
    if validation:
        table["validation_datasets"] = [{"video_directory": "c"}]
    return DatasetConfig.from_table(table, tmp_path)


def data(**more: Path) -> TrainingSet:
    nowhere = Path("-")
    samples = [Sample(name, LatentShape(1, 1, 1), 25.0, "", nowhere, nowhere, **more) for name in ("x", "y")]
    return TrainingSet(tuple(samples), (), (1,))


@pytest.mark.parametrize(
    "setting", ["reference_directory", "reference_audio_directory", "mask_directory", "audio_mask_directory"]
)
def test_a_folder_that_nothing_uses_is_named(setting, tmp_path):
    require_used(RUN, dataset(tmp_path))
    with pytest.raises(ConfigError, match=rf"  datasets\[1\]\.{setting}: .*Leave it out"):
        require_used(RUN, dataset(tmp_path, **{setting: "beside"}))


def test_all_that_is_unused_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        require_used(RUN, dataset(tmp_path, True, reference_directory="r", mask_directory="m"))
    named = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert named == ["datasets[1].reference_directory", "datasets[1].mask_directory", "validation_datasets"]


@pytest.mark.parametrize(
    ("sample", "used"),
    [
        ({}, False),
        ({"validation_clips": 1}, True),
        ({"validation_clips": 1, "every": 0}, False),
        ({"validation_clips": 1, "every": 0, "every_epochs": 2}, True),
    ],
)
def test_validation_datasets_are_used_where_samples_of_them_are_drawn(sample, used, tmp_path):
    run = make_run({"sample": sample})
    if used:
        require_used(run, dataset(tmp_path, True))
    else:
        with pytest.raises(ConfigError, match=r"sample\.validation_clips"):
            require_used(run, dataset(tmp_path, True))


@pytest.mark.parametrize("kind", [one for one in CONSUMERS if one.sample], ids=lambda one: one.sample)
def test_what_comes_with_samples_is_named_as_well(kind):
    require_samples_used(RUN, data())
    path = Path("r.safetensors")
    found = data(**{kind.sample: (path,) if kind.sample.endswith("s") else path})
    with pytest.raises(ConfigError, match="of x and 1 other samples"):
        require_samples_used(RUN, found)


@pytest.mark.parametrize("kind", [one for one in CONSUMERS if one.sample], ids=lambda one: one.sample)
def test_what_rows_of_lists_give_is_named_before_it_is_encoded(kind):
    nothing = {"references": (), "reference_audios": (), "mask": None, "audio_mask": None}
    items = [SimpleNamespace(key="x", **{**nothing, kind.item: ("m.png",) if kind.item.endswith("s") else "m.png"})]
    require_items_used(RUN, [SimpleNamespace(key="x", **nothing)])
    for mode in ("av", "video", "audio"):
        with pytest.raises(ConfigError, match=rf"{kind.item.removesuffix('s')} of x: "):
            require_items_used(make_run({"model": {"mode": mode}}), items)
    stream = "audio" if "audio" in kind.sample else "video"
    condition = {"conditions": [{"type": "mask" if "mask" in kind.sample else "reference"}]}
    require_items_used(make_run({"model": {"mode": "av"}, stream: condition}), items)


def test_a_feature_that_takes_it_ends_the_error(monkeypatch, tmp_path):
    monkeypatch.setitem(unused.CONSUMERS, unused.MASKS, [lambda run: run.lora.rank == 8])
    given = dataset(tmp_path, mask_directory="m")
    require_used(make_run({"lora": {"rank": 8}}), given)
    require_samples_used(make_run({"lora": {"rank": 8}}), data(mask_path=Path("m")))
    with pytest.raises(ConfigError, match="mask_directory"):
        require_used(RUN, given)


@pytest.mark.parametrize(
    ("setting", "stream", "kind"),
    [
        ("reference_directory", "video", "reference"),
        ("mask_directory", "video", "mask"),
        ("reference_audio_directory", "audio", "reference"),
        ("audio_mask_directory", "audio", "mask"),
    ],
)
def test_a_condition_uses_what_it_is_for_where_the_mode_has_its_stream(setting, stream, kind, tmp_path):
    given = dataset(tmp_path, **{setting: "beside"})
    conditions = {stream: {"conditions": [{"type": kind}]}}
    require_used(make_run({"model": {"mode": "av"}, **conditions}), given)
    other = "audio" if stream == "video" else "video"
    with pytest.raises(ConfigError, match=rf"{setting}: Mode {other} makes no"):
        require_used(make_run({"model": {"mode": other}, **conditions}), given)


def test_more_references_than_conditions_are_named(tmp_path):
    run = make_run({"video": {"conditions": [{"type": "reference"}]}})
    both = {"reference_directory": "depth", "more_reference_directories": ["faces"]}
    with pytest.raises(
        ConfigError, match=r"datasets\[1\]\.more_reference_directories: .*faces is used by no condition"
    ):
        require_used(run, dataset(tmp_path, **both))
    require_used(make_run({"video": {"conditions": [{"type": "reference"}] * 2}}), dataset(tmp_path, **both))
    found = data(reference_paths=(Path("a"), Path("b")))
    with pytest.raises(ConfigError, match="x and 1 other samples: 2 references, of which 1 would not be used"):
        require_samples_used(run, found)
    items = [SimpleNamespace(key="x", references=("a", "b"), reference_audios=(), mask=None, audio_mask=None)]
    with pytest.raises(ConfigError, match=r"x: 2 references, of which 1 .*Add another \[\[video.conditions\]\]"):
        require_items_used(run, items)


def test_keyframe_slots_need_a_clip():
    run = make_run({"cache": {"keyframe_slots": 2}})
    nothing = {"references": (), "reference_audios": (), "mask": None, "audio_mask": None}
    items = [SimpleNamespace(key="x", kind=kind, **nothing) for kind in ("image", "video")]
    require_items_used(run, items)
    with pytest.raises(ConfigError, match=r"cache\.keyframe_slots is 2, and the dataset holds no clip"):
        require_items_used(run, items[:1])
