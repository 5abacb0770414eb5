"""LTX-2.5 from its four files and from one: caches, training and samples; what is wrong with a part is said by name."""

from __future__ import annotations

import shutil

import pytest

from ltx2_train import Events, build_caches, check_base, files, load_run, make_run, probe, train
from ltx2_train.config.base_files import BaseFiles
from ltx2_train.errors import CheckpointError
from ltx2_train.lora.file import load_lora_state
from ltx2_train.weights.fingerprint import part_fingerprint
from ltx2_train.weights.reader import TensorFile


class Heard(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


def test_four_files_and_one_train_and_draw_from_the_same_caches(tiny25, folder25):
    # encoded with the file whose decoder draws nothing here; its encoder is that of the others
    build_caches(load_run(folder25 / "run.toml", [f"model.video_vae={tiny25.diffusion_vae}", "model.mode=av"]))
    cached = {path: path.stat().st_mtime_ns for path in (folder25 / "cache").glob("*.safetensors")}
    assert cached
    heard = Heard()
    quick = ["train.steps=2", "train.save_precision=fp32"]
    drawn = ['sample.prompts=["a fox"]', "sample.every=2", "sample.at_start=false", "sample.guidance=2.0"]
    result = train(load_run(folder25 / "run.toml", ["model.mode=av", "run.name=four", *quick, *drawn]), heard)
    assert result.step == 2
    assert list((result.folder / "samples").glob("*.mp4"))
    assert result.lora is not None
    file = load_lora_state(result.lora)
    assert file.metadata["version"] == file.version == "2.5"
    assert {path: path.stat().st_mtime_ns for path in cached} == cached

    text = (folder25 / "run.toml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("video_vae", "audio_vae"))]
    text = "\n".join(lines).replace(str(tiny25.checkpoint), str(tiny25.whole))
    (folder25 / "whole.toml").write_text(text.replace(str(tiny25.text_encoder), str(tiny25.gemma_folder)))
    whole, four = load_run(folder25 / "whole.toml"), load_run(folder25 / "run.toml")
    base = BaseFiles.find(whole, Events())
    assert (base.version, base.projection, base.video_vae) == ("2.5", tiny25.whole, tiny25.whole)
    assert base.recipe(whole) == BaseFiles.find(four, Events()).recipe(four)  # so its caches are these


def test_what_is_cached_of_an_encoder_does_not_depend_on_its_file_or_decoder(tiny25, tiny):
    stamps = {part_fingerprint(path, "video_vae") for path in (tiny25.whole, tiny25.video_vae, tiny25.diffusion_vae)}
    assert len(stamps) == 1
    assert part_fingerprint(tiny25.whole, "audio_vae") == part_fingerprint(tiny25.audio_vae, "audio_vae")
    assert part_fingerprint(tiny25.whole, "text") == part_fingerprint(tiny25.text_encoder, "text")
    assert stamps != {part_fingerprint(tiny.checkpoint, "video_vae")}  # 2.3 keeps the way its caches are stamped


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video_vae": None}, r"holds no video VAE encoder.*Set model\.video_vae to ltx-2\.5-video-vae-conv-bf16"),
        ({"audio_vae": None}, r"holds no audio VAE.*model\.audio_vae"),
        ({"text_encoder": "folder"}, r"holds no text projection.*model\.text_encoder to gemma4-12b-with-proj"),
        ({"text_encoder": "gemma 3"}, r"is Gemma 3;.*is LTX-2\.5"),
        ({"video_vae": "2.3"}, r"model\.video_vae: ltx-2\.3-tiny.* belongs to LTX-2\.3, but .* is LTX-2\.5"),
        ({"video_vae": "audio"}, r"model\.video_vae: .*audio-vae.* holds no video VAE"),
        ({"audio_vae": "conv"}, r"model\.audio_vae: .*conv.* holds no audio VAE"),
        ({"audio_vae": "mute"}, r"holds no vocoder.*model\.audio_vae"),
        ({"video_vae": "diffusion"}, r"diffusion decoder.*caching.*ltx-2\.5-video-vae-conv-bf16"),
        ({"checkpoint": "2.3"}, r"is Gemma 4, which belongs to LTX-2\.5"),
        ({"checkpoint": "conv"}, r"only a part of a checkpoint: video VAE"),
        ({"checkpoint": "encoder"}, r"is a text encoder \(Gemma 4\)"),
    ],
    ids=str,
)
def test_a_part_that_is_missing_or_foreign_is_named(tiny25, tiny, folder25, tmp_path, changes, words):
    mute = tmp_path / "mute-audio-vae.safetensors"
    with TensorFile(tiny25.audio_vae) as file:
        kept = {name: file.read(name) for name in file.tensors if not name.startswith("vocoder.")}
        files.write_tensors(mute, kept, file.metadata)
    known = {"2.3": tiny.checkpoint, "gemma 3": tiny.text_encoder, "folder": tiny25.gemma_folder,
             "audio": tiny25.audio_vae, "conv": tiny25.video_vae, "diffusion": tiny25.diffusion_vae, "mute": mute,
             "encoder": tiny25.text_encoder}  # fmt: skip
    model = {name.removeprefix("model."): path for name, path in tiny25.settings.items()}
    model |= {name: None if kind is None else str(known[kind]) for name, kind in changes.items()}
    model = {name: path for name, path in model.items() if path is not None}
    run = make_run({"model": {**model, "mode": "av", "device": "cpu"}, "sample": {"prompts": ["a fox"]}})
    with pytest.raises(CheckpointError, match=words):
        check_base(run, Events())


def test_a_distilled_file_is_told_by_its_name_alone(tiny25, tmp_path):
    path = shutil.copy(tiny25.checkpoint, tmp_path / "ltx-2.5-22b-distilled-transformer-bf16.safetensors")
    assert not probe(tiny25.checkpoint).warnings
    (warning,) = probe(path).warnings
    assert "distilled model (by its name; the header of the dev file is the same)" in warning
