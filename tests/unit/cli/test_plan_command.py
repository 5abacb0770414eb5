"""`ltx2-train plan` on a tiny run and on the published model."""

from __future__ import annotations

import json

from ltx2_train.cli import main


def test_plan_of_a_run_before_anything_is_loaded(run_file, capsys):
    assert main(["plan", str(run_file)]) == 0
    out = capsys.readouterr().out
    assert "64 x 64, 9 frames" in out
    assert [line.split()[1:3] for line in out.splitlines() if line.startswith("> ")] == [["this", "machine"]]
    assert all(f"{size} GB" in out for size in (80, 48, 32, 24, 16, 12, 8))
    assert not (run_file.parent / "runs").exists(), "a look leaves nothing behind"


def test_a_plan_shows_captions_and_prompts_and_refuses_each_wrong_prompt(run_file, capsys):
    assert (
        main(["plan", str(run_file), "--set", "sample.every=1", "--set", 'sample.prompts=["A fox --d 7", "1. hen"]'])
        == 0
    )
    said = capsys.readouterr().err
    assert "Captions as they are read (" in said
    assert 'prompt 1: "A fox"' in said
    assert "seed 7" in said
    assert "its own: seed" in said
    assert "Sample prompt 2 ('1. hen') looks like an entry of a list" in said
    given = ["--set", "sample.every=1", "--set", 'sample.prompts=["A fox--d 7", "A hen --w x"]']
    assert main(["plan", str(run_file), *given]) == 2
    said = capsys.readouterr().err
    assert "line 1: --d behind 'fox'" in said
    assert "line 2: --w 'x': expected a number" in said
    assert main(["plan", str(run_file), "--set", "sample.every=1"]) == 0
    assert "sample.prompts is not set, so the first 2 captions of the dataset are drawn" in capsys.readouterr().err


def test_a_plan_says_what_a_run_says_of_settings_without_effect(run_file, capsys):
    dataset = run_file.parent / "dataset.toml"
    dataset.write_text(dataset.read_text().replace("[[datasets]]", "[[datasets]]\naudio_normalize = true"))
    given = ["train.epochs=3", "train.steps=77", 'model.version="2.0"']
    assert main(["plan", str(run_file), *(word for one in given for word in ("--set", one))]) == 0
    said = capsys.readouterr().err
    assert "warning: datasets[0]: audio_normalize has no effect: model.mode = video trains no sound." in said
    assert "train.epochs = 3 counts; train.steps = 77 does not." in said
    assert "but model.version says 2.0." in said
    (manifest,) = run_file.parent.rglob("*manifest*.json")
    assert main(["plan", str(run_file), "--set", f"data.manifest={manifest}"]) == 0
    assert "warning: data.config has no effect" in capsys.readouterr().err


def test_plan_as_json_for_a_size(run_file, capsys):
    assert main(["plan", str(run_file), "--fit", "12", "--json", "--set", "lora.rank=8"]) == 0
    value = json.loads(capsys.readouterr().out)
    chosen = [row for row in value["rows"] if row["chosen"]]
    assert [row["fit"] for row in chosen] == ["12"]
    assert chosen[0]["plan"]["choice"]["format"] == "none"
    assert set(chosen[0]["plan"]["prediction"]) == {"vram", "ram", "disk", "seconds", "validation", "parts"}


def test_wrong_use_is_said(run_file, capsys):
    assert main(["plan"]) == 2
    assert "--published" in capsys.readouterr().err
    assert main(["plan", "--published", "2.3"]) == 2
    assert main(["plan", str(run_file), "--bucket", "big"]) == 2
    assert "512x512x121" in capsys.readouterr().err
    for given, words in (
        (["--bucket", "0x512x9"], "--bucket '0x512x9' is not a size"),
        (["--bucket", "512x512x0"], "there is 1 frame or more"),
        (["--bucket", "64x64x9", "--ram", "nan"], "--ram is nan"),
        (["--bucket", "64x64x9", "--ram=-1"], "--ram is -1"),
    ):
        assert main(["plan", "--published", "2.3", *given]) == 2
        assert words in capsys.readouterr().err


def test_plan_that_does_not_fit_is_one(capsys):
    arguments = ["plan", "--published", "2.3", "--bucket", "64x64x9", "--fit", "8", "--set", "quant.format=none"]
    assert main([*arguments, "--set", "lora.rank=1024"]) == 1
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "target_frames" in out
    assert "lower lora.rank (1024)" in out


def test_a_setting_that_the_command_line_gives_twice_is_refused(capsys):
    given = ["plan", "--published", "2.3", "--bucket", "512x512x121", "--fit", "16", "--set", "memory.fit=24"]
    assert main(given) == 2
    assert "memory.fit is given twice, as 24 and as" in capsys.readouterr().err


def test_a_plan_refuses_what_training_refuses_of_the_settings(run_file, tiny, capsys):
    """Before anything is planned, and by its reason: not as a run that does not fit."""
    for given, words in (
        ("memory.shard=true", "memory.shard = true has no effect"),
        ("optimizer.args={foo=1}", "no argument 'foo'"),
        ("optimizer.name=os.path", "os.path is no optimizer"),
        ('lora.modules={"*nomatch*"={rank=4}}', "'*nomatch*' names none"),
        ('train.lr_args={"nomatch"=1e-3}', "nomatch"),
        ('lora.include_patterns=["nomatch.*"]', "nomatch"),
        ("validation.every=2", "no [[validation_datasets]]"),
        ("sample.upsampler=nope.safetensors", "nope.safetensors does not exist"),
        ("lora.weights=nope.safetensors", "nope.safetensors does not exist"),
        (f"lora.weights={tiny.checkpoint}", "is not a LoRA"),
        (f"run.export_folder={run_file}", "is a file, not a folder"),
    ):
        assert main(["plan", str(run_file), "--set", given, "--set", "sample.every=0"]) > 0, given
        out, err = capsys.readouterr()
        assert words in err
        assert "does not fit" not in out
    assert main(["plan", str(run_file), "--bucket", "64x64x9", "--set", "train.processes=2"]) == 0
    assert main(["plan", "--published", "2.3", "--bucket", "64x64x9", "--set", "lora.modules={x={rank=4}}"]) == 2
    assert "'x' names none" in capsys.readouterr().err


def test_a_plan_names_a_folder_that_is_not_there(run_file, capsys):
    (run_file.parent / "none.toml").write_text('[[datasets]]\ncache_only = true\nvideo_directory = "gone"\n')
    assert main(["plan", str(run_file), "--set", "data.config=none.toml"]) == 2
    assert "gone does not exist" in capsys.readouterr().err
