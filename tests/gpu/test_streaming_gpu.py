"""On a card: streamed blocks give the resident model's numbers bit for bit, and copies run beside the computation."""

from __future__ import annotations

import copy
import dataclasses
import gc

import pytest
import torch
from parity.oracles_transformer import adapt, build, inputs, loss_of
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ltx2_train.offload.activations import ActivationStore
from ltx2_train.offload.blocks import BlockStreamer, spread
from ltx2_train.offload.source import FileBlocks

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]

LAYERS = 6
# a block of about 20 MB in fp32, so that a copy takes longer than the launch of a kernel
SIZES = {
    "num_attention_heads": 8,
    "attention_head_dim": 64,
    "audio_num_attention_heads": 8,
    "audio_attention_head_dim": 32,
    "cross_attention_dim": 512,
    "audio_cross_attention_dim": 256,
}


def make(mode, dtype):
    model = build("2.3", mode, num_layers=LAYERS, **SIZES).to(dtype)
    with torch.no_grad():
        for parameter in model.transformer_blocks.parameters():
            if parameter.dim() == 2:
                parameter.mul_(0.2)  # wide sums stay finite in bf16
    return model, adapt(model, "attn")


def batch(mode):
    found = []
    made = inputs("2.3", per_token=True)
    for modality, width in ((made.video, 512), (made.audio, 256)):
        context = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(width))
        tensors = {f.name: getattr(modality, f.name) for f in dataclasses.fields(modality)}
        tensors["context"] = context
        moved = {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in tensors.items()}
        found.append(dataclasses.replace(modality, **moved))
    return (None if mode == "audio" else found[0]), (None if mode == "video" else found[1])


def step(model, layers, given):
    model.zero_grad()
    with sdpa_kernel(SDPBackend.MATH):  # the others add gradients up in any order
        loss = loss_of(model(*given))
        loss.backward()
    return [loss.detach(), *(p.grad.clone() for layer in layers.values() for p in (layer.lora_A, layer.lora_B))]


def layers_of(model, layers):
    """The same LoRA layers in a copy of the model."""
    return {path: model.get_submodule(path) for path in layers}


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert b.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", ["pinned", "pageable", "file"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("mode", "swapped"), [("video", 1), ("video", 3), ("av", LAYERS - 1)])
def test_losses_and_gradients_are_those_of_the_resident_model(mode, swapped, dtype, way, tmp_path):
    model, layers = make(mode, dtype)
    resident, given = copy.deepcopy(model).cuda(), batch(mode)
    expected = step(resident, layers_of(resident, layers), given)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        drawn = [t for t in dataclasses.astuple(resident(*given))[:2] if t is not None]
    source = FileBlocks(tmp_path) if way == "file" else None
    numbers = spread(LAYERS, swapped)
    streamer = BlockStreamer(
        model.transformer_blocks, numbers, "cuda", pinned=way == "pinned", source=source, poison=True, ahead=1
    )
    assert streamer.notes == []
    streamer.move_others(model)
    model.residence = streamer
    model.activations = store = ActivationStore("cuda", pinned=way == "pinned")
    slots = min(2, swapped)
    for copies in (2 * swapped - slots, 2 * (swapped - slots)):
        before = streamer.copies
        assert_equal(step(model, layers, given), expected)
        assert streamer.copies - before == copies
    assert store.notes == []
    assert store.buffers == (LAYERS - 1) * (2 if mode == "av" else 1)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for _ in range(2):
            assert_equal([t for t in dataclasses.astuple(model(*given))[:2] if t is not None], drawn)
    streamer.park()
    streamer.unpark()
    assert_equal(step(model, layers, given), expected)
    model.residence = None
    with pytest.raises(RuntimeError, match="device"):
        step(model, layers, given)
    streamer.close()


class Work(nn.Module):
    """A large frozen matrix and some products with it."""

    def __init__(self, width, products):
        super().__init__()
        self.products = products
        self.weight = nn.Parameter(torch.randn(width, width).to(torch.bfloat16) / width**0.5, requires_grad=False)

    def forward(self, x):
        for _ in range(self.products):
            x = x @ self.weight
        return x


def timed(run):
    """Milliseconds of the second run."""
    for _ in range(2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end)


@pytest.mark.parametrize("pinned", [True, False])
def test_copies_and_computation_overlap(pinned):
    count, width = 8, 4096
    x = torch.randn(8192, width, device="cuda", dtype=torch.bfloat16)

    def pass_over(products):
        blocks = [Work(width, products) for _ in range(count)]
        streamer = BlockStreamer(blocks, range(count - 1), "cuda", pinned=pinned)

        def run():
            y = x
            with torch.no_grad():
                for number, block in enumerate(blocks):
                    with streamer.visiting(number, False):
                        y = block(y)

        return streamer, blocks, run

    streamer, blocks, run = pass_over(0)
    copying = timed(run)
    streamer.close()
    one = Work(width, 20).cuda()
    products = max(1, round(20 * copying / count / timed(lambda: one(x))))  # computing takes as long as copying
    streamer, blocks, run = pass_over(products)
    both = timed(run)
    streamer.close()
    resident = [block.cuda() for block in blocks]

    def plain():
        y = x
        for block in resident:
            y = block(y)

    computing = timed(plain)
    print(f"copying {copying:.1f} ms, computing {computing:.1f} ms, both {both:.1f} ms")
    assert both < 0.8 * (copying + computing)


def test_the_thread_that_launches_never_waits_for_the_card():
    blocks = [Work(4096, 50) for _ in range(6)]
    streamer = BlockStreamer(blocks, range(5), "cuda", pinned=True)
    streamer.move_others(nn.ModuleList(blocks))
    x = torch.randn(8192, 4096, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        for _ in range(2):
            torch.cuda.synchronize()
            for number, block in enumerate(blocks):
                with streamer.visiting(number, False):
                    x = block(x)
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
    streamer.close()


def test_slots_are_all_that_streamed_blocks_take_and_park_gives_them_back():
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    blocks = [Work(2048, 1) for _ in range(6)]
    streamer = BlockStreamer(blocks, range(5), "cuda")
    with torch.no_grad():
        for number in range(6):
            with streamer.visiting(number, False):
                assert blocks[number].weight.is_cuda
    size = 2048 * 2048 * 2
    assert torch.cuda.memory_allocated() - before == 3 * size  # two slots and the resident one
    streamer.park()
    assert torch.cuda.memory_allocated() - before == size
    streamer.close()


@pytest.mark.parametrize("pinned", [True, False])
def test_activations_leave_the_card_and_come_back(pinned):
    store = ActivationStore("cuda", pinned=pinned)
    assert store.notes == []
    for _ in range(2):
        made = [torch.randn(1 << 20, device="cuda") for _ in range(6)]
        expected = [t.cpu() for t in made]
        torch.cuda.synchronize()
        full = torch.cuda.memory_allocated()
        handles = [store.put(t) for t in made]
        del made
        torch.cuda.synchronize()
        torch.empty(1, device="cuda")  # lets the allocator see that the copies are done
        assert torch.cuda.memory_allocated() <= full - 6 * (4 << 20) + (1 << 20)
        filler = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(6)]
        for i in reversed(range(6)):
            assert torch.equal(store.get(handles[i]).cpu(), expected[i])
        del handles, filler
    assert store.buffers == 6
    store.close()
    assert store.buffers == 0
