"""Text that a transformer reads as its encoder gives it, as LTX-Video does, which has no connectors.

Captions then have different lengths. So a context has one column more than the transformer reads, a mark: 1 in every
row of the text, 0 in the rows that fill it up to the longest of its batch. It travels with the text, whoever moves it.

Shape letters: B batch, N rows, T tokens of a caption, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .text import TextFeatures


class PlainText(nn.Module):
    """In the place of connectors: features to contexts, with nothing to learn between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widths = {"video": width}

    def forward(self, features: Sequence[TextFeatures]) -> tuple[Tensor, None]:
        """Contexts [B, N, D + 1] of the video, and none of the sound."""
        return stack_contexts([pad(one.video, (0, 1), value=1.0) for one in features]), None


def stack_contexts(contexts: Sequence[Tensor]) -> Tensor:
    """Contexts [T, D] of one width as [B, N, D], shorter ones filled up with zeros."""
    longest = max(one.shape[0] for one in contexts)
    return torch.stack([pad(one, (0, 0, 0, longest - one.shape[0])) for one in contexts])


def split_marked(context: Tensor) -> tuple[Tensor, Tensor | None]:
    """A context [B, N, D + 1] as the text [B, N, D] and its mask [B, N]; None for a single one, which is full."""
    return context[..., :-1], None if context.shape[0] == 1 else context[..., -1]
