"""LTX-2.5 from its four files and from one: caches, training and samples; what is wrong with a part is said by name."""

from __future__ import annotations

import shutil

import pytest
from safetensors.torch import load_file

from ltx2_train import Events, build_caches, check_base, files, load_run, make_run, probe, sample, train
from ltx2_train.config.base_files import BaseFiles
from ltx2_train.errors import CacheError, CheckpointError, ConfigError, RunError
from ltx2_train.lora.file import load_lora_state
from ltx2_train.models.transformer import LTXTransformer
from ltx2_train.weights.fingerprint import part_fingerprint
from ltx2_train.weights.reader import TensorFile


class Heard(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


SLOTS = 2
FRAME = 4  # tokens of a latent frame of the clips


@pytest.fixture
def drawn_slots(monkeypatch):
    """The numbers of keyframe slots that the model is shown, call by call."""
    shown = []
    forward = LTXTransformer.forward

    def spy(model, video, audio, **options):
        if video.latent.device.type == "cpu":  # else the plan is reckoned
            assert video.given is None or not video.given[:, video.given.shape[1] - video.slots :].any()
            shown.append(video.slots // FRAME)
        return forward(model, video, audio, **options)

    monkeypatch.setattr(LTXTransformer, "forward", spy)
    return shown


def test_four_files_and_one_train_and_draw_from_the_same_caches(tiny25, folder25, drawn_slots):
    slots = [f"cache.keyframe_slots={SLOTS}", "train.first_frame_probability=1"]
    # encoded with the file whose decoder draws nothing here; its encoder is that of the others
    build_caches(load_run(folder25 / "run.toml", [f"model.video_vae={tiny25.diffusion_vae}", "model.mode=av", *slots]))
    (latents,) = load_file(next((folder25 / "cache").glob("*_ltx2_keyframes.safetensors"))).values()
    assert latents.shape == (128, SLOTS, 2, 2)
    cached = {path: path.stat().st_mtime_ns for path in (folder25 / "cache").glob("*.safetensors")}
    assert cached
    heard = Heard()
    quick = ["train.steps=2", "train.save_precision=fp32"]
    drawn = ['sample.prompts=["a fox"]', "sample.every=2", "sample.at_start=false", "sample.guidance=2.0"]
    result = train(load_run(folder25 / "run.toml", ["model.mode=av", "run.name=four", *quick, *drawn, *slots]), heard)
    assert result.step == 2
    assert list((result.folder / "samples").glob("*.mp4"))
    assert result.lora is not None
    file = load_lora_state(result.lora)
    assert file.metadata["version"] == file.version == "2.5"
    assert file.metadata["keyframe_slots"] == str(SLOTS)
    assert set(drawn_slots) == {SLOTS}  # in training and in samples
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
        ({"audio_vae": "2.3"}, r"model\.audio_vae: ltx-2\.3-tiny.* belongs to LTX-2\.3, but .* is LTX-2\.5"),
        ({"checkpoint": "gguf"}, r"x\.gguf is a GGUF file"),
        ({"text_encoder": "gguf"}, r"x\.gguf is a GGUF file.*gemma\.precision"),
        ({"video_vae": "gguf"}, r"x\.gguf is a GGUF file"),
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
             "encoder": tiny25.text_encoder, "gguf": tmp_path / "x.gguf"}  # fmt: skip
    known["gguf"].write_bytes(b"GGUF" + bytes(2000))
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


def test_keyframe_slots_are_refused_where_they_are_not_cached_and_drawn_as_the_lora_says(folder25, drawn_slots):
    settings = ["model.mode=av", "cache.keyframe_slots=3"]
    with pytest.raises(RunError, match=r"cache\.keyframe_slots: was 2, now 3"):
        train(load_run(folder25 / "run.toml", [*settings, "run.name=four"]))
    with pytest.raises(CacheError, match=r"3 caches of 3 .*\n.*_ltx2_keyframes.*: latents changed .*keyframes"):
        train(load_run(folder25 / "run.toml", [*settings, "run.name=five"]))
    lora = next(folder25.glob("**/four/**/*.safetensors"))
    drawn_slots.clear()
    sample(load_run(folder25 / "run.toml", ["model.mode=av"]), lora, folder25 / "drawn", prompts=["a fox"])
    assert set(drawn_slots) == {2}


@pytest.mark.parametrize("group", ["cache", "sample"])
def test_keyframe_slots_are_refused_of_other_versions(tiny, group):
    model = {"checkpoint": str(tiny.checkpoint), "text_encoder": str(tiny.text_encoder), "device": "cpu"}
    run = make_run({"model": model, group: {"keyframe_slots": 2}})
    with pytest.raises(ConfigError, match=rf"{group}\.keyframe_slots is 2, and .* is LTX-2\.3, which knows no"):
        check_base(run, Events())
