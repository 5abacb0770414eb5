"""Datasets that are caches alone: cache_only, manifests, and what other trainers wrote, made by hand here.

The file is long because all of it looks at one folder of caches.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
from community_caches import community
from fake_encoders import Connectors, CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_text
from media import moving_square, tone, write_captioned, write_image, write_video
from safetensors.torch import load_file, save_file

from ltx2_train.caching.cache_file import CacheFile, Fingerprints
from ltx2_train.caching.manifest import write_manifest
from ltx2_train.caching.official import ImportReport, import_missing, import_official
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.config import make_run
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.dataset.scan import Skipped
from ltx2_train.errors import CacheError, ConfigError, DataError
from ltx2_train.events import Events
from ltx2_train.feed.cached import are_unsaid, dataset_captions
from ltx2_train.feed.cached_names import CachedName, passed_over
from ltx2_train.feed.loader import FullText, TrainingSet, load_text
from ltx2_train.models.text import TextFeatures
from ltx2_train.sampling.ahead import training_prompts
from ltx2_train.shapes import LatentShape
from ltx2_train.training.checks import check_planned
from ltx2_train.training.watch import warn_of_captions

WEIGHTS = Fingerprints("ckpt", "gemma")
RECIPE = CacheRecipe(video_vae="vae", text=WEIGHTS)


def build(config, **settings):
    plan, settings = plan_dataset(config), CacheSettings(**settings)
    encode_latents(plan, PoolingVAE, "vae", settings)
    encode_text(plan, CountingEncoder, WEIGHTS, settings, open_connectors=Connectors)
    return plan


@pytest.fixture
def made(tmp_path):
    """A folder `data` with clips, pictures and their caches, and the plan of it."""
    root = tmp_path / "data"
    write_captioned(root / "clips" / "a.mp4", moving_square(17, 64, 64), "a clip")
    write_captioned(root / "clips" / "my_b.mp4", moving_square(9, 64, 64), "another")
    write_image(root / "pics" / "p.png", caption="a picture")
    write_image(root / "refs" / "a.png", caption=None)
    write_image(root / "refs" / "my_b.png", caption=None)
    table = {
        "general": {"resolution": 64},
        "datasets": [
            {
                "video_directory": "clips",
                "cache_directory": "cache",
                "target_frames": [9, 17],
                "num_repeats": 3,
                "reference_directory": "refs",
                "flip": True,
            },
            {"image_directory": "pics", "cache_directory": "cache2"},
        ],
    }
    return build(DatasetConfig.from_table(table, root))


def alike(one, two):
    keys = ("shape", "fps", "caption", "repeats", "kind")
    return sorted(str([getattr(s, k) for k in keys]) + s.latent_path.name for s in one) == sorted(
        str([getattr(s, k) for k in keys]) + s.latent_path.name for s in two
    )


def test_a_picture_that_is_named_after_its_time_is_no_window(tmp_path):
    write_image(tmp_path / "pics" / "fox_20260131-174502.png", caption="a fox")
    table = {"datasets": [{"image_directory": "pics", "cache_directory": "cache", "resolution": 64, "flip": True}]}
    made = build(DatasetConfig.from_table(table, tmp_path))
    table["datasets"][0]["cache_only"] = True
    config = DatasetConfig.from_table(table, tmp_path)
    assert dataset_captions(config) == ["a fox"]
    read = TrainingSet.open(config, RECIPE).samples
    assert sorted(one.latent_path for one in read) == sorted(item.latent_path for item in made.items)
    assert {(one.kind, one.caption) for one in read} == {("image", "a fox")}


def test_caches_alone_tell_media_that_are_not_looked_at_rates_and_latents_of_another_vae(made):
    folder, said, events = made.config.datasets[0].caches, [], Events()
    events.message = lambda text, level="info": said.append(text)
    row = {"cache_only": True, "cache_directory": str(folder), "video_directory": "nowhere", "target_fps": 12}
    config = DatasetConfig.from_table({"datasets": [row]}, folder)
    assert "video_directory counts where they are made" in config.notes[0]
    TrainingSet.open(config, RECIPE, events)
    assert any("target_fps = 12 counts where caches are made" in text and "at 25 frames" in text for text in said)
    name, other = "a_00000-009_0064x0064_ltx2.safetensors", torch.zeros(64, 2, 2, 2)
    save_file({"latents_2x2x2_fp32": other}, folder / name)
    table = {"datasets": [{"cache_only": True, "cache_directory": str(folder), "cache_files": [name]}]}
    with pytest.raises(CacheError, match="its latents have 64 channels, not 128"):
        TrainingSet.open(DatasetConfig.from_table(table, folder), RECIPE)
    save_file({"latents_2x2x2_fp32": torch.zeros(128, 2, 2, 2)}, folder / name)
    said.clear()
    TrainingSet.open(DatasetConfig.from_table(table, folder), RECIPE, events)
    assert any("of 1 of 1 clips do not say their frame rate" in text for text in said)


def test_a_trigger_word_that_the_cached_captions_lack_is_refused(made):
    folder = made.config.datasets[0].caches
    (folder / "._a_00000-009_0064x0064_ltx2.safetensors").write_bytes(b"\0")  # of a Mac
    for trigger, told in (("clip", False), ("ohwx", True)):
        entry = {"cache_directory": str(folder), "cache_only": True, "trigger_word": trigger, "resolution": 96}
        entry["cache_files"] = [path.name for path in folder.glob("a_*_ltx2.safetensors")]
        config = DatasetConfig.from_table({"datasets": [entry]}, folder)
        assert config.notes == (
            "datasets[0] is read from its caches alone: resolution counts where they are made, not here.",
        )
        if not told:
            assert TrainingSet.open(config, RECIPE).samples
            continue
        with pytest.raises(CacheError, match='its caption is without trigger_word = "ohwx".*: a clip. Leave'):
            TrainingSet.open(config, RECIPE)


def test_caches_of_two_clips_under_one_name_are_refused(made):
    folder = made.config.datasets[0].caches
    table = {"datasets": [{"video_directory": ".", "cache_directory": str(folder), "cache_only": True}]}
    config = DatasetConfig.from_table(table, folder)
    one, other = (folder / f"{stem}_ltx2_te_compact.safetensors" for stem in ("a", "my_b"))
    keys = [sample.key for sample in TrainingSet.open(config, RECIPE).samples]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(CacheError, match=r"it was written for a, and a_ltx2_te_compact\S+ beside it for my_b"):
        TrainingSet.open(config, RECIPE)
    one.write_bytes(kept)
    for path in sorted(folder.glob("a[_~]*")):  # all of a clip that is renamed goes together
        path.rename(folder / f"fox{path.name[1:]}")
    assert len(TrainingSet.open(config, RECIPE).samples) == len(keys)


def test_a_manifest_trains_elsewhere_without_the_media(made, tmp_path):
    manifest = write_manifest(made, made.config.datasets[0].caches / "dataset_manifest.json", "dataset.toml")
    before = TrainingSet.open(made.config, RECIPE)
    text = manifest.read_text()
    assert str(tmp_path) not in text
    assert "clips" not in text
    (tmp_path / "moved").mkdir()
    for name in ("cache", "cache2"):
        shutil.move(tmp_path / "data" / name, tmp_path / "moved" / name)
    shutil.rmtree(tmp_path / "data")
    config = DatasetConfig.read(tmp_path / "moved" / "cache" / manifest.name)
    after = TrainingSet.open(config, RECIPE)
    assert len(after.samples) == 7
    assert alike(before.samples, after.samples)
    assert after.load_references(after.samples[0])[0].shape == (128, 1, 2, 2)
    assert dataset_captions(config) == ["a clip", "another", "a picture"]
    for recipe, reason in (
        (CacheRecipe(video_vae="other", text=WEIGHTS), "another VAE"),
        (CacheRecipe(video_vae="vae", text=Fingerprints("x", "gemma")), "checkpoint"),
    ):
        with pytest.raises(CacheError, match=reason) as caught:
            TrainingSet.open(config, recipe)
        assert "from their caches alone" in str(caught.value)


def test_a_manifest_names_its_files_so_that_others_do_not_slip_in(made):
    manifest = write_manifest(made, made.config.datasets[0].caches / "dataset_manifest.json")
    extra = made.items[0].latent_path
    shutil.copy(extra, extra.with_name("zz_00000-009_0064x0064_ltx2.safetensors"))
    assert len(TrainingSet.open(DatasetConfig.read(manifest)).samples) == 7


def test_cache_only_takes_what_has_text_and_names_the_rest(made, capsys):
    folder = made.config.datasets[0].caches
    (folder / "my_b_ltx2_te_compact.safetensors").unlink()
    config = DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": str(folder)}]}, folder)
    data = TrainingSet.open(config, RECIPE)
    assert {sample.caption for sample in data.samples} == {"a clip"}
    assert len(data.samples) == 4
    empty = DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": "none"}]}, folder)
    with pytest.raises(CacheError, match="no caches"):
        TrainingSet.open(empty)


def test_caches_in_sub_folders_and_with_other_endings_are_told(made):
    folder, said, events = made.config.datasets[0].caches, [], Events()
    events.message = lambda text, level="info": said.append(text)
    table = {"datasets": [{"cache_only": True, "cache_directory": str(folder)}]}
    assert len(TrainingSet.open(DatasetConfig.from_table(table, folder), RECIPE, events).samples) == 6
    assert not any("not used" in text for text in said), "references and what belongs to them lie below, too"
    (folder / "more").mkdir()
    first, second = sorted(folder.glob("a_*_ltx2.safetensors"))
    first.rename(folder / "more" / first.name)
    second.rename(folder / second.name.replace(".safetensors", ".SAFETENSORS"))
    (folder / "._a_ltx2.safetensors").write_bytes(b"a")
    (folder / "my_b_00000-009_0064x0064_ltx2 (copy).safetensors").write_bytes(b"a")
    TrainingSet.open(DatasetConfig.from_table(table, folder), RECIPE, events)
    (told,) = [text for text in said if "not used" in text]
    assert told.startswith(
        f"datasets[0]: {second.name.replace('.safetensors', '.SAFETENSORS')}, more/{first.name}, my_b_00000-009"
    )
    (folder / "my_b_00000-009_0064x0064_ltx2 (copy).safetensors").unlink()
    table["datasets"].append({"cache_only": True, "cache_directory": str(folder / "more")})
    config = DatasetConfig.from_table(table, folder)
    assert [path.parent for path in passed_over(config.refs[0], config)] == [folder]


def test_a_file_that_is_named_twice_is_refused_and_one_that_is_gone_is_said_to_be(made):
    folder, said, events = made.config.datasets[0].caches, [], Events()
    events.message = lambda text, level="info": said.append(text)
    first, *more = sorted(path.name for path in folder.glob("*_ltx2.safetensors"))
    table = {"cache_only": True, "cache_directory": str(folder), "cache_files": [first, *more]}
    (folder / first).unlink()
    TrainingSet.open(DatasetConfig.from_table({"datasets": [table]}, folder), RECIPE, events)
    assert f"{first} is left out: it is missing" in said
    table["cache_files"] = [first, first]
    with pytest.raises(ConfigError, match=f"cache_files: names {first} twice; num_repeats"):
        DatasetConfig.from_table({"datasets": [table]}, folder)


def test_a_file_that_is_not_named_as_latents_is_left_out_and_the_page_of_names_is_said(made):
    folder, said, events = made.config.datasets[0].caches, [], Events()
    (folder / "holiday_ltx2.safetensors").write_bytes(b"")
    events.message = lambda text, level="info": said.append((level, text))
    config = DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": str(folder)}]}, folder)
    assert len(TrainingSet.open(config, RECIPE, events).samples) == 6
    ((level, text),) = [(level, text) for level, text in said if "holiday" in text]
    assert level == "warning"
    page = re.search(r"\((\S+\.md) lists the names\)", text)[1]
    assert page == "docs/dataset_file.md"
    assert "`NAME_00000-049_0768x0512_ltx2.safetensors`" in (Path(__file__).parents[3] / page).read_text()


def test_the_community_trainers_manifest(made, tmp_path):
    params = {
        "resolution": [64, 64],
        "caption_extension": ".txt",
        "cache_directory": str(made.config.datasets[0].caches),
        "num_repeats": 2,
        "cache_only": True,
        "video_directory": None,
        "target_frames": [1, 9],
        "debug_dataset": True,
    }
    table = {
        "format": "musubi_tuner_dataset_manifest",
        "version": 1,
        "architecture": "ltx2",
        "datasets": [{"dataset_type": "video", "params": params}],
        "validation_datasets": [],
    }
    path = tmp_path / "m.json"
    path.write_text(json.dumps(table))
    config = DatasetConfig.read(path)
    assert "debug_dataset" in config.notes[0]
    data = TrainingSet.open(config)
    assert [sample.repeats for sample in data.samples] == [2] * 6
    for change in ({"version": 2}, {"architecture": "wan"}, {"format": "x"}):
        path.write_text(json.dumps({**table, **change}))
        with pytest.raises(ConfigError):
            DatasetConfig.read(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a_00009-017_0768x0512_ltx2.safetensors", ("a", 17, 768, 512)),
        ("my_clip_2_00000-009_0064x0064_ltx2.safetensors", ("my_clip_2", 9, 64, 64)),
        ("p_1920x1080_ltx2.safetensors", ("p", 0, 1920, 1080)),
        ("a~flip_00000-009_0064x0064_ltx2.safetensors", ("a", 9, 64, 64)),
    ],
)
def test_names(name, expected):
    parsed = CachedName.parse(name)
    assert (parsed.stem, parsed.count, parsed.width, parsed.height) == expected
    assert parsed.plain == name.replace("~flip", "")


@pytest.mark.parametrize("name", ["../p_0064x0064_ltx2.safetensors", "a\\p_0064x0064_ltx2.safetensors", "p.mp4"])
def test_names_that_lead_elsewhere_are_none(name):
    assert CachedName.parse(name) is None


# --- the community trainer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "token", "short"), [(torch.bfloat16, "bfloat16", "fp16"), (torch.float16, "fp16", "float16")]
)
def test_caches_of_the_community_trainer_are_a_dataset(tmp_path, dtype, token, short):
    video, sound = community(tmp_path / "cache", dtype, token, short)
    table = {"datasets": [{"cache_only": True, "cache_directory": "cache", "target_fps": 24}]}
    config = DatasetConfig.from_table(table, tmp_path)
    data = TrainingSet.open(config, CacheRecipe(mode="av"))
    clip, picture, voice = data.samples
    assert (clip.caption, clip.shape, clip.fps, clip.kind) == (
        "caption of my_clip",
        LatentShape(2, 3, 2),
        24.0,
        "video",
    )
    assert clip.audio_steps == 9
    assert data.load_audio(clip).shape == (8, 9, 16)
    assert (picture.kind, picture.shape, picture.audio_steps) == ("image", LatentShape(1, 2, 2), 0)
    assert (voice.kind, voice.shape, voice.audio_steps) == ("audio", LatentShape(4, 2, 2), 9)
    text = data.load_text(clip)
    assert isinstance(text, FullText)
    assert torch.equal(text.video_context, video)
    assert torch.equal(text.audio_context, sound)
    assert len(TrainingSet.open(config, CacheRecipe(mode="video")).samples) == 2
    assert len(TrainingSet.open(config, CacheRecipe(mode="audio")).samples) == 2


@pytest.mark.parametrize("width", [(4096, 2048), (3840, 3840)])
def test_text_stored_as_one_is_taken_apart(tmp_path, width):
    video, sound = community(tmp_path / "cache", width=width)
    path = tmp_path / "cache" / "p_ltx2_te.safetensors"
    save_file({k: v for k, v in load_file(path).items() if k.startswith("text_")}, str(path))
    config = DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": "cache"}]}, tmp_path)
    data = TrainingSet.open(config)
    text = data.load_text(data.samples[1])
    assert torch.equal(text.video_context, video)
    assert torch.equal(text.audio_context, sound)


def test_of_a_file_with_both_forms_the_finished_text_is_taken(tmp_path):
    """The community trainer's flag --cache_before_connector leaves features with all their padding beside it."""
    video, sound = community(tmp_path / "cache")
    path = tmp_path / "cache" / "p_ltx2_te.safetensors"
    features = {"video_features_bfloat16": torch.zeros(1024, 24), "audio_features_bfloat16": torch.zeros(1024, 16)}
    save_file({**load_file(path), **features}, str(path))
    text = load_text(path)
    assert isinstance(text, FullText)
    assert torch.equal(text.video_context, video)
    assert torch.equal(text.audio_context, sound)


def test_padding_of_features_that_stand_alone_is_left_out(tmp_path):
    mask = torch.tensor([0, 0, 1, 1, 1])
    video, sound = torch.randn(5, 24), torch.randn(5, 16)
    tensors = {"video_features_float32": video, "audio_features_float32": sound, "prompt_attention_mask": mask}
    save_file(tensors, str(tmp_path / "a_ltx2_te.safetensors"))
    text = load_text(tmp_path / "a_ltx2_te.safetensors")
    assert isinstance(text, TextFeatures)
    assert torch.equal(text.video, video[2:])
    assert torch.equal(text.audio, sound[2:])


def test_text_for_video_alone_will_not_do_for_sound_and_joined_text_will(tmp_path):
    community(tmp_path / "cache")
    config = DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": "cache"}]}, tmp_path)
    path = tmp_path / "cache" / "my_clip_ltx2_te.safetensors"
    tensors = load_file(path)
    save_file({"text_bfloat16": tensors["text_bfloat16"]}, str(path))
    assert len(TrainingSet.open(config, CacheRecipe(mode="av")).samples) == 3
    save_file({"text_bfloat16": tensors["text_bfloat16"][:, :4096].contiguous()}, str(path))
    assert len(TrainingSet.open(config, CacheRecipe(mode="video")).samples) == 2
    with pytest.raises(CacheError, match="holds no text for sound"):
        TrainingSet.open(config, CacheRecipe(mode="av"))


def test_our_full_form_is_what_the_community_trainer_expects(made, tmp_path):
    table = {"datasets": [{"video_directory": "clips", "cache_directory": "full", "target_frames": [9]}]}
    config = DatasetConfig.from_table({"general": {"resolution": 64}, **table}, tmp_path / "data")
    build(config, text_form="full")
    folder = tmp_path / "data" / "full"
    found = {path.name.rsplit("_", 1)[0] for path in folder.glob("*_ltx2.safetensors")}
    assert found == {"a_00000-009_0064x0064", "my_b_00000-009_0064x0064"}
    latents = CacheFile(folder / "my_b_00000-009_0064x0064_ltx2.safetensors")
    assert latents.keys == ["latents_2x2x2_bfloat16"]
    assert {
        "architecture": "ltx2_v1",
        "width": "64",
        "height": "64",
        "frame_count": "9",
    }.items() <= latents.metadata.items()
    # its loader looks for the text by what is before the window and the size
    text = CacheFile(folder / "my_b_ltx2_te.safetensors")
    assert sorted(text.keys) == [
        "audio_prompt_embeds_bfloat16",
        "prompt_attention_mask",
        "text_bfloat16",
        "text_mask",
        "video_prompt_embeds_bfloat16",
    ]
    both = [text.tensor(f"{stream}_prompt_embeds_bfloat16") for stream in ("video", "audio")]
    assert torch.equal(text.tensor("text_bfloat16"), torch.cat(both, dim=-1))
    assert torch.equal(text.tensor("text_mask"), text.tensor("prompt_attention_mask"))
    assert text.metadata["caption1"] == "another"
    assert text.tensor("prompt_attention_mask").dtype == torch.int64


# --- the official trainer --------------------------------------------------------------------------------------------


def official(root):
    for folder in ("latents", "conditions", "audio_latents", "reference_latents", "video_masks"):
        (root / ".precomputed" / folder / "sub").mkdir(parents=True)
    at = root / ".precomputed"
    mask = torch.zeros(16, dtype=torch.int64)
    mask[-5:] = 1
    video, audio = torch.randn(16, 4096), torch.randn(16, 2048)
    new = {"video_prompt_embeds": video, "audio_prompt_embeds": audio, "prompt_attention_mask": mask}
    sizes = {"num_frames": 2, "height": 3, "width": 4}
    torch.save({"latents": torch.randn(128, 2, 3, 4), **sizes, "fps": 24.0}, at / "latents" / "sub" / "clip.pt")
    torch.save(new, at / "conditions" / "sub" / "clip.pt")
    sound = {"latents": torch.randn(8, 10, 16), "num_time_steps": 10, "frequency_bins": 16, "duration": 0.4}
    torch.save(sound, at / "audio_latents" / "sub" / "clip.pt")
    for name in ("reference_latents", "reference_latents_2"):
        (at / name / "sub").mkdir(parents=True, exist_ok=True)
        torch.save({"latents": torch.randn(128, 2, 3, 4), **sizes}, at / name / "sub" / "clip.pt")
    torch.save({"mask": torch.full((2, 3, 4), 0.7)}, at / "video_masks" / "sub" / "clip.pt")
    grid = torch.arange(24.0).reshape(2, 3, 4).expand(128, 2, 3, 4)
    torch.save({"latents": grid.reshape(128, 24).T.clone(), **sizes}, at / "latents" / "latent_0.pt")
    torch.save(
        {"prompt_embeds": torch.randn(16, 3840), "prompt_attention_mask": mask}, at / "conditions" / "condition_0.pt"
    )
    torch.save({"latents": grid.clone()}, at / "latents" / "lonely.pt")
    return video, audio, grid


def test_what_of_an_official_folder_cannot_be_taken_is_named(tmp_path):
    official(tmp_path / "root")
    at, said, events = tmp_path / "root" / ".precomputed", [], Events()
    events.message = lambda text, level="info": said.append((level, text))
    for name in ("depth_latents/x.pt", "latents/sub__clip.pt", "conditions/sub__clip.pt"):
        (at / name).parent.mkdir(exist_ok=True)
        (at / name).write_bytes((at / "latents" / "sub" / "clip.pt").read_bytes())
    short = {"prompt_embeds": torch.randn(16, 3840), "prompt_attention_mask": torch.ones(9)}
    none = {"prompt_embeds": torch.randn(16, 3840), "prompt_attention_mask": torch.zeros(16)}
    for name, text in (("short", short), ("none", none)):
        (at / "latents" / f"{name}.pt").write_bytes((at / "latents" / "sub" / "clip.pt").read_bytes())
        torch.save(text, at / "conditions" / f"{name}.pt")
    (at / "latents" / "far").symlink_to(tmp_path)
    report = import_official(tmp_path / "root", events=events)
    reasons = {skip.path.name: skip.reason for skip in report.skipped}
    assert "would have the names of those of sub/clip.pt" in reasons["sub__clip.pt"]
    assert "not laid out as expected" in reasons["short.pt"]
    assert "every token is masked" in reasons["none.pt"]
    assert [text for level, text in said if level == "warning"] == [
        f"Of {at} the folders depth_latents are not read.",
        f"{at / 'latents' / 'far'} is a link to a folder, which is not followed.",
        "1 of 2 samples do not say their frame rate, latent_0.pt first: that of target_fps of the dataset is taken, 25 "
        "where it is not set.",
    ]


def test_the_official_trainers_folder_is_imported_and_trained_on(tmp_path):
    video, audio, grid = official(tmp_path / "root")
    entry = {"preprocessed_data_root": "root"}
    config = DatasetConfig.from_table({"datasets": [entry]}, tmp_path)
    with pytest.raises(CacheError, match="ltx2-train cache import"):
        TrainingSet.open(config)
    report = import_official(tmp_path / "root")
    assert report.samples == 2
    assert [skip.path.name for skip in report.skipped] == ["lonely.pt"]
    assert f"cache_directory = '{(tmp_path / 'root' / 'ltx2_caches').absolute()}'" in report.text()
    data = TrainingSet.open(config, CacheRecipe(mode="av"))
    old, new = sorted(data.samples, key=lambda sample: sample.key)
    assert (new.fps, new.shape, new.audio_steps) == (24.0, LatentShape(2, 3, 4), 10)
    text = data.load_text(new)
    assert isinstance(text, TextFeatures)
    assert torch.equal(text.video, video[-5:].bfloat16())
    assert torch.equal(text.audio, audio[-5:].bfloat16())
    assert data.load_mask(new).all()
    assert [one.shape for one in data.load_references(new)] == [(128, 2, 3, 4)] * 2
    assert torch.equal(data.load_latents(old), grid)
    assert data.load_text(old).video.shape == (5, 3840)


def test_encoded_folders_that_are_links_are_looked_at_for_what_is_newer(tmp_path):
    official(tmp_path / "root")
    at = tmp_path / "root" / ".precomputed"
    (at / "latents" / "lonely.pt").unlink()  # it has no text, and would be asked for again
    (at / "latents").rename(tmp_path / "far")
    (at / "latents").symlink_to(tmp_path / "far")
    config = DatasetConfig.from_table({"datasets": [{"preprocessed_data_root": "root"}]}, tmp_path)
    assert [report.samples for report in import_missing(config)] == [2]
    assert import_missing(config) == []
    os.utime(tmp_path / "far" / "latent_0.pt", (time.time() + 60, time.time() + 60))
    assert [report.samples for report in import_missing(config)] == [2]


def test_what_has_no_latents_is_named_and_sound_alone_is_imported(tmp_path, monkeypatch):
    official(tmp_path / "root")
    at = tmp_path / "root" / ".precomputed"
    for folder in ("conditions", "video_masks"):
        shutil.copy(at / folder / "sub" / "clip.pt", at / folder / "sub" / "other.pt")
    for folder in ("conditions", "audio_latents"):
        shutil.copy(at / folder / "sub" / "clip.pt", at / folder / "sub" / "voice.pt")
    monkeypatch.chdir(tmp_path)
    report = import_official(tmp_path / "root", Path("out"))
    assert report.samples == 3
    reasons = {skip.path.relative_to(at).as_posix(): skip.reason for skip in report.skipped}
    assert sorted(reasons) == ["conditions/sub/other.pt", "latents/lonely.pt", "video_masks/sub/other.pt"]
    assert "no latents" in reasons["conditions/sub/other.pt"]
    assert f"cache_directory = '{tmp_path / 'out'}'" in report.text()  # not from where the dataset file lies
    config = DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": "out"}]}, tmp_path)
    data = TrainingSet.open(config, CacheRecipe(mode="av"))
    assert sorted(sample.kind for sample in data.samples) == ["audio", "video", "video"]


def test_captions_that_the_caches_do_not_say_are_not_taken_for_equal_ones(tmp_path):
    official(tmp_path / "root")
    import_official(tmp_path / "root", tmp_path / "out")
    config = DatasetConfig.from_table({"datasets": [{"cache_only": True, "cache_directory": "out"}]}, tmp_path)
    data, said = TrainingSet.open(config), []
    events = Events()
    events.message = lambda text, level="info": said.append(text)
    warn_of_captions(data.samples, events)
    assert said == []
    with pytest.raises(ConfigError, match=r"do not say their captions.*sample\.prompts"):
        training_prompts(make_run({}), data, "2.3")
    assert len(training_prompts(make_run({"sample": {"prompts": ["a fox"]}}), data, "2.3")) == 1


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    (tmp_path / "latents").mkdir()
    torch.save({"latents": Evil()}, tmp_path / "latents" / "a.pt")
    (tmp_path / "conditions").mkdir()
    torch.save({"prompt_embeds": torch.ones(2, 3)}, tmp_path / "conditions" / "a.pt")
    with pytest.raises(DataError, match="more than tensors"):
        import_official(tmp_path)


def test_sound_of_a_mirrored_copy_is_that_of_the_clip(tmp_path):
    write_video(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64), sound=tone(0.5))
    (tmp_path / "clips" / "a.txt").write_text("x")
    entry = {"video_directory": "clips", "target_frames": [9], "flip": True, "resolution": 64}
    plain, mirrored = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, tmp_path)).items
    assert plain.audio_path == mirrored.audio_path
    assert plain.latent_path != mirrored.latent_path


def test_caches_alone_are_counted_and_held_against_the_manifest_beside_them(made):
    folder, said, events = made.config.datasets[0].caches, [], Events()
    events.message = lambda text, level="info": said.append(text)
    write_manifest(made, folder / "dataset_manifest.json")
    table = {"datasets": [{"cache_only": True, "cache_directory": str(folder)}]}
    config = DatasetConfig.from_table(table, folder)
    TrainingSet.open(config, RECIPE, events)
    assert any("6 samples of 2 media (4 of 64x64x9, 2 of 64x64x17)" in text for text in said), said
    assert not any("last `cache build` or import" in text or "without latents" in text for text in said)
    for path in folder.glob("my_b*_ltx2.safetensors"):
        path.unlink()
    (first, *_) = folder.glob("a_00000-009_*_ltx2.safetensors")
    shutil.copy(first, folder / first.name.replace("00000-009", "00003-009"))
    said.clear()
    TrainingSet.open(config, RECIPE, events)
    assert any("captions without latents" in text and text.endswith(": my_b.") for text in said)
    assert any("1 of 5 latents" in text and "a_00003-009" in text for text in said)


def test_what_an_earlier_import_left_is_told_by_the_next_and_by_training(tmp_path):
    official(tmp_path / "root")
    import_official(tmp_path / "root", tmp_path / "out")
    for path in (tmp_path / "root").rglob("clip.pt"):
        path.unlink()
    said, events = [], Events()
    events.message = lambda text, level="info": said.append(text)
    import_official(tmp_path / "root", tmp_path / "out", events)
    assert any("1 latents in" in text and "are of an earlier import" in text for text in said), said
    said.clear()
    table = {"datasets": [{"cache_only": True, "cache_directory": str(tmp_path / "out")}]}
    TrainingSet.open(DatasetConfig.from_table(table, tmp_path), CacheRecipe(mode="av"), events)
    assert any("1 of 2 latents" in text and "last `cache build` or import" in text for text in said)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("latents", lambda table: table | {"latents": table["latents"] * torch.nan}, "not finite"),
        ("latents", lambda table: table | {"latents": table["latents"][:16]}, "16 channels, not 128"),
        ("video_masks", lambda table: {"mask": torch.ones(1, 1, 1)}, "its mask in video_masks has shape"),
    ],
)
def test_latents_and_masks_that_do_not_fit_are_left_out_at_import(tmp_path, name, change, reason):
    official(tmp_path / "root")
    at = next((tmp_path / "root").rglob("latents"))
    clip = at / "sub" / "clip.pt"
    path = at.parent / name / "sub" / "clip.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(change(torch.load(clip)), path)
    report = import_official(tmp_path / "root", tmp_path / "out")
    assert any(skip.path.name == "clip.pt" and reason in skip.reason for skip in report.skipped), report.skipped


def test_an_import_tells_what_it_replaces_and_leaves_a_cache_build_alone(tmp_path, made):
    said, events = [], Events()
    events.message = lambda text, level="info": said.append(text)
    for name in ("one", "two"):
        official(tmp_path / name / "root")
    out = tmp_path / "out"
    import_official(tmp_path / "one" / "root", out, events)
    (tmp_path / "one" / "root").rename(tmp_path / "renamed")
    assert import_official(tmp_path / "renamed", out, events).samples == 2
    assert not any("take the place" in text for text in said)
    clip = next((tmp_path / "two").rglob("latents")) / "sub" / "clip.pt"
    table = torch.load(clip)
    torch.save(table | {"latents": table["latents"] + 1}, clip)
    import_official(tmp_path / "two" / "root", out, events)
    assert any("take the place of others of their names" in text for text in said)
    folder = made.config.datasets[0].caches
    write_manifest(made, folder / "dataset_manifest.json")
    with pytest.raises(DataError, match="holds what `cache build` made"):
        import_official(tmp_path / "renamed", folder)


def test_latents_of_several_media_that_share_a_caption_are_told(made):
    folder, said, events = made.config.datasets[0].caches, [], Events()
    events.message = lambda text, level="info": said.append(text)
    table = {"datasets": [{"cache_only": True, "cache_directory": str(folder)}]}
    config = DatasetConfig.from_table(table, folder)
    TrainingSet.open(config, RECIPE, events)
    assert not any("share the text cache" in text for text in said), "windows and mirrored copies are of one medium"
    (first, *_) = folder.glob("a_00000-009_*_ltx2.safetensors")
    file = CacheFile(first)
    tensors = {key: file.tensor(key) for key in file.keys}
    source = json.dumps({**file.record("source"), "sha256": "another"})
    save_file(tensors, folder / first.name.replace("00000-009", "00003-009"), {**file.metadata, "source": source})
    TrainingSet.open(config, RECIPE, events)
    assert any("share the text cache of one" in text and "a_00003-009" in text for text in said)


def test_a_plan_refuses_captions_that_imported_caches_do_not_say(tmp_path, made):
    official(tmp_path / "root")
    import_official(tmp_path / "root", tmp_path / "out")
    (tmp_path / "d.toml").write_text('[[datasets]]\ncache_only = true\ncache_directory = "out"\n')
    run = {
        "data": {"config": str(tmp_path / "d.toml")},
        "model": {"checkpoint": "m.safetensors"},
        "sample": {"every": 5},
    }
    with pytest.raises(ConfigError, match="the caches of this dataset do not say their captions"):
        check_planned(make_run(run), published="2.3")
    check_planned(make_run(run | {"sample": {"every": 5, "prompts": ["a fox"]}}), published="2.3")
    table = {"datasets": [{"cache_only": True, "cache_directory": str(made.config.datasets[0].caches)}]}
    assert not are_unsaid(DatasetConfig.from_table(table, tmp_path))


def test_of_many_that_an_import_leaves_out_the_rest_is_counted(tmp_path):
    report = ImportReport(tmp_path, 1, [Skipped(tmp_path / f"{number}.pt", "it is damaged") for number in range(45)])
    assert report.summary().splitlines()[-2:] == ["  39.pt: it is damaged", "  and 5 more"]
