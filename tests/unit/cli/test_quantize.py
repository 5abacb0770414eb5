"""`ltx2-train quantize`."""

from __future__ import annotations

import json

import pytest

import ltx2_train
from ltx2_train.cli import main
from ltx2_train.weights.probe import probe


def test_a_checkpoint_is_written_and_described(tiny, tmp_path, capsys):
    out = tmp_path / "tiny-nf4.safetensors"
    command = ["quantize", str(tiny.checkpoint), "--out", str(out), "--format", "nf4", "--block-size", "64"]
    assert main([*command, "--device", "cpu", "--loftq", "--rank", "4"]) == 0
    text = capsys.readouterr().out
    assert "linears in nf4" in text
    assert "tiny-nf4.loftq_r4.safetensors" in text
    assert probe(out).quant_format == "nf4"
    assert main(["quantize", str(out), "--out", str(tmp_path / "b.safetensors"), "--format", "fp8"]) == 1
    assert "is quantized already (nf4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "lacks CHECKPOINT, --out, --format"),
        (["x.safetensors", "--out", "y.safetensors"], "lacks --format"),
        (["x.safetensors", "--out", "y.safetensors", "--format", "fp8", "--loftq", "--rank", "4"], "loftq is for nf4"),
        (["x.safetensors", "--out", "y.safetensors", "--format", "nf4", "--loftq"], "name it (--rank 32)"),
        (["--report", "--size", "3"], "--size is 3"),
        (["x.safetensors", "--report"], "CHECKPOINT: counts only without --report"),
        (["--report", "--format", "nf4", "--rank", "4"], "--format, --rank: counts only without --report"),
        (["x.safetensors", "--out", "y.safetensors", "--format", "nf4", "--size", "64"], "--size: counts only with"),
        (["x.safetensors", "--out", "y.safetensors", "--format", "nf4", "--json"], "--json: counts only with"),
        (["x.safetensors", "--out", "y.safetensors", "--format", "int8", "--block-size", "64"], "with --format nf4"),
    ],
)
def test_what_is_missing_or_wrong_is_said(arguments, words, capsys):
    assert main(["quantize", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_report_is_measured(capsys):
    assert main(["quantize", "--report", "--json", "--size", "256"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert all(row.keys() == {"name", "mae", "snr_db", "cosine"} for row in rows.values())
    assert 30 < rows["fp8"]["snr_db"] < 34
    assert rows["nf4"]["snr_db"] < rows["int8"]["snr_db"] < rows["bf16"]["snr_db"]
    assert main(["quantize", "--report", "--size", "128"]) == 0
    assert "SNR" in capsys.readouterr().out


def test_a_name_that_is_no_format_is_answered_with_those_there_are(tiny, tmp_path, capsys):
    command = ["quantize", str(tiny.checkpoint), "--out", str(tmp_path / "x.safetensors")]
    assert main([*command, "--format", "nf5"]) == 2
    assert "'nf4'" in capsys.readouterr().err
    assert main([*command, "--format", "nf4", "--block-size", "48"]) == 2
    assert "block_size: must be one of 32, 64, 128, 256" in capsys.readouterr().err


def test_the_public_function_is_there():
    assert ltx2_train.quantize_checkpoint.__name__ == "quantize_checkpoint"


def test_a_file_that_is_there_is_not_replaced(tiny, tmp_path, capsys):
    (tmp_path / "mine.safetensors").write_text("mine")
    options = ["--out", str(tmp_path / "mine.safetensors"), "--format", "int8"]
    assert main(["quantize", str(tiny.checkpoint), *options]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.safetensors").read_text() == "mine"


def test_more_rounds_of_loftq_in_a_file_are_refused_with_the_reason(tmp_path, capsys):
    command = ["quantize", "x.safetensors", "--out", str(tmp_path / "y.safetensors"), "--format", "nf4"]
    assert main([*command, "--loftq", "--rank", "4", "--loftq-iters", "2"]) == 2
    assert "one round finds the best LoRA there is" in capsys.readouterr().err
