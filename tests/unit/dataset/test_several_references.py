"""Several references of each medium: their folders, their columns, their caches, and what is said where one lacks."""

from __future__ import annotations

import json

import pytest
from fake_encoders import CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_text
from media import moving_square, write_captioned, write_image, write_video

from ltx2_train.caching.cache_file import Fingerprints
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.outputs import refuse_among_media
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import CacheError, ConfigError
from ltx2_train.feed.loader import TrainingSet

WEIGHTS = Fingerprints("ckpt", "gemma")
RECIPE = CacheRecipe(video_vae="vae", text=WEIGHTS)
TWO = {"reference_directory": "depth", "more_reference_directories": ["faces"]}


def config(folder, **entry):
    entry = {"video_directory": "clips", "cache_directory": "cache", "target_frames": [9], **entry}
    return DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, folder)


@pytest.fixture
def triples(tmp_path):
    for name in "ab":
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(9, 64, 64))
        write_video(tmp_path / "depth" / f"{name}.mp4", moving_square(9, 64, 64))
    write_image(tmp_path / "faces" / "a.png", 64, 64, caption=None)
    return tmp_path


def test_each_folder_has_frames_and_caches_of_its_own(triples):
    write_image(triples / "faces" / "b.png", 64, 64, caption=None)
    dataset = config(triples, **TWO, reference_frames=0, more_reference_frames=[1])
    plan = plan_dataset(dataset)
    assert [[one.frames for one in item.references] for item in plan.items] == [[9, 1], [9, 1]]
    report = encode_latents(plan, PoolingVAE, "vae", CacheSettings())
    encode_text(plan, CountingEncoder, WEIGHTS, CacheSettings())
    assert report.made == 6
    assert len(list((triples / "cache" / "reference").iterdir())) == 2
    assert len(list((triples / "cache" / "reference_2").iterdir())) == 2
    for opened in (
        TrainingSet.open(dataset, RECIPE),
        TrainingSet.open(
            DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": "cache"}]}, triples), RECIPE
        ),
    ):
        shapes = [[one.shape for one in opened.load_references(sample)] for sample in opened.samples]
        assert shapes == [[(128, 2, 2, 2), (128, 1, 2, 2)]] * 2
    # what made the second is compared too
    with pytest.raises(CacheError, match="reference_frames changed"):
        TrainingSet.open(config(triples, **TWO, reference_frames=0, more_reference_frames=[9]), RECIPE)
    next((triples / "cache" / "reference_2").iterdir()).unlink()
    with pytest.raises(CacheError, match="missing"):
        TrainingSet.open(dataset, RECIPE)


def test_a_medium_without_its_second_reference_is_left_out_by_name(triples):
    plan = plan_dataset(config(triples, **TWO))
    assert [item.source.path.name for item in plan.items] == ["a.mp4"]
    assert [(skip.path.name, skip.reason.split(":")[0]) for skip in plan.skipped] == [("b.mp4", "no reference 2")]
    assert "faces has no image or video called b" in plan.skipped[0].reason


@pytest.mark.parametrize(
    "columns",
    [("reference_path", "reference_path_2"), ("control_path_0", "control_path_1"), ("control_path", "control_path_1")],
)
def test_a_list_names_several(columns, triples):
    first, second = columns
    row = {"video_path": "clips/a.mp4", "caption": "a", first: "depth/a.mp4", second: "faces/a.png"}
    alone = {"video_path": "clips/b.mp4", "caption": "b", first: "depth/b.mp4"}
    (triples / "list.jsonl").write_text("\n".join(map(json.dumps, (row, alone))))
    table = {"datasets": [{"video_jsonl_file": "list.jsonl", "cache_directory": "cache", "target_frames": [9]}]}
    plan = plan_dataset(DatasetConfig.from_table(table | {"general": {"resolution": 64}}, triples))
    (item,) = plan.items
    assert [one.path.name for one in item.references] == ["a.mp4", "a.png"]
    assert "no reference 2: its line in list.jsonl names none" in plan.skipped[0].reason
    assert not any("is not used" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"more_reference_directories": ["faces"]}, "reference_directory is not set. Name the first one there"),
        ({"more_reference_audio_directories": ["faces"]}, "reference_audio_directory is not set"),
        ({**TWO, "more_reference_frames": [1, 1]}, "has 2 numbers, and more_reference_directories 1 folders"),
        ({**TWO, "more_reference_frames": [8]}, "each must be 8n.1 .* and one is 8"),
        ({**TWO, "more_reference_directories": "faces"}, "more_reference_directories: needs a list"),
        ({"reference_directory": ["depth", "faces"]}, "reference_directory: needs one path"),
        ({"reference_directory": "depth", "more_reference_frames": [1]}, "with more_reference_directories, or"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said, triples):
    with pytest.raises(ConfigError, match=said):
        config(triples, **settings)


def test_nothing_is_written_among_them(triples):
    with pytest.raises(ConfigError, match=r"is datasets\[0\]\.more_reference_directories"):
        refuse_among_media(triples / "faces", config(triples, **TWO))
