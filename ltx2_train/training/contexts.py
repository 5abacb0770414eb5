"""The text contexts of a run: what the transformer reads of each caption.

Caches keep captions small, before the connectors. The connectors are frozen, so their output never changes within a
run: it is computed once for every caption and kept in RAM or, above a limit, in a file of the run that the system
pages in as needed (8 MB a caption at full size, so a thousand captions are 8 GB).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path

import torch
from torch import Tensor


class ContextStore:
    """key -> context [S, D]; all contexts have one dtype, kept on the CPU."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self._contexts: dict[Hashable, Tensor] = {}
        self._bytes = 0
        self._spilled = 0

    def add(self, key: Hashable, context: Tensor) -> None:
        """Keep `context` under `key`; above the limit of bytes it goes to the file."""
        context = context.detach().to("cpu").contiguous()
        if self._bytes + context.nbytes > self._limit:
            context = self._spill(context)
        else:
            self._bytes += context.nbytes
        self._contexts[key] = context

    def batch(self, keys: Iterable[Hashable], device: torch.device | str) -> Tensor:
        """Contexts of `keys` as [B, S, D]; shorter ones cannot occur, since the connectors fill up to one length."""
        return torch.stack([self._contexts[key] for key in keys]).to(device)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._contexts

    def __getitem__(self, key: Hashable) -> Tensor:
        return self._contexts[key]

    @property
    def spilled(self) -> int:
        """Bytes that went to the file."""
        return self._spilled

    def close(self) -> None:
        """Forget everything and remove the file."""
        self._contexts.clear()
        self._path.unlink(missing_ok=True)

    def _spill(self, context: Tensor) -> Tensor:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        data = context.view(torch.uint8).numpy() if context.ndim else context
        with open(self._path, "ab") as file:
            offset = file.tell()
            file.write(memoryview(data).cast("B"))
        self._spilled += context.nbytes
        mapped = torch.from_file(str(self._path), shared=True, size=offset + context.nbytes, dtype=torch.uint8)
        return mapped[offset:].view(context.dtype).view(context.shape)
