"""Commands and scripts of other programs as run files, as their shells read them."""

import pytest
from unit.config.community_files import DATASET, saved_command, written

from ltx2_train.config import load_run
from ltx2_train.config.command_file import read_commands
from ltx2_train.config.importing import import_settings
from ltx2_train.errors import ConfigError

TRAIN = "python ltx2_train_network.py --ltx2_checkpoint m.safetensors --gemma_root gemma --dataset_config d.toml"


@pytest.fixture
def command(tmp_path):
    return saved_command(tmp_path)


def test_flags_of_the_cache_commands_go_into_the_dataset_file(tmp_path):
    written(tmp_path, "dataset.toml", DATASET)
    path = written(
        tmp_path,
        "run.sh",
        "python ltx2_cache_latents.py --dataset_config dataset.toml \\\n  --ltx2_audio_source audio_files "
        "--ltx2_audio_dir sounds --reference_downscale 1 --vae_chunk_size 16\n"
        'MODEL="m.safetensors"\naccelerate launch ltx2_train_network.py --dataset_config dataset.toml '
        "--ltx2_checkpoint $MODEL --gemma_root $GEMMA\n",
    )
    made = import_settings(path)
    assert made.problems == ["$GEMMA: the script uses it, and it is not worked out here; write its value"]
    assert made.data["general"]["audio_source"] == "audio_files"
    assert made.translation.tables["model"]["checkpoint"] == "m.safetensors"
    assert made.translation.tables["cache"]["tiles"]["chunk_size"] == 16
    with pytest.raises(ConfigError, match="ltx2_audio_source belongs to the dataset file"):
        load_run(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("cd /x && ", ""),
        ("set -e; ", ""),
        ("source venv/bin/activate && ", " && echo done"),
        (". venv/bin/activate\n", ""),
        ("cd /d D:\\x && call venv\\Scripts\\activate.bat & ", ""),
        ("call venv\\Scripts\\activate.bat\nrem seed && x\ncall ", ""),
        ("export CUDA_VISIBLE_DEVICES=0 && ", " 2>&1 | tee log.txt"),
        ("(cd x; ", ")"),
        ("cd x&&", ""),
        ("cd x;", ""),
        ("cd /x && \\\n", ""),
        ("# cd x && python ltx2_train_network.py --seed 9\n", ""),
    ],
)
def test_what_a_shell_is_told_before_a_command_does_not_hide_it(tmp_path, before, after):
    written(tmp_path, "d.toml", DATASET)
    cache = "python ltx2_cache_latents.py --dataset_config d.toml --vae_dtype float32"
    script = f"{before}{cache}{after}\n{before}{TRAIN} --network_dim 16{after}\n"
    made = import_settings(written(tmp_path, "run.sh", script))
    assert made.translation.tables["lora"]["rank"] == 16
    assert made.translation.tables["cache"]["vae_dtype"] == "float32"
    assert made.notes == []
    assert made.problems == []
    assert "seed" not in made.translation.tables["train"]


@pytest.mark.parametrize(
    "before",
    [
        "if [ -d /nonexist ]; then\n  RANK=8\nelse\n  RANK=64\nfi\n",
        "if [ -d /nonexist ]; then RANK=8; else RANK=64; fi\n",
        "RANK=8\n[ -d /nonexist ] && RANK=64\n",
        "if exist x (\n  set RANK=8\n) else (\n  set RANK=64\n)\n",
    ],
)
def test_a_value_that_a_condition_decides_is_asked_for(tmp_path, before):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f"{before}{TRAIN} --network_dim $RANK\n"))
    assert made.problems == ["$RANK (8 or 64): a condition of the script decides; write its value"]
    steps = f"STEPS=5\nSTEPS=6\n{TRAIN} --max_train_steps $STEPS\n"
    assert import_settings(written(tmp_path, "run.sh", steps)).translation.tables["train"]["steps"] == 6


@pytest.mark.parametrize(
    ("script", "ways"),
    [
        ("A=(--seed 3)\nif [ -f x ]; then A+=(--network_dim 8); else A+=(--network_dim 16); fi\n", ("8", "16")),
        (
            'A="--seed 3"\nif [ -f x ]; then\n  A="$A --network_dim 8"\nelse\n  A="$A --network_dim 16"\nfi\n',
            ("8", "16"),
        ),
        (
            'A="--seed 3"\nif [ -f x ]; then\n  A="$A --network_dim 8"\n  if [ -f y ]; then A="$A --lr 1"; fi\n'
            'elif [ -f z ]; then A="$A --network_dim 32"\nelse A="$A --network_dim 16"; fi\n',
            ("8", "8 --lr 1", "32", "16"),
        ),
    ],
)
def test_what_two_branches_add_is_added_once(tmp_path, script, ways):
    written(tmp_path, "d.toml", DATASET)
    use = '"${A[@]}"' if "A+=" in script else "$A"
    made = import_settings(written(tmp_path, "run.sh", f"{script}{TRAIN} {use}\n"))
    words = " or ".join(f"--seed 3 --network_dim {one}" for one in ways)
    assert made.problems == [f"$A ({words}): a condition of the script decides; write its value"]
    assert made.translation.tables["lora"]["rank"] == 16


@pytest.mark.parametrize(
    ("line", "is_told"),
    [
        ("cd other", True),
        ('D=other; pushd "$D"', True),
        ("cd /nowhere/at-all", False),
        ('cd "$(dirname "$0")"', False),
        ("pushd other; popd", False),
        ("(cd other; ls)", False),
        ("cd other; cd ..", False),
        ("cd other/deep; cd ..", True),
        ("cd other; pushd deep; popd", True),
        ("cd nowhere; cd ..", False),
    ],
)
def test_a_script_that_goes_to_another_folder_is_told_where_paths_are_taken_from(tmp_path, line, is_told):
    written(tmp_path, "d.toml", DATASET)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    made = import_settings(written(tmp_path, "run.sh", f"{line}\n{TRAIN}\n"))
    assert any("paths are taken from the script's own folder" in note for note in made.notes) == is_told


@pytest.mark.parametrize("line", ["read X <<< word", "N=$((1 << 3))", "N=$((1 << M))", 'echo "a << b"'])
def test_what_writes_no_file_hides_nothing(tmp_path, line):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f"{line}\n{TRAIN} --network_dim 16\n"))
    assert made.translation.tables["lora"]["rank"] == 16
    assert not any("written by the script" in note for note in made.notes)


@pytest.mark.parametrize(
    "before",
    [
        '[ -d venv ] || python -m venv venv\nARGS="--seed 7"\nARGS="$ARGS --network_dim 16"\n',
        "A=a\nA=b\nif [ -d $A ]; then rm -r $A; fi\nARGS=--network_dim=16\n",
        "if exist x (\n  set B=8\n)\nset ARGS=--network_dim 16\n",
        "cd x;python -m pip install -r r.txt;nvidia-smi -L\nARGS=--network_dim=16\n",
    ],
)
def test_what_no_condition_decides_is_taken_and_what_trains_nothing_is_no_note(tmp_path, before):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f"{before}{TRAIN} $ARGS\n"))
    assert (made.problems, made.notes) == ([], [])
    assert made.translation.tables["lora"]["rank"] == 16


@pytest.mark.parametrize(
    "line",
    [
        "GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)\n",
        'DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"\ncd "$DIR"\n',
        "export PYTHONPATH=$PWD/src:$PYTHONPATH\nHF=$HOME/x\n",
        "if %ERRORLEVEL% NEQ 0 exit /b %ERRORLEVEL%\n",
        "conda run -n ltx --no-capture-output ",
        "case a in a) ",
    ],
)
def test_what_reaches_no_setting_is_not_asked_for(tmp_path, line):
    written(tmp_path, "d.toml", DATASET)
    end = " ;;\nesac\n" if line.startswith("case") else "\n"
    made = import_settings(written(tmp_path, "run.sh", f"{line}{TRAIN} --network_dim 16{end}"))
    assert (made.problems, made.notes) == ([], [])
    assert made.translation.tables["lora"]["rank"] == 16


@pytest.mark.parametrize("value", ["out_$(date +%F)", "out_`date +%F`", "$HOME/out"])
def test_what_a_variable_lacks_is_asked_for_where_it_reaches_a_setting(tmp_path, value):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f"OUT={value}\n{TRAIN} --output_dir $OUT\n"))
    assert made.problems


def test_a_file_that_a_script_writes_is_told(tmp_path):
    written(tmp_path, "d.toml", DATASET)
    script = f"cat > d.toml <<EOF\n[general]\nresolution = 96\nEOF\n{TRAIN} --network_dim 16\n"
    made = import_settings(written(tmp_path, "run.sh", script))
    assert made.notes == ["d.toml is written by the script, and what lies there now is read"]
    assert made.translation.tables["lora"]["rank"] == 16


@pytest.mark.parametrize("before", ["CUDA_VISIBLE_DEVICES=1 ", "export CUDA_VISIBLE_DEVICES=1 && "])
def test_the_card_that_a_script_chooses_is_told(tmp_path, before):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", before + TRAIN))
    assert made.notes == ["CUDA_VISIBLE_DEVICES = 1 is not taken over; set it again, or model.device to the card"]


@pytest.mark.parametrize("shell", ["bash -c", "/bin/sh -lc", "cmd /c"])
def test_a_command_given_to_another_shell_is_read(tmp_path, shell):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f'{shell} "cd x && {TRAIN} --network_dim 16"\n'))
    assert made.translation.tables["lora"]["rank"] == 16


@pytest.mark.parametrize("end", [" && echo done; python other.py --seed 9", "\nmkdir -p x\npython other.py --seed 9\n"])
def test_programs_of_others_in_a_script_are_told(tmp_path, end):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f"{TRAIN} --max_train_steps 5{end}"))
    assert made.notes == ["other is a command of its own and is not taken over"]
    assert "seed" not in made.translation.tables["train"]


def test_other_commands_of_a_script_are_answered_with_ours(tmp_path):
    path = written(
        tmp_path,
        "q.sh",
        "python ltx2_quantize_model.py --input_model a.safetensors --output_model b.safetensors "
        "--loftq_init --network_dim 32",
    )
    found = {line.name: line.text for line in import_settings(path).translation.of("other command")}
    assert found["ltx2_quantize_model --loftq_init"] == "ltx2-train quantize --loftq"


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (r'python x.py --a "C:\my data\b.toml" --c', [("a", r"C:\my data\b.toml"), ("c", True)]),
        ("python x.py --lr_args a=1 b=2 --no-deep --n=-3", [("lr_args", ["a=1", "b=2"]), ("deep", False), ("n", "-3")]),
        ("$env:DIR = 'd'\npython x.py `\n  --a $env:DIR/b", [("a", "d/b")]),
        ('set DIR=d e\npython x.py --a "%DIR%" ^\n\n--b 1', [("a", "d e"), ("b", "1")]),
        ("# --x 1\npython x.py ... (other training args) --a 1  # no more", [("a", "1")]),
    ],
)
def test_commands_are_read_as_their_shells_do(line, flags):
    script = read_commands(line)
    (command,) = script.commands
    assert (command.program, command.flags, script.asked) == ("x", flags, [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("python x.py --a 1\n  --b 2", "line 1 has no sign at its end that continues it"),
        ("python x.py --a 1 \\ \n  --b 2", "a blank stands behind the last sign of line 1"),
        ("python x.py --a 1 \\\n  # --c 3 \\\n  --b 2", "line 2 is a remark"),
        ("python x.py --a 1 \\\n\n  --b 2", "line 2 is empty"),
        ("python x.py --a 1  # one \\\n  --b 2", "a remark stands in line 1"),
        ("python x.py --a 1 \\\n  --b 2", ""),
        ("python x.py --a 1 `\n  --b 2", ""),
        ('python x.py --a "the # 1 fox" \\\n  --b 2', ""),
        ("python x.py --a 1 \\\r\n  --b 2\r\n", ""),
        ("ARGS=(\n  --a 1  # one\n\n  # two\n  --b 2\n)\npython x.py ${ARGS[@]}", ""),
        ("--a 1\n--b 2", ""),
    ],
)
def test_flags_that_a_shell_would_not_have_given_are_told(text, why):
    script = read_commands(text)
    assert [name for one in script.commands for name, _ in one.flags] == ["a", "b"]
    last = len(text.splitlines())
    said = f"{why}: a shell ends the command there, so --b (line {last}) was not given to it; here it counts"
    assert script.told == ([said] if why else [])


def test_two_training_commands_are_two_runs(tmp_path):
    path = written(tmp_path, "two.sh", f"{TRAIN} --output_name one\n\n{TRAIN} --output_name two\n")
    for read in (import_settings, load_run):
        with pytest.raises(ConfigError, match=r"two\.sh holds 2 training commands .* a file of its own"):
            read(path)
    both = written(tmp_path, "both.sh", f"{TRAIN} --network_dim 4 && {TRAIN} --network_dim 8\n")
    with pytest.raises(ConfigError, match="2 training commands"):
        import_settings(both)
    other = written(tmp_path, "simple.sh", "simpletuner train --lora_rank=4\nsimpletuner train --lora_rank=8\n")
    with pytest.raises(ConfigError, match="2 training commands"):
        import_settings(other)
    yaml = written(tmp_path, "official.sh", "python scripts/train.py a.yaml\npython scripts/train.py b.yaml\n")
    with pytest.raises(ConfigError, match=r"train a\.yaml, train b\.yaml"):
        import_settings(yaml)


@pytest.mark.parametrize(
    "text",
    [
        'ARGS=(--network_dim 4\n  # a note\n  --output_name "a fox"\n\n)\nARGS+=(--seed 7)\n'
        + TRAIN
        + ' "${ARGS[@]}" "$@"\n',
        f"$more = @(\n  '--network_dim', '4',\n  \"--output_name\", \"a fox\",\n  '--seed', '7'\n)\n& {TRAIN} @more\n",
        f'NAME="a fox"\nCUDA_VISIBLE_DEVICES=0 X=1 {TRAIN} --network_dim 4 --output_name "$NAME" --seed ${{SEED:-7}} '
        "2>&1 | tee --append log.txt\n",
    ],
    ids=["bash array", "PowerShell array", "variables for one command"],
)
def test_arguments_from_arrays_and_variables_are_not_lost(tmp_path, text):
    run = load_run(written(tmp_path, "run.sh" if "$more" not in text else "run.ps1", text))
    assert (run.lora.rank, run.run.name, run.train.seed) == (4, "a fox", 7)


@pytest.mark.parametrize("value", ["$(nproc)", "$1", '"${LIST[@]}"', "${DIR%/}", "$NOTHING"])
def test_what_a_shell_works_out_is_named(tmp_path, value):
    made = import_settings(written(tmp_path, "run.sh", f"{TRAIN} --output_name {value}\n"))
    assert any(value.strip('"') in problem and "write its value" in problem for problem in made.problems)


def test_a_flag_that_is_given_twice_is_named_with_both_values(tmp_path):
    made = import_settings(written(tmp_path, "run.sh", f"{TRAIN} --network_dim 4 --network_dim 8\n"))
    assert made.problems[0] == (
        "network_dim: ltx2_train_network gives it twice, as 4 and as 8; keep the last, which counts there"
    )
    with pytest.raises(ConfigError, match="gives it twice, as 4 and as 8"):
        load_run(tmp_path / "run.sh")
    same = written(tmp_path, "same.sh", f"{TRAIN} --network_dim 4 --network_dim 4\n")
    assert load_run(same).lora.rank == 4


def test_commands_that_say_different_things_are_told(tmp_path):
    caches = "python ltx2_cache_latents.py --dataset_config {} --vae_dtype fp16\n"
    text = caches.format("d.toml") + f"{TRAIN} --vae_dtype bf16 --config_file more.toml --network_dim 4\n"
    written(tmp_path, "more.toml", "network_dim = 8\nseed = 3\n")
    run = load_run(written(tmp_path, "run.sh", text))
    assert (run.cache.vae_dtype, run.lora.rank, run.train.seed) == ("bf16", 4, 3)
    assert "vae_dtype = bf16 of ltx2_train_network counts, not fp16 of ltx2_cache_latents" in run.notes
    assert "network_dim = 4 of the command counts, not 8 of its config_file" in run.notes
    two = import_settings(written(tmp_path, "caches.sh", caches.format("a.toml") + caches.format("b.toml")))
    assert any("says a.toml, ltx2_cache_latents says b.toml" in problem for problem in two.problems)
