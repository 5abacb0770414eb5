from __future__ import annotations

import pytest
import torch

from ltx2_train.offload.activations import ActivationStore


def numbers(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_values_come_back_bit_for_bit(dtype):
    store = ActivationStore("cpu")
    x = numbers(2, 5, 3, dtype=dtype).transpose(1, 2)
    handle = store.put(x)
    kept = x.clone()
    x.zero_()
    found = store.get(handle)
    assert (found.shape, found.dtype) == (kept.shape, dtype)
    assert torch.equal(found, kept)
    assert torch.equal(store.get(handle), kept)  # as often as one likes
    assert store.bytes_copied == kept.numel() * kept.element_size()


def test_what_is_kept_has_no_graph_and_is_nobody_elses_memory():
    store = ActivationStore("cpu")
    handle = store.put(numbers(3).requires_grad_())
    found = store.get(handle)
    assert not found.requires_grad
    found.zero_()
    assert store.get(handle).abs().sum() > 0


def test_those_put_before_are_fetched_ahead_in_the_order_of_backward():
    store = ActivationStore("cpu", ahead=2)
    handles = [store.put(numbers(4, seed=i)) for i in range(5)]
    there = []
    for i in reversed(range(5)):
        assert torch.equal(store.get(handles[i]), numbers(4, seed=i))
        there.append([k for k, handle in enumerate(handles) if handle._back is not None])
    assert there == [[2, 3], [1, 2], [0, 1], [0], []]


def test_any_order_gives_the_right_values():
    store = ActivationStore("cpu")
    handles = [store.put(numbers(4, seed=i)) for i in range(6)]
    for i in (2, 5, 0, 4, 3, 1):
        assert torch.equal(store.get(handles[i]), numbers(4, seed=i))


def test_buffers_are_used_again_in_the_next_step():
    store = ActivationStore("cpu")
    for step in range(3):
        handles = [store.put(numbers(8, 4, seed=step * 10 + i)) for i in range(4)]
        while handles:
            assert torch.equal(store.get(handles.pop()), numbers(8, 4, seed=step * 10 + len(handles)))
    assert (store.buffers, store.host_bytes) == (4, 4 * 8 * 4 * 4)
    store.close()
    assert (store.buffers, store.host_bytes) == (0, 0)
    assert torch.equal(store.get(store.put(numbers(3))), numbers(3))


def test_larger_tensors_take_the_place_of_smaller_buffers():
    store = ActivationStore("cpu")
    for size in (4, 16, 8, 32):
        handles = [store.put(numbers(size, seed=i)) for i in range(3)]
        for i, handle in enumerate(handles):
            assert torch.equal(store.get(handle), numbers(size, seed=i))
        del handles, handle
        assert store.buffers == 3
    assert store.host_bytes == 3 * 32 * 4


def test_a_released_handle_gives_its_buffer_to_the_next():
    store = ActivationStore("cpu")
    first = store.put(numbers(4))
    first.release()
    first.release()
    with pytest.raises(AssertionError, match="released"):
        store.get(first)
    second = store.put(numbers(4, seed=1))
    assert store.buffers == 1
    assert torch.equal(store.get(second), numbers(4, seed=1))


def test_an_exception_gives_all_buffers_back():
    store = ActivationStore("cpu")

    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, fail):
            ctx.handle, ctx.fail = store.put(x), fail
            return x * x

        @staticmethod
        def backward(ctx, grad):
            if ctx.fail:
                raise ValueError("stopped")
            return 2 * grad * store.get(ctx.handle), None

    def step(fail):
        x = numbers(6).requires_grad_()
        y = x
        for i in range(4):
            y = Kept.apply(y, fail and i == 2)
        y.sum().backward()
        return x.grad

    expected = 16 * numbers(6) ** 15
    torch.testing.assert_close(step(False), expected)
    with pytest.raises(ValueError, match="stopped"):
        step(True)
    assert len(store._free) == store.buffers == 4
    torch.testing.assert_close(step(False), expected)
    assert store.buffers == 4


def test_a_tensor_of_another_device_is_our_own_mistake():
    with pytest.raises(AssertionError):
        ActivationStore("cpu").put(torch.empty(2, device="meta"))
