"""A batch is made ready before its step, which then asks its device for no number."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from unit.training.step_parts import make_batch, widths_of

from ltx2_train.config import make_run
from ltx2_train.feed.batches import Batches
from ltx2_train.models import transformer
from ltx2_train.training.ready import make_ready
from ltx2_train.training.sound import RunSound
from ltx2_train.training.step import ready_step, training_step
from ltx2_train.weights.load import load_transformer

aten = torch.ops.aten


class Looks(TorchDispatchMode):
    """Writes down what would make a card wait: numbers that are read, and sizes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten._local_scalar_dense.default, aten.nonzero.default, aten._unique2.default):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(tiny):
    return load_transformer(tiny.checkpoint, "av", torch.float32)


@pytest.mark.parametrize("lengths", [[6, 6], [6, 0, 4]])
@pytest.mark.parametrize("mode", ["none", "inv_freq"])
def test_a_step_on_what_is_ready_looks_at_no_value(model, lengths, mode, monkeypatch):
    # a processor waits for nobody, and looks which tokens share their places
    monkeypatch.setattr(transformer, "device_type", lambda _: "cuda")
    run = make_run(
        {"model": {"mode": "av"}, "train": {"first_frame_probability": 1.0}, "loss": {"balance": {"mode": mode}}}
    )
    batch, sound = make_batch(lengths), RunSound(run)
    contexts = {name: torch.ones(len(lengths), 8, width) for name, width in widths_of(model, "av").items()}
    ready = make_ready(model, batch, contexts, run, "2.3", torch.Generator().manual_seed(1), sound)
    with Looks() as looks:
        terms = ready_step(model, ready, run, sound)
        columns = terms.columns()
    assert looks.found == []
    again = training_step(model, batch, contexts, run, "2.3", torch.Generator().manual_seed(1), RunSound(run))
    assert torch.equal(terms.loss, again.loss)
    assert columns["loss"] == again.loss.mean()


def test_everything_that_a_step_needs_is_sent(model):
    """On the meta device nothing may be left on the CPU."""
    run = make_run({"model": {"mode": "av"}, "train": {"first_frame_probability": 1.0}})
    batch, sound = make_batch([6, 0, 4]), RunSound(run)
    contexts = {name: torch.ones(3, 8, width) for name, width in widths_of(model, "av").items()}
    ready = make_ready(model, batch, contexts, run, "2.3", torch.Generator().manual_seed(1), sound)
    left: list[torch.Tensor] = []
    ready.sent(lambda tensor: left.append(tensor) or tensor)
    assert len(ready.groups) == 3
    assert len(left) == 3 * 6 + 2 * 5 + 5, (
        "clean, noise, sigma, positions, given, context; sound has no given; five facts"
    )
    there = ready.sent(lambda tensor: tensor.to("meta"))
    for group in there.groups:
        for stream in (group.video, group.audio):
            if stream is not None:
                tensors = (stream.clean, stream.noise, stream.sigma, stream.positions, stream.given, stream.learned)
                assert all(tensor is None or tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_that_are_not_there_yet_are_not_waited_for(prefetch):
    class Order:
        samples = list(range(9))

        def walk(self, epoch, index):
            return ((0, number, (number,)) for number in range(9))

    with Batches(lambda samples, epoch, index: samples[0], Order(), prefetch=prefetch) as batches:
        assert next(batches) == 0
        found = [batches.poll() for _ in range(50)]
        taken = [one for one in found if one is not None]
        assert next(batches) == len(taken) + 1, "in their order, none left out"
        assert prefetch or not taken
