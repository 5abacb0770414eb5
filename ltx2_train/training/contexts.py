"""The text contexts of a run: what the transformer reads of each caption, one a stream ("video", "audio").

Caches keep captions small, before the connectors. The connectors are frozen, so their output never changes within a
run: it is computed once for every caption and kept in RAM or, above a limit, in a file of the run that the system
pages in as needed (8 MB a caption at full size, 12 with sound, so a thousand captions are 8 or 12 GB).

A caption may be dropped (caption_dropout): what stands in for it is the context of the empty prompt, which samplers
take as the negative one, or zeros, as the community trainer has it. Dropping captions in training is what lets
guidance work later (Ho and Salimans 2022, "Classifier-Free Diffusion Guidance").
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import RunError
from ..models.plain_text import stack_contexts

StreamNames = tuple[str, ...]
EMPTY_PROMPT = ""


def streams_of(mode: str) -> StreamNames:
    """The streams that a run of `mode` ("video", "av", "audio") has."""
    return ("video", "audio") if mode == "av" else (mode,)


class ContextStore:
    """(key, stream) -> context [S, D]; all contexts of a stream have one dtype, kept on the CPU."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path, self._limit = path, limit
        self._contexts: dict[tuple[Hashable, str], Tensor] = {}
        self._bytes = 0
        self._spilled = 0

    def add(self, key: Hashable, stream: str, context: Tensor) -> None:
        """Keep `context` under `key`; above the limit of bytes it goes to the file."""
        context = context.detach().to("cpu").contiguous()
        if self._bytes + context.nbytes > self._limit:
            context = self._spill(context)
        else:
            self._bytes += context.nbytes
        self._contexts[key, stream] = context

    def batch(
        self,
        keys: Sequence[Hashable],
        stream: str,
        device: torch.device | str,
        dropped: Sequence[bool] = (),
        stand_in: str = "empty",
    ) -> Tensor:
        """Contexts of `keys` as [B, S, D]. Connectors fill up to one length; without them shorter ones end in zeros.

        Where `dropped` is true the caption gives way to the empty prompt, or to zeros if `stand_in` says so.
        """
        contexts = [self._contexts[key, stream] for key in keys]
        for index in (index for index, gone in enumerate(dropped) if gone):
            if stand_in == "zeros":
                contexts[index] = torch.zeros_like(contexts[index])
            else:
                contexts[index] = self._contexts[EMPTY_PROMPT, stream]
        return stack_contexts(contexts).to(device)

    def __contains__(self, key: tuple[Hashable, str]) -> bool:
        return key in self._contexts

    def __getitem__(self, key: tuple[Hashable, str]) -> Tensor:
        return self._contexts[key]

    def pair(self, key: Hashable) -> tuple[Tensor | None, Tensor | None]:
        """The contexts [S, D] of one key for video and for sound; None for a stream the run lacks."""
        return self._contexts.get((key, "video")), self._contexts.get((key, "audio"))

    @property
    def spilled(self) -> int:
        """Bytes that went to the file."""
        return self._spilled

    def close(self) -> None:
        """Forget everything and remove the file."""
        self._contexts.clear()
        with contextlib.suppress(OSError):  # the next run begins the file anew
            self._path.unlink(missing_ok=True)

    def _spill(self, context: Tensor) -> Tensor:
        data = context.view(torch.uint8).numpy()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # a run that was killed has left its file
            with open(self._path, "ab" if self._spilled else "wb") as file:
                offset = file.tell()
                file.write(data.data.cast("B"))
        except OSError as error:
            raise RunError(
                f"Could not write {self._path}: {error.strerror or error}. Free some space, or raise memory.context_gb "
                "so that the captions stay in RAM."
            ) from error
        self._spilled += context.nbytes
        mapped = torch.from_file(str(self._path), shared=True, size=offset + context.nbytes, dtype=torch.uint8)
        return mapped[offset:].view(context.dtype).view(context.shape)
