"""Multi-head attention as LTX-2 has it: biased projections, RMS-normalized and rotated queries and keys, gated heads.

    q, k = R n(W x) * w ;   out = W_o ( 2 sigmoid(gate(x)) * softmax(q k^T / sqrt(K) + mask) v )

The norm of q and k runs over all heads together, not each head. The gate (2.3 only) is one number a head and query,
read from the same input as the query. A skipped attention passes v through instead (spatio-temporal guidance).

Shape letters: B batch, T query tokens, S key tokens, D width, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .fused import Fused
from .kernels import Way, attend
from .norms import gated_heads, rotated_norm
from .recompute import Kept, Remade, trainable
from .results import attend_again, with_result_kept
from .rope import Rope


class NormWeight(nn.Module):
    """Holds the weight of a q or k norm under the checkpoint's name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Attention(nn.Module):
    """One attention; `context` supplies keys and values, the input itself where it is None.

    `way` is how it is computed, `fused` what its norms and gates are compiled by; both may be changed at any time.
    """

    def __init__(self, width: int, context_width: int, heads: int, head_width: int, gated: bool, eps: float) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads, self.eps = heads, eps
        self.q_norm = NormWeight(inner)
        self.k_norm = NormWeight(inner)
        self.to_q = nn.Linear(width, inner)
        self.to_k = nn.Linear(context_width, inner)
        self.to_v = nn.Linear(context_width, inner)
        if gated:
            self.to_gate_logits = nn.Linear(width, heads)
        self.to_out = nn.ModuleList([nn.Linear(inner, width)])
        self.gated = gated
        self.way = Way()
        self.fused: Fused | None = None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rope: Rope | None = None,
        context_rope: Rope | None = None,
        mask: Tensor | None = None,
        skip: bool = False,
        remade: Remade | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """[B, T, D], [B, S, D'] -> [B, T, D]. `mask` is additive, broadcastable to [B, H, T, S].

        `remade` is told which intermediates need not be kept for backward; `kept` is given the linears of keys and
        values, to keep their results for a second run.
        """
        note = _plainly if remade is None else remade.note
        product = _plainly if kept is None else kept.value
        if skip:
            out, *logits = product(self.to_v, x if context is None else context), *(one(x) for one in self._gate())
            out = self._split(out)
        else:
            q, k, v, *logits = self._asked(x, context, kept)
            q, k, v = self._turned(q, k, v, rope, rope if context is None else context_rope, note)
            out = attend(q, k, v, mask, self.way)
            del q, k, v  # what backward needs of them, autograd keeps
        return self._told(out, logits, note)

    def with_result_kept(
        self,
        read: Callable[..., Sequence[Tensor]],
        tensors: Sequence[Tensor],
        rope: Rope | None,
        context_rope: Rope | None,
        remade: Remade,
        kept: Kept | None,
    ) -> Tensor:
        """`self(*read(note, *tensors)[1:], rope, context_rope)`, keeping `tensors` and the result of attending.

        `read` gives what is for others, the input, and the context if there is one. `kept` is that of a block that is
        run a second time.
        """

        def run(*tensors: Tensor, known: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
            with Remade() as inputs:
                _, x, *context = read(inputs.note, *tensors)
                q, k, v, *logits = self._asked(x, context[0] if context else None, None)
            key_rope = context_rope if context else rope
            del x, context  # backward makes them again
            q, k, v = self._turned(q, k, v, rope, key_rope, _plainly)
            return *attend_again(q, k, v, known), *logits

        asked = (self.to_q, self.to_k, self.to_v, self.q_norm, self.k_norm, *self._gate())
        parameters = [parameter for module in asked for parameter in trainable(module)]
        out, *logits = with_result_kept(run, tensors, parameters, kept, 3 if self.gated else 2)
        return self._told(out, logits, remade.note)

    def _asked(self, x: Tensor, context: Tensor | None, kept: Kept | None) -> list[Tensor]:
        """Queries [B, T, D], keys and values [B, S, D], and the logits [B, T, H] of the gate, if any."""
        if context is None:
            return together((self.to_q, self.to_k, self.to_v, *self._gate()), x)
        q, *logits = together((self.to_q, *self._gate()), x)
        pair = (self.to_k, self.to_v)
        k, v = together(pair, context) if kept is None else (kept.value(one, context) for one in pair)
        return [q, k, v, *logits]

    def _turned(
        self, q: Tensor, k: Tensor, v: Tensor, rope: Rope | None, key_rope: Rope | None, note: Callable[..., Tensor]
    ) -> list[Tensor]:
        """The three as heads [B, T, H, K], the first two normalized and rotated."""
        # a gate reads heads however they lie; without one they would have to be put back in order by a copy
        how = self.heads, self.eps, self.fused, self.gated
        q = note(rotated_norm, q, self.q_norm.weight, rope, *how)
        return [q, note(rotated_norm, k, self.k_norm.weight, key_rope, *how), self._split(v)]

    def _told(self, out: Tensor, logits: Sequence[Tensor], note: Callable[..., Tensor]) -> Tensor:
        """[B, T, D] of the heads [B, T, H, K] that were attended."""
        for one in logits:
            out = note(gated_heads, out, one, self.fused)
        return self.to_out[0](out if out.dim() == 3 else out.flatten(2))

    def _gate(self) -> Sequence[nn.Module]:
        return (self.to_gate_logits,) if self.gated else ()

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1))


def together(linears: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
    """[linear(x) for linear in linears], by a function `together` of the class of one of them where it has one."""
    for linear in linears:
        known = getattr(type(linear), "together", None)
        if known is not None:
            return known(linears, x)
    return [linear(x) for linear in linears]


def _plainly(make: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return make(*arguments)


def text_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Keep/drop [B, S] to an additive mask [B, 1, 1, S]; None where everything is kept, which is the fast path.

    On the meta device, which has no values, a mask always counts as one that drops something.
    """
    if mask is None or (mask.device.type != "meta" and bool(mask.all())):
        return None
    dropped = mask == 0
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(dropped, torch.finfo(dtype).min)[
        :, None, None
    ]


def token_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Weights [B, T or 1, T] in 0..1 to an additive mask [B, 1, T or 1, T]: their logarithm, and the lowest number for
    0."""
    if mask is None:
        return None
    logarithm = mask.float().clamp(min=torch.finfo(torch.float32).tiny).log()
    return torch.where(mask > 0, logarithm.to(dtype), torch.finfo(dtype).min).unsqueeze(1)
