"""Attention whose result is kept, and whose queries, keys and values are worked out again for its gradient alone.

A result [B, T, D] is small beside the products that lead to it. Where it is kept from the first run of a block, the
second run neither multiplies nor attends for it; and what backward needs of queries, keys and values, three more of its
size, is made when their gradient is asked for. So it is not there while the feed-forward has its gradient, which is
when a processor holds most. On an accelerator the memory plan decides what is kept; nothing of this is done there.

Shape letters: B batch, T query tokens, S key tokens, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .recompute import Boxing, Kept, gradients_of, leaves_of, unboxed

Run = Callable[..., Sequence[Tensor]]

_aten = torch.ops.aten


def with_result_kept(
    run: Run, tensors: Sequence[Tensor], parameters: Sequence[Tensor], kept: Kept | None, count: int
) -> tuple[Tensor, ...]:
    """The first and all from the third on of the `count` values of `run(*tensors)`; keeps `tensors` and the first two.

    `run` attends by `attend_again`, handing on `known`: None, or those two, which it need not make then. It must read
    nothing that needs a gradient but `tensors` and `parameters`, and must be repeatable. `kept` is that of the block,
    where that is run a second time.
    """
    values = None if kept is None else kept.values(lambda: run(*tensors), count)
    box: list[Tensor | None] = []
    return Boxing.apply(box, *_Again.apply(run, values, box, len(tensors), *tensors, *parameters))


def attend_again(q: Tensor, k: Tensor, v: Tensor, known: Sequence[Tensor] | None) -> tuple[Tensor, Tensor]:
    """The result [B, T, H, K] of q [B, T, H, K], k and v [B, S, H, K], and the logarithms [B, H, T] of the sums that
    it was divided by. Where both are `known`, nothing is computed but the gradient.

    That overwrites q, k and v, so they must have memory of their own that nobody else reads.
    """
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    if known is None:
        out, sums = _aten._scaled_dot_product_flash_attention_for_cpu(*heads)
        return out.transpose(1, 2), sums
    return _Attended.apply(*heads, known[0].transpose(1, 2), known[1]).transpose(1, 2), known[1]


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Run, values: Sequence[Tensor] | None, box: list[Tensor | None], count: int, *flat: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        tensors, ctx.parameters = flat[:count], flat[count:]
        out, sums, *others = run(*tensors) if values is None else values
        ctx.run, ctx.box = run, box
        out = out.detach()
        ctx.save_for_backward(*tensors, out, sums)
        return out, *(other.detach() for other in others)

    @staticmethod
    def backward(ctx: Any, *stand_ins: Tensor | None) -> tuple[Any, ...]:
        *tensors, out, sums = ctx.saved_tensors
        leaves = leaves_of(tensors, ctx.needs_input_grad[4:])
        known = out.detach(), sums  # not the output of this node, whose gradient this is
        with torch.enable_grad():
            again, _, *others = ctx.run(*leaves, known=known)
            end = unboxed(ctx.box, (again, *others))
        found = gradients_of((end,), (end.new_empty(()),), [*leaves, *ctx.parameters])
        return None, None, None, None, *found


class _Attended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v, out, sums)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *asked, out, sums = ctx.saved_tensors
        for part in _parts(out.shape[1]):
            places = [x[:, part] for x in asked]
            pieces = [x[:, part] for x in (out, sums)]
            found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[:, part], *places, *pieces, 0.0, False
            )
            for place, piece in zip(places, found, strict=True):
                place.copy_(piece)
            del found, piece
        return *asked, None, None


def _parts(heads: int) -> Iterator[slice]:
    """Slices of the heads: as few at a time as there are threads, each of which takes one."""
    step = torch.get_num_threads()
    return (slice(start, min(start + step, heads)) for start in range(0, heads, step))
