"""The pointwise work of a block as pure functions, for torch.compile to make one pass of each.

They are the forward and backward mathematics of norms.py without its slices: compiled, no temporary of the size of x
exists. Matrix products and attention are not in here, so nothing else is ever traced. A graph serves every number of
tokens and samples of streams of one width: a width that were open would cost a card divisions for each number, and
split a norm from the rotation behind it.

Shape letters: B batch, T tokens, D width, R distinct rows, H heads, K head width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ..device import is_full

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# what a sum and the pass behind it read is worked out twice; by default it is written between them, in float32, where
# it is made of five tensors
OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_reads_threshold": 32,
    "realize_opcount_threshold": 400,
}


class Fused:
    """Runs the functions of this file compiled, until one fails; then says so once and runs none any more."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self._compiled: dict[Hashable, Callable[..., Any]] = {}

    def __call__(self, body: Callable[..., Any], *arguments: Any) -> Any:
        """`body(*arguments)` without gradients, or None where that has to be computed in another way."""
        if self.failure is not None or arguments[0].is_meta:
            return None
        try:
            return self._run(body, arguments)
        except Exception as error:  # compilers and drivers fail in their own ways
            if is_full(error):
                raise
            self.failure = _words(error)
            logger.warning("torch.compile failed (%s). The run goes on without it.", self.failure)
            return None

    def try_out(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Compile and run one function on a small input. Returns why that does not work, else None."""
        x, row = torch.ones(1, 4, 16, device=device, dtype=dtype), torch.ones(1, 16, device=device)
        try:
            self._run(modulated_norm, (x, row, row, None, 1e-6))
        except Exception as error:
            reason = f"torch.compile does not work here ({_words(error)})"
            return f"memory.compile is on, but {reason}. The run goes on without it."
        return None

    def _run(self, body: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        # detached: inputs with and without gradient would each get a graph of their own
        plain = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        streams = plain[0].dim() > 2  # or a stored weight, of which every size is open
        widths = tuple(a.shape[2:] for a in plain if isinstance(a, Tensor)) if streams else ()
        compiled = self._compiled.get((body, widths))
        if compiled is None:
            compiled = _of_streams(body, widths) if streams else _of_weights(body)
            self._compiled[body, widths] = compiled
        if streams:
            for tensor in plain:
                if isinstance(tensor, Tensor):
                    _open(tensor)
        with torch.no_grad():
            return compiled(*plain)


def _open(tensor: Tensor) -> None:
    """Leave the numbers of samples, tokens and rows open, whatever they are now."""
    tokens = tensor.dim() > 2 or not tensor.is_floating_point()  # else rows of a width
    for dimension in range(2 if tokens else tensor.dim() - 1):
        torch._dynamo.maybe_mark_dynamic(tensor, dimension)


def _of_streams(body: Callable[..., Any], widths: Hashable) -> Callable[..., Any]:
    """`body` compiled for streams of one width, under a name of its own: what differs between two calls of one name is
    taken for open."""
    assert isinstance(body, FunctionType), body
    code = body.__code__.replace(co_name=f"{body.__name__}_{abs(hash(widths)):x}")
    own = FunctionType(code, body.__globals__, body.__name__)
    return torch.compile(own, fullgraph=True, backend=BACKEND, options=OPTIONS if BACKEND == "inductor" else None)


def _of_weights(body: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(body, dynamic=True, fullgraph=True, backend=BACKEND)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, index: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """n(x) * (1 + scale) + shift [B, T, D], and r [B, T, 1]; `scale` and `shift` [R, D]."""
    wide = _wide(x)
    r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * r * (_rows(scale, index) + 1) + _rows(shift, index)).to(x.dtype), r


def modulated_norm_gradient(
    grad: Tensor, x: Tensor, r: Tensor, scale: Tensor, index: Tensor | None, past: Tensor | None
) -> Tensor:
    """The gradient to x of `modulated_norm`, and `past` [B, T, D], which it has from elsewhere, rounded once."""
    own = _norm_gradient(_wide(grad) * (_rows(scale, index) + 1), x, r)
    return (own if past is None else own + _wide(past)).to(x.dtype)


def gated_sum(x: Tensor, y: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    """x + gate * y, `gate` [R, D]."""
    return torch.addcmul(x, y, _rows(gate, index).to(x.dtype))


def gated_gradient(grad: Tensor, gate: Tensor, index: Tensor | None) -> Tensor:
    """The gradient to y of `gated_sum`."""
    return grad * _rows(gate, index).to(grad.dtype)


def rotated_norm(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, eps: float):
    """The heads of n(x) * weight, rotated, and r; `cos` and `sin` [B or 1, T, H, K/2]."""
    wide = _wide(x)
    r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return _rotate(wide * r * _wide(weight), cos, sin, interleaved).to(x.dtype), r


def rotated_norm_gradient(
    grad: Tensor, x: Tensor, r: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> Tensor:
    """The gradient to x of `rotated_norm`."""
    return _norm_gradient(_rotate(_wide(grad), cos, -sin, interleaved) * _wide(weight), x, r).to(x.dtype)


def weighted_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """n(x) * weight, and r."""
    wide = _wide(x)
    r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * r * _wide(weight)).to(x.dtype), r


def weighted_norm_gradient(grad: Tensor, x: Tensor, r: Tensor, weight: Tensor) -> Tensor:
    """The gradient to x of `weighted_norm`."""
    return _norm_gradient(_wide(grad) * _wide(weight), x, r).to(x.dtype)


def gated_heads(x: Tensor, logits: Tensor) -> Tensor:
    """Heads x [B, T, H, K] times 2 sigmoid(logits), `logits` [B, T, H]: [B, T, D]."""
    return (_wide(x) * (2 * torch.sigmoid(_wide(logits))).unsqueeze(-1)).flatten(2).to(x.dtype)


def gated_heads_gradient(grad: Tensor, x: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients to x and to the logits of `gated_heads`."""
    g, s = _wide(grad).unflatten(2, (logits.shape[2], -1)), torch.sigmoid(_wide(logits))
    share = (g * _wide(x)).sum(-1) * 2 * s * (1 - s)
    return (g * (2 * s).unsqueeze(-1)).to(x.dtype), share.to(logits.dtype)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * (1 + scale) + shift for one row a sample: [B, S, D], [B, D], [B, D]."""
    return (_wide(x) * (scale + 1).unsqueeze(1) + shift.unsqueeze(1)).to(x.dtype)


def _norm_gradient(g: Tensor, x: Tensor, r: Tensor) -> Tensor:
    wide = _wide(x)
    share = (g * wide).mean(-1, keepdim=True) * r * r * r
    return g * r - wide * share


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The features a, b of each pair as a cos - b sin, b cos + a sin."""
    heads = x.unflatten(2, (cos.shape[2], -1))
    pair = 4 if interleaved else 3  # the dimension of the two
    pairs = heads.unflatten(3, (-1, 2) if interleaved else (2, -1))
    # each feature reads the other of its pair: halves that are put together would be a pass of their own
    sign = (torch.arange(2, device=x.device) * 2 - 1).view((2,) if interleaved else (2, 1))
    return (pairs * cos.unsqueeze(pair) + pairs.flip(pair) * (sin.unsqueeze(pair) * sign)).flatten(2)


def _rows(values: Tensor, index: Tensor | None) -> Tensor:
    return values.unsqueeze(1) if index is None else values[index]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
