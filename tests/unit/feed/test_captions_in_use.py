"""What is shown of captions is what is trained on: those of text caches, where these are used in place of files."""

from __future__ import annotations

import pytest
from fake_encoders import CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_text
from media import write_image
from safetensors.torch import load_file, save_file

from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.config import make_run
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.events import Events
from ltx2_train.feed.captions_in_use import captions_in_use
from ltx2_train.feed.loader import TrainingSet
from ltx2_train.training.caches import _planned
from ltx2_train.training.fit.work import largest_workload
from ltx2_train.training.watch import sample_captions
from ltx2_train.workshop.check import check_dataset

ENTRY = {"image_directory": "pics", "cache_directory": "cache", "resolution": 64}


def read(folder, **more):
    return DatasetConfig.from_table({"datasets": [{**ENTRY, **more}]}, folder)


@pytest.fixture
def half(tmp_path):
    """Caches of two pictures; that of the caption of `a` does not say it, as one that was imported."""
    for name in ("a", "b"):
        write_image(tmp_path / "pics" / f"{name}.png", caption=f"caption {name}")
    plan = plan_dataset(read(tmp_path))
    encode_latents(plan, PoolingVAE)
    encode_text(plan, CountingEncoder)
    (text,) = (tmp_path / "cache").glob("a_*te*.safetensors")
    save_file(load_file(text), text, {"architecture": "ltx2"})
    return tmp_path


def shown(config, recipe):
    """(captions, what is told) by a plan, after the same by the check and by the start of a run."""
    found = captions_in_use(config, plan_dataset(config).items, recipe)
    captions = found.read.captions
    report, said, events = check_dataset(config), [], Events()
    assert report.captions.captions == captions
    assert [one.reason for one in report.findings if one.rule == "caption"] == [one.rstrip(".") for one in found.told]
    events.message = lambda text, level="info": said.append((text, level))
    started = sample_captions(TrainingSet.open(config, recipe, events).samples)
    assert [text for _, text in started.captions] == [text for _, text in captions]
    assert {(one, "warning") for one in found.told} <= {*said}
    return captions, found.told


def test_captions_of_media_that_have_a_text_cache_without_one_are_not_shown_but_named(half):
    captions, (told,) = shown(read(half), CacheRecipe())
    assert captions == (("b.png", "caption b"),)
    assert told.startswith("The captions of 1 media are those of text caches")
    assert "Not used are the captions beside these media: a.txt. " in told
    config = read(half)
    anew = captions_in_use(config, plan_dataset(config).items, None)
    assert (len(anew.read.captions), anew.told) == (2, ()), "a build that makes all anew reads the files"


def test_captions_of_caches_alone_are_shown_and_files_that_say_others_are_named(half):
    only = read(half, cache_only=True)
    (half / "pics" / "b.txt").write_text("caption  b\n")
    captions, (unsaid, other) = shown(only, CacheRecipe())
    assert captions == (("b", "caption b"),)
    assert unsaid == "datasets[0]: captions are those of its caches, which do not say 1 of 2: a."
    assert other.startswith("datasets[0]: 1 captions beside media are not used, since its caches alone are read")
    assert other.endswith(": a.txt.")
    (half / "pics" / "b.txt").write_text("another")
    assert shown(only, CacheRecipe())[1][1].endswith(": a.txt, b.txt.")


@pytest.mark.parametrize("anew", [False, True])
def test_plan_and_build_show_them_too(half, anew):
    config = half / "dataset.toml"
    config.write_text('[[datasets]]\nimage_directory = "pics"\ncache_directory = "cache"\nresolution = 64\n')
    table = {"data": {"config": str(config)}, "model": {"checkpoint": "m.safetensors", "mode": "video"}}
    run, said, events = make_run(table | {"cache": {"skip_existing": not anew}}), [], Events()
    events.message = lambda text, level="info": said.append(text)
    largest_workload(run, events)
    _planned(run, config, [], [run], events)
    plan, build = [text for text in said if text.startswith("Captions as they are read")]
    assert plan.startswith("Captions as they are read (1;")
    assert build.startswith(f"Captions as they are read ({2 if anew else 1};"), "a build that makes all anew has both"
    assert len([text for text in said if "Not used are the captions beside these media: a.txt." in text]) == 2 - anew
