"""What an option of the command line is given, once or more than once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ltx2_train.cli import _parser, main


def test_values_of_an_option_that_takes_several_add_up():
    words = "compare run.toml --out o --lora a b --lora c --strength 1 --strength 2 --seed 3 --seed 3 --step 10"
    given = _parser().parse_args(words.split())
    assert given.lora == [Path("a"), Path("b"), Path("c")]
    assert (given.strength, given.seed, given.step, given.index) == ([1.0, 2.0], [3, 3], [10], [])
    assert _parser().parse_args("compare run.toml --out o".split()).lora == [], "nothing is left of the call before"


@pytest.mark.parametrize(
    "words",
    [
        "sample run.toml --out o --lora a --lora b",
        "sample run.toml --out o --out p",
        "compare run.toml --out o --sound-cell 0 --sound-cell 2",
        "train run.toml --processes 1 --processes 2",
        "lora resize a --rank 4 --rank 8 --out b",
    ],
)
def test_two_values_of_an_option_that_takes_one_are_refused(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words.split())
    assert left.value.code == 2
    assert "is given twice, as " in capsys.readouterr().err


def test_what_the_system_refuses_is_told_with_its_file(tmp_path, monkeypatch, capsys):
    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert main(["runs", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: Permission denied. See that this user may open it and the folders that it lies in, or "
        "name another.\n"
    )


def test_the_same_value_twice_is_no_other_one():
    assert _parser().parse_args("sample run.toml --out o --lora a --lora a".split()).lora == Path("a")


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "run.toml", "--out", "o", "--prompt", ""],
        ["sample", "run.toml", "--out", "o", "--lora="],
        ["data", "caption", "clips", "--model", "m", "--speaker", " "],
        ["compare", "run.toml", "--out", ""],
        ["lora", "merge", "a", "--out", "o", "--multiplier", "1", ""],
    ],
)
def test_an_empty_option_is_refused_by_its_name(words, capsys):
    option = next(word for word in reversed(words) if word.startswith("--")).strip("=")
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert f"{option} is empty. Give it a value, or leave it out." in capsys.readouterr().err


def test_a_file_that_is_empty_text_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["probe", ""])
    assert "An argument is empty." in capsys.readouterr().err


def test_nothing_may_stand_before_each_caption():
    assert _parser().parse_args(["data", "caption", "clips", "--prefix", ""]).prefix == ""
