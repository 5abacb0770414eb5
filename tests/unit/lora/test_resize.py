"""Resizing: the best LoRA of a rank, and the loss that it says."""

import pytest
import torch
from lora_files import BLOCK, changes, metadata, pair, write_lora

from ltx2_train.cli import main
from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.resize import resize_lora

Q, SOUND = f"{BLOCK}.attn1.to_q", f"{BLOCK}.audio_ff.net.2"


@pytest.fixture
def lora(tmp_path):
    layers = {Q: pair(8, (40, 30), 1), SOUND: pair(2, (20, 25), 2)}
    return write_lora(tmp_path / "whole.safetensors", layers, {"trigger": "ann", "alpha": "4"}, alphas={Q: 4, SOUND: 2})


def test_the_best_of_a_rank_is_kept_and_the_loss_is_true(lora, tmp_path):
    made = resize_lora(lora, tmp_path / "out.safetensors", rank=3)
    whole, small = changes(lora), changes(tmp_path / "out.safetensors")
    u, s, v = torch.linalg.svd(whole[Q])
    torch.testing.assert_close(small[Q], u[:, :3] * s[:3] @ v[:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(small[SOUND], whole[SOUND], rtol=1e-4, atol=1e-4)  # of rank 2 before
    assert made.ranks == [2, 3]
    assert made.error["video"] == pytest.approx(float(s[3:].norm() / s.norm()), abs=1e-5)
    lost = float(s[3:].norm() / (s.square().sum() + whole[SOUND].square().sum()).sqrt())
    assert made.error["all"] == pytest.approx(lost, abs=1e-5)
    assert f"all {lost:.2%}" in made.text()
    told = metadata(tmp_path / "out.safetensors")
    assert (told["trigger"], told["rank"], told["resized_from_rank"]) == ("ann", "3", "2 to 8")
    assert float(told["resize_error"]) == pytest.approx(lost, abs=1e-5)


def test_each_layer_takes_the_lowest_rank_within_an_error(lora, tmp_path):
    made = resize_lora(lora, tmp_path / "out.safetensors", max_error=0.3)
    whole, small = changes(lora), changes(tmp_path / "out.safetensors")
    for layer, entry in load_lora_state(tmp_path / "out.safetensors").entries.items():
        s = torch.linalg.svdvals(whole[layer])
        assert float(s[entry.rank :].norm() / s.norm()) <= 0.3 < float(s[entry.rank - 1 :].norm() / s.norm())
        assert float((whole[layer] - small[layer]).norm() / whole[layer].norm()) <= 0.3 + 1e-5
    assert made.error["all"] <= 0.3
    capped = resize_lora(lora, tmp_path / "capped.safetensors", rank=1, max_error=0.3)
    assert capped.ranks == [1]


def test_what_makes_no_sense_is_refused(lora, tmp_path):
    out = tmp_path / "out.safetensors"
    for given, message in (
        ({}, "Say how small"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 8}, "has rank 8 already, so rank 8 would change nothing"),
        ({"max_error": 1.0}, "max_error is 1. It is a share"),
    ):
        with pytest.raises(ConfigError, match=message):
            resize_lora(lora, out, **given)
    assert not out.exists()


def test_the_command_line_resizes(lora, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["lora", "resize", str(lora), "--rank", "4", "--dtype", "fp16", "--out", str(out)]) == 0
    assert "ranks 2 to 4" in capsys.readouterr().out
    assert load_lora_state(out).entries[Q].up.dtype == torch.float16
    assert main(["lora", "resize", str(lora), "--rank", "2", "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_lora_of_zeros_stays_one(tmp_path):
    a, b = pair(4)
    path = write_lora(tmp_path / "zero.safetensors", {Q: (a, torch.zeros_like(b))})
    made = resize_lora(path, tmp_path / "out.safetensors", max_error=0.1)
    assert made.error == {}
    assert not changes(tmp_path / "out.safetensors")[Q].any()


def test_numbers_that_are_not_finite_are_named_by_layer(tmp_path):
    down, up = pair(8, (40, 30), 1)
    path = write_lora(tmp_path / "bad.safetensors", {Q: (down * float("nan"), up)})
    with pytest.raises(
        CheckpointError, match=r"bad\.safetensors cannot be used: .*attn1\.to_q\.lora_A\.weight holds numbers"
    ):
        resize_lora(path, tmp_path / "out.safetensors", rank=3)


def test_the_loss_counts_what_the_dtype_rounds_away(lora, tmp_path):
    made = resize_lora(lora, tmp_path / "out.safetensors", rank=6, dtype="bf16")
    whole, small = changes(lora), changes(tmp_path / "out.safetensors")
    lost = sum(float((whole[layer] - small[layer]).square().sum()) for layer in whole)
    every = sum(float(change.square().sum()) for change in whole.values())
    assert made.error["all"] == pytest.approx((lost / every) ** 0.5, rel=1e-2)
    assert made.error["audio"] > 1e-4, "its rank is as it was"
