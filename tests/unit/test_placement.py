"""The transformer in its place: who waits where, what moves, what it says."""

from __future__ import annotations

import pytest
import torch

from ltx2_train import ConfigError, Events, make_run
from ltx2_train.errors import Stopped
from ltx2_train.lora.inject import inject
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.placement import fit_for_sampling, load_placed, multiply_low

CPU = torch.device("cpu")
NEVER = lambda: None  # noqa: E731


@pytest.fixture
def placed(tiny, tmp_path):
    made = []

    def make(quant=None, precision="fp32", **memory):
        run = make_run(
            {
                "model": {"checkpoint": str(tiny.checkpoint), "mode": "av", "precision": precision, "device": "cpu"},
                "memory": {"fit": "custom", **memory},
                "quant": {"format": quant or "none"},
            }
        )
        made.append(load_placed(run, run.memory, CPU, Events(), tmp_path / "scratch"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_swapped_blocks_are_spread_and_the_last_one_stays(placed):
    one = placed(blocks_to_swap=2)
    assert len(one.streamer.streamed) == 2
    assert one.streamer.resident(3)
    assert one.model.residence is one.streamer
    assert placed().streamer is None


def test_no_more_blocks_leave_the_card_than_samples_need(placed, monkeypatch):
    """Four blocks on a card that is only counted: with 5 free, each that leaves frees 10."""
    one, moves, free = placed(), [], [5]
    one.device = torch.device("cuda")
    blocks = list(one.model.transformer_blocks)

    def move(block, device):
        moves.append((blocks.index(block), device.type))
        free[0] += 10 if device.type == "cpu" else -10

    monkeypatch.setattr("ltx2_train.placement._move", move)
    monkeypatch.setattr("ltx2_train.placement._free", lambda device, needed: free[0] >= needed)
    monkeypatch.setattr(one, "to", lambda device: moves.append(("all", torch.device(device).type)))
    with one.aside(22, NEVER):
        assert moves == [(0, "cpu"), (1, "cpu")]
    assert moves[2:] == [(0, "cuda"), (1, "cuda"), ("all", "cuda")]
    moves.clear()
    with one.aside(5, NEVER):
        assert moves == []
    free[0], asked = 0, [Stopped(), None]

    def poll():
        if (told := asked.pop()) is not None:
            raise told

    with pytest.raises(Stopped), one.aside(22, poll):
        pytest.fail("a stop ends it")
    assert moves == [(0, "cpu"), (0, "cuda"), ("all", "cuda")], "what has left by then comes back"
    one.device = CPU


def test_a_block_is_admitted_while_the_next_ones_are_not_read_yet(placed, monkeypatch):
    from ltx2_train.offload.blocks import BlockStreamer

    unread = []
    real = BlockStreamer.admit

    def admit(self, number):
        later = self.blocks[number + 1 :]
        unread.append(sum(any(t.is_meta for t in block.parameters()) for block in later))
        real(self, number)

    monkeypatch.setattr(BlockStreamer, "admit", admit)
    placed(blocks_to_swap=3, swap_from="file")
    assert len(unread) == 3
    assert max(unread) >= 2  # not all at the end


def test_what_is_trained_lies_on_the_device_and_swapped_blocks_are_recomputed(placed):
    one = placed(blocks_to_swap=2, recompute_blocks=0)
    loras = inject(one.model, LoraSettings(rank=2), torch.Generator().manual_seed(0))
    one.adapted()
    assert all(parameter.device == CPU for parameter in loras.parameters())
    one.work_as(make_run({"memory": {"fit": "custom", "recompute_blocks": 0}}).memory)
    assert one.model.recompute == set(one.streamer.streamed)
    one.work_as(make_run({"memory": {"fit": "custom", "recompute_blocks": 3}}).memory)
    assert len(one.model.recompute) == 3
    assert one.model.recompute > set(one.streamer.streamed)


@pytest.mark.parametrize(("quant", "precision", "written"), [(None, "bf16", False), ("int8", "bf16", True)])
def test_blocks_that_the_checkpoint_has_as_they_are_need_no_scratch_file(placed, tmp_path, quant, precision, written):
    expected = placed(quant, precision).model.state_dict()
    one = placed(quant, precision, blocks_to_swap=2, swap_from="file")
    bytes_of_blocks = sum(one._source.size(number) for number in one.streamer.streamed)
    assert (one._source.scratch_bytes > bytes_of_blocks / 2) == written
    assert (tmp_path / "scratch").exists() == written
    for number in one.streamer.streamed:
        with one.streamer.visiting(number, False):
            for name, value in one.model.transformer_blocks[number].state_dict().items():
                assert torch.equal(value, expected[f"transformer_blocks.{number}.{name}"]), name


def test_a_block_that_is_swapped_only_later_is_read_from_the_checkpoint_too(placed, tmp_path):
    one = placed(precision="bf16", blocks_to_swap=1, swap_from="file")
    inject(one.model, LoraSettings(rank=2), torch.Generator().manual_seed(0))
    one.adapted()
    one.stream(make_run({"memory": {"fit": "custom", "blocks_to_swap": 3, "swap_from": "file"}}).memory)
    assert len(one.streamer.streamed) == 3
    assert one._source.scratch_bytes == 0


def test_more_blocks_can_be_swapped_later(placed):
    one = placed()
    before = {name: t.clone() for name, t in one.model.state_dict().items()}
    one.stream(make_run({"memory": {"fit": "custom", "blocks_to_swap": 1}}).memory)
    one.stream(make_run({"memory": {"fit": "custom", "blocks_to_swap": 3}}).memory)
    assert len(one.streamer.streamed) == 3
    assert all(torch.equal(t, before[name]) for name, t in one.model.state_dict().items())


def test_leaving_the_device_and_coming_back_changes_nothing(placed):
    one = placed(blocks_to_swap=2)
    before = {name: t.clone() for name, t in one.model.state_dict().items()}
    one.device = torch.device("meta")  # stands for a card: to("cpu") leaves it
    one.to("cpu")
    assert one.streamer.parked
    one.device = CPU
    one.to("cpu")
    assert not one.streamer.parked
    assert all(torch.equal(t, before[name]) for name, t in one.model.state_dict().items())


def test_too_many_blocks_are_refused_before_anything_is_read(placed):
    with pytest.raises(ConfigError, match="at most 3"):
        placed(blocks_to_swap=4)


def test_what_cannot_be_done_is_said(placed):
    one = placed()
    notes = one.work_as(make_run({"memory": {"fit": "custom", "attention": "flash3"}}).memory)
    assert any("flash" in note.lower() for note in notes)
    assert multiply_low(one.model, "off", 64, CPU) is None
    assert "not stored in a format" in multiply_low(one.model, "on", 64, CPU)
    assert "8 bits in" in multiply_low(placed("int8").model, "on", 64, CPU)


def test_sampling_swaps_what_does_not_fit(tiny, monkeypatch):
    run = make_run({"model": {"checkpoint": str(tiny.checkpoint), "mode": "av"}})
    assert fit_for_sampling(run, CPU).blocks_to_swap == 0
    cuda = torch.device("cuda")
    for free, least, most in ((100 << 30, 0, 0), (4 << 30, 3, 3)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        assert least <= fit_for_sampling(run, cuda).blocks_to_swap <= most
    kept = make_run({"model": {"checkpoint": str(tiny.checkpoint), "mode": "av"}, "memory": {"blocks_to_swap": 1}})
    assert fit_for_sampling(kept, cuda).blocks_to_swap == 1


@pytest.mark.parametrize(
    ("free", "does"),
    [
        ([9], []),
        ([1, 9], ["parked", "back"]),
        ([1] * 4, ["parked", "block out", "block out", "to cpu", "block in", "block in", "back"]),
    ],
    ids=["there is room", "the slots are enough", "all of it has to go"],
)
def test_no_more_leaves_the_device_than_must(placed, monkeypatch, free, does):
    one, left, done = placed(blocks_to_swap=2), list(free), []
    one.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (left.pop(0), 100))
    monkeypatch.setattr(one.streamer, "park", lambda: done.append("parked"))
    moved = {"cpu": "block out", "cuda": "block in"}
    monkeypatch.setattr("ltx2_train.placement._move", lambda block, device: done.append(moved[device.type]))
    monkeypatch.setattr(one, "to", lambda device: done.append("back" if device == one.device else f"to {device}"))
    with pytest.raises(KeyError), one.aside(5, NEVER):
        raise KeyError
    assert done == does
    one.device = CPU
