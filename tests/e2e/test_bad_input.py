"""Whatever a person gets wrong: a plain sentence, the right exit code, quickly, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import media
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ltx2_train.cli import main


@pytest.fixture
def work(run_file: Path) -> Path:
    return run_file.parent


def call(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and what was printed to stderr; ten seconds of work must be enough for it.

    Processor time, since a busy machine is not the program's fault.
    """
    started = time.process_time()
    code = main([str(argument) for argument in arguments])
    assert time.process_time() - started < 10
    return code, capsys.readouterr().err


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", [("cache", "build"), ("train",)])
def test_a_folder_without_captions(work, capsys, command):
    (work / "clips" / "clip.txt").unlink()
    before = everything(work)
    code, text = call(capsys, *command, work / "run.toml")
    assert code == 1
    assert "clips" in text
    assert ".txt" in text
    assert everything(work) == before


def test_an_empty_folder(work, capsys):
    shutil.rmtree(work / "clips")
    (work / "clips").mkdir()
    code, text = call(capsys, "cache", "build", work / "run.toml")
    assert code == 1
    assert "clips" in text


def test_a_folder_that_is_not_there(work, capsys):
    shutil.rmtree(work / "clips")
    code, text = call(capsys, "cache", "build", work / "run.toml")
    assert code in (1, 2)
    assert "clips" in text


def test_damaged_and_short_clips_are_named_and_the_rest_is_used(work, capsys, drawn_clip):
    data = drawn_clip.read_bytes()
    (work / "clips" / "cut.mp4").write_bytes(data[: len(data) // 3])
    (work / "clips" / "cut.txt").write_text("cut")
    from ltx2_train.cli.demo import draw_clip

    draw_clip(work / "clips" / "short.mp4", frames=4)
    (work / "clips" / "short.txt").write_text("short")
    code, text = call(capsys, "cache", "build", work / "run.toml")
    assert code == 1, "two of three are more than half"
    assert "max_left_out" in text
    dataset = work / "dataset.toml"
    dataset.write_text(dataset.read_text().replace("[general]", "[general]\nmax_left_out = 0.7"))
    code, text = call(capsys, "cache", "build", work / "run.toml")
    assert code == 0
    assert "cut.mp4" in text
    assert "short.mp4" in text
    assert call(capsys, "train", work / "run.toml")[0] == 0


def test_nothing_left_is_an_error(work, capsys):
    clip = work / "clips" / "clip.mp4"
    clip.write_bytes(clip.read_bytes()[:2000])
    code, text = call(capsys, "cache", "build", work / "run.toml")
    assert code == 1
    assert "clip.mp4" in text


def test_a_size_that_is_not_a_multiple_of_32(work, capsys):
    dataset = work / "dataset.toml"
    dataset.write_text(dataset.read_text().replace("[64, 64]", "[70, 64]"))
    code, text = call(capsys, "cache", "build", work / "run.toml")
    assert code == 2
    assert "resolution" in text
    assert "32" in text


def write_header(path: Path, names: list[str], metadata: dict | None = None) -> Path:
    save_file({name: torch.zeros(4, 4) for name in names}, str(path), metadata)
    return path


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight",
          "diffusion_model.transformer_blocks.0.attn1.to_q.lora_B.weight"], "LoRA"),
        (["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"], "not a model"),
        (["vae.encoder.conv_in.conv.weight", "vae.decoder.conv_in.conv.weight"], "VAE"),
    ],
)  # fmt: skip
def test_a_base_that_cannot_be_trained_on_is_named(work, capsys, names, word):
    path = write_header(work / "wrong.safetensors", names)
    code, text = call(capsys, "train", work / "run.toml", "--set", f"model.checkpoint={path}")
    assert code == 1
    assert word in text
    assert not (work / "runs").exists()


def test_a_gguf_file_is_named(work, capsys):
    path = work / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(2000))
    code, text = call(capsys, "train", work / "run.toml", "--set", f"model.checkpoint={path}")
    assert code == 1
    assert "GGUF" in text


def test_a_download_that_was_cut_off_is_said_to_be_one(work, tiny, capsys):
    path = work / "half.safetensors"
    path.write_bytes(tiny.checkpoint.read_bytes()[:300_000])
    code, text = call(capsys, "train", work / "run.toml", "--set", f"model.checkpoint={path}")
    assert code == 1
    assert "half.safetensors" in text


def test_a_distilled_base_is_warned_about(work, tiny, capsys):
    path = work / "ltx-2.3-22b-distilled.safetensors"
    shutil.copyfile(tiny.checkpoint, path)
    code, text = call(capsys, "train", work / "run.toml", "--set", f"model.checkpoint={path}")
    assert code == 0
    assert "distilled" in text


def test_a_text_encoder_that_does_not_fit(work, tmp_path, capsys):
    from ltx2_train.weights.tiny_gemma import write_tiny_gemma

    other, _ = write_tiny_gemma(tmp_path / "gemma", hidden=48, seed=1)
    code, text = call(capsys, "train", work / "run.toml", "--set", f"model.text_encoder={other}")
    assert code == 1
    assert "text encoder" in text.lower()
    assert not (work / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.stpes=5", "train.stpes: unknown setting. Did you mean steps"),
        ("lora.rank=0", "lora.rank"),
        ("train.learning_rate=-1", "train.learning_rate"),
        ("model.checkpoint=nowhere.safetensors", "nowhere.safetensors does not exist"),
        ("model.device=abacus", "model.device"),
        ("lora.include_patterns=['nothing.*']", "nothing"),
        ("sample.stg=1 sample.stg_block=9", "sample.stg_block is 9, but the blocks of this model are 0 to 3"),
        ("memory.blocks_to_swap=48", "memory.blocks_to_swap is 48, but the model has 4 blocks"),
        ("memory.gradient_checkpointing=false memory.blocks_to_swap=1", "swapped must be recomputed"),
        ("memory.fit=custom memory.blocks_to_swap=4", "4 of 4 blocks cannot be swapped"),
    ],
)
def test_wrong_settings(work, capsys, setting, says):
    given = [word for one in setting.split() for word in ("--set", one)]
    code, text = call(capsys, "train", work / "run.toml", *given)
    assert code == 2
    assert says in text
    assert "prepare captions" not in text, "nothing is loaded, and no run folder made, before the settings are good"
    assert not (work / "runs").exists()


@pytest.mark.parametrize("change", ["caption", "clip", "setting", "missing", "damaged"])
def test_a_stale_cache_is_named_with_the_command_that_mends_it(work, capsys, change):
    latents = next((work / "cache").glob("*_ltx2.safetensors"))
    if change == "caption":
        (work / "clips" / "clip.txt").write_text("something else")
    elif change == "clip":
        from ltx2_train.cli.demo import draw_clip

        draw_clip(work / "clips" / "clip.mp4", frames=45)
    elif change == "setting":
        dataset = work / "dataset.toml"
        dataset.write_text(dataset.read_text().replace("target_frames = [9]", "target_frames = [17]"))
    elif change == "missing":
        latents.unlink()
    else:
        latents.write_bytes(latents.read_bytes()[:-100])
    code, text = call(capsys, "train", work / "run.toml")
    assert code == 1
    assert "cache build" in text
    assert call(capsys, "cache", "build", work / "run.toml")[0] == 0
    assert call(capsys, "train", work / "run.toml")[0] == 0


def test_caches_of_another_checkpoint_are_stale(work, tmp_path, capsys):
    from ltx2_train.weights.tiny import make_tiny

    other = make_tiny(tmp_path / "other", version="2.3", seed=1)
    code, text = call(capsys, "train", work / "run.toml", "--set", f"model.checkpoint={other.checkpoint}")
    assert code == 1
    assert "another" in text
    assert "cache build" in text


def test_an_output_folder_that_cannot_be_written(work, capsys):
    (work / "blocked").write_text("a file")
    code, text = call(capsys, "train", work / "run.toml", "--set", "run.folder=blocked")
    assert code == 1
    assert "run.folder" in text


def test_a_run_folder_of_something_else(work, capsys):
    (work / "runs" / "r").mkdir(parents=True)
    (work / "runs" / "r" / "thesis.doc").write_text("x")
    code, text = call(capsys, "train", work / "run.toml")
    assert code == 1
    assert "thesis.doc" in text


def test_probe_says_what_a_file_is(tiny, capsys):
    assert main(["probe", str(tiny.checkpoint), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["version"] == "2.3"
    assert main(["probe", str(tiny.checkpoint)]) == 0
    assert "LTX-2.3" in capsys.readouterr().out
    assert main(["probe", str(tiny.text_encoder)]) == 1
    assert "text encoder" in capsys.readouterr().out


def test_usage_errors_exit_with_2(capsys):
    assert main(["cache"]) == 2
    with pytest.raises(SystemExit) as caught:
        main(["train"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "command",
    [[], ["demo"], ["probe"], ["cache", "build"], ["train"], ["sample"], ["lora", "inspect"], ["tiny"], ["config"]],
)
def test_help_is_there_for_every_command(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: ltx2-train" in capsys.readouterr().out


def test_the_defaults_are_printed_as_toml(capsys):
    assert main(["config", "--defaults"]) == 0
    assert "[train]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (
            "{type='prefix',temporal_boundary=2}",
            "it has 2 latent frames, and a prefix of up to 2 leaves nothing to make",
        ),
        ("{type='suffix',seconds=3.0}", "shorter suffix, or longer clips: see video.conditions"),
        ("{type='spatial_crop',spatial_region=[0,0,64,96]}", "it is 64x64 as cached, and the crop [0, 0, 64, 96]"),
        ("{type='reference',probability=0}", "the condition of type reference has probability 0"),
    ],
)
def test_what_conditions_cannot_give_is_refused_before_anything_is_encoded(work, capsys, condition, said):
    shutil.rmtree(work / "cache")
    run = work / "run.toml"
    run.write_text(run.read_text() + f"[video]\nconditions = [{condition}]\n")
    code, text = call(capsys, "cache", "build", run)
    assert code == 2
    assert said in text
    assert not list(work.rglob("*.safetensors"))
    code = main(["data", "check", str(work / "dataset.toml"), "--run", str(run)])
    shown = capsys.readouterr()
    if "probability" in condition:
        assert code == 2
        assert said in shown.err
    else:
        assert code == 1
        (found,) = [line for line in shown.out.splitlines() if " condition " in line]
        assert said in found
        assert found.startswith("RED")


def test_what_masks_and_voices_show_ends_caching_before_pictures_are_encoded(sound_run_file, capsys):
    work = sound_run_file.parent
    shutil.rmtree(work / "cache")
    (work / "masks").mkdir()
    dataset, plain = work / "dataset.toml", (work / "dataset.toml").read_text()
    for level, colour, code in ((0, "black", 0), (255, "white", 1)):
        Image.new("L", (64, 64), level).save(work / "masks" / "clip.png")
        dataset.write_text(plain + "mask_directory = 'masks'\n")
        assert main(["data", "check", str(dataset)]) == code
        assert f"its mask is {colour} all over" in capsys.readouterr().out
    (work / "spans").mkdir()
    for spans, word in (("[[50, 60]]", "gives nothing"), ("[[0, 60]]", "gives all of it"), ("[[2, 1]]", "must end")):
        (work / "spans" / "clip.json").write_text(spans)
        dataset.write_text(plain + "audio_mask_directory = 'spans'\n")
        assert main(["data", "check", str(dataset)]) == (0 if word == "gives nothing" else 1)
        assert f"the mask of its sound{':' if word == 'must end' else ''}" in (out := capsys.readouterr().out)
        assert word in out
    media.write_sound(work / "voices" / "clip.wav", media.tone(0.4, level=0.0))
    (work / "broken").mkdir()
    (work / "broken" / "clip.wav").write_bytes(b"")
    run = sound_run_file.read_text()
    for setting, condition, said in (
        ("mask_directory = 'masks'", "[[video.conditions]]\ntype = 'mask'", "its mask is white all over"),
        ("reference_audio_directory = 'voices'", "[[audio.conditions]]\ntype = 'reference'", "sound is silence"),
        ("reference_audio_directory = 'broken'", "[[audio.conditions]]\ntype = 'reference'", "can be used"),
        ("audio_mask_directory = 'spans'", "[[audio.conditions]]\ntype = 'mask'", "not one of the 3 files of"),
    ):
        dataset.write_text(plain + setting + "\n")
        sound_run_file.write_text(run + condition + "\n")
        code, text = call(capsys, "cache", "build", sound_run_file)
        assert code == 2
        assert said in text
        assert not list(work.rglob("*_ltx2.safetensors"))
