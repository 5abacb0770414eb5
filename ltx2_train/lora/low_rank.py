"""Products of two thin matrices, rewritten without ever being formed.

Shape letters: I in, O out, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def factored(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A [R, I], B [O, R] in float32 with the product of `b` and `a`, along its own singular vectors.

    Two nearly equal products that are to be subtracted lose their digits where they are rounded side by side; their
    difference, written as a product of its own, loses none. R is cut to O or I where it is larger.
    """
    return halved(*singular(a, b))


def singular(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [O, R], S [R], V [R, I] in float32: the singular vectors and values of the product of `b` and `a`.

    R is cut to O or I where it is larger.
    """
    qa, ra = torch.linalg.qr(a.T.float())
    qb, rb = torch.linalg.qr(b.float())
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    return qb @ u, s, vh @ qa.T


def halved(u: Tensor, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A [R, I], B [O, R] with the product U S V; both carry half of the strength."""
    root = s.sqrt()
    return root[:, None] * v, u * root


def squared_norm(a: Tensor, b: Tensor) -> Tensor:
    """||B A||^2 (Frobenius) as sum(B^T B * A A^T), in float32; A [R, I], B [O, R]."""
    a, b = a.detach().float(), b.detach().float()
    return ((b.T @ b) * (a @ a.T)).sum()


def of_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The same product in `rank` components, those that are missing being zero."""
    more = rank - a.shape[0]
    assert more >= 0, (a.shape, rank)
    return torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more))
