"""How little is done between two questions whether to stop: in LoRA tools, in loading, in text and in samples."""

from __future__ import annotations

import math
import os
from functools import partial

import pytest
import torch
from lora_files import pair, write_lora
from torch import nn

from ltx2_train import load_run
from ltx2_train.config.base_files import BaseFiles
from ltx2_train.errors import Stopped
from ltx2_train.events import Events
from ltx2_train.lora.bake import bake_loras
from ltx2_train.lora.convert import convert_lora
from ltx2_train.lora.extract import extract_lora
from ltx2_train.lora.merge import merge_loras
from ltx2_train.lora.resize import resize_lora
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.sampling.sound import SoundParts
from ltx2_train.threads import heed, heeding
from ltx2_train.training import setup
from ltx2_train.training.caches import openers_of
from ltx2_train.training.fit import Facts
from ltx2_train.training.fit.simulate import simulate
from ltx2_train.training.fit.work import parse_workload
from ltx2_train.weights import reader, writer
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.loftq import Loftq
from ltx2_train.weights.quantized_file import quantize_checkpoint
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.text_encoder import TextEncoder
from ltx2_train.weights.upsampler import load_upsampler
from ltx2_train.weights.writer import TensorWriter

Q, K = "transformer_blocks.1.attn1.to_q", "transformer_blocks.1.attn1.to_k"
PIECE = 8192
FINGERPRINT = 4096  # bytes of a tensor that tell it from another, read of many in no time


class Stopping(Events):
    """Asks for a stop at question `at`; counts the questions, and the work that `done` is told between two of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.asked, self.between, self.most = at, 0, 0, 0

    def done(self, much: int) -> None:
        self.between += much
        self.most = max(self.most, self.between)

    def should_stop(self) -> bool:
        self.asked += 1
        self.between = 0
        return self.at is not None and self.asked >= self.at


@pytest.fixture
def counted(monkeypatch):
    """Events that are told the bytes of files that are read and written, in pieces of PIECE."""
    monkeypatch.setattr(reader, "_PIECE", PIECE)
    monkeypatch.setattr(writer, "PIECE", PIECE)
    current = [Stopping()]
    fill, heed = TensorFile._fill, TensorWriter._heed

    def filled(file, name, offset, into):
        current[0].done(len(into) if len(into) > FINGERPRINT else 0)
        return fill(file, name, offset, into)

    def heeded(file, nbytes):
        current[0].done(nbytes)
        return heed(file, nbytes)

    monkeypatch.setattr(TensorFile, "_fill", filled)
    monkeypatch.setattr(TensorWriter, "_heed", heeded)

    def begin(at=None):
        current[0] = Stopping(at)
        return current[0]

    return begin


@pytest.fixture
def tools(tiny, tmp_path):
    """Each tool on small files, and the most bytes that it may read and write without asking."""
    size = (160, 160)
    one = write_lora(tmp_path / "one.safetensors", {Q: pair(8, size, 1), K: pair(8, size, 2)})
    two = write_lora(tmp_path / "two.safetensors", {Q: pair(8, size, 3), K: pair(8, size, 4)})
    out, layer = tmp_path / "out.safetensors", 4 * 8 * (160 + 160)
    weight = 4 * 160 * 160
    with TensorFile(tiny.checkpoint) as file:  # what stays as it is goes in pieces, however large it is
        sizes = {name: info.nbytes for name, info in file.tensors.items() if "diffusion_model." in name}
        quantized = [nbytes for name, nbytes in sizes.items() if "transformer_blocks." in name]
        assert max(info.nbytes for info in file.tensors.values()) > 10 * PIECE
    tuned = tmp_path / "tuned.safetensors"
    if not tuned.exists():
        bake_loras(tiny.checkpoint, [one], tuned)
    int8 = QuantSettings(format="int8")
    return {
        "merge": (partial(merge_loras, [one, two], out), 2 * layer + PIECE),
        "merge orthogonal": (partial(merge_loras, [one, two], out, method="orthogonal"), 2 * layer + PIECE),
        "resize": (partial(resize_lora, one, out, 2), layer + PIECE),
        "convert": (partial(convert_lora, one, "community", out), layer + PIECE),
        "bake": (partial(bake_loras, tiny.checkpoint, [one, two], out), weight + 2 * layer + PIECE),
        "extract": (partial(extract_lora, tuned, tiny.checkpoint, out, 4), 2 * max(sizes.values()) + PIECE),
        "quantize": (partial(quantize_checkpoint, tiny.checkpoint, out, int8), max(quantized) + PIECE),
    }


NAMES = ["merge", "merge orthogonal", "resize", "convert", "bake", "extract", "quantize"]


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_asks_before_each_layer_and_each_piece_and_leaves_nothing(name, tools, counted, tmp_path):
    work, most = tools[name]
    events, there = counted(), sorted(tmp_path.iterdir())
    work(events=events)
    assert events.most <= most
    (tmp_path / "out.safetensors").unlink()
    whole = events.asked
    for at in (1, whole // 2, whole):
        events = counted(at)
        with pytest.raises(Stopped):
            work(events=events)
        assert events.asked == at, "nothing more was done"
        assert sorted(tmp_path.iterdir()) == there


def test_what_is_written_reaches_the_disk_on_the_way_where_it_may_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_ON_DISK", 3000)
    monkeypatch.setattr(writer, "PIECE", 1000)
    flushed = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    tensor = torch.arange(2500, dtype=torch.float32)
    entries = {"a": writer.TensorEntry.of(tensor)}
    for poll, count in ((None, 0), (lambda: None, 3)):
        flushed.clear()
        with TensorWriter(tmp_path / "a.safetensors", entries, {}, poll) as file:
            file.write("a", tensor)
        assert len(flushed) == count
        with TensorFile(tmp_path / "a.safetensors") as file:
            assert torch.equal(file.read("a"), tensor)


def test_every_model_that_is_loaded_can_be_stopped(tiny, run_file):
    run = load_run(run_file, ["model.mode=av"])
    base, device = BaseFiles.find(run, Events()), torch.device("cpu")
    openers = openers_of(run, base, base.recipe(run), Stopping(1), device)
    sound = SoundParts(base.audio_vae, device, Stopping(1))
    for load in (
        openers.video_vae,
        openers.audio_vae,
        openers.text_encoder,
        openers.connectors,
        partial(sound.open_encoder, torch.float32),
        sound.open_decoder,
        sound.open_vocoder,
        partial(load_upsampler, tiny.upsampler, on_progress=Stopping(1).check_stop),
    ):
        with pytest.raises(Stopped):
            load()


def test_what_a_run_reads_is_stopped_on_the_way(tiny, monkeypatch):
    monkeypatch.setattr(reader, "_PIECE", PIECE)
    with TensorFile(tiny.checkpoint) as file:
        name, info = max(file.tensors.items(), key=lambda item: item[1].nbytes)
        events = Stopping()
        with heeding(events):
            file.read(name)
        assert events.asked == math.ceil(info.nbytes / PIECE)
        with pytest.raises(Stopped), heeding(Stopping(2)):
            file.read(name)
    events = Stopping()
    with heeding(events):
        Loftq(4, ["x"]).quantize("x", nn.Linear(64, 64), QuantSettings(format="nf4", loftq=True, loftq_iters=2))
    assert events.asked > 2, "within each fit"
    monkeypatch.setattr(setup, "_load", lambda *_: heed())
    with pytest.raises(Stopped):
        setup.load(None, Stopping(1))


def test_a_plan_of_memory_is_stopped_between_two_blocks(run_file):
    def plan(events):
        run, work = load_run(run_file), parse_workload("64x64x9", "video")
        with heeding(events):
            simulate(Facts.read(run, work, "cuda").config, run, work)

    plan(events := Stopping())
    assert events.asked >= 6, "once a block of both steps"
    with pytest.raises(Stopped):
        plan(Stopping(events.asked // 2))


@pytest.mark.parametrize("placement", ["device", "stream", "layers"])
def test_the_text_encoder_asks_within_each_of_its_layers(placement, tiny):
    checkpoint, settings = tiny.checkpoint, GemmaSettings(placement=placement)
    encoder = TextEncoder.load(tiny.text_encoder, checkpoint, torch.float32, settings=settings)
    events = Stopping()
    encoder.encode(["a fox"], events=events)
    layers = 6
    assert events.asked > 8 * layers
    for at in (1, events.asked // 2, events.asked):
        events = Stopping(at)
        with pytest.raises(Stopped):
            encoder.encode(["a fox"], events=events)
        assert events.asked == at
    assert len(encoder.encode(["a fox"])) == 1, "a stop does no harm to it"


def test_frames_are_asked_for_one_at_a_time():
    events, seen = Stopping(4), []
    with pytest.raises(Stopped):
        seen.extend(events.heeded(range(100)))
    assert seen == [0, 1, 2]
