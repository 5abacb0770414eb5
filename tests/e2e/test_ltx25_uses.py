"""LTX-2.5 in all that is done with a base: modes, conditions, formats, streamed blocks, LoRAs of other versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DATASET
from lora_files import pair, write_lora
from quantized_layouts import int8_convrot, nvfp4, write
from safetensors.torch import load_file

from ltx2_train import (
    Events,
    build_caches,
    check_base,
    compare,
    convert_lora,
    files,
    inspect_lora,
    load_run,
    merge_loras,
    preview_dataset,
    sample,
    status_of_caches,
    train,
)
from ltx2_train.cli.demo_media import draw_sound
from ltx2_train.conditions.trained import Trained
from ltx2_train.config import DrawSettings
from ltx2_train.config.base_files import BaseFiles
from ltx2_train.lora.fit import linear_sizes
from ltx2_train.quant.formats import FORMATS
from ltx2_train.sampling.sample import given_media
from ltx2_train.sampling.studio import checked_lora
from ltx2_train.training.checks import check_model
from ltx2_train.weights.load import blueprint
from ltx2_train.weights.reader import TensorFile

PROMPTS = 'sample.prompts=["a fox"]'


class Heard(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append(text)


@pytest.fixture(scope="module")
def cached(folder25) -> Path:
    build_caches(load_run(folder25 / "run.toml", ["model.mode=av"]))
    return folder25


def trained(folder: Path, name: str, *settings: str, events: Events | None = None):
    plain = [f"run.name={name}", "train.steps=2", "train.save_precision=fp32"]
    run = load_run(folder / "run.toml", [*plain, *settings])
    result = train(run, events)
    rows = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    return result, [row["loss"] for row in rows if "loss" in row]


def test_samples_have_what_the_version_has_unless_the_run_says_it(folder25, tmp_path):
    files = BaseFiles.find(load_run(folder25 / "run.toml"), Events())
    text = (folder25 / "run.toml").read_text().replace("guidance = 1.0\n", "")
    (tmp_path / "run.toml").write_text(text)
    shutil.copy(folder25 / "dataset.toml", tmp_path)
    for changes, crf, guidance in ((), 18, 3.0), (["sample.image_crf=33", "sample.guidance=4"], 33, 4.0):
        run = load_run(tmp_path / "run.toml", changes)
        media = given_media(run, files, tmp_path, Trained())
        assert media.crf == crf
        assert DrawSettings.of(run.sample, files.version).guidance == guidance
        assert "fps" not in run.to_toml().split("[sample]")[1].split("[")[0]  # what is left open stays so in the run


@pytest.mark.parametrize(("stamp", "base", "named"), [("2.3", "2.5", "LTX-2.3"), ("2.5", "2.3", "LTX-2.5")])
def test_a_lora_of_the_other_version_is_named_wherever_it_is_used(tiny25, tiny, folder25, tmp_path, stamp, base, named):
    models = tiny25.settings if base == "2.5" else {
        "model.checkpoint": str(tiny.checkpoint), "model.text_encoder": str(tiny.text_encoder)
    }  # fmt: skip
    with TensorFile(tiny25.checkpoint) as file:
        sizes = linear_sizes(blueprint(file, "video"))
    layers = {name: pair(2, sizes[f"transformer_blocks.0.attn1.{name}"]) for name in ("to_q", "to_gate_logits")}
    layers = {f"transformer_blocks.0.attn1.{name}": factors for name, factors in layers.items()}
    spells = ({"model_version": f"{stamp}.0"}, {"format_version": "1", "version": stamp})
    foreign, own = (write_lora(tmp_path / f"{n}.safetensors", layers, spell) for n, spell in enumerate(spells))
    changes = [f'{name}="{path}"' for name, path in models.items()]
    if base == "2.3":
        changes += [f'model.{part}="{tiny.checkpoint}"' for part in ("video_vae", "audio_vae")]
    run = load_run(folder25 / "run.toml", [*changes, PROMPTS, "lora.rank=2"])
    files = BaseFiles.find(run, Events())
    words = f"is a LoRA of {named}, and the base is LTX-{base}"
    for lora in (foreign, own):
        heard = Heard()
        checked_lora(lora, files, "video", heard)  # what sample, compare and the nodes begin with
        assert any(words in text for text in heard.texts)
        heard = Heard()
        started = run.model_copy(update={"lora": run.lora.model_copy(update={"weights": lora})})
        check_model(started, heard)
        assert any(words in text for text in heard.texts)
    same = write_lora(tmp_path / "same.safetensors", layers, {"model_version": f"{base}.0"})
    heard = Heard()
    checked_lora(same, files, "video", heard)
    assert not any("is a LoRA of" in text for text in heard.texts)
    merge_loras([own, same], tmp_path / "merged.safetensors", events=heard)
    assert any("of different versions" in text and f"{stamp})" in text for text in heard.texts)
    made = convert_lora(own, "diffusers", tmp_path / "diffusers.safetensors")
    assert inspect_lora(made.path).version == stamp


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "target", "settings"),
    [
        ("video", "", []),
        ("audio", "", []),
        ("av", "", ["train.first_frame_probability=1"]),
        ("av", "", ["train.first_frame_probability=0", "video.conditions=[{type='prefix', temporal_boundary=1}]"]),
        ("av", "", ["video.conditions=[{type='suffix', temporal_boundary=1}]", "cache.keyframe_slots=1"]),
        ("av", "", ["video.conditions=[{type='spatial_crop', spatial_region=[0, 0, 32, 64]}]"]),
        ("av", "", ["audio.conditions=[{type='prefix', temporal_boundary=2}]"]),
        ("av", "", ["video.generated=false"]),
        ("av", "", ["audio.generated=false"]),
        ("av", "reference_directory = 'clips'\n", ["video.conditions=[{type='reference'}]"]),
        ("av", "mask_directory = 'masks'\n", ["video.conditions=[{type='mask'}]"]),
        ("av", "reference_audio_directory = 'voices'\n", ["audio.conditions=[{type='reference'}]"]),
    ],
)  # fmt: skip
def test_every_mode_and_condition_trains_and_draws(folder25, tmp_path, mode, target, settings):
    from PIL import Image

    shutil.copytree(folder25 / "clips", tmp_path / "clips")
    (tmp_path / "masks").mkdir()
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "masks" / "clip.png")
    (tmp_path / "voices").mkdir()
    draw_sound(tmp_path / "voices" / "clip.wav", 0.5)
    (tmp_path / "dataset.toml").write_text(DATASET + target)
    shutil.copy(folder25 / "run.toml", tmp_path)
    drawn = [PROMPTS, "sample.every=2", "sample.at_start=false", f"model.mode={mode}"]
    build_caches(load_run(tmp_path / "run.toml", [*drawn, *settings]))
    result, losses = trained(tmp_path, "r", *drawn, *settings)
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    assert len(list((result.folder / "samples").glob("*.wav" if mode == "audio" else "*.mp4"))) == 1
    assert inspect_lora(result.lora).version == "2.5"


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS.names())
def test_every_format_trains_near_the_base_in_full(cached, format):
    if format in ("int4", "int2"):
        pytest.importorskip("optimum.quanto")
    _, exact = trained(cached, "exact", "run.if_exists=new")
    _, losses = trained(cached, f"in-{format}", f"quant.format={format}")
    assert losses[0] == pytest.approx(exact[0], rel={"nf4": 0.2, "int4": 0.2, "int2": 2}.get(format, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "words"), [(int8_convrot, "int8 convrot"), (nvfp4, "nvfp4")])
def test_quantized_files_train_as_what_they_are(cached, tiny25, tmp_path, layout, words):
    path = write(tmp_path / f"ltx-2.5-tiny-{layout.__name__}.safetensors", tiny25.checkpoint, layout)
    _, exact = trained(cached, "exact", "run.if_exists=new")
    given = f'model.checkpoint="{path}"'
    _, losses = trained(cached, f"of-{layout.__name__}", given)
    assert losses[0] == pytest.approx(exact[0], rel=0.02 if layout is int8_convrot else 0.2)
    assert check_base(load_run(cached / "run.toml", [given]), Events())[1] == words


@pytest.mark.slow
def test_streamed_blocks_and_a_resume_change_no_bit(cached):
    plain, _ = trained(cached, "plain", "run.if_exists=new")
    swap = ["memory.fit=custom", "memory.blocks_to_swap=3"]
    others = [trained(cached, "swapped", *swap)[0], trained(cached, "filed", *swap, "memory.swap_from=file")[0]]
    trained(cached, "resumed", "train.steps=1")
    others.append(trained(cached, "resumed")[0])
    for other in others:
        expected, found = load_file(plain.lora), load_file(other.lora)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_a_lora_is_compared_previewed_merged_and_inspected(cached, tmp_path):
    av = ["model.mode=av", PROMPTS]
    result, _ = trained(cached, "tools", *av)
    run = load_run(cached / "run.toml", [*av, "sample.frames=9"])
    made = compare(run, {"trained": result.lora}, tmp_path / "compare")
    assert len(made.cells) == 2
    assert all(cell.path is not None for cell in made.cells)
    assert preview_dataset(cached / "dataset.toml", tmp_path / "preview", "clip", run).decoded is not None
    same = shutil.copy2(result.lora, tmp_path / "same.safetensors")
    merged = merge_loras([result.lora, same], tmp_path / "merged.safetensors", [0.5, 0.5]).path
    assert inspect_lora(merged).version == "2.5"
    heard = Heard()
    one, two = (sample(run, lora, tmp_path / f"{n}", heard)[0] for n, lora in enumerate((result.lora, merged)))
    assert one.prompt.shape.fps == 24
    torch.testing.assert_close(one.latents, two.latents, rtol=1e-4, atol=1e-4)
    assert not any("is a LoRA of" in text for text in heard.texts)


def test_latents_of_23_serve_25_where_the_encoder_is_the_same_and_texts_never(tiny25, tiny, run_file, tmp_path):
    with TensorFile(tiny.checkpoint) as file, TensorFile(tiny25.video_vae) as other:
        same = {name[4:]: file.read(name) for name in file.tensors if name.startswith("vae.")}
        metadata = dict(other.metadata)
    foreign = {name: tensor + 1 if name == "encoder.conv_in.conv.bias" else tensor for name, tensor in same.items()}
    foreign["per_channel_statistics.std-of-means"] = same["per_channel_statistics.std-of-means"] * 1.01
    paths = {name: tmp_path / f"{name}-video-vae-conv.safetensors" for name in ("same", "foreign")}
    for name, tensors in (("same", same), ("foreign", foreign)):
        files.write_tensors(paths[name], tensors, metadata)
    models = [f'{name}="{path}"' for name, path in tiny25.settings.items()]

    def made_again(name):
        before = {path: path.stat().st_mtime_ns for path in (run_file.parent / "cache").glob("*.safetensors")}
        report = build_caches(load_run(run_file, [*models, f'model.video_vae="{paths[name]}"']))
        changed = [path.name for path, time in before.items() if path.stat().st_mtime_ns != time]
        return {"text" if "_te" in name else "latents" for name in changed}, report.summary()

    assert made_again("same")[0] == {"text"}
    status = status_of_caches(load_run(run_file, [*models, f'model.video_vae="{paths["foreign"]}"']))
    assert "it was made with another VAE" in str(status)
    changed, said = made_again("foreign")
    assert (changed, "3 were stale" in said) == ({"latents"}, True)
