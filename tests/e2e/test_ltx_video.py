"""LTX-Video from a clip to a LoRA: caches, captions of different lengths in one batch, samples, going on; and what is
refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DATASET, RUN
from safetensors.torch import load_file

from ltx2_train import Events, build_caches, check_base, load_run, make_run, probe, train
from ltx2_train import files as atomic
from ltx2_train.errors import CheckpointError, TrainerError
from ltx2_train.feed.loader import load_text
from ltx2_train.lora.file import load_lora_state
from ltx2_train.weights.fingerprint import part_fingerprint
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.tiny import make_tiny


@pytest.fixture(scope="module")
def tinyv(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tinyv"), "ltxv-2b")


@pytest.fixture(scope="module")
def folder(tinyv, drawn_clip: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runv")
    (folder / "clips").mkdir()
    for name, caption in (("short", "a red ball"), ("long", "a red ball bounces on a busy street, shot on film")):
        shutil.copy2(drawn_clip, folder / "clips" / f"{name}.mp4")
        (folder / "clips" / f"{name}.txt").write_text(caption)
    (folder / "dataset.toml").write_text(DATASET.replace("frame_sample = 3", "frame_sample = 1\nbatch_size = 2"))
    (folder / "run.toml").write_text(RUN.format(checkpoint=tinyv.checkpoint, encoder=tinyv.text_encoder))
    return folder


def test_a_clip_becomes_a_lora_that_draws_and_goes_on(folder, tinyv):
    run = folder / "run.toml"
    build_caches(load_run(run))
    lengths = {load_text(path).tokens for path in (folder / "cache").glob("*_te_compact.safetensors")}
    assert len(lengths) == 2, "valid tokens alone are kept"
    drawn = ['sample.prompts=["a fox --n blurry"]', "sample.every=2", "sample.at_start=false", "sample.guidance=3.0"]
    same = ["train.save_precision=fp32", "train.caption_dropout=0.3", "schedule.name=constant"]
    whole = train(load_run(run, ["run.name=whole", "train.steps=2", "sample.stg=1.0", *same, *drawn]))
    assert list((whole.folder / "samples").glob("*.mp4"))
    assert whole.lora is not None

    train(load_run(run, ["run.name=half", "train.steps=1", *same]))
    twice = train(load_run(run, ["run.name=half", "train.steps=2", *same]))
    assert twice.lora is not None
    one, other = load_file(whole.lora), load_file(twice.lora)
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

    file = load_lora_state(whole.lora)
    assert file.version == file.metadata["version"] == "ltxv-2b"
    assert file.metadata["modelspec.architecture"] == "ltx-video-2b/lora"
    assert all(key.startswith("diffusion_model.transformer_blocks.") for key in one)
    assert sum(tensor.abs().sum() for name, tensor in one.items() if name.endswith("lora_B.weight")) > 0


def test_2b_and_13b_share_what_is_cached_of_a_clip(tinyv, tmp_path):
    with TensorFile(tinyv.checkpoint) as file:
        vae = {name.removeprefix("vae."): file.read(name) for name in file.tensors if name.startswith("vae.")}
        atomic.write_tensors(tmp_path / "vae.safetensors", vae, file.metadata)
    stamps = {part_fingerprint(path, "video_vae") for path in (tinyv.checkpoint, tmp_path / "vae.safetensors")}
    assert len(stamps) == 1


def saved(tinyv, path: Path, drop: str = "\0", **header) -> Path:
    """The tiny checkpoint at `path` without the tensors that begin with `drop`, other words in its header."""
    with TensorFile(tinyv.checkpoint) as file:
        config = dict(file.config or {})
        config["transformer"] = {**config["transformer"], **header}
        kept = {name: file.read(name) for name in file.tensors if not name.startswith(drop)}
    atomic.write_tensors(path, kept, {"config": json.dumps(config)})
    return path


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.mode": "av"}, r"model\.mode is av, and .* is LTX-Video 2B, which has no sound"),
        ({"model.mode": "audio"}, r"model\.mode is audio"),
        ({"model.text_encoder": "gemma"}, r"is Gemma 3; .* is LTX-Video 2B, which was trained with T5.*t5xxl_fp16"),
        ({"model.checkpoint": "an LTX-2.3"}, r"is T5, which belongs to LTX-Video; .* is LTX-2\.3.*gemma_3_12B"),
        ({"model.text_encoder": "gguf"}, r"t5xxl-Q4\.gguf is a GGUF file.*gemma\.precision"),
        ({"model.text_encoder": "gemma 4"}, r"is Gemma 4, which belongs to LTX-2\.5.*LTX-Video 2B"),
        ({"model.text_encoder": "alone"}, r"has no tokenizer.*gemma\.tokenizer.*t5_tokenizer"),
        ({"model.checkpoint": "an LTX-2.3", "model.text_encoder": "gemma", "gemma.tokenizer": "spiece"},
         r"gemma\.tokenizer is set, and .* brings its own"),
        ({"model.version": "2.3", "model.version_check": "off"}, r"is LTX-Video 2B, but model\.version says 2\.3"),
        ({"cache.text_form": "full"}, r"cache\.text_form is full.*no text connectors"),
        ({"sample.upsampler": "up.safetensors"}, r"sample\.upsampler is set, and .* is LTX-Video 2B.*in one stage"),
        ({"model.audio_vae": "an LTX-2.3"}, r"model\.audio_vae is set, and .* is LTX-Video 2B, which has none"),
        ({"model.video_vae": "an LTX-2.3"}, r"belongs to LTX-2\.3, but .* is LTX-Video 2B"),
        ({"model.checkpoint": "no vae"}, r"holds no video VAE encoder\. Set model\.video_vae to ltxv-2b-0\.9\.6-dev"),
    ],
    ids=str,
)  # fmt: skip
def test_what_ltx_video_has_not_is_refused_by_name(tinyv, tiny, tiny25, tmp_path, settings, words):
    known = {
        "an LTX-2.3": tiny.checkpoint,
        "gemma": tiny.text_encoder,
        "alone": Path(shutil.copy(tinyv.text_encoder, tmp_path / "t5xxl.safetensors")),
        "spiece": tinyv.gemma_folder / "tokenizer" / "spiece.model",
        "gguf": tmp_path / "t5xxl-Q4.gguf",
        "gemma 4": tiny25.text_encoder,
        "no vae": saved(tinyv, tmp_path / "x.safetensors", "vae."),
    }
    known["gguf"].write_bytes(b"GGUF" + bytes(2000))
    tables: dict = {"model": {"checkpoint": str(tinyv.checkpoint), "text_encoder": str(tinyv.text_encoder)}}
    for dotted, value in settings.items():
        group, name = dotted.split(".")
        tables.setdefault(group, {})[name] = str(known.get(value, value))
    with pytest.raises(TrainerError, match=words):
        check_base(make_run(tables), Events())


@pytest.mark.parametrize(
    ("name", "drop", "header", "words"),
    [
        ("ltxv-2b-0.9.6-distilled-04-25", "-", {}, r"is a distilled LTX-Video 2B.*ltxv-2b-0\.9\.6-dev"),
        ("ltxv-2b-0.9.8-distilled", "-", {}, r"ltxv-2b-0\.9\.8-distilled\.safetensors is a distilled"),
        ("older", "-", {"causal_temporal_positioning": False}, r"LTX-Video 0\.9\.1 or older"),
        ("ltxv-0.9.1", "vae.encoder.down_blocks.1.", {}, r"LTX-Video 0\.9\.1 or older"),
        (
            "renamed",
            "-",
            {"_class_name": "AVTransformer3DModel"},
            r"metadata say LTX-2\.0, its .* of LTX-Video",
        ),
    ],
)
def test_a_file_that_must_not_be_trained_on_says_why(tinyv, tmp_path, name, drop, header, words):
    path = saved(tinyv, tmp_path / f"{name}.safetensors", drop, **header)
    info = probe(path)
    assert not info.trainable
    run = make_run({"model": {"checkpoint": str(path), "text_encoder": str(tinyv.text_encoder)}})
    with pytest.raises(CheckpointError, match=words):
        check_base(run, Events())
