"""The streamer by itself, on small blocks of its own."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from ltx2_train.errors import ConfigError
from ltx2_train.offload import copies
from ltx2_train.offload.blocks import BlockStreamer, spread
from ltx2_train.offload.host import HostBuffers
from ltx2_train.offload.source import FileBlocks


class Watched(HostBuffers):
    """RAM that writes down what was read from it, and can be made to wait or to fail."""

    def __init__(self):
        super().__init__()
        self.read, self.fail, self.gate = [], set(), None

    def read_into(self, number, target, offset=0):
        if self.gate is not None:
            assert self.gate.wait(10)
        if number in self.fail:
            raise OSError(f"block {number} cannot be read")
        super().read_into(number, target, offset)
        self.read.append(number)


def make_blocks(count, width=4):
    return [nn.Linear(width, width * (1 + 20 * (i % 3))).requires_grad_(False) for i in range(count)]


def make(count, streamed, **options):
    blocks = make_blocks(count)
    values = [block.weight.clone() for block in blocks]
    source = options.pop("source", None) or Watched()
    streamer = BlockStreamer(blocks, streamed, "cpu", source=source, poison=True, **options)
    return streamer, values, source


def visit(streamer, values, number, backward=False):
    with streamer.visiting(number, backward):
        assert torch.equal(streamer.blocks[number].weight, values[number]), number


def forward(streamer, values):
    """As the model does it: what is to be recomputed runs without gradients, the last block does not."""
    with torch.no_grad():
        for number in range(len(values) - 1):
            visit(streamer, values, number)
    visit(streamer, values, len(values) - 1)


def backward(streamer, values):
    with torch.no_grad():
        for number in reversed(range(len(values) - 1)):
            visit(streamer, values, number, True)


@pytest.mark.parametrize(
    ("total", "swapped", "expected"),
    [
        (48, 0, []),
        (48, 47, list(range(47))),
        (48, 1, [23]),
        (48, 2, [11, 35]),
        (5, 3, [0, 2, 3]),
        (1, 0, []),
        (2, 1, [0]),
    ],
)
def test_streamed_blocks_are_spread(total, swapped, expected):
    assert spread(total, swapped) == expected


@pytest.mark.parametrize("total", [2, 7, 48])
def test_gaps_differ_by_one_at_most_and_the_last_block_is_never_streamed(total):
    for swapped in range(total):
        found = spread(total, swapped)
        assert len(set(found)) == swapped
        assert total - 1 not in found
        gaps = {b - a for a, b in zip(found, found[1:], strict=False)}
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("swapped", [48, 60, -1])
def test_too_many_blocks_are_refused(swapped):
    with pytest.raises(ConfigError, match=rf"{swapped} of 48 blocks .* at most 47.*blocks_to_swap") as error:
        spread(48, swapped)
    assert "memory.blocks_to_swap" in str(error.value)


@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("streamed", [[0], [1, 4], [0, 2, 4, 5], list(range(7))])
def test_each_block_is_fetched_once_forward_and_once_backward_and_not_at_the_turns(ahead, streamed):
    streamer, values, source = make(8, streamed, ahead=ahead)
    slots = min(ahead + 1, len(streamed))
    for step in range(3):
        before, bytes_before = streamer.copies, streamer.bytes_copied
        forward(streamer, values)
        streamer._engine.drain()
        there = streamed[:slots] if step else []  # left by the last backward
        assert source.read == [n for n in streamed if n not in there]
        backward(streamer, values)
        streamer._engine.drain()
        assert source.read[len(streamed) - len(there) :] == streamed[::-1][slots:]
        assert streamer.copies - before == len(source.read) == 2 * len(streamed) - slots - len(there)
        assert streamer.bytes_copied - bytes_before == sum(source.size(number) for number in source.read)
        source.read.clear()
    assert len(streamer._slots) == slots
    streamer.close()


def test_sampling_goes_round_and_fetches_the_first_blocks_at_the_end():
    streamer, values, source = make(6, [0, 1, 2, 3, 4])
    with torch.no_grad():
        for _ in range(3):
            for number in range(6):
                visit(streamer, values, number)
            streamer._engine.drain()
            assert source.read[-2:] == [0, 1]
    assert source.read == [0, 1, 2, 3, 4] * 3 + [0, 1]


def test_a_resident_block_uses_its_time_to_fetch():
    streamer, values, source = make(6, [1, 4])
    visit(streamer, values, 0)
    streamer._engine.drain()
    assert source.read == [1, 4]
    assert streamer.resident(0)
    assert not streamer.resident(1)


def test_prefetching_does_not_hold_up_the_block_at_work():
    streamer, values, source = make(4, [0, 1, 2])
    visit(streamer, values, 0)
    streamer._engine.drain()  # 0 and 1 are there
    source.gate = threading.Event()
    with streamer.visiting(1, False):  # sends for 2, which cannot be read yet
        assert torch.equal(streamer.blocks[1].weight, values[1])
        assert source.read == [0, 1]
        source.gate.set()
    visit(streamer, values, 2)
    assert source.read == [0, 1, 2]


def test_outside_a_visit_the_tensors_are_the_hosts_and_a_released_slot_is_not_kept():
    streamer, values, _ = make(6, [0, 1, 2, 3, 4])
    weight = streamer.blocks[0].weight
    home = weight.data_ptr()
    with streamer.visiting(0, False):
        stale = weight.data
        assert weight.data_ptr() != home
    assert weight.data_ptr() == home
    for number in (1, 2, 3):
        visit(streamer, values, number)
    assert not torch.equal(stale, values[0])


def test_visits_nest():
    streamer, values, source = make(6, [0, 1, 2, 3, 4])
    with streamer.visiting(1, False):
        visit(streamer, values, 1, True)
        assert torch.equal(streamer.blocks[1].weight, values[1])
        for number in (2, 3, 4, 0):  # another one inside never takes the slot that is in use
            visit(streamer, values, number)
            assert torch.equal(streamer.blocks[1].weight, values[1])
        with streamer.visiting(3, False), pytest.raises(AssertionError, match="no slot"):
            visit(streamer, values, 4)
    forward(streamer, values)
    assert all(slot.users == 0 for slot in streamer._slots)


def test_an_exception_inside_a_visit_ends_it():
    streamer, values, _ = make(6, [0, 1, 2, 3, 4])
    home = streamer.blocks[2].weight.data_ptr()
    with pytest.raises(ZeroDivisionError), streamer.visiting(2, True):
        1 / 0  # noqa: B018
    assert streamer.blocks[2].weight.data_ptr() == home
    assert all(slot.users == 0 for slot in streamer._slots)
    forward(streamer, values)
    backward(streamer, values)


def test_a_block_that_cannot_be_read_says_so_at_its_visit_and_is_tried_again():
    streamer, values, source = make(4, [0, 1, 2])
    source.fail = {1}
    visit(streamer, values, 0)  # sends for 1 in vain
    for _ in range(2):
        with pytest.raises(OSError, match="block 1 cannot be read"):
            visit(streamer, values, 1)
    source.fail = set()
    forward(streamer, values)
    backward(streamer, values)


def test_reset_makes_a_streamer_usable_whose_visits_were_never_ended():
    streamer, values, source = make(6, [0, 1, 2, 3, 4])
    homes = [block.weight.data_ptr() for block in streamer.blocks]
    streamer.enter(1, True)
    streamer.enter(3, True)
    streamer.reset()
    assert [block.weight.data_ptr() for block in streamer.blocks] == homes
    streamer.leave(3)  # a visit that ends late changes nothing
    source.read.clear()
    forward(streamer, values)
    assert source.read == [0, 1, 2, 3, 4]


def test_park_gives_the_slots_back_and_unpark_takes_them():
    streamer, values, source = make(4, [0, 1, 2])
    assert streamer.slot_bytes == 2 * max(source.size(number) for number in (0, 1, 2))
    forward(streamer, values)
    with streamer.visiting(1, False), pytest.raises(AssertionError, match="inside a visit"):
        streamer.park()
    streamer.park()
    assert streamer._slots == []
    visit(streamer, values, 3)  # resident
    with pytest.raises(AssertionError, match="given back"):
        visit(streamer, values, 0)
    streamer.unpark()
    assert len(streamer._slots) == 2
    forward(streamer, values)
    backward(streamer, values)


def test_slots_made_while_sampling_serve_training():
    streamer, values, _ = make(4, [0, 1, 2])
    with torch.inference_mode():
        for number in range(4):
            visit(streamer, values, number)
    x = torch.randn(2, 4, requires_grad=True)
    with streamer.visiting(0, True):
        streamer.blocks[0](x).sum().backward()
    torch.testing.assert_close(x.grad, values[0].sum(0).expand(2, 4))


def test_closing_ends_the_thread_and_leaves_the_weights_in_ram():
    streamer, values, _ = make(4, [0, 1, 2])
    forward(streamer, values)
    streamer.close()
    assert all(torch.equal(block.weight, value) for block, value in zip(streamer.blocks, values, strict=True))
    assert streamer._engine._worker._pool is None


def test_blocks_are_admitted_as_they_are_loaded(tmp_path):
    loaded = make_blocks(4)
    values = [block.weight.clone() for block in loaded]
    for source in (None, FileBlocks(tmp_path)):
        with torch.device("meta"):
            blocks = make_blocks(4)
        streamer = BlockStreamer(blocks, [0, 1, 2], "cpu", source=source)
        with pytest.raises(AssertionError, match=r"\[0, 1, 2\] .* never admitted"):
            streamer.unpark()
        with pytest.raises(AssertionError, match="block 1 is not loaded"):
            streamer.admit(1)
        for number, block in enumerate(blocks):
            block._parameters["weight"] = nn.Parameter(values[number].clone(), requires_grad=False)
            block._parameters["bias"] = nn.Parameter(loaded[number].bias.clone(), requires_grad=False)
            streamer.admit(number)
            resident = sum(block.weight.untyped_storage().nbytes() for block in blocks[: number + 1])
            if source is not None and number < 3:
                assert resident == 4 * (number + 1)  # one number a tensor
        forward(streamer, values)
        backward(streamer, values)
        streamer.close()


def test_trainable_parameters_are_not_streamed():
    blocks = make_blocks(3)
    blocks[0].register_parameter("lora", nn.Parameter(torch.ones(3)))
    streamer = BlockStreamer(blocks, [0, 1], "cpu")
    lora, place = blocks[0].lora, blocks[0].lora.data_ptr()
    with streamer.visiting(0, False):
        assert blocks[0].lora is lora
        assert lora.data_ptr() == place


def test_moving_the_others_leaves_streamed_weights_where_they_are(monkeypatch):
    blocks = make_blocks(3)
    blocks[0].register_parameter("lora", nn.Parameter(torch.ones(3)))
    streamer = BlockStreamer(blocks, [0, 1], "cpu")
    model = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "head": nn.Linear(2, 2)})
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device: moved.append(self.data_ptr()) or self)
    streamer.move_others(model)
    others = [blocks[0].lora, *blocks[2].parameters(), *model["head"].parameters()]
    assert sorted(moved) == sorted(t.data_ptr() for t in others)


def test_the_last_block_cannot_be_streamed():
    with pytest.raises(AssertionError):
        BlockStreamer(make_blocks(3), [2], "cpu")


def test_a_device_without_streams_copies_at_once(monkeypatch):
    monkeypatch.setattr(copies, "STAGING_BYTES", 100)
    streamer, values, source = make(6, [0, 1, 2, 3, 4])
    streamer._engine = copies.PlainCopies(source)
    for _ in range(2):
        forward(streamer, values)
        backward(streamer, values)
    streamer.close()


def test_a_streamer_of_nothing_does_nothing():
    streamer, values, _ = make(3, [])
    forward(streamer, values)
    assert (streamer.copies, streamer.slot_bytes, streamer.notes) == (0, 0, [])
    streamer.close()
