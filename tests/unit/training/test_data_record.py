"""Media and captions that were changed under the same names between two starts of a run are told by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ltx2_train.caching.cache_file import Fingerprints
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.feed.loader import TrainingSet
from ltx2_train.feed.samples import Sample
from ltx2_train.shapes import LatentShape
from ltx2_train.training.data_record import DATA_RECORD, changed_data, data_record, lost_words


def data_of(folder, origins, captions):
    samples = []
    for name in origins:
        (path := folder / f"{name}.safetensors").write_bytes(b"")
        samples.append(Sample(name, LatentShape(1, 2, 2), 25.0, captions[name], path, Path("no"), others=()))
    return TrainingSet(
        tuple(samples), (), (1,), origins={folder / f"{name}.safetensors": origins[name] for name in origins}
    )


def test_what_changed_is_told_and_nothing_else(tmp_path):
    origins, captions = dict.fromkeys("abcdef", "x"), {name: f"a {name}" for name in "abcdef"}
    data = data_of(tmp_path, origins, captions)
    assert changed_data(tmp_path, data) == [], "runs of older versions have no record"
    (tmp_path / DATA_RECORD).write_text(json.dumps(data_record(data)))
    assert changed_data(tmp_path, data) == []
    swapped = data_of(tmp_path, {**origins, "b": "y"}, {**captions, "a": "a b", "b": "a a"})
    assert changed_data(tmp_path, swapped) == ["the media of b", "the captions of a, b"]
    others = data_of(tmp_path, dict.fromkeys("abcdef", "z"), captions)
    assert changed_data(tmp_path, others) == ["the media of a, b, c and 3 more"]
    assert changed_data(tmp_path, replace(data, origins={})) == [], "caches of others say nothing"
    held_out = TrainingSet((), swapped.samples, (1,), origins=swapped.origins)
    assert changed_data(tmp_path, held_out) == ["the media of b", "the captions of a, b"]
    known = replace(data, recipe=CacheRecipe(video_encoder="c" * 32, text=Fingerprints("a" * 32, "b" * 32)))
    assert changed_data(tmp_path, known) == [], "records of older versions do not say"
    (tmp_path / DATA_RECORD).write_text(json.dumps(data_record(known)))
    other = replace(known.recipe, text=Fingerprints("a" * 32, "d" * 32), video_encoder="c" * 16)
    assert changed_data(tmp_path, replace(known, recipe=other)) == ["the text encoder"], (
        "older fingerprints are shorter"
    )
    (tmp_path / DATA_RECORD).write_text("[]")
    assert changed_data(tmp_path, swapped) == []


def test_a_record_that_is_gone_or_damaged_is_told(tmp_path):
    assert lost_words(tmp_path).startswith(f"{DATA_RECORD} of {tmp_path.name} is gone or damaged")
    (tmp_path / DATA_RECORD).write_text('{"a')
    assert lost_words(tmp_path)
    (tmp_path / DATA_RECORD).write_text("{}")
    assert not lost_words(tmp_path)
    assert lost_words(tmp_path, ["run.toml"]).startswith(
        f"run.toml of {tmp_path.name} is gone or damaged, so whether se"
    )
    (tmp_path / "run.toml").write_text("[run]\nname = 'fox'\n", encoding="utf-8")
    assert not lost_words(tmp_path, ["run.toml"])
