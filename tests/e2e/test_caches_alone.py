"""From a manifest, with the clips gone, to the same losses as with them; and masks and references on the way."""

from __future__ import annotations

import json
import shutil

from community_caches import community
from media import write_image

from ltx2_train import build_caches, load_run, train
from ltx2_train.weights.load import load_connectors


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_from_the_manifest_is_the_training_from_the_clips(run_file):
    steps = ["train.steps=2"]
    build_caches(load_run(run_file))
    with_clips = train(load_run(run_file, [*steps, "run.name=a"]))
    shutil.rmtree(run_file.parent / "clips")
    manifest = "data.manifest=cache/dataset_manifest.json"
    alone = train(load_run(run_file, [*steps, "run.name=b", manifest]))
    assert losses(with_clips.folder) == losses(alone.folder)


def test_references_masks_and_mirrored_copies_are_cached_by_the_real_encoder(run_file, all_used):
    write_image(run_file.parent / "refs" / "clip.png", caption=None)
    write_image(run_file.parent / "masks" / "clip.png", caption=None)
    file = run_file.parent / "dataset.toml"
    file.write_text(file.read_text() + 'reference_directory = "refs"\nmask_directory = "masks"\nflip = true\n')
    report = build_caches(load_run(run_file))
    assert (report.kinds["latents"].made, report.kinds["latents"].kept) == (3 + 6, 3)
    assert report.kinds["masks"].made == 6
    assert "masks: 6 made" in report.summary()
    result = train(load_run(run_file, ["train.steps=1"]))
    assert len(losses(result.folder)) == 1


def test_caches_that_the_community_trainer_wrote_are_trained_on(run_file, tiny):
    connectors = load_connectors(tiny.checkpoint, "av")
    width = (connectors.video_embeddings_connector.width, connectors.audio_embeddings_connector.width)
    community(run_file.parent / "theirs", width=width)
    (run_file.parent / "dataset.toml").write_text("[[datasets]]\ncache_only = true\ncache_directory = 'theirs'\n")
    done = train(load_run(run_file, ["run.name=theirs", "model.mode=av", "train.steps=3", "train.caption_dropout=0"]))
    assert done.step == 3  # the clip with its sound, the picture, the recording
    assert all(loss > 0 for loss in losses(done.folder))
