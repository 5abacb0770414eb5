from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from ltx2_train.offload import packing
from ltx2_train.offload.packing import ALIGNMENT, block_layout, hollow


def frozen_parameter(values):
    return nn.Parameter(values, requires_grad=False)


class Odd(nn.Module):
    """Tensors of many kinds: dtypes, strides, shared, empty, one number, trainable."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3).requires_grad_(False)
        self.short = frozen_parameter(torch.randn(7, 3).to(torch.bfloat16))
        self.turned = frozen_parameter(torch.randn(4, 6).t())
        self.gaps = frozen_parameter(torch.randn(4, 6)[:, ::2])
        self.tied = self.inner.weight
        self.alias = frozen_parameter(self.inner.weight.data)
        self.trained = nn.Parameter(torch.randn(2, 2))
        self.register_buffer("codes", torch.randint(0, 256, (9,), dtype=torch.uint8))
        self.register_buffer("eight", torch.randn(5, 5).to(torch.float8_e4m3fn))
        self.register_buffer("number", torch.tensor(2.5))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("wide", torch.randn(3, 1).expand(3, 4))
        self.register_buffer("nothing", torch.empty(0, 3))
        self.register_buffer("none", None)


def same(a, b):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def test_every_kind_of_tensor_comes_through_bit_for_bit():
    block = Odd()
    before = {name: t.detach().clone() for name, t in (*block.named_parameters(), *block.named_buffers())}
    objects = {name: id(t) for name, t in (*block.named_parameters(), *block.named_buffers())}
    layout = block_layout(block)
    flat = torch.full((layout.size,), 0xFF, dtype=torch.uint8)
    layout.pack(flat)
    after = dict((*block.named_parameters(), *block.named_buffers()))
    assert {name: id(t) for name, t in after.items()} == objects
    for name, tensor in after.items():
        same(tensor.data, before[name])
        inside = tensor.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        assert inside == (name != "trained"), name
    assert block.turned.stride() == (1, 6)  # kernels may depend on the order in memory
    assert block.trained.requires_grad
    assert not block.short.requires_grad


def test_pieces_are_aligned_and_do_not_overlap_and_shared_memory_is_there_once():
    block = Odd()
    layout = block_layout(block)
    end = 0
    for piece in layout.pieces:
        assert piece.start % ALIGNMENT == 0
        assert piece.start >= end
        end = piece.start + piece.nbytes
    assert layout.size >= end
    shared = [piece for piece in layout.pieces if any(t is block.inner.weight for t in piece.tensors)]
    assert len(shared) == 1
    assert any(t is block.alias for t in shared[0].tensors)
    layout.pack(torch.empty(layout.size, dtype=torch.uint8))
    assert block.alias.data_ptr() == block.inner.weight.data_ptr()


def test_packing_frees_each_tensor_before_it_copies_the_next(monkeypatch):
    block, alive, counts = nn.Module(), [], []
    for i in range(4):
        array = np.full((8, 8), i, dtype=np.float32)
        alive.append(weakref.ref(array))
        block.register_buffer(f"b{i}", torch.from_numpy(array))
    del array
    real = packing.bytes_of

    def counted(tensor):
        counts.append(sum(ref() is not None for ref in alive))
        return real(tensor)

    monkeypatch.setattr(packing, "bytes_of", counted)
    layout = block_layout(block)
    layout.pack(torch.empty(layout.size, dtype=torch.uint8))
    assert counts == [4, 3, 2, 1]
    assert not any(ref() is not None for ref in alive)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8, torch.complex64])
def test_a_stand_in_has_shape_and_dtype_and_no_memory(dtype):
    found = hollow((300, 200), dtype)
    assert (found.shape, found.dtype) == ((300, 200), dtype)
    assert found.untyped_storage().nbytes() == found.element_size()
    if dtype.is_floating_point:
        assert found.float().isnan().all()
    assert hollow((), dtype).shape == ()


def test_a_tensor_that_is_more_than_its_bytes_is_refused():
    class Special(torch.Tensor):
        pass

    block = nn.Module()
    block.register_buffer("special", torch.zeros(2).as_subclass(Special))
    with pytest.raises(AssertionError, match="Special"):
        block_layout(block)


def test_a_block_without_frozen_tensors_has_no_size():
    assert block_layout(nn.Linear(2, 2)).size == 0
