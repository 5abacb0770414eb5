"""What lies in the cache folders, what is deleted, and how fast a large dataset is read again."""

from __future__ import annotations

import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import torch
from fake_encoders import CountingEncoder, PoolingVAE
from fill_caches import encode_latents, encode_text
from media import moving_square, write_captioned, write_image, write_video

from ltx2_train.caching.cache_file import CACHE_FORMAT, Fingerprints, latent_key
from ltx2_train.caching.encode import Latents
from ltx2_train.caching.encode_text import Text
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.caching.settings import CacheSettings
from ltx2_train.caching.status import cache_status, remove_caches
from ltx2_train.cli import main
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.media_index import INDEX_NAME, MediaIndex
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.dataset.sources import source_record
from ltx2_train.files import write_tensors
from ltx2_train.media.video import probe_media

WEIGHTS = Fingerprints("ckpt", "gemma")
RECIPE = CacheRecipe(video_vae="vae", text=WEIGHTS)


def config(folder, **general):
    entry = {"image_directory": "pics", "cache_directory": "cache"}
    return DatasetConfig.from_table({"general": {"resolution": 64, **general}, "datasets": [entry]}, folder)


def build(config):
    plan = plan_dataset(config)
    encode_latents(plan, PoolingVAE, "vae", CacheSettings())
    encode_text(plan, CountingEncoder, WEIGHTS, CacheSettings())
    return plan


def states(status):
    return {row.path.name: (row.state, row.why) for row in status.rows if row.state != "present"}


def test_every_state_is_told_with_its_reason(tmp_path):
    for name in "abcd":
        write_image(tmp_path / "pics" / f"{name}.png", caption=f"picture {name}")
    plan = build(config(tmp_path))
    (tmp_path / "cache" / "notes.safetensors").write_text("not ours")
    (tmp_path / "cache" / "a_ltx2_te_compact.safetensors").unlink()
    (tmp_path / "pics" / "b.txt").write_text("another caption")
    (tmp_path / "cache" / "c_0080x0060_ltx2.safetensors").write_bytes(b"broken")
    for suffix in (".png", ".txt"):
        (tmp_path / "pics" / f"d{suffix}").unlink()
    plan = plan_dataset(config(tmp_path))
    status = cache_status(plan, RECIPE)
    assert states(status) == {
        "a_ltx2_te_compact.safetensors": ("missing", ""),
        "b_ltx2_te_compact.safetensors": ("stale", "the caption (or trigger word) changed"),
        "c_0080x0060_ltx2.safetensors": ("stale", "damaged"),
        "d_0080x0060_ltx2.safetensors": ("orphaned", "no sample uses it"),
        "d_ltx2_te_compact.safetensors": ("orphaned", "no sample uses it"),
    }
    assert not status.complete
    assert json.loads(json.dumps(status.to_json()))["states"]["orphaned"]["files"] == 2
    assert "d_ltx2_te_compact" in status.text()
    other = cache_status(plan, CacheRecipe(video_vae="x")).of("stale")
    assert other[0].why == "it was made with another VAE"
    freed = remove_caches(status.of("orphaned"))
    assert freed > 0
    assert not list((tmp_path / "cache").glob("d_*"))
    assert (tmp_path / "cache" / "notes.safetensors").exists()


def test_verifying_finds_what_headers_do_not_show_and_a_build_mends_it(run_file, capsys):
    path = next((run_file.parent / "cache").glob("*_ltx2.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert main(["cache", "status", str(run_file)]) == 0, "headers alone are read"
    assert main(["cache", "status", str(run_file), "--verify"]) == 1
    assert f"{path.name}: its bytes are not those that were written" in capsys.readouterr().out
    assert main(["cache", "build", str(run_file)]) == 0
    assert "1 made (1 were stale)" in capsys.readouterr().out
    assert main(["cache", "status", str(run_file), "--verify"]) == 0


def test_verifying_reads_the_media_and_finds_other_bytes_of_the_same_size_and_time(run_file, capsys):
    clip = next((run_file.parent / "clips").glob("*.png"), None) or next((run_file.parent / "clips").glob("*.mp4"))
    stat, data = clip.stat(), bytearray(clip.read_bytes())
    data[-1] ^= 1
    clip.write_bytes(bytes(data))
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert main(["cache", "status", str(run_file)]) == 0, "size and time are those of before"
    assert main(["cache", "status", str(run_file), "--verify"]) == 1
    assert f"{clip.name} changed (same size and time, other content)" in capsys.readouterr().out
    assert main(["cache", "status", str(run_file)]) == 1, "it is known from then on"
    assert main(["cache", "build", str(run_file)]) == 0
    assert main(["cache", "status", str(run_file), "--verify"]) == 0


def test_of_caches_alone_what_training_reads_is_looked_at(run_file, capsys):
    folder, dataset = run_file.parent / "cache", run_file.parent / "dataset.toml"
    shutil.rmtree(run_file.parent / "clips")
    dataset.write_text(f"[[datasets]]\ncache_directory = {str(folder)!r}\ncache_only = true\n")
    path, text = next(folder.glob("*_ltx2.safetensors")), next(folder.glob("*_te_compact.safetensors"))
    status = ["cache", "status", str(run_file)]
    assert main(status) == 0
    assert re.search(r"present .*\b\d+ latents, .*1 text", capsys.readouterr().out)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert main(status) == 0, "headers alone are read"
    assert main([*status, "--verify"]) == 1
    assert f"{path.name}: The cache {path} is damaged: the bytes of" in capsys.readouterr().out
    path.write_bytes(b"x")
    assert main(status) == 1
    path.write_bytes(whole)
    text.unlink()
    assert main(status) == 1
    assert "no text cache for clip" in capsys.readouterr().out


def test_the_commands_list_first_and_delete_only_when_told(run_file, capsys):
    cache = run_file.parent / "cache"
    extra = cache / "gone_00000-009_0064x0064_ltx2.safetensors"
    extra.write_bytes(b"x" * 2000)
    assert main(["cache", "status", str(run_file)]) == 0
    assert "orphaned" in capsys.readouterr().out
    assert main(["cache", "status", str(run_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"] is True
    assert main(["cache", "clean", str(run_file)]) == 0
    assert "Nothing was deleted" in capsys.readouterr().out
    assert extra.exists()
    before = {path for path in run_file.parent.rglob("*") if path.is_file()}
    assert main(["cache", "clean", str(run_file), "--yes"]) == 0
    after = {path for path in run_file.parent.rglob("*") if path.is_file()}
    assert before - after == {extra}
    next(cache.glob("*_ltx2.safetensors")).unlink()
    assert main(["cache", "status", str(run_file)]) == 1


def test_a_folder_in_the_place_of_a_cache_is_named_before_anything_is_encoded(run_file, capsys, monkeypatch):
    (cached := next((run_file.parent / "cache").glob("*_ltx2.safetensors"))).unlink()
    cached.mkdir()
    words = "a folder lies in its place; move it away"
    assert main(["cache", "status", str(run_file)]) == 1
    assert f"{cached.name}: {words}" in capsys.readouterr().out
    monkeypatch.setattr("ltx2_train.sampling.render.load_video_vae", lambda *_, **__: pytest.fail("loaded"))
    assert main(["cache", "build", str(run_file)]) == 1
    assert f"The cache {cached} cannot be written: {words}." in capsys.readouterr().err
    assert main(["train", str(run_file)]) == 1
    assert f"{cached.name}: {words}" in capsys.readouterr().err


def test_a_cache_that_cannot_be_deleted_is_named(run_file, capsys, monkeypatch):
    extra = run_file.parent / "cache" / "gone_00000-009_0064x0064_ltx2.safetensors"
    extra.write_bytes(b"x" * 2000)

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(extra), "unlink", refuse)
    assert main(["cache", "clean", str(run_file), "--yes"]) == 1
    told = capsys.readouterr().err
    assert f"error: {extra} could not be deleted: Permission denied. 0 of 1 files were deleted before it." in told


# --- the index of media ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["steady", "varying", "avi", "image"])
def test_the_index_gives_back_the_very_same(tmp_path, kind):
    clip = moving_square(20, 64, 48)
    if kind == "image":
        path = write_image(tmp_path / "a.png")
    elif kind == "avi":
        path = write_video(tmp_path / "a.avi", clip, fps=24, codec="mpeg4")
    else:
        times = None if kind == "steady" else list(np.cumsum(np.random.default_rng(0).uniform(0.02, 0.08, 20)))
        path = write_video(tmp_path / "a.mp4", clip, fps=29.97, times=times)
    info = probe_media(path)
    (tmp_path / "cache").mkdir()
    index = MediaIndex(tmp_path / "cache")
    index.put(info, 5, 6)
    index.save()
    again = MediaIndex(tmp_path / "cache")
    assert again.get(path, 5, 6) == info
    assert again.get(path, 5, 7) is None
    (tmp_path / "cache" / INDEX_NAME).write_text("{")
    assert MediaIndex(tmp_path / "cache").get(path, 5, 6) is None


@pytest.mark.slow
def test_five_thousand_clips_are_read_again_in_seconds(tmp_path):
    clips, count = tmp_path / "clips", 5000
    first = write_captioned(clips / "c00000.mp4", moving_square(9, 64, 64))
    data = first.read_bytes()
    for number in range(1, count):
        # a box of free space makes each a file of its own size
        padding = (8 + number).to_bytes(4, "big") + b"free" + b"\0" * number
        (clips / f"c{number:05}.mp4").write_bytes(data + padding)
        (clips / f"c{number:05}.txt").write_text(f"clip {number}")
    entry = {"video_directory": "clips", "cache_directory": "cache", "target_frames": [9]}
    dataset = DatasetConfig.from_table({"general": {"resolution": 64}, "datasets": [entry]}, tmp_path)
    (tmp_path / "cache").mkdir()
    plan = plan_dataset(dataset)
    latents, text = Latents(plan, RECIPE), Text(plan, RECIPE)
    assert len(plan.items) == count
    head = {"format_version": CACHE_FORMAT, "architecture": "ltx2_v1"}
    for item in plan.items:
        metadata = {
            **head,
            "source": json.dumps(source_record(item.source.path)),
            "settings": json.dumps(latents.made_from(item)),
            "checkpoint": "vae",
        }
        latents = torch.zeros(128, 2, 2, 2, dtype=torch.bfloat16)
        write_tensors(item.latent_path, {latent_key(item.shape, torch.bfloat16): latents}, metadata)
        told = {
            "caption": item.caption,
            "settings": json.dumps(text.of(item).made_from),
            "checkpoint": "ckpt",
            "encoder": "gemma",
        }
        features = {"video_features_bfloat16": torch.zeros(3, 24, dtype=torch.bfloat16)}
        write_tensors(item.source.text_path("compact"), features, {**head, **told})
    os.sync()
    started = time.process_time()
    status = cache_status(plan_dataset(dataset), RECIPE)
    spent = time.process_time() - started
    assert len(status.of("present")) == 2 * count
    assert spent < 5
