"""What is cached ahead need not be opened in training: neither Gemma nor an encoder, with samples of every kind."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from media import write_image

from ltx2_train import Events, build_caches, load_run, sample, train
from ltx2_train.caching import encode
from ltx2_train.caching.cache_file import CacheFile
from ltx2_train.cli import main
from ltx2_train.errors import ConfigError, DataError
from ltx2_train.sampling import prompt_text, render
from ltx2_train.sampling.prompt_text import prompt_features
from ltx2_train.sampling.sample import prompt_folder
from ltx2_train.sampling.sound import SoundParts
from ltx2_train.training import sound
from ltx2_train.training.cache_status import status_of_caches

SAMPLES = ["sample.every=1", "train.steps=1"]


@pytest.fixture
def opened(monkeypatch):
    """Names of what is loaded from now on, in order: Gemma, VAE encoder, VAE decoder, audio VAE."""
    log: list[str] = []

    def watch(module, name, label):
        real = getattr(module, name)

        def load(*args, **more):
            log.append(label if isinstance(label, str) else label(*args))
            return real(*args, **more)

        monkeypatch.setattr(module, name, load)

    watch(prompt_text.TextEncoder, "load", "Gemma")
    watch(render, "load_video_vae", lambda checkpoint, encoder, *_: "encoder" if encoder else "decoder")
    watch(SoundParts, "open_encoder", "audio VAE")
    watch(sound, "load_audio_vae", "audio VAE")
    return log


@pytest.fixture
def work(run_file, all_used):
    """The run file, with two pictures and a dataset for validation whose caption is nowhere else."""
    folder = run_file.parent
    write_image(folder / "one.png", caption=None)
    write_image(folder / "two.png", width=64, height=96, caption=None)
    shutil.copy2(folder / "clips" / "clip.mp4", _new(folder / "held_out") / "v.mp4")
    (folder / "held_out" / "v.txt").write_text("a ball that nobody trained on")
    file = folder / "dataset.toml"
    file.write_text(
        file.read_text() + "[[validation_datasets]]\nvideo_directory = 'held_out'\ncache_directory = 'cache_held_out'\n"
    )
    return run_file


def _new(folder):
    folder.mkdir()
    return folder


def run_of(path, *more):
    return load_run(path, [*more, "run.if_exists=new"])


def prompts(folder, form):
    """Prompts of one of the forms, with two pictures, a negative prompt of their own and guidance off in places."""
    lines = ["a ball --i one.png --g 1", "a cube --n blurry --i two.png --g 3 --f 9", "a cone --g 1"]
    tables = [
        {"prompt": "a ball", "image_path": "one.png", "guidance_scale": 1},
        {"prompt": "a cube", "negative_prompt": "blurry", "image_path": "two.png", "guidance": 3},
        "a cone --g 1",
    ]
    if form == "list":
        absolute = [line.replace("--i ", f"--i {folder}/") for line in lines]
        return f"sample.prompts={json.dumps(absolute)}"
    path = folder / f"prompts.{form}"
    if form == "txt":
        path.write_text("# what to draw\n" + "\n".join(lines))
    elif form == "json":
        path.write_text(json.dumps(tables))
    else:
        path.write_text(
            '[prompt]\nguidance_scale = 1\n[[prompt.subset]]\nprompt = "a ball"\nimage_path = "one.png"\n'
            '[[prompt.subset]]\nprompt = "a cube"\nnegative_prompt = "blurry"\nimage_path = "two.png"\n'
        )
    return f"sample.prompts={path.name}"


@pytest.mark.parametrize("form", ["list", "json", "toml"])
def test_after_the_build_training_with_samples_opens_no_encoder(form, work, opened):
    more = [*SAMPLES, prompts(work.parent, form), "sample.validation_clips=1", "sample.guidance=2.0"]
    more += ["sample.negative_prompt=ugly", "train.caption_dropout=0.5"]
    build_caches(run_of(work, *more))
    assert opened.count("encoder") == 2  # the clip for validation, then both pictures
    assert opened.count("Gemma") == 1  # captions and prompts pass it together
    opened.clear()
    result = train(run_of(work, *more))
    assert opened
    assert set(opened) == {"decoder"}
    drawn = list((result.folder / "samples").glob("step_000001_*.mp4"))
    assert len(drawn) == (3 if form == "toml" else 4)


def test_all_of_it_is_kept_for_the_sample_command_too(work, opened, tmp_path):
    more = [*SAMPLES, prompts(work.parent, "list"), "cache.vae_dtype=fp32"]
    build_caches(run_of(work, *more))
    opened.clear()
    files = sample(run_of(work, *more), None, tmp_path / "out")
    assert opened == ["decoder"]
    assert len(files) == 3


def test_first_frames_are_made_once_where_nothing_was_built_for_them(work, opened, all_used):
    more = [*SAMPLES, prompts(work.parent, "txt")]
    build_caches(run_of(work, "sample.every=0"))
    opened.clear()
    train(run_of(work, *more))
    assert opened.count("encoder") == opened.count("Gemma") == 1
    opened.clear()
    train(run_of(work, *more))
    assert set(opened) == {"decoder"}


def test_kept_frames_draw_the_same_sample_as_fresh_ones(work, tmp_path):
    more = ["sample.steps=2", prompts(work.parent, "list")]
    fresh = sample(run_of(work, *more), None, tmp_path / "a")
    kept = sample(run_of(work, *more), None, tmp_path / "b")
    for one, other in zip(fresh, kept, strict=True):
        assert torch.equal(one.latents, other.latents)
    frames = [CacheFile(path).latents() for path in prompt_folder(run_of(work)).glob("image_*.safetensors")]
    for one in fresh[:2]:
        assert any(torch.allclose(one.latents[:, :1], frame, atol=1e-5) for frame in frames)


def test_a_file_of_another_name_is_of_another_prompt(work, opened):
    more = [*SAMPLES, prompts(work.parent, "list")]
    build_caches(run_of(work, *more))
    assert status_of_caches(run_of(work, *more)).complete
    folder, swapped = prompt_folder(run_of(work)), []
    for kind in ("image", "prompt"):
        one, other = sorted(folder.glob(f"{kind}_*.safetensors"))[:2]
        was = one.read_bytes(), other.read_bytes()
        one.write_bytes(was[1])
        other.write_bytes(was[0])
        swapped += [one, other]
    rows = status_of_caches(run_of(work, *more)).of("stale")
    assert {row.path for row in rows} == set(swapped)
    assert all("it was written as" in row.why for row in rows)
    swapped[0].unlink()
    assert [row.path for row in status_of_caches(run_of(work, *more)).of("missing")] == swapped[:1]
    opened.clear()
    build_caches(run_of(work, *more))
    assert sorted(opened) == ["Gemma", "encoder"]
    assert status_of_caches(run_of(work, *more), verify=True).complete


def test_a_changed_picture_is_noticed_and_a_renamed_one_is_known(work, opened):
    more = [*SAMPLES, prompts(work.parent, "txt")]
    build_caches(run_of(work, *more))
    write_image(work.parent / "one.png", width=72, caption=None)
    opened.clear()
    build_caches(run_of(work, *more))
    assert opened == ["encoder"]
    (work.parent / "two.png").rename(work.parent / "three.png")
    text = (work.parent / "prompts.txt").read_text().replace("two.png", "three.png").splitlines()
    (work.parent / "prompts.txt").write_text("\n".join(reversed(text)))
    opened.clear()
    build_caches(run_of(work, *more))
    assert opened == []
    build_caches(run_of(work, *more, "sample.width=96"))
    assert opened == ["encoder"]


def test_the_encoder_stays_closed_until_a_prompt_has_a_picture(work, opened):
    build_caches(run_of(work, *SAMPLES, "sample.prompts=['a ball']"))
    opened.clear()
    build_caches(run_of(work, *SAMPLES, "sample.prompts=['a ball']"))
    assert opened == []


def test_sound_alone_has_no_use_for_pictures(sound_run_file, opened):
    write_image(sound_run_file.parent / "one.png", caption=None)
    more = [*SAMPLES, "model.mode=audio", f"sample.prompts=['a bell --i {sound_run_file.parent / 'one.png'}']"]
    build_caches(run_of(sound_run_file, *more))
    opened.clear()
    train(run_of(sound_run_file, *more))
    assert opened == []


def test_a_picture_that_is_gone_is_told_before_anything_is_encoded(work, opened):
    more = [*SAMPLES, prompts(work.parent, "txt")]
    (work.parent / "one.png").unlink()
    with pytest.raises(ConfigError, match="one.png: no such image"):
        build_caches(run_of(work, *more))
    assert opened == []


def test_a_picture_that_cannot_be_read_is_told_before_anything_is_encoded(work, opened):
    more = [*SAMPLES, prompts(work.parent, "txt")]
    (work.parent / "one.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"prompts.txt, line 2: --i one.png: .*cannot be read as an image"):
        build_caches(run_of(work, *more))
    assert opened == []


# --- which prompts ---------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_the_clips_that_are_left(run_file, opened):
    clips = run_file.parent / "clips"
    for name, caption in (("a", "first, and damaged"), ("b", "second"), ("c", "third"), ("d", "fourth")):
        shutil.copy2(clips / "clip.mp4", clips / f"{name}.mp4")
        (clips / f"{name}.txt").write_text(caption)

    read = encode.read_clip

    def broken(item, entry):
        if item.source.stem == "a":
            raise DataError("broken", item.source.path)
        return read(item, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "read_clip", broken)
        build_caches(run_of(run_file, *SAMPLES))
    opened.clear()
    train(run_of(run_file, *SAMPLES))
    assert set(opened) == {"decoder"}


def test_training_from_the_manifest_finds_its_prompts_too(run_file, opened):
    clips = run_file.parent / "clips"
    for name in ("clip1", "clip2", "clip3"):  # clip.mp4 comes before clip1.mp4, and clip1_... before clip_...
        shutil.copy2(clips / "clip.mp4", clips / f"{name}.mp4")
        (clips / f"{name}.txt").write_text(f"the one called {name}")
    manifest = "data.manifest=cache/dataset_manifest.json"
    (run_file.parent / "cache" / "dataset_manifest.json").unlink()
    build_caches(run_of(run_file, *SAMPLES, manifest))  # named already, before it is there
    shutil.rmtree(clips)
    opened.clear()
    train(run_of(run_file, *SAMPLES, manifest))
    assert set(opened) == {"decoder"}


def test_clips_for_validation_that_are_caches_alone_have_their_prompts_as_well(work, opened):
    build_caches(run_of(work, "sample.every=0"))
    file = work.parent / "dataset.toml"
    file.write_text(file.read_text().replace("video_directory = 'held_out'", "cache_only = true"))
    more = [*SAMPLES, "sample.validation_clips=1", "sample.guidance=2.0", "sample.prompts=['a ball --g 1']"]
    build_caches(run_of(work, *more))
    opened.clear()
    train(run_of(work, *more))
    assert set(opened) == {"decoder"}


@pytest.mark.parametrize("texts", [["", "woman", " a man "], [""]])
def test_preservation_prompts_are_there_without_gemma(texts, work, opened):
    run = run_of(work, "sample.every=0", "train.caption_dropout=0", f"cache.preservation_prompts={json.dumps(texts)}")
    shutil.rmtree(prompt_folder(run))
    build_caches(run)
    assert opened.count("Gemma") == 1  # captions of the new dataset pass it, and these
    opened.clear()
    device = torch.device("cpu")
    found = prompt_features(
        [text.strip() for text in texts],
        prompt_folder(run),
        run.model.text_encoder,
        run.model.checkpoint,
        device,
        Events(),
    )
    assert opened == []
    assert found[""].tokens >= 1
    assert len(found) == len(texts)


# --- DINOv2 ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dino(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, patch_size=14, image_size=56)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    return [f"cache.dino.model={tmp_path / 'dino'}", "cache.dino.size=28"]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_features_lie_beside_the_latents_and_disturb_nothing(run_file, dino, capsys):
    steps = ["train.steps=2"]
    without = train(run_of(run_file, *steps))
    report = build_caches(run_of(run_file, *dino))
    assert report.kinds["dino"].made == 3
    assert "dino: 3 made" in report.summary()
    assert build_caches(run_of(run_file, *dino)).kinds["dino"].kept == 3
    assert "dino" not in build_caches(run_of(run_file)).kinds
    assert losses(train(run_of(run_file, *steps, *dino)).folder) == losses(without.folder)
    shutil.rmtree(run_file.parent / "clips")
    manifest = "data.manifest=cache/dataset_manifest.json"
    assert losses(train(run_of(run_file, *steps, *dino, manifest)).folder) == losses(without.folder)


def test_status_and_clean_know_the_features(run_file, dino, capsys):
    flags = [part for text in dino for part in ("--set", text)]
    assert main(["cache", "status", str(run_file), *flags]) == 1
    assert "3 dino" in capsys.readouterr().out
    assert main(["cache", "build", str(run_file), *flags]) == 0
    assert main(["cache", "status", str(run_file), *flags]) == 0
    features = sorted((run_file.parent / "cache").glob("*_ltx2_dino.safetensors"))
    features[0].rename(features[0].with_name(f"old_{features[0].name}"))
    assert main(["cache", "clean", str(run_file), "--yes"]) == 0
    assert "1 files deleted" in capsys.readouterr().out
    assert sorted((run_file.parent / "cache").glob("*_ltx2_dino.safetensors")) == features[1:]


def test_a_wrong_size_or_folder_is_told_before_anything_is_encoded(run_file, dino, opened):
    for more, says in ((["cache.dino.size=30"], "28 or 42"), (["cache.dino.model=nowhere"], "is not a folder")):
        with pytest.raises(ConfigError, match=says):
            build_caches(run_of(run_file, *dino, *more, "cache.skip_existing=false"))
    assert opened == []
