"""A format is one class: one that is planted here shows up wherever formats are listed, counted, read or chosen."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import ClassVar, get_args

import pytest
import torch

from ltx2_train.config import make_run
from ltx2_train.events import Events
from ltx2_train.optim import OptimizerSettings
from ltx2_train.placement import block_sizes, load_placed
from ltx2_train.quant import settings as quant_settings
from ltx2_train.quant.base import Storage
from ltx2_train.quant.formats import CLASSES, FORMATS, STORED, add_format, planned_formats
from ltx2_train.quant.int8 import Int8
from ltx2_train.quant.report import error_table
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.training.fit import Facts, make_plan, parse_workload
from ltx2_train.training.fit.choose import _Search
from ltx2_train.training.fit.machine import card
from ltx2_train.weights.load import load_transformer
from ltx2_train.weights.probe import probe
from ltx2_train.weights.quantized_file import quantize_checkpoint

ROOT = Path(__file__).resolve().parents[3]


class Planted(Int8):
    storage: ClassVar[Storage] = Storage("planted", bits=8, snr_db=50.0, about="planted by a test", planned=True)


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    for table in (FORMATS, STORED):
        monkeypatch.setattr(table, "_table", dict(table._table))
    add_format(Planted)


@pytest.fixture
def run(tiny):
    """Settings over the tiny checkpoint that ask for the planted format."""
    table = {"model": {"checkpoint": str(tiny.checkpoint), "precision": "fp32", "device": "cpu"}, "lora": {"rank": 4}}
    run = make_run(table)
    return run.model_copy(update={"quant": run.quant.model_copy(update={"format": "planted"})})


def linears(model, kind):
    return [module for module in model.modules() if type(module) is kind]


def test_it_can_be_asked_for_and_is_explained(monkeypatch):
    spec = importlib.util.spec_from_file_location("ltx2_train.quant.settings_again", quant_settings.__file__)
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)  # where pydantic looks names up
    spec.loader.exec_module(again)
    field = again.QuantSettings.model_fields["format"]
    assert get_args(field.annotation)[-1] == "planted"
    assert "planted = planted by a test" in field.description
    assert again.QuantSettings(format="planted").format == "planted"


def test_a_file_of_it_is_probed_read_planned_and_kept(run, tiny, tmp_path):
    path = tmp_path / "planted.safetensors"
    quantize_checkpoint(tiny.checkpoint, path, run.quant)
    info = probe(path)
    assert (info.quant_format, info.precision, info.parameters) == (
        "planted",
        "planted",
        probe(tiny.checkpoint).parameters,
    )
    assert linears(load_transformer(path, "video", torch.float32, quant=QuantSettings()), Planted)
    small = run.model_copy(
        update={"model": run.model.model_copy(update={"checkpoint": path}), "quant": QuantSettings()}
    )
    facts = Facts.read(small, parse_workload("64x64x9", "video"), "cuda")
    assert facts.stored_as == "planted"
    assert make_plan(small, facts, card(24, 64e9, 1e12)).format == "kept"


def test_it_is_placed(run, tmp_path):
    placed = load_placed(run, run.memory, torch.device("cpu"), Events(), tmp_path)
    assert linears(placed.model, Planted)
    blocks = placed.model.transformer_blocks
    tensors = [tensor for block in blocks for tensor in (*block.parameters(), *block.buffers())]
    block, _, count = block_sizes(run)
    assert (block * count, count) == (sum(tensor.nbytes for tensor in tensors), len(blocks))
    placed.close()


@pytest.mark.parametrize("format", ["none", *FORMATS])
def test_room_for_samples_is_reckoned_with_the_bytes_of_the_format(run, format, tmp_path):
    quant = run.quant.model_copy(update={"format": format})
    run = run.model_copy(update={"quant": quant})
    placed = load_placed(run, run.memory, torch.device("cpu"), Events(), tmp_path)
    blocks = placed.model.transformer_blocks
    kept = sum(tensor.nbytes for block in blocks for tensor in (*block.parameters(), *block.buffers()))
    assert block_sizes(run)[0] * len(blocks) == kept
    placed.close()


def test_the_plan_chooses_it_by_what_it_keeps(run):
    assert planned_formats()[:2] == ["planted", "int8_rotated"]
    auto = run.model_copy(update={"quant": QuantSettings(), "optimizer": OptimizerSettings(name="adamw")})
    facts, machine = Facts.read(auto, parse_workload("64x64x9", "video"), "cuda"), card(24, 64e9, 1e12)
    need = _Search(auto, facts, machine).leanest("none").prediction.vram
    plan = make_plan(auto, facts, card(24, 64e9, 1e12, free=need - 1))
    assert plan.format == "planted"
    assert plan.reasons[0] == "planted is the closest to the original that fits."


def test_the_report_measures_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # the slow library of other formats
    assert "planted" in [row["name"] for row in error_table(size=64)]


def test_each_class_says_what_it_is_and_the_docs_name_it():
    table = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8").split("| format | MAE |")[1].split("\n\n")[0]
    for kind in CLASSES:
        assert "storage" in vars(kind), f"{kind.__name__} takes over what its parent says of itself"
        if kind.storage.about:
            row = next((line for line in table.splitlines() if re.match(rf"\| {kind.storage.name}\b", line)), "")
            assert f"| {kind.storage.snr_db} |" in row, f"docs/memory.md does not tell what {kind.storage.name} keeps"
        else:
            assert FORMATS.get(kind.storage.like)
