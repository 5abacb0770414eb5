"""How softmax(q k^T / sqrt(K) + mask) v is computed: by which kernel, and whole or in pieces.

PyTorch's own choice (SDPA) is always there and takes masks. FlashAttention 2 and 3 are separate libraries for CUDA that
take none; installs of them break in many ways, so one is tried before it is used.

Pieces are samples, or some queries at a time. They are worked out again in backward, one after the other, so that the
scores [B, H, T, S], where a kernel makes them at all, exist for one piece only.

FlashAttention: Dao 2023, arXiv:2307.08691; Shah et al. 2024, arXiv:2407.08608.

Shape letters: B batch, T query tokens, S key tokens, H heads, K head width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

KERNELS = {"flash2": ("FlashAttention 2", "flash_attn"), "flash3": ("FlashAttention 3", "flash_attn_interface")}
FLASH_DEVICES = frozenset({"cuda"})
FLASH_DTYPES = frozenset({torch.float16, torch.bfloat16})
SPLITS = ("off", "batch", "query")
QUERIES = 1024

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
Part = tuple[slice, slice]
AttentionPiece = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Way(NamedTuple):
    """How one attention is computed. `kernel` takes q, k, v [B, T, H, K]; None is SDPA."""

    kernel: Kernel | None = None
    split: str = "off"
    queries: int = QUERIES


def find_kernel(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Kernel | None, str | None]:
    """The kernel called `name` after a trial on `device`, or None for SDPA; and why it is not the one asked for."""
    if name == "sdpa":
        return None, None
    assert name in KERNELS, f"attention kernel {name!r}, expected sdpa or one of {sorted(KERNELS)}"
    title, package = KERNELS[name]
    if device.type not in FLASH_DEVICES:
        return None, _fallback(title, f"it runs on CUDA only and the model is on {device.type}")
    if dtype not in FLASH_DTYPES:
        return None, _fallback(title, f"it computes in fp16 and bf16 only and the model is in {dtype}")
    try:
        function = importlib.import_module(package).flash_attn_func

        def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = function(q, k, v)
            return out[0] if isinstance(out, tuple) else out  # some releases of 3 return the log-sum-exp too

        trial = torch.zeros(1, 16, 1, 64, device=device, dtype=dtype, requires_grad=True)
        with torch.enable_grad():
            torch.autograd.grad(kernel(trial, trial, trial).sum(), trial)
    except ImportError as error:
        return None, _fallback(title, f"the package {package} is not installed or does not load ({_words(error)})")
    except Exception as error:  # a build for another torch, driver or card fails in its own way
        return None, _fallback(title, f"the package {package} fails here ({type(error).__name__}: {_words(error)})")
    return kernel, None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, way: Way) -> Tensor:
    """[B, T, H, K], [B, S, H, K], [B, S, H, K] -> [B, T, H, K]; `mask` additive, broadcastable to [B, H, T, S]."""
    parts = _parts(q, way)
    if len(parts) == 1:
        return _whole(q, k, v, mask, way.kernel)
    return _Pieces.apply(q, k, v, mask, parts, way.kernel)


def _whole(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kernel: Kernel | None) -> Tensor:
    if kernel is not None and mask is None and q.device.type in FLASH_DEVICES and q.dtype in FLASH_DTYPES:
        return kernel(q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if q.device.type == "meta":
        # SDPA makes scores [B, H, T, S] there, which no kernel does that runs on a device
        out = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=mask)[0]
    else:
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2)


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, parts: list[Part], kernel: Any):
        ctx.parts, ctx.kernel = parts, kernel
        ctx.save_for_backward(q, k, v, mask)
        out = torch.empty_like(q)
        for part in parts:
            out[part] = _whole(*_piece(q, k, v, mask, part), kernel)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        q, k, v, mask = ctx.saved_tensors
        # of k and v every piece of a sample has its share; they are added up in at least float32
        totals = [torch.empty_like(q), *(torch.zeros_like(x, dtype=_wide(x.dtype)) for x in (k, v))]
        for part in ctx.parts:
            *pieces, bias = _piece(q.detach(), k.detach(), v.detach(), mask, part)
            leaves = [x.detach().requires_grad_() for x in pieces]
            with torch.enable_grad():
                out = _whole(*leaves, mask=bias, kernel=ctx.kernel)
            grad_q, *shares = torch.autograd.grad(out, leaves, grad[part])
            totals[0][part] = grad_q
            for total, share in zip(totals[1:], shares, strict=True):
                total[part[0]] += share
        wanted = ctx.needs_input_grad[:3]
        grads = [g.to(x.dtype) if want else None for g, x, want in zip(totals, (q, k, v), wanted, strict=True)]
        return *grads, None, None, None


def _parts(q: Tensor, way: Way) -> list[Part]:
    samples, tokens = q.shape[:2]
    everything = slice(None)
    if way.split == "batch":
        return [(slice(i, i + 1), everything) for i in range(samples)]
    if way.split == "query":
        return [(everything, slice(i, min(i + way.queries, tokens))) for i in range(0, tokens, way.queries)]
    return [(everything, everything)]


def _piece(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, part: Part) -> AttentionPiece:
    samples, queries = part
    if mask is not None:
        rows = queries if mask.shape[2] > 1 else slice(None)
        mask = mask[samples if mask.shape[0] > 1 else slice(None), :, rows]
    return q[part], k[samples], v[samples], mask


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _fallback(title: str, reason: str) -> str:
    return f"memory.attention asks for {title}, but {reason}. PyTorch's own attention (sdpa) is used."


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
