"""References, masks and changes at caching: what is made of them, pixel by pixel where it can be told."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from fake_encoders import CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_masks, encode_text
from media import grey_levels, moving_square, numbers, tone, write_captioned, write_image, write_sound, write_video
from PIL import Image

from ltx2_train.caching.cache_file import CacheFile, Fingerprints
from ltx2_train.caching.encode_mask import sound_mask
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.dataset.augment import jitter, motion_centre, read_clip
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.dataset.reference import read_reference
from ltx2_train.errors import CacheError, DataError
from ltx2_train.feed.loader import TrainingSet

WEIGHTS = Fingerprints("ckpt", "gemma")
RECIPE = CacheRecipe(video_vae="vae", text=WEIGHTS)
SETTINGS = CacheSettings()


def config(folder, general=None, **entry):
    entry = {"video_directory": "clips", "cache_directory": "cache", "target_frames": [9], **entry}
    return DatasetConfig.from_table({"general": {"resolution": 64, **(general or {})}, "datasets": [entry]}, folder)


def build(config, vae="vae"):
    plan = plan_dataset(config)
    report = encode_latents(plan, PoolingVAE, vae, SETTINGS)
    masks = encode_masks(plan, SETTINGS)
    encode_text(plan, CountingEncoder, WEIGHTS, SETTINGS)
    return plan, report, masks


# --- references ------------------------------------------------------------------------------------------------------


def test_references_are_found_by_stem_and_cached_smaller_under_the_same_name(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 128, 64))
    write_captioned(tmp_path / "clips" / "B.mp4", moving_square(9, 128, 64))
    write_captioned(tmp_path / "clips" / "c.mp4", moving_square(9, 128, 64))
    write_image(tmp_path / "refs" / "a.png", 128, 64, caption=None)
    write_video(tmp_path / "refs" / "b.mp4", moving_square(20, 128, 64))
    entry = {"resolution": [128, 64], "reference_directory": "refs", "reference_downscale": 2, "reference_frames": 9}
    plan, report, _ = build(config(tmp_path, **entry))
    assert [skip.reason.split(":")[0] for skip in plan.skipped] == ["no reference"]
    assert "c.mp4" in plan.summary()
    assert report.made == 4
    names = sorted(path.name for path in (tmp_path / "cache" / "reference").iterdir())
    assert names == ["B_00000-009_0128x0064_ltx2.safetensors", "a_00000-009_0128x0064_ltx2.safetensors"]
    data = TrainingSet.open(config(tmp_path, **entry), RECIPE)
    assert [[one.shape for one in data.load_references(sample)] for sample in data.samples] == [[(128, 2, 1, 2)]] * 2
    assert [data.load_latents(sample).shape for sample in data.samples] == [(128, 2, 2, 4)] * 2
    with pytest.raises(CacheError, match="reference_frames changed"):
        TrainingSet.open(config(tmp_path, **{**entry, "reference_frames": 1}), RECIPE)
    (tmp_path / "cache" / "reference" / names[0]).unlink()
    with pytest.raises(CacheError, match=r"B_00000.*missing"):
        TrainingSet.open(config(tmp_path, **entry), RECIPE)


@pytest.mark.parametrize("setting", ["reference_directory", "mask_directory"])
def test_a_clip_is_no_companion_of_itself(tmp_path, setting):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    with pytest.raises(DataError, match="would be itself"):
        plan_dataset(config(tmp_path, **{setting: "clips"}))


def test_a_reference_of_the_clips_length_follows_its_window_and_another_does_not(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", grey_levels(20))
    write_video(tmp_path / "refs" / "a.mp4", grey_levels(20))
    chunks = {"frame_extraction": "chunk", "reference_directory": "refs", "reference_frames": 0}
    plan = plan_dataset(config(tmp_path, **chunks))
    entry = plan.config.datasets[0]
    assert numbers(read_reference(plan.items[1], entry)) == list(range(9, 18))
    write_video(tmp_path / "refs" / "a.mp4", grey_levels(5))
    plan = plan_dataset(config(tmp_path, **chunks))
    assert numbers(read_reference(plan.items[1], entry)) == [0, 1, 2, 3, 4, 4, 4, 4, 4]


def test_a_reference_that_cannot_be_read_leaves_its_clip_out(tmp_path):
    for name in "ab":
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(9, 64, 64), caption=name)
        write_image(tmp_path / "refs" / f"{name}.png", 64, 64, caption=None)
    (tmp_path / "refs" / "b.png").write_bytes(b"no picture")
    entry = config(tmp_path, reference_directory="refs")
    plan, report, _ = build(entry)
    assert (report.failed, [skip.path.name for skip in plan.skipped]) == ([], ["b.mp4"])
    assert "no reference" in plan.skipped[0].reason
    assert "b.png cannot be read" in plan.skipped[0].reason
    data = TrainingSet.open(entry, RECIPE)
    assert [sample.caption for sample in data.samples] == ["a"]


def test_what_has_the_name_of_a_companion_and_is_no_file_is_named_as_what_it_is(tmp_path):
    for name in "abcd":
        write_image(tmp_path / "clips" / f"{name}.png", 64, 64)
    (tmp_path / "masks" / "a.png").mkdir(parents=True)
    (tmp_path / "masks" / "b.png").symlink_to("gone.png")
    os.mkfifo(tmp_path / "masks" / "c.png")
    write_image(tmp_path / "masks" / "d.png", 64, 64, caption=None)
    entry = {"image_directory": "clips", "cache_directory": "cache", "mask_directory": "masks"}
    table = {"general": {"resolution": 64}, "datasets": [entry]}
    plan = plan_dataset(DatasetConfig.from_table(table, tmp_path))
    said = {skip.path.name: skip.reason.partition(f"{tmp_path / 'masks'}{os.sep}")[2] for skip in plan.skipped}
    assert said == {
        "a.png": "a.png is a folder, not a file",
        "b.png": "b.png is a link to a file that is gone",
        "c.png": "c.png is not a file that can be read, but a pipe, a socket or a device",
    }
    assert all(skip.reason.startswith("no mask: ") for skip in plan.skipped)


# --- masks -----------------------------------------------------------------------------------------------------------


def half_white(path, width, height):
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def test_masks_come_at_the_resolution_of_latents_mirrored_with_their_clip(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    write_captioned(tmp_path / "clips" / "b.mp4", moving_square(9, 64, 64))
    half_white(tmp_path / "masks" / "a.png", 64, 64)
    entry = config(tmp_path, mask_directory="masks", flip=True)
    plan, _, masks = build(entry)
    assert any("b.mp4" in warning and "no mask" in warning for warning in plan.warnings)
    assert (masks.made, plan.pairs) == (2, ())
    data = TrainingSet.open(entry, RECIPE)
    plain, mirrored = (sample for sample in data.samples if sample.mask_path is not None)
    assert data.load_mask(plain).tolist() == [[[True, False]] * 2] * 2
    assert data.load_mask(mirrored).tolist() == [[[False, True]] * 2] * 2
    assert CacheFile(plain.mask_path).keys == ["mask"]


def test_a_video_mask_is_given_where_most_of_a_latents_frames_are_white(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(17, 64, 64))
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    frames[1:6] = 255  # five of the eight frames of latent 1, none of the first frame, one short of half of latent 2
    frames[9:13] = 255
    write_video(tmp_path / "masks" / "a.mp4", frames)
    entry = config(tmp_path, mask_directory="masks", target_frames=[17])
    build(entry)
    data = TrainingSet.open(entry, RECIPE)
    assert data.load_mask(data.samples[0]).flatten(1).float().mean(dim=1).tolist() == [0.0, 1.0, 0.0]


def test_a_mask_of_another_shape_is_stretched_with_a_note(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 128, 64))
    half_white(tmp_path / "masks" / "a.png", 50, 50)
    entry = config(tmp_path, mask_directory="masks", resolution=[128, 64])
    plan, _, _ = build(entry)
    (said,) = plan.pairs
    assert said.endswith("1 masks have another size than their clips and are resized: a.png is 50x50, not 128x64")
    assert said in plan.warnings
    assert said in plan.summary()
    data = TrainingSet.open(entry, RECIPE)
    assert data.load_mask(data.samples[0])[0].tolist() == [[True, True, False, False]] * 2


def test_masks_that_give_nothing_or_all_are_told_where_they_are_encoded(tmp_path):
    for name, level in {"a": 0, "b": 255, "c": 0}.items():
        write_video(tmp_path / "clips" / f"{name}.mp4", moving_square(9, 64, 64), sound=tone(1))
        (tmp_path / "clips" / f"{name}.txt").write_text("a square")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.new("L", (64, 64), level).save(tmp_path / "masks" / f"{name}.png")
        (tmp_path / "masks" / f"{name}.json").write_text("[]" if name == "c" else "[[0, 0.1]]")
    half_white(tmp_path / "masks" / "c.png", 64, 64)
    _, _, masks = build(config(tmp_path, mask_directory="masks", audio_mask_directory="masks"))
    assert masks.notes == [
        "1 masks are white all over in windows that were made now, so that nothing is left to make there: b.png",
        "1 masks are darker than one half in all windows that were made now, and give nothing; white is given: a.png",
        "1 masks for sound give nothing in the windows that were made now; level 1, or a span, is given: c.json",
    ]


def test_sound_masks_from_seconds_and_from_levels(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(25, 64, 64))
    write_sound(tmp_path / "clips" / "a.wav", tone(1))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.json").write_text(json.dumps([[0, 0.2], [0.1, 0.4]]))
    entry = config(tmp_path, audio_mask_directory="masks", audio_source="audio_files", target_frames=[25])
    (item,) = plan_dataset(entry).items
    assert item.audio_mask.name == "a.json"
    assert sound_mask(item.audio_mask, item).tolist() == [1] * 10 + [0] * 16
    level = np.zeros((1, 16000), np.float32)
    level[:, 8000:] = 1.0
    wave = write_sound(tmp_path / "masks" / "b.wav", level, 16000)
    mask = sound_mask(wave, item)
    assert mask.dtype == torch.uint8
    assert (mask[:12].sum(), mask[13:].sum()) == (0, 13)  # the last has hardly anything of its own
    (tmp_path / "masks" / "a.json").write_text("[[1, 0]]")
    with pytest.raises(DataError, match="must end after it begins"):
        sound_mask(item.audio_mask, item)


# --- changes ---------------------------------------------------------------------------------------------------------


def test_flip_adds_a_mirrored_copy_that_shares_text(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    entry = config(tmp_path, flip=True)
    plan, report, _ = build(entry)
    assert (report.made, len(plan.sources)) == (2, 1)
    names = [item.latent_path.name for item in plan.items]
    assert names == ["a_00000-009_0064x0064_ltx2.safetensors", "a~flip_00000-009_0064x0064_ltx2.safetensors"]
    plain, mirrored = (read_clip(item, entry.datasets[0]) for item in plan.items)
    assert np.array_equal(plain[:, :, ::-1], mirrored)
    data = TrainingSet.open(entry, RECIPE)
    first, second = (data.load_latents(sample) for sample in data.samples)
    assert torch.allclose(first.flip(-1), second, atol=0.02)
    assert data.samples[0].text_path == data.samples[1].text_path


def test_a_change_of_colours_or_crop_makes_caches_stale_and_none_does_not(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    build(config(tmp_path))
    TrainingSet.open(config(tmp_path), RECIPE)
    for change in ({"color_jitter": 0.2}, {"crop": "motion"}):
        with pytest.raises(CacheError, match=f"{next(iter(change))} changed"):
            TrainingSet.open(config(tmp_path, **change), RECIPE)


def test_jitter_is_small_and_settled_by_the_name():
    clip = moving_square(3, 64, 64)
    one, again, other = clip.copy(), clip.copy(), clip.copy()
    jitter(one, 0.2, "a.mp4")
    jitter(again, 0.2, "a.mp4")
    jitter(other, 0.2, "b.mp4")
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    assert 1 < np.abs(one.astype(int) - clip).mean() < 60
    same = clip.copy()
    jitter(same, 1e-9, "a.mp4")
    assert np.abs(same.astype(int) - clip).max() <= 1


def test_the_crop_follows_what_moves(tmp_path):
    clip = np.full((9, 64, 192, 3), 60, np.uint8)
    for index in range(9):
        clip[index, 20:40, 140 + 3 * index : 160 + 3 * index] = 240
    across, down = motion_centre(clip)
    assert 0.75 < across < 0.95
    assert 0.4 < down < 0.55
    assert motion_centre(clip[:1]) == motion_centre(np.repeat(clip[:1], 3, 0)) == (0.5, 0.5)
    write_captioned(tmp_path / "clips" / "a.mp4", clip)
    seen = []
    for crop in ("center", "motion"):
        entry = config(tmp_path, crop=crop)
        (item,) = plan_dataset(entry).items
        seen.append(int((read_clip(item, entry.datasets[0])[4] > 200).any(axis=2).sum()))
    assert seen[0] == 0
    assert seen[1] >= 300, "the moving block is whole"
