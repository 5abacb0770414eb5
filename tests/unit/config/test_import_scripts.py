"""Every statement of a script is read, harmless, asked for, or named as not read."""

import pytest
from unit.config.community_files import DATASET, written

from ltx2_train.config.command_file import read_commands
from ltx2_train.config.importing import import_settings
from ltx2_train.errors import ConfigError

TRAIN = "python ltx2_train_network.py --ltx2_checkpoint m.safetensors --dataset_config d.toml"
T16 = f"{TRAIN} --network_dim 16"


def flags_of(script):
    """The flags of the trainer's command of a script."""
    return dict(next(one for one in script.commands if one.program == "ltx2_train_network").flags)


@pytest.mark.parametrize(
    "text",
    [
        f'conda run -n $ENV bash -c "{T16}"',
        f'tmux new-session -d -s train "{T16}"',
        f"screen -dmS train bash -c '{T16}'",
        f"nohup {T16} > log.txt 2>&1 &",
        f'ssh host "cd /x && {T16}"',
        f"docker run --gpus all -v $PWD:/w image {T16}",
        f'sbatch --wrap="{T16}"',
        f'bash -c "\ncd /x\n{TRAIN} \\\n  --network_dim 16\n"',
        f"bash <<EOF\n{T16}\nEOF",
        f"function train() {{ {T16}; }}; train",
        f"RANK=16\ntrain() {{\n  {TRAIN} --network_dim $RANK\n}}\ntrain",
        f'start "train" cmd /k "{T16}"',
        f"EPOCHS=2\n{TRAIN} --network_dim $((EPOCHS * (3 + 5)))",
        f': "${{RANK:=16}}"\n{TRAIN} --network_dim $RANK',
        f"{TRAIN} --network_dim ${{RANK:-${{R:-16}}}}",
        f'CMD="{TRAIN}"\nCMD+=" --network_dim 16"\neval "$CMD"',
        f"export A=1 RANK=16\n{TRAIN} --network_dim $RANK",
        f"rank=8\nRANK=16\n{TRAIN} --network_dim $RANK",
        f'[ -z "$RANK" ] && RANK=16\n{TRAIN} --network_dim $RANK',
        f'if [[ -z "${{RANK}}" ]]; then\n  RANK=16\nfi\n{TRAIN} --network_dim $RANK',
        f'if "%RANK%"=="" set RANK=16\n{TRAIN} --network_dim %RANK%',
        f"if [ -d x ]; then RANK=16; else RANK=16; fi\n{TRAIN} --network_dim $RANK",
        f"#!/bin/bash\nset -euo pipefail\nmodule load cuda\nsource ~/conda.sh\nconda activate x\nsrun {T16}\necho $?",
        f"while pgrep -f ltx2_train_network.py; do sleep 5; done\nuntil {T16}; do sleep 5; done",
        f"use() {{\n  echo 'use: {TRAIN} --seed 3'\n}}\n# don't\necho don't\n{T16}",
        f"torchrun --nproc_per_node 2 {T16[7:]}",
        f"python -m torch.distributed.run --nproc_per_node=2 {T16[7:]}",
        f"uv run --extra cu128 accelerate launch -m musubi_tuner.{T16[7:].replace('.py', '')}",
        f"poetry run {T16}",
        f'$a = @("--seed", "1")\n$a += "--network_dim"\n$a += 16\n{TRAIN} @a *> log.txt',
        f"if not exist x goto end\n{T16}\n:end",
        f'RANK=8\neval "RANK=16"\nbash -c "{TRAIN} --network_dim $RANK"',
        f'if [ "$1" = a ]; then\n  RANK=16\n  {TRAIN} --network_dim $RANK\nfi',
        f'RANK="\\\n16"\n{TRAIN} --network_dim $RANK',
        f"main() {{\n  local RANK=16\n  {TRAIN} --network_dim $RANK\n}}\nmain",
        f"{TRAIN} \\\n  `# the rank` \\\n  --network_dim 16",
        f"RANK=16\n(\n  cd x\n  RANK=8\n)\n{TRAIN} --network_dim $RANK",
        f"exec > >(tee -i log.txt) 2>&1\ncmd=({TRAIN})\ncmd+=(--network_dim 16)\n" + '"${cmd[@]}"',
        f"export DAY=$(date +%Y%m%d)\naccelerate launch --main_process_port 29500 {T16[7:]}",
        f"$rank = 16\n& {TRAIN} `\n  --network_dim $rank",
    ],
)
def test_the_command_is_found_with_nothing_to_ask(text):
    script = read_commands(text)
    assert flags_of(script)["network_dim"] == "16"
    assert script.asked == []


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (f"for r in 8 16; do {TRAIN} --network_dim $r; done", "$r: line 1 `for r in 8 16` sets it; write its value"),
        (f"foreach ($r in 8, 16) {{\n  {TRAIN} --network_dim $r\n}}", "$r: line 1 `foreach ($r in 8, 16) {` sets it"),
        (f"for %%r in (8 16) do {TRAIN} --network_dim %%r", "%%r: the script uses it"),
        (f"N=3\n{TRAIN} --max_train_steps $((100/N))", "$((100/N)): the script uses it"),
        (f'if [ "$1" = x ]; then\n  E="--seed 1"\nfi\n{TRAIN} $E', "$E (nothing or --seed 1): a condition"),
        (f'A=(--seed 7)\nif [ $F ]; then\n  A+=(--seed 8)\nfi\n{TRAIN} "${{A[@]}}"', "$A (--seed 7 or --seed"),
        (f'read -p "rank: " RANK\n{TRAIN} --network_dim $RANK', '$RANK: line 1 `read -p "rank: " RANK` sets it'),
        (f"set /a STEPS=5*100\n{TRAIN} --max_train_steps %STEPS%", "$STEPS: line 1 `set /a STEPS=5*100` sets it"),
        (f"$s = 5 * 100\n{TRAIN} --max_train_steps $s", "$s: line 1 `$s = 5 * 100` sets it"),
        (f"if ($x) {{ $r = 8 }} else {{ $r = 16 }}\n{TRAIN} --network_dim $r", "$r: line 1 `if ($x)"),
        (f'set -- --network_dim 16\n{TRAIN} "$@"', "$@: line 1 `set -- --network_dim 16` sets it"),
        (f"RANK=4\nsource other.sh\n{TRAIN} --network_dim $RANK", "`source other.sh`: what it sets is not known"),
        (f"RANK=4\neval $(cat x)\n{TRAIN} --network_dim $RANK", "line 2 `eval $(cat x)`: what it sets is not known"),
        (f"RANK=4\nf() {{ RANK=8; }}\n{TRAIN} --network_dim $RANK", "$RANK (4 or 8): a condition"),
        (f"RANK=4\nmount /x && RANK=8\n{TRAIN} --network_dim $RANK", "$RANK (4 or 8): a condition"),
        (f"RANK=4\nuntil ready; do RANK=8; done\n{TRAIN} --network_dim $RANK", "$RANK (4 or 8): a condition"),
        ("R=4\nread R <<< 8\n" + f'bash -c "{TRAIN} --network_dim $R"', "$R: line 2 `read R <<< 8` sets it"),
        (f"R=4\nif [ -d x ]; then R=8; fi\nR+=1\n{TRAIN} --network_dim $R", "$R (41 or 81): a condition"),
        (f"set R=8\ncall :setup\n{TRAIN} --network_dim %R%", "line 2 `call :setup`: what it sets is not known"),
        (f"goto run\nset R=8\n:run\n{TRAIN} --network_dim %R%", "line 1 `goto run`: what it sets is not known"),
        (f'A=(--seed 1)\nA[1]=2\n{TRAIN} "${{A[@]}}"', "$A: line 2 `A[1]=2` sets it"),
        (f'$a = @("--seed", "1")\n$a += Get-More\n{TRAIN} @a'.replace("Get-More", "(Get-More)"), "sets it"),
        (f"A=$(cat <<EOF\n--seed 7\nEOF\n)\n{TRAIN} $A", "$(cat <<EOF: the script uses it"),
        (f"O=$(date +%Y%m%d)\n{TRAIN} --output_name $O", "$(date +%Y%m%d): the script uses it"),
        (f"{TRAIN} --output_name %A:x=y%", "%A:x=y%: the script uses it"),
        (f"{TRAIN} --output_name $'a\\tb'", "$': the script uses it"),
        (f'{TRAIN} --output_name "fox --seed 1', "opens a quote that is not closed"),
        (f"cat > run.sh <<EOF\n{TRAIN}\nEOF\n{TRAIN}", "line 1: the command that the script writes into run.sh"),
        (f"case $1 in\n  --rank) R=$2; shift 2 ;;\n  *) R=4 ;;\nesac\n{TRAIN} --network_dim $R", "$R ($2 or 4)"),
    ],
)  # fmt: skip
def test_what_decides_a_value_is_asked_for_with_its_line(text, asked):
    assert any(asked in one for one in read_commands(text).asked)


@pytest.mark.parametrize(
    "line", ["frobnicate --x 1", "bash prepare.sh", "./prepare.sh a b", "prepare_it -n 1 x", "source other.sh"]
)
def test_what_is_not_read_is_named_with_its_line(tmp_path, line):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f"echo begin\n{line}\n{T16} --gemma_root gemma\n"))
    assert made.notes == [f"line 2 is not read: `{line}`"]


def test_files_that_a_script_sources_are_read(tmp_path):
    written(tmp_path, "env.sh", "export RANK=16\n")
    script = read_commands(f"RANK=4\nsource ./env.sh\n{TRAIN} --network_dim $RANK", tmp_path)
    assert (flags_of(script)["network_dim"], script.asked, script.unread) == ("16", [], [])


@pytest.mark.parametrize("line", ["sed -i s/64/96/ d.toml", "cp other.toml d.toml", "python make.py > d.toml"])
def test_a_file_of_the_run_that_the_script_changes_is_told(tmp_path, line):
    written(tmp_path, "d.toml", DATASET)
    made = import_settings(written(tmp_path, "run.sh", f"{line}\n{T16}\n"))
    assert f"line 1 `{line}` may write d.toml, and what lies there now is read" in made.notes


def test_what_launchers_and_the_environment_are_told_is_named(tmp_path):
    written(tmp_path, "d.toml", DATASET)
    before = "env WANDB_MODE=offline accelerate launch --config_file acc.yaml --num_processes 1"
    made = import_settings(written(tmp_path, "run.sh", f"{before} {T16[7:]}\n"))
    assert made.notes == [
        "WANDB_MODE of the environment is not taken over",
        "--config_file acc.yaml of its launcher is not taken over",
    ]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("old.toml --seed 1", "old.toml: stands before the flags of ltx2_train_network and belongs to none"),
        ("--seed 1 \u2013network_dim 16", "\u2013network_dim: has a sign of print"),
        ("--output_name \u201cfox\u201d", "\u201cfox\u201d: has a sign of print"),
    ],
)
def test_words_that_are_no_flags_are_refused(tmp_path, flags, problem):
    script = written(tmp_path, "run.sh", f"python ltx2_train_network.py {flags} --dataset_config d.toml\n")
    assert any(problem in one for one in import_settings(script).problems)


def test_a_script_in_the_encoding_of_powershell_is_read(tmp_path):
    path = tmp_path / "run.ps1"
    path.write_bytes(f"{T16}\r\n".encode("utf-16"))
    assert import_settings(path).translation.tables["lora"]["rank"] == 16


def test_a_script_that_starts_another_says_which(tmp_path):
    with pytest.raises(ConfigError, match=r"no command with flags\. What it holds: line 2: `bash train\.sh`"):
        import_settings(written(tmp_path, "run.sh", "cd x\nbash train.sh\n"))


def test_each_flag_is_shown_with_the_setting_that_it_became(tmp_path):
    written(tmp_path, "d.toml", DATASET)
    flags = "--gemma_load_in_8bit --network_module networks.lora_ltx2 --reference_downscale 2"
    report = import_settings(written(tmp_path, "run.sh", f"{T16} {flags}\n")).summary()
    for line in (
        "network_dim 16 -> lora.rank = 16",
        "gemma_load_in_8bit true -> gemma.precision = 8bit",
        "reference_downscale 2 -> reference_downscale = 2 of dataset.toml",
        "network_module has no effect: lora.algo says what is trained.",
    ):
        assert f"  {line}\n" in report


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("""A='says "hi"'\n{} --training_comment "$A" --seed 1""", 'says "hi"'),
        ("""{} --training_comment "C:\\\\dir\\\\" --seed 1""", "C:\\dir\\"),
        ("""{} --training_comment "a \\"b\\" \\`c\\`" --seed 1""", 'a "b" `c`'),
        ("""A='x\\'\n{} --training_comment "$A" --seed 1""", "x\\"),
        ("""export A=1 B=%A%\n{} --training_comment "$B" --seed 1""", "%A%"),
        ("""A=(--training_comment 'a # b; c && d')\n{} "${{A[@]}}" --seed 1""", "a # b; c && d"),
        ("""{} --training_comment "two\nlines" --seed 1""", "two\nlines"),
    ],
)
def test_quotes_are_undone_as_bash_does(text, value):
    script = read_commands(text.format(TRAIN))
    flags = flags_of(script)
    assert (flags["training_comment"], flags["seed"], script.asked) == (value, "1", [])


def test_the_ending_of_a_file_and_sure_signs_tell_its_shell(tmp_path):
    text = f"@echo off\r\nset R=16\r\n{TRAIN} --network_dim %R%\r\necho Training done\r\n"
    assert flags_of(read_commands(text))["network_dim"] == "16"
    text = text.replace("@echo off", "rem done; fi")
    assert flags_of(read_commands(text, name="fox.bat"))["network_dim"] == "16"


def test_commands_that_functions_run_are_read_and_what_is_handed_to_one_is_asked_for(tmp_path):
    script = read_commands(f'run() {{\n  echo "+ $*"\n  "$@"\n}}\nrun {T16}')
    assert (flags_of(script)["network_dim"], script.asked) == ("16", [])
    body = f'train() {{\n  {T16} "$@"\n}}\ntrain'
    assert read_commands(body).asked == []
    assert "`train --seed 4` hands flags to the command" in read_commands(f"{body} --seed 4").asked[0]
    assert "flags that the script is started with" in read_commands(f'{T16} "$@"').told[0]


@pytest.mark.parametrize("line", ['echo "a wolf" > p.txt', 'echo "a wolf" >> p.txt', 'tee p.txt <<< "a wolf"'])
def test_prompts_that_the_script_writes_are_told(tmp_path, line):
    written(tmp_path, "d.toml", DATASET)
    written(tmp_path, "p.txt", "a fox")
    made = import_settings(written(tmp_path, "t.sh", f"{line}\n{T16} --sample_prompts p.txt"))
    assert any("may write p.txt" in note for note in made.notes)


def test_what_a_jump_passes_is_a_branch():
    text = f"@echo off\nset RANK=8\nif exist x goto run\n{{}}:run\n{TRAIN} --network_dim %RANK%"
    assert read_commands(text.format("echo fox\n")).asked == []
    text = text.format("set RANK=32\n")
    for script in (text, text.replace("goto run", "goto RUN"), text.replace("run\n", "do-train\n")):
        (asked,) = read_commands(script).asked
        assert "$RANK" in asked
        assert read_commands(script).unread == []


def test_the_usual_end_of_a_script_of_powershell_is_no_note():
    end = "if ($LASTEXITCODE -ne 0) { exit $LASTEXITCODE }\n"
    script = read_commands(f"$rank = 16\n{TRAIN} --network_dim $rank\n{end}", name="t.ps1")
    assert (script.unread, script.asked, len(script.commands)) == ([], [], 1)


@pytest.mark.parametrize(
    ("name", "head", "rank"),
    [
        ("a.ps1", "$rank = 16\n<#\n$rank = 8\n" + TRAIN + "\n#>\n", "$rank"),
        ("b.sh", f": <<'END'\n{TRAIN}\nEND\n: '\n{TRAIN}\n'\nif false; then\n  {TRAIN}\nfi\n", "16"),
        ("c.bat", f"rem {TRAIN} ^\n --network_dim 8\n", "16"),
        ("d.ps1", '$a = @(\n"--network_dim=16"\n)\n', ""),
        ("e.ps1", '$a = New-Object System.Collections.ArrayList\n[void]$a.Add("--network_dim=16")\n', ""),
        ("f.ps1", "[int]$rank = 16\n", "$rank"),
    ],
)
def test_what_is_commented_out_does_not_count_and_forms_of_powershell_are_read(name, head, rank):
    script = read_commands(f"{head}{TRAIN} {f'--network_dim {rank}' if rank else '$a'}", name=name)
    (command,) = script.commands
    assert (dict(command.flags)["network_dim"], script.asked) == ("16", [])


def test_the_folder_of_the_script_is_known(tmp_path):
    own = tmp_path.as_posix()
    for name, path in (
        ("a.bat", "%~dp0m.safetensors"),
        ("a.ps1", "$PSScriptRoot/m.safetensors"),
        ("a.sh", '"$(dirname "$0")/m.safetensors"'),
        ("a.sh", '"$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/m.safetensors"'),
    ):
        script = read_commands(f"python ltx2_train_network.py --ltx2_checkpoint {path}", tmp_path, name)
        assert (flags_of(script)["ltx2_checkpoint"], script.asked) == (f"{own}/m.safetensors", [])


def test_whose_flags_count_is_told_and_an_empty_value_is_none(tmp_path):
    written(tmp_path, "d.toml", DATASET)
    cache = "python ltx2_cache_latents.py --dataset_config d.toml --ltx2_mode av"
    made = import_settings(written(tmp_path, "t.sh", f'{cache}\n{T16} --network_weights ""'))
    assert made.problems == []
    assert any("ltx2_mode = av of ltx2_cache_latents counts, and ltx2_train_network does not" in n for n in made.notes)
    made = import_settings(written(tmp_path, "t.sh", f"if [ -d x ]; then\n  {cache}\nfi\n{T16}"))
    assert any("line 2: ltx2_cache_latents stands under a condition" in note for note in made.notes)


@pytest.mark.parametrize(
    "text",
    [
        "RANK=8\nuntil [ $RANK -gt 64 ]; do\n{}$RANK\n  RANK=$((RANK*2))\ndone",
        "RANK=8\nwhile true; do {}$RANK; ((RANK++)); done",
        "RANK=8\nfor s in 1 2; do\n{}$RANK\nlet RANK++\ndone",
        "@echo off\nset RANK=8\n:loop\n{}%RANK%\nset /a RANK=%RANK%+1\nif %RANK% LSS 9 goto loop",
    ],
)
def test_what_a_loop_changes_behind_the_command_is_asked_for(text):
    script = read_commands(text.format(f"{TRAIN} --network_dim "))
    assert any("$RANK" in one and "sets it" in one for one in script.asked)
    script = read_commands(text.format(f"{TRAIN} --network_dim 16 ; echo "))
    assert script.asked == []


def test_a_remark_of_cmd_within_a_command_is_left_out_and_the_flags_behind_it_count():
    script = read_commands(f"@echo off\n{TRAIN} ^\n --network_dim 16 ^\n REM half ^\n --network_alpha 8")
    assert (flags_of(script)["network_dim"], flags_of(script)["network_alpha"]) == ("16", "8")


def test_a_command_in_a_loop_is_told_and_so_is_what_the_script_does_to_its_files(tmp_path):
    written(tmp_path, "d.toml", DATASET)
    head = "ln -sf /x/y.safetensors m.safetensors\nfor s in 1 2; do\n"
    made = import_settings(written(tmp_path, "t.sh", f"{head}  {T16}\ndone"))
    assert any("line 3: the command stands in a loop" in note for note in made.notes)
    assert any("may write m.safetensors" in note for note in made.notes)


@pytest.mark.parametrize("used", ["@args", "$args"])
def test_arguments_that_a_script_of_powershell_sets_itself_are_its_own(used):
    script = read_commands(
        f'$rank = 48\n$args = @("--network_dim", $rank, "--seed", "1,2")\n{TRAIN} {used}', name="t.ps1"
    )
    assert (flags_of(script)["network_dim"], script.asked, script.told) == ("48", [], [])
    assert flags_of(script)["seed"] == "1,2"
