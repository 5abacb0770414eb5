"""The error table: the seed's figures, from a run."""

from __future__ import annotations

import math

import pytest
import torch

from ltx2_train.quant import FORMATS
from ltx2_train.quant.report import error_table, error_text


@pytest.fixture(scope="module")
def rows():
    return {row["name"]: row for row in error_table(size=1024)}


@pytest.mark.slow
def test_the_figures_of_the_published_table():
    rows = {row["name"]: row for row in error_table()}
    for kind in FORMATS.values():
        assert rows[kind.storage.name]["snr_db"] == pytest.approx(kind.storage.snr_db, abs=0.1)
    fp8, nf4 = rows["fp8"], rows["nf4"]
    assert (round(fp8["mae"], 4), round(fp8["snr_db"], 1), round(fp8["cosine"], 6)) == (0.0171, 32.0, 0.999686)
    assert (round(nf4["mae"], 4), round(nf4["snr_db"], 1), round(nf4["cosine"], 6)) == (0.0678, 21.2, 0.996188)
    assert rows["nf4 + loftq rank 32"]["snr_db"] >= 21.4


def test_the_other_rows(rows):
    assert set(rows) == {"bf16", "nf4 + loftq rank 32", *FORMATS}
    assert all(set(row) == {"name", "mae", "snr_db", "cosine"} for row in rows.values())
    order = ["bf16", "int8", "fp8", "nf4 + loftq rank 32", "nf4", "int4", "int2"]
    found = [rows[name]["snr_db"] for name in order]
    assert found == sorted(found, reverse=True)


def test_what_a_format_says_it_keeps_is_what_it_keeps(rows):
    for kind in FORMATS.values():
        # one scale a row of 1,024 values loses a little less than one of 4,096, which the class tells
        shorter = 0.9 if kind.storage.name.startswith("int8") else 0
        assert rows[kind.storage.name]["snr_db"] == pytest.approx(kind.storage.snr_db + shorter, abs=0.1)


def test_a_row_is_what_its_names_say():
    row = next(row for row in error_table(size=64, seed=3) if row["name"] == "nf4")
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    from ltx2_train.quant import QuantSettings

    found = FORMATS.get("nf4").quantize(weight, None, QuantSettings(), torch.float32).dequantize()
    assert row["mae"] == pytest.approx(float((found - weight).abs().mean()))
    assert row["snr_db"] == pytest.approx(20 * math.log10(float(weight.norm() / (found - weight).norm())), rel=1e-4)
    assert row["cosine"] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(found.flatten(), weight.flatten(), dim=0)), abs=1e-6
    )


def test_text(rows):
    lines = error_text(list(rows.values())).splitlines()
    assert lines[0].split() == ["format", "MAE", "SNR", "dB", "cosine"]
    assert len({len(line) for line in lines}) == 1
    assert any(line.split() == ["fp8", "0.0171", "32.02", "0.999686"] for line in lines)


def test_without_the_library_its_rows_are_left_out(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert {"int4", "int2"}.isdisjoint(row["name"] for row in error_table(size=64))
