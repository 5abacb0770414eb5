"""The transformer computes the same, bit by bit, whether its blocks are resident or streamed."""

from __future__ import annotations

import time

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of

from ltx2_train.offload.activations import ActivationStore
from ltx2_train.offload.blocks import BlockStreamer, spread
from ltx2_train.offload.host import HostBuffers
from ltx2_train.offload.source import FileBlocks

LAYERS = 5


class Slow(HostBuffers):
    """RAM that takes its time, so that a visit that does not wait is found out."""

    def read_into(self, number, target, offset=0):
        time.sleep(0.003)
        super().read_into(number, target, offset)


def make(mode, dtype, version="2.3", where="attn"):
    model = build(version, mode, num_layers=LAYERS).to(dtype)
    return model, adapt(model, where)


def step(model, layers, mode, version="2.3", clear=True):
    """Loss, and the gradients of all A and B."""
    if clear:
        model.zero_grad()
    loss = loss_of(model(*inputs(version, per_token=True).pick(mode)))
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for layer in layers.values() for p in (layer.lora_A, layer.lora_B))]


def sample(model, mode, version="2.3"):
    with torch.no_grad():
        out = model(*inputs(version).pick(mode))
    return [t for t in (out.video, out.audio) if t is not None]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b)


def stream(model, swapped, source=None, **options):
    numbers = spread(LAYERS, swapped)
    source = Slow() if source is None else source
    streamer = BlockStreamer(model.transformer_blocks, numbers, "cpu", source=source, poison=True, **options)
    model.residence = streamer
    return streamer


@pytest.mark.parametrize("swapped", range(1, LAYERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["video", "audio", "av"])
def test_losses_and_gradients_are_those_of_the_resident_model(mode, dtype, swapped):
    expected = step(*make(mode, dtype), mode)
    model, layers = make(mode, dtype)
    streamer = stream(model, swapped)
    slots = min(2, swapped)
    for copies in (2 * swapped - slots, 2 * (swapped - slots)):
        before = streamer.copies
        assert_equal(step(model, layers, mode), expected)
        streamer._engine.drain()
        assert streamer.copies - before == copies
    streamer.close()


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_training_and_sampling_in_turn_with_inputs_kept_elsewhere(ahead):
    mode, dtype = "av", torch.float32
    model, layers = make(mode, dtype, where="")  # also the linears of the feed-forward
    expected, drawn = step(model, layers, mode), sample(model, mode)
    model.activations = store = ActivationStore("cpu")
    streamer = stream(model, LAYERS - 1, ahead=ahead)
    for _ in range(2):
        assert_equal(step(model, layers, mode), expected)
        assert_equal(sample(model, mode), drawn)
        assert_equal(sample(model, mode), drawn)
    assert store.puts == store.gets == 2 * 2 * (LAYERS - 1)
    assert store.buffers == 2 * (LAYERS - 1)
    streamer.close()


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_from_a_file_where_a_use_outside_a_visit_gives_nan(version, tmp_path):
    mode, dtype = "av", torch.bfloat16
    expected = step(*make(mode, dtype, version), mode, version)
    model, layers = make(mode, dtype, version)
    blocks = model.transformer_blocks
    numbers = spread(LAYERS, LAYERS - 1)
    with FileBlocks(tmp_path) as file:
        for number in numbers:
            file.add(number, blocks[number])
        frozen = [p for p in blocks[0].parameters() if not p.requires_grad]
        assert sum(p.untyped_storage().nbytes() for p in frozen) == 2 * len(frozen)  # one number each
        streamer = stream(model, LAYERS - 1, source=file)
        for _ in range(2):
            assert_equal(step(model, layers, mode, version), expected)
        model.residence = None
        assert step(model, layers, mode, version)[0].isnan()
        streamer.close()


def test_a_step_that_is_cut_off_in_backward_leaves_everything_usable():
    mode, dtype = "video", torch.float32
    model, layers = make(mode, dtype)
    expected = step(model, layers, mode)
    model.activations = store = ActivationStore("cpu")
    streamer = stream(model, LAYERS - 1)

    def stop(grad):
        raise KeyboardInterrupt

    layer = next(layer for path, layer in layers.items() if ".2." in path)
    handle = layer.lora_A.register_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        step(model, layers, mode)
    handle.remove()
    assert all(slot.users == 0 for slot in streamer._slots)
    streamer.reset()
    assert_equal(step(model, layers, mode), expected)
    assert len(store._free) == store.buffers == LAYERS - 1
    streamer.close()


def test_two_micro_steps_add_up():
    mode, dtype = "video", torch.float32
    model, layers = make(mode, dtype)
    step(model, layers, mode)
    expected = step(model, layers, mode, clear=False)
    streamer = stream(model, LAYERS - 1)
    step(model, layers, mode)
    assert_equal(step(model, layers, mode, clear=False), expected)
    streamer.close()


def test_more_blocks_can_be_streamed_later():
    mode, dtype = "video", torch.float32
    model, layers = make(mode, dtype)
    expected = step(model, layers, mode)
    for swapped in (1, 3, 4):
        streamer = stream(model, swapped)
        assert_equal(step(model, layers, mode), expected)
        streamer.close()


def test_a_streamed_block_that_is_not_recomputed_is_refused():
    model, layers = make("video", torch.float32)
    streamer = stream(model, 2)
    model.set_recompute(0)
    with pytest.raises(AssertionError, match="not recomputed"):
        step(model, layers, "video")
    model.set_recompute(streamer.streamed)
    step(model, layers, "video")
    streamer.close()
