"""A run with references, from folders to a LoRA: cached, trained, drawn beside the sample, proved and written down."""

import json

import numpy as np
import pytest
import torch
from media import grey_levels, write_captioned, write_video

from ltx2_train import Events, build_caches, load_run, sample, train
from ltx2_train.conditions.trained import Trained
from ltx2_train.lora.file import load_lora_state

STEPS = 2


class Told(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append((level, text))


@pytest.fixture
def pairs(tiny, tmp_path):
    """A run file whose three clips have references of half the size and rate."""
    for index, name in enumerate("abc"):
        write_captioned(tmp_path / "clips" / f"{name}.mp4", grey_levels(17, 64, 64, step=5 + 4 * index), "a grey field")
        write_video(tmp_path / "references" / f"{name}.mp4", grey_levels(17, 64, 64, step=14 - 4 * index))
    (tmp_path / "dataset.toml").write_text(
        "[general]\nresolution = [64, 64]\n"
        "[[datasets]]\nvideo_directory = 'clips'\nreference_directory = 'references'\n"
        "cache_directory = 'cache'\ntarget_frames = [17]\nreference_frames = 0\nreference_downscale = 2\n"
        "reference_temporal_scale = 2\n"
    )
    (tmp_path / "run.toml").write_text(
        f"[run]\nname = 'pairs'\n[model]\ncheckpoint = '{tiny.checkpoint.as_posix()}'\n"
        f"text_encoder = '{tiny.text_encoder.as_posix()}'\nmode = 'video'\nprecision = 'fp32'\n"
        "[data]\nconfig = 'dataset.toml'\n[lora]\nrank = 4\n[cache]\nvae_dtype = 'fp32'\n"
        f"[train]\nsteps = {STEPS}\nfirst_frame_probability = 0\n[[video.conditions]]\ntype = 'reference'\n"
        "[sample]\nevery = 2\nat_start = false\nsteps = 1\nguidance = 1\nstg = 0\n"
        "width = 64\nheight = 64\nframes = 17\n"
        "include_reference = true\nprompts = ['--v references/a.mp4 a grey field']\n"
    )
    return tmp_path / "run.toml"


def test_a_run_with_references(pairs, monkeypatch):
    monkeypatch.chdir(pairs.parent)
    run, told = load_run(pairs), Told()
    build_caches(run, told)
    result = train(run, told)
    # proved: at the start and at the end, in the manifest, the metrics and in words
    manifest = json.loads((result.folder / "manifest.json").read_text())
    known = manifest["references"]
    assert (known["start"]["step"], known["end"]["step"], known["end"]["clips"]) == (0, STEPS, 3)
    assert manifest["status"] == "finished"
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["reference_loss"] == known["end"]["reference_loss"]
    assert any("Before training, references: the loss is" in text for _, text in told.texts)
    assert any(text.startswith("References: the loss is") for _, text in told.texts)
    # it changes nothing of the training
    plain = train(load_run(pairs, ["run.name=unproved", "train.prove_references=false", "sample.every=0"]))
    others = [json.loads(line) for line in (plain.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == [row["loss"] for row in others]
    # written into the file, in the names that loaders know
    metadata = load_lora_state(result.lora).metadata
    assert metadata["reference_downscale_factor"] == metadata["ss_reference_downscale_factor"] == "2"
    assert metadata["reference_temporal_scale_factor"] == "2"
    assert json.loads(metadata["conditions"]) == [{"stream": "video", "type": "reference"}]
    assert Trained.read(metadata) == Trained(2, 2, 0)
    # drawn with the reference beside it
    import av

    (drawn,) = (result.folder / "samples").glob("step_000002_*.mp4")
    with av.open(str(drawn)) as container:
        assert container.streams.video[0].width == 128
    # the command draws with what the file says, whatever the dataset says by now
    text = (pairs.parent / "dataset.toml").read_text()
    (pairs.parent / "dataset.toml").write_text(text.replace("downscale = 2", "downscale = 1"))
    out = pairs.parent / "drawn"
    (one,) = sample(load_run(pairs), result.lora, out)
    (other,) = sample(load_run(pairs), result.lora, out, prompts=["--v references/b.mp4 a grey field"])
    assert not torch.allclose(one.latents, other.latents, atol=1e-3)
    assert np.isfinite(one.latents.numpy()).all()
