"""The CUDA paths on a machine without a card: streams and events are stand-ins that write down who waits for what.

Work is done at once, so values must be right as well. What only a card can show is in tests/gpu.
"""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from torch import nn

from ltx2_train.offload import copies
from ltx2_train.offload.activations import ActivationStore
from ltx2_train.offload.blocks import BlockStreamer
from ltx2_train.offload.copies import CudaCopies
from ltx2_train.offload.host import HostBuffers

CPU = torch.device("cpu")


class Card:
    """Clocks: a stream knows how far it is behind each other stream by the events that it waited for."""

    def __init__(self):
        self.local = threading.local()
        self.host = {}  # operations of a stream that the processor has waited for
        self.main = self.stream()

    @property
    def now(self):
        return getattr(self.local, "stream", self.main)

    def stream(self, device=None):
        card = self

        class Stream:
            def __init__(self):
                self.done, self.seen = 0, {}  # own operations, and those of other streams that surely came before

            def operate(self):
                self.done += 1
                return self.done

            def wait_event(self, event):
                assert event.stamp is not None, "an event that was never recorded is waited for"
                stream, done, seen = event.stamp
                for other, count in {**seen, stream: done}.items():
                    self.seen[other] = max(self.seen.get(other, 0), count)

            def wait_stream(self, other):
                self.wait_event(other.record_event())

            def record_event(self):
                event = card.event()
                event.record(self)
                return event

            def synchronize(self):
                pass

        return Stream()

    def event(self, **options):
        card = self

        class Event:
            stamp = None

            def record(self, stream):
                self.stamp = (stream, stream.done, dict(stream.seen))

            def synchronize(self):
                if self.stamp is not None:
                    card.host[self.stamp[0]] = max(card.host.get(self.stamp[0], 0), self.stamp[1])

        return Event()

    @contextlib.contextmanager
    def using(self, stream):
        before, self.local.stream = self.now, stream
        try:
            yield
        finally:
            self.local.stream = before


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(torch.cuda, "Stream", card.stream)
    monkeypatch.setattr(torch.cuda, "Event", card.event)
    monkeypatch.setattr(torch.cuda, "stream", card.using)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: card.main)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    card.recorded = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: card.recorded.append(self.data_ptr()))
    return card


class Locked(HostBuffers):
    """RAM that says it is locked."""

    def direct(self, number):
        return self._memory[number].bytes


@pytest.mark.parametrize("kind", [Locked, HostBuffers])
@pytest.mark.parametrize("ahead", [1, 2])
@pytest.mark.parametrize("poison", [True, False])  # it waits for the readers too, and would hide a copy that does not
def test_no_copy_overtakes_a_reader_and_no_reader_a_copy(card, monkeypatch, kind, ahead, poison):
    monkeypatch.setattr(copies, "STAGING_BYTES", 1000)  # several parts a block
    blocks = [nn.Linear(20, 30).requires_grad_(False) for _ in range(7)]
    values = [block.weight.clone() for block in blocks]
    streamer = BlockStreamer(blocks, range(6), "cpu", source=kind(), ahead=ahead, poison=poison)
    engine = streamer._engine = CudaCopies(CPU, streamer._source)
    reads, writes = {}, {}  # by slot: the last operation of the stream that computes, of the one that copies
    sent = {}  # by address of a staging buffer: the last operation that reads it

    def after(slot):
        """Whatever ran in the slot so far has surely come before the copying stream's next operation."""
        assert reads.get(slot.index, 0) <= engine._stream.seen.get(card.main, 0)

    real_copy = torch.Tensor.copy_

    def copy(self, other, non_blocking=False):
        if card.now is engine._stream:
            slots = [s for s in streamer._slots if s.memory.data_ptr() <= self.data_ptr() < end_of(s.memory)]
            for slot in slots:
                after(slot)
                writes[slot.index] = sent[other.data_ptr()] = engine._stream.operate()
            if not slots:  # a staging buffer is being filled
                assert sent.get(self.data_ptr(), 0) <= card.host.get(engine._stream, 0)
        return real_copy(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copy)

    def visit(number, backward):
        with streamer.visiting(number, backward):
            assert torch.equal(blocks[number].weight, values[number])
            slot = streamer._where.get(number)
            if slot is not None and slot.users:
                assert writes[slot.index] <= card.main.seen.get(engine._stream, 0)
                reads[slot.index] = card.main.operate()

    with torch.no_grad():
        for _ in range(2):
            for number in range(7):
                visit(number, False)
            for number in reversed(range(7)):
                visit(number, True)
        for number in range(7):
            visit(number, False)
    assert (engine.notes == []) == (kind is Locked)  # no locked staging buffers without a card, and it says so
    assert len(engine._staging) == (0 if kind is Locked else copies.STAGING_BUFFERS)
    streamer.close()
    assert engine._staging == []


def end_of(memory):
    return memory.data_ptr() + memory.numel()


def test_a_kept_tensor_is_copied_after_it_was_made_and_used_after_it_is_back(card, monkeypatch):
    store = ActivationStore("cpu")
    store._cuda, store._stream = True, torch.cuda.Stream()
    copied = {}
    real_copy = torch.Tensor.copy_

    def copy(self, other, non_blocking=False):
        if card.now is store._stream:
            assert card.main.done <= store._stream.seen[card.main]  # made, or the memory free for use
            copied[self.data_ptr()] = store._stream.operate()
        return real_copy(self, other)

    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    tensors = []
    for i in range(4):
        tensors.append(torch.full((5,), float(i)))
        card.main.operate()
        tensors[i] = (store.put(tensors[i]), tensors[i].data_ptr())
    assert card.recorded == [pointer for _, pointer in tensors]
    for i in reversed(range(1, 4)):
        found = store.get(tensors[i][0])
        assert torch.equal(found, torch.full((5,), float(i)))
        assert copied[found.data_ptr()] <= card.main.seen[store._stream]
        card.main.operate()
    in_vain = tensors[0][0]._back.data_ptr()
    del tensors
    assert card.recorded[-1] == in_vain
    assert len(store._free) == store.buffers == 4
