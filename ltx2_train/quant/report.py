"""How much each storage format loses, measured on a random weight.

The weight is drawn from N(0, 1) in float32. `mae` is the mean absolute error, `snr_db` ten times the logarithm of the
weight's energy over the error's, `cosine` the cosine between the two as vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import pick_device
from ..optional import why_missing
from .base import row_parts
from .formats import FORMATS
from .loftq import loftq
from .settings import QuantSettings

LOFTQ_RANK = 32
LOFTQ_ITERATIONS = 2


def error_table(size: int = 4096, seed: int = 0, device: str = "cpu") -> list[dict[str, Any]]:
    """A row {"name", "mae", "snr_db", "cosine"} for bf16, each format (nf4 in blocks of 32), and nf4 with LoftQ.

    `device` is a name as `model.device` takes it. Formats whose library cannot be used have no row.
    """
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).to(pick_device(device))
    return [{"name": name, **_errors(approximation, weight)} for name, approximation in _approximations(weight)]


def error_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table of text."""
    widest = max(len("format"), *(len(row["name"]) for row in rows))
    lines = [f"{'format':<{widest}}  {'MAE':>8}  {'SNR dB':>7}  {'cosine':>9}"]
    for row in rows:
        lines.append(f"{row['name']:<{widest}}  {row['mae']:>8.4f}  {row['snr_db']:>7.2f}  {row['cosine']:>9.6f}")
    return "\n".join(lines)


def _approximations(weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    settings = QuantSettings(block_size=32)
    yield "bf16", weight.bfloat16().float()
    for name in FORMATS:
        format = FORMATS.get(name)
        if format.storage.library and why_missing(format.storage.library):
            continue
        yield name, format.quantize(weight, None, settings, torch.float32).dequantize()
        if format.storage.refinable:
            module, a, b = loftq(
                weight,
                lambda part, format=format: format.quantize(part, None, settings, torch.float32),
                LOFTQ_RANK,
                LOFTQ_ITERATIONS,
            )
            yield f"{name} + loftq rank {LOFTQ_RANK}", module.dequantize().addmm_(b, a)


def _errors(approximation: Tensor, weight: Tensor) -> dict[str, float]:
    """Sums in float64, over parts, so that no second copy of the weight is made."""
    off = energy = error = found_energy = product = 0.0
    for part in row_parts(*weight.shape):
        a, b = approximation[part].double(), weight[part].double()
        off += float((a - b).abs().sum())
        error += float((a - b).square().sum())
        energy += float(b.square().sum())
        found_energy += float(a.square().sum())
        product += float((a * b).sum())
    return {
        "mae": off / weight.numel(),
        "snr_db": float(10 * torch.log10(torch.tensor(energy / error))),
        "cosine": product / (energy * found_energy) ** 0.5,
    }
