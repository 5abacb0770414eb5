"""Two 4-bit codes a byte: reading them by a table of byte -> pair of values, or compiled by one of code -> value."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def read_pairs(packed: Tensor, code: tuple[float, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """The values [2 n] in `dtype` of `packed` uint8 (n bytes, any shape): high half first, each an index of `code`."""
    table = _pairs if torch.compiler.is_compiling() else _kept_pairs
    return table(code, packed.device, dtype).index_select(0, packed.flatten().int()).flatten()


def scaled_codes(packed: Tensor, scale: Tensor, code: Tensor, dtype: torch.dtype) -> Tensor:
    """The values [O, I] of `packed` [O, I / 2] by `code` [16] in float32, times `scale` [O, blocks, 1], in `dtype`.

    Compiled it is one pass; as it is, it takes several times the room of its result.
    """
    shifts = 4 - 4 * torch.arange(2, dtype=torch.int32, device=packed.device)
    codes = (packed.unsqueeze(-1).int() >> shifts) & 15
    values = code[codes].view(packed.shape[0], scale.shape[1], -1) * scale
    return values.view(packed.shape[0], -1).to(dtype)


@lru_cache(maxsize=16)
def kept_code(code: tuple[float, ...], device: torch.device) -> Tensor:
    """`code` as a tensor in float32, made once."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor(code, device=device)


def _pairs(code: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """[256, 2]: the two values of each byte."""
    values = torch.tensor(code, device=device, dtype=dtype)
    return torch.stack([values.repeat_interleave(16), values.repeat(16)], dim=1)


@lru_cache(maxsize=16)
def _kept_pairs(code: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same; it depends on no weight, so it may be kept."""
    with torch.inference_mode(False), torch.no_grad():
        return _pairs(code, device, dtype)
